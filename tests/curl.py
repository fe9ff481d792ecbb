"""Sends MCP requests with curl, as the tutorial does, and returns the raw responses."""

import json
import subprocess
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def result(self) -> Any:
        return self.json["result"]

    @property
    def tools(self) -> list[str]:
        return [tool["name"] for tool in self.result["tools"]]

    @property
    def text(self) -> str:
        """Return the text of a tool's result."""
        return "".join(block["text"] for block in self.result["content"] if block["type"] == "text")


def post(url: str, token: str | None, message: object, *headers: str) -> Answer:
    """POST one JSON-RPC message as in the tutorial: no handshake, no session, `Accept: */*`."""
    command = ["curl", "-sS", "--max-time", "30", "-i", "-X", "POST", url]
    command += ["-H", "Content-Type: application/json"]
    if token is not None:
        command += ["-H", f"Authorization: Bearer {token}"]
    for header in headers:
        command += ["-H", header]
    return run([*command, "-d", message if isinstance(message, str) else json.dumps(message)])


def run(command: list[str]) -> Answer:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
    status, *lines = head.splitlines()
    headers = dict(line.split(": ", 1) for line in lines if ": " in line)
    return Answer(
        int(status.split()[1]),
        {name.lower(): value for name, value in headers.items()},
        body,
    )


def list_tools(url: str, token: str | None) -> Answer:
    return post(url, token, {"jsonrpc": "2.0", "id": 1, "method": "tools/list"})


def call_tool(url: str, token: str | None, tool: str, /, **arguments: object) -> Answer:
    params = {"name": tool, "arguments": arguments}
    return post(
        url,
        token,
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params},
    )
