"""Subscriptions to resources, and list notifications of servers of both eras."""

import asyncio
import json
import threading
import time
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import pytest

from gateways.models import Feature
from proxy.models import ServerInfo, Session, UpstreamSession
from proxy.store.sessions import session_digest
from servers.models import Era, Server
from tests import make
from tests.asgi_server import Receive, Scope, Send, answer, headers_of, live, parsed, read
from tests.conformance.counter import MODERN, begin_stream, event, respond
from tests.conftest import Run
from tests.eventually import PATIENCE
from tests.proxy.asking import BOTH
from tests.proxy.conftest import Agent, Start, eventually
from tests.proxy.features import offer
from tests.proxy.listening import Listener, listening
from tests.proxy.scripted import offering
from tests.proxy.test_cancel import Work
from tests.proxy.test_standing_streams import TOOLS_CHANGED, in_session, listen

type Json = dict[str, Any]

URI = "news://today"
MAPPED = f"gateway://docs/{quote(URI, safe='')}"
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
OFFERED = {"tools": {"listChanged": True}, "resources": {"subscribe": True, "listChanged": True}}


class Library:
    """A server of one era, with resources. It sends the messages in `say` on its standing streams."""

    def __init__(self, *, is_modern: bool) -> None:
        self.is_modern = is_modern
        self.say: list[Json] = []
        self.asked: list[Json] = []
        self.open = 0
        self.session = 0
        self.cuts = 0
        self.gives_ids = False
        self.resumed: list[str] = []

    def cut(self) -> None:
        """End the streams; the session continues."""
        self.cuts += 1

    def restart(self) -> None:
        """Forget the session, and end its stream."""
        self.session += 1

    def of(self, method: str) -> list[Json]:
        """Return the params of all requests with this method."""
        return [message.get("params", {}) for message in self.asked if message.get("method") == method]

    def update(self, uri: str = URI) -> None:
        self.say.append({"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": uri}})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
            return
        body = await read(receive)
        message = parsed(body) if scope["method"] == "POST" else {"method": scope["method"]}
        assert isinstance(message, dict)
        speaks_modern = headers_of(scope).get("mcp-protocol-version") == MODERN
        if speaks_modern != self.is_modern:
            error = {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "Unsupported"}}
            await answer(send, 400, json.dumps(error).encode())
            return
        if not self.is_modern and headers_of(scope).get("mcp-session-id", own := str(self.session)) != own:
            await answer(send, 404, b"")
            return
        if scope["method"] == "GET" and "last-event-id" in headers_of(scope):
            self.resumed.append(headers_of(scope)["last-event-id"])
        await self._answer(message, receive, send)

    async def _answer(self, message: Json, receive: Receive, send: Send) -> None:
        self.asked.append(message)
        match message.get("method", ""):
            case "GET" | "subscriptions/listen" as method:
                await self._talk(method, receive, send)
            case "initialize":
                info = {"protocolVersion": "2025-11-25", "capabilities": OFFERED, "serverInfo": {"name": "library"}}
                await respond(send, message, info, [(b"mcp-session-id", b"%d" % self.session)])
            case "server/discover":
                await respond(send, message, {"supportedVersions": [MODERN], "capabilities": OFFERED})
            case "tools/list":
                await respond(send, message, {"tools": [{"name": "it", "inputSchema": {"type": "object"}}]})
            case "resources/read":
                await respond(send, message, {"contents": [{"uri": message["params"]["uri"], "text": ""}]})
            case "tools/call" if updates := message["params"].get("arguments", {}).get("updates"):
                told = {"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": updates}}
                result = {"jsonrpc": "2.0", "id": message["id"], "result": {"content": []}}
                await begin_stream(send)
                await send({"type": "http.response.body", "body": event(told) + event(result)})
            case _ if "id" in message and "method" in message:
                await respond(send, message, {})
            case _:
                await answer(send, 202, b"")

    async def _talk(self, method: str, receive: Receive, send: Send) -> None:
        said, begun = len(self.say), (self.session, self.cuts)  # Read before the test can see the stream.
        self.open += 1
        await begin_stream(send)
        if method != "GET":
            told = {"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": {}}
            await send({"type": "http.response.body", "body": event(told), "more_body": True})
        left = asyncio.ensure_future(receive())
        while not left.done() and begun == (self.session, self.cuts):
            new = [*enumerate(self.say[said:], said + 1)]
            said += len(new)
            for number, message in new:
                own_id = b"id: %d\n" % number if self.gives_ids else b""
                await send({"type": "http.response.body", "body": own_id + event(message), "more_body": True})
            await asyncio.wait([left], timeout=0.02)
        self.open -= 1


class LibraryWork(Work):
    """A gateway at two workers, with a library and another server. The gateway knows the library's capabilities."""

    def __init__(self, start: Start, run: Run, *, is_modern: bool = False, library: Library | None = None) -> None:
        self.library = library or Library(is_modern=is_modern)
        self.gateway = make.gateway(slug="work")
        docs = make.server(slug="docs", url=run(self.library).url)
        self.assignment = make.assignment(self.gateway, docs)
        make.assignment(self.gateway, make.server(slug="other", url=run(offering("x")).url), alias="other")
        Feature.objects.learn(self.assignment, [{"name": "it", "inputSchema": {"type": "object"}}])
        self.proxies = [start() for _ in range(2)]
        self.client = self.agent()
        assert "result" in self.client.ask("tools/list").json()
        assert "result" in self.client.ask("resources/read", {"uri": MAPPED}).json()
        eventually(lambda: self.announced().get("subscribe"))

    def announced(self) -> Json:
        told = self.client.ask("initialize", {"protocolVersion": "2025-11-25"}).json()["result"]["capabilities"]
        found: Json = told.get("resources", {})
        return found


@pytest.fixture(params=[False, True], ids=["session server", "modern server"])
def work(request: pytest.FixtureRequest, start: Start, run: Run) -> LibraryWork:
    return LibraryWork(start, run, is_modern=request.param)


def subscribe(agent: Agent, uri: str = MAPPED, verb: str = "subscribe") -> Json:
    found: Json = agent.ask(f"resources/{verb}", {"uri": uri}).json()
    return found


def not_asked_any_more(library: Library) -> bool:
    return "resourceSubscriptions" not in library.of("subscriptions/listen")[-1]["notifications"]


def heard_of(library: Library) -> bool:
    """Return True if the gateway has subscribed at the server, with the server's own URI, and has a stream open."""
    if library.is_modern:
        asked = library.of("subscriptions/listen")
        return library.open > 0 and any(URI in each["notifications"].get("resourceSubscriptions", ()) for each in asked)
    return library.open > 0 and {"uri": URI} in library.of("resources/subscribe")


def updated(library: Library, stream: Listener, known: int) -> Json:
    """Send updates until the stream has more than `known` events, and return the first of the new events."""

    def is_told() -> bool:
        library.update()
        with suppress(AssertionError):
            stream.wait_for(known + 1, seconds=0.5)
        return len(stream.events) > known

    eventually(is_told)
    found: Json = stream.events[known]
    return found


def test_a_session_that_subscribed_is_told_of_updates_under_the_uri_it_knows(work: LibraryWork) -> None:
    agent = in_session(work.client)
    with listening(work.elsewhere(agent), "GET") as stream:
        assert stream.begun.wait(PATIENCE)
        assert subscribe(agent)["result"] == {}
        eventually(lambda: heard_of(work.library))
        told = {"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": MAPPED}}
        assert updated(work.library, stream, 0) == told
        assert subscribe(agent, verb="unsubscribe")["result"] == {}
        if work.library.is_modern:
            eventually(lambda: not_asked_any_more(work.library))
        else:
            assert work.library.of("resources/unsubscribe") == [{"uri": URI}]


def test_a_listen_is_told_of_updates_under_the_uri_it_knows(work: LibraryWork) -> None:
    body, headers = listen({"resourceSubscriptions": [MAPPED, "nobodys://x", "", "two\nlines", "nul\0"]})
    with listening(work.client, "POST", body, **headers) as stream:
        (first,) = stream.wait_for(1)
        assert first["params"]["notifications"] == {"resourceSubscriptions": [MAPPED]}
        eventually(lambda: heard_of(work.library))
        told = updated(work.library, stream, 1)
        assert told["method"] == "notifications/resources/updated"
        assert told["params"] == {"uri": MAPPED, "_meta": {SUBSCRIPTION: "sub"}}
    eventually(lambda: work.library.open == 0)
    if not work.library.is_modern:
        # Listeners at other workers share the connection's session, so it stays subscribed.
        assert work.library.of("resources/unsubscribe") == []


@pytest.mark.full
@pytest.mark.parametrize("work", [False], indirect=True)
def test_unreadable_resources_cannot_be_subscribed_to_and_no_call_tells_of_them(work: LibraryWork) -> None:
    agent, call = in_session(work.client), {"name": "docs__it", "arguments": {"updates": URI}}
    assert MAPPED in agent.ask("tools/call", call, accept=BOTH).text
    offer(URI, "resource", enabled=False)
    answer = agent.ask("tools/call", call, accept=BOTH).text
    assert (MAPPED in answer, '"content"' in answer) == (False, True)
    refused = subscribe(agent)["error"]
    assert (refused["code"], refused["data"]["reason"]) == (-32003, "resource_disabled")
    body, headers = listen({"resourceSubscriptions": [MAPPED]})
    with listening(work.client, "POST", body, **headers) as stream:
        assert stream.wait_for(1)[0]["params"]["notifications"] == {}
    assert not heard_of(work.library)


@pytest.mark.full
@pytest.mark.parametrize("work", [True], indirect=True)
def test_a_list_that_a_server_says_has_changed_is_asked_for_and_told(work: LibraryWork) -> None:
    body, headers = listen({"toolsListChanged": True})
    asked = len(work.library.of("tools/list"))
    with listening(work.client, "POST", body, **headers) as stream:
        stream.wait_for(1)
        assert work.library.open == 1  # The gateway acknowledged once it listened to the server.
        work.library.say.append(TOOLS_CHANGED)
        assert stream.wait_for(2)[1]["method"] == TOOLS_CHANGED["method"]
        eventually(lambda: len(work.library.of("tools/list")) > asked)


class SlowLists(Library):
    """A server whose answers to tools/list wait until `go` is set. `go` is set at the start; tests clear it."""

    def __init__(self) -> None:
        super().__init__(is_modern=False)
        self.go = threading.Event()
        self.go.set()

    async def _answer(self, message: Json, receive: Receive, send: Send) -> None:
        await super()._answer(message, receive, send if self.go.is_set() else self._later(message, send))

    def _later(self, message: Json, send: Send) -> Send:
        async def later(sent: Any) -> None:
            if message.get("method") == "tools/list":
                await asyncio.to_thread(self.go.wait, PATIENCE)
            await send(sent)

        return later


@pytest.mark.full
def test_a_list_that_changes_again_while_it_is_asked_for_is_asked_for_once_more(start: Start, run: Run) -> None:
    library = SlowLists()
    work = LibraryWork(start, run, library=library)
    with listening(in_session(work.client), "GET") as stream:
        eventually(lambda: library.open == 1)
        library.go.clear()
        asked = len(library.of("tools/list"))
        library.say.append(TOOLS_CHANGED)
        eventually(lambda: len(library.of("tools/list")) == asked + 1)
        library.say += [TOOLS_CHANGED, TOOLS_CHANGED, {"jsonrpc": "2.0", "id": "p", "method": "ping"}]
        # Earlier messages have been received when this is answered.
        eventually(lambda: {"jsonrpc": "2.0", "id": "p", "result": {}} in library.asked)
        stream.wait_for(1)
        assert len(library.of("tools/list")) == asked + 1
        library.go.set()
        eventually(lambda: len(library.of("tools/list")) == asked + 2)


@pytest.mark.full
def test_a_session_is_subscribed_to_a_bounded_number_of_resources(
    start: Start, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.store.sessions.MOST_SUBSCRIPTIONS", 1)
    work = LibraryWork(start, run, is_modern=False)
    agent = in_session(work.client)

    assert subscribe(agent)["result"] == {}
    refused = subscribe(agent, f"{MAPPED}-too")["error"]

    assert (refused["code"], "too many resources" in refused["message"]) == (-32602, True)
    assert Session.objects.get(digest=session_digest(agent.headers["Mcp-Session-Id"])).subscriptions == [MAPPED]


@pytest.mark.full
def test_one_worker_listens_for_all_and_another_when_its_client_leaves(work: LibraryWork) -> None:
    agent = in_session(work.client)
    assert "result" in agent.ask("resources/read", {"uri": MAPPED}).json()
    with listening(work.elsewhere(agent), "GET") as later:
        with listening(agent, "GET") as stream:
            assert stream.begun.wait(PATIENCE)
            eventually(lambda: work.library.open == 1)
            time.sleep(0.5)
            assert work.library.open == 1
        assert later.begun.wait(PATIENCE)
        time.sleep(1)
        eventually(lambda: work.library.open == 1)
        work.library.say.append(TOOLS_CHANGED)
        assert TOOLS_CHANGED in later.wait_for(1)
    eventually(lambda: work.library.open == 0)


@pytest.mark.full
def test_a_listen_that_nobody_needs_any_more_leaves_no_row(start: Start, run: Run) -> None:
    work = LibraryWork(start, run, is_modern=True)
    agent = in_session(work.client)
    listens = UpstreamSession.objects.filter(version=MODERN)
    with listening(agent, "GET") as stream:
        assert stream.begun.wait(PATIENCE)
        eventually(lambda: work.library.open == 1)
        assert subscribe(agent)["result"] == {}
        eventually(lambda: heard_of(work.library))
        assert subscribe(agent, verb="unsubscribe")["result"] == {}
        eventually(lambda: not_asked_any_more(work.library))
        eventually(lambda: listens.count() == 1)
    eventually(lambda: not listens.exists())


@pytest.mark.full
def test_an_unsolicited_server_request_is_sent_on_the_stream_of_the_session(start: Start, run: Run) -> None:
    work = LibraryWork(start, run, is_modern=False)
    params = {
        "protocolVersion": "2025-11-25",
        "capabilities": {"roots": {}},
        "clientInfo": {"name": "a", "version": "1"},
    }
    session = work.client.ask("initialize", params).headers["mcp-session-id"]
    agent = Agent(work.client.url, work.client.secret, {"Mcp-Session-Id": session})
    with listening(work.elsewhere(agent), "GET") as stream:
        eventually(lambda: work.library.open == 1)
        work.library.say.append({"jsonrpc": "2.0", "id": "r", "method": "roots/list"})
        (asked,) = stream.wait_for(1)
        assert asked["method"] == "roots/list"
        reply = {"jsonrpc": "2.0", "id": asked["id"], "result": {"roots": []}}
        assert agent.post(reply).status_code == 202
        eventually(lambda: {"jsonrpc": "2.0", "id": "r", "result": {"roots": []}} in work.library.asked)


@pytest.mark.full
def test_a_subscription_without_a_session_is_answered_and_not_stored(start: Start, run: Run) -> None:
    work = LibraryWork(start, run, is_modern=False)
    in_session(work.client)
    for verb in ("subscribe", "unsubscribe", "subscribe"):
        assert subscribe(work.client, verb=verb)["result"] == {}
    assert set(map(tuple, Session.objects.values_list("subscriptions", flat=True))) == {()}


UPDATE = {"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": MAPPED}}


@pytest.fixture
def session_work(start: Start, run: Run, monkeypatch: pytest.MonkeyPatch) -> LibraryWork:
    monkeypatch.setattr("proxy.upstream_streams.AGAIN_SECONDS", 0.1)
    return LibraryWork(start, run, is_modern=False)


@pytest.mark.full
def test_a_client_that_listens_learns_that_a_server_lost_its_session(session_work: LibraryWork) -> None:
    library, agent = session_work.library, in_session(session_work.client)
    with listening(agent, "GET") as stream:
        assert stream.begun.wait(PATIENCE)
        assert subscribe(session_work.elsewhere(agent))["result"] == {}
        eventually(lambda: heard_of(library))
        library.restart()
        assert stream.over.wait(PATIENCE)
    assert agent.ask("ping").status_code == 404


@pytest.mark.full
def test_a_client_whose_stream_is_opened_again_is_subscribed_and_told_what_may_have_changed(
    session_work: LibraryWork,
) -> None:
    library, agent = session_work.library, in_session(session_work.client)
    assert subscribe(agent)["result"] == {}
    assert library.of("resources/subscribe") == [{"uri": URI}]
    with listening(session_work.elsewhere(agent), "GET") as stream:
        assert stream.wait_for(1) == [UPDATE]
        eventually(lambda: library.of("resources/subscribe") == [{"uri": URI}] * 2)


@pytest.mark.full
def test_a_session_is_told_what_may_have_changed_if_servers_can_subscribe_in_its_era(session_work: LibraryWork) -> None:
    agent = in_session(session_work.client)
    assert subscribe(agent)["result"] == {}
    Server.objects.filter(slug="docs").update(protocol_era=Era.BOTH)
    ServerInfo.objects.filter(capabilities__has_key="resources").update(modern_capabilities={"tools": {}})
    with listening(session_work.elsewhere(agent), "GET") as stream:
        assert stream.wait_for(1) == [UPDATE]


@pytest.mark.full
@pytest.mark.parametrize("gives_ids", [True, False], ids=["with ids", "without"])
def test_the_stream_of_a_server_is_gone_on_with_where_it_broke_or_the_client_is_told_what_may_be(
    session_work: LibraryWork, gives_ids: bool
) -> None:
    library, agent = session_work.library, in_session(session_work.client)
    library.gives_ids = gives_ids
    with listening(agent, "GET") as stream:
        assert stream.begun.wait(PATIENCE)
        assert subscribe(agent)["result"] == {}
        eventually(lambda: heard_of(library))
        assert updated(library, stream, 0) == UPDATE
        known, gets = len(stream.events), len([message for message in library.asked if message.get("method") == "GET"])
        library.cut()
        eventually(lambda: len([each for each in library.asked if each.get("method") == "GET"]) > gets)
        assert len(library.resumed) == (1 if gives_ids else 0)
        eventually(lambda: library.open == 1)
        if not gives_ids:
            assert stream.wait_for(known + 1)[known] == UPDATE
        assert updated(library, stream, len(stream.events)) == UPDATE
