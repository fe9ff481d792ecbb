"""The MCP client: it limits what it reads and how long it waits, and detects each server's era correctly."""

import asyncio
import gc
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

import pytest

from tests import upstreams
from tests.asgi_server import App, Receive, Scope, Send, answer, headers_of, live, read
from tests.conftest import Run
from tests.eventually import PATIENCE, until
from tests.proxy.scripted import Request, Script, failing, tool
from tests.workspace import ROOT
from wire import jsonrpc
from wire.client import McpClient
from wire.errors import (
    BadAnswer,
    Busy,
    EraLeft,
    NotRecordable,
    OldTransport,
    TimedOut,
    TooLarge,
    TooManyFeatures,
    Unreachable,
)
from wire.guard import Guard
from wire.http import Transport
from wire.mcp import MODERN, SESSION, Target, ignore
from wire.sessions import declared

WRONG_ERA = -32022


@asynccontextmanager
async def client(**more: Any) -> AsyncIterator[McpClient]:
    guard = Guard((ip_network("127.0.0.0/8"),))
    async with Transport(guard, limit=1 << 20) as transport, McpClient(transport, **more) as client:
        yield client


def target(url: str, era: str = SESSION, **more: Any) -> Target:
    return Target("s", "docs", url, era, 10, 4, "c", None, "")._replace(**more)


# Requests


async def test_while_no_row_can_be_written_no_server_is_asked_and_no_place_is_taken(run: Run) -> None:
    server = run(Script([[tool("it")]]).app())
    async with client(may_begin=lambda: False) as asking:
        with pytest.raises(NotRecordable):
            await asking.ask(target(server.url), "tools/call", {"name": "it"}, ignore)
        assert asking.at_servers() == {"under_way": 0, "waiting": 0}
    assert server.seen == []


async def test_when_too_many_wait_for_a_server_whoever_comes_is_told_so_at_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wire.fair_queue.MOST_WAITING", 1)
    asked = target(run(upstreams.silent()).url, max_concurrent=1)
    async with client(queue_seconds=2 * PATIENCE) as asking:
        holding = [asyncio.create_task(asking.ask(asked, "ping", {}, ignore)) for _ in range(2)]
        await until(lambda: asking.at_servers() == {"under_way": 1, "waiting": 1})

        with pytest.raises(Busy) as raised:
            await asyncio.wait_for(asking.ask(asked, "ping", {}, ignore), PATIENCE)
        assert raised.value.detail == "too many calls wait"

        for task in holding:
            task.cancel()
        await asyncio.gather(*holding, return_exceptions=True)
        assert asking.at_servers() == {"under_way": 0, "waiting": 0}


# Lists


def endless(text: str = "x") -> App:
    """Return a server whose list never ends: each page has one tool and a cursor to another page."""

    async def listed(request: Request) -> None:
        page = int(request.message["params"].get("cursor", 0))
        await request.answer({"tools": [tool(f"t{page}", description=text)], "nextCursor": str(page + 1)})

    return Script(methods={"tools/list": listed}).app()


async def test_a_list_without_end_is_read_for_so_many_pages(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wire.client.MOST_PAGES", 3)
    async with client() as asking:
        listed = await asking.list_features(target(run(endless()).url), "tool", seconds=PATIENCE)
    assert [each.value["name"] for each in listed.definitions] == ["t0", "t1", "t2"]


async def test_a_list_that_is_too_much_is_an_error_and_read_no_further(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = run(endless("x" * 2_000))
    async with client() as asking:
        for bound, most, error in (("MOST_BYTES", 5_000, TooLarge), ("MOST_FEATURES", 2, TooManyFeatures)):
            server.seen.clear()
            with monkeypatch.context() as bounded:
                bounded.setattr(f"wire.client.{bound}", most)
                with pytest.raises(error):
                    await asking.list_features(target(server.url), "tool", seconds=PATIENCE)
            assert len(server.asked("tools/list")) == 3


# Detection of a server's protocol version


async def test_a_server_that_speaks_neither_wire_is_asked_on_both_and_said_to(run: Run) -> None:
    class Stubborn(Script):
        async def serve(self, request: Request, verb: str) -> None:
            await request.fail(WRONG_ERA, "Unsupported protocol version", status=400)

    server = run(Stubborn().app())
    async with client() as asking:
        with pytest.raises(BadAnswer) as raised:
            await asking.probe(target(server.url, ""))
    assert raised.value.detail == "initialize: no version in common"
    assert [seen.method for seen in server.seen] == ["server/discover", "initialize"]


async def test_a_server_that_opens_no_session_any_more_is_sent_no_call_and_looked_into(run: Run) -> None:
    class Changed(Script):
        async def initialize(self, request: Request) -> None:
            await request.fail(WRONG_ERA, "Unsupported protocol version", status=400)

    server = run(Changed().app())
    doubted: list[Target] = []
    async with client(contradicted=doubted.append) as asking:
        with pytest.raises(EraLeft):
            await asking.ask(target(server.url, SESSION), "tools/call", {"name": "it"}, ignore)
    assert (len(doubted), server.asked("tools/call")) == (1, [])


async def test_a_server_that_does_not_say_what_it_is_is_waited_for_as_long_as_for_its_calls(run: Run) -> None:
    async with client() as asking:
        with pytest.raises(TimedOut):
            await asyncio.wait_for(asking.probe(target(run(upstreams.silent()).url, "", timeout_s=0.2)), PATIENCE)


async def test_a_server_that_knows_no_subscriptions_is_told_from_one_that_cannot_say_now(run: Run) -> None:
    class Away(Script):
        async def serve(self, request: Request, verb: str) -> None:
            await request.answer(b"<h1>Bad Gateway</h1>", status=502)

    async with client() as asking:
        for app in (Script().app(), Script(modern=True).app()):
            assert await asking.subscribe(target(run(app).url, MODERN), {}, ignore) is False
        with pytest.raises(BadAnswer):
            await asking.subscribe(target(run(Away().app()).url, MODERN), {}, ignore)


@pytest.mark.parametrize(("code", "is_kept"), [(-32601, True), (-32000, False)])
async def test_a_session_is_lost_only_when_a_ping_is_refused_for_it(code: int, is_kept: bool, run: Run) -> None:
    methods = {"ping": failing(code, "no", status=400), "tools/call": failing(-32602, "no such thing", status=400)}
    script = Script([[tool("it")]], sessions=True, methods=methods)
    server = run(script.app())
    async with client() as asking:
        asked = target(server.url)
        assert (await asking.ask(asked, "tools/call", {"name": "it"}, ignore)).error_code == -32602
        await until(lambda: server.asked("ping"))
        async with asyncio.timeout(PATIENCE):
            for _ in range(5):
                await asking.ask(asked, "tools/list", {}, ignore)
            while not is_kept and len(script.opened) == 1:
                await asking.ask(asked, "tools/list", {}, ignore)
    assert len(script.opened) == (1 if is_kept else 2)


class OldLooking:
    """A server that refuses POST and answers GET with the bytes `stream`. Without `ends`, the response stays open."""

    def __init__(self, stream: bytes, *, ends: bool = True) -> None:
        self.stream = stream
        self.ends = ends

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
            return
        await read(receive)
        if scope["method"] != "GET" or "text/event-stream" not in headers_of(scope)["accept"]:
            await answer(send, 405, b"")
            return
        kind = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        await send({"type": "http.response.body", "body": self.stream, "more_body": not self.ends})
        while not self.ends and (await receive())["type"] != "http.disconnect":
            pass


async def test_only_a_stream_that_begins_with_an_endpoint_is_of_the_old_transport(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wire.client.OLD_SECONDS", 0.3)
    servers = {
        "an endpoint": (OldLooking(b": hello\n\nevent: endpoint\ndata: /messages\n\n"), OldTransport),
        "another event": (OldLooking(b"event: message\ndata: {}\n\n"), BadAnswer),
        "silence": (OldLooking(b": hello\n\n", ends=False), BadAnswer),
        "too much": (OldLooking(b"data: " + b"x" * 70_000 + b"\n\n"), BadAnswer),
    }
    async with client() as asking:
        for name, (server, error) in servers.items():
            with pytest.raises(BadAnswer) as raised:
                await asyncio.wait_for(asking.ask(target(run(server).url), "ping", {}, ignore), PATIENCE)
            assert type(raised.value) is error, name


# State stored per server


async def test_servers_nobody_calls_any_more_leave_nothing_behind(run: Run) -> None:
    idle, busy = run(Script([[tool("it")]], modern=True).app()), run(upstreams.silent())
    async with client() as asking:
        await asking.list_features(target(idle.url, MODERN), "tool", seconds=PATIENCE)
        under_way = asyncio.create_task(asking.ask(target(busy.url, server_id="busy"), "ping", {}, ignore))
        await until(lambda: [*asking._queues] == ["busy"])

        assert asking.at_servers()["under_way"] == 1
        under_way.cancel()
        await asyncio.gather(under_way, return_exceptions=True)
        del under_way
        await until(lambda: gc.collect() and not asking._queues)


# Sessions


def test_capabilities_that_are_none_are_told_to_no_server() -> None:
    several: list[Any] = [None, 5, [], "roots", {}, {"roots": None}, {"experimental": {}}]
    for told in several:
        assert declared(told) == ""


async def test_a_caller_waiting_for_a_session_that_failed_opens_one(run: Run) -> None:
    class Starting(Script):
        async def initialize(self, request: Request) -> None:
            if len(server.asked("initialize")) == 1:
                await request.fail(-32603, "Starting")
            else:
                await super().initialize(request)

    script = Starting([[tool("it")]], sessions=True)
    server = run(script.app())
    async with client() as asking:
        places = target(server.url, max_concurrent=64)
        asked = (asking.ask(places, "tools/list", {}, ignore, person=name) for name in ("ann", "ben"))
        failed, answered = await asyncio.gather(*asked, return_exceptions=True)

    assert isinstance(failed, BadAnswer)
    assert not isinstance(answered, BaseException)
    assert answered.error is None
    assert script.opened == ["session-0"]


async def test_a_session_that_could_not_be_begun_is_ended_at_its_server(run: Run) -> None:
    async def breaks_off(request: Request) -> None:
        await request.send({"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"9")]})
        await request.send({"type": "http.response.body", "body": b""})

    script = Script([[tool("it")]], sessions=True, methods={"notifications/initialized": breaks_off})
    async with client() as asking:
        with pytest.raises(Unreachable):
            await asking.ask(target(run(script.app()).url), "tools/list", {}, ignore)
        await until(lambda: script.ended == ["session-0"])


@pytest.mark.full
async def test_a_server_that_does_not_answer_the_end_of_its_session_is_not_waited_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clinging(Script):
        async def serve(self, request: Request, verb: str) -> None:
            if verb != "DELETE":
                await super().serve(request, verb)
                return
            self.ended.append(request.headers["mcp-session-id"])
            while (await request.receive())["type"] != "http.disconnect":
                pass

    monkeypatch.setattr("wire.sessions.CLOSE_SECONDS", 0.5)
    script = Clinging([[tool("it")]], sessions=True)
    async with asyncio.timeout(PATIENCE), client() as asking:
        await asking.ask(target(run(script.app()).url), "tools/list", {}, ignore)
    assert script.ended == ["session-0"]


class Breaking(Script):
    """A server that breaks off the stream of each call and of each resumption, with or without new events."""

    def __init__(self, *, new: bool) -> None:
        super().__init__([[tool("it")]], sessions=True)
        self.new = new
        self.went_on: list[str] = []

    async def serve(self, request: Request, verb: str) -> None:
        if verb == "GET":
            self.went_on.append(request.headers["last-event-id"])
        elif request.message.get("method") != "tools/call":
            await super().serve(request, verb)
            return
        await request.open_stream()
        part = f"id: {len(self.went_on) if self.new else 0}\nretry: 1\ndata: \n\n"
        await request.send({"type": "http.response.body", "body": part.encode()})


async def test_a_stream_that_breaks_again_and_again_is_gone_on_with_so_many_times_and_sooner_left_without_news(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wire.sessions.MOST_TIMES", 5)
    for new, times in ((False, ["0", "0", "0"]), (True, ["0", "1", "2", "3", "4"])):
        script = Breaking(new=new)
        server = run(script.app())
        async with client() as asking:
            with pytest.raises(Unreachable):
                await asyncio.wait_for(asking.ask(target(server.url), "tools/call", {"name": "it"}, ignore), PATIENCE)
        assert script.went_on == times
        assert len(server.asked("tools/call")) == 1


class BreakingInTheAnswer(Script):
    """A server whose stream breaks in the middle of the event with the answer; a resumption sends that event again."""

    def __init__(self) -> None:
        super().__init__([[tool("it")]], sessions=True)
        self.went_on: list[str] = []

    async def serve(self, request: Request, verb: str) -> None:
        if verb == "GET":
            self.went_on.append(request.headers["last-event-id"])
            await self._send(request, after=int(self.went_on[-1]), cut=0)
        elif request.message.get("method") == "tools/call":
            answer = jsonrpc.dumps({"jsonrpc": "2.0", "id": request.message["id"], "result": {"content": []}})
            self.events = [b"id: 1\nretry: 1\ndata: \n\n", b"id: 2\ndata: " + answer + b"\n\n"]
            await self._send(request, after=0, cut=9)
        else:
            await super().serve(request, verb)

    async def _send(self, request: Request, *, after: int, cut: int) -> None:
        await request.open_stream()
        missing = b"".join(self.events[after:])
        await request.send({"type": "http.response.body", "body": missing[: len(missing) - cut]})


async def test_an_answer_in_whose_middle_the_stream_broke_is_sent_again_by_the_server(run: Run) -> None:
    script = BreakingInTheAnswer()
    server = run(script.app())
    async with client() as asking:
        answer = await asyncio.wait_for(asking.ask(target(server.url), "tools/call", {"name": "it"}, ignore), PATIENCE)

    assert answer.document["result"] == {"content": []}
    assert script.went_on == ["1"]
    assert len(server.asked("tools/call")) == 1


FORKS = """
import os
from wire.mcp import next_request_id

next_request_id()
reading, writing = os.pipe()
if os.fork() == 0:
    os.write(writing, str(next_request_id()).encode())
    os._exit(0)
print(os.read(reading, 20).decode(), next_request_id())
"""


@pytest.mark.full
def test_workers_send_other_ids_in_the_sessions_that_they_share() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], cwd=ROOT, capture_output=True, text=True, check=True)

    first, second = map(int, done.stdout.split())
    assert max(first, second) < 2**31, "some servers read ids as 32 bits"
    assert abs(first - second) > 1
    assert len(str(first)) == len(str(second)) == 10
