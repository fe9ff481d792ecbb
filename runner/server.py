"""The HTTP server of the runner: the MCP endpoints, and the status for the gateway."""

import asyncio
import contextlib
import hmac
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from runner import VERSION
from runner.document import FileMistakes, RunnerFile
from runner.endpoint import ProgramEndpoint
from runner.openapi import OpenApiEndpoint
from runner.packages import command_of
from runner.process import Accounts, running_processes

logger = logging.getLogger("runner")
FIXED = ("listen", "hosts", "data", "isolation", "uids")  # Changes of these settings need a restart.
type Endpoint = ProgramEndpoint | OpenApiEndpoint


class RunnerApp:
    """The ASGI app of the runner.

    It has an endpoint for each entry of runner.yaml. A later change of runner.yaml has no effect before `reload`.
    """

    def __init__(self, file: RunnerFile, secret: str) -> None:
        self.file, self._secret = file, secret
        self.accounts = Accounts(file)
        self.endpoints: dict[str, Endpoint] = {}
        self._running: dict[str, tuple[asyncio.Event, asyncio.Task[None]]] = {}
        self._changing = asyncio.Lock()
        host, port = file.address
        hosts = {"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host} - {"0.0.0.0"}  # noqa: S104
        accepted = {f"{each}:{port}" for each in hosts} | set(file.value("hosts") or [])
        self._hosts = {each.lower() for each in accepted}

    @contextlib.asynccontextmanager
    async def serving(self) -> Any:
        """Serve the entries of the file while the block runs."""
        await self.accounts.clear()
        await self._apply(self.file)
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            async with self._changing:
                await asyncio.gather(*(self._end(name) for name in list(self._running)))

    async def reload(self, read: Callable[[], RunnerFile]) -> None:
        """Read runner.yaml again with `read`, and apply its changes. Programs with unchanged entries continue to run.

        If the file has mistakes, nothing is changed. The settings in FIXED keep their values until the runner restarts.
        """
        async with self._changing:
            await self._reload(read)

    async def _reload(self, read: Callable[[], RunnerFile]) -> None:
        try:
            file = read()
        except FileMistakes as error:
            logger.warning("The file has mistakes, so nothing was changed:\n%s", error)
            return
        if changed := [name for name in FIXED if file.value(name) != self.file.value(name)]:
            logger.warning("Restart the runner to apply the new settings: %s.", ", ".join(changed))
        kept = {name: self.file.value(name) for name in FIXED}
        await self._apply(replace(file, fields=file.fields | kept))
        logger.info("%s was read again. It has %d entries.", file.path, len(file.entries))

    async def _apply(self, file: RunnerFile) -> None:
        wanted = {entry.name: entry for entry in file.entries}
        gone = [name for name, endpoint in self.endpoints.items() if wanted.get(name) != endpoint.entry]
        await asyncio.gather(*(self._end(name) for name in gone))
        self.file = file
        for entry in file.entries:
            if entry.name in self.endpoints:
                continue
            endpoint: Endpoint = (
                OpenApiEndpoint(entry, file.path.parent)
                if entry.is_openapi
                else ProgramEndpoint(entry, self.accounts, lambda each: command_of(self.file, each))
            )
            stopped = asyncio.Event()
            self.endpoints[entry.name] = endpoint
            self._running[entry.name] = (stopped, asyncio.create_task(endpoint.run(stopped)))
            if entry.error:
                logger.error("%s is not served: %s", entry.name, entry.error)
        await asyncio.sleep(0)  # Lets the endpoints begin to run.

    async def _end(self, name: str) -> None:
        self.endpoints.pop(name, None)
        stopped, task = self._running.pop(name)
        stopped.set()
        await asyncio.wait([task])  # A task that has failed prevents no change of other entries.

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(1)
            endpoints = list(self.endpoints.values())
            programs = [process for endpoint in endpoints for process in endpoint.processes]
            processes = list(await asyncio.to_thread(lambda: list(running_processes()))) if programs else []
            for program in programs:
                program.check_limits(processes)
            for endpoint in endpoints:
                endpoint.stop_idle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        endpoint = self.endpoints.get(scope["path"].removesuffix("/mcp").removeprefix("/"))
        answer = self._refusal(scope, headers) or self._status(scope, endpoint, headers)
        if answer or not endpoint:
            await (answer or _error(404, "Nothing is served at this path."))(scope, receive, send)
            return
        # The secret is not passed on to the endpoints.
        scope = {**scope, "headers": [each for each in scope["headers"] if each[0] != b"authorization"]}
        await endpoint(scope, receive, send)

    def _refusal(self, scope: Scope, headers: dict[bytes, str]) -> JSONResponse | None:
        """Return an error if the request has an unknown Host header, comes from a browser, or lacks the secret.

        The first two checks protect against DNS rebinding. Return None for an allowed request. `/healthz` is answered
        without any check.
        """
        if scope["path"] == "/healthz":
            return JSONResponse({"ok": True})
        if headers.get(b"host", "").lower() not in self._hosts:
            return _error(421, "This Host header is not accepted. Add its value to “hosts” in runner.yaml.")
        if b"origin" in headers:
            return _error(403, "Browsers are not served.")
        scheme, _, token = headers.get(b"authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._secret.encode()):
            return _error(401, "The secret of the runner is missing or wrong.", {"WWW-Authenticate": "Bearer"})
        return None

    def _status(self, scope: Scope, endpoint: Endpoint | None, headers: dict[bytes, str]) -> JSONResponse | None:
        """Return the answer to a request that is not MCP, or to an MCP request that cannot be served.

        Return None for an MCP request that the endpoint can serve.
        """
        match scope["method"], scope["path"].split("/")[1:]:
            case "GET", ["programs"]:
                isolation = "uid" if self.accounts.isolated else "none"
                programs = [described(each) for each in self.endpoints.values()]
                return JSONResponse({"version": VERSION, "isolation": isolation, "programs": programs})
            case "GET", ["programs", name, "stderr"] if name in self.endpoints:
                return JSONResponse({"lines": list(self.endpoints[name].errors.lines)})
            case _, [_, "mcp"] if endpoint:
                if endpoint.has_lost(headers.get(b"mcp-session-id", "")):
                    return _error(404, "The program of this session has ended. Begin another session.")
                if endpoint.entry.error or (endpoint.entry.is_openapi and endpoint.error):
                    return _error(503, f"“{endpoint.entry.name}” is not served: {endpoint.error}")
                return None
        return _error(404, "Nothing is served at this path.")


def described(endpoint: Endpoint) -> dict[str, Any]:
    """Return the description of an endpoint for the answer to `GET /programs`."""
    fields = endpoint.entry.fields
    memory = [program.process.memory_bytes for program in endpoint.programs]
    return {
        "name": endpoint.entry.name,
        "title": fields.get("title") or endpoint.entry.name,
        "description": fields.get("description", ""),
        "kind": "openapi" if endpoint.entry.is_openapi else "program",
        "mode": endpoint.entry.mode,
        "path": f"/{endpoint.entry.name}/mcp",
        "state": endpoint.state,
        "error": (endpoint.error or None) if endpoint.state == "failing" else None,
        "running": len(endpoint.programs),
        "restarts": endpoint.restarts,
        "started_at": endpoint.started_at,
        "last_exit": endpoint.last_exit,
        "memory_bytes": sum(memory) if memory else None,
    }


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    body = {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": message}}
    return JSONResponse(body, status, headers)
