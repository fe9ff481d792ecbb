"""Speak MCP with a running program over its standard input and output.

The runner uses protocol versions of the session era, because all programs support these versions.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any, Protocol

import anyio
from mcp.shared.dispatcher import CallOptions, DispatchContext, ProgressFnT
from mcp.shared.exceptions import MCPError
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp.shared.message import SessionMessage
from mcp.shared.transport_context import TransportContext
from mcp_types import (
    CONNECTION_CLOSED,
    INTERNAL_ERROR,
    JSONRPCError,
    JSONRPCRequest,
    JSONRPCResponse,
    jsonrpc_message_adapter,
)

from runner.process import MESSAGE_BYTES, ErrorLines, Pace, ProgramProcess

MOST_GARBAGE_LINES = 100  # Lines in a row that are not messages.
# Per second, a program may send this many messages, with MESSAGE_BYTES bytes in total. Answers are not counted.
MESSAGES_PER_SECOND = 1000
MOST_UNANSWERED = 100
PING_SECONDS = 10
MAYBE_EXECUTED = "The call may have been executed, and is not sent again."


class ProgramFailed(Exception):
    """The program did not start, or does not speak MCP. The text says why."""


class MessageReceiver(Protocol):
    """Receives the requests and notifications that a program sends."""

    async def on_request(self, method: str, params: Mapping[str, Any] | None) -> dict[str, Any]: ...

    async def on_notification(self, method: str, params: Mapping[str, Any] | None) -> None: ...


class ProgressRelay:
    """Forwards the progress of one request to the client.

    Await `finish` before the result is sent, because nothing can be sent after the result.
    """

    def __init__(self, send: ProgressFnT | None) -> None:
        self._send = send
        self._lock = anyio.Lock()

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None:
        async with self._lock:
            if self._send:
                await self._send(progress, total, message)

    async def finish(self) -> None:
        """Wait until all progress that was received so far has been sent."""
        async with self._lock:
            return


class RunningProgram:
    """An MCP connection to one program."""

    def __init__(
        self, process: ProgramProcess, receiver: MessageReceiver, errors: ErrorLines, *, person: str = ""
    ) -> None:
        self.process, self.person = process, person
        self.introduction: dict[str, Any] = {}
        self.calls = 0
        self.started, self.last_used = time.monotonic(), time.monotonic()
        self._receiver, self._errors = receiver, errors
        self._name = process.entry.name
        self._output, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        write, self._input = anyio.create_memory_object_stream[SessionMessage](0)
        self._dispatcher: JSONRPCDispatcher[TransportContext] = JSONRPCDispatcher(read, write)
        self._ready = asyncio.Event()
        self._unanswered = 0  # The number of requests from the program that have no answer yet.
        self._is_closed = False
        self._task = asyncio.create_task(self._run())
        self._checks: set[asyncio.Task[None]] = set()

    async def _run(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._read_output)
            tasks.start_soon(self._write_input)
            await tasks.start(self._dispatcher.run, self._on_request, self._on_notification)
            self._ready.set()

    async def _read_output(self) -> None:
        garbage, pace, stdout = 0, Pace(MESSAGE_BYTES), self.process.stdout
        async with self._output:
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, ConnectionError):
                while line := await self._next_line(stdout):
                    try:
                        message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                    except ValueError:
                        garbage += 1
                        self._errors.add(self.process.process.pid, f"[standard output] {line.decode(errors='replace')}")
                        if garbage == MOST_GARBAGE_LINES:
                            self.process.kill("printed text that is not JSON-RPC on standard output")
                        continue
                    garbage = 0
                    if not isinstance(message, JSONRPCResponse | JSONRPCError):
                        await pace.spend(max(len(line), MESSAGE_BYTES // MESSAGES_PER_SECOND))
                    self._unanswered += isinstance(message, JSONRPCRequest)
                    if self._unanswered > MOST_UNANSWERED:
                        self.process.kill("does not read the answers to its requests")
                    await self._output.send(SessionMessage(message))
            self._is_closed = True
            self.process.kill("closed its standard output")

    async def _next_line(self, stdout: asyncio.StreamReader) -> bytes:
        """Return the next non-blank line; b"" at the end. If a line is too long, kill the program and return b""."""
        try:
            while line := await stdout.readuntil(b"\n"):
                if line.strip():
                    return line
        except asyncio.IncompleteReadError:
            await self.process.ends_soon()
        except asyncio.LimitOverrunError:
            self.process.kill(f"sent a message of more than {MESSAGE_BYTES // 1_048_576} MB")
        return b""

    async def _write_input(self) -> None:
        with contextlib.suppress(ConnectionError):
            async with self._input:
                async for sent in self._input:
                    data = sent.message.model_dump_json(by_alias=True, exclude_unset=True)
                    self.process.stdin.write(f"{data}\n".encode())
                    await self.process.stdin.drain()
                    self._unanswered -= isinstance(sent.message, JSONRPCResponse | JSONRPCError)

    async def _on_request(
        self, context: DispatchContext[TransportContext], method: str, params: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        try:
            return {} if method == "ping" else await self._receiver.on_request(method, params)
        except asyncio.CancelledError:  # Cancelled by the program, which then gets no answer.
            self._unanswered -= 1
            raise

    async def _on_notification(
        self, context: DispatchContext[TransportContext], method: str, params: Mapping[str, Any] | None
    ) -> None:
        await self._receiver.on_notification(method, params)

    async def introduce(self, params: Mapping[str, Any]) -> None:
        """Open the session with the program. Raises ProgramFailed."""
        seconds = self.process.entry.limit("start_seconds")
        try:
            with anyio.fail_after(seconds):
                await self._ready.wait()
                found = await self._dispatcher.send_raw_request("initialize", params, {"cancel_on_abandon": False})
        except TimeoutError:
            raise ProgramFailed(f"did not answer “initialize” within {seconds} s") from None
        except MCPError as error:
            if self._is_closed:
                raise ProgramFailed(await self._end_reason()) from None
            raise ProgramFailed(f"refused “initialize”: {error.error.message}") from None
        if not isinstance(found.get("capabilities"), dict) or not isinstance(found.get("serverInfo"), dict):
            raise ProgramFailed("answered “initialize” without “capabilities” or “serverInfo”")
        self.introduction = found
        await self._dispatcher.notify("notifications/initialized", None)

    async def request(
        self, method: str, params: Mapping[str, Any] | None, on_progress: ProgressFnT | None = None
    ) -> dict[str, Any]:
        """Return the program's result.

        Raises MCPError if the program answers with an error, ends or is too slow.
        """
        progress = ProgressRelay(on_progress)
        options: CallOptions = {"on_progress": progress} if on_progress else {}
        seconds = self.process.entry.limit("call_seconds")
        self.calls += 1
        try:
            with anyio.fail_after(seconds):
                result = await self._dispatcher.send_raw_request(method, params, options)
                await progress.finish()
                return result
        except TimeoutError:
            self._check_in_background()
            text = f"“{self._name}” did not answer within {seconds} s. {MAYBE_EXECUTED}"
            raise MCPError(INTERNAL_ERROR, text) from None
        except MCPError as error:
            if not self._is_closed or error.code != CONNECTION_CLOSED:
                raise
            text = (
                f"The program of “{self._name}” ended during this call ({await self._end_reason()}). {MAYBE_EXECUTED}"
            )
            raise MCPError(INTERNAL_ERROR, text) from None
        finally:
            self.calls -= 1
            self.last_used = time.monotonic()

    async def notify(self, method: str, params: Mapping[str, Any] | None) -> None:
        await self._dispatcher.notify(method, params)

    async def _end_reason(self) -> str:
        await self.process.exited.wait()
        return str((self.process.last_exit or {}).get("reason"))

    def _check_in_background(self) -> None:
        check = asyncio.create_task(self._check_alive())
        self._checks.add(check)
        check.add_done_callback(self._checks.discard)

    async def _check_alive(self) -> None:
        """Send a ping to the program, and kill the program if it does not answer."""
        with contextlib.suppress(MCPError):
            try:
                with anyio.fail_after(PING_SECONDS):
                    await self._dispatcher.send_raw_request("ping", None)
            except TimeoutError:
                self.process.kill("does not answer")
