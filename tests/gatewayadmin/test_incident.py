"""The Incident pages: the last 24 hours compared with a usual day, the remaining access, and an action to end it."""

import re
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import User
from auditlog.models import Call, Event
from auditlog.rollups import keeping
from capabilities import Capability
from connections.models import Connection
from gatewayadmin.incident import activity as reading
from gatewayadmin.incident import views
from gateways.models import Feature, Gateway, GatewayGrant, ToolGrant, ToolSet
from tests import make
from tests.conftest import SignIn
from tests.connections.rows import text
from tests.rest import Rest
from tests.undone import undone

pytestmark = pytest.mark.django_db


@pytest.fixture
def boss() -> User:
    return make.user(*Capability)


@pytest.fixture
def link(ann: User) -> Connection:
    """The connection of Ann's agent to a gateway with one tool. The connection has a token."""
    gateway, docs = make.gateway(), make.server(name="Docs")
    assigned = make.assignment(gateway, docs)
    Feature.objects.learn(assigned, [{"name": "search"}])
    link = make.connection(make.agent(by=ann, name="Refund bot"), gateway, ann)
    make.token(link, name="refunds")
    return link


def called(link: Connection, *, at: datetime | None = None, **fields: Any) -> Call:
    assigned = link.gateway.assignments.get()
    told: dict[str, Any] = {
        "host_id": link.host_id,
        "gateway_id": link.gateway_id,
        "connection_id": link.pk,
        "user_id": link.user_id,
        "server_id": assigned.server_id,
        "token_id": link.tokens.get().pk,
        "feature_name": "search",
        "client_ip": "10.4.7.12",
    }
    return make.call(at=at, **(told | fields))


def places(link: Connection) -> dict[str, str]:
    """Return the Incident page of each object involved in a call of the connection."""
    server = link.gateway.assignments.get().server
    return {
        "host": f"/incident/hosts/{link.host_id}/",
        "user": f"/incident/people/{link.user_id}/",
        "connection": f"/incident/connections/{link.pk}/",
        "token": f"/incident/tokens/{link.tokens.get().pk}/",
        "server": f"/incident/servers/{server.pk}/",
    }


@pytest.mark.full
def test_each_subject_shows_its_day_against_the_usual(
    link: Connection, boss: User, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    now, client = timezone.now(), sign_in(boss)
    called(link)
    activity = client.get(places(link)["host"]).context["activity"]
    nothing_before = (activity.calls.usual, activity.new_tools, activity.new_addresses)
    assert nothing_before == ("", 0, 0), "nothing is called new"

    for days in (2, 3, 4, 5):
        called(link, at=now - timedelta(days=days))
    for _ in range(12):
        called(link, client_ip="185.220.101.7", outcome="denied", deny_reason="tool_disabled", feature_name="pay")
    for kind, path in places(link).items():
        with subtests.test(kind):
            page = client.get(path)
            activity = page.context["activity"]

            assert (activity.calls.now, activity.calls.usual, activity.calls.is_odd) == (13, "1", True)
            assert (activity.refused.now, activity.refused.usual) == (12, "0")
            assert [(one.name, one.now, one.is_new, one.denied) for one in activity.tools] == [
                ("pay", 12, True, 12),
                ("search", 1, False, 0),
            ]
            assert [(one.ip, one.now, one.is_new) for one in activity.addresses] == [
                ("185.220.101.7", 12, True),
                ("10.4.7.12", 1, False),
            ]
            assert "185.220.101.7" in text(page)
            assert "refused" in page.context["refused_url"]  # Includes all outcomes the number counts.
    other = make.token(link, name="other").token
    assert client.get(f"/incident/tokens/{other.pk}/").context["activity"].calls.now == 0


ACTS = {
    "host": "Disable and revoke 1",
    "user": "Deactivate and revoke 1",
    "connection": "Revoke connection",
    "token": "Revoke token",
    "server": "Disable server",
}
ENDED = {
    "host": {"host.disabled", "connection.revoked"},
    "user": {"user.deactivated", "connection.revoked"},
    "connection": {"connection.revoked"},
    "token": {"token.revoked"},
    "server": {"server.disabled"},
}


@pytest.mark.full
def test_one_act_says_what_it_ends_and_records_why(
    link: Connection, boss: User, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    client, pages = sign_in(boss), places(link)
    for kind, words in ACTS.items():
        with subtests.test(kind), undone():
            page = pages[kind]
            asked = client.get(f"{page}stop/")
            before = Event.objects.count()
            done = client.post(f"{page}stop/", {"reason": "Refunds to one card"}, follow=True)

            assert f'data-kind="danger" data-count="act.ends">{words}<' in text(asked)
            assert 'name="typed"' not in text(asked)
            events = list(Event.objects.order_by("pk")[before:])
            assert {event.action for event in events} == ENDED[kind]
            assert {event.changes["because"] for event in events} == {"Refunds to one card"}
            assert done.redirect_chain[-1][0] == page
            assert "There is nothing left to stop" in text(done)
            assert "Reason: Refunds to one card" in text(done)
            assert "There is nothing left to stop" in text(client.post(f"{page}stop/", follow=True))
    client.post(f"{pages['token']}stop/", {"reason": "  "})
    assert "because" not in Event.objects.get(action="token.revoked").changes


def test_the_same_act_over_rest_answers_what_it_ended_and_where_it_is_undone(link: Connection, boss: User) -> None:
    server, api = link.gateway.assignments.get().server, Rest.of(boss)
    path, reason = f"/hosts/{link.host_id}/stop", {"reason": "Refunds to one card"}

    disabled = api.post(f"/servers/{server.slug}/stop")
    done = api.post(path, reason)

    assert disabled.json() == {"detail": "Server disabled", "undo": f"/api/servers/{server.slug}/enable"}
    assert done.json() == {"detail": "Refund bot disabled, 1 connection revoked", "undo": None}
    ended = Event.objects.filter(action__in=ENDED["host"])
    assert {event.changes["because"] for event in ended} == {reason["reason"]}
    assert api.post(path).json()["code"] == "nothing_to_stop"


def test_over_rest_an_act_that_revoked_nothing_is_undone_where_its_answer_says(link: Connection, boss: User) -> None:
    link.revoke(by=boss)
    api = Rest.of(boss)
    for path in (f"/hosts/{link.host_id}", f"/users/{link.user_id}"):
        undo = api.post(f"{path}/stop").json()["undo"]
        undone = api.post(undo.removeprefix("/api"))

        assert undone.status_code == 200, undone.content
        link.refresh_from_db()
        assert (link.host.enabled, link.user.is_active) == (True, True)
    make.api_key(link.user, Capability.HOSTS_READ)
    done = api.post(f"/users/{link.user_id}/stop").json()
    assert done == {"detail": f"{link.user.email} is deactivated, 0 connections revoked; 1 API key too", "undo": None}


@pytest.mark.full
def test_the_act_takes_what_its_verbs_take(link: Connection, sign_in: SignIn) -> None:
    looks = sign_in(make.user(Capability.LOGS_READ, Capability.HOSTS_READ))
    toggles = sign_in(make.user(Capability.LOGS_READ, Capability.HOSTS_TOGGLE))
    page = places(link)["host"]

    assert "Your role cannot stop this agent." in text(looks.get(page))
    assert {client.post(f"{page}stop/").status_code for client in (looks, toggles)} == {403}
    link.refresh_from_db()
    assert link.is_live


def test_nobody_stops_a_person_who_may_do_more(link: Connection, ana: User, sign_in: SignIn) -> None:
    """The page says that the viewer's role cannot stop this person, and an attempt changes nothing."""
    clerk = sign_in(make.user(Capability.PEOPLE_MANAGE, Capability.MCP_CONNECTIONS_REVOKE, Capability.LOGS_READ))

    assert "Your role cannot stop this person." in text(clerk.get(f"/incident/people/{ana.pk}/"))
    clerk.post(f"/incident/people/{ana.pk}/stop/")

    ana.refresh_from_db()
    assert ana.is_active


@pytest.mark.full
def test_what_access_is_left_is_listed_with_its_tools(link: Connection, boss: User, sign_in: SignIn) -> None:
    client, page = sign_in(boss), places(link)["host"]

    assert "1 tool</span> of Docs" in text(client.get(page))
    link.gateway.disable(by=boss)
    blocked = text(client.get(page))

    assert "of Docs" not in blocked
    assert "blocked" in blocked


@pytest.mark.full
def test_access_left_by_grants_is_named_with_its_end_and_counts_the_given_tools_only(
    link: Connection, boss: User, ann: User, sign_in: SignIn
) -> None:
    client, page, gateway = sign_in(boss), places(link)["host"], link.gateway
    Feature.objects.learn(gateway.assignments.get(), [{"name": "search"}, {"name": "erase"}])
    Gateway.objects.filter(pk=gateway.pk).update(reach="teams", tools_given="granted")
    until = timezone.now() + timedelta(days=3)
    GatewayGrant.objects.give(gateway, ann, ends_at=until, by=boss)
    searches = ToolSet.objects.add(gateway=gateway, name="Searches", patterns=["*search"], by=boss)
    grant = ToolGrant.objects.give(searches, user=ann, by=boss)
    others = ToolSet.objects.add(gateway=gateway, name="Everything", patterns=["*"], by=boss)
    ToolGrant.objects.give(others, user=boss, by=boss)

    shown = text(client.get(page))
    assert "1 tool</span> of Docs; by grants: the gateway until" in shown
    assert "Searches" in shown
    assert "Everything" not in shown
    [left] = client.get(f"{page}?format=json").json()["remaining_access"]
    assert left["grants"] == [
        {"name": "the gateway", "ends_at": until.isoformat()},
        {"name": "Searches", "ends_at": None},
    ]
    grant.end(by=boss)
    assert "0 tools</span>" in text(client.get(page))


@pytest.mark.full
def test_the_page_names_the_connections_used_last_and_counts_the_others(
    link: Connection, boss: User, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "MOST_SHOWN", 2)
    for days in (3, 2, 1):
        used = make.connection(link.host, make.gateway(name=f"Used {days} days ago"), link.user)
        Connection.objects.filter(pk=used.pk).update(last_used_at=timezone.now() - timedelta(days=days))
    client, page = sign_in(boss), places(link)["host"]

    shown = client.get(page)
    left = client.get(f"{page}?format=json").json()["remaining_access"]

    assert [one.gateway.name for one in shown.context["reached"]] == ["Used 1 days ago", "Used 2 days ago"]
    assert "And 2 more, in the export." in text(shown)
    assert "Ends 4 connections and 1 token with the next request." in text(shown)
    assert [one["gateway"] for one in left][2:] == ["Used 3 days ago", link.gateway.name]


def test_the_page_is_exported_as_a_file_and_that_is_recorded(link: Connection, boss: User, sign_in: SignIn) -> None:
    called(link)
    answer = sign_in(boss).get(f"{places(link)['host']}?format=json")
    told = answer.json()

    assert "attachment; filename=" in answer["Content-Disposition"]
    assert (told["subject"]["name"], told["calls"]["calls_24h"], told["complete"]) == ("Refund bot", 1, True)
    assert told["remaining_access"][0]["servers"] == ["Docs"]
    assert [tool["name"] for tool in told["tools"]] == ["search"]
    assert Event.objects.filter(action="logs.exported", changes__incident__1="agent Refund bot").exists()


def test_totals_come_from_the_rollups_when_the_newest_calls_are_not_all(
    link: Connection, boss: User, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        called(link, client_name=f"client {6 - number}")
    called(link, at=timezone.now() - timedelta(days=2))
    keeping.keep_up(30)
    monkeypatch.setattr(reading, "MOST_READ", 4)

    page = sign_in(boss).get(places(link)["host"])
    activity = page.context["activity"]

    assert (activity.calls.now, activity.calls.before, activity.tools[0].now) == (6, 1, 4)
    assert activity.calls.usual == "1"  # The average counts only the days since the first call, not 28 days.
    assert activity.addresses[0].client == "client 1"  # Of the newest call.
    assert re.search(r" Tools and addresses from before [^.]+ are not counted\.", text(page))
    of_connection = sign_in(boss).get(places(link)["connection"])
    assert of_connection.context["activity"].calls.now == 4
    assert re.search(r"Calls, tools and addresses from before [^.]+ are not counted\.", text(of_connection))


@pytest.mark.full
def test_nothing_is_new_or_unusual_if_less_than_a_day_before_was_read(
    link: Connection, boss: User, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool or address that seems new may have been used in earlier calls, which were not read."""
    now = timezone.now()
    called(link, at=now - timedelta(days=2), feature_name="pay", client_ip="185.220.101.7")
    called(link, at=now - timedelta(hours=30))
    called(link, feature_name="pay", client_ip="185.220.101.7")
    for _ in range(11):
        called(link)
    monkeypatch.setattr(reading, "MOST_READ", 13)

    for place in ("host", "connection"):  # Totals of connections are not rolled up.
        activity = sign_in(boss).get(places(link)[place]).context["activity"]

        assert (activity.new_tools, activity.new_addresses, [one.times for one in activity.tools]) == (0, 0, [0, 0])
