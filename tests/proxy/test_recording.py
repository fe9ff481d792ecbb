"""Every answered call is in the log, and one SQL statement decides access."""

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from django.db import connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from auditlog.models import Call
from gatewayadmin.config import database
from proxy import metrics
from proxy.store.call_log import NOBODY, CallRow, CallWriter, NotRecorded, new_uid
from proxy.store.pg import SINGLES, PgConnection
from tests import make, upstreams
from tests.conftest import Run
from tests.eventually import PATIENCE
from tests.proxy.conftest import Agent, Proxy, Start, eventually, sql
from tests.proxy.scripted import Request, calling
from tests.proxy.test_endpoint import modern
from tests.proxy.test_streams import call, listen

UNRECORDED = (
    b'{"jsonrpc":"2.0","error":{"code":-32603,"message":"The gateway could not record this call;'
    b' the server may have executed it."},"id":1}'
)
UNEXECUTED = (
    b'{"jsonrpc":"2.0","error":{"code":-32603,"message":"The gateway cannot record calls at the moment;'
    b' nothing was executed.","data":{"reason":"log_unavailable"}},"id":1}'
)
UNCHECKED = b'{"jsonrpc":"2.0","error":{"code":-32603,"message":"The gateway could not check access."},"id":1}'


@dataclass
class Relay:
    """A relay between the proxy and PostgreSQL that records each statement."""

    place: tuple[str, int] | str
    statements: list[str] = field(default_factory=list)
    sockets: list[socket.socket] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    open: bool = True

    def serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                if not self.open:
                    near.close()
                    continue
                far = socket.socket(socket.AF_UNIX if isinstance(self.place, str) else socket.AF_INET)
                far.connect(self.place)
                self.sockets += [near, far]
                for way in ((near, far, True), (far, near, False)):
                    carrier = threading.Thread(target=self.carry, args=way, daemon=True)
                    carrier.start()
                    self.threads.append(carrier)

    def carry(self, source: socket.socket, target: socket.socket, listens: bool) -> None:
        pending = b""
        started = not listens
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if listens:
                    pending += data
                    pending, started = self.note(pending, started)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def note(self, pending: bytes, started: bool) -> tuple[bytes, bool]:
        """Record the Query, Parse and Bind messages in `pending`. Return its incomplete rest and the new `started`."""
        while True:
            skip = 0 if not started else 1
            if len(pending) < skip + 4:
                return pending, started
            length = int.from_bytes(pending[skip : skip + 4])
            if len(pending) < skip + length:
                return pending, started
            kind, content = pending[:skip], pending[skip + 4 : skip + length]
            pending = pending[skip + length :]
            if kind == b"Q":
                self.statements.append(content.rstrip(b"\0").decode())
            elif kind == b"B" or (kind == b"P" and content.split(b"\0")[1]):
                self.statements.append(content.split(b"\0")[1].decode())
            started = started or not content.startswith(b"\x04\xd2\x16/")

    def cut(self) -> None:
        """Close every connection and accept no other."""
        self.open = False
        for each in self.sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        for thread in self.threads:
            thread.join(5)
        for each in self.sockets:
            each.close()

    def run(self, start: int, end: int | None = None) -> list[str]:
        """Return the statements from index `start` to `end`, without connection set-up and best-effort writes."""
        beside = re.compile(r"(?:--[^\n]*\n)*(?:SET |PREPARE |UPDATE|INSERT|BEGIN|COMMIT|$)")
        return [each for each in self.statements[start:end] if not beside.match(each)]


@pytest.fixture
def relay() -> Iterator[tuple[Relay, str]]:
    words = conninfo_to_dict(database.conninfo())
    host, port = str(words["host"]), int(words.get("port") or 5432)
    relay = Relay(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=relay.serve, args=(listener,), daemon=True).start()
        place = {"host": "127.0.0.1", "port": str(listener.getsockname()[1]), "sslmode": "disable"}
        yield relay, make_conninfo("", **{**{k: v for k, v in words.items() if v is not None}, **place})
        relay.close()


def agent_at(proxy: Proxy, run: Run, app: Any) -> Agent:
    user = make.user(email="ana@example.com")
    gateway = make.gateway(make.server(slug="docs", url=run(app).url), slug="work")
    return proxy.agent(make.connection(make.agent(by=user), gateway, user))


@pytest.mark.full
def test_one_select_decides_and_nothing_else_is_read_before_the_hop(
    start: Start, run: Run, relay: tuple[Relay, str]
) -> None:
    between, conninfo = relay
    at_hop: list[int] = []

    async def call(request: Request) -> None:
        at_hop.append(len(between.statements))
        await request.answer({"content": []})

    agent = agent_at(start(conninfo=conninfo), run, calling(call, modern=True))
    for _ in range(SINGLES + 1):  # Prepares all statements; then the agent counts as one that calls alone.
        agent.call("docs__it")
    for _ in range(4):
        mark = len(between.statements)
        assert agent.call("docs__it").json()["result"] == {"content": []}
        assert between.run(mark, at_hop[-1]) == ["decide_calls"]
        assert [each.split()[0] for each in between.run(mark)] == ["decide_calls", "insert_one"]


@pytest.mark.full
def test_without_the_database_nothing_is_forwarded(start: Start, run: Run, relay: tuple[Relay, str]) -> None:
    between, conninfo = relay
    proxy = start(conninfo=conninfo)
    agent = agent_at(proxy, run, upstreams.docs())
    assert agent.call("docs__echo", {"text": "x"}).status_code == 200

    between.cut()
    for answer in (agent.call("docs__echo", {"text": "y"}), agent.listed()):
        assert (answer.status_code, answer.content) == (503, UNCHECKED)
        assert answer.headers["retry-after"] == "1"
    assert len(proxy.calls()) == 1

    between.open = True
    eventually(lambda: agent.call("docs__echo", {"text": "z"}).status_code == 200)


def test_a_connection_on_which_nonsense_came_is_given_up_and_the_next_statement_has_another(
    transactional_db: None, relay: tuple[Relay, str]
) -> None:
    between, conninfo = relay

    async def scene() -> None:
        connection, lost = PgConnection(conninfo, (b"PREPARE one (int) AS SELECT $1",)), asyncio.Event()
        connection.on_lost = lost.set
        await connection.connect()

        between.sockets[0].sendall(b"T" + bytes(4))  # Invalid: a length of 0 excludes its own 4 bytes.
        await asyncio.wait_for(lost.wait(), PATIENCE)

        assert not connection.connected
        assert (await connection.query(b"one", [b"2"])).get_value(0, 0) == b"2"
        assert len(between.sockets) == 4
        connection.close()

    asyncio.run(scene())


@pytest.mark.full
def test_a_call_that_cannot_be_recorded_is_not_answered(proxy: Proxy, run: Run) -> None:
    agent = agent_at(proxy, run, upstreams.docs())
    agent.listed()
    sql("ALTER TABLE auditlog_call ADD CONSTRAINT full_disk CHECK (method <> 'tools/call') NOT VALID")
    try:
        answer = agent.call("docs__echo", {"text": "x"})
        assert (answer.status_code, answer.content) == (503, UNRECORDED)
        assert "retry-after" not in answer.headers  # The call may have been executed.
        assert agent.listed().status_code == 200
        heard = listen(agent, call("docs__slow", {"seconds": 0.1}, token=1))
        assert heard.events[-1]["error"]["message"].startswith("The gateway could not record this call")
    finally:
        sql("ALTER TABLE auditlog_call DROP CONSTRAINT full_disk")
    assert {row.method for row in proxy.calls()} == {"tools/list"}


def test_while_the_log_is_locked_no_call_is_executed_and_then_it_goes_on(proxy: Proxy, run: Run) -> None:
    executed: list[Request] = []

    async def call(request: Request) -> None:
        executed.append(request)
        await request.answer({"content": []})

    agent = agent_at(proxy, run, calling(call, modern=True))
    assert agent.call("docs__it").status_code == 200
    with ThreadPoolExecutor(1) as pool:
        with psycopg.connect(database.conninfo()) as blocker:
            blocker.execute("LOCK auditlog_call")
            caught = pool.submit(agent.call, "docs__it")
            eventually(metrics._faults["record"])
            for answer in (agent.call("docs__it"), agent.call("docs__it"), agent.listed()):
                assert (answer.status_code, answer.content) == (503, UNEXECUTED)
                assert answer.headers["retry-after"] == "1"
            assert len(executed) == 2
        assert caught.result().status_code == 200
    eventually(lambda: agent.call("docs__it").status_code == 200)
    assert len(proxy.calls()) == len(executed) == 3


@pytest.mark.full
def test_a_log_that_hangs_at_one_process_stops_all_others(start: Start, run: Run) -> None:
    executed: list[Request] = []

    async def call(request: Request) -> None:
        executed.append(request)
        await request.answer({"content": []})

    first, second = start(), start()
    agent = agent_at(first, run, calling(call, modern=True))
    elsewhere = Agent(second.url("work"), agent.secret)
    for each in (agent, elsewhere):
        assert each.call("docs__it").status_code == 200
    with ThreadPoolExecutor(1) as pool:
        with psycopg.connect(database.conninfo()) as blocker:
            blocker.execute("LOCK auditlog_call")
            caught = pool.submit(agent.call, "docs__it")
            eventually(metrics._faults["record"])  # The fault of the worker that started last, without a row to write.
            answer = elsewhere.call("docs__it")
            assert (answer.status_code, answer.content) == (503, UNEXECUTED)
            assert len(executed) == 3
        assert caught.result().status_code == 200
    eventually(lambda: elsewhere.call("docs__it").status_code == 200)


def test_denials_are_recorded_before_they_are_told(proxy: Proxy, run: Run) -> None:
    agent = agent_at(proxy, run, upstreams.docs())
    sql("UPDATE hosts_host SET enabled = false")
    sql("ALTER TABLE auditlog_call ADD CONSTRAINT full_disk CHECK (outcome <> 'denied') NOT VALID")
    try:
        assert agent.listed().status_code == 503
    finally:
        sql("ALTER TABLE auditlog_call DROP CONSTRAINT full_disk")


@pytest.mark.full
def test_the_row_is_there_when_the_answer_is(proxy: Proxy, run: Run) -> None:
    agent = agent_at(proxy, run, upstreams.docs(json_response=True, stateless=True))
    eventually(lambda: "docs__echo" in agent.tools())  # A list does not wait for a server that is slow at first.

    def recorded(number: int) -> bool:
        text = f"{number}"
        answer = agent.call("docs__echo", {"text": text})
        with psycopg.connect(database.conninfo()) as reader:
            uid = answer.headers["x-request-id"]
            row = reader.execute("SELECT 1 FROM auditlog_call WHERE uid = %s", [uid]).fetchone()
        return row is not None and answer.json()["result"]["content"][0]["text"] == text

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(recorded, range(40)))


@pytest.mark.full
def test_every_request_of_a_known_token_is_one_call(proxy: Proxy, run: Run) -> None:
    agent = agent_at(proxy, run, upstreams.docs())
    body, headers = modern("tools/list")
    requests: list[Callable[[], object]] = [
        agent.listed,
        lambda: agent.ask("ping"),
        lambda: agent.ask("nonsense"),
        lambda: agent.call("docs__echo", {"text": "x"}),
        lambda: agent.call("docs__fail"),
        lambda: agent.call("nothing"),
        lambda: agent.post({"jsonrpc": "2.0", "method": "notifications/initialized"}),
        lambda: agent.post(b"{", Content_Type="application/json"),
        lambda: agent.post([]),
        lambda: agent.listed(Accept="text/html"),
        lambda: agent.post(body, **headers | {"Mcp-Method": "x"}),
        lambda: agent.post(body, **headers),
    ]

    for number, request in enumerate(requests, 1):
        request()
        assert len(proxy.calls()) == number


# The writer


def rows(*methods: str) -> list[CallRow]:
    return [CallRow(new_uid(AT), AT, method=method) for method in methods]


AT = 1_795_000_000.125


async def written(given: list[CallRow]) -> list[bool]:
    sizes: list[int] = []
    writer = CallWriter(database.conninfo(), observe=sizes.append)
    writer.start()
    done = await asyncio.gather(*(writer.commit(row) for row in given), return_exceptions=True)
    await writer.stop()
    assert sizes == [len(given)]
    return [not isinstance(each, NotRecorded) for each in done]


def test_rows_of_concurrent_requests_share_one_commit(transactional_db: None) -> None:
    Call.partitions.make_for(datetime.fromtimestamp(AT, UTC).date())

    assert asyncio.run(written(rows(*["tools/call"] * 50))) == [True] * 50

    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*), count(DISTINCT xmin::text) FROM auditlog_call")
        assert cursor.fetchone() == (50, 1)


def test_a_bad_row_or_one_without_a_partition_fails_alone(transactional_db: None) -> None:
    Call.partitions.make_for(datetime.fromtimestamp(AT, UTC).date())
    given = rows("good", "bad", "good", "long ago")
    given[1].client_ip = "not an address"
    given[3].created_at = 0.0

    assert asyncio.run(written(given)) == [True, False, True, False]

    assert [row.method for row in Call.objects.all()] == ["good", "good"]


HOSTILE = [
    "",
    "\t",
    "\\",
    "\\N",
    "\\.",
    "a\nb",
    "a\r\nb",
    "\0",
    "\udfff",
    "ü日\u2028",
    "'; DROP TABLE x; --",
    "x" * 5000,
]


@pytest.mark.full
def test_whatever_clients_and_servers_are_called_is_recorded(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.store.pg.SINGLES", 0)
    Call.partitions.make_for(datetime.fromtimestamp(AT, UTC).date())
    free = ("method", "feature_name", "server_name", "user_agent", "client_name", "client_version", "protocol_version")
    given = [CallRow(new_uid(AT), AT, **dict.fromkeys(free, text)) for text in HOSTILE]  # type: ignore[arg-type]

    assert asyncio.run(written(given)) == [True] * len(HOSTILE)

    stored = {str(row.uid): row for row in Call.objects.all()}
    for text, row in zip(HOSTILE, given, strict=True):
        expected = text.replace("\0", "").encode(errors="replace").decode()
        call = stored[row.uid]
        assert (call.method, call.feature_name, call.protocol_version) == (expected[:64], expected[:300], expected[:20])
        assert call.created_at.timestamp() == AT
        assert (call.rpc_error_code, call.host_id, call.client_ip) == (None, None, None)
        assert Call.objects.find(call.uid) == call


@pytest.mark.full
def test_a_row_alone_and_rows_together_are_recorded_alike(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.store.pg.SINGLES", 0)
    Call.partitions.make_for(datetime.fromtimestamp(AT, UTC).date())
    ids = [str(uuid4()) for _ in range(7)]
    full = CallRow(
        new_uid(AT),
        AT,
        NOBODY._replace(
            host_id=ids[0],
            gateway_id=ids[1],
            connection_id=ids[2],
            user_id=ids[3],
            token_id=ids[4],
            host_name="a\\b",
            gateway_name="Work",
            user_email="ana@example.com",
            token_name="t\tn",
            token_prefix="gwa_12345678",
        ),
        "tools/call",
        "tool",
        "docs__echo",
        "denied",
        "ip",
        403,
        -32003,
        ids[5],
        ids[6],
        "Docs",
        "label",
        1.5,
        0.25,
        2.125,
        10,
        20,
        "2001:db8::1",
        "agent/1",
        "client",
        "2",
        "2026-07-28",
        "failed\nhere",
        correlation_id=new_uid(AT),
    )
    full.set_payload(b'{"a": "\\\\N \\\\t \\\\\\\\ \\u00fc"}', b'["\\n"]', cut=True)
    empty = CallRow(new_uid(AT), AT)

    for row in (full, empty):
        stored = []
        for given in ([row], [row, row]):
            assert asyncio.run(written(given)) == [True] * len(given)
            with connection.cursor() as cursor:
                cursor.execute("SELECT * FROM auditlog_call ORDER BY id")
                names = [column.name for column in cursor.description or ()]
                stored += [
                    {**dict(zip(names, each, strict=True)), "id": 0, "recorded_at": 0} for each in cursor.fetchall()
                ]
                cursor.execute("TRUNCATE auditlog_call")
        assert stored[0] == stored[1] == stored[2]
