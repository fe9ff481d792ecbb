"""A server that records its calls. Each call names a test case, and gets the answer that the test set for the case."""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.proxy.scripted import MODERN, Object, Request, Script, tool

SESSION_ERA, MODERN_ERA = "2025-11-25", MODERN
UNSUPPORTED_VERSION = -32022


class Said(NamedTuple):
    """An answer of the server: a JSON-RPC error if it has a `code`, otherwise plain text.

    `has_id` is False for an error without the request's id. Servers send it if they refuse a request unread.
    """

    status: int
    code: int | None = None
    words: str = "the printer is on fire"
    has_id: bool = True

    @property
    def name(self) -> str:
        kind = "text" if self.code is None else f"{self.code}{'' if self.has_id else ' without an id'}"
        return f"{self.status} {kind} {self.words!r}"

    @property
    def loses_session(self) -> bool:
        """Return True for a 404 without the request's id. Within a session, it says that the session is lost."""
        return self.status == 404 and (self.code is None or not self.has_id)

    def body(self, request_id: object) -> bytes:
        if self.code is None:
            return self.words.encode()
        error: Object = {"code": self.code, "message": self.words}
        if self.code == UNSUPPORTED_VERSION:
            error["data"] = {"supported": [MODERN_ERA], "requested": SESSION_ERA}
        return json.dumps({"jsonrpc": "2.0", "id": request_id if self.has_id else None, "error": error}).encode()


class Arrival(NamedTuple):
    """A received `tools/call`: its protocol version and Mcp-Session-Id, and whether it was executed."""

    era: str
    session: str
    executed: bool


@dataclass
class Counting(Script):
    """A server with one tool, `it`. Its calls name a `case`, and `answers` has the answer to each case.

    If the answer says that the session is lost, the server does not execute the call. It executes the call when the
    client repeats it, unless the server is `forgetful`.
    """

    version: str = SESSION_ERA
    sessions: bool = True
    eras: frozenset[str] = frozenset({SESSION_ERA, MODERN_ERA})
    forgetful: bool = False
    answers: dict[str, Said] = field(default_factory=dict)
    arrivals: dict[str, list[Arrival]] = field(default_factory=lambda: defaultdict(list))
    denied: set[str] = field(default_factory=set)
    """Ids of the sessions that the server said it does not know; it answers their pings with 404, too."""

    def __post_init__(self) -> None:
        self.pages = [[tool("it")]]
        self.call = self._count

    async def serve(self, request: Request, verb: str) -> None:
        era = MODERN_ERA if request.headers.get("mcp-protocol-version") == MODERN_ERA else SESSION_ERA
        session = request.headers.get("mcp-session-id", "")
        if verb != "POST":
            await request.answer(b"", status=200 if verb == "DELETE" else 405)
        elif era not in self.eras:
            self._note(request, era, executed=False)
            await self._refuse_version(request, era)
        elif era == SESSION_ERA and request.message["method"] != "initialize" and session not in self.opened:
            self._note(request, era, executed=False)
            await self._say(request, Said(404, -32001, "Session not found", has_id=False))
        elif request.message["method"] == "ping" and session in self.denied:
            await self._say(request, Said(404, -32001, "Session not found", has_id=False))
        else:
            await self.method(request)

    async def _refuse_version(self, request: Request, era: str) -> None:
        if era == MODERN_ERA:
            text = f"Bad Request: Unsupported protocol version: {era}"
            await self._say(request, Said(400, -32600, text, has_id=False))
        else:
            await self._say(request, Said(400, UNSUPPORTED_VERSION, "Unsupported protocol version"))

    async def _count(self, request: Request) -> None:
        case = case_of(request)
        said = self.answers.get(case)
        is_lost = said is not None and said.loses_session and "mcp-session-id" in request.headers
        executed = not is_lost or (bool(self.arrivals[case]) and not self.forgetful)
        self._note(request, request.headers.get("mcp-protocol-version", ""), executed=executed)
        if not executed:
            self.denied.add(request.headers["mcp-session-id"])
        if said is None or (is_lost and executed):
            await request.answer({"content": [], "resultType": "complete"})
        else:
            await self._say(request, said)

    async def _say(self, request: Request, said: Said) -> None:
        kind = "text/plain" if said.code is None else "application/json"
        headers = {"content-type": kind, "retry-after": "1"}
        await request.respond(said.status, said.body(request.message.get("id")), headers)

    def _note(self, request: Request, era: str, *, executed: bool) -> None:
        if request.message.get("method") == "tools/call":
            session = request.headers.get("mcp-session-id", "")
            self.arrivals[case_of(request)].append(Arrival(era, session, executed))


def case_of(request: Request) -> str:
    return str(request.message["params"]["arguments"]["case"])
