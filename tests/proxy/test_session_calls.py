"""Servers that send a call's messages on the session's standing stream, as SDKs do without a related request id."""

import asyncio
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.db.models import F
from django.utils import timezone

from auditlog.models import Call
from proxy.models import PendingRequest, StreamEvent, UpstreamSession
from proxy.store.bus import Bus, PendingRequests
from proxy.store.sessions import SessionKeeper
from tests import make
from tests.conformance import fixtures
from tests.conftest import Run
from tests.eventually import PATIENCE, until
from tests.proxy.asking import FORM, ROOTS, SAMPLE, Asker, Person, answers_of, late_reply
from tests.proxy.conftest import Agent, Start, eventually, sessions_of_clients, sql
from tests.proxy.listening import Listener, listening
from tests.proxy.scripted import Object, Request, tool
from tests.proxy.test_server_requests import GIVEN, Work, asked_rows

NOTE: Object = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "hello"}}
ON_ITS_STREAM = {**NOTE, "params": {"level": "info", "data": "hello", "logger": "docs"}}


@dataclass
class StandingAsker(Asker):
    """A server that sends its requests on the session's standing stream. If none is open, they are lost, as in SDKs.

    The tool `slow` sends the messages in `said`, and then waits for `go`.
    """

    said: list[Object] = field(default_factory=list)
    gets: list[str] = field(default_factory=list)
    """Ids of the sessions for which a client opened a stream."""
    refused: int = 0
    go: threading.Event = field(default_factory=threading.Event)
    offers_stream: bool = True
    has_head: bool = True
    head_seconds: float = 0.0
    pour: bytes = b""
    """The bytes sent on each stream as soon as it is open."""
    open: dict[str, Request] = field(default_factory=dict)
    poured: dict[str, bytes] = field(default_factory=dict)
    """The bytes sent on the open stream, by session id."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pages = [[tool("it"), tool("quick"), tool("slow")]]

    async def serve(self, request: Request, verb: str) -> None:
        if verb == "GET":
            self.gets.append(request.headers["mcp-session-id"])
        if verb == "GET" and self.offers_stream:
            await self._stand(request, request.headers["mcp-session-id"])
            return
        await super().serve(request, verb)

    async def _stand(self, request: Request, session: str) -> None:
        if session in self.open:
            self.refused += 1
            await request.answer(b"", status=409)
            return
        poured = self.pour
        await asyncio.sleep(self.head_seconds)
        if self.has_head:
            await request.open_stream()
            await request.send({"type": "http.response.body", "body": b": here\n\n" + poured, "more_body": True})
        self.open[session], self.poured[session] = request, poured
        while (await request.receive())["type"] != "http.disconnect":
            pass
        del self.open[session]

    async def say(self, session: str, message: Object) -> None:
        if session in self.open:
            await self.open[session].event(message)

    async def _call(self, request: Request) -> None:
        session, name = request.headers["mcp-session-id"], request.message["params"]["name"]
        if name == "quick":
            await request.answer({"content": []})
            return
        await request.open_stream()
        answers = await (self._ask(session) if name == "it" else self._wait(session, request.message["params"]))
        result: Object = {"content": [], "structuredContent": {"answers": answers}}
        await request.event({"jsonrpc": "2.0", "id": request.message["id"], "result": result}, last=True)

    async def _ask(self, session: str) -> list[Object]:
        answers = []
        for number, asked in enumerate(self.asks):
            waiting = asyncio.get_running_loop().create_future()
            self._waiting[session, number] = waiting
            await self.say(session, {"jsonrpc": "2.0", "id": number, **asked})
            answers.append(await asyncio.wait_for(waiting, PATIENCE))
        return answers

    async def _wait(self, session: str, params: Object) -> list[Object]:
        for message in self.said:
            if message["method"] == "notifications/progress":
                message["params"]["progressToken"] = params["_meta"]["progressToken"]
            await self.say(session, message)
        await asyncio.to_thread(self.go.wait)
        return []


@dataclass
class StandingWork(Work):
    server: StandingAsker


@pytest.fixture
def work(start: Start, run: Run, monkeypatch: pytest.MonkeyPatch) -> StandingWork:
    """Return a gateway with a StandingAsker. Calls wait up to PATIENCE for the server's standing stream to open."""
    monkeypatch.setattr("proxy.upstream_streams.READY_SECONDS", PATIENCE)
    monkeypatch.setattr("proxy.upstream_streams.OPEN_SECONDS", PATIENCE)
    return standing_work(StandingAsker(asks=[FORM]), start, run)


def standing_work(server: StandingAsker, start: Start, run: Run) -> StandingWork:
    docs = run(server.app())
    user = make.user(email="ana@example.com")
    gateway = make.gateway(make.introduced(make.server(slug="docs", name="Docs", url=docs.url)), slug="work")
    return StandingWork(server, docs, gateway, make.connection(make.agent(by=user), gateway, user), start)


def replying(person: Person, agent: Agent | None = None) -> Any:
    return lambda asked: person.say({"id": asked["id"], "result": GIVEN}, agent)


def slow(token: object = None) -> Object:
    params: Object = {"name": "docs__slow", "arguments": {}}
    if token is not None:
        params["_meta"] = {"progressToken": token}
    return {"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": params}


def asked_on(stream: Listener) -> Object:
    eventually(lambda: [event for event in stream.events if "id" in event and "method" in event])
    return dict(next(event for event in stream.events if "id" in event and "method" in event))


@pytest.mark.full
def test_a_server_request_for_the_first_call_of_a_session_is_sent_on_the_calls_stream(work: StandingWork) -> None:
    person = work.person()

    for agent in (None, work.elsewhere(person)):
        assert answers_of(person.call("docs__it", replying(person, agent)))[0]["result"] == GIVEN

    assert work.server.gets == ["session-0"]
    call = Call.objects.filter(method="tools/call").order_by("created_at")[0]
    assert [(row.outcome, row.correlation_id == call.uid) for row in asked_rows()].count(("ok", True)) == 1
    assert not PendingRequest.objects.exists()


@pytest.mark.full
def test_a_call_in_another_worker_than_the_one_that_listens_is_asked_all_the_same(work: StandingWork) -> None:
    person = work.person()
    elsewhere = Person(work.elsewhere(person), session=person.session)
    assert "result" in person.call("docs__quick")

    for who in (elsewhere, person, elsewhere):
        assert answers_of(who.call("docs__it", replying(who)))[0]["result"] == GIVEN

    assert work.server.gets == ["session-0"]
    assert [row.outcome for row in asked_rows()] == ["ok", "ok", "ok"]
    eventually(lambda: not PendingRequest.objects.exists())


def test_a_client_that_listens_at_another_worker_is_asked_there(
    work: StandingWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine may need longer for another worker's offer than a gateway waits for it.
    monkeypatch.setattr("proxy.message_router.BIDS_SECONDS", 5.0)
    person = work.person()
    assert "result" in person.call("docs__quick")
    with listening(work.elsewhere(person), "GET", **_headers(person)) as stream:
        assert stream.begun.wait(PATIENCE)
        _several(work, person, stream)
    assert work.server.refused == 0


def _several(work: StandingWork, person: Person, stream: Listener) -> None:
    """Run two calls at once, and let the server send a request to the client during the second."""
    with listening(person.agent, "POST", slow(), **_headers(person)) as under_way:
        eventually(lambda: "slow" in _calls(work))
        answered: list[Object] = []
        caller = threading.Thread(target=lambda: answered.append(person.call("docs__it")))
        caller.start()
        person.say({"id": asked_on(stream)["id"], "result": GIVEN})
        caller.join(PATIENCE)
        assert answers_of(answered[0])[0]["result"] == GIVEN
        work.server.go.set()
        assert under_way.over.wait(PATIENCE)
    assert person.heard == []


@pytest.mark.full
def test_values_no_stream_can_carry_are_refused(work: StandingWork) -> None:
    person = work.person()
    assert "result" in person.call("docs__quick")
    without_stream = person.call("docs__it", accept="application/json")
    with listening(person.agent, "POST", slow(), **_headers(person)):
        eventually(lambda: "slow" in _calls(work))
        among_others = person.call("docs__it")
        work.server.go.set()

    for answered in (without_stream, among_others):
        error = answers_of(answered)[0]["error"]
        assert (error["code"], error["message"].startswith("The client cannot be asked")) == (-32603, True)
    assert person.heard == []


@pytest.mark.full
def test_a_client_without_the_capability_is_not_asked_and_its_call_goes_on(work: StandingWork) -> None:
    work.server.asks = [SAMPLE, ROOTS]

    answered = work.person({}).call("docs__it")

    assert [answer["error"]["code"] for answer in answers_of(answered)] == [-32601] * 2


@pytest.mark.full
def test_a_call_whose_client_is_asked_there_may_take_longer_than_its_server_may_be_silent(work: StandingWork) -> None:
    sql("UPDATE servers_server SET max_concurrent = 1, timeout_seconds = 1")
    person = work.person(queue_seconds=0.5)
    quick: list[Object] = []

    assert answers_of(person.call("docs__it", late_reply(person, GIVEN, quick)))[0]["result"] == GIVEN
    assert "result" in quick[0]


@pytest.mark.full
def test_progress_and_messages_there_come_on_the_stream_of_the_call_at_another_worker(work: StandingWork) -> None:
    person = work.person()
    assert "result" in person.call("docs__quick")
    agent = work.elsewhere(person)
    foreign = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "last"}}
    progress = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progress": 1}}
    work.server.said = [NOTE, progress, foreign]

    with listening(agent, "POST", slow("mine"), **_headers(person)) as stream:
        stream.wait_for(3)
        work.server.go.set()
        assert stream.over.wait(PATIENCE)

    notes = [event["params"]["data"] for event in stream.events if event.get("method") == NOTE["method"]]
    assert notes == ["hello", "last"]
    (told,) = [event["params"] for event in stream.events if event.get("method") == progress["method"]]
    assert told == {"progress": 1, "progressToken": "mine"}


@pytest.mark.full
def test_messages_while_a_client_has_no_stream_wait_for_its_next_one(work: StandingWork) -> None:
    person = work.person()
    assert "result" in person.call("docs__quick")
    session = work.server.opened[0]
    eventually(lambda: session in work.server.open)

    work.server.said = [NOTE]
    given = {**_headers(person), "Accept": "application/json"}
    with listening(person.agent, "POST", slow(), **given) as under_way:
        eventually(lambda: "slow" in _calls(work))
        work.server.go.set()
        assert under_way.over.wait(PATIENCE)
    eventually(lambda: _waiting_rows() == 1)

    for expected in ([ON_ITS_STREAM], []):
        with listening(work.elsewhere(person), "GET", **_headers(person)) as stream:
            assert stream.begun.wait(PATIENCE)
            eventually(lambda: stream.pings or stream.ids)
            stream.wait_for(len(expected))
            assert stream.events == expected
    assert _waiting_rows() == 0


@pytest.mark.parametrize("listens", [True, False], ids=["at another worker", "later"])
def test_log_messages_outside_calls_are_filtered_by_the_clients_level(work: StandingWork, listens: bool) -> None:
    person = work.person()
    assert "result" in person.call("docs__quick")
    eventually(lambda: work.server.opened[0] in work.server.open)
    level = person.agent.ask("logging/setLevel", {"level": "error"}, **_headers(person))
    assert level.json()["result"] == {}
    grave = {**NOTE, "params": {"level": "error", "data": "out of paper", "logger": "press"}}
    work.server.said = [NOTE, grave, NOTE]
    given = {**_headers(person), "Accept": "application/json"}

    def said() -> None:
        with listening(person.agent, "POST", slow(), **given) as under_way:
            eventually(lambda: "slow" in _calls(work))
            work.server.go.set()
            assert under_way.over.wait(PATIENCE)

    if not listens:
        said()
        eventually(lambda: _waiting_rows() == 1)
    with listening(work.elsewhere(person), "GET", **_headers(person)) as stream:
        assert stream.begun.wait(PATIENCE)
        if listens:
            said()
        (heard,) = stream.wait_for(1)
    assert heard["params"] == {"level": "error", "data": "out of paper", "logger": "docs/press"}
    assert _waiting_rows() == 0


@pytest.mark.full
def test_a_server_without_such_a_stream_is_not_asked_for_it_with_each_session(work: StandingWork) -> None:
    work.server.offers_stream = False
    first = work.person()
    second = Person(first.agent, first.capabilities).initialize()
    for person in (first, second, first, second):
        assert "result" in person.call("docs__quick")

    assert work.server.gets == ["session-0"]


@pytest.mark.full
def test_a_session_nobody_calls_in_any_more_is_listened_to_no_longer(
    work: StandingWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.message_router.IDLE_SECONDS", 0.2)
    monkeypatch.setattr("proxy.upstream_streams.LEASE_AGAIN_SECONDS", 0.1)
    person = work.person()
    assert "result" in person.call("docs__quick")

    eventually(lambda: work.server.gets and not work.server.open)
    eventually(lambda: set(UpstreamSession.objects.values_list("leased_by", flat=True)) == {None})

    assert answers_of(person.call("docs__it", replying(person)))[0]["result"] == GIVEN
    assert len(work.server.gets) == 2


@pytest.mark.full
@pytest.mark.parametrize("offers_stream", [True, False])
def test_a_session_that_ends_is_listened_to_no_longer(
    work: StandingWork, caplog: pytest.LogCaptureFixture, offers_stream: bool
) -> None:
    work.server.offers_stream = offers_stream
    person = work.person()
    assert "result" in person.call("docs__quick")
    eventually(lambda: work.server.open or not offers_stream)

    with listening(person.agent, "DELETE", **_headers(person)) as ended:
        assert ended.over.wait(PATIENCE)

    eventually(lambda: not work.server.open)
    assert not sessions_of_clients().exists()
    assert "a bus handler failed" not in caplog.text


@pytest.mark.full
def test_the_most_recently_used_sessions_are_listened_to(work: StandingWork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.upstream_streams.MOST_FOR_CALLS", 2)
    first = work.person()
    people = [first, *(Person(first.agent, first.capabilities).initialize() for _ in range(3))]
    for person in people:
        assert "result" in person.call("docs__quick")

    def used_again() -> list[str]:
        """Call in the last two sessions, and return all sessions with an open stream.

        The calls are repeated, because a stream that is still opening is not closed to make room for another.
        """
        assert all("result" in person.call("docs__quick") for person in people[2:])
        return sorted(work.server.open)

    eventually(lambda: used_again() == ["session-2", "session-3"])
    assert answers_of(first.call("docs__it", replying(first)))[0]["result"] == GIVEN


@pytest.mark.full
def test_a_session_dropped_for_another_is_not_listened_to_again(
    work: StandingWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drop a session during a slow scan of all sessions, so that the result of the scan still contains the session."""
    looks: list[Sequence[str]] = []
    has_seen, go = threading.Event(), threading.Event()
    lease = SessionKeeper.lease_rows

    async def slowly(self: SessionKeeper, worker: str, rows: Sequence[str]) -> dict[str, bool]:
        looks.append(rows)
        if len(rows) == 2 and not has_seen.is_set():
            has_seen.set()
            await until(go.is_set)
        return await lease(self, worker, rows)

    monkeypatch.setattr("proxy.upstream_streams.MOST_FOR_CALLS", 2)
    monkeypatch.setattr("proxy.upstream_streams.LEASE_AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(SessionKeeper, "lease_rows", slowly)
    first = work.person()
    people = [first, *(Person(first.agent, first.capabilities).initialize() for _ in range(2))]
    for person in people[:2]:
        assert "result" in person.call("docs__quick")
    assert has_seen.wait(PATIENCE)
    assert "result" in people[2].call("docs__quick")
    eventually(lambda: sorted(work.server.open) == ["session-1", "session-2"])
    go.set()

    seen = len(looks)
    eventually(lambda: len(looks) > seen + 3)
    assert work.server.gets == ["session-0", "session-1", "session-2"]
    eventually(lambda: UpstreamSession.objects.filter(leased_until__gt=timezone.now()).count() == 2)


@pytest.mark.full
def test_sessions_that_begin_at_once_are_not_listened_to_beyond_the_limit(
    work: StandingWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = SessionKeeper.lease_rows

    async def together(self: SessionKeeper, worker: str, rows: Sequence[str]) -> dict[str, bool]:
        await until(lambda: len(work.server.opened) == len(people))
        return await lease(self, worker, rows)

    monkeypatch.setattr("proxy.upstream_streams.MOST_FOR_CALLS", 2)
    monkeypatch.setattr(SessionKeeper, "lease_rows", together)
    first = work.person()
    people = [first, *(Person(first.agent, first.capabilities).initialize() for _ in range(5))]
    with ThreadPoolExecutor(len(people)) as pool:
        for answer in pool.map(lambda person: person.call("docs__quick"), people):
            assert "result" in answer

    assert len({*work.server.gets}) >= 2
    eventually(lambda: len(work.server.open) == 2)


@pytest.mark.full
def test_sessions_whose_clients_listen_no_more_are_given_up_beyond_the_limit(
    work: StandingWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each session has a recent call, which would keep its stream open if the limit were not exceeded."""
    monkeypatch.setattr("proxy.upstream_streams.MOST_FOR_CALLS", 1)
    monkeypatch.setattr("proxy.upstream_streams.LEASE_AGAIN_SECONDS", 0.05)
    first = work.person()
    people = [first, *(Person(first.agent, first.capabilities).initialize() for _ in range(2))]
    with ExitStack() as listeners:
        for person in people:
            listeners.enter_context(listening(person.agent, "GET", **_headers(person)))
            assert "result" in person.call("docs__quick")
            eventually(lambda: [*work.server.open] == work.server.opened)
        assert len(work.server.open) == 3

    eventually(lambda: len(work.server.open) == 1)


POURED = {
    "garbage": b"data: \xff\xfe{{{ no json\n\n",
    "half an event": b'data: {"jsonrpc": "2.0", "method": "half',
    "deep": b"data: " + b"[" * 100_000 + b"]" * 100_000 + b"\n\n",
    "wrong ids": b'data: {"jsonrpc": "2.0", "id": 9, "result": {}}\n\ndata: {"jsonrpc": "2.0", "method": 7}\n\n',
    "no id": b'data: {"jsonrpc": "2.0", "id": {}, "method": "roots/list"}\n\n',
    "params": b'data: {"jsonrpc": "2.0", "method": "notifications/message", "params": 1}\n\n',
    "level": b'data: {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": []}}\n\n',
    "token": b'data: {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": {}}}\n\n',
    "asked": b'data: {"jsonrpc": "2.0", "id": 1, "method": "elicitation/create", "params": []}\n\n',
    "large": b"data: " + b"x" * 300_000 + b"\n\n",
}


@pytest.mark.full
def test_whatever_comes_there_the_calls_go_on_and_are_written_down(
    work: StandingWork, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    monkeypatch.setattr("proxy.upstream_streams.AGAIN_SECONDS", 0.05)
    first = work.person(answer_limit=200_000)
    for name, poured in POURED.items():
        with subtests.test(name):
            work.server.pour = poured
            person = Person(first.agent, first.capabilities).initialize()
            assert "result" in person.call("docs__quick")
            eventually(lambda: work.server.opened[-1] in work.server.gets)
            assert "result" in person.call("docs__quick")

    work.server.pour = b""
    other = Person(first.agent, first.capabilities).initialize()
    assert answers_of(other.call("docs__it", replying(other)))[0]["result"] == GIVEN
    assert {row.outcome for row in Call.objects.filter(method="tools/call")} == {"ok"}


@pytest.mark.full
def test_a_stream_that_breaks_is_opened_again_while_its_session_is_in_use(
    work: StandingWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream_streams.AGAIN_SECONDS", 0.05)
    person = work.person()
    work.server.pour = b"data: no json\n\n"
    assert "result" in person.call("docs__quick")
    eventually(lambda: len(work.server.gets) > 1)
    work.server.pour = b""
    eventually(lambda: [work.server.poured[session] for session in [*work.server.open]] == [b""])

    assert answers_of(person.call("docs__it", replying(person)))[0]["result"] == GIVEN


@pytest.mark.full
def test_a_stream_that_is_slow_to_open_is_let_open_whatever_else_is_looked_at(
    work: StandingWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream_streams.LEASE_AGAIN_SECONDS", 0.02)
    work.server.head_seconds = 0.5
    person = work.person()

    assert answers_of(person.call("docs__it", replying(person)))[0]["result"] == GIVEN
    assert work.server.gets == ["session-0"]


@pytest.mark.full
def test_a_stream_that_opens_in_silence_is_listened_to_before_the_first_call(
    work: StandingWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the server send the response headers only with the first event, as servers on Node do."""
    monkeypatch.setattr("proxy.upstream_streams.OPEN_SECONDS", 0.05)
    work.server.has_head = False
    person = work.person()

    assert "result" in person.call("docs__quick")

    assert work.server.gets == ["session-0"]


def test_messages_between_workers_are_encrypted_and_the_bus_carries_only_ids(
    work: StandingWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    publish = Bus.publish

    async def noted(bus: Bus, topic: str, text: str) -> None:
        told.append(f"{topic} {text}")
        await publish(bus, topic, text)

    async def kept(requests: PendingRequests, uid: str) -> None:
        requests._bell.forget(uid)

    monkeypatch.setattr(Bus, "publish", noted)
    monkeypatch.setattr(PendingRequests, "drop", kept)
    person = work.person()
    assert "result" in person.call("docs__quick")
    elsewhere = Person(work.elsewhere(person), session=person.session)

    assert answers_of(elsewhere.call("docs__it", replying(elsewhere)))[0]["result"] == GIVEN

    asked = [bytes(row.asked) for row in PendingRequest.objects.filter(method="") if row.asked]
    assert asked
    assert not [text for text in asked if b"Who?" in text]
    assert {each.partition(" ")[0] for each in told} >= {"interest", "said", "bid", "carry"}
    assert not [each for each in told if not re.fullmatch(r"[a-z]+( ([0-9a-f-]{36}|[0-9a-f]{32}|\d+))+", each)]


@pytest.fixture(scope="module")
def sdk() -> Iterator[str]:
    """The address of a Python SDK 1 server whose messages name no related request."""
    fixtures.install_v1()
    with fixtures.running("python-v1", "unrelated") as url:
        yield url


REPLIES: dict[str, Object] = {
    "elicitation/create": {"action": "accept", "content": {"username": "Ann", "email": "ann@example.com"}},
    "sampling/createMessage": {"role": "assistant", "content": {"type": "text", "text": "Ann"}, "model": "m"},
    "roots/list": {"roots": [{"uri": "file:///Ann"}]},
}


@pytest.mark.full
def test_a_server_on_the_python_sdk_1_gets_an_answer_to_what_it_asks_without_a_related_request(
    start: Start, sdk: str
) -> None:
    user = make.user(email="ana@example.com")
    gateway = make.gateway(make.introduced(make.server(slug="docs", name="Docs", url=sdk)), slug="work")
    agent = start().agent(make.connection(make.agent(by=user), gateway, user))
    names = ("elicitation", "sampling", "input_required_result_list_roots")

    def reply(heard: Object) -> None:
        if "id" in heard:
            person.say({"id": heard["id"], "result": REPLIES[heard["method"]]})

    person = Person(agent, {}).initialize()
    said = [str(person.call(f"docs__test_{name}", reply)) for name in names]
    assert all("Not supported by this client" in text for text in said), said

    person = Person(agent).initialize()
    said = [str(person.call(f"docs__test_{name}", reply)) for name in names]
    assert all("Ann" in text for text in said), said
    assert [heard["method"] for heard in person.heard if "id" in heard] == [*REPLIES]
    assert "result" in person.call("docs__test_tool_with_logging", reply)
    assert "notifications/message" in [heard["method"] for heard in person.heard]


def _headers(person: Person) -> dict[str, str]:
    return {"Mcp-Session-Id": person.session}


def _calls(work: StandingWork) -> list[str]:
    return [request.body["params"]["name"] for request in work.docs.asked("tools/call")]


def _waiting_rows() -> int:
    return StreamEvent.objects.filter(stream_id=F("session_id")).count()
