"""A child process that parses and rewrites large answers, so that they do not block the event loop.

Parsing 30 MB takes half a second and holds the interpreter lock, even in a thread. The process has no state: if it
dies, a new process repeats the current piece of work.
"""

import asyncio
import fcntl
import gc
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import IO, Any

from wire import jsonrpc
from wire.fair_queue import FairQueue, QueueFull
from wire.jsonrpc import MOST_VALUES, Id, Object
from wire.rewriting import Changes, TaskIds, changed

NICE = 5  # Lower the priority of this process, so that calls run first.
IDLE_SECONDS = 60.0
MOST_SECONDS = 20.0  # Time limit for one order.
MOST_MEMORY = 2 << 30  # Address space in bytes. An answer of 64 MiB with as many values as allowed takes a quarter.
PIPE_BYTES = 1 << 20

MOST_MEMBERS = 1_000  # Members of a result, not counting members of nested objects.
LONGEST_OUTLINED = 1_000  # Characters of a string in an outline.


class UnreadableAnswer(Exception):
    """The process could not read this answer; the message says why."""


class ReaderProcess:
    """A child process of this worker process. It does one piece of work at a time.

    If work for several people is waiting, the people take turns.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="large-answers")
        self._lane = FairQueue(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    async def outline(self, text: bytes, person: str = "") -> Object | None:
        """Return the outline of a result. Its strings are truncated; its nested lists and objects are empty.

        Return None if the message must be parsed whole. Raises UnreadableAnswer, or ValueError if the text is not JSON.
        """
        told, _ = await self._order({"work": "outline"}, text, person)
        document: Object | None = told["document"]
        return document

    async def changed(
        self, text: bytes, own_id: Id, request_id: Id | None, changes: Changes, person: str = ""
    ) -> bytes:
        """Run `wire.rewriting.changed` in the process, for an answer with the id `own_id`. Raises UnreadableAnswer."""
        spelled = changes._asdict() | {"drop": list(changes.drop), "add": dict(changes.add)}
        order = {"work": "changed", "own_id": own_id, "request_id": request_id, "changes": spelled}
        return (await self._order(order, text, person))[1]

    async def run(self, work: str, text: bytes, person: str, **given: Any) -> tuple[Object, bytes]:
        """Return the result of the function `work` ("module:name") for `text`, computed in the process.

        Raises ValueError if `work` raises ValueError. Raises UnreadableAnswer for other failures.
        """
        return await self._order({"work": work, **given}, text, person)

    def close(self) -> None:
        """End the process, even while it is working."""
        self._closed = True
        if self._process is not None:
            self._process.kill()
        self._thread.shutdown(cancel_futures=True)
        self._end()

    async def _order(self, order: Object, text: bytes, person: str) -> tuple[Object, bytes]:
        if not self._lane.enter_now(person, person):
            try:
                await self._lane.enter(person, person)
            except QueueFull:
                raise UnreadableAnswer("too many large answers wait") from None
        loop, leave = asyncio.get_running_loop(), partial(self._lane.leave, person, person)
        try:
            carried_out = self._thread.submit(self._carry_out, order, text)
        except RuntimeError:  # The executor was shut down.
            leave()
            raise
        # An order runs to its end even if its caller was cancelled. The next order starts only after that.
        carried_out.add_done_callback(partial(_call_soon, loop, leave))
        told, body = await asyncio.wrap_future(carried_out)
        if fault := told.get("fault"):
            raise ValueError(fault) if told.get("malformed") else UnreadableAnswer(fault)
        return told, body

    def _carry_out(self, order: Object, text: bytes) -> tuple[Object, bytes]:
        for _ in range(2):
            if self._closed:
                break
            began = time.monotonic()
            with suppress(OSError, EOFError):  # The process has ended.
                return self._carry_out_once(order, text)
            self._end()
            if time.monotonic() - began >= MOST_SECONDS:
                return {"fault": f"it takes more than {MOST_SECONDS:g} seconds to read"}, b""
        return {"fault": "it is too large for the available memory"}, b""

    def _carry_out_once(self, order: Object, text: bytes) -> tuple[Object, bytes]:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        watch = threading.Timer(MOST_SECONDS, process.kill)  # Other orders must not wait longer.
        watch.start()
        try:
            _write(process.stdin, order, text)
            return _read(process.stdout)
        finally:
            watch.cancel()

    def _start(self) -> "subprocess.Popen[bytes]":
        root = str(Path(__file__).resolve().parent.parent)
        self._process = process = subprocess.Popen(
            [sys.executable, "-P", "-m", "wire.reader_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": root},
            cwd="/",
        )
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError, AttributeError):  # Only Linux has larger pipes, and limits them per user.
                fcntl.fcntl(pipe or 0, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        return process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    assert pipe is not None
                    pipe.close()
            process.wait()


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], object], _: object) -> None:
    with suppress(RuntimeError):  # The loop is closed.
        loop.call_soon_threadsafe(callback)


def _write(pipe: IO[bytes], told: Object, text: bytes) -> None:
    pipe.write(jsonrpc.dumps({**told, "size": len(text)}) + b"\n")
    pipe.write(text)
    pipe.flush()


def _read(pipe: IO[bytes]) -> tuple[Object, bytes]:
    """Read the next message and the text that follows it. Raises EOFError at the end of the pipe."""
    line = pipe.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    told: Object = jsonrpc.loads(line)
    return told, pipe.read(told.pop("size"))


# The process's side


def run_reader() -> None:
    """Main loop of the process: do the work read from stdin, until no work arrives for IDLE_SECONDS."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # On Ctrl-C, the worker closes the pipe.
    os.nice(NICE)
    gc.disable()  # Parsed messages have no cycles, and looking for them takes longer than parsing.
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    orders, answers = sys.stdin.buffer, sys.stdout.buffer
    with suppress(EOFError, BrokenPipeError):
        while select.select([orders], [], [], IDLE_SECONDS)[0]:
            order, text = _read(orders)
            told, body = _carried_out(order, text)
            _write(answers, told, body)
            del text, body


def _carried_out(order: Object, text: bytes) -> tuple[Object, bytes]:
    work = order.pop("work")
    try:
        carry_out: Any = {"outline": _outline, "changed": _changed}.get(work) or resolve_name(work)
        told, body = carry_out(text, **order)
        return told, body
    except ValueError as error:
        return {"fault": str(error), "malformed": True}, b""
    except MemoryError:
        return {"fault": "it is too large for the available memory"}, b""


def _outline(text: bytes) -> tuple[Object, bytes]:
    if jsonrpc.has_more_values(text, MOST_VALUES):
        return {"fault": f"more than {MOST_VALUES:,} JSON values"}, b""
    document = jsonrpc.loads(text)
    result = document.get("result") if isinstance(document, dict) else None
    if not isinstance(result, dict) or "error" in document or "task" in result:
        return {"document": None}, b""
    if result.get("resultType", "complete") != "complete":
        return {"document": None}, b""
    if len(result) > MOST_MEMBERS:
        return {"fault": f"a result of more than {MOST_MEMBERS:,} members"}, b""
    own = {name: document[name] for name in ("jsonrpc", "id") if name in document}
    short = {name[:LONGEST_OUTLINED]: _short(value) for name, value in result.items()}
    return {"document": {**own, "result": short}}, b""


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return value[:LONGEST_OUTLINED]
    return [] if isinstance(value, list) else {} if isinstance(value, dict) else value


def _changed(text: bytes, own_id: Id, request_id: Id | None, changes: Object) -> tuple[Object, bytes]:
    task = changes.pop("task")
    wanted = Changes(**changes, task=None if task is None else TaskIds(*task))
    if wanted.are_none and (body := jsonrpc.with_sole_id(text, own_id, request_id)) is not None:
        return {}, body
    return {}, changed(text, jsonrpc.loads(text), request_id, wanted)


if __name__ == "__main__":
    run_reader()
