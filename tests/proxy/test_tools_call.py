"""tools/call: arguments and results pass unchanged, headers of client and server do not, and errors name the server."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Semaphore
from typing import Any

import pytest

from connections.models import Connection
from gateways.models import Assignment, Feature, Gateway
from gateways.models.gateway import OnChange
from proxy.reasons import REASONS
from servers.models import Server
from tests import make, upstreams
from tests.asgi_server import App, Upstream
from tests.conftest import Run
from tests.eventually import PATIENCE
from tests.proxy.conftest import Agent, Proxy, Start, eventually, in_words
from tests.proxy.scripted import Request, calling, offering
from tests.proxy.test_endpoint import modern


@dataclass
class Work:
    """A gateway `work` with one server, `docs`, and an agent."""

    proxy: Proxy
    gateway: Gateway
    agent: Agent
    run: Run

    def put(self, app: App, slug: str = "docs", **fields: Any) -> Upstream:
        upstream = self.run(app)
        make.assignment(self.gateway, make.server(slug=slug, name=slug.title(), url=upstream.url, **fields))
        return upstream


@pytest.fixture
def work(proxy: Proxy, run: Run) -> Work:
    return work_of(proxy, run)


def work_of(proxy: Proxy, run: Run) -> Work:
    user = make.user(email="ana@example.com")
    gateway = make.gateway(slug="work")
    return Work(proxy, gateway, proxy.agent(make.connection(make.agent(by=user), gateway, user)), run)


RESULT = {
    "content": [
        {"type": "text", "text": "ü日\n\u2028", "annotations": {"priority": 0.1}, "_meta": {"a": 1}},
        {"type": "image", "data": "AA==", "mimeType": "image/png"},
        {"type": "resource", "resource": {"uri": "ui://x", "text": ""}},
        {"type": "of the future", "x": [None, True, {}]},
    ],
    "structuredContent": {"big": 123456789012345678901234567890, "e": 1e-300, "one": 1.0, "": "", "\ud83d": "lone"},
    "isError": False,
    "_meta": {"com.example/x": {"y": []}},
    "future": {"unknown": 1},
}


@pytest.mark.full
def test_results_and_arguments_pass_unchanged(work: Work) -> None:
    async def call(request: Request) -> None:
        await request.answer(RESULT)

    docs = work.put(calling(call))
    arguments = {"n": 98765432109876543210987, "s": "\ud83d \u0000 ü", "o": {"b": 1, "a": [1.0, None]}}
    body = json.dumps(
        {"jsonrpc": "2.0", "id": "x", "method": "tools/call", "params": {"name": "docs__it", "arguments": arguments}}
    )

    answer = work.agent.post(body.encode(), Content_Type="application/json")

    assert json.loads(answer.content) == {"jsonrpc": "2.0", "id": "x", "result": RESULT}
    assert docs.asked("tools/call")[0].body["params"] == {"name": "it", "arguments": arguments}


@pytest.mark.full
def test_ids_are_ours_upstream_and_the_clients_own_in_the_answer(work: Work) -> None:
    docs = work.put(offering("it"))
    params = {"name": "docs__it"}
    ids: list[Any] = [0, 1, "1", "", -5, (1 << 53) + 1, "ü", 18446744073709551615]

    seen = [
        work.agent.post({"jsonrpc": "2.0", "id": each, "method": "tools/call", "params": params}).json()["id"]
        for each in ids
    ]

    assert [(type(each), each) for each in seen] == [(type(each), each) for each in ids]
    minted = [request.body["id"] for request in docs.seen if "id" in request.body]
    assert len(set(minted)) == len(minted)
    assert not set(minted) & {each for each in ids if isinstance(each, int)}


@pytest.mark.full
def test_nothing_of_the_clients_headers_goes_on_and_nothing_of_the_servers_comes_back(work: Work) -> None:
    async def call(request: Request) -> None:
        await request.answer({"content": []}, set_cookie="a=b", www_authenticate="Basic", x_internal="1", server="s")

    docs = work.put(calling(call))

    answer = work.agent.call(
        "docs__it", Cookie="a=b", X_Forwarded_For="1.2.3.4", X_Custom="1", Origin="https://gateway.example.com"
    )

    assert answer.json()["result"] == {"content": []}
    assert not {"set-cookie", "www-authenticate", "x-internal"} & set(answer.headers)
    allowed = {"host", "user-agent", "content-type", "accept", "accept-encoding", "content-length", "gateway-hops"}
    for request in docs.seen:
        assert set(request.headers) <= allowed | {"gateway-hops", "mcp-protocol-version", "mcp-method", "mcp-name"}
        assert (work.agent.secret or "") not in json.dumps(request.body)


@pytest.mark.full
def test_meta_passes_but_for_what_is_between_client_and_gateway(work: Work) -> None:
    docs = work.put(offering("it"))
    meta = {
        "progressToken": 7,
        "traceparent": "00-1",
        "com.example/x": [1],
        "io.modelcontextprotocol/logLevel": "debug",
    }

    work.agent.ask("tools/call", {"name": "docs__it", "_meta": meta})
    work.agent.ask("tools/call", {"name": "docs__it", "_meta": {"progressToken": 7}, "arguments": None})

    first, second = (request.body["params"] for request in docs.asked("tools/call"))
    assert first["_meta"] == {"traceparent": "00-1", "com.example/x": [1]}
    assert second == {"name": "it", "arguments": None}


@pytest.mark.full
def test_unknown_tool_names_reach_no_server(work: Work) -> None:
    docs = work.put(offering("it"))
    for params in (
        {"name": "it"},
        {"name": "nothing__it"},
        {"name": "docs"},
        {"name": "docs_it"},
        {"name": "Docs__it"},
    ):
        error = work.agent.ask("tools/call", params).json()["error"]
        assert error == {"code": -32602, "message": in_words(f"Unknown tool: {params['name']}.")}
        assert (work.proxy.last().outcome, work.proxy.last().rpc_error_code) == ("rpc_error", -32602)
    broken: list[Any] = [{}, {"name": ""}, {"name": 1}, {"name": None}, {"name": "docs__it", "arguments": []}]
    for each in broken:
        assert work.agent.ask("tools/call", each).json()["error"]["code"] == -32602
    assert docs.seen == []
    assert len(work.proxy.calls()) == 10


@dataclass(frozen=True)
class Trouble:
    app: App
    message: str
    reason: str
    outcome: str = "upstream_error"


HUGE = b'{"jsonrpc":"2.0","id":1,"result":{"content":"' + b"x" * (10 << 20) + b'"}}'
NOT_ANSWERING = 'Server "Docs" did not answer.'
NOT_MCP = 'Server "Docs" answered with something that is not MCP.'

TROUBLES = [
    Trouble(upstreams.garbage(), NOT_MCP, "bad_answer"),
    Trouble(upstreams.garbage(b"[]", kind="application/json"), NOT_MCP, "bad_answer"),
    Trouble(upstreams.garbage(b'{"jsonrpc":"2.0","id":1,"result":{}}', kind="application/json"), NOT_MCP, "bad_answer"),
    Trouble(upstreams.garbage(b"", status=503), 'Server "Docs" answered with HTTP 503.', "bad_answer"),
    Trouble(upstreams.garbage(b"", status=404), 'Server "Docs" answered with HTTP 404.', "bad_answer"),
    Trouble(
        upstreams.redirecting("http://127.0.0.1:1/"),
        'Server "Docs" answered with a redirect, which the gateway does not follow.',
        "bad_answer",
    ),
    Trouble(
        upstreams.refusing("The {program} was not started."),
        'Server "Docs" answered with an error: The {program} was not started. (-32603).',
        "bad_answer",
    ),
    Trouble(upstreams.cut_off(), NOT_ANSWERING, "unreachable"),
    Trouble(
        upstreams.silent(), 'Server "Docs" did not answer: nothing came from it for 1 seconds.', "timeout", "timeout"
    ),
    Trouble(
        upstreams.garbage(HUGE, kind="application/json"),
        'Server "Docs" sent an answer larger than the gateway allows.',
        "too_large",
    ),
    Trouble(upstreams.github(), 'Server "Docs" refused the credential stored for it.', "credential_refused"),
]


def test_j14_trouble_is_told_in_words_that_name_the_server(work: Work) -> None:
    for number, trouble in enumerate(TROUBLES):
        upstream = work.run(trouble.app)
        server = make.server(slug=f"docs{number}", name="Docs", url=upstream.url, timeout_seconds=1)
        make.assignment(work.gateway, server, alias=f"a{number}")

        answer = work.agent.call(f"a{number}__it")

        assert answer.status_code == 200
        data: dict[str, object] = {"reason": trouble.reason, "server": "Docs"}
        if trouble.reason == "timeout":
            data |= {"limit": "idle", "seconds": 1.0}
        said = in_words(trouble.message, REASONS[trouble.reason].page)
        assert answer.json()["error"] == {"code": -32603, "message": said, "data": data}, number
        row = work.proxy.last()
        assert (row.outcome, row.server_name, row.rpc_error_code) == (trouble.outcome, "Docs", -32603)
        assert row.deny_reason == ("" if trouble.outcome == "timeout" else trouble.reason), number
        Server.objects.filter(pk=server.pk).update(name=server.slug)


NOT_ALLOWED = ('Server "Docs" has an address the gateway may not call.', "address_blocked")
ADDRESSES = {
    "http://127.0.0.1:1/": (
        'Server "Docs" did not answer: nothing accepts connections at its address.',
        "unreachable",
    ),
    "https://no-such-name.invalid/": ('Server "Docs" cannot be found: its host name does not resolve.', "unreachable"),
    "http://10.0.0.5/": NOT_ALLOWED,
    "http://8.8.8.8/": NOT_ALLOWED,
    "https://169.254.169.254/": NOT_ALLOWED,
}


def test_j14_addresses_are_judged_when_they_are_called(work: Work) -> None:
    server = make.server(slug="docs", name="Docs", url="http://127.0.0.1:1/")
    make.assignment(work.gateway, server)

    for url, (message, reason) in ADDRESSES.items():
        Server.objects.update(url=url)
        error = work.agent.call("docs__it").json()["error"]
        assert (error["message"], error["data"]["reason"]) == (in_words(message), reason), url
        assert work.proxy.last().outcome == "upstream_error"


@pytest.mark.full
def test_a_servers_own_errors_pass_with_code_and_data(work: Work) -> None:
    async def call(request: Request) -> None:
        await request.fail(-32042, "Look here", data={"elicitations": [1]})

    work.put(calling(call))
    work.put(upstreams.docs(), "sdk")

    assert work.agent.call("docs__it").json()["error"] == {
        "code": -32042,
        "message": "Look here",
        "data": {"elicitations": [1]},
    }
    assert (work.proxy.last().outcome, work.proxy.last().rpc_error_code) == ("rpc_error", -32042)

    failed = work.agent.call("sdk__fail", {"reason": "no paper"}).json()["result"]
    assert failed["isError"] is True
    assert "no paper" in failed["content"][0]["text"]
    assert (work.proxy.last().outcome, work.proxy.last().rpc_error_code) == ("tool_error", None)


@pytest.mark.full
def test_an_error_code_of_any_kind_can_be_recorded(work: Work) -> None:
    codes: list[object] = [10**30, "x", None, 1.5, -(2**31)]
    left = iter(codes)

    async def call(request: Request) -> None:
        error = {"jsonrpc": "2.0", "id": request.message["id"], "error": {"code": next(left), "message": "no"}}
        await request.answer(json.dumps(error).encode())

    work.put(calling(call))

    for code in codes:
        assert json.loads(work.agent.call("docs__it").content)["error"] == {"code": code, "message": "no"}
        assert work.proxy.last().outcome == "rpc_error"


def test_arguments_are_repeated_in_headers_where_the_schema_says_so(work: Work) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}
    refused, names = 0, ["region"]

    async def call(request: Request) -> None:
        nonlocal refused
        arguments = request.message["params"]["arguments"]
        if request.headers.get("mcp-param-region") != arguments[names[0]]:
            refused += 1
            await request.fail(-32020, "Header mismatch", status=400)
        else:
            await request.answer({"content": [], "resultType": "complete"})

    docs = work.put(calling(call, modern=True, inputSchema=schema))

    # A tool without a row is looked up in a fresh list, which includes the schema.
    assert work.agent.call("docs__it", {"region": "eu"}).json()["result"] == {"content": []}
    assert refused == 0
    # After a change of the schema, this call is refused; the refusal causes a fresh list for the next call.
    type(work.gateway).objects.update(changed_definitions=OnChange.ACCEPT)
    schema["properties"]["zone"] = schema["properties"].pop("region")
    names[0] = "zone"
    assert work.agent.call("docs__it", {"zone": "eu"}).json()["error"]["code"] == -32020
    eventually(lambda: "zone" in Feature.objects.get().input_schema["properties"])
    assert work.agent.call("docs__it", {"zone": "eu"}).json()["result"] == {"content": []}
    assert refused == 1
    assert docs.asked("tools/call")[-1].headers["mcp-name"] == "it"


def slow(most: list[int]) -> App:
    """Return a slow server, which records in `most` the maximum of concurrent calls."""
    under_way = 0

    async def call(request: Request) -> None:
        nonlocal under_way
        under_way += 1
        most[0] = max(most[0], under_way)
        await asyncio.sleep(0.05)
        under_way -= 1
        await request.answer({"content": []})

    return calling(call)


@pytest.mark.full
@pytest.mark.parametrize(("workers", "most_of_one"), [(2, 2), (100, 1)])
def test_a_slow_server_gets_no_more_calls_than_this_worker_s_and_this_connection_s_share(
    start: Start, run: Run, workers: int, most_of_one: int
) -> None:
    work, most = work_of(start(workers=workers), run), [0]
    work.put(slow(most), max_concurrent=8)

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(work.agent.call, ["docs__it"] * 20))

    assert [answer.json()["result"] for answer in answers] == [{"content": []}] * 20
    assert most[0] == most_of_one


@contextmanager
def holding_up(work: Work, count: int, **fields: Any) -> Iterator[None]:
    """Keep `count` calls of the agent running or waiting at `docs` during the block."""
    arrived, leave = Semaphore(0), Event()

    async def call(request: Request) -> None:
        if request.message["params"]["arguments"].get("quick"):
            await request.answer({"content": []})
            return
        arrived.release()
        await asyncio.to_thread(leave.wait, PATIENCE)
        await request.answer({"content": []})

    work.put(calling(call), timeout_seconds=int(PATIENCE), **fields)
    with ThreadPoolExecutor(count) as pool:
        calls = [pool.submit(work.agent.call, "docs__it") for _ in range(count)]
        try:
            assert arrived.acquire(timeout=PATIENCE)
            yield
        finally:
            leave.set()
        for each in calls:
            each.result()


def test_a_caller_without_a_slot_at_a_slow_server_gets_an_error_and_others_continue(start: Start, run: Run) -> None:
    work = work_of(start(queue_seconds=0.3), run)
    work.put(offering("it"), "fine")

    with holding_up(work, 1, max_concurrent=1):
        answer = work.agent.call("docs__it", {"quick": True})
        fine = work.agent.call("fine__it").json()

    error = answer.json()["error"]
    assert error["data"] == {"reason": "busy", "server": "Docs", "retry_after": 2}
    assert "was not executed" in error["message"]
    assert (answer.status_code, answer.headers["retry-after"]) == (200, "2")
    assert "result" in fine
    [row] = [row for row in work.proxy.calls() if row.deny_reason]
    assert (row.outcome, row.deny_reason) == ("rate_limited", "busy")
    # Nothing was sent to the server, so it counts as healthy.
    assert Server.objects.get(slug="docs").health_error == ""


@pytest.mark.full
def test_slow_calls_of_one_person_make_nobody_else_wait(start: Start, run: Run) -> None:
    work = work_of(start(queue_seconds=15), run)
    bob = make.user(email="bob@example.com")
    other = work.proxy.agent(make.connection(make.agent(by=bob), work.gateway, bob))

    with holding_up(work, 12, max_concurrent=4):
        answers = [other.call("docs__it", {"quick": True}).json() for _ in range(3)]

    assert all("result" in answer for answer in answers)


@pytest.mark.full
def test_a_token_has_so_many_calls_under_way_and_no_more(start: Start, run: Run) -> None:
    work = work_of(start(token_calls=1), run)
    sibling = work.proxy.agent(Connection.objects.get())

    with holding_up(work, 1):
        answer = work.agent.call("docs__it", {"quick": True})
        assert "result" in sibling.call("docs__it", {"quick": True}).json()

    error = answer.json()["error"]
    said = "This token has reached its limit of concurrent calls (1), so this call was not executed."
    assert error["message"] == in_words(said)
    assert (error["data"], answer.headers["retry-after"]) == ({"reason": "busy", "retry_after": 1}, "1")
    assert "result" in work.agent.call("docs__it", {"quick": True}).json()


@pytest.mark.full
def test_members_unknown_to_older_clients_are_removed_and_newer_ones_added(work: Work) -> None:
    async def call(request: Request) -> None:
        await request.answer({"content": [], "resultType": "complete"})

    work.put(calling(call, modern=True), "new")
    work.put(offering("it"), "old")

    assert work.agent.call("new__it").json()["result"] == {"content": []}
    for name in ("new__it", "old__it"):
        body, headers = modern("tools/call", {"name": name})
        result = work.agent.post(body, **headers).json()["result"]
        assert result["resultType"] == "complete"


@pytest.mark.full
def test_a_result_that_wants_input_is_no_answer_for_a_client_that_cannot_give_it(work: Work) -> None:
    async def call(request: Request) -> None:
        await request.answer({"resultType": "input_required", "inputRequests": {}, "requestState": "x"})

    work.put(calling(call, modern=True))

    assert work.agent.call("docs__it").json()["error"]["data"]["reason"] == "bad_answer"
    body, headers = modern("tools/call", {"name": "docs__it"})
    assert work.agent.post(body, **headers).json()["result"]["requestState"] == "x"


@pytest.mark.full
def test_a_name_the_database_cannot_hold_is_refused_and_means_no_other_tool(work: Work) -> None:
    docs = work.put(offering("it"))

    def are_refused() -> None:
        for name in ("docs__it\0", "\0docs__it", "docs__it\ud800", "docs__\udfffit", "\0"):
            body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name}}).encode()
            answer = work.agent.post(body, Content_Type="application/json")
            assert (answer.status_code, answer.json()["error"]["code"]) == (200, -32602), ascii(name)
            row = work.proxy.last()
            assert (row.method, row.outcome, row.server_name) == ("tools/call", "rpc_error", "")

    are_refused()
    Feature.objects.get_or_create(assignment=Assignment.objects.get(), name="it", exposed_name="docs__it")
    are_refused()
    assert docs.asked("tools/call") == []
    assert work.agent.call("docs__it").json()["result"]["content"][0]["text"] == "it"


@pytest.mark.full
def test_a_tool_whose_name_no_row_can_hold_is_not_shown(work: Work) -> None:
    work.put(offering("it", "a\ud800b", "a\0b", "x" * 250))

    assert work.agent.tools() == ["docs__it"]
