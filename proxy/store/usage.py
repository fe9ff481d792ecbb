"""Usage noted during calls: times of last use, the servers' health and descriptions, and requests with unknown tokens.

Usage is written in the background, once a second. If writing fails, or if the process is killed before the usage is
written, this usage is lost.
"""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg.types.json import Jsonb

from proxy import metrics
from proxy.access.decision import AccessRow, AssignedServer
from wire.background import Background
from wire.hosts import address_group
from wire.jsonrpc import storable
from wire.mcp import MODERN, SESSION, ServerDescription, Target

logger = logging.getLogger(__name__)


def load_statements(path: Path) -> dict[str, str]:
    """Return the statements of a .sql file by name. In the file, a line `-- name: ...` begins each statement."""
    _, *parts = path.read_text().split("-- name: ")
    named = (part.partition("\n") for part in parts)
    return {name.strip(): statement.strip() for name, _, statement in named}


STATEMENTS = load_statements(Path(__file__).with_name("usage.sql"))
FLUSH_SECONDS = 1.0
LEAST_SECONDS = 0.05  # Least time between two flushes.
MAX_ADDRESS_GROUPS = 1000  # Address groups that are counted separately.
MAX_EVENTS = 20  # The busiest address groups get one event each; all others share one event.
SESSION_SECONDS = 60.0  # Least time between two writes of a session's use.

type RowUpdates = dict[str, dict[str, Any]]
type Infos = dict[tuple[str, str], dict[str, ServerDescription]]  # By server and identity, then by era.


class Contact(NamedTuple):
    """The last result of calling a server; `fault` is empty if the server answered."""

    assigned: AssignedServer
    at: float
    fault: str
    down: bool


class UsageTracker:
    """Collects usage and writes it once a second. The methods called during calls return at once and never fail."""

    def __init__(
        self, conninfo: str, unknown_token_seconds: float, in_use: Callable[[], Iterable[str]] = tuple
    ) -> None:
        self._conninfo = conninfo
        self._unknown_token_seconds = unknown_token_seconds
        self._connection: psycopg.AsyncConnection | None = None
        self._tokens_used: dict[tuple[str, str], tuple[AccessRow, str, float]] = {}
        self._contacts: dict[tuple[str, str | None], Contact] = {}
        self._sessions_used: dict[tuple[str, str], float] = {}
        self._sessions_noted: dict[tuple[str, str], float] = {}  # When the use of each session was last written.
        self._sessions_last: dict[tuple[str, str], float] = {}  # When each session was last used.
        self._sessions_looked_through = 0.0
        self._exactly = asyncio.Event()
        self._in_use = in_use  # Returns the sessions with running calls or streams.
        self._infos: Infos = {}
        self._pending: dict[str, RowUpdates] = {}
        self._unknown_tokens: Counter[str | None] = Counter()
        self._unknown_tokens_written_at = time.monotonic()
        self._background = Background()
        self._first_attempt = asyncio.Event()
        self.fault = ""

    def start(self) -> None:
        self._background.forever("usage", self._work, self._wait_for_flush)

    async def first_attempt(self) -> None:
        """Wait until the first attempt to prepare the statements has ended.

        Then `fault` names the refused statement, if any.
        """
        await self._first_attempt.wait()

    async def stop(self) -> None:
        """Write everything collected, and stop."""
        await self._background.stop()
        self._unknown_tokens_written_at = float("-inf")
        _flush_metrics()
        await self._flush_or_drop()
        if self._connection is not None:
            await self._connection.close()

    # Called during calls

    def token_used(self, grant: AccessRow, ip: str, at: float) -> None:
        """Note the use of this token, its connection and host, and the session of the request."""
        self._tokens_used[grant.token_id, grant.token_prefix] = grant, ip, at
        if grant.session is not None:
            self._sessions_used["sessions", grant.session.id] = at

    def server_contacted(self, assigned: AssignedServer, fault: str = "", *, credential_refused: bool = False) -> None:
        """Note a server's answer, or its `fault`. A server that only refuses a credential does not count as down."""
        self._contacts[assigned.server_id, assigned.identity_id] = Contact(
            assigned, time.time(), fault, down=bool(fault) and not credential_refused
        )
        if assigned.upstream_session is not None:
            self._sessions_used["upstream_sessions", assigned.upstream_session.row] = time.time()

    def write_sessions(self, _: str | None) -> None:
        """Request an early write of the exact time at which each session was last used.

        Called before surplus sessions are ended, because the least recently used sessions are ended first.
        """
        now = time.time()
        for session in self._in_use():
            self._sessions_used["sessions", session] = now
        self._exactly.set()

    def introduced(self, target: Target, info: ServerDescription) -> None:
        """Note the description `info` that the server of `target` gave of itself. It is stored within a second."""
        self._infos.setdefault((target.server_id, target.identity_id or target.server_id), {})[info.era] = info

    @staticmethod
    def write_infos(target: Target, infos: Iterable[ServerDescription]) -> tuple[str, dict[str, list[Any]]]:
        """Return the statement and parameters to store these descriptions now, not with the next flush."""
        by_era = {info.era: info for info in infos}
        return STATEMENTS["server_infos"], _info_columns(
            {(target.server_id, target.identity_id or target.server_id): by_era}
        )

    def unknown_token(self, ip: str) -> None:
        """Count a request with an unknown bearer token."""
        group = address_group(ip)
        known = group in self._unknown_tokens or len(self._unknown_tokens) < MAX_ADDRESS_GROUPS
        self._unknown_tokens[group if known else None] += 1

    def _set(self, kind: str, key: str, **values: Any) -> None:
        self._pending.setdefault(kind, {})[key] = values

    def _set_token(self, grant: AccessRow, at: datetime, ip: str | None) -> None:
        """Prepare the update of a token's last use."""
        before = self._pending.get("tokens", {}).get(grant.token_id, {})
        uses: dict[Any, Any] = {before.get("other"): before.get("other_at"), before.get("prefix"): before.get("at")}
        uses[grant.token_prefix] = max(at, uses.get(grant.token_prefix) or at)
        uses.pop(None, None)
        # A token has at most two valid secrets: the present one and the one that it replaced. `prefix` is that of the
        # secret used last, `other` that of the other secret; None if that was not used.
        prefix, other = [*sorted(uses, key=lambda each: uses[each], reverse=True), None][:2]
        ip = ip if prefix == grant.token_prefix else before["ip"]
        use = {"at": uses[prefix], "ip": ip, "prefix": prefix, "other": other, "other_at": uses.get(other)}
        self._set("tokens", grant.token_id, **use)

    # The background task

    async def _wait_for_flush(self) -> None:
        if self._first_attempt.is_set():
            await asyncio.sleep(LEAST_SECONDS)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._exactly.wait(), FLUSH_SECONDS)

    async def _work(self) -> None:
        if self.fault or not self._first_attempt.is_set():
            await self._open_or_drop()
        self._first_attempt.set()
        _flush_metrics()
        await self._flush_or_drop()

    async def _open_or_drop(self) -> None:
        """Connect and test the statements, to find unsupported SQL at once. After an error, close the connection."""
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
        logger.warning("usage not written", extra={"error": str(error)})
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    def _collect(self) -> None:
        """Convert the collected uses to updates of rows.

        Datetimes are created here, because creating one for each call would be slow.
        """
        tokens_used, self._tokens_used = self._tokens_used, {}
        contacts, self._contacts = self._contacts, {}
        # The latest use comes last: several tokens and identities may belong to one connection or server.
        for grant, ip, at in sorted(tokens_used.values(), key=lambda used: used[2]):
            moment = datetime.fromtimestamp(at, UTC)
            self._set_token(grant, moment, ip or None)
            self._set("connections", grant.connection_id, at=moment)
            self._set("hosts", grant.host_id, at=moment)
        for assigned, at, fault, down in sorted(contacts.values(), key=lambda contact: contact.at):
            moment, error = datetime.fromtimestamp(at, UTC), storable(fault)[:300]
            health = "down" if down else "ok"
            self._set("health", assigned.server_id, at=moment, health=health, error=error if down else "")
            if assigned.identity_id is not None and not down:
                self._set("identities", assigned.identity_id, at=moment, error=error)
        self._collect_sessions()

    def _collect_sessions(self) -> None:
        used, self._sessions_used = self._sessions_used, {}
        newest = max(used.values(), default=0.0)
        if newest - self._sessions_looked_through >= SESSION_SECONDS:
            self._sessions_looked_through = newest
            noted = self._sessions_noted.items()
            self._sessions_noted = {key: at for key, at in noted if newest - at < SESSION_SECONDS}
            last = self._sessions_last.items()
            self._sessions_last = {key: at for key, at in last if newest - at < SESSION_SECONDS}
        self._sessions_last.update(used)
        exactly = self._exactly.is_set()
        self._exactly.clear()
        for (kind, uid), at in (self._sessions_last if exactly else used).items():
            if exactly or at - self._sessions_noted.get((kind, uid), 0.0) >= SESSION_SECONDS:
                self._sessions_noted[kind, uid] = at
                self._set(kind, uid, at=datetime.fromtimestamp(at, UTC))

    async def _flush(self) -> None:
        self._collect()
        pending, self._pending = self._pending, {}
        infos, self._infos = self._infos, {}
        unknown_tokens = self._take_unknown_tokens()
        if not (pending or infos or unknown_tokens):
            return
        connection = await self._open()
        for kind in ("tokens", "connections", "hosts", "identities", "health", "sessions", "upstream_sessions"):
            if kind in pending:
                for key in await _update(connection, kind, pending[kind]):
                    self._set(kind, key, **pending[kind][key])
        if unknown_tokens:
            given = {"ip": list(unknown_tokens), "requests": list(unknown_tokens.values())}
            await connection.execute(STATEMENTS["unknown_tokens"], given)
        if infos:
            await connection.execute(STATEMENTS["server_infos"], _info_columns(infos))

    def _take_unknown_tokens(self) -> Counter[str | None]:
        if time.monotonic() - self._unknown_tokens_written_at < self._unknown_token_seconds:
            return Counter()
        unknown_tokens, self._unknown_tokens = self._unknown_tokens, Counter()
        self._unknown_tokens_written_at = time.monotonic()
        written = Counter(dict(unknown_tokens.most_common(MAX_EVENTS)))
        if rest := unknown_tokens.total() - written.total():
            written[None] += rest
        return written

    async def _open(self) -> psycopg.AsyncConnection:
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True, connect_timeout=5)
            await self._connection.execute("SET application_name = 'gateway usage'")
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


def _numbered(statement: str) -> str:
    """Replace named parameters by numbers, for PREPARE."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
    return re.sub(r"%\((\w+)\)s", lambda match: f"${names.index(match[1]) + 1}", statement)


def _flush_metrics() -> None:
    try:
        metrics.flush()
    except (OSError, ValueError) as error:  # The disk may be full. Writing is tried again in the next second.
        logger.warning("metrics not written", extra={"error": str(error)})


async def _update(connection: psycopg.AsyncConnection, kind: str, pending: RowUpdates) -> list[str]:
    """Write the updates. Returns the ids of the rows that must be written again because they were locked."""
    ids = sorted(pending)
    columns = {name: [pending[key][name] for key in ids] for name in pending[ids[0]]}
    cursor = await connection.execute(STATEMENTS[kind], {"ids": ids, **columns})
    return [key for (key,) in await cursor.fetchall()] if cursor.description else []


def _info_columns(infos: Infos) -> dict[str, list[Any]]:
    pairs = sorted(infos)
    newest = [max(infos[pair].values(), key=lambda info: info.version) for pair in pairs]

    def capabilities(era: str) -> list[Jsonb | None]:
        said = (infos[pair].get(era) for pair in pairs)
        return [None if info is None else Jsonb(storable(info.capabilities)) for info in said]

    return {
        "servers": [server_id for server_id, _ in pairs],
        "told_to": [told_to for _, told_to in pairs],
        "versions": [info.version[:40] for info in newest],
        "capabilities": capabilities(SESSION),
        "modern_capabilities": capabilities(MODERN),
        "instructions": [storable(info.instructions) for info in newest],
    }
