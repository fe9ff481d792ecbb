"""Serve the programs of an entry of runner.yaml over Streamable HTTP, to clients of MCP 2026-07-28 and earlier.

A program in the mode `shared` cannot say which client a message is for. So log messages, elicitation, sampling and
roots need the mode `session`. In that mode, each session has a program of its own. A request of MCP 2026-07-28, which
belongs to no session, has one, too.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import unquote

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.session import ServerSession
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp.shared.subscriptions import event_from_wire
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    SERVER_INFO_META_KEY,
    ClientResult,
    CreateMessageRequest,
    CreateMessageResult,
    ElicitRequest,
    ElicitResult,
    InitializeRequestParams,
    ListRootsRequest,
    ListRootsResult,
    server_notification_adapter,
)
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, LATEST_HANDSHAKE_VERSION, MODERN_PROTOCOL_VERSIONS
from starlette.types import Receive, Scope, Send

from runner import VERSION
from runner.document import RunnerEntry
from runner.process import MESSAGE_BYTES, PATH, Accounts, ErrorLines, ProgramProcess
from runner.program import ProgramFailed, RunningProgram

PERSON_HEADER = "x-gateway-user"
LONGEST_BACKOFF, SHORTEST_STABLE_RUN, LONGEST_WAIT = 60, 60, 2
LISTS = ("tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read")
MODERN_METHODS = {*LISTS, "tools/call", "prompts/get", "completion/complete"}
OLD_NOT_FOUND = -32002  # The error code of a missing resource, in MCP versions before 2026-07-28.
ASKS: Mapping[str, tuple[Any, Any]] = {
    "elicitation/create": (ElicitRequest, ElicitResult),
    "sampling/createMessage": (CreateMessageRequest, CreateMessageResult),
    "roots/list": (ListRootsRequest, ListRootsResult),
}
RUNNER_CLIENT = {
    "protocolVersion": LATEST_HANDSHAKE_VERSION,
    "capabilities": {},
    "clientInfo": {"name": "gateway-admin-runner", "version": VERSION},
}
type Context = ServerRequestContext[Any, Any]


class SessionClient:
    """Forwards a program's notifications and requests to the one session that the program serves."""

    def __init__(self, session: ServerSession) -> None:
        self._session = session
        self.calls: dict[Any, Context] = {}  # Running calls, the newest last.

    async def on_request(self, method: str, params: Mapping[str, Any] | None) -> dict[str, Any]:
        if method not in ASKS:
            raise MCPError(METHOD_NOT_FOUND, "Method not found", method)
        request, result = ASKS[method]
        typed = request.model_validate({"method": method, "params": params}, by_name=False)
        call = next(reversed(self.calls.values()), None)
        metadata = ServerMessageMetadata(related_request_id=call.request_id) if call else None
        session = call.session if call else self._session
        answer: ClientResult = await session.send_request(typed, result, metadata=metadata)
        return answer.model_dump(by_alias=True, mode="json", exclude_none=True)

    async def on_notification(self, method: str, params: Mapping[str, Any] | None) -> None:
        if method in ("notifications/progress", "notifications/cancelled"):
            return  # The dispatcher has already handled this notification.
        notification = server_notification_adapter.validate_python({"method": method, "params": params}, by_name=False)
        call = next(reversed(self.calls.values()), None) if method == "notifications/message" else None
        session = call.session if call else self._session
        await session.send_notification(notification, related_request_id=call.request_id if call else None)


class SharedClients:
    """The clients of a shared program. They get the program's notifications; the program's requests are refused."""

    def __init__(self) -> None:
        self.subscriptions: dict[ServerSession, set[str]] = {}
        self.listened: list[set[str]] = []  # The URIs of each open `subscriptions/listen`.
        self.bus = InMemorySubscriptionBus()

    async def on_request(self, method: str, params: Mapping[str, Any] | None) -> dict[str, Any]:
        text = "Programs can send requests to clients only in a session, with “mode: session”."
        raise MCPError(METHOD_NOT_FOUND, text, method)

    async def on_notification(self, method: str, params: Mapping[str, Any] | None) -> None:
        event = event_from_wire(method, params)
        if event is None:
            return
        await self.bus.publish(event)
        uri = getattr(event, "uri", None)
        notification = server_notification_adapter.validate_python({"method": method, "params": params}, by_name=False)
        for session, uris in list(self.subscriptions.items()):
            if uri is None or uri in uris:
                await session.send_notification(notification)

    def uris(self) -> set[str]:
        """Return the URIs of all resources to which at least one client subscribes."""
        return set().union(*self.subscriptions.values(), *self.listened)


class ProgramEndpoint:
    """The MCP endpoint of one entry of runner.yaml, with the entry's running programs and their state."""

    def __init__(
        self, entry: RunnerEntry, accounts: Accounts, command: Callable[[RunnerEntry], tuple[list[str], str]]
    ) -> None:
        self.entry, self.errors = entry, ErrorLines(entry)
        self.programs: set[RunningProgram] = set()
        self.processes: set[ProgramProcess] = set()  # Those of `programs`, and of programs that are starting.
        self.restarts, self.error = 0, entry.error
        self.started_at: str | None = None
        self.last_exit: dict[str, Any] | None = None
        self._sessions: dict[str, RunningProgram] = {}
        self._accounts, self._command = accounts, command
        self._failures, self._not_before, self._has_crashed = 0, 0.0, False
        self._starting: list[str] = []  # The people whose programs are starting.
        self._is_ended = False
        self._lock = asyncio.Lock()
        self._shared: RunningProgram | None = None
        self._cleanup: asyncio.Task[Any] | None = None
        self._clients = SharedClients()
        self._tasks: set[asyncio.Task[Any]] = set()
        listen = ListenHandler(self._clients.bus) if self._is_shared else None
        server: Server[Any] = Server(entry.name, version=VERSION, on_subscriptions_listen=listen)
        server.middleware.append(self._handle)
        never = not self._is_shared and not entry.idle_seconds
        self._manager = StreamableHTTPSessionManager(
            server,
            max_request_body_size=MESSAGE_BYTES,
            session_idle_timeout=None if never else max(entry.idle_seconds, 1800),
        )

    @property
    def _is_shared(self) -> bool:
        return self.entry.mode == "shared"

    @property
    def state(self) -> str:
        if self.entry.error:
            return "failing"
        if self._starting:
            return "starting"
        if self.programs:
            return "running"
        return "failing" if self.error else "idle"

    async def run(self, stopped: asyncio.Event) -> None:
        """Serve until `stopped`, then end all programs."""
        async with self._manager.run():
            await stopped.wait()
            self._is_ended = True
            await asyncio.gather(*(each.process.stop("the runner stops it") for each in self.programs))
        while self._starting:  # noqa: ASYNC110  Takes start_seconds at most.
            await asyncio.sleep(0.05)
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._manager.handle_request(scope, receive, send)

    async def _handle(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        program: RunningProgram | None = _state(ctx).get("program")
        if ctx.request_id is None:
            if program and ctx.method == "notifications/roots/list_changed":
                await program.notify(ctx.method, ctx.params)
            return await call_next(ctx)
        if self.entry.error:
            raise MCPError(INTERNAL_ERROR, f"“{self.entry.name}” cannot be started: {self.entry.error}")
        if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
            return await self._without_session(ctx, call_next)
        if ctx.method == "initialize":
            return await self._open_session(ctx)
        if ctx.method == "ping":
            return await call_next(ctx)
        return await self._in_session(ctx, program)

    # Requests of a session

    async def _open_session(self, ctx: Context) -> dict[str, Any]:
        client = InitializeRequestParams.model_validate(ctx.params or {}, by_name=False)
        connection = ctx.session._connection  # noqa: SLF001  docs/explanation/private-interfaces.md
        if self._is_shared:
            program = await self._shared_program()
            self._clients.subscriptions[ctx.session] = set()
            connection.state["session"] = ctx.session
            connection.exit_stack.callback(self._clients.subscriptions.pop, ctx.session, None)
        else:
            params = dict(ctx.params or {})
            params["capabilities"] = {key: each for key, each in params["capabilities"].items() if key != "tasks"}
            receiver = SessionClient(ctx.session)
            program = await self._start(receiver, params, person=self._person(ctx))
            connection.state.update(program=program, client=receiver)
            session = str(connection.session_id)
            self._sessions[session] = program
            connection.exit_stack.callback(self._end_session, session)
        wanted = client.protocol_version
        version = wanted if wanted in HANDSHAKE_PROTOCOL_VERSIONS else LATEST_HANDSHAKE_VERSION
        return program.introduction | {"protocolVersion": version, "capabilities": self._capabilities(program)}

    def _end_session(self, session: str) -> None:
        self._in_background(self._sessions.pop(session).process.stop("its session ended"))

    def has_lost(self, session: str) -> bool:
        """True if the session's program has ended. The client then has to begin another session."""
        program = self._sessions.get(session)
        return program is not None and (program.process.is_stopped or program.process.exited.is_set())

    async def _in_session(self, ctx: Context, program: RunningProgram | None) -> dict[str, Any]:
        client: SessionClient | None = _state(ctx).get("client")
        if client and program:
            if self._person(ctx) != program.person:
                raise MCPError(INVALID_REQUEST, "This session belongs to another person.")
            client.calls[ctx.request_id] = ctx
            try:
                return await program.request(ctx.method, ctx.params, _progress_of(ctx))
            finally:
                client.calls.pop(ctx.request_id, None)
        uris = self._clients.subscriptions.get(_state(ctx).get("session"))  # type: ignore[arg-type]
        if uris is None:
            raise MCPError(INVALID_REQUEST, "Send “initialize” first.")
        if ctx.method.startswith(("tasks/", "logging/")):
            raise MCPError(METHOD_NOT_FOUND, "Method not found", ctx.method)
        return await self._to_shared(ctx, uris)

    async def _to_shared(self, ctx: Context, uris: set[str]) -> dict[str, Any]:
        uri = str((ctx.params or {}).get("uri", ""))
        if ctx.method == "resources/unsubscribe":
            uris.discard(uri)
            if uri in self._clients.uris():
                return {}
        program = await self._shared_program()
        result = await program.request(ctx.method, ctx.params, _progress_of(ctx))
        if ctx.method == "resources/subscribe":
            uris.add(uri)
        return result

    # Requests without a session (MCP 2026-07-28)

    async def _without_session(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        if ctx.method == "server/discover":
            return await self._discover()
        if ctx.method == "subscriptions/listen" and self._is_shared:
            program = await self._shared_program()
            wanted = (ctx.params or {}).get("notifications", {}).get("resourceSubscriptions") or []
            uris = {uri for uri in wanted if isinstance(uri, str)}
            await self._subscribe(program, uris)
            self._clients.listened.append(uris)
            try:
                return await call_next(ctx)
            finally:
                self._clients.listened.remove(uris)
        if ctx.method not in MODERN_METHODS:
            raise MCPError(METHOD_NOT_FOUND, "Method not found", ctx.method)
        params = {
            key: each for key, each in (ctx.params or {}).items() if key not in ("inputResponses", "requestState")
        }
        meta = params.pop("_meta", {}) or {}
        params["_meta"] = {key: each for key, each in meta.items() if not key.startswith("io.modelcontextprotocol/")}
        program = await self._shared_program() if self._is_shared else await self._program_of_request(ctx)
        try:
            result = await program.request(ctx.method, params, _progress_of(ctx))
        except MCPError as error:
            code = INVALID_PARAMS if error.code == OLD_NOT_FOUND else error.code
            raise MCPError(code, error.error.message, error.error.data) from None
        finally:
            if not self._is_shared:
                self._in_background(program.process.stop("its request ended"))
        return _modern(ctx.method, result, program)

    async def _program_of_request(self, ctx: Context) -> RunningProgram:
        return await self._start(self._clients, RUNNER_CLIENT, person=self._person(ctx))

    async def _discover(self) -> dict[str, Any]:
        if not self._is_shared:  # MCP 2026-07-28 has no sessions, so only earlier versions are offered.
            info = {"serverInfo": {"name": self.entry.name, "version": VERSION}}
            return _modern(LISTS[0], {"supportedVersions": [*HANDSHAKE_PROTOCOL_VERSIONS], "capabilities": {}}, info)
        program = await self._shared_program()
        described = {
            "supportedVersions": [*MODERN_PROTOCOL_VERSIONS, *HANDSHAKE_PROTOCOL_VERSIONS],
            "capabilities": self._capabilities(program),
        }
        if "instructions" in program.introduction:
            described["instructions"] = program.introduction["instructions"]
        return _modern(LISTS[0], described, program)

    def _capabilities(self, program: RunningProgram) -> dict[str, Any]:
        unshared = ("logging", "tasks") if self._is_shared else ()
        return {key: each for key, each in program.introduction["capabilities"].items() if key not in unshared}

    def _person(self, ctx: Context) -> str:
        """Return the request's person, or "". Raises MCPError if the entry needs a person but the request has none."""
        person = str(ctx.request.headers.get(PERSON_HEADER, "")) if ctx.request else ""
        if "person" in self.entry.fields and not person:
            raise MCPError(
                INVALID_REQUEST, f"“{self.entry.name}” needs a person: the header X-Gateway-User is missing."
            )
        return unquote(person)

    # Programs

    async def _shared_program(self) -> RunningProgram:
        async with self._lock:
            if self._shared is None or self._shared.process.is_stopped or self._shared.process.exited.is_set():
                if self._cleanup:  # After the cleanup, the user and home of the previous program are free.
                    await asyncio.wait([self._cleanup])
                self._shared = await self._start(self._clients, RUNNER_CLIENT)
                await self._subscribe(self._shared, self._clients.uris())
            return self._shared

    async def _subscribe(self, program: RunningProgram, uris: set[str]) -> None:
        with contextlib.suppress(TimeoutError):  # Calls wait meanwhile.
            async with asyncio.timeout(self.entry.limit("start_seconds")):
                for uri in uris:
                    with contextlib.suppress(MCPError):  # Not every program has subscriptions.
                        await program.request("resources/subscribe", {"uri": uri})

    async def _start(
        self, receiver: SessionClient | SharedClients, params: Mapping[str, Any], *, person: str = ""
    ) -> RunningProgram:
        """Start a program, after the pause that follows a failure.

        Raises MCPError if the program does not start, if too many programs are running, or if the pause lasts longer
        than LONGEST_WAIT seconds.
        """
        pause = self._not_before - time.monotonic()
        if pause > LONGEST_WAIT:
            raise self._not_started(f"{self.error}; next start in {round(pause)} s")
        limit = 1 if self._is_shared else self.entry.limit("programs")
        persons = [*self._starting, *(each.person for each in self.programs)]
        if len(persons) >= limit:
            raise self._not_started("as many programs as “limits.programs” allows are running; try again later")
        if person and persons.count(person) >= max(1, limit // 2):
            raise self._not_started(
                "this person runs half of “limits.programs”, which is the most for a person; end a session"
            )
        self._starting.append(person)
        try:
            await asyncio.sleep(max(0.0, pause))
            program = await self._started(receiver, params, person)
        except (OSError, LookupError, ProgramFailed) as error:
            self._note_failure(self.entry.masked(str(error)))
            raise self._not_started(self.error) from None
        finally:
            self._starting.remove(person)
        self.programs.add(program)
        self.error = ""
        self.restarts += self._has_crashed
        self._has_crashed = False
        self._cleanup = self._in_background(self._after(program))
        return program

    def _not_started(self, reason: str) -> MCPError:
        return MCPError(INTERNAL_ERROR, f"The program of “{self.entry.name}” was not started: {reason}.")

    async def _started(
        self, receiver: SessionClient | SharedClients, params: Mapping[str, Any], person: str
    ) -> RunningProgram:
        command, folder = self._command(self.entry)
        account = self._accounts.take(self.entry.name, lasting=self._is_shared)
        variables = self.entry.variables(account.home)
        if folder:
            variables.setdefault("PATH", f"{folder}:{PATH}")
        if "person" in self.entry.fields:
            variables[self.entry.fields["person"]] = person
        process = None
        try:
            process = await ProgramProcess.start(self.entry, account, self.errors, command, variables)
            self.processes.add(process)
            program = RunningProgram(process, receiver, self.errors, person=person)
            await program.introduce(params)
            if self._is_ended:
                raise ProgramFailed("it was removed from the file")
        except BaseException:
            self._cleanup = self._in_background(self._discard(process, account))
            raise
        self.started_at = process.started_at
        return program

    async def _discard(self, process: ProgramProcess | None, account: Any) -> None:
        if process:
            process.kill("did not start")
            await process.exited.wait()
            self.processes.discard(process)
            self.last_exit = process.last_exit
        await self._accounts.give_back(account)

    async def _after(self, program: RunningProgram) -> None:
        await program.process.exited.wait()
        self.programs.discard(program)
        self.processes.discard(program.process)
        self.last_exit = program.process.last_exit
        if time.monotonic() - program.started > SHORTEST_STABLE_RUN:
            self._failures = 0
        if not program.process.is_stopped:
            self._has_crashed = True
            if self._is_shared:
                self._note_failure(str((self.last_exit or {}).get("reason")))
        await self._accounts.give_back(program.process.account)

    def _note_failure(self, reason: str) -> None:
        self.error = reason
        if not self._is_shared:
            return  # No pause: the failure may concern one person, and others need not wait.
        self._failures += 1
        self._not_before = time.monotonic() + min(LONGEST_BACKOFF, 2 ** min(self._failures - 1, 10))

    def stop_idle(self) -> None:
        """End programs that had no call for longer than the entry allows.

        A shared program is not ended while a client subscribes to one of its resources.
        """
        seconds = self.entry.idle_seconds
        if not seconds or (self._is_shared and self._clients.uris()):
            return
        for program in self.programs:
            if not program.calls and time.monotonic() - program.last_used > seconds and not program.process.is_stopped:
                self._in_background(program.process.stop(f"idle for {seconds} s"))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _state(ctx: Context) -> dict[str, Any]:
    return ctx.session._connection.state  # noqa: SLF001


def _progress_of(ctx: Context) -> Any:
    meta = (ctx.params or {}).get("_meta") or {}
    return ctx.session.report_progress if "progressToken" in meta else None


def _modern(method: str, result: dict[str, Any], program: Any) -> dict[str, Any]:
    """Return a result in the form of MCP 2026-07-28."""
    introduction = program if isinstance(program, dict) else program.introduction
    meta = {**(result.get("_meta") or {}), SERVER_INFO_META_KEY: introduction["serverInfo"]}
    hints = {"ttlMs": 0, "cacheScope": "private"} if method in LISTS else {}
    return {**result, **hints, "resultType": "complete", "_meta": meta}
