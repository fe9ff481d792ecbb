"""The listed operations of an HTTP API are tools, which send the headers of the entry and none of the client's."""

import json
import signal
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

import pytest

from tests.eventually import until
from tests.runner.running import SECRET, Running, runner, text

pytestmark = pytest.mark.full
OPERATION = {
    "responses": {"200": {"description": "ok", "content": {"application/json": {"schema": {"type": "object"}}}}}
}
DESCRIPTION = {
    "openapi": "3.1.0",
    "info": {"title": "Tickets", "version": "1"},
    "paths": {
        "/tickets": {
            "get": {
                "operationId": "listTickets",
                "parameters": [{"name": "X-Tenant", "in": "header", "schema": {"type": "string"}}],
                **OPERATION,
            },
            "delete": {"operationId": "deleteTickets", **OPERATION},
        },
        "/slow": {"get": {"operationId": "readSlowly", **OPERATION}},
    },
}
# In YAML, 200 is a number, 2026-01-31 is a date, and `no` is false. OpenAPI wants text in all three places.
IN_YAML = """
openapi: 3.1.0
info: {title: Tickets, version: "1"}
paths:
  /tickets:
    get:
      operationId: listTickets
      parameters:
      - {name: country, in: query, schema: {type: string, enum: [no, se, 12:30]}}
      - {name: since, in: query, schema: {type: string, default: 2026-01-31}}
      - {name: open, in: query, required: true, schema: {type: boolean}}
      responses:
        200: {description: ok}
"""


class Api(BaseHTTPRequestHandler):
    """An HTTP API, slow at /slow, that notes the headers of all requests but those for its /openapi.json."""

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
        for part in body.partition(b" "):
            time.sleep(0.7 if self.path == "/slow" else 0)
            self.wfile.write(part)

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
    malformed = file.with_name("malformed.json")
    malformed.write_text(json.dumps(DESCRIPTION | {"paths": {"/tickets": None}}))
    in_yaml = file.with_name("tickets.yaml")
    in_yaml.write_text(IN_YAML)
    common = {"url": api, "headers": {"Authorization": "env:TICKETS", "X-Tenant": "env:TENANT"}}
    entries = [
        {"name": "tickets", "document": f"{api}/openapi.json", "operations": ["listTickets"], **common},
        {"name": "from-file", "document": str(file), "operations": ["listTickets"], **common},
        {"name": "in-yaml", "document": str(in_yaml), "operations": ["listTickets"], **common},
        {"name": "slow", "document": str(file), "operations": ["readSlowly"], "call_seconds": 1, **common},
        {"name": "malformed", "document": str(malformed), "operations": ["listTickets"], **common},
        {"name": "wrong", "document": str(file), "operations": ["noSuch"], **common},
    ]
    with runner([], openapi=entries, environment={"TICKETS": "Bearer of-the-api", "TENANT": "acme"}) as found:
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


async def test_an_argument_does_not_replace_a_header_of_the_entry(running: Running) -> None:
    await until(lambda: running.status("tickets")["state"] == "running")
    async with running.client("tickets") as client:
        await client.call_tool("listTickets", {"X-Tenant": "another"})

    assert Api.seen[-1]["x-tenant"] == "acme"


async def test_a_description_in_yaml_means_the_same_as_in_json(running: Running) -> None:
    await until(lambda: running.status("in-yaml")["state"] == "running")
    async with running.client("in-yaml") as client:
        [tool] = (await client.list_tools()).tools

    asked = tool.input_schema["properties"]
    assert (asked["country"]["enum"], asked["since"]["default"]) == (["no", "se", "12:30"], "2026-01-31")
    assert tool.input_schema["required"] == ["open"]


async def test_an_operation_that_is_not_there_is_named(running: Running) -> None:
    await until(lambda: "noSuch" in (running.status("wrong")["error"] or ""))

    assert running.status("wrong").items() >= {"kind": "openapi", "state": "failing", "path": "/wrong/mcp"}.items()
    assert running.post("wrong", "tools/list").status_code == 503


@pytest.mark.full
async def test_a_request_takes_no_longer_than_its_limit_even_if_parts_of_the_answer_arrive(running: Running) -> None:
    await until(lambda: running.status("slow")["state"] == "running")
    async with running.client("slow") as client:
        result = await client.call_tool("readSlowly", {})

    assert result.is_error
    assert "timed out" in text(result)


async def test_a_malformed_description_prevents_no_change_of_other_entries(running: Running) -> None:
    await until(lambda: "listTickets" in (running.status("malformed")["error"] or ""))
    entries = [each for each in running.document["openapi"] if each["name"] != "malformed"]
    running.write(openapi=[*entries, entries[0] | {"name": "added"}])
    running.process.send_signal(signal.SIGHUP)

    await until(lambda: "/added/mcp" in running.get("/programs").text)
    await until(lambda: running.status("added")["state"] == "running")
