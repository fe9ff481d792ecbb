"""A session-era client with a broken stream resumes with `Last-Event-ID`, at any worker."""

import asyncio
import json
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock
from uuid import uuid4

import httpx
import pytest

from accounts.models import User
from gateways.models import Feature
from proxy.models import StreamEvent
from proxy.store import events
from proxy.store.events import MOST_BYTES, StreamEvents
from proxy.store.pg import StatePool
from proxy.streams import MOST_PENDING_BYTES, StandingStream
from tests import make
from tests.asgi_server import Receive, Scope, Send, headers_of, live, parsed, read
from tests.conftest import Run
from tests.proxy.conftest import Agent, Proxy, Start, eventually, sql
from tests.proxy.listening import Listener, listening
from tests.proxy.scripted import Object, Request, Script, calling, tool
from tests.proxy.test_failing_parts import UNAVAILABLE, fail_statements
from tests.proxy.test_standing_streams import TOOLS_CHANGED, in_session
from wire.cipher import Cipher

SECRET = "what-the-call-found"


@dataclass
class Slow:
    """A server whose tool reports progress, waits for the test, reports progress once more and answers."""

    begun: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    async def call(self, request: Request) -> None:
        token = request.message["params"].get("_meta", {}).get("progressToken")
        await request.open_stream()
        await request.event(progress(token, 1))
        self.begun.set()
        await asyncio.to_thread(self.go_on.wait, 20)
        await request.event(progress(token, 2))
        result = {"content": [{"type": "text", "text": SECRET}]}
        await request.event({"jsonrpc": "2.0", "id": request.message["id"], "result": result}, last=True)


def progress(token: object, number: int) -> Object:
    params = {"progressToken": token, "progress": number}
    return {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}


class Work:
    """A gateway with a slow tool, at two workers."""

    def __init__(self, start: Start, run: Run) -> None:
        self.slow = Slow()
        self.gateway = make.gateway(slug="work")
        upstream = run(calling(self.slow.call))
        self.assignment = make.assignment(self.gateway, make.server(slug="docs", url=upstream.url))
        Feature.objects.learn(self.assignment, [{"name": "it", "inputSchema": {"type": "object"}}])
        self.proxies = [start() for _ in range(2)]

    @property
    def proxy(self) -> Proxy:
        return self.proxies[0]

    def agent(self, name: str = "ana") -> Agent:
        user = make.user(email=f"{name}@example.com")
        return self.proxy.agent(make.connection(make.agent(by=user, name=name), self.gateway, user))

    def at(self, worker: int, agent: Agent) -> Agent:
        return Agent(self.proxies[worker].url("work"), agent.secret, agent.headers)


@pytest.fixture
def work(start: Start, run: Run) -> Work:
    return Work(start, run)


def call(request_id: object = "mine", token: object = 7) -> dict[str, Any]:
    params: dict[str, Any] = {"name": "docs__it", "arguments": {}}
    if token is not None:
        params["_meta"] = {"progressToken": token}
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


def resumed(agent: Agent, last: str) -> Any:
    return listening(agent, "GET", Last_Event_ID=last)


def missed(stream: Listener) -> list[Any]:
    assert stream.over.wait(10)
    return stream.events


ANSWERED = {"jsonrpc": "2.0", "id": "mine", "result": {"content": [{"type": "text", "text": SECRET}]}}


@pytest.mark.full
@pytest.mark.parametrize(("worker", "answered_before"), [(0, False), (1, True)])
def test_a_client_whose_call_broke_off_gets_the_rest_of_it(work: Work, worker: int, answered_before: bool) -> None:
    agent = in_session(work.agent())
    with listening(agent, "POST", call()) as stream:
        assert stream.wait_for(1) == [progress(7, 1)]
    if answered_before:
        work.slow.go_on.set()
        eventually(lambda: StreamEvent.objects.filter(is_last=True).exists())
    with resumed(work.at(worker, agent), stream.ids[-1]) as rest:
        work.slow.go_on.set()
        assert missed(rest) == [progress(7, 2), ANSWERED]
    assert len({*stream.ids, *rest.ids}) == len(stream.ids) + len(rest.ids)
    with resumed(work.at(1 - worker, agent), rest.ids[0]) as again:
        assert missed(again) == [ANSWERED]


@pytest.mark.full
def test_a_client_that_lost_its_connection_unnoticed_gets_what_was_sent_into_it(work: Work) -> None:
    agent = in_session(work.agent())
    with listening(agent, "POST", call()) as stream:
        stream.wait_for(1)
        work.slow.go_on.set()
        assert stream.over.wait(5)
        # The gateway has sent the whole stream; a client that got nothing else would resume from the first id.
        assert not StreamEvent.objects.exists()
        with resumed(work.at(1, agent), stream.ids[0]) as rest:
            assert missed(rest) == [progress(7, 1), progress(7, 2), ANSWERED]


def test_a_call_that_is_still_under_way_goes_on_where_its_client_came_back(work: Work) -> None:
    agent = in_session(work.agent())
    with listening(agent, "POST", call()) as stream:
        stream.wait_for(1)
        with resumed(work.at(1, agent), stream.ids[0]) as rest:
            assert rest.wait_for(1) == [progress(7, 1)]
            work.slow.go_on.set()
            assert missed(rest) == [progress(7, 1), progress(7, 2), ANSWERED]
        assert stream.over.wait(5)
        assert stream.events == [progress(7, 1)]  # Each message is sent on one stream only.


@pytest.mark.full
def test_a_client_that_comes_back_again_for_a_call_ends_what_it_came_back_for_before(work: Work) -> None:
    agent = in_session(work.agent())
    with listening(agent, "POST", call()) as stream:
        stream.wait_for(1)
    with resumed(agent, stream.ids[0]) as earlier:
        assert earlier.wait_for(1) == [progress(7, 1)]
        with resumed(agent, stream.ids[0]) as newer:
            assert newer.wait_for(1) == [progress(7, 1)]
            assert earlier.over.wait(5)
            work.slow.go_on.set()
            assert missed(newer) == [progress(7, 1), progress(7, 2), ANSWERED]
        assert earlier.events == [progress(7, 1)]


@pytest.mark.full
def test_the_id_of_another_session_gives_nothing(work: Work) -> None:
    agent = work.agent()
    mine = in_session(agent)
    with listening(mine, "POST", call()) as stream:
        stream.wait_for(1)
    work.slow.go_on.set()
    eventually(lambda: StreamEvent.objects.filter(is_last=True).exists())
    for stranger in (in_session(agent), in_session(work.agent("eve"))):
        with resumed(stranger, stream.ids[0]) as other:
            (error,) = missed(other)
            assert (error["id"], error["error"]["data"]) == ("mine", {"reason": "call_lost"})
    with resumed(mine, stream.ids[0]) as rest:
        assert missed(rest)[-1] == ANSWERED


ANYTHING = sorted(f"notifications/{kind}/list_changed" for kind in ("tools", "prompts", "resources"))


@pytest.mark.full
def test_naming_the_stream_of_another_session_reads_nothing_from_it(work: Work, ana: User) -> None:
    agent = work.agent("bob")
    mine = in_session(agent)
    with listening(mine, "GET") as stream:
        eventually(lambda: stream.ids)
        work.assignment.features.get().disable(by=ana)
        stream.wait_for(1)
        for stranger in (in_session(agent), in_session(work.agent("eve"))):
            with resumed(stranger, stream.ids[0]) as other:
                other.wait_for(3)
            assert sorted(other.methods()) == ANYTHING
        eventually(lambda: StreamEvent.objects.filter(is_last=True).exists())
        with resumed(mine, stream.ids[0]) as rest:
            rest.wait_for(1)
            assert (rest.ids[0], rest.events[0]) == (stream.ids[1], stream.events[0])
            assert stream.over.wait(10)


def test_a_standing_stream_whose_worker_died_is_opened_elsewhere(work: Work) -> None:
    agent = in_session(work.agent())
    with resumed(agent, f"s-{uuid4().hex}-12") as stream:
        stream.wait_for(3)
    assert sorted(stream.methods()) == ANYTHING
    assert all(each.endswith(number) for each, number in zip(stream.ids, ("-13", "-14", "-15"), strict=True))


@pytest.mark.full
def test_a_call_that_was_lost_with_its_worker_is_answered_so(work: Work) -> None:
    agent = in_session(work.agent())
    with listening(agent, "POST", call(5)) as stream:
        stream.wait_for(1)
        work.proxy.stop()
        assert stream.over.wait(5)
    work.slow.go_on.set()
    with resumed(work.at(1, agent), stream.ids[-1]) as rest:
        (error,) = missed(rest)
        assert (error["id"], error["error"]["data"]) == (5, {"reason": "call_lost"})


@pytest.mark.full
def test_events_a_client_may_miss_are_encrypted_and_deleted_later_or_left_out_without_their_key(work: Work) -> None:
    agent = in_session(work.agent())
    with listening(agent, "POST", call()) as stream:
        stream.wait_for(1)
    work.slow.go_on.set()
    eventually(lambda: StreamEvent.objects.filter(is_last=True).exists())
    assert not any(SECRET.encode() in bytes(data) for (data,) in StreamEvent.objects.values_list("data"))
    sql("UPDATE proxy_streamevent SET data = 'no such key' WHERE NOT is_last")
    with resumed(agent, stream.ids[0]) as rest:
        assert missed(rest) == [ANSWERED]
    sql("UPDATE proxy_streamevent SET expires_at = now() - interval '1 s'")
    with resumed(agent, stream.ids[0]) as rest:
        assert missed(rest)[0]["error"]["data"] == {"reason": "call_lost"}


@pytest.mark.full
def test_a_standing_stream_goes_on_where_it_broke(work: Work, ana: User) -> None:
    agent = in_session(work.agent("bob"))
    with listening(agent, "GET") as stream:
        assert stream.begun.wait(5)
        eventually(lambda: stream.ids)
        work.assignment.features.get().disable(by=ana)
        assert stream.wait_for(1) == [TOOLS_CHANGED]
    with resumed(work.at(1, agent), stream.ids[0]) as later:
        later.wait_for(4)
        # The stored events, then notifications for every list, because changes may have been missed.
        assert later.ids[0] == stream.ids[1]
        assert sorted(later.methods()) == sorted(
            [
                TOOLS_CHANGED["method"],
                *(f"notifications/{kind}/list_changed" for kind in ("tools", "prompts", "resources")),
            ]
        )
        work.assignment.features.get().enable(by=ana)
        assert later.wait_for(5)[4] == TOOLS_CHANGED
        assert len({*later.ids}) == 5
    with resumed(work.at(0, agent), later.ids[3]) as last:
        last.wait_for(4)
        assert last.ids[0] == later.ids[4]


@pytest.mark.full
def test_a_stream_that_the_gateway_thinks_is_read_ends_when_its_client_comes_back(work: Work) -> None:
    agent = in_session(work.agent())
    with listening(agent, "GET") as stream:
        eventually(lambda: stream.ids)
        with resumed(work.at(1, agent), stream.ids[0]) as later:
            later.wait_for(3)
            assert stream.over.wait(5)


@pytest.mark.full
def test_only_clients_that_know_of_it_are_sent_an_event_without_data(work: Work) -> None:
    work.slow.go_on.set()
    agent = work.agent()
    for version, is_primed in (("2025-11-25", True), ("2025-06-18", False)):
        text = streamed(in_session(agent, version))
        first = text.split("\r\n\r\n", maxsplit=1)[0].split("\r\n")
        assert (first[-1] == "data: " and first[0].startswith("id: c-")) is is_primed
        assert text.count("\r\nid: ") == 3
    assert "id:" not in streamed(agent)


def streamed(agent: Agent) -> str:
    """Return the answer to a streamed call."""
    headers = {"Authorization": f"Bearer {agent.secret}", "Accept": "text/event-stream", **agent.headers}
    return httpx.post(agent.url, json=call(), headers=headers, trust_env=False).text


def test_the_stream_of_a_call_that_nobody_has_and_whose_request_is_not_named_just_ends(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.streams.ALIVE_SECONDS", 0.2)
    agent = in_session(work.agent())
    for named in ("", "-AAAA", "-eyJhIjoxfQ=="):  # No name, no JSON, and no id.
        with resumed(agent, f"c-{uuid4().hex}-1{named}") as stream:
            assert (missed(stream), stream.status) == ([], 200), named


@pytest.mark.full
def test_a_call_that_takes_long_is_asked_after_again_and_not_taken_for_lost(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    want, asked = StreamEvents.want, [0]

    async def counted(events: StreamEvents, *given: Any) -> None:
        await want(events, *given)
        asked[0] += 1

    monkeypatch.setattr("proxy.streams.ALIVE_SECONDS", 1)
    monkeypatch.setattr(StreamEvents, "want", counted)
    agent = in_session(work.agent())
    with listening(agent, "POST", call()) as stream:
        stream.wait_for(1)
    with resumed(work.at(1, agent), stream.ids[-1]) as rest:
        eventually(lambda: asked[0] >= 2)
        work.slow.go_on.set()
        assert missed(rest) == [progress(7, 2), ANSWERED]


@pytest.mark.full
def test_a_client_that_comes_back_while_the_database_is_away_may_come_back_again(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = in_session(work.agent())
    with listening(agent, "POST", call()) as stream:
        stream.wait_for(1)
    work.slow.go_on.set()
    eventually(lambda: StreamEvent.objects.filter(is_last=True).exists())
    fail_statements(monkeypatch, events.READ)
    with resumed(agent, stream.ids[-1]) as nothing:
        assert missed(nothing) == []
    monkeypatch.undo()
    with resumed(agent, stream.ids[-1]) as rest:
        assert missed(rest) == [progress(7, 2), ANSWERED]


@pytest.mark.full
def test_a_call_that_was_cancelled_while_its_client_was_away_ends_without_an_answer(work: Work) -> None:
    agent = in_session(work.agent())
    with listening(agent, "POST", call()) as stream:
        stream.wait_for(1)
    cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "mine"}}
    assert agent.post(cancelled).status_code == 202
    with resumed(work.at(1, agent), stream.ids[-1]) as rest:
        assert missed(rest) == []
    work.slow.go_on.set()


@pytest.mark.full
@pytest.mark.parametrize("times", [1, events.ATTEMPTS])
def test_missed_events_are_written_once_the_database_answers_or_logged_as_lost(
    work: Work, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, times: int
) -> None:
    fetch, failed = StatePool.fetch, [0]

    async def fails(state: StatePool, statement: str, params: Any = ()) -> list[tuple[Any, ...]]:
        if statement == events.KEEP and True in params["is_last"] and failed[0] < times:
            failed[0] += 1
            raise UNAVAILABLE
        return await fetch(state, statement, params)

    monkeypatch.setattr("proxy.store.events.RETRY_SECONDS", 0.01)
    monkeypatch.setattr("proxy.streams.ALIVE_SECONDS", 0.5)
    agent = in_session(work.agent())
    with listening(agent, "POST", call()) as stream:
        stream.wait_for(1)
    eventually(StreamEvent.objects.exists)
    monkeypatch.setattr(StatePool, "fetch", fails)
    work.slow.go_on.set()
    eventually(lambda: failed == [times])
    is_lost = times == events.ATTEMPTS
    eventually(lambda: ("events that a client missed are lost" in caplog.text) == is_lost)
    with resumed(agent, stream.ids[-1]) as rest:
        last = missed(rest)[-1]
    assert last.get("error", {}).get("data") == ({"reason": "call_lost"} if is_lost else None)
    assert is_lost or last == ANSWERED


# Events in memory for a client


class Rows:
    """A database that returns no rows. `written` has the parameters of each statement that writes."""

    def __init__(self) -> None:
        self.written: list[Any] = []

    async def fetch(self, _: object, parameters: Any = None) -> list[tuple[Any, ...]]:
        if "numbers" in parameters:
            self.written.append(parameters)
        return []


def test_events_for_a_disconnected_client_are_limited_and_keep_its_last_message() -> None:
    rows = Rows()

    async def leave() -> None:
        events = StreamEvents(cast("StatePool", rows), Mock(), cast("Cipher", SimpleNamespace(seal=str.encode)))
        history = events.begin_standing("session")
        history.leave()
        for _ in range(8):  # The loop does not run, so nothing is written yet.
            history.add(b"x" * (MOST_BYTES // 4))
        history.add(b"y" * (2 * MOST_BYTES))
        history.end()
        await asyncio.sleep(0)
        while history._writing is not None and not history._writing.done():
            await history._writing

    asyncio.run(leave())
    (given,) = rows.written
    assert [(data[:1], last) for data, last in zip(given["data"], given["is_last"], strict=True)] == [
        (b"y", False),
        (b"", True),
    ]


def test_a_client_that_is_too_many_bytes_behind_is_left() -> None:
    async def fill(*sizes: int) -> bool:
        standing = StandingStream(Mock(), Mock())
        for size in sizes:
            standing.put_event(b"x" * size)
        return standing._over

    assert not asyncio.run(fill(2 * MOST_PENDING_BYTES))
    assert not asyncio.run(fill(MOST_PENDING_BYTES // 2, MOST_PENDING_BYTES // 2))
    assert asyncio.run(fill(MOST_PENDING_BYTES // 2, MOST_PENDING_BYTES // 2, 1))


# At servers


class Polling:
    """A server that ends a call's stream `ends` times. Before each end, it sends an event id and `retry` (in ms)."""

    def __init__(self, ends: int, *, knows_ids: bool = True) -> None:
        self.ends = ends
        self.knows_ids = knows_ids
        self.asked: list[tuple[str, str]] = []
        self.called: Object = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
            return
        body, headers = await read(receive), headers_of(scope)
        message = parsed(body) if body else {}
        assert isinstance(message, dict)
        request = Request(message, headers, receive, send)
        if scope["method"] == "GET":
            await self._go_on(request)
        elif message.get("method") == "tools/call":
            self.called = message
            self.asked.append(("POST", ""))
            await self._part(request, 0)
        else:
            await Script([[tool("it")]], sessions=True, opened=["session-0"]).serve(request, scope["method"])

    async def _go_on(self, request: Request) -> None:
        last = request.headers.get("last-event-id", "")
        if not last or not self.knows_ids:
            await request.answer(b"", status=405)
            return
        self.asked.append(("GET", last))
        await self._part(request, int(last))

    async def _part(self, request: Request, number: int) -> None:
        await request.open_stream()
        if number < self.ends:
            note = json.dumps(progress(self.called["params"]["_meta"]["progressToken"], number + 1))
            part = f"id: {number + 1}\nretry: 60\ndata: \n\nid: {number + 1}\ndata: {note}\n\n"
            await request.send({"type": "http.response.body", "body": part.encode()})
        else:
            await request.event({"jsonrpc": "2.0", "id": self.called["id"], "result": {"content": []}}, last=True)


def at_a_polling_server(start: Start, run: Run, server: Polling) -> list[Any]:
    gateway = make.gateway(slug="work")
    assignment = make.assignment(gateway, make.server(slug="docs", url=run(server).url))
    Feature.objects.learn(assignment, [{"name": "it", "inputSchema": {"type": "object"}}])
    user = make.user(email="ana@example.com")
    agent = start().agent(make.connection(make.agent(by=user), gateway, user))
    with listening(agent, "POST", call()) as stream:
        assert stream.over.wait(10)
    return stream.events


@pytest.mark.full
def test_a_call_goes_on_where_its_servers_stream_broke(start: Start, run: Run) -> None:
    server = Polling(3)
    events = at_a_polling_server(start, run, server)
    assert events == [
        *(progress(7, number) for number in (1, 2, 3)),
        {"jsonrpc": "2.0", "id": "mine", "result": {"content": []}},
    ]
    assert server.asked == [("POST", ""), ("GET", "1"), ("GET", "2"), ("GET", "3")]


@pytest.mark.full
def test_a_call_whose_stream_cannot_be_gone_on_with_ends_and_is_not_sent_again(start: Start, run: Run) -> None:
    server = Polling(3, knows_ids=False)
    events = at_a_polling_server(start, run, server)
    assert events[-1]["error"]["data"] == {"reason": "unreachable", "server": "docs"}
    assert server.asked == [("POST", "")]
