"""One run of the playground: a request to the MCP endpoint in this process, with its progress and answer."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

from django.conf import settings

from proxy.request import PREFIX, App, Event, Scope
from ui.errors import TryLater
from wire import jsonrpc, mcp, sse, versions
from wire.background import spawn
from wire.jsonrpc import MalformedMessage, Object

RUN_SECONDS = 120  # Time limit of a run; then the call is cancelled at its server.
END_SECONDS = 10  # Longest time a run continues after it was cancelled or its page was left.
RETRY_SECONDS = 5  # Retry-After of a refused run.
LONGEST_ANSWER = 2 << 20  # Bytes of an answer that are kept for the page; agents may get longer answers.
MOST_STEPS = 200  # Notifications of one run that wait to be shown; further ones are dropped.
MOST_RUNS = 16  # Concurrent runs in this process: each keeps a response open.
MOST_RUNS_OF_ONE = 3  # Concurrent runs per person.
CLIENT = "Gateway Admin playground"
METHOD_OF_KIND = {"tool": "tools/call", "prompt": "prompts/get", "resource": "resources/read"}

_endpoint: App | None = None
_running: dict[object, object] = {}  # The person of each run.
_lock = threading.Lock()  # Pages begin runs in threads.


def serve_by(endpoint: App | None) -> None:
    """Set the MCP endpoint of this process, or None when the process stops serving."""
    global _endpoint  # noqa: PLW0603  (a process has one endpoint)
    _endpoint = endpoint


def is_served() -> bool:
    """Return whether this process serves an MCP endpoint."""
    return _endpoint is not None


class TooManyRuns(TryLater):
    """Too many runs of the person, or of everybody, are in progress; the message says which."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, RETRY_SECONDS)


class AgentRequest(NamedTuple):
    """A request as an agent would send it: kind of feature, name or URI, and arguments."""

    kind: str
    name: str
    arguments: Object

    @property
    def params(self) -> Object:
        if self.kind == "resource":
            return {"uri": self.name}
        return {"name": self.name, "arguments": self.arguments}


class AgentResponse(NamedTuple):
    """The answer an agent would get."""

    status: int
    uid: str
    body: bytes
    size: int
    message: Object | None  # None if the body is not JSON-RPC or too large to store.
    left: bool  # True if the person or RUN_SECONDS ended the run before an answer began.

    @property
    def is_cut(self) -> bool:
        return self.size > len(self.body)


def _take_place(person: object) -> object:
    """Count another run of `person`, and return the run's key in `_running`. Raises TooManyRuns."""
    with _lock:
        if list(_running.values()).count(person) >= MOST_RUNS_OF_ONE:
            raise TooManyRuns(
                f"{MOST_RUNS_OF_ONE} of your runs are in progress. Nothing was sent: stop a run, or try again when "
                "one has ended."
            )
        if len(_running) >= MOST_RUNS:
            raise TooManyRuns("Too many runs are in progress at the moment. Nothing was sent; try again soon.")
        _running[key := object()] = person
    return key


class Run:
    """A request of `person`, counted as running from its creation until its end. Raises TooManyRuns."""

    def __init__(self, slug: str, asked: AgentRequest, address: str, person: object) -> None:
        self.slug, self.asked, self.address = slug, asked, address
        self.answer: AgentResponse | None = None
        # This finalizer gives the slot back even if the page is never read. It takes no lock, because the garbage
        # collector may call it at any time.
        self._give_back = weakref.finalize(self, _running.pop, _take_place(person), None)
        self._secret = ""
        self._task: asyncio.Task[None] | None = None
        self._steps: asyncio.Queue[Object | None] = asyncio.Queue()
        self._gone = asyncio.Event()
        self._sent = False
        self._status, self._headers = 0, dict[bytes, bytes]()
        self._reader = sse.EventParser(64 << 20)
        self._body, self._size = bytearray(), 0

    async def steps(self, secret: str) -> AsyncGenerator[Object]:
        """Send the request with the token `secret`; yield the params of progress notifications, then set `answer`."""
        self._secret = secret
        self._task = spawn("playground call", self._run())
        self._task.add_done_callback(lambda _: self._give_back())
        timer = self._task.get_loop().call_later(RUN_SECONDS, self._leave)
        try:
            while (step := await self._steps.get()) is not None:
                yield step
        finally:
            timer.cancel()
            self._leave()

    def close(self) -> None:
        """End the run if it is in progress, for example because its page was left. Any thread may call this."""
        if self._task is None:
            self._give_back()
        elif not self._task.done():
            self._task.get_loop().call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        """Disconnect as an agent does, so that the endpoint cancels and logs the call.

        If the task still runs after END_SECONDS, the task is cancelled.
        """
        self._gone.set()
        if self._task is not None and not self._task.done():
            self._task.get_loop().call_later(END_SECONDS, self._task.cancel)

    async def _run(self) -> None:
        assert _endpoint is not None
        # The endpoint logs errors and cancelled calls; the page only shows that there is no answer.
        with suppress(Exception, asyncio.CancelledError):
            await _endpoint(self._scope(), self._receive, self._send)
        body = bytes(self._body)
        message = _parsed(body) if self._size <= LONGEST_ANSWER else None
        uid = self._headers.get(b"x-request-id", b"").decode()
        left = self._gone.is_set() and not self._body
        self.answer = AgentResponse(self._status, uid, body, self._size, message, left)
        self._steps.put_nowait(None)

    def _scope(self) -> Scope:
        """Return the ASGI scope, as for a request over the network."""
        headers = {
            "Host": urlsplit(settings.PUBLIC_URL).netloc,
            "Authorization": f"Bearer {self._secret}",
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "User-Agent": CLIENT,
            "MCP-Protocol-Version": versions.MODERN,
            "Mcp-Method": METHOD_OF_KIND[self.asked.kind],
            "Mcp-Name": mcp.encoded_value(self.asked.name),
        }
        return {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": f"{PREFIX}{self.slug}",
            "headers": [(key.lower().encode(), value.encode("latin-1")) for key, value in headers.items()],
            "client": (self.address, 0),
            "extensions": {},
        }

    def _request(self) -> bytes:
        envelope = mcp.ENVELOPE | {versions.CLIENT_INFO_KEY: {**versions.INFO, "name": CLIENT}}
        params = {**self.asked.params, "_meta": {**envelope, "progressToken": 1}}
        return jsonrpc.dumps({"jsonrpc": "2.0", "id": 1, "method": METHOD_OF_KIND[self.asked.kind], "params": params})

    async def _receive(self) -> Event:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._request(), "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self._status, self._headers = event["status"], dict(event["headers"])
        elif not self._headers.get(b"content-type", b"").startswith(b"text/event-stream"):
            self._keep(event.get("body", b""))
        else:
            for each in self._reader.feed(event.get("body", b"")):
                self._take(each.data)

    def _take(self, data: bytes) -> None:
        """Handle an event of the stream: the answer, or a notification before it."""
        note = _parsed(data) if len(data) <= LONGEST_ANSWER else None
        if note is None or "method" not in note:
            self._keep(data)
        elif note["method"] == "notifications/progress" and self._steps.qsize() < MOST_STEPS:
            params = note.get("params")
            self._steps.put_nowait(params if isinstance(params, dict) else {})

    def _keep(self, data: bytes) -> None:
        self._size += len(data)
        self._body += data[: max(LONGEST_ANSWER - len(self._body), 0)]


def _parsed(data: bytes) -> Object | None:
    try:
        value = jsonrpc.loads(data)
    except (MalformedMessage, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
