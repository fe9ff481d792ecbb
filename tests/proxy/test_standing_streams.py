"""Standing streams and long calls: notifications of changed lists, and loss of access."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, cast
from unittest.mock import Mock
from uuid import uuid4

import httpx
import pytest
from psycopg.pq.abc import PGresult

from accounts.models import User
from connections.models import Connection, HostAtGateway
from proxy.access.decision import DENIALS, AccessQuery, find_again
from proxy.models import Session
from proxy.request import McpRequest
from proxy.store.bus import Bus
from proxy.store.pg import DatabaseUnavailable
from proxy.store.sessions import session_digest
from proxy.streams import StandingStream, Streams, end_standing
from tests import make
from tests.cases import first
from tests.conformance.counter import MODERN, SESSION_ERA
from tests.conftest import Run
from tests.eventually import PATIENCE
from tests.proxy.conftest import Agent, Start, eventually, sql
from tests.proxy.listening import Listener, listening
from tests.proxy.test_access import token_of_app
from tests.proxy.test_cancel import Work, waiting
from tests.proxy.test_endpoint import modern
from wire import jsonrpc

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TOOLS_CHANGED = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}


def in_session(agent: Agent, version: str = "2025-11-25") -> Agent:
    """Return this agent after `initialize`, in a session of its own."""
    params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "probe", "version": "1"}}
    answer = agent.ask("initialize", params)
    assert answer.status_code == 200
    session = answer.headers.get("mcp-session-id", "none-yet")
    return Agent(agent.url, agent.secret, {"Mcp-Session-Id": session, "MCP-Protocol-Version": version})


def listen(kinds: dict[str, Any], request_id: object = "sub") -> tuple[dict[str, Any], dict[str, str]]:
    body, headers = modern("subscriptions/listen", {"notifications": kinds})
    return body | {"id": request_id}, headers


@pytest.mark.full
def test_a_get_stream_begins_at_once_and_pings(start: Start, run: Run) -> None:
    work = Work(lambda: start(ping_seconds=0.2), run)
    with listening(in_session(work.agent()), "GET") as stream:
        assert stream.begun.wait(PATIENCE)
        assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream")
        assert stream.headers["x-accel-buffering"] == "no"
        eventually(lambda: stream.pings >= 3)
    eventually(lambda: len(rows(work)) == 2)
    begun, ended = rows(work)
    assert (begun.outcome, begun.http_status, ended.outcome) == ("ok", 200, "ok")
    assert begun.uid == begun.correlation_id == ended.correlation_id
    assert ended.uid != begun.uid
    assert ended.duration_ms > begun.duration_ms
    assert (begun.gateway_name, ended.gateway_name, begun.user_email) == ("work", "work", "ana@example.com")


def rows(work: Work) -> list[Any]:
    return [row for row in work.proxy.calls() if row.method in ("GET", "subscriptions/listen")]


@pytest.mark.full
def test_where_no_stream_is_offered_the_answer_is_405_and_406_for_a_client_that_takes_none(
    start: Start, run: Run
) -> None:
    agent = Work(start, run).agent()
    own = {"Authorization": f"Bearer {agent.secret}", "Accept": "text/event-stream"}
    without = httpx.get(agent.url, headers=own, trust_env=False)
    of_2026 = httpx.get(agent.url, headers=own | {"MCP-Protocol-Version": MODERN}, trust_env=False)
    session = in_session(agent)
    json_only = httpx.get(agent.url, headers=own | session.headers | {"Accept": "application/json"}, trust_env=False)
    body, headers = listen({"toolsListChanged": True})

    assert (without.status_code, of_2026.status_code) == (405, 405)
    assert "POST" in without.headers["allow"]
    assert json_only.status_code == 406
    assert agent.post(body, **headers | {"Accept": "application/json"}).status_code == 406


@pytest.mark.full
def test_a_listen_is_acknowledged_first_with_what_is_told_of(start: Start, run: Run) -> None:
    agent = Work(start, run).agent()
    asked = {"toolsListChanged": True, "promptsListChanged": False, "weatherChanged": True}
    for request_id in ("sub", 7):
        body, headers = listen(asked, request_id)
        with listening(agent, "POST", body, **headers) as stream:
            (first,) = stream.wait_for(1)
        assert first["method"] == "notifications/subscriptions/acknowledged"
        assert first["params"]["notifications"] == {"toolsListChanged": True}
        subscription = first["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"]
        assert (subscription, type(subscription)) == (request_id, type(request_id))


@pytest.mark.full
def test_an_administrators_edit_is_told_once_on_all_workers(
    start: Start, run: Run, ana: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.streams.LISTS_SECONDS", 2)  # Time for a busy machine to make all these edits.
    work = Work(start, run, workers=2)
    agent, other = work.agent("bob"), work.agent("eve")
    body, headers = listen({"toolsListChanged": True})
    with (
        listening(in_session(agent), "GET") as get,
        listening(work.elsewhere(in_session(other)), "GET") as elsewhere,
        listening(work.elsewhere(agent), "POST", body, **headers) as modern_stream,
    ):
        for stream in (get, elsewhere, modern_stream):
            assert stream.begun.wait(PATIENCE)
        modern_stream.wait_for(1)
        began = time.monotonic()
        tool = work.assignment.features.get()
        for _ in range(3):
            tool.disable(by=ana)
            tool.enable(by=ana)
        periods = 1 + int((time.monotonic() - began) / 2)  # One, unless the machine was too busy for that.
        assert get.wait_for(1)[0] == TOOLS_CHANGED
        assert elsewhere.wait_for(1)[0] == TOOLS_CHANGED
        told = modern_stream.wait_for(2)[1]
        assert (told["method"], told["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"]) == (
            TOOLS_CHANGED["method"],
            "sub",
        )
        time.sleep(2.5)
        for stream, acknowledged in ((get, 0), (elsewhere, 0), (modern_stream, 1)):
            assert 1 <= len(stream.events) - acknowledged <= periods


@pytest.mark.full
def test_one_message_goes_on_one_stream_of_a_session_only(start: Start, run: Run, ana: User) -> None:
    work = Work(start, run)
    agent = in_session(work.agent("bob"))
    with listening(agent, "GET") as older:
        assert older.begun.wait(PATIENCE)
        with listening(agent, "GET") as newer:
            assert newer.begun.wait(PATIENCE)
            work.assignment.features.get().disable(by=ana)
            assert newer.wait_for(1) == [TOOLS_CHANGED]
            time.sleep(0.3)
            assert older.events == []


# Cutting access


def the_connection(agent: Agent) -> Connection:
    return Connection.objects.get(user__email="bob@example.com")


CUTS: dict[str, Callable[[Any, Any], object]] = {
    "revoked": lambda connection, ana: connection.tokens.filter(kind="access").get().revoke(by=ana),
    "connection_revoked": lambda connection, _: Connection.objects.filter(pk=connection.pk).update(
        revoked_at=NOW, revoke_reason="manual"
    ),
    "connection_disabled": lambda connection, ana: connection.disable(by=ana),
    "host_disabled": lambda connection, ana: connection.host.disable(by=ana),
    "gateway_disabled": lambda connection, ana: connection.gateway.disable(by=ana),
    "host_not_allowed_here": lambda connection, ana: HostAtGateway.objects.at(
        connection.gateway, connection.host
    ).block(by=ana),
    "user_inactive": lambda connection, _: User.objects.filter(pk=connection.user_id).update(is_active=False),
}


@pytest.mark.parametrize("reason", first(1, CUTS))
def test_a_cut_ends_every_stream_of_it_and_nobody_elses(
    start: Start, run: Run, ana: User, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.streams.RECHECK_SECONDS", 600)  # The worker must be notified, not poll.
    work = Work(start, run, workers=2)
    agent, other = work.agent("bob"), work.agent("eve")
    body, headers = listen({"toolsListChanged": True}, 5)
    with (
        listening(in_session(agent), "GET") as get,
        listening(work.elsewhere(agent), "POST", body, **headers) as of_2026,
        listening(agent, "POST", waiting("mine", token=1)) as call,
        listening(agent, "POST", waiting(9), Accept="application/json") as json_call,
        listening(in_session(other), "GET") as others,
    ):
        streams = (get, of_2026, call, json_call)
        work.counter.wait_for("call", 2)
        call.wait_for(1)
        of_2026.wait_for(1)
        assert get.begun.wait(PATIENCE)
        CUTS[reason](the_connection(agent), ana)
        assert all(stream.over.wait(PATIENCE) for stream in streams)
        work.counter.wait_for("cancelled", 2)
        cut_reason_is_told(get, of_2026, call, json_call, reason)
        if reason != "gateway_disabled":
            assert not others.over.is_set()
    count = 5 if reason == "gateway_disabled" else 4  # The other client's stream ends too.
    eventually(lambda: len([row for row in work.proxy.calls() if row.deny_reason == reason]) >= count)
    denied = [row for row in work.proxy.calls() if row.deny_reason == reason]
    assert {row.outcome for row in denied} == {"denied" if DENIALS[reason].status == 403 else "unauthorized"}
    assert {row.method for row in denied} == {"GET", "subscriptions/listen", "tools/call"}


def cut_reason_is_told(get: Listener, of_2026: Listener, call: Listener, json_call: Listener, reason: str) -> None:
    code = -32003 if DENIALS[reason].status == 403 else -32001
    last = get.events[-1]
    assert (last["error"]["code"], last["error"]["data"], last["id"]) == (code, {"reason": reason}, None)
    last = call.events[-1]
    assert (last["error"]["code"], last["error"]["data"], last["id"]) == (code, {"reason": reason}, "mine")
    assert json_call.status == (403 if code == -32003 else 401)
    meta = {"io.modelcontextprotocol/subscriptionId": 5}
    assert of_2026.events[-1] == {"jsonrpc": "2.0", "id": 5, "result": {"resultType": "complete", "_meta": meta}}


@pytest.mark.parametrize("eras", [SESSION_ERA, (MODERN,)], ids=["session server", "modern server"])
def test_a_call_ends_whose_server_is_switched_off(start: Start, run: Run, ana: User, eras: tuple[str, ...]) -> None:
    work = Work(start, run, eras)
    with listening(work.agent("bob"), "POST", waiting("mine", token=1)) as call:
        call.wait_for(1)
        work.assignment.server.disable(by=ana)
        assert call.over.wait(PATIENCE)
    assert call.events[-1]["error"]["data"]["reason"] == "server_disabled"
    work.counter.wait_for("left" if MODERN in eras else "cancelled")
    assert work.proxy.last().deny_reason == "server_disabled"


@pytest.mark.full
def test_a_cut_that_nobody_was_told_of_is_found(start: Start, run: Run, ana: User) -> None:
    work = Work(start, run)
    agent = in_session(work.agent("bob"))
    with listening(agent, "GET") as stream:
        assert stream.begun.wait(PATIENCE)
        sql("ALTER TABLE connections_connection DISABLE TRIGGER tell_cut")
        try:
            the_connection(agent).disable(by=ana)
        finally:
            sql("ALTER TABLE connections_connection ENABLE TRIGGER tell_cut")
        assert stream.over.wait(PATIENCE)
        assert stream.events[-1]["error"]["data"] == {"reason": "connection_disabled"}


def test_a_token_has_a_bounded_number_of_standing_streams(start: Start, run: Run) -> None:
    work = Work(lambda: start(token_calls=2), run)
    agent = in_session(work.agent())
    with listening(agent, "GET") as one, listening(agent, "GET") as two:
        assert one.begun.wait(PATIENCE)
        assert two.begun.wait(PATIENCE)
        with listening(agent, "GET") as three:
            assert three.over.wait(PATIENCE)
            assert b'"busy"' in three.body
        assert agent.ask("ping").status_code == 200


@pytest.mark.full
def test_streams_that_are_about_to_begin_count_among_those_of_their_token(
    start: Start, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.streams.HANDED_OVER_SECONDS", 3)  # Resumed streams begin no earlier than this.
    work = Work(lambda: start(token_calls=2), run)
    agent = in_session(work.agent())
    with ExitStack() as stack:
        streams = [stack.enter_context(listening(agent, "GET", Last_Event_ID=f"s-{uuid4().hex}-1")) for _ in range(3)]
        eventually(lambda: sum(b'"busy"' in stream.body for stream in streams) == 1)
        assert all(stream.begun.wait(PATIENCE) for stream in streams)
        assert sum(stream.over.is_set() for stream in streams) == 1
    eventually(lambda: len(rows(work)) == 5)  # Start and end of two streams, and the refusal.
    with listening(agent, "GET") as again:  # The slots of the ended streams are free.
        eventually(lambda: again.ids)


@pytest.mark.full
def test_many_streams_are_decided_anew_in_few_statements_spread_over_the_time(
    start: Start, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, int]] = []
    query = Bus.query

    async def noted(bus: Bus, name: bytes, parameters: Sequence[bytes]) -> PGresult:
        asked.append((time.monotonic(), len(set(parameters[0].strip(b"{}").split(b",")))))
        return await query(bus, name, parameters)

    monkeypatch.setattr(Bus, "query", noted)
    monkeypatch.setattr("proxy.streams.RECHECK_SECONDS", 0.5)
    monkeypatch.setattr("proxy.streams.DECIDED_AT_ONCE", 2)
    work = Work(start, run)
    agents = [in_session(work.agent(f"ana-{number}")) for number in range(8)]
    with ExitStack() as stack:
        streams = [stack.enter_context(listening(agent, "GET")) for agent in agents]
        assert all(stream.begun.wait(PATIENCE) for stream in streams)
        eventually(lambda: len(asked) >= 8)  # New streams are checked individually.
        asked.clear()
        eventually(lambda: sum(count for _, count in asked) >= 32)
        assert min(later - sooner for (sooner, _), (later, _) in pairwise(asked)) >= 0.5 / 4
        assert {count for _, count in asked} != {8}
        assert not any(stream.over.is_set() for stream in streams)


@pytest.mark.full
def test_a_session_that_is_ended_ends_its_stream(start: Start, run: Run) -> None:
    work = Work(start, run, workers=2)
    agent = in_session(work.agent())
    with listening(agent, "GET") as stream:
        assert stream.begun.wait(PATIENCE)
        own = {"Authorization": f"Bearer {agent.secret}", **agent.headers}
        elsewhere = work.elsewhere(agent).url
        assert httpx.request("DELETE", elsewhere, headers=own, trust_env=False).status_code == 200
        assert stream.over.wait(PATIENCE)
        assert stream.events == []
    unknown = httpx.get(agent.url, headers=own | {"Accept": "text/event-stream"}, trust_env=False)
    assert unknown.status_code == 404


@pytest.mark.full
def test_the_end_of_a_session_that_nobody_was_told_of_ends_what_is_under_way_in_it(
    start: Start, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.streams.RECHECK_SECONDS", 0.2)
    work = Work(start, run)
    user = work.agent("bob")
    agent, stays = in_session(user), in_session(user)
    with (
        listening(agent, "GET") as stream,
        listening(agent, "POST", waiting(token=1)) as call,
        listening(stays, "GET") as other,
    ):
        assert stream.begun.wait(PATIENCE)
        assert other.begun.wait(PATIENCE)
        call.wait_for(1)
        sql("ALTER TABLE proxy_session DISABLE TRIGGER tell_ended")
        try:
            Session.objects.filter(digest=session_digest(agent.headers["Mcp-Session-Id"])).delete()
        finally:
            sql("ALTER TABLE proxy_session ENABLE TRIGGER tell_ended")
        assert stream.over.wait(PATIENCE)
        assert call.over.wait(PATIENCE)
        work.counter.wait_for("cancelled")
        assert [event for event in (*stream.events, *call.events) if "id" in event] == []
        assert not other.over.is_set()


@pytest.mark.full
def test_running_requests_of_a_lost_token_end(start: Start, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.streams.RECHECK_SECONDS", 0.2)
    work = Work(start, run)
    agent = work.agent("bob")
    with (
        listening(in_session(agent), "GET") as stream,
        listening(agent, "POST", waiting("mine", token=1)) as call,
        listening(in_session(work.agent("eve")), "GET") as others,
    ):
        assert stream.begun.wait(PATIENCE)
        assert others.begun.wait(PATIENCE)
        call.wait_for(1)
        the_connection(agent).tokens.filter(kind="access").delete()
        assert stream.over.wait(PATIENCE)
        assert call.over.wait(PATIENCE)
        assert [each.events[-1]["error"]["data"] for each in (stream, call)] == [{"reason": "unknown"}] * 2
        work.counter.wait_for("cancelled")
        assert not others.over.is_set()


@pytest.mark.full
@pytest.mark.parametrize(
    "fault",
    [DatabaseUnavailable("gone"), TypeError("a fault")],
    ids=["away", "a fault"],
)
def test_a_cut_is_found_although_the_database_did_not_answer_for_a_moment(
    start: Start, run: Run, ana: User, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Any
) -> None:
    failed = [0]

    async def fails(
        query: Callable[[bytes, Sequence[bytes]], Awaitable[PGresult]], wanted: Sequence[AccessQuery]
    ) -> Any:
        async def failing(name: bytes, parameters: Sequence[bytes]) -> PGresult:
            if failed[0] < 3:
                failed[0] += 1
                raise fault
            return await query(name, parameters)

        return await find_again(failing, wanted)

    monkeypatch.setattr("proxy.streams.RECHECK_SECONDS", 600)
    work = Work(start, run)
    agent = in_session(work.agent("bob"))
    with listening(agent, "GET") as stream:
        assert stream.begun.wait(PATIENCE)
        monkeypatch.setattr("proxy.streams.find_again", fails)
        the_connection(agent).disable(by=ana)
        assert stream.over.wait(PATIENCE)
        assert stream.events[-1]["error"]["data"] == {"reason": "connection_disabled"}
    assert failed == [3]
    assert "open streams" in [getattr(record, "task", "") for record in caplog.records]


@pytest.mark.full
def test_a_stream_about_which_nothing_can_be_decided_ends_and_the_others_are_decided_about(
    start: Start, run: Run, ana: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = Streams._verdict
    work = Work(start, run)
    odd, cut, allowed = (in_session(work.agent(name)) for name in ("odd", "bob", "eve"))
    of_odd = str(Connection.objects.get(user__email="odd@example.com").pk)

    def fails(streams: Streams, request: McpRequest, grant: Any) -> Any:
        if grant is not None and grant.connection_id == of_odd:
            raise TypeError("a fault")
        return verdict(streams, request, grant)

    with listening(odd, "GET") as undecided, listening(cut, "GET") as ended, listening(allowed, "GET") as stays:
        for stream in (undecided, ended, stays):
            assert stream.begun.wait(PATIENCE)
        monkeypatch.setattr(Streams, "_verdict", fails)
        the_connection(cut).disable(by=ana)
        assert undecided.over.wait(PATIENCE)
        assert ended.over.wait(PATIENCE)
        assert ended.events[-1]["error"]["data"] == {"reason": "connection_disabled"}
        assert not stays.over.is_set()


@pytest.mark.full
def test_a_call_of_an_app_outlives_its_token_and_a_stream_does_not(
    start: Start, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.streams.RECHECK_SECONDS", 0.1)
    work = Work(start, run)
    agent = Agent(work.proxy.url("work"), token_of_app(make.user(email="bob@example.com"), work.gateway).secret)
    body, headers = listen({"toolsListChanged": True})
    with (
        listening(agent, "POST", waiting("mine", seconds=2, token=1)) as call,
        listening(agent, "POST", body, **headers) as stream,
    ):
        call.wait_for(1)
        stream.wait_for(1)
        sql("UPDATE oauth2_provider_accesstoken SET expires = now()")
        assert stream.over.wait(PATIENCE)
        assert call.over.wait(PATIENCE)
    assert "waited" in str(call.events[-1]["result"])
    ended = [row for row in work.proxy.calls() if row.deny_reason == "expired"]
    assert [row.method for row in ended] == ["subscriptions/listen"]


# Recipients, and the end


@pytest.mark.full
def test_listeners_get_changes_of_the_requested_lists_of_their_own_gateway(start: Start, run: Run, ana: User) -> None:
    work = Work(start, run)
    agent = work.agent("bob")
    elsewhere = make.gateway(slug="other")
    user = make.user(email="eve@example.com")
    foreign = work.proxy.agent(make.connection(make.agent(by=user), elsewhere, user))
    prompts, headers = listen({"promptsListChanged": True})
    tools, _ = listen({"toolsListChanged": True})
    with (
        listening(agent, "POST", prompts, **headers) as of_prompts,
        listening(agent, "POST", tools, **headers) as of_tools,
        listening(foreign, "POST", tools, **headers) as others,
    ):
        for stream in (of_prompts, of_tools, others):
            stream.wait_for(1)
        work.assignment.features.get().disable(by=ana)
        assert of_tools.wait_for(2)[1]["method"] == TOOLS_CHANGED["method"]
        work.assignment.disable(by=ana)  # This may change any list.
        assert of_prompts.wait_for(2)[1]["method"] == "notifications/prompts/list_changed"
        assert len(others.events) == 1


def test_a_process_that_stops_ends_its_streams_a_listen_with_its_result(start: Start, run: Run) -> None:
    work = Work(start, run)
    agent = work.agent("bob")
    body, headers = listen({"toolsListChanged": True}, 5)
    with listening(in_session(agent), "GET") as get, listening(agent, "POST", body, **headers) as of_2026:
        assert get.begun.wait(PATIENCE)
        of_2026.wait_for(1)
        work.proxy.soon(end_standing)
        assert get.over.wait(PATIENCE)
        assert of_2026.over.wait(PATIENCE)
    meta = {"io.modelcontextprotocol/subscriptionId": 5}
    assert of_2026.events[1:] == [{"jsonrpc": "2.0", "id": 5, "result": {"resultType": "complete", "_meta": meta}}]
    assert get.events == []
    eventually(lambda: len(rows(work)) == 4)
    assert {row.outcome for row in rows(work)} == {"ok"}


class Wire:
    """The client of a stream. `sent` has the data sent to the client. If `reads` is False, each send blocks."""

    origin, uid, task = None, "0192aa00-0000-7000-8000-000000000000", None

    def __init__(self, *, reads: bool) -> None:
        self.reads = reads
        self.complete = False
        self.sent: list[bytes] = []

    async def send(self, message: Any) -> None:
        self.sent.append(message.get("body", b""))
        if not self.reads:
            await asyncio.Event().wait()

    async def receive(self) -> Any:
        """Return the complete request once, as an ASGI server may, then block."""
        if self.complete:
            await asyncio.Event().wait()
        self.complete = True
        return {"type": "http.request", "body": b"", "more_body": False}


def test_nothing_follows_the_end_of_a_stream() -> None:
    async def sent() -> list[bytes]:
        wire = Wire(reads=True)
        standing = StandingStream(cast("McpRequest", wire), Mock())
        standing.put(TOOLS_CHANGED)
        standing.end(b'"first"')
        standing.end(b'"second"')
        standing.put(TOOLS_CHANGED)
        standing.put_event(b"more")
        await asyncio.wait_for(standing.serve(600), PATIENCE)
        return wire.sent

    head, *events, end = asyncio.run(sent())
    assert (head, end) == (b"", b"")
    assert [event.partition(b"data: ")[2].strip() for event in events] == [jsonrpc.dumps(TOOLS_CHANGED), b'"first"']


def test_a_client_that_does_not_read_how_its_stream_ended_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.streams.END_SECONDS", 0.05)

    async def end() -> None:
        standing = StandingStream(cast("McpRequest", Wire(reads=False)), Mock())
        serving = asyncio.create_task(standing.serve(600))
        await asyncio.sleep(0.01)
        standing.end(b'"last"')
        await asyncio.wait_for(serving, PATIENCE)

    asyncio.run(end())
