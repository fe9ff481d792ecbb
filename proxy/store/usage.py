"""What is remembered beside the answer: last used, health, wire, tools seen, unknown callers.

Best effort, at most once a second, in a transaction of its own. It may be lost with
the process and is no part of the audit promise.
"""

import asyncio
import logging
import re
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg.types.json import Jsonb

from proxy import metrics
from proxy.access.grant import AssignedServer, Grant
from proxy.store import sql_statements
from wire import jsonrpc
from wire.address_group import address_group
from wire.tool_names import exposed_name, fingerprint, storable

logger = logging.getLogger(__name__)

STATEMENTS = sql_statements.load(Path(__file__).with_name("usage.sql"))
FLUSH_SECONDS = 1.0
MOST_STRANGERS = 1000  # So many neighbourhoods are told apart while they are counted,
MOST_TOLD = 20  # and so many get an event of their own, the busiest; the rest share one.
TOOLS_SECONDS = 60.0

type Marked = dict[str, dict[str, Any]]


class Contact(NamedTuple):
    """How it went with a server; `fault` is empty when it answered."""

    assigned: AssignedServer
    at: float
    fault: str
    down: bool


class UsageTracker:
    """Collects marks and flushes them; everything it takes, it takes without waiting."""

    def __init__(self, conninfo: str, stranger_seconds: float) -> None:
        self._conninfo = conninfo
        self._stranger_seconds = stranger_seconds
        self._connection: psycopg.AsyncConnection | None = None
        self._used: dict[tuple[str, str], tuple[Grant, str, float]] = {}
        self._contacts: dict[tuple[str, str | None], Contact] = {}
        self._marked: dict[str, Marked] = {}
        self._tools: dict[str, tuple[AssignedServer, list[jsonrpc.Object]]] = {}
        self._tools_known: dict[str, tuple[str, float]] = {}
        self._strangers: Counter[str | None] = Counter()
        self._strangers_told = time.monotonic()
        self._worker: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()
        self.fault = ""

    def start(self) -> None:
        self._worker = asyncio.create_task(self._work(), name="marks")

    async def tried(self) -> None:
        """Return when the statements were prepared, or could not be; `fault` says which the server refused."""
        await self._tried.wait()

    async def stop(self) -> None:
        """Flush a last time and stop."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._strangers_told = float("-inf")
        _hand_over()
        await self._flush_or_drop()
        if self._connection is not None:
            await self._connection.close()

    # What is marked

    def used(self, facts: Grant, ip: str, at: float) -> None:
        """This token was used, and with it its connection and host."""
        self._used[facts.token_id, facts.token_prefix] = facts, ip, at

    def contacted(self, assigned: AssignedServer, fault: str = "", *, credential_refused: bool = False) -> None:
        """The server answered, or did not; one that refuses a credential is there."""
        self._contacts[assigned.server_id, assigned.identity_id] = Contact(
            assigned, time.time(), fault, down=bool(fault) and not credential_refused
        )

    def era(self, server_id: str, url: str, era: str) -> None:
        """This server turned out to speak this wire."""
        self._mark("eras", server_id, at=datetime.now(UTC), url=url, era=era)

    def tools(self, assigned: AssignedServer, tools: list[jsonrpc.Object]) -> None:
        """The server listed these tools, under its own names."""
        self._tools[assigned.id] = assigned, tools

    def stranger(self, ip: str) -> None:
        """Somebody came with a token nobody knows."""
        place = address_group(ip)
        known = place in self._strangers or len(self._strangers) < MOST_STRANGERS
        self._strangers[place if known else None] += 1

    def _mark(self, kind: str, key: str, **values: Any) -> None:
        self._marked.setdefault(kind, {})[key] = values

    def _mark_token(self, facts: Grant, at: datetime, ip: str | None) -> None:
        """One mark for a token; of its two secrets that both were used, the one used longer ago is the `other`."""
        use = {"at": at, "ip": ip, "prefix": facts.token_prefix, "other": None, "other_at": None}
        if before := self._marked.get("tokens", {}).get(facts.token_id):
            older, newer = sorted((before, use), key=lambda one: one["at"])
            use = newer | {"other": older["prefix"], "other_at": older["at"]}
        self._mark("tokens", facts.token_id, **use)

    # How it is flushed

    async def _work(self) -> None:
        await self._open_or_drop()
        self._tried.set()
        while True:
            if self.fault:
                await self._open_or_drop()
            await asyncio.sleep(FLUSH_SECONDS)
            _hand_over()
            await self._flush_or_drop()

    async def _open_or_drop(self) -> None:
        """Prepare the statements: a server that does not know their SQL is noticed now, and not with the first mark."""
        try:
            await self._open()
        except (psycopg.Error, OSError) as error:
            await self._drop(error)

    async def _flush_or_drop(self) -> None:
        try:
            await self._flush()
        except (psycopg.Error, OSError, ValueError, RecursionError) as error:
            await self._drop(error)

    async def _drop(self, error: Exception) -> None:
        logger.warning("marks not written", extra={"error": str(error)})
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    def _spread(self) -> None:
        """Turn what was noted in passing into marks; on the way of a call even a date costs."""
        used, self._used = self._used, {}
        contacts, self._contacts = self._contacts, {}
        for facts, ip, at in used.values():
            moment = datetime.fromtimestamp(at, UTC)
            self._mark_token(facts, moment, ip or None)
            self._mark("connections", facts.connection_id, at=moment)
            self._mark("hosts", facts.host_id, at=moment)
        for assigned, at, fault, down in contacts.values():
            moment, error = datetime.fromtimestamp(at, UTC), storable(fault)[:300]
            health = "down" if down else "ok"
            self._mark("health", assigned.server_id, at=moment, health=health, error=error if down else "")
            if assigned.identity_id is not None and not down:
                self._mark("identities", assigned.identity_id, at=moment, error=error)

    async def _flush(self) -> None:
        self._spread()
        marked, self._marked = self._marked, {}
        tools, self._tools = self._tools, {}
        strangers = self._take_strangers()
        if not (marked or tools or strangers):
            return
        connection = await self._open()
        for kind in ("tokens", "connections", "hosts", "identities", "health", "eras"):
            if kind in marked:
                await _update(connection, kind, marked[kind])
        if strangers:
            given = {"ip": list(strangers), "requests": list(strangers.values())}
            await connection.execute(STATEMENTS["strangers"], given)
        for assigned, seen in tools.values():
            await self._write_tools(connection, assigned, seen)

    def _take_strangers(self) -> Counter[str | None]:
        if time.monotonic() - self._strangers_told < self._stranger_seconds:
            return Counter()
        strangers, self._strangers = self._strangers, Counter()
        self._strangers_told = time.monotonic()
        told = Counter(dict(strangers.most_common(MOST_TOLD)))
        if rest := strangers.total() - told.total():
            told[None] += rest
        return told

    async def _open(self) -> psycopg.AsyncConnection:
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True, connect_timeout=5)
            await self._connection.execute("SET application_name = 'gateway marks'")
            await self._connection.execute("SET lock_timeout = '1s'")
            await self._connection.execute("SET statement_timeout = '5s'")
            await self._prepare(self._connection)
        return self._connection

    async def _prepare(self, connection: psycopg.AsyncConnection) -> None:
        for name, statement in STATEMENTS.items():
            try:
                await connection.execute(f"PREPARE {name} AS {_numbered(statement)}".encode())
            except psycopg.ProgrammingError as error:
                self.fault = f"{name}: {error.diag.message_primary}"
                raise
            await connection.execute(f"DEALLOCATE {name}".encode())
        self.fault = ""

    async def _write_tools(
        self, connection: psycopg.AsyncConnection, assigned: AssignedServer, tools: list[jsonrpc.Object]
    ) -> None:
        rows = _tool_rows(assigned, tools)
        digest = fingerprint({"policy": assigned.policy, "tools": [row["definition_hash"] for row in rows]})
        known, told = self._tools_known.get(assigned.id, ("", 0.0))
        if known == digest and time.monotonic() - told < TOOLS_SECONDS:
            return
        async with connection.transaction():
            await connection.execute(STATEMENTS["tools"], {"assignment": assigned.id, "tools": Jsonb(rows)})
            # Users may be shown different tools: one user's list does not say what is gone.
            if assigned.scheme != "per_user":
                names = [row["name"] for row in rows]
                await connection.execute(STATEMENTS["missing"], {"assignment": assigned.id, "names": names})
        self._tools_known[assigned.id] = digest, time.monotonic()


def _numbered(statement: str) -> str:
    """The statement with numbers for its parameters, as PREPARE wants it."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
    return re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", statement)


def _hand_over() -> None:
    try:
        metrics.hand_over()
    except (OSError, ValueError) as error:  # The disk may be full; the next second tries again.
        logger.warning("metrics not written", extra={"error": str(error)})


async def _update(connection: psycopg.AsyncConnection, kind: str, marked: Marked) -> None:
    ids = sorted(marked)
    columns = {name: [marked[key][name] for key in ids] for name in marked[ids[0]]}
    await connection.execute(STATEMENTS[kind], {"ids": ids, **columns})


def _tool_rows(assigned: AssignedServer, tools: list[jsonrpc.Object]) -> list[jsonrpc.Object]:
    """The usable tools as rows."""
    rows: dict[str, jsonrpc.Object] = {}
    for tool in tools:
        rows.setdefault(tool["name"], _tool_row(assigned, tool["name"], tool))
    return [rows[name] for name in sorted(rows)]


def _tool_row(assigned: AssignedServer, name: str, tool: jsonrpc.Object) -> jsonrpc.Object:
    annotations = tool.get("annotations")
    title = tool.get("title")
    if not isinstance(title, str) and isinstance(annotations, dict):
        title = annotations.get("title")
    description, schema = tool.get("description"), tool.get("inputSchema")
    return {
        "name": name,
        "exposed_name": exposed_name(assigned.alias, name),
        "title": storable(title)[:200] if isinstance(title, str) else "",
        "description": storable(description) if isinstance(description, str) else "",
        "input_schema": storable(schema) if isinstance(schema, dict) else {},
        "annotations": storable(annotations) if isinstance(annotations, dict) else {},
        "definition_hash": fingerprint(tool),
    }
