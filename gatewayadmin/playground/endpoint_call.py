"""One request of the playground to the MCP endpoint of this process, and what comes back while it runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

from django.conf import settings

from proxy.request import PREFIX, App, Event, Scope
from wire import jsonrpc, product, sse, stateless, versions
from wire.background import spawn
from wire.jsonrpc import Malformed, Object

RUN_SECONDS = 120  # So long a run may take; then its server is told that nobody waits.
LONGEST_ANSWER = 2 << 20  # Bytes that are kept of an answer; an agent gets more.
MOST_STEPS = 200  # Notifications of one run that are shown.
MOST_RUNS = 16  # At once, in this process: each keeps a response open.
MOST_RUNS_OF_ONE = 3  # Person, so that nobody takes the places of all.
LEAVING_SECONDS = 10
CLIENT = "Gateway Admin playground"
METHODS = {"tool": "tools/call", "prompt": "prompts/get", "resource": "resources/read"}

_endpoint: App | None = None
_taken: dict[object, object] = {}  # The places that are taken, each with whom it was given to.
_taking = threading.Lock()


def serve_by(endpoint: App | None) -> None:
    """Say which endpoint answers in this process, which serves it; None in one that serves no more."""
    global _endpoint  # noqa: PLW0603  (a process has one endpoint)
    _endpoint = endpoint


def is_served() -> bool:
    """Whether this process can run anything."""
    return _endpoint is not None


class Busy(Exception):
    """No place is free for another run; the message says whose runs are in the way."""


class Place:
    """One of the MOST_RUNS, taken before anything is sent and held until the run has ended.

    Of a run that never begins it is given back by whoever gives up, at the latest when nobody knows of it any more.
    """

    def __init__(self, person: object) -> None:
        """Take a place for this person; raises Busy."""
        self._key = object()
        with _taking:
            holders = list(_taken.values())
            if holders.count(person) >= MOST_RUNS_OF_ONE:
                raise Busy(
                    f"{MOST_RUNS_OF_ONE} runs of yours are under way here. Nothing was sent: stop one, or run it again "
                    "when one has ended."
                )
            if len(holders) >= MOST_RUNS:
                raise Busy(
                    "Too many runs are under way here at the moment. Nothing was sent; run it again in a moment."
                )
            _taken[self._key] = person

    def give_back(self) -> None:
        _taken.pop(self._key, None)  # Without the lock, as this may come from the garbage collector at any point.

    __del__ = give_back


class Asked(NamedTuple):
    """What is asked for, as an agent would: the kind of feature, its name or URI, and arguments."""

    kind: str
    name: str
    arguments: Object

    @property
    def params(self) -> Object:
        if self.kind == "resource":
            return {"uri": self.name}
        return {"name": self.name, "arguments": self.arguments}


class Answer(NamedTuple):
    """What an agent would have got; `message` is None where it is no JSON-RPC, or was too large to keep."""

    status: int
    uid: str
    body: bytes
    size: int
    message: Object | None
    left: bool

    @property
    def is_cut(self) -> bool:
        return self.size > len(self.body)


@dataclass
class Exchange:
    """A request under way: `steps` tells what its server reports, `answer` is there when they have ended."""

    slug: str
    asked: Asked
    secret: str = field(repr=False)
    address: str
    place: Place
    answer: Answer | None = None

    def __post_init__(self) -> None:
        self._steps: asyncio.Queue[Object | None] = asyncio.Queue(MOST_STEPS + 1)
        self._gone = asyncio.Event()
        self._sent = False
        self._status, self._headers = 0, dict[bytes, bytes]()
        self._reader = sse.Reader(64 << 20)
        self._body, self._size = bytearray(), 0
        self._task: asyncio.Task[None] | None = None

    async def steps(self) -> AsyncGenerator[Object]:
        """The params of each progress notification, until the answer is there or RUN_SECONDS are over."""
        self._task = spawn("playground call", self._run())
        self._task.add_done_callback(lambda _: self.place.give_back())
        timer = asyncio.get_running_loop().call_later(RUN_SECONDS, self._gone.set)
        try:
            while (step := await self._steps.get()) is not None:
                yield step
        finally:
            timer.cancel()
            self._gone.set()  # Whoever leaves early leaves as an agent does: the call is cancelled, and logged.

    def close(self) -> None:
        """Nobody asks for more. A run that has begun keeps its place until its call has ended."""
        if self._task is None:
            self.place.give_back()

    async def _run(self) -> None:
        try:
            assert _endpoint is not None
            call = asyncio.ensure_future(_endpoint(self._scope(), self._receive, self._send))
            gone = asyncio.ensure_future(self._gone.wait())
            await asyncio.wait({call, gone}, return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            with suppress(Exception):  # What went wrong there is logged there; here it is an answer that never came.
                await asyncio.wait_for(call, LEAVING_SECONDS)
        finally:
            self.answer = self._answered()
            while self._steps.full():
                self._steps.get_nowait()
            self._steps.put_nowait(None)

    def _scope(self) -> Scope:
        """The request, as its client would have sent it over the network."""
        name = {"Mcp-Name": stateless.encoded_value(self.asked.name)}
        headers = {
            "Host": urlsplit(settings.PUBLIC_URL).netloc,
            "Authorization": f"Bearer {self.secret}",
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "User-Agent": CLIENT,
            "MCP-Protocol-Version": versions.MODERN,
            "Mcp-Method": METHODS[self.asked.kind],
            **name,
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
        envelope = stateless.ENVELOPE | {versions.CLIENT_INFO_KEY: {**product.INFO, "name": CLIENT}}
        params = {**self.asked.params, "_meta": {**envelope, "progressToken": 1}}
        return jsonrpc.dumps({"jsonrpc": "2.0", "id": 1, "method": METHODS[self.asked.kind], "params": params})

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
        """An event of the stream: the answer, or what is told before it."""
        note = _parsed(data) if len(data) <= LONGEST_ANSWER else None
        if note is None or "method" not in note:
            self._keep(data)
        elif note["method"] == "notifications/progress" and self._steps.qsize() < MOST_STEPS:
            params = note.get("params")
            self._steps.put_nowait(params if isinstance(params, dict) else {})

    def _keep(self, data: bytes) -> None:
        self._size += len(data)
        self._body += data[: max(LONGEST_ANSWER - len(self._body), 0)]

    def _answered(self) -> Answer:
        uid = self._headers.get(b"x-request-id", b"").decode()
        body = bytes(self._body)
        message = _parsed(body) if self._size <= LONGEST_ANSWER else None
        return Answer(self._status, uid, body, self._size, message, self._gone.is_set() and not self._status)


def _parsed(data: bytes) -> Object | None:
    try:
        value = jsonrpc.loads(data)
    except (Malformed, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
