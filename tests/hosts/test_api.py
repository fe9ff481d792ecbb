"""/api/hosts: apps and agents."""

from typing import Any

import pytest

from accounts.models import User
from auditlog.models import Event
from hosts.models import Host
from tests import make
from tests.rest import Rest, errors, problem, results

pytestmark = pytest.mark.django_db


@pytest.fixture
def bot(ana: User) -> Host:
    return make.agent(by=ana, name="CI bot")


@pytest.fixture
def app(db: None) -> Host:
    return Host.objects.create(kind="headed", name="Claude Desktop", needs_approval=True)


@pytest.mark.full
def test_a_host_is_told_with_its_live_connections(ana: User, ann: User, ben: User, bot: Host) -> None:
    gateway = make.gateway()
    for person in (ana, ben):
        make.connection(bot, gateway, person)
    make.connection(bot, gateway, ann).revoke(by=ann)

    told = Rest.of(ana).get(f"/hosts/{bot.pk}").json()

    assert (told["kind"], told["created_by"], told["approved"]) == ("token", ana.email, True)
    assert (told["connections_count"], told["users_count"]) == (2, 2)
    assert Rest.of(ben).get(f"/hosts/{bot.pk}").json()["connections_count"] == 1, "one's own"


@pytest.mark.full
def test_a_list_is_narrowed(ana: User, bot: Host, app: Host) -> None:
    rest = Rest.of(ana)

    def found(**query: Any) -> set[str]:
        return {host["name"] for host in results(rest.get("/hosts", **query))}

    bot.disable(by=ana)
    assert found() == {"CI bot", "Claude Desktop"}
    Host.objects.filter(pk=bot.pk).update(last_seen_at=bot.created_at)
    names = [host["name"] for host in results(rest.get("/hosts", ordering="-last_seen_at"))]
    assert names == ["CI bot", "Claude Desktop"], "never seen comes last"
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
def test_a_host_is_approved_once_and_switched_at_will_and_archived_once_disabled(ana: User, app: Host) -> None:
    link = make.connection(make.agent(by=ana), make.gateway(), ana)
    rest, path = Rest.of(ana), f"/hosts/{link.host_id}"

    assert rest.get(f"/hosts/{app.pk}").json()["approved"] is False
    assert rest.post(f"/hosts/{app.pk}/approve").json()["approved"] is True
    assert problem(rest.post(f"/hosts/{app.pk}/approve")) == (409, "not_pending")

    answers = [rest.post(f"{path}/{act}") for act in ("disable", "disable", "enable", "enable")]
    told = [(answer.status_code, answer.json()["enabled"]) for answer in answers]
    assert told == [(200, False), (200, False), (200, True), (200, True)]
    assert Event.objects.filter(action__in=["host.disabled", "host.enabled"]).count() == 2

    assert problem(rest.post(f"{path}/archive")) == (409, "still_enabled")
    rest.post(f"{path}/disable")
    assert rest.post(f"{path}/archive").status_code == 204
    link.refresh_from_db()
    assert link.revoke_reason == "archived"
    assert problem(rest.get(path)) == (404, "not_found")
    assert [host["id"] for host in results(rest.get("/hosts"))] == [str(app.pk)]
