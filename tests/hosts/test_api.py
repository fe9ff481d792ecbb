"""/api/hosts: apps and agents."""

from typing import Any

import pytest

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from hosts.models import Host
from tests import make
from tests.rest import Rest, errors, problem, results

pytestmark = pytest.mark.django_db

KEYS = {
    *("id", "kind", "name", "description", "enabled", "approved", "allow_enrolment", "connections_count"),
    *("status", "users_count", "created_by", "created_at", "first_seen_at", "last_seen_at"),
}


@pytest.fixture
def bot(ana: User) -> Host:
    return make.agent(by=ana, name="CI bot")


@pytest.fixture
def app(db: None) -> Host:
    return Host.objects.create(kind="headed", name="Claude Desktop", needs_approval=True)


@pytest.mark.full
def test_a_host_is_told_with_its_live_connections(ana: User, ann: User, bot: Host) -> None:
    gateway = make.gateway()
    make.connection(bot, gateway, ana)
    make.connection(bot, make.gateway(), ana)
    make.connection(bot, gateway, ann).revoke(by=ann)

    told = Rest.of(ana).get(f"/hosts/{bot.pk}").json()

    assert set(told) == KEYS
    assert (told["kind"], told["created_by"], told["approved"]) == ("token", ana.email, True)
    assert (told["connections_count"], told["users_count"]) == (2, 1)


@pytest.mark.full
def test_counts_hold_ones_own_connections_without_the_capability(ana: User, ann: User, bot: Host) -> None:
    gateway = make.gateway()
    make.connection(bot, gateway, ana)
    make.connection(bot, gateway, ann)

    assert Rest.of(ann).get(f"/hosts/{bot.pk}").json()["connections_count"] == 1


@pytest.mark.full
def test_a_list_is_narrowed(ana: User, bot: Host, app: Host) -> None:
    rest = Rest.of(ana)

    def found(**query: Any) -> set[str]:
        return {host["name"] for host in results(rest.get("/hosts", **query))}

    bot.disable(by=ana)
    assert found() == {"CI bot", "Claude Desktop"}
    assert found(kind="token") == found(enabled="false") == found(q="ci") == {"CI bot"}
    assert found(kind="headed") == found(enabled="true") == {"Claude Desktop"}
    assert set(errors(rest.get("/hosts", archived="true"))) == {"archived"}


def test_an_agent_is_made_and_its_name_taken_once(ana: User) -> None:
    rest = Rest.of(ana)

    made = rest.post("/hosts", {"name": "Feedback bot", "description": "Reads"})

    assert (made.status_code, made.json()["kind"], made.json()["description"]) == (201, "token", "Reads")
    assert Event.objects.get(action="host.created").via == "api"
    assert problem(rest.post("/hosts", {"name": "feedback BOT"})) == (409, "already_exists")
    assert errors(rest.post("/hosts", {"name": "App", "kind": "headed"})) == {"kind": ["Cannot be set."]}


def test_a_host_is_edited(ana: User, bot: Host, app: Host) -> None:
    rest = Rest.of(ana)

    changed = rest.patch(f"/hosts/{bot.pk}", {"description": "Runs at night", "allow_enrolment": True}).json()

    assert (changed["name"], changed["description"], changed["allow_enrolment"]) == ("CI bot", "Runs at night", True)
    assert Event.objects.filter(action="host.updated").count() == 2
    assert set(errors(rest.patch(f"/hosts/{app.pk}", {"allow_enrolment": True}))) == {"allow_enrolment"}
    assert set(errors(rest.patch(f"/hosts/{bot.pk}", {"enabled": False}))) == {"enabled"}


@pytest.mark.full
def test_the_switch_is_idempotent(ana: User, bot: Host) -> None:
    rest = Rest.of(ana)

    answers = [rest.post(f"/hosts/{bot.pk}/{act}") for act in ("disable", "disable", "enable", "enable")]

    assert [(answer.status_code, answer.json()["enabled"]) for answer in answers] == [
        (200, False),
        (200, False),
        (200, True),
        (200, True),
    ]
    assert Event.objects.filter(action__in=["host.disabled", "host.enabled"]).count() == 2


@pytest.mark.full
def test_an_app_is_approved_once(ana: User, app: Host) -> None:
    rest = Rest.of(ana)

    assert rest.get(f"/hosts/{app.pk}").json()["approved"] is False
    assert rest.post(f"/hosts/{app.pk}/approve").json()["approved"] is True
    assert problem(rest.post(f"/hosts/{app.pk}/approve")) == (409, "not_pending")


@pytest.mark.full
def test_only_a_disabled_host_is_archived_and_its_connections_end(ana: User, bot: Host) -> None:
    link = make.connection(bot, make.gateway(), ana)
    rest = Rest.of(ana)

    assert problem(rest.post(f"/hosts/{bot.pk}/archive")) == (409, "still_enabled")
    rest.post(f"/hosts/{bot.pk}/disable")
    assert rest.post(f"/hosts/{bot.pk}/archive").status_code == 204

    link.refresh_from_db()
    assert link.revoke_reason == "archived"
    assert problem(rest.get(f"/hosts/{bot.pk}")) == (404, "not_found")
    assert results(rest.get("/hosts")) == []


def test_archiving_takes_the_right_to_end_connections_too(bot: Host) -> None:
    answer = Rest.of(make.user(Capability.HOSTS_TOGGLE)).post(f"/hosts/{bot.pk}/archive")

    assert answer.json()["capability"] == "api-keys:revoke"
