"""Third-party clients sign in through the browser, then list and call tools."""

import json
from typing import Any

import pytest

from tests.clients.apps import CALL, Desktop, node, python
from tests.clients.fixtures import MODULES
from tests.clients.person import Person
from tests.workspace import Serve

pytestmark = pytest.mark.full


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        pytest.param(python("oauth_python.py"), ["auto"], id="python-sdk-auto"),
        pytest.param(python("oauth_python.py"), ["legacy"], id="python-sdk-legacy"),
        pytest.param(python("oauth_fastmcp.py"), [], id="fastmcp"),
        pytest.param(node("oauth_app.mjs"), {"SDK": "1"}, id="typescript-sdk-1"),
        pytest.param(node("oauth_app.mjs"), {"SDK": "2"}, id="typescript-sdk-2"),
    ],
)
def test_an_app_signs_in_and_calls(
    live: Serve, desktop: Desktop, owner: Person, tmp_path: Any, command: list[str], settings: Any
) -> None:
    arguments = settings if isinstance(settings, list) else []
    own = settings if isinstance(settings, dict) else {}
    told = {"GATEWAY_URL": f"{live.url}/mcp/quickstart", "STORE": str(tmp_path / "store.json"), **CALL, **own}

    with desktop.app([*command, *arguments], **told) as app:
        owner.allow(app.opened())
        said = app.result()

    assert {"echo", "add"} <= set(said["tools"])
    assert said["text"] == "hello"


def test_mcp_remote_signs_in_and_calls(live: Serve, desktop: Desktop, owner: Person) -> None:
    url = f"{live.url}/mcp/quickstart"

    with desktop.app([str(MODULES / ".bin" / "mcp-remote"), url, "--allow-http", "--transport", "http-only"]) as app:
        owner.allow(app.opened())
        hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        app.send({"id": 1, "method": "initialize", "params": hello}, {"method": "notifications/initialized"})
        app.send({"id": 2, "method": "tools/list"})
        app.send({"id": 3, "method": "tools/call", "params": {"name": "echo", "arguments": {"text": "hello"}}})
        listed, called = app.answer(2), app.answer(3)

    assert {"echo", "add"} <= {tool["name"] for tool in listed["tools"]}
    assert called["content"][0]["text"] == "hello"


def test_inspector_signs_in_and_calls(live: Serve, desktop: Desktop, owner: Person) -> None:
    """Inspector signs in only when run on a terminal, which the program `script` provides."""
    server = f"--cli --server-url {live.url}/mcp/quickstart --transport http --protocol-era auto"
    asked = "--method tools/call --tool-name add --tool-arg a=2 --tool-arg b=3 --format json"

    with desktop.app(["script", "-qec", f"{MODULES / '.bin' / 'mcp-inspector'} {server} {asked}", "/dev/null"]) as app:
        owner.allow(app.opened())
        said = app.ended()

    result = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert "5" in result["result"]["content"][0]["text"]
