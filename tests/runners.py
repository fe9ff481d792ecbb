"""A fake runner with a runner's API and an MCP server in place of programs; run it with `tests.asgi_server.running`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.asgi_server import App, Receive, Scope, Send, answer, headers_of

SECRET = "a runner's secret of 32 characters"


def program(name: str, **facts: Any) -> dict[str, Any]:
    """Return a runner's description of a running program; `facts` replace some of the values."""
    usual = {
        "name": name,
        "title": name.title(),
        "description": f"What {name} is for.",
        "kind": "program",
        "mode": "shared",
        "path": f"/{name}/mcp",
        "state": "running",
        "error": None,
        "running": 1,
        "restarts": 0,
        "started_at": "2026-11-20T10:00:00Z",
        "last_exit": None,
        "memory_bytes": 64 << 20,
    }
    return usual | facts


@dataclass
class Runner:
    """A gateway-admin-runner whose programs are all the same MCP server; `lines` has each program's standard error."""

    programs: list[dict[str, Any]]
    mcp: App
    lines: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    secret: str = SECRET

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.mcp(scope, receive, send)
        elif headers_of(scope).get("authorization") != f"Bearer {self.secret}":
            await answer(send, 401, b'{"error": "unauthorized"}')
        elif scope["path"] in [each["path"] for each in self.programs]:
            await self.mcp({**scope, "path": "/mcp", "raw_path": b"/mcp"}, receive, send)
        else:
            told = self._told(scope["path"])
            await answer(send, 404 if told is None else 200, json.dumps(told).encode())

    def _told(self, path: str) -> dict[str, Any] | None:
        if path == "/programs":
            return {"version": "1.0.0", "isolation": "none", "programs": self.programs}
        _, first, name, last = [*path.split("/"), "", "", ""][:4]
        return {"lines": self.lines.get(name, [])} if (first, last) == ("programs", "stderr") else None
