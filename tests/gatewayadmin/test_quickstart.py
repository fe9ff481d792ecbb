"""The bundled server speaks both MCP eras (with and without sessions), and requires the secret it was started with."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

from gatewayadmin.serving import quickstart
from tests.asgi_server import App, Receive, Scope, Send, Upstream, live, running

SECRET = "the secret of this start"
HEADER = {"X-Gateway-Builtin-Secret": SECRET}


def mounted(secret: str) -> App:
    inner = quickstart.app(secret)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (live(receive, send) if scope["type"] == "lifespan" else inner(scope, receive, send))

    return app


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    with running(mounted(SECRET)) as upstream:
        yield upstream


def ask(server: Upstream, method: str, params: object = None, **headers: str) -> Any:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}
    answer = httpx.post(server.url, json=body, headers={**HEADER, **headers}, trust_env=False)
    return answer.json()


def call(server: Upstream, tool: str, **arguments: object) -> tuple[str, bool]:
    result = ask(server, "tools/call", {"name": tool, "arguments": arguments})["result"]
    return result["content"][0]["text"], result["isError"]


def test_requests_without_the_secret_find_nothing(server: Upstream) -> None:
    for headers in ({}, {"X-Gateway-Builtin-Secret": "guess"}, {"X-Gateway-Builtin-Secret": ""}):
        for verb in ("POST", "GET", "DELETE"):
            answer = httpx.request(verb, server.url, headers=headers, trust_env=False)
            assert (answer.status_code, answer.content) == (404, b"")
    with running(mounted("")) as closed:
        answer = httpx.post(closed.url, headers={"X-Gateway-Builtin-Secret": ""}, trust_env=False)
    assert answer.status_code == 404, "without a secret it opens to nobody"


def test_the_tools_do_what_they_say(server: Upstream) -> None:
    names = [tool["name"] for tool in ask(server, "tools/list")["result"]["tools"]]

    assert names == ["echo", "add", "current_time", "slow", "fail"]
    assert call(server, "echo", text="hello") == ("hello", False)
    assert call(server, "add", a=1, b=2.5) == ("3.5", False)
    assert call(server, "slow", seconds=0) == ("Done.", False)
    assert call(server, "fail", reason="no paper") == ("no paper", True)
    now, failed = call(server, "current_time", timezone="Europe/Vienna")
    assert abs((datetime.fromisoformat(now) - datetime.now(UTC)).total_seconds()) < 60
    assert not failed
    [resource] = ask(server, "resources/list")["result"]["resources"]
    assert "Logs" in ask(server, "resources/read", {"uri": resource["uri"]})["result"]["contents"][0]["text"]
    [prompt] = ask(server, "prompts/list")["result"]["prompts"]
    got = ask(server, "prompts/get", {"name": prompt["name"], "arguments": {"name": "Ana"}})["result"]
    assert "Ana" in got["messages"][0]["content"]["text"]


def test_wrong_arguments_are_tool_errors(server: Upstream) -> None:
    wrong: list[tuple[str, dict[str, object]]] = [
        ("echo", {}),
        ("echo", {"text": 1}),
        ("add", {"a": True, "b": 1}),
        ("current_time", {"timezone": "Mars/Olympus"}),
        ("current_time", {"timezone": "../etc/passwd"}),
        ("current_time", {"timezone": 7}),
        ("slow", {"seconds": "long"}),
    ]
    for tool, arguments in wrong:
        assert call(server, tool, **arguments)[1], (tool, arguments)


def test_missing_features_get_an_error_code(server: Upstream) -> None:
    assert ask(server, "tools/call", {"name": "nothing"})["error"]["code"] == -32602
    assert ask(server, "tools/call", {"name": "echo", "arguments": []})["error"]["code"] == -32602
    assert ask(server, "resources/read", {"uri": "file:///etc/passwd"})["error"]["code"] == -32602
    assert ask(server, "prompts/get", {"name": "nothing"})["error"]["code"] == -32602
    assert ask(server, "nonsense")["error"]["code"] == -32601
    for body, status in ((b"{", 400), (b"[]", 400), (b'{"jsonrpc":"2.0","method":"notifications/initialized"}', 202)):
        answer = httpx.post(server.url, content=body, headers=HEADER, trust_env=False)
        assert answer.status_code == status


def test_progress_comes_as_events(server: Upstream) -> None:
    params = {"name": "slow", "arguments": {"seconds": 0.1}, "_meta": {"progressToken": "mine"}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}

    answer = httpx.post(server.url, json=body, headers=HEADER, trust_env=False)

    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert [each["params"]["progress"] for each in events[:-1]] == [1, 2, 3, 4, 5]
    assert {each["params"]["progressToken"] for each in events[:-1]} == {"mine"}
    assert events[-1]["result"]["content"][0]["text"] == "Done."


@pytest.mark.full
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_sdks_client_speaks_with_it_in_either_era(server: Upstream, mode: Any) -> None:
    async with create_mcp_http_client(headers=HEADER) as http:
        transport = streamable_http_client(server.url, http_client=http)
        async with Client(transport, mode=mode) as client:
            tools = await client.list_tools()
            result = await client.call_tool("add", {"a": 2, "b": 3})

    assert "echo" in {tool.name for tool in tools.tools}
    assert result.content[0].text == "5"  # type: ignore[union-attr]
