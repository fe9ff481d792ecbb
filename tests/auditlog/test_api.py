"""/api/logs and /api/admin-events."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest

from accounts.models import User
from auditlog import search as criteria
from auditlog.models import Event
from capabilities import Capability
from tests import make
from tests.calls import call
from tests.exported import rows_of
from tests.rest import Rest, errors, problem, results

pytestmark = pytest.mark.django_db

NOON = datetime(2031, 11, 20, 12, tzinfo=UTC)


def text(answer: Any) -> str:
    """Return the whole content of a file response."""
    return str(answer.getvalue(), "utf-8")


# --- Pages ----------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_new_rows_shift_nothing_and_are_found_going_back(viv: User) -> None:
    made = [call(NOON - timedelta(seconds=number)) for number in range(4)]
    rest = Rest.of(viv)
    first = rest.get("/logs", page_size=2).json()
    newer = call(NOON + timedelta(seconds=1))

    second = rest.get(first["next"].removeprefix("http://localhost:8000/api")).json()
    back = rest.get(second["previous"].removeprefix("http://localhost:8000/api")).json()

    assert [row["id"] for row in second["results"]] == [str(one.uid) for one in made[2:]]
    assert (second["next"], first["previous"]) == (None, None)
    assert [row["id"] for row in back["results"]] == [str(one.uid) for one in made[:2]]
    assert [row["id"] for row in rest.get(back["previous"].partition("/api")[2]).json()["results"]] == [str(newer.uid)]


@pytest.mark.full
def test_a_page_looks_at_some_rows_only_and_the_next_looks_further(
    viv: User, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    monkeypatch.setattr(criteria, "SEARCH_LIMIT", 5)
    slow = {"feature_type": "tool", "feature_name": "slow", "host_name": "CI bot", "http_status": 403}
    other = {"outcome": "denied", "method": "ping"}  # Most values are like these, so no index covers them.
    made = [call(NOON - timedelta(minutes=n), **(slow if n in (1, 13, 18) else other)) for n in range(20)]
    rest = Rest.of(viv)

    # No index covers the most common values, such as “ok”, even where they are rare.
    common = ({"outcome": "ok"}, {"method": "tools/call"}, {"q": "ok and method is tools/call"})
    for wanted in ({"q": "slow"}, {"http_status": "403"}, *common, {"tool": "slow"}):
        with subtests.test(str(wanted)):
            found, link, pages = [], f"/logs?{urlencode(wanted)}", 0
            while link:
                answer = rest.get(link)
                found += [row["id"] for row in results(answer)]
                link, pages = (answer.json()["next"] or "").partition("/api")[2], pages + 1

            assert found == [str(made[n].uid) for n in (1, 13, 18)]
            assert pages == (1 if "tool" in wanted else 4)
            exported = rows_of(text(rest.get("/logs/export", format="jsonl", **wanted)))
            assert [row["id"] for row in exported] == found


# --- Filters --------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_every_filter_narrows(viv: User) -> None:
    ana, gateway = make.user(email="ana@example.com"), make.gateway(slug="work", name="Work")
    host, server = make.agent(by=ana, name="CI bot"), make.server(slug="github", name="GitHub")
    connection = make.connection(host, gateway, ana)
    token, _ = make.token(connection)
    things = {"host": host, "gateway": gateway, "server": server, "connection": connection, "user": ana, "token": token}
    ids = {f"{name}_id": thing.pk for name, thing in things.items()}
    names = {"host_name": "CI bot", "gateway_name": "Work", "server_name": "GitHub", "user_email": "ana@example.com"}
    wanted = call(
        NOON,
        **ids,
        **names,
        outcome="denied",
        deny_reason="tool_disabled",
        http_status=403,
        feature_type="tool",
        feature_name="github__search",
        token_prefix=token.prefix,
        client_ip="198.51.100.7",
    )
    call(NOON - timedelta(hours=2), method="tools/list", outcome="timeout")
    rest = Rest.of(viv)

    def found(query: dict[str, Any]) -> bool:
        return [row["id"] for row in results(rest.get("/logs", **query))] == [str(wanted.uid)]

    assert all(found({name.removesuffix("_id"): pk}) for name, pk in ids.items())
    assert all(found({name.partition("_")[0]: value.upper()}) for name, value in names.items())
    assert found({"from": "2031-11-20T11:00:00Z"})
    assert found({"from": "2031-11-20T12:00:00Z", "to": "2031-11-20T12:00:00.001Z"})
    assert found({"method": "tools/call"})
    assert found({"outcome": "denied"})
    assert found({"deny_reason": "tool_disabled"})
    assert found({"http_status": 403})
    assert found({"tool": "github__search"})
    assert found({"token": token.prefix})
    assert found({"ip": "198.51.100.7"})
    assert found({"correlation_id": wanted.correlation_id})
    assert found({"q": "SEARCH"})
    assert found({"q": "ana@"})
    assert found({"q": 'host is "ci bot" and status is 403'})
    assert len(results(rest.get("/logs", outcome=["denied", "timeout"]))) == 2


def test_unknown_parameters_values_and_forged_cursors_are_refused(viv: User, subtests: pytest.Subtests) -> None:
    rest = Rest.of(viv)
    wrong = {"page": "2", "outcome": "fine", "from": "yesterday", "connection": "x", "host": "nobody"}
    wrong |= {"q": "foo > 5", "ip": "300.1.1.1", "format": "csv", "session": "x"}
    cursors = ["x", "o1-", "q1-1", "o9999999999999999999999-1", "o²-1"]
    for name, value in [*wrong.items(), *(("cursor", cursor) for cursor in cursors)]:
        with subtests.test(f"{name}={value}"):
            assert set(errors(rest.get("/logs", **{name: value}))) == {name}


# --- One call -------------------------------------------------------------------------------------------------------


def test_one_call_shows_what_it_carried_to_who_may_see_that(viv: User) -> None:
    one = call(NOON, outcome="denied", deny_reason="ip", request_payload={"name": "search"})
    rest = Rest.of(make.user(Capability.LOGS_READ, Capability.LOGS_PAYLOADS))

    assert Rest.of(viv).get(f"/logs/{one.uid}").json()["request_payload"] is None

    told = rest.get(f"/logs/{one.uid}").json()

    assert (told["request_payload"], told["created_at"]) == ({"name": "search"}, "2031-11-20T12:00:00.000Z")
    assert told["reason"] == "The client's address is not on the token's IP allow-list."
    assert "request_payload" not in results(rest.get("/logs"))[0]


@pytest.mark.full
def test_the_log_has_no_write_verbs(viv: User) -> None:
    one = call(NOON)
    rest = Rest.of(viv)

    for method in ("post", "put", "patch", "delete"):
        assert problem(rest.send(method, "/logs")) == (405, "method_not_allowed")
        assert problem(rest.send(method, f"/logs/{one.uid}")) == (405, "method_not_allowed")


# --- Export ---------------------------------------------------------------------------------------------------------


def test_an_export_is_narrowed_has_what_a_page_has_and_is_recorded(viv: User) -> None:
    call(NOON, host_id=uuid4(), client_ip="::1", feature_name="=größe", rpc_error_code=-32003)
    call(NOON - timedelta(days=1))
    call(NOON, outcome="timeout")
    rest = Rest.of(viv)

    lines = rows_of(text(rest.get("/logs/export", format="jsonl", outcome="ok")))
    answer = rest.get("/logs/export", format="csv", outcome="ok")
    cells = rows_of(text(answer))

    assert lines == results(rest.get("/logs", outcome="ok"))
    assert [list(row) for row in cells] == [list(row) for row in lines]
    assert (cells[0]["feature_name"], cells[0]["rpc_error_code"]) == ("'=größe", "-32003")
    assert cells[0]["created_at"] == "2031-11-20T12:00:00.000Z"
    assert answer["Content-Type"] == "text/csv; charset=utf-8"
    assert 'attachment; filename="logs-' in answer["Content-Disposition"]
    event = Event.objects.get(action="logs.exported", changes__format=[None, ["jsonl"]])
    assert (event.actor_email, event.via) == (viv.email, "api")
    assert event.changes == {"format": [None, ["jsonl"]], "outcome": [None, ["ok"]]}
    empty = text(rest.get("/logs/export", outcome="cancelled"))
    assert (empty.startswith("id,created_at,"), rows_of(empty)) == (True, [])


# --- Admin events ---------------------------------------------------------------------------------------------------


def test_events_are_listed_and_narrowed_and_each_says_what_changed(ana: User, viv: User) -> None:
    host = make.agent(by=ana, name="CI bot")
    host.disable(by=ana)
    rest = Rest.of(ana)

    def found(**query: Any) -> list[str]:
        return [event["action"] for event in results(rest.get("/admin-events", **query))]

    assert found() == ["host.disabled", "host.created"]
    assert found(action="host.disabled") == ["host.disabled"]
    assert found(actor=ana.email, target_type="host") == found(actor=ana.pk) == found(target_id=host.pk) == found()
    assert found(via="system", q="ci bot", page_size=1) == ["host.disabled"]
    assert found(via="web") == []
    assert set(errors(rest.get("/admin-events", actions="x"))) == {"actions"}
    event = results(rest.get("/admin-events"))[0]
    assert event["changes"] == {"enabled": [True, False]}
    assert event["sentence"] == f"{ana.email} disabled the agent “CI bot”."
    assert rest.get(f"/admin-events/{event['id']}").json() == event
    assert rest.get(f"/admin-events/{uuid4()}").status_code == 404
    assert Rest.of(viv).get("/admin-events").json()["capability"] == "audit:read"
