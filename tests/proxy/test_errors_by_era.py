"""Clients get errors with the codes and status of their own era, whichever era the server speaks."""

from itertools import product
from typing import Any

import httpx
import pytest

from tests import upstreams
from tests.conftest import Run
from tests.proxy.conftest import Proxy
from tests.proxy.features import offer, put
from tests.proxy.scripted import Request, failing, returning
from tests.proxy.test_endpoint import modern
from tests.proxy.test_tools_call import Work, work_of

CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
URL_ASKED = {"mode": "url", "elicitationId": "e1", "url": "https://example.com/ok", "message": "Agree there."}


@pytest.fixture
def work(proxy: Proxy, run: Run) -> Work:
    return work_of(proxy, run)


def asked(work: Work, method: str, params: dict[str, Any], *, new: bool, **changes: Any) -> httpx.Response:
    if not new:
        return work.agent.ask(method, params)
    body, headers = modern(method, params, **changes)
    if "uri" in params:
        headers["Mcp-Name"] = params["uri"]
    return work.agent.post(body, **headers)


@pytest.mark.full
def test_a_servers_error_has_the_status_of_the_clients_era(work: Work, subtests: pytest.Subtests) -> None:
    statuses = {-32601: 404, -32602: 400, -32603: 200, -32021: 400, 17: 200}

    async def session_server(request: Request) -> None:
        await request.fail(request.message["params"]["arguments"]["code"], "no", data={"why": 1.5})

    async def modern_server(request: Request) -> None:
        code = request.message["params"]["arguments"]["code"]
        await request.fail(code, "no", data={"why": 1.5}, status=statuses[code])

    put(work, "old", tools_call=session_server)
    put(work, "new", modern=True, tools_call=modern_server)
    for alias in ("old", "new"):
        offer("it", "tool", alias=alias)
    for alias, (code, status), new in product(("old", "new"), statuses.items(), (False, True)):
        with subtests.test(f"{code} of the {alias} server to a client of {'2026' if new else 'the session era'}"):
            answer = asked(work, "tools/call", {"name": f"{alias}__it", "arguments": {"code": code}}, new=new)
            assert answer.status_code == (status if new else 200)
            assert answer.json()["error"] == {"code": code, "message": "no", "data": {"why": 1.5}}
            assert work.proxy.last().rpc_error_code == code


@pytest.mark.full
def test_a_resource_that_is_not_there_is_told_in_the_code_of_the_clients_era(work: Work) -> None:
    given = {"uri": "docs://a"}
    put(work, "old", resources_read=failing(-32002, "Resource not found", given, 200))
    put(work, "new", modern=True, resources_read=failing(-32602, "Resource not found", given, 400))

    for alias in ("old", "new"):
        uri = f"gateway://{alias}/docs%3A%2F%2Fa"
        session, new = (asked(work, "resources/read", {"uri": uri}, new=era) for era in (False, True))

        assert (session.status_code, session.json()["error"]["code"]) == (200, -32002)
        assert (new.status_code, new.json()["error"]["code"]) == (400, -32602)
        assert session.json()["error"]["data"] == new.json()["error"]["data"] == {"uri": uri}


def test_a_page_to_visit_is_an_error_in_the_session_era_and_input_required_after_it(work: Work) -> None:
    put(work, tools_call=failing(-32042, "Visit the page", {"elicitations": [URL_ASKED]}))
    offer("it", "tool")
    params = {"name": "docs__it", "arguments": {}}

    session = asked(work, "tools/call", params, new=False)
    able = asked(work, "tools/call", params, new=True, **{CAPABILITIES: {"elicitation": {"url": {}}}})
    unable = asked(work, "tools/call", params, new=True, **{CAPABILITIES: {"elicitation": {"form": {}}}})

    assert session.json()["error"]["data"] == {"elicitations": [URL_ASKED]}
    result = able.json()["result"]
    assert result["resultType"] == "input_required"
    assert list(result["inputRequests"].values()) == [{"method": "elicitation/create", "params": URL_ASKED}]
    assert (unable.status_code, unable.json()["error"]["code"]) == (400, -32021)
    assert unable.json()["error"]["data"] == {"requiredCapabilities": {"elicitation": {"url": {}}}}


def test_an_argument_of_three_mebibytes_passes_and_more_bytes_or_very_many_values_do_not(work: Work) -> None:
    async def measure(request: Request) -> None:
        size = len(request.message["params"]["arguments"]["text"])
        await request.answer({"content": [{"type": "text", "text": "x" * size}]})

    docs = put(work, tools_call=measure)
    offer("it", "tool")

    text = work.agent.call("docs__it", {"text": "x" * (3 << 20)}).json()["result"]["content"][0]["text"]

    assert len(text) == 3 << 20
    assert work.agent.call("docs__it", {"text": "x" * (4 << 20)}).status_code == 413
    too_many = work.agent.call("docs__it", {"list": [1] * 600_000})
    assert (too_many.status_code, too_many.json()["error"]["code"]) == (400, -32600)
    assert len(docs.asked("tools/call")) == 1


@pytest.mark.full
def test_a_server_of_the_old_transport_is_told_in_words(work: Work) -> None:
    work.put(upstreams.http_sse())
    offer("it", "tool")

    error = work.agent.call("docs__it").json()["error"]

    assert "HTTP+SSE" in error["message"]
    assert "2024-11-05" in error["message"]
    assert error["data"]["reason"] == "bad_answer"


@pytest.mark.full
def test_a_refused_version_is_tried_again_in_one_that_both_know(work: Work) -> None:
    proposed: list[str] = []

    async def initialize(request: Request) -> None:
        version = request.message["params"]["protocolVersion"]
        proposed.append(version)
        if version != "2025-06-18":
            data = {"supported": ["2025-06-18", "2024-01-01"], "requested": version}
            await request.fail(-32022, "Unsupported protocol version", status=400, data=data)
            return
        await request.answer({"protocolVersion": version, "capabilities": {}, "serverInfo": {"name": "old"}})

    put(work, initialize=initialize, tools_call=returning({"content": []}))
    offer("it", "tool")

    assert work.agent.call("docs__it").json()["result"] == {"content": []}
    assert proposed == ["2025-11-25", "2025-06-18"]


@pytest.mark.full
def test_a_call_whose_version_is_refused_is_answered_so_and_not_sent_again(work: Work) -> None:
    async def call(request: Request) -> None:
        data = {"supported": ["2026-07-28"], "requested": "2026-07-28"}
        await request.fail(-32022, "Unsupported protocol version", status=400, data=data)

    docs = put(work, modern=True, tools_call=call)
    offer("it", "tool")

    assert work.agent.call("docs__it").json()["error"]["code"] == -32022
    assert len(docs.asked("tools/call")) == 1
