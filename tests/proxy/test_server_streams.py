"""Notifications of servers to listening clients."""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db.models import F

from auditlog.models import Call
from gateways.models import Assignment, Feature, IdentityScheme
from proxy.message_router import Carrier
from proxy.models import PendingRequest, StreamEvent
from proxy.store.bus import PendingRequests
from proxy.store.events import StreamEvents
from proxy.store.sessions import SessionKeeper
from proxy.streams import Streams
from servers.models import AuthType, Server
from tests import make
from tests.asgi_server import Receive, Scope, Send, answer, read
from tests.conformance.counter import SESSION_ERA, Counter, Event, begin_stream, event
from tests.conftest import Run
from tests.eventually import PATIENCE
from tests.proxy.asking import Person
from tests.proxy.conftest import Start, eventually, sql
from tests.proxy.listening import Listener, listening
from tests.proxy.scripted import Request
from tests.proxy.test_cancel import Work
from tests.proxy.test_failing_parts import UNAVAILABLE
from tests.proxy.test_session_calls import StandingAsker, slow, standing_work
from tests.proxy.test_standing_streams import TOOLS_CHANGED, in_session, listen
from tests.proxy.test_subscriptions import MAPPED, URI, Library, LibraryWork, heard_of, updated

CHANGED = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}


class Talker(Counter):
    """A `Counter` that also sends each message in `say` on its standing streams."""

    def __init__(self) -> None:
        super().__init__(SESSION_ERA)
        self.say: list[dict[str, Any]] = []
        self.answers: list[Any] = []
        self.open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET":
            await self._talk(receive, send)
            return
        if scope["type"] == "http" and scope["method"] == "POST":
            body = await read(receive)
            message = json.loads(body)
            if "method" not in message:
                self.answers.append(message)

            async def again() -> Any:
                return {"type": "http.request", "body": body, "more_body": False}

            await super().__call__(scope, again, send)
            return
        await super().__call__(scope, receive, send)

    async def _talk(self, receive: Receive, send: Send) -> None:
        await read(receive)
        said = len(self.say)  # Read before the test can see the stream and add messages.
        self.seen.append(Event("get", None))
        self.open += 1
        await begin_stream(send)
        left = asyncio.ensure_future(receive())
        while not left.done():
            new = self.say[said:]
            said += len(new)
            for message in new:
                await send({"type": "http.response.body", "body": event(message), "more_body": True})
            await asyncio.wait([left], timeout=0.02)
        self.open -= 1


class TalkingWork(Work):
    """Two workers with a talking server."""

    def __init__(self, start: Start, run: Run) -> None:
        self.counter = self.talker = Talker()
        self.gateway = make.gateway(slug="work")
        self.assignment = make.assignment(self.gateway, make.server(slug="docs", url=run(self.talker).url))
        Feature.objects.learn(self.assignment, [{"name": "count", "inputSchema": {"type": "object"}}])
        self.proxies = [start() for _ in range(2)]


@pytest.fixture
def work(start: Start, run: Run, monkeypatch: pytest.MonkeyPatch) -> TalkingWork:
    monkeypatch.setattr("proxy.upstream_streams.LEASE_AGAIN_SECONDS", 0.3)
    monkeypatch.setattr("proxy.upstream_streams.LOOK_AGAIN_SECONDS", 0.4)
    return TalkingWork(start, run)


@pytest.mark.full
def test_a_session_that_is_opened_while_a_client_listens_is_listened_to_as_well(work: TalkingWork) -> None:
    agent = in_session(work.agent())
    with listening(agent, "GET") as stream:
        assert stream.begun.wait(PATIENCE)
        assert "result" in agent.call("docs__count").json()
        eventually(lambda: work.talker.open == 1)


def test_a_client_that_left_before_it_could_be_asked_is_not_waited_for(
    work: TalkingWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, asked, left = PendingRequests.add, threading.Event(), threading.Event()

    async def slowly(pending: PendingRequests, *given: Any) -> None:
        await add(pending, *given)
        asked.set()
        await asyncio.to_thread(left.wait, PATIENCE)

    monkeypatch.setattr(PendingRequests, "add", slowly)
    person = Person(work.agent(), {"roots": {}}).initialize()
    assert "result" in person.call("docs__count")
    with listening(person.agent, "GET", **person.headers):
        eventually(lambda: work.talker.open == 1)
        work.talker.say.append({"jsonrpc": "2.0", "id": "r", "method": "roots/list"})
        assert asked.wait(PATIENCE)
    eventually(lambda: Call.objects.filter(method="GET").count() == 2)  # The rows of its start and its end.
    left.set()
    eventually(lambda: work.talker.answers)
    assert [(answer["id"], answer["error"]["message"]) for answer in work.talker.answers] == [("r", "The call is over")]
    assert not PendingRequest.objects.exists()


# When something fails


@pytest.fixture
def library_work(start: Start, run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LibraryWork]:
    """Return a function that makes a gateway with a given library; the gateway checks for subscribers often."""
    monkeypatch.setattr("proxy.upstream_streams.LEASE_AGAIN_SECONDS", 0.2)
    monkeypatch.setattr("proxy.upstream_streams.LOOK_AGAIN_SECONDS", 0.3)
    monkeypatch.setattr("proxy.upstream_streams.AGAIN_SECONDS", 0.1)
    return lambda library: LibraryWork(start, run, library=library, is_modern=library.is_modern)


class Faulty(Library):
    """A library that answers 500 to the methods in `failing`; `failed` counts these answers."""

    def __init__(self) -> None:
        super().__init__(is_modern=False)
        self.failing: set[str] = set()
        self.failed = 0

    async def _answer(self, message: dict[str, Any], receive: Receive, send: Send) -> None:
        if message.get("method") in self.failing:
            self.failed += 1
            await answer(send, 500, b"")
            return
        await super()._answer(message, receive, send)


@pytest.mark.full
def test_servers_are_listened_to_although_for_a_moment_nobody_could_find_out_which(
    library_work: Callable[..., LibraryWork], monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, failed = SessionKeeper.lease, [0]

    async def fails(keeper: SessionKeeper, *given: Any) -> Any:
        if failed[0] < 3:
            failed[0] += 1
            raise UNAVAILABLE if failed[0] < 3 else ValueError("a fault")
        return await lease(keeper, *given)

    work = library_work(Library(is_modern=False))
    monkeypatch.setattr(SessionKeeper, "lease", fails)
    with listening(in_session(work.client), "GET") as stream:
        assert stream.begun.wait(PATIENCE)
        eventually(lambda: work.library.open == 1)
        assert failed == [3]
        work.library.say.append(CHANGED)
        assert stream.wait_for(1) == [TOOLS_CHANGED]


@pytest.mark.full
def test_a_server_that_fails_while_a_session_is_opened_for_who_listens_is_tried_again(
    library_work: Callable[..., LibraryWork],
) -> None:
    library = Faulty()
    work = library_work(library)
    agent = in_session(work.client)
    library.failing = {"initialize"}
    with listening(agent, "GET") as stream:
        assert stream.begun.wait(PATIENCE)
        eventually(lambda: library.failed > 1)
        library.failing = set()
        eventually(lambda: library.open == 1)
        library.say.append(CHANGED)
        assert TOOLS_CHANGED in stream.wait_for(1)


@pytest.mark.full
def test_a_subscription_that_a_server_lost_and_did_not_take_at_once_is_renewed_and_its_client_told(
    library_work: Callable[..., LibraryWork],
) -> None:
    library = Faulty()
    work = library_work(library)
    assert "result" in work.client.ask("resources/read", {"uri": MAPPED}).json()
    eventually(lambda: work.announced().get("subscribe"))
    body, headers = listen({"resourceSubscriptions": [MAPPED]})
    with listening(work.client, "POST", body, **headers) as stream:
        stream.wait_for(1)
        eventually(lambda: heard_of(library))
        library.failing = {"resources/subscribe"}
        library.restart()
        eventually(lambda: library.failed > 1)
        known, asked = len(stream.events), len(library.of("resources/subscribe"))
        library.failing = set()
        eventually(lambda: len(library.of("resources/subscribe")) > asked)
        eventually(lambda: len(stream.events) > known)


@pytest.mark.full
@pytest.mark.parametrize("is_modern", [False, True], ids=["session server", "modern server"])
def test_a_server_whose_credential_cannot_be_read_is_listened_to_once_it_can(
    library_work: Callable[..., LibraryWork], is_modern: bool
) -> None:
    work = library_work(Library(is_modern=is_modern))
    Server.objects.filter(pk=work.assignment.server_id).update(auth_type=AuthType.BEARER)
    identity = make.identity(Server.objects.get(pk=work.assignment.server_id))
    identity.gateways.add(work.gateway)
    Assignment.objects.filter(pk=work.assignment.pk).update(
        identity_scheme=IdentityScheme.SHARED, shared_identity=identity
    )
    assert "result" in work.client.ask("resources/read", {"uri": MAPPED}).json()
    eventually(lambda: work.announced().get("subscribe"))
    sealed = bytes(identity.secret_ciphertext or b"")
    sql("UPDATE servers_identity SET secret_ciphertext = 'no such key'")
    body, headers = listen({"toolsListChanged": True})
    with listening(work.client, "POST", body, **headers) as stream:
        stream.wait_for(1)
        refused = work.client.ask("resources/read", {"uri": MAPPED}).json()
        assert refused["error"]["data"]["reason"] == "identity_unreadable"
        assert work.library.open == 0
        sql("UPDATE servers_identity SET secret_ciphertext = %s", sealed)
        eventually(lambda: work.library.open == 1)
        work.library.say.append(CHANGED)
        assert stream.wait_for(2)[1]["method"] == CHANGED["method"]


@pytest.mark.full
def test_the_stream_of_a_server_is_read_again_after_what_it_said_could_not_be_passed_on(
    work: TalkingWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream_streams.AGAIN_SECONDS", 0.05)
    tell, failed = Carrier.tell, list[Any]()

    async def fails(carrier: Carrier, *given: Any) -> None:
        if not failed:
            failed.append(given)
            raise ValueError("a fault")
        await tell(carrier, *given)

    agent = in_session(work.agent())
    assert "result" in agent.call("docs__count").json()
    logged = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "error", "data": "x"}}
    with listening(agent, "GET") as stream:
        eventually(lambda: work.talker.open == 1)
        monkeypatch.setattr(Carrier, "tell", fails)
        gets = len(work.talker.events("get"))
        work.talker.say.append(logged)
        eventually(lambda: len(work.talker.events("get")) > gets)
        eventually(lambda: work.talker.open == 1)
        work.talker.say.append(logged)
        assert stream.wait_for(1)[0]["params"]["data"] == "x"


def held(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> tuple[threading.Event, threading.Event]:
    """Block this method. Return two events: a call of the method sets the first one; the second one unblocks it."""
    goes_on, begun, may_go_on = getattr(owner, name), threading.Event(), threading.Event()

    async def slowly(*given: Any) -> Any:
        begun.set()
        await asyncio.to_thread(may_go_on.wait, PATIENCE)
        return await goes_on(*given)

    monkeypatch.setattr(owner, name, slowly)
    return begun, may_go_on


@pytest.mark.full
@pytest.mark.parametrize("late", ["the stream", "the row"])
def test_messages_while_a_clients_stream_begins_are_sent_on_it(
    work: TalkingWork, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    waiting = StreamEvent.objects.filter(stream_id=F("session_id"))
    agent = in_session(work.agent())
    assert "result" in agent.call("docs__count").json()
    eventually(lambda: work.talker.open == 1)
    owner, name = (Streams, "serve") if late == "the stream" else (StreamEvents, "keep")
    begun, may_go_on = held(monkeypatch, owner, name)
    logged = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "error", "data": "x"}}
    if late == "the row":
        work.talker.say.append(logged)
        assert begun.wait(PATIENCE)
    with listening(agent, "GET") as stream:
        if late == "the stream":
            assert begun.wait(PATIENCE)
            work.talker.say.append(logged)
            eventually(waiting.exists)
        else:
            eventually(lambda: stream.pings or stream.ids)  # The stream is registered before its first byte.
        may_go_on.set()
        assert stream.wait_for(1)[0]["params"]["data"] == "x"
    assert not waiting.exists()


@pytest.mark.full
def test_the_listen_at_a_server_that_ended_is_begun_again(library_work: Callable[..., LibraryWork]) -> None:
    library = Library(is_modern=True)
    work = library_work(library)
    with listening(in_session(work.client), "GET") as stream:
        assert stream.begun.wait(PATIENCE)
        eventually(lambda: library.open == 1)
        library.cut()
        eventually(lambda: len(library.of("subscriptions/listen")) == 2)
        eventually(lambda: library.open == 1)
        known = len(stream.events)
        library.say.append(CHANGED)
        assert TOOLS_CHANGED in stream.wait_for(known + 1)[known:]


class Forgetful(StandingAsker):
    """A server that treats the session of each stream request as unknown while `forgets` is set."""

    forgets = True

    async def serve(self, request: Request, verb: str) -> None:
        if verb == "GET" and self.forgets:
            self.gets.append(request.headers["mcp-session-id"])
            await request.answer(b"", status=404)
            return
        await super().serve(request, verb)


@pytest.mark.full
def test_a_session_that_could_not_be_listened_to_for_calls_is_tried_anew_for_a_client_that_listens(
    start: Start, run: Run
) -> None:
    server = Forgetful()
    person = standing_work(server, start, run).person()
    assert "result" in person.call("docs__quick")
    eventually(lambda: server.gets == ["session-0"])
    server.forgets = False
    with listening(person.agent, "GET", **person.headers):
        eventually(lambda: [*server.open] == ["session-0"])


@pytest.mark.full
def test_a_call_does_without_a_stream_while_others_have_all_there_may_be(
    start: Start, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream_streams.MOST_FOR_CALLS", 1)
    server = StandingAsker()
    work = standing_work(server, start, run)
    first = work.person()
    second = Person(first.agent, first.capabilities).initialize()
    with listening(first.agent, "POST", slow(), **first.headers) as under_way:
        eventually(lambda: work.docs.asked("tools/call"))
        assert "result" in second.call("docs__quick")
        assert [*server.open] == server.gets == ["session-0"]
        server.go.set()
        assert under_way.over.wait(PATIENCE)
    third = Person(first.agent, first.capabilities).initialize()
    assert "result" in third.call("docs__quick")
    eventually(lambda: [*server.open] == ["session-2"])


@pytest.mark.full
def test_an_update_is_told_once_to_who_listens_for_it_and_to_nobody_else(
    library_work: Callable[..., LibraryWork],
) -> None:
    library, also = Library(is_modern=False), f"{MAPPED}-too"
    work = library_work(library)
    assert "result" in work.client.ask("resources/read", {"uri": also}).json()
    one, headers = listen({"resourceSubscriptions": [MAPPED]})
    other, _ = listen({"resourceSubscriptions": [also]})
    both, _ = listen({"resourceSubscriptions": [MAPPED, also]})
    with (
        listening(work.client, "POST", one, **headers) as mine,
        listening(work.client, "POST", other, **headers) as of_another,
        listening(work.agent("bob"), "POST", both, **headers) as bobs,
    ):
        for stream in (mine, of_another, bobs):
            assert stream.wait_for(1)[0]["params"]["notifications"]["resourceSubscriptions"]
        eventually(lambda: library.open == 2)
        updated(library, mine, 1)
        updated(library, bobs, 1)

        def told(stream: Listener, uri: str) -> int:
            return [event["params"].get("uri") for event in stream.events].count(uri)

        library.update(f"{URI}-too")  # Sent last: once this arrives, the others have arrived.
        eventually(lambda: (told(of_another, also), told(bobs, also)) == (1, 1))
        before = told(mine, MAPPED), told(bobs, MAPPED)
        library.say.append({"jsonrpc": "2.0", "method": "notifications/of_the_future"})
        library.update()
        library.update(f"{URI}-too")
        eventually(lambda: (told(of_another, also), told(bobs, also)) == (2, 2))
        eventually(lambda: (told(mine, MAPPED), told(bobs, MAPPED)) == (before[0] + 1, before[1] + 1))
    assert [len(stream.events) for stream in (mine, of_another, bobs)] == [before[0] + 2, 3, before[1] + 4]
