"""A held call runs once after approval, and never without it."""

import json
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from approvals.models import MOST_WAITING, Allowance, AllowFor, Hold, HoldDecided, HoldState
from auditlog.models import Call, Event
from gateways.models import Feature
from tests.approvals.conftest import TOOL, Desk, counted, text_of
from tests.asgi_server import running
from tests.eventually import eventually
from tests.proxy.conftest import PUBLIC_URL, sql
from tests.proxy.listening import listening
from tests.proxy.scripted import Script, returning, tool
from tests.proxy.test_endpoint import modern
from ui.sealing import cipher
from wire import versions


@pytest.mark.full
def test_a_held_call_is_not_sent_and_tells_the_model_what_to_do(desk: Desk) -> None:
    result = desk.call({"amount": 740})

    hold = Hold.objects.get()
    url = f"{PUBLIC_URL}/approvals/{hold.pk}/"
    assert result["isError"] is True
    assert "structuredContent" not in result
    assert text_of(result).startswith("This call waits for approval by a person who may decide on held calls. Nothing")
    assert url in text_of(result)
    ends = hold.ends_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert result["_meta"] == {"hold": str(hold.pk), "url": url, "state": "waiting", "ends": ends}
    assert desk.runs == 0
    row = desk.proxies[0].last()
    assert (row.outcome, row.deny_reason, row.hold_id, row.rule_id) == ("denied", "held", hold.pk, desk.rule.pk)
    assert (hold.asking_call, hold.user.email, hold.tool) == (row.uid, "mia@example.com", TOOL)
    assert hold.ends_at - hold.asked_at == timedelta(minutes=15)
    assert hold.arguments == {"amount": 740}
    assert b"740" not in bytes(hold.sealed_arguments)


@pytest.mark.full
def test_an_approved_call_runs_once_however_its_arguments_are_written(desk: Desk) -> None:
    hold = desk.held({"amount": 740, "to": {"a": 1, "b": "é"}})
    assert desk.held({"to": {"b": "é", "a": 1.0}, "amount": 740.0}) == hold
    hold.approve(by=desk.ben, sentence="Only this one.")

    assert counted(desk.call({"to": {"b": "é", "a": 1}, "amount": 740})) == 1

    hold.refresh_from_db()
    row = desk.proxies[0].last()
    assert (hold.state, hold.run_call, row.hold_id, row.outcome) == (HoldState.USED, row.uid, hold.pk, "ok")
    event = Event.objects.get(action="hold.approved")
    assert (event.target_id, event.actor_email) == (str(hold.pk), desk.ben.email)
    again = desk.held({"to": {"b": "é", "a": 1}, "amount": 740})
    assert (again.state, again.earlier_run) == (HoldState.WAITING, hold)
    assert desk.runs == 1


@pytest.mark.full
def test_other_arguments_are_another_call(desk: Desk) -> None:
    desk.held({"amount": 740}).approve(by=desk.ben)

    for other in ({"amount": 741}, {"amount": "740"}, {"amount": 740, "more": None}, {"amount": True}):
        assert desk.held(other).state == HoldState.WAITING, other
    assert desk.runs == 0


@pytest.mark.full
def test_an_approval_while_the_request_is_open_runs_the_call_in_the_same_request(desk: Desk) -> None:
    desk.wait(240)
    call = desk.begin({"amount": 1})
    assert not call.done()

    Hold.objects.get().approve(by=desk.ben)

    assert counted(call.result(60)) == 1
    row = Call.objects.get(method="tools/call")
    assert (row.outcome, row.hold_id) == ("ok", Hold.objects.get(state=HoldState.USED).pk)


def test_progress_is_reported_while_a_client_waits(desk: Desk) -> None:
    desk.wait(240)
    params = {"name": TOOL, "arguments": {}, "_meta": {"progressToken": "mine"}}
    body = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}
    with listening(desk.agent, "POST", body) as call:
        (progress,) = call.wait_for(1)
        Hold.objects.get().approve(by=desk.ben)
        answer = call.wait_for(2)[-1]

    assert (progress["method"], progress["params"]["progressToken"]) == ("notifications/progress", "mine")
    assert "Waiting for approval" in progress["params"]["message"]
    assert 0 < progress["params"]["progress"] < 1
    assert (answer["id"], counted(answer["result"])) == (7, 1)


@pytest.mark.parametrize("modern", [True, False], ids=["modern", "session"])
def test_a_call_that_cannot_be_sent_does_not_use_up_its_approval(desk_of: Callable[..., Desk], modern: bool) -> None:
    done = returning({"content": [{"type": "text", "text": "done"}]})
    app = Script([[tool("count")]], done, modern=modern, sessions=not modern).app()
    desk = desk_of(app=app)
    with running(app) as server:
        sql("UPDATE servers_server SET url = %s", server.url)
        for arguments in ({"opens": "the session"}, {}):
            desk.held(arguments).approve(by=desk.ben)
        assert text_of(desk.call({"opens": "the session"})) == "done"
    assert desk.agent.call(TOOL, {}).json()["error"]["data"]["reason"] == "unreachable"

    with running(app, port=server.port):
        assert text_of(desk.call()) == "done"
        assert desk.held().state == HoldState.WAITING


@pytest.mark.full
def test_a_denial_reaches_the_open_request_and_later_ones(desk: Desk) -> None:
    desk.wait(240)
    call = desk.begin({})

    Hold.objects.get().deny(by=desk.ben, sentence="Ask Grace first.")

    for result in (call.result(60), desk.call({})):
        assert result["isError"] is True
        assert text_of(result) == "A person denied this call. Nothing was executed. Ask Grace first."
        assert result["_meta"]["state"] == "denied"
    assert [row.deny_reason for row in Call.objects.filter(method="tools/call")] == ["hold_denied"] * 2
    sql("UPDATE approvals_hold SET ends_at = now()")
    desk.wait(0)
    assert desk.held({}).state == HoldState.WAITING
    assert desk.runs == 0


@pytest.mark.full
def test_a_hold_that_nobody_decides_expires(desk: Desk) -> None:
    desk.wait(240)
    call = desk.begin({})

    sql("UPDATE approvals_hold SET ends_at = now() + interval '0.2 seconds'")

    result = call.result(60)
    assert (result["_meta"]["state"], result["isError"]) == ("expired", True)
    assert "Nobody decided" in text_of(result)
    assert desk.proxies[0].last().deny_reason == "hold_expired"
    with pytest.raises(HoldDecided):
        Hold.objects.get().approve(by=desk.ben)
    desk.wait(0)
    again = desk.held({})
    assert [*Hold.objects.values_list("state", flat=True)] == [again.state, HoldState.EXPIRED]


@pytest.mark.full
def test_an_unused_approval_ends_too(desk: Desk) -> None:
    hold = desk.held({})
    sql("UPDATE approvals_hold SET ends_at = now() + interval '1 minute'")
    hold.approve(by=desk.ben)
    hold.refresh_from_db()
    assert hold.ends_at > timezone.now() + timedelta(minutes=14)

    sql("UPDATE approvals_hold SET ends_at = now()")

    assert desk.held({}) != hold
    assert desk.runs == 0


@pytest.mark.full
def test_everything_is_decided_anew_at_use(desk: Desk) -> None:
    desk.held({}).approve(by=desk.ben)
    Feature.objects.filter(exposed_name=TOOL).update(enabled=False)
    sql("UPDATE gateways_assignment SET tool_policy = 'selected'")
    refused = desk.agent.call(TOOL, {}).json()
    assert refused["error"]["data"]["reason"] == "tool_disabled"

    sql("UPDATE gateways_assignment SET tool_policy = 'allow_all'")
    Feature.objects.filter(exposed_name=TOOL).update(enabled=True)
    desk.rule.edit(hold_minutes=5, by=None)
    changed = desk.held({})
    assert (changed.rule_version, changed.state) == (2, HoldState.WAITING)
    desk.rule.edit(when="1 == 1", by=None)
    older, changed = changed, desk.held({})
    older.refresh_from_db()
    assert (older.state, older.sentence) == ("withdrawn", "The rule or the tool was changed.")
    assert older.decided_by is None

    changed.approve(by=desk.ben)
    sql("UPDATE gateways_feature SET approved = jsonb_set(approved::jsonb, '{description}', '\"Other.\"')::text")
    assert desk.held({}) not in {changed, None}
    assert desk.runs == 0


@pytest.mark.full
def test_a_call_that_waits_runs_if_its_rule_is_disabled_and_the_hold_decided(desk: Desk) -> None:
    desk.wait(240)
    call = desk.begin({})
    desk.rule.disable(by=None)

    Hold.objects.get().approve(by=desk.ben)

    assert counted(call.result(60)) == 1


def test_access_that_ends_while_a_call_waits_ends_the_call_and_not_the_hold(desk: Desk) -> None:
    desk.wait(240)
    future = desk.pool.submit(desk.agent.call, TOOL, {})
    eventually(Hold.objects.exists)

    desk.connection.disable(by=None)

    assert future.result(60).json()["error"]["data"]["reason"] == "connection_disabled"
    assert Hold.objects.get().state == HoldState.WAITING
    assert desk.runs == 0


@pytest.mark.parametrize("era", ["session", "modern"])
def test_a_client_that_leaves_neither_ends_the_hold_nor_runs_the_call(desk: Desk, era: str) -> None:
    desk.wait(240)
    body, headers = modern("tools/call", {"name": TOOL, "arguments": {}})
    if era == "session":
        params = {"name": TOOL, "arguments": {}, "_meta": {"progressToken": 1}}
        body, headers = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}, {}
    else:
        body["params"]["_meta"]["progressToken"] = 1
    with listening(desk.agent, "POST", body, **headers) as call:
        call.wait_for(1)
    eventually(lambda: Call.objects.filter(method="tools/call"))

    hold = Hold.objects.get()
    assert hold.state == HoldState.WAITING
    desk.connection.refresh_from_db()
    eventually(lambda: _wait_of(desk) == 4)
    hold.approve(by=desk.ben)
    assert desk.runs == 0
    assert counted(desk.call({})) == 1


def _wait_of(desk: Desk) -> int | None:
    desk.connection.refresh_from_db()
    return desk.connection.hold_wait


@pytest.mark.full
def test_a_request_without_progress_stays_open_for_four_seconds(desk: Desk) -> None:
    desk.wait(None)
    began = time.monotonic()

    result = desk.call({})

    assert result["_meta"]["state"] == "waiting"
    assert time.monotonic() - began > 3.9
    assert _wait_of(desk) is None


@pytest.mark.full
def test_a_process_that_stops_answers_the_calls_that_wait(desk: Desk) -> None:
    from proxy.streams import end_standing

    desk.wait(240)
    call = desk.begin({})

    desk.proxies[0].soon(end_standing)

    assert call.result(60)["_meta"]["state"] == "waiting"


@pytest.mark.full
def test_a_connection_has_twenty_waiting_holds_at_most(desk: Desk) -> None:
    for number in range(MOST_WAITING):
        desk.held({"n": number})

    result = desk.call({"n": "one more"})

    assert result["isError"] is True
    assert "20 calls of this connection wait for approval already" in text_of(result)
    assert (desk.proxies[0].last().deny_reason, Hold.objects.count()) == ("too_many_holds", MOST_WAITING)
    Hold.objects.all()[0].deny(by=desk.ben)
    assert desk.held({"n": "one more"}).state == HoldState.WAITING


def test_a_call_is_held_whatever_name_its_client_has(desk: Desk) -> None:
    info = {"name": "a\0b\ud800", "version": "\0"}
    body, headers = modern("tools/call", {"name": TOOL, "arguments": {}}, **{versions.CLIENT_INFO_KEY: info})

    answer = desk.agent.post(json.dumps(body).encode(), Content_Type="application/json", **headers)

    assert answer.json()["result"]["isError"] is True
    assert Hold.objects.get().client.startswith("a")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [('{"a": 1, "a": 2}', "an object has a name twice"), ('{"a\\ud800": 1}', "a name has characters that cannot be")],
)
def test_arguments_that_approvers_could_not_read_are_refused(desk: Desk, arguments: str, why: str) -> None:
    params = f'{{"name": "{TOOL}", "arguments": {arguments}}}'
    body = f'{{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {params}}}'

    answer = desk.agent.post(body.encode(), Content_Type="application/json").json()

    assert (answer["error"]["code"], answer["error"]["data"]["reason"]) == (-32602, "unclear_arguments")
    assert why in answer["error"]["message"]
    assert not Hold.objects.exists()


@pytest.mark.full
def test_the_state_of_another_call_runs_no_held_call(desk: Desk) -> None:
    facts = ["requestState", str(desk.connection.pk), 0, str(desk.connection.pk), "digest", time.time() + 300]
    params = {"name": TOOL, "arguments": {}, "requestState": cipher().seal(json.dumps(facts)).decode()}

    assert desk.agent.ask("tools/call", params).json()["result"]["_meta"]["state"] == "waiting"
    body, headers = modern("tools/call", params)
    assert desk.agent.post(body, **headers).json()["error"]["data"]["reason"] == "request_state"
    assert desk.runs == 0


@pytest.mark.full
def test_of_two_people_who_decide_at_once_one_decides(desk: Desk) -> None:
    hold, together = desk.held({}), threading.Barrier(2)

    def decide(number: int) -> str:
        row = Hold.objects.get(pk=hold.pk)
        together.wait(60)
        try:
            (row.approve if number % 2 else row.deny)(by=desk.ben)
        except HoldDecided:
            return ""
        finally:
            connection.close()
        return row.state

    states = [state for state in desk.pool.map(decide, range(2)) if state]

    hold.refresh_from_db()
    assert states == [hold.state]
    assert Event.objects.filter(action__startswith="hold.").count() == 1


@pytest.mark.full
def test_repeats_at_two_workers_run_an_approved_call_once(desk_of: Callable[..., Desk]) -> None:
    desk = desk_of(workers=2)
    for number in range(5):
        desk.held({"n": number}).approve(by=desk.ben)

    calls = [
        desk.pool.submit(desk.call, {"n": number}, agent) for number in range(5) for agent in desk.agents for _ in "ab"
    ]

    results = [call.result(120) for call in calls]
    assert sum("isError" not in result for result in results) == desk.runs == 5
    assert {hold.asked_at for hold in Hold.objects.filter(state=HoldState.WAITING)}


@pytest.mark.full
def test_a_decision_is_heard_by_the_other_worker(desk_of: Callable[..., Desk]) -> None:
    desk = desk_of(workers=2)
    desk.wait(240)
    calls = [desk.begin({}, agent) for agent in desk.agents[:1]] + [desk.pool.submit(desk.call, {}, desk.agents[1])]

    Hold.objects.get().approve(by=desk.ben)

    eventually(lambda: any(call.done() for call in calls))
    eventually(lambda: Hold.objects.filter(state=HoldState.WAITING).exists())  # The other call makes a new hold.
    Hold.objects.get(state=HoldState.WAITING).deny(by=desk.ben)
    results = [call.result(60) for call in calls]
    assert sorted(bool(result.get("isError")) for result in results) == [False, True]
    assert desk.runs == 1


@pytest.mark.parametrize("names", [[], ["to"]])
def test_an_approval_for_a_while_lets_the_agent_repeat_the_call(desk: Desk, names: list[str]) -> None:
    desk.held({"to": "a", "n": 1}).approve(by=desk.ben, allow=AllowFor.HOUR, names=names)
    allowance = Allowance.objects.get()

    assert counted(desk.call({"to": "a", "n": 2})) == 1
    assert ("isError" in desk.call({"to": "b", "n": 2})) is bool(names)
    assert desk.proxies[0].calls()[-2].hold_id == allowance.hold_id
    allowance.refresh_from_db()
    assert allowance.calls == desk.runs == (1 if names else 2)

    assert allowance.end(by=desk.ben)
    assert desk.call({"to": "a", "n": 3})["_meta"]["state"] == "waiting"
