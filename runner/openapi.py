"""Serve an OpenAPI description as an MCP server: each allowed operation of the description is a tool."""

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import yaml
from fastmcp import FastMCP
from fastmcp.server.providers.openapi import MCPType
from starlette.types import ASGIApp, Receive, Scope, Send

from runner.document import RunnerEntry
from runner.process import ErrorLines

logger = logging.getLogger("runner")
MOST_BYTES = 16 * 1024 * 1024
LONGEST_PAUSE = 60
YAML = "tag:yaml.org,2002:"


class _DescriptionLoader(yaml.SafeLoader):
    """Reads YAML as OpenAPI requires it: keys are text, and values have the types of YAML 1.2's core schema.

    PyYAML by itself follows YAML 1.1: it reads `no` as false, `12:30` as 750, and a date as a date object.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != f"{YAML}merge":
                key.tag = f"{YAML}str"
        return super().construct_mapping(node, deep)


_DescriptionLoader.yaml_implicit_resolvers = {}
for kind, pattern, first in (
    ("merge", "<<", "<"),
    ("null", "|~|null|Null|NULL", ["", *"~nN"]),
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    # A number with a leading zero, such as 010, is text, because PyYAML would read it as octal.
    ("int", "[-+]?(0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+)", "-+.0123456789"),
):
    _DescriptionLoader.add_implicit_resolver(f"{YAML}{kind}", re.compile(f"(?:{pattern})\\Z"), first)


class _TimedClient(httpx2.AsyncClient):
    """Limits the time of a whole request. The timeouts of httpx2 limit only single steps, such as one read."""

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        try:
            async with asyncio.timeout(self.timeout.read):
                return await super().send(request, **options)
        except TimeoutError:
            raise httpx2.ReadTimeout(f"no whole answer within {self.timeout.read:g} s", request=request) from None


class DescriptionUnusable(Exception):
    """The OpenAPI description is too long, has no paths, or lacks an operation that runner.yaml names."""


class OpenApiEndpoint:
    """One OpenAPI description of runner.yaml, and its MCP endpoint."""

    programs: Sequence[Any] = ()
    processes: Sequence[Any] = ()
    restarts, started_at, last_exit = 0, None, None

    def __init__(self, entry: RunnerEntry, folder: Path) -> None:
        self.entry, self.errors, self.error = entry, ErrorLines(entry), entry.error or "not read yet"
        self._folder = folder
        self._app: ASGIApp | None = None

    @property
    def state(self) -> str:
        return "running" if self._app else "failing"

    async def run(self, stopped: asyncio.Event) -> None:
        """Read the description and serve it until `stopped`. If reading fails, try again after a pause."""
        if self.entry.error:
            return
        pause = 1
        while not stopped.is_set():
            try:
                app = (await self._server()).http_app(path=f"/{self.entry.name}/mcp", host_origin_protection=False)
                async with app.router.lifespan_context(app):
                    self._app, self.error = app, ""
                    await stopped.wait()
            except Exception as error:  # noqa: BLE001  (a malformed description may raise anything)
                self.error = self.entry.masked(f"{type(error).__name__}: {error}")
                logger.warning("%s: %s", self.entry.name, self.error)
            self._app = None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an MCP request.

        FastMCP forwards most headers to the API, so give FastMCP only the headers that MCP needs.
        """
        assert self._app
        names = (b"accept", b"content-type", b"content-length", b"host")
        headers = [(name, value) for name, value in scope["headers"] if name in names or name.startswith(b"mcp-")]
        await self._app({**scope, "headers": headers}, receive, send)

    def has_lost(self, session: str) -> bool:
        return False

    def stop_idle(self) -> None:
        """Do nothing, because an OpenAPI endpoint has no program that could be idle."""

    async def _server(self) -> FastMCP[Any]:
        fields = self.entry.fields
        description = await self._description()
        allowed = set(fields["operations"])
        known = {
            operation.get("operationId")
            for methods in description["paths"].values()
            if isinstance(methods, dict)
            for operation in methods.values()
            if isinstance(operation, dict)
        }
        if missing := allowed - known:
            raise DescriptionUnusable(f"no operation is called {', '.join(sorted(missing))}")
        client = _TimedClient(
            base_url=fields["url"],
            timeout=fields.get("call_seconds", 30),
            trust_env=False,
            event_hooks={"request": [self._set_headers]},
        )
        return FastMCP.from_openapi(
            description,
            client=client,
            name=fields.get("title") or self.entry.name,
            route_map_fn=lambda route, _: MCPType.TOOL if route.operation_id in allowed else MCPType.EXCLUDE,
        )

    async def _set_headers(self, request: httpx2.Request) -> None:
        for name in [name for name in request.headers if name.startswith("mcp-")]:
            del request.headers[name]
        request.headers.update(self.entry.values)  # Also replaces arguments that an operation sends as these headers.

    async def _description(self) -> dict[str, Any]:
        place = self.entry.fields["document"]
        if place.startswith(("http://", "https://")):
            async with httpx2.AsyncClient(timeout=30, trust_env=False) as client:
                text = (await client.get(place)).raise_for_status().text
        else:
            text = (self._folder / place).read_text()
        if len(text) > MOST_BYTES:
            raise DescriptionUnusable("it is longer than 16 MB")
        found = json.loads(text) if text.lstrip().startswith("{") else yaml.load(text, _DescriptionLoader)  # noqa: S506  (a SafeLoader)
        if not isinstance(found, dict) or not isinstance(found.get("paths"), dict):
            raise DescriptionUnusable("it is no OpenAPI description: “paths” is missing")
        return found
