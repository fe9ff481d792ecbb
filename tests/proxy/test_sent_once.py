"""A call is sent once: whatever the server answers, the gateway does not repeat the call, and logs the answer."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from itertools import product
from typing import NamedTuple, Self
from urllib.parse import urlsplit
from uuid import UUID

import pytest

from auditlog.models import Call
from tests.cases import full
from tests.conftest import Run
from tests.eventually import PATIENCE
from tests.proxy.asking import BOTH
from tests.proxy.conftest import Agent, Proxy
from tests.proxy.counting import MODERN_ERA, SESSION_ERA, UNSUPPORTED_VERSION, Counting, Said
from tests.proxy.features import offer
from tests.proxy.test_endpoint import modern
from tests.proxy.test_tools_call import Work, work_of
from wire import jsonrpc

STATUSES = [int(status) for status in HTTPStatus if status >= 400]
CODES = [-32700, -32600, -32601, -32602, -32603, -32001, -32020, UNSUPPORTED_VERSION]
WORDS = [
    "session not found",
    "Bad Request: No valid session ID provided",
    "browser session 'a1' is closed; order 77 was placed",
]
ANSWERS = [
    *(Said(status, code) for status in STATUSES for code in (None, *CODES)),
    *(Said(200, code) for code in CODES),
    *(Said(status, code, has_id=False) for status in (400, 404, 409, 500) for code in CODES),
    *(Said(status, code, words) for status in (400, 404, 409, 422, 500) for code in (None, -32000) for words in WORDS),
    Said(400, -32602, WORDS[2]),
    Said(200, -32602, WORDS[2]),
]
CREDENTIAL_REFUSED = (401, 403)

SERVERS = {
    "session": frozenset({SESSION_ERA}),
    "modern": frozenset({MODERN_ERA}),
    "both": frozenset({SESSION_ERA, MODERN_ERA}),
}
# Advice in an error message after which an agent would repeat a call.
ADVICE = ("nothing was executed", "not executed", "call again", "try again", "retry")
AT_ONCE = 24


class Reply(NamedTuple):
    """An answer of the gateway; header names are in lower case."""

    status: int
    headers: dict[str, str]
    text: str


@dataclass
class HttpConnection:
    """A minimal HTTP client with one connection; a general client would take several times as long as the gateway."""

    host: str
    path: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, url: str) -> Self:
        parts = urlsplit(url)
        return cls(parts.netloc, parts.path, *await asyncio.open_connection(parts.hostname, parts.port))

    async def post(self, message: object, headers: dict[str, str]) -> Reply:
        body = json.dumps(message).encode()
        own = {"Host": self.host, "Content-Type": "application/json", "Content-Length": str(len(body))}
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in (own | headers).items())]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        first, *rest = (await self.reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        pairs = (line.split(": ", 1) for line in rest)
        received = {name.lower(): value for name, value in pairs}
        text = await self.reader.readexactly(int(received["content-length"]))
        return Reply(int(first.split()[1]), received, text.decode())

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


@dataclass
class Case:
    """A call: the server's answer (`said`), and the gateway's reply to the client."""

    said: Said
    reply: Reply | None = None

    @property
    def uid(self) -> UUID:
        assert self.reply is not None
        return UUID(self.reply.headers["x-request-id"])


@dataclass
class Caller:
    """A client of one era; `sessions` is True if it opens sessions at the gateway."""

    agent: Agent
    era: str
    sessions: bool
    connection: HttpConnection
    session: str = ""

    async def call(self, case: Case, name: str) -> None:
        if self.sessions and not self.session:
            self.session = await self._initialize()
        params = {"name": name, "arguments": {"case": case.said.name}}
        if self.era == MODERN_ERA:
            body, headers = modern("tools/call", params)
        else:
            body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
            headers = {"Mcp-Session-Id": self.session} if self.sessions else {}
        case.reply = await self._post(body, headers)
        if case.said.loses_session:
            self.session = ""

    async def _initialize(self) -> str:
        info = {"name": "probe", "version": "1"}
        params = {"protocolVersion": SESSION_ERA, "capabilities": {}, "clientInfo": info}
        opened = await self._post({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}, {})
        return opened.headers["mcp-session-id"]

    async def _post(self, body: object, headers: dict[str, str]) -> Reply:
        own = {"Authorization": f"Bearer {self.agent.secret}", "Accept": BOTH}
        return await self.connection.post(body, own | headers)


async def call_all(agent: Agent, cases: Iterable[Case], name: str, *, era: str, sessions: bool) -> None:
    """Call once for each case, several at a time."""
    left: Iterator[Case] = iter(cases)

    async def caller() -> None:
        own = Caller(agent, era, sessions, await HttpConnection.open(agent.url))
        for case in left:
            await own.call(case, name)
        await own.connection.close()

    async with asyncio.timeout(10 * PATIENCE):
        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))


@pytest.fixture
def work(proxy: Proxy, run: Run, caplog: pytest.LogCaptureFixture) -> Work:
    caplog.set_level("WARNING", "uvicorn.access")  # Thousands of lines would hide the cases that failed.
    return work_of(proxy, run)


def put(work: Work, server: Counting) -> None:
    """Add this server to the gateway, list its tool, and call it once."""
    work.put(server.app())
    offer("it", "tool")
    work.agent.listed()
    assert "result" in work.agent.call("docs__it", {"case": "warm-up"}).json()


def answer_to(said: Said, *, is_lost: bool, sessions: bool) -> tuple[str, int | None, str]:
    """Return the expected outcome in the log, the error code for the client, and words of the error message."""
    if is_lost and not sessions:
        return "ok", None, ""
    if is_lost:
        return "upstream_error", jsonrpc.UNKNOWN_SESSION, "Session not found"
    if said.status in CREDENTIAL_REFUSED:
        return "upstream_error", jsonrpc.INTERNAL_ERROR, "refused the credential"
    if said.code is not None:
        return "rpc_error", said.code, said.words
    return "upstream_error", jsonrpc.INTERNAL_ERROR, f"HTTP {said.status}"


def faults_of(case: Case, rows: list[Call], server: Counting, *, era: str, sessions: bool) -> Iterator[str]:
    """Yield the faults in how this call was sent, recorded and answered."""
    arrivals = server.arrivals[case.said.name]
    served_in = era if era in server.eras else next(iter(server.eras))
    is_lost = case.said.loses_session and served_in == SESSION_ERA
    if (eras := [each.era for each in arrivals]) != [served_in] * len(arrivals):
        yield f"sent in {eras}, not in {served_in}"
    executed = [each.executed for each in arrivals]
    if executed != ([True] if not is_lost else [False] if sessions else [False, True]):
        yield f"arrived {len(executed)} times, executed {sum(executed)} times"
    if is_lost and len({each.session for each in arrivals}) != len(arrivals):
        yield "sent again in the session that was lost"
    if len(rows) == 1:
        yield from faults_of_answer(case, rows[0], is_lost=is_lost, sessions=sessions)
    else:
        yield f"{len(rows)} rows"


def faults_of_answer(case: Case, row: Call, *, is_lost: bool, sessions: bool) -> Iterator[str]:
    assert case.reply is not None
    if not case.reply.text.startswith("{"):
        yield f"answered with HTTP {case.reply.status} and {case.reply.text!r}, row {row.outcome}"
        return
    outcome, code, words = answer_to(case.said, is_lost=is_lost, sessions=sessions)
    error = json.loads(case.reply.text).get("error", {"code": None, "message": ""})
    if (row.outcome, row.rpc_error_code) != (outcome, code):
        yield f"recorded as {row.outcome} {row.deny_reason} {row.rpc_error_code}, not as {outcome} {code}"
    if error["code"] != code or words not in error["message"]:
        yield f"answered with {error}, not with {code} {words}"
    # A client with a session takes any 404 as the end of its session, so no other case may answer 404.
    if sessions and case.reply.status != (404 if is_lost else 200):
        yield f"answered with HTTP {case.reply.status}"
    if "retry-after" in case.reply.headers:
        yield "answered with Retry-After"
    if advice := [words for words in ADVICE if words in case.reply.text.lower()]:
        yield f"advises {advice}"


CLIENTS = {"session": (SESSION_ERA, True), "bare": (SESSION_ERA, False), "modern": (MODERN_ERA, False)}
QUICK = [("session", "both"), ("bare", "session"), ("modern", "modern")]
PAIRS = [*QUICK, *(full(pair) for pair in product(CLIENTS, SERVERS) if pair not in QUICK)]


@pytest.mark.parametrize(("client", "server"), PAIRS)
def test_a_call_is_executed_once_and_its_row_says_what_the_server_said(work: Work, client: str, server: str) -> None:
    era, sessions = CLIENTS[client]
    cases = [Case(said) for said in ANSWERS]
    upstream = Counting(eras=SERVERS[server], answers={case.said.name: case.said for case in cases})
    put(work, upstream)

    asyncio.run(call_all(work.agent, cases, "docs__it", era=era, sessions=sessions))

    rows = defaultdict[UUID, list[Call]](list)
    for row in Call.objects.filter(method="tools/call"):
        rows[row.correlation_id].append(row)
    faults = {
        case.said.name: found
        for case in cases
        if (found := [*faults_of(case, rows[case.uid], upstream, era=era, sessions=sessions)])
    }
    lines = [f"{name}: {'; '.join(found)}" for name, found in faults.items()]
    assert not lines, "\n".join([f"{len(lines)} of {len(cases)} cases", *lines])
    assert len(rows) == len(cases) + 1  # One more for the warm-up call.


def test_a_call_is_sent_twice_at_most_to_a_server_that_forgets_each_session(work: Work) -> None:
    said = Said(404, words="Session not found")
    server = Counting(eras=SERVERS["session"], forgetful=True, answers={"it": said})
    put(work, server)

    answer = work.agent.call("docs__it", {"case": "it"})

    assert [each.executed for each in server.arrivals["it"]] == [False, False]
    assert (answer.status_code, work.proxy.last().outcome) == (200, "upstream_error")
    assert "retry-after" not in answer.headers
    assert not [words for words in ADVICE if words in answer.text.lower()]
