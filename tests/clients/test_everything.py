"""A third-party server behind a gateway created on the pages, called by third-party clients."""

import json

import httpx2
import pytest
from mcp.client import Client
from mcp.client.client import ConnectMode
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

from tests import curl
from tests.browser import steps
from tests.browser.fixtures import owner_at
from tests.clients.fixtures import MODULES, Npm
from tests.workspace import Serve

ECHO = "everything__echo"
SUM = "everything__get-sum"


@pytest.fixture(scope="module")
def second(live: Serve, everything: str) -> dict[str, str]:
    """Return the URL and a token of a gateway for server-everything, all created on the pages.

    Also creates a gateway “Both”, for this server and the Quickstart server.
    """
    with owner_at(live) as page:
        steps.add_server(page, live.url, "Everything", everything)
        steps.add_gateway(page, live.url, "Second")
        steps.assign(page, live.url, "Second", "Everything", alias="everything")
        steps.add_host(page, live.url, "Second bot")
        minted = steps.copied(steps.add_connection(page, "Second"))
        steps.add_gateway(page, live.url, "Both")
        steps.assign(page, live.url, "Both", "Everything", alias="everything")
        steps.assign(page, live.url, "Both", "Quickstart", alias="quickstart")
    return {"GATEWAY_URL": minted.gateway_url, "TOKEN": minted.token}


def test_curl_lists_and_calls(second: dict[str, str]) -> None:
    url, token = second["GATEWAY_URL"], second["TOKEN"]

    assert {ECHO, SUM} <= set(curl.list_tools(url, token).tools)
    assert curl.call_tool(url, token, ECHO, message="hello").text == "Echo: hello"
    assert "5" in curl.call_tool(url, token, SUM, a=2, b=3).text


@pytest.mark.parametrize("mode", ["auto", "legacy", "2026-07-28"])
async def test_python_sdk_lists_and_calls(second: dict[str, str], mode: ConnectMode) -> None:
    headers = {"Authorization": f"Bearer {second['TOKEN']}"}
    async with httpx2.AsyncClient(headers=headers, timeout=30) as http:
        transport = streamable_http_client(second["GATEWAY_URL"], http_client=http)
        async with Client(transport, mode=mode) as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            echoed = await client.call_tool(ECHO, {"message": "hello"})
            added = await client.call_tool(SUM, {"a": 2, "b": 3})
            version = client.protocol_version

    assert {ECHO, SUM} <= names
    assert text_of(echoed) == "Echo: hello"
    assert "5" in text_of(added)
    assert version == ("2025-11-25" if mode == "legacy" else "2026-07-28")


@pytest.mark.full
async def test_mcp_remote_lists_and_calls(second: dict[str, str], npm: Npm) -> None:
    arguments = [second["GATEWAY_URL"], "--header", f"Authorization: Bearer {second['TOKEN']}", "--allow-http"]
    program = StdioServerParameters(
        command=str(MODULES / ".bin" / "mcp-remote"), args=[*arguments, "--silent"], env=npm.environment
    )
    async with Client(stdio_client(program), mode="legacy") as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        echoed = await client.call_tool(ECHO, {"message": "hello"})
        added = await client.call_tool(SUM, {"a": 2, "b": 3})

    assert {ECHO, SUM} <= names
    assert text_of(echoed) == "Echo: hello"
    assert "5" in text_of(added)


@pytest.mark.full
@pytest.mark.parametrize(("program", "mode"), [("sdk_v1.mjs", ""), ("sdk_v2.mjs", "legacy"), ("sdk_v2.mjs", "auto")])
def test_typescript_sdks_list_and_call(second: dict[str, str], npm: Npm, program: str, mode: str) -> None:
    asked = {"TOOL": ECHO, "ARGUMENTS": '{"message": "hello"}', "MODE": mode}

    said = json.loads(npm.run("node", program, **second, **asked))

    assert {ECHO, SUM} <= set(said["tools"])
    assert said["text"] == "Echo: hello"


@pytest.mark.full
@pytest.mark.parametrize("era", ["legacy", "auto", "modern"])
def test_inspector_calls(second: dict[str, str], npm: Npm, era: str) -> None:
    server = ["--cli", "--server-url", second["GATEWAY_URL"], "--transport", "http", "--protocol-era", era]
    header = ["--header", f"Authorization: Bearer {second['TOKEN']}"]
    asked = ["--method", "tools/call", "--tool-name", SUM, "--tool-args-json", '{"a": 2, "b": 3}', "--format", "json"]

    said = json.loads(npm.run("mcp-inspector", *server, *header, *asked))

    assert "5" in said["result"]["content"][0]["text"]


@pytest.mark.full
def test_gateway_of_two_servers_lists_the_tools_of_both(second: dict[str, str], live: Serve) -> None:
    issued = live.issue_token(host="Second bot", gateway="both")

    listed = curl.list_tools(issued["gateway_url"], issued["token"]).tools

    assert {ECHO, SUM, "quickstart__echo", "quickstart__add"} <= set(listed)
    assert curl.call_tool(issued["gateway_url"], issued["token"], "quickstart__echo", text="hi").text == "hi"
    assert curl.call_tool(issued["gateway_url"], issued["token"], ECHO, message="hi").text == "Echo: hi"


def text_of(result: object) -> str:
    assert isinstance(result, CallToolResult)
    assert isinstance(result.content[0], TextContent)
    return result.content[0].text
