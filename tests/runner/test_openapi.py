"""Operations of an HTTP API as tools: only those listed, with the entry's headers and no others."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

import pytest

from tests.eventually import until
from tests.runner.running import SECRET, Running, runner, text

pytestmark = [pytest.mark.xdist_group("runner"), pytest.mark.full]
OPERATION = {
    "responses": {"200": {"description": "ok", "content": {"application/json": {"schema": {"type": "object"}}}}}
}
DESCRIPTION = {
    "openapi": "3.1.0",
    "info": {"title": "Tickets", "version": "1"},
    "paths": {
        "/tickets": {
            "get": {"operationId": "listTickets", **OPERATION},
            "delete": {"operationId": "deleteTickets", **OPERATION},
        }
    },
}


class Api(BaseHTTPRequestHandler):
    """Describes itself at /openapi.json, and notes the headers of all other requests."""

    seen: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        described = self.path == "/openapi.json"
        if not described:
            self.seen.append({name.lower(): value for name, value in self.headers.items()})
        body = json.dumps(DESCRIPTION if described else {"tickets": [1, 2]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def running(api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    file = tmp_path_factory.mktemp("openapi") / "tickets.json"
    file.write_text(json.dumps(DESCRIPTION))
    common = {"url": api, "headers": {"Authorization": "env:TICKETS"}}
    entries = [
        {"name": "tickets", "document": f"{api}/openapi.json", "operations": ["listTickets"], **common},
        {"name": "from-file", "document": str(file), "operations": ["listTickets"], **common},
        {"name": "wrong", "document": str(file), "operations": ["noSuch"], **common},
    ]
    with runner([], openapi=entries, environment={"TICKETS": "Bearer of-the-api"}) as found:
        yield found


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
@pytest.mark.parametrize("name", ["tickets", "from-file"])
async def test_only_listed_operations_are_tools(running: Running, name: str, mode: str) -> None:
    await until(lambda: running.status(name)["state"] == "running")
    async with running.client(name, mode, person="ana@example.com") as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        answer = text(await client.call_tool("listTickets", {}))

    assert tools == ["listTickets"]
    assert json.loads(answer) == {"tickets": [1, 2]}
    sent = Api.seen[-1]
    assert sent["authorization"] == "Bearer of-the-api"
    assert SECRET not in str(sent)
    assert not {each for each in sent if each.startswith(("mcp-", "x-gateway"))}


async def test_an_operation_that_is_not_there_is_named(running: Running) -> None:
    await until(lambda: "noSuch" in (running.status("wrong")["error"] or ""))

    assert running.status("wrong").items() >= {"kind": "openapi", "state": "failing", "path": "/wrong/mcp"}.items()
    assert running.post("wrong", "tools/list").status_code == 503
