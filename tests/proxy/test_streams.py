"""Progress is streamed as it happens. Disconnecting cancels the call of a modern client, not of a session-era one."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any

import httpx
import pytest

from gateways.models import Gateway
from tests import make, upstreams
from tests.asgi_server import App, Upstream
from tests.conftest import Run
from tests.eventually import PATIENCE
from tests.proxy.conftest import Agent, Proxy, Start, eventually, in_words
from tests.proxy.scripted import Request, calling
from tests.proxy.test_endpoint import modern

BOTH = "application/json, text/event-stream"


@dataclass
class Work:
    proxy: Proxy
    gateway: Gateway
    agent: Agent
    run: Run

    def put(self, app: App, slug: str = "docs") -> Upstream:
        upstream = self.run(app)
        make.assignment(self.gateway, make.server(slug=slug, url=upstream.url))
        return upstream


def work_of(proxy: Proxy, run: Run) -> Work:
    user = make.user(email="ana@example.com")
    gateway = make.gateway(slug="work")
    return Work(proxy, gateway, proxy.agent(make.connection(make.agent(by=user), gateway, user)), run)


@pytest.fixture
def work(proxy: Proxy, run: Run) -> Work:
    return work_of(proxy, run)


@dataclass
class Heard:
    """A response: its parts in order of arrival."""

    kind: str
    events: list[Any] = field(default_factory=list)
    pings: int = 0

    @property
    def progress(self) -> list[tuple[object, object]]:
        return [(each["params"]["progressToken"], each["params"]["progress"]) for each in self.events[:-1]]


def listen(agent: Agent, body: dict[str, Any], **headers: str) -> Heard:
    given = {"Authorization": f"Bearer {agent.secret}", "Accept": BOTH}
    spelled = {name.replace("_", "-"): value for name, value in headers.items()}
    with httpx.stream("POST", agent.url, json=body, headers=given | spelled, trust_env=False) as answer:
        heard = Heard(answer.headers["content-type"])
        if heard.kind == "application/json":
            answer.read()
            heard.events = [answer.json()]
            return heard
        for line in answer.iter_lines():
            heard.pings += line.startswith(":")
            if line.startswith("data: {"):
                heard.events.append(json.loads(line[6:]))
    return heard


def call(name: str, arguments: object = None, token: object = None) -> dict[str, Any]:
    params: dict[str, Any] = {"name": name, "arguments": arguments or {}}
    if token is not None:
        params["_meta"] = {"progressToken": token}
    return {"jsonrpc": "2.0", "id": "mine", "method": "tools/call", "params": params}


@pytest.mark.full
@pytest.mark.parametrize("shape", [upstreams.session_era, upstreams.modern_era])
def test_progress_comes_back_with_the_clients_own_token(work: Work, shape: Any) -> None:
    docs = work.put(shape(upstreams.docs()))
    for token in (1, "1", 0, "ü"):
        heard = listen(work.agent, call("docs__slow", {"seconds": 0.2}, token))

        assert heard.kind == "text/event-stream"
        assert heard.progress == [(token, float(step)) for step in range(4)]
        assert [type(each) for each, _ in heard.progress] == [type(token)] * 4
        assert heard.events[-1]["id"] == "mine"
        assert heard.events[-1]["result"]["content"] == [{"type": "text", "text": "done"}]
    body, headers = modern("tools/call", {"name": "docs__slow", "arguments": {"seconds": 0.1}}, progressToken="m")
    assert [token for token, _ in listen(work.agent, body, **headers).progress] == ["m"] * 4
    outbound = [request.body["params"]["_meta"]["progressToken"] for request in docs.asked("tools/call")]
    assert len(set(outbound)) == 5
    assert not {1, "1", 0, "ü", "m"} & set(outbound)
    assert {row.outcome for row in work.proxy.calls()} == {"ok"}


@pytest.mark.full
def test_clients_with_the_same_token_never_get_each_others_progress(work: Work) -> None:
    work.put(upstreams.docs())

    def heard(seconds: float) -> list[tuple[object, object]]:
        return listen(work.agent, call("docs__slow", {"seconds": seconds}, 7)).progress

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(heard, [0.2] * 6)) == [[(7, float(step)) for step in range(4)]] * 6


@pytest.mark.full
def test_clients_that_did_not_ask_for_progress_or_streams_get_one_json_answer(work: Work) -> None:
    work.put(upstreams.docs())

    without_token = listen(work.agent, call("docs__slow", {"seconds": 0.1}))
    json_only = listen(work.agent, call("docs__slow", {"seconds": 0.1}, 7), Accept="application/json")
    curl = listen(work.agent, call("docs__slow", {"seconds": 0.1}, 7), Accept="*/*")

    assert [heard.kind for heard in (without_token, json_only, curl)] == ["application/json"] * 3


@pytest.mark.full
def test_an_event_is_passed_on_when_it_comes(work: Work) -> None:
    go_on = threading.Event()

    async def slow(request: Request) -> None:
        token = request.message["params"]["_meta"]["progressToken"]
        await request.open_stream()
        await request.event(note("notifications/progress", progressToken=token, progress=1))
        await request.event(note("notifications/progress", progressToken="another's", progress=2))
        await request.event(note("notifications/roots/of_the_future", data="not known"))
        await asyncio.to_thread(go_on.wait, PATIENCE)
        await request.event({"jsonrpc": "2.0", "id": 12345, "result": {"content": ["another's"]}})
        await request.event({"jsonrpc": "2.0", "id": request.message["id"], "result": {"content": []}}, last=True)

    work.put(calling(slow))
    given = {"Authorization": f"Bearer {work.agent.secret}", "Accept": BOTH}
    with httpx.stream(
        "POST", work.agent.url, json=call("docs__it", token=7), headers=given, timeout=PATIENCE, trust_env=False
    ) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        assert json.loads(next(lines)[6:]) == note("notifications/progress", progressToken=7, progress=1)
        assert work.proxy.calls() == []
        go_on.set()
        assert [json.loads(line[6:])["result"] for line in lines] == [{"content": []}]
    assert len(work.proxy.calls()) == 1


def note(method: str, **params: object) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, "params": params}


@pytest.mark.full
def test_a_silent_stream_is_kept_alive(start: Start, run: Run) -> None:
    work = work_of(start(ping_seconds=0.1), run)
    work.put(upstreams.docs())

    silent = listen(work.agent, call("docs__slow", {"seconds": 1}))
    quick = listen(Agent(start().url("work"), work.agent.secret), call("docs__echo", {"text": "x"}))
    curl = listen(work.agent, call("docs__slow", {"seconds": 0.5}), Accept="*/*")

    assert silent.pings >= 2
    assert silent.events[-1]["result"]["content"] == [{"type": "text", "text": "done"}]
    assert (quick.kind, curl.kind) == ("application/json", "application/json")


@pytest.mark.full
def test_the_gateway_answers_server_requests_on_a_calls_stream(work: Work) -> None:
    async def asking(request: Request) -> None:
        await request.open_stream()
        await request.event({"jsonrpc": "2.0", "id": "p", "method": "ping"})
        await request.event({"jsonrpc": "2.0", "id": "s", "method": "sampling/createMessage", "params": {}})
        await request.event({"jsonrpc": "2.0", "id": request.message["id"], "result": {"content": []}}, last=True)

    docs = work.put(calling(asking))

    assert listen(work.agent, call("docs__it")).events[-1]["result"] == {"content": []}

    def answers() -> dict[str, Any]:
        return {each.body["id"]: each.body for each in docs.seen if not each.method and "id" in each.body}

    eventually(lambda: len(answers()) == 2)
    assert answers()["p"]["result"] == {}
    assert answers()["s"]["error"]["code"] == -32601


@dataclass
class Leaving:
    """A client that disconnects in the middle of a call that takes `seconds`."""

    seconds: float
    begun: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)

    async def call(self, request: Request) -> None:
        self.begun.set()
        leaving = asyncio.ensure_future(request.receive())
        done, _ = await asyncio.wait([leaving], timeout=self.seconds)
        (self.cancelled if done else self.finished).set()
        leaving.cancel()
        await request.answer({"content": []})

    def leave(self, agent: Agent, body: dict[str, Any], headers: dict[str, str]) -> None:
        given = {"Authorization": f"Bearer {agent.secret}", "Accept": BOTH, "Content-Type": "application/json"}
        url = httpx.URL(agent.url)
        with closing(HTTPConnection(url.host, url.port or 0, timeout=PATIENCE)) as connection:
            connection.request("POST", url.path, json.dumps(body), given | headers)
            assert self.begun.wait(PATIENCE)


@pytest.mark.full
@pytest.mark.parametrize("wire", [True, False], ids=["modern server", "session server"])
def test_a_modern_client_that_leaves_cancels_its_call(work: Work, wire: bool) -> None:
    leaving = Leaving(60)
    docs = work.put(calling(leaving.call, modern=wire))
    body, headers = modern("tools/call", {"name": "docs__it", "arguments": {}})

    leaving.leave(work.agent, body, headers)

    assert leaving.cancelled.wait(PATIENCE)
    eventually(lambda: len(work.proxy.calls()) == 1)
    row = work.proxy.last()
    assert (row.outcome, row.http_status, row.server_name) == ("cancelled", 499, "docs")
    if not wire:
        eventually(lambda: docs.asked("notifications/cancelled"))
        minted = docs.asked("tools/call")[0].body["id"]
        assert docs.asked("notifications/cancelled")[0].body["params"]["requestId"] == minted


@pytest.mark.full
def test_a_call_of_the_session_era_runs_to_its_end_when_its_client_leaves(work: Work) -> None:
    leaving = Leaving(1)
    work.put(calling(leaving.call))

    leaving.leave(work.agent, call("docs__it"), {})

    assert leaving.finished.wait(PATIENCE)
    eventually(lambda: len(work.proxy.calls()) == 1)
    assert not leaving.cancelled.is_set()
    assert (work.proxy.last().outcome, work.proxy.last().http_status) == ("ok", 200)


def test_a_call_under_way_is_logged_when_the_gateway_stops(work: Work) -> None:
    leaving = Leaving(1.5)
    work.put(calling(leaving.call))
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(lambda: list(answers(work.agent)))
        assert leaving.begun.wait(PATIENCE)
        work.proxy.stop()
        answer.result()

    assert len(work.proxy.calls()) == 1


def answers(agent: Agent) -> Iterator[object]:
    try:
        yield agent.call("docs__it").status_code
    except httpx.HTTPError as error:
        yield error


@pytest.mark.full
def test_whatever_a_server_sends_begins_its_time_limit_anew(work: Work) -> None:
    async def slow(request: Request) -> None:
        await request.open_stream()
        for step in range(6):
            await asyncio.sleep(0.4)
            name = "message" if step % 2 else "progress"
            await request.event(note(f"notifications/{name}", progressToken=1, progress=step))
        await request.event({"jsonrpc": "2.0", "id": request.message["id"], "result": {"content": []}}, last=True)

    upstream = work.run(calling(slow))
    make.assignment(work.gateway, make.server(slug="docs", url=upstream.url, timeout_seconds=2))

    assert listen(work.agent, call("docs__it")).events[-1]["result"] == {"content": []}


@pytest.mark.full
def test_a_server_that_falls_silent_is_told_of_as_such(work: Work) -> None:
    async def silent(request: Request) -> None:
        await request.open_stream()
        await request.event(note("notifications/progress", progressToken=1, progress=1))
        await request.receive()

    upstream = work.run(calling(silent))
    make.assignment(work.gateway, make.server(slug="docs", url=upstream.url, timeout_seconds=1))
    began = time.monotonic()

    error = listen(work.agent, call("docs__it", token=1)).events[-1]["error"]

    assert error["data"] == {"reason": "timeout", "server": "docs", "limit": "idle", "seconds": 1.0}
    assert error["message"] == in_words('Server "docs" did not answer: nothing came from it for 1 seconds.')
    assert time.monotonic() - began >= 1
    assert work.proxy.last().outcome == "timeout"


def test_time_on_a_stream_is_bounded_like_any_other(work: Work) -> None:
    async def endless(request: Request) -> None:
        await request.open_stream()
        while (await asyncio.wait([asyncio.ensure_future(request.receive())], timeout=0.05))[1]:
            await request.event(note("notifications/progress", progressToken=1, progress=1))

    upstream = work.run(calling(endless))
    make.assignment(work.gateway, make.server(slug="docs", url=upstream.url, total_seconds=1))

    heard = listen(work.agent, call("docs__it", token=1))

    data = {"reason": "timeout", "server": "docs", "limit": "total", "seconds": 1.0}
    assert heard.events[-1]["error"]["data"] == data
    assert heard.events[-1]["error"]["message"].startswith(
        'Server "docs" did not answer: the call took more than 1 seconds in all. https://'
    )
