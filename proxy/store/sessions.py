"""Stores clients' sessions, and the gateway's sessions at servers, in PostgreSQL.

Any worker can serve any session. A call reads its sessions in `query.sql`, without an extra statement.
"""

import asyncio
import hashlib
import logging
import random
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from psycopg.types.json import Jsonb

from proxy.store.pg import DatabaseUnavailable, StatePool
from wire import oauth_client, token_text, versions
from wire.background import Background
from wire.cipher import Cipher, Undecryptable
from wire.client import McpClient
from wire.jsonrpc import Object
from wire.mcp import SESSION, SessionHandle, Target
from wire.sessions import capabilities_of, declared, open_session

FIND = """
SELECT id::text, sealed_id, version, log_level FROM proxy_upstreamsession
WHERE owner_id = %(owner)s AND server_id = %(server)s AND key = %(key)s
"""
# If two workers open a session concurrently, the second worker gets the row of the first.
KEEP = """
INSERT INTO proxy_upstreamsession AS u
    (id, owner_id, connection_id, server_id, key, sealed_id, version, log_level, opened_at, last_used_at)
VALUES (
    gen_random_uuid(), %(owner)s, %(connection)s, %(server)s, %(key)s, %(sealed_id)s, %(version)s, '',
    statement_timestamp(), statement_timestamp()
)
ON CONFLICT (owner_id, server_id, key) DO UPDATE SET last_used_at = excluded.last_used_at
RETURNING id::text, sealed_id, version, log_level, pg_notify('gateway', 'upstream ' || owner_id)
"""
NOTE_LEVEL = "UPDATE proxy_upstreamsession SET log_level = %(level)s WHERE id = %(row)s"
SET_LEVEL = "UPDATE proxy_session SET log_level = %(level)s WHERE id = %(session)s"
# Notifies the worker with the session's stream.
SUBSCRIBE = """
UPDATE proxy_session SET subscriptions = (subscriptions - %(uri)s::text) || to_jsonb(%(uri)s::text)
WHERE id = %(session)s AND jsonb_array_length(subscriptions - %(uri)s::text) < %(most)s
RETURNING pg_notify('gateway', 'upstream ' || id)
"""
UNSUBSCRIBE = """
UPDATE proxy_session SET subscriptions = subscriptions - %(uri)s::text WHERE id = %(session)s
RETURNING pg_notify('gateway', 'upstream ' || id)
"""
SUBSCRIPTIONS = """
SELECT id::text, subscriptions FROM proxy_session WHERE id = ANY(%(sessions)s::uuid[]) AND subscriptions <> '[]'
"""
FORGET = "DELETE FROM proxy_upstreamsession WHERE id = %(row)s"
# Deletes a session at a server, and marks the client's session as lost. The client's standing streams end, so that the
# client reconnects and gets a 404.
LOSE = f"""
WITH gone AS ({FORGET} RETURNING owner_id)
UPDATE proxy_session s SET lost_at = statement_timestamp() FROM gone WHERE s.id = gone.owner_id AND s.lost_at IS NULL
RETURNING pg_notify('gateway', 'lost ' || s.id)
"""  # noqa: S608 - constant SQL

OPEN = """
INSERT INTO proxy_session
    (id, digest, connection_id, version, capabilities, declared, client_name, client_version, log_level, created_at,
     last_used_at)
VALUES (
    %(id)s, %(digest)s, %(connection)s, %(version)s, %(capabilities)s, %(declared)s, %(client_name)s,
    %(client_version)s, '', statement_timestamp(), statement_timestamp()
)
RETURNING EXISTS (SELECT FROM proxy_session WHERE connection_id = %(connection)s OFFSET %(most)s - 1)
"""
END_SURPLUS = """
WITH gone AS (
    DELETE FROM proxy_session WHERE id IN (
        SELECT id FROM proxy_session WHERE connection_id = %(connection)s
        ORDER BY last_used_at DESC, created_at DESC OFFSET %(most)s
    ) RETURNING id
), """
END = "WITH gone AS (DELETE FROM proxy_session WHERE id = %(session)s RETURNING id), "
# SKIP LOCKED leaves out rows that another worker is ending.
END_IDLE = """
WITH gone AS (
    DELETE FROM proxy_session WHERE id IN (
        SELECT id FROM proxy_session WHERE last_used_at < statement_timestamp() - make_interval(secs => %(seconds)s)
        ORDER BY last_used_at LIMIT %(most)s FOR UPDATE SKIP LOCKED
    ) RETURNING id
), """
OF_GONE = """
taken AS (
    DELETE FROM proxy_upstreamsession WHERE id IN (
        SELECT u.id FROM gone CROSS JOIN LATERAL (
            SELECT id FROM proxy_upstreamsession WHERE owner_id = gone.id OFFSET 0
        ) u
    ) RETURNING id, connection_id, server_id, key, sealed_id, version
)
"""
# Leaves out sessions at servers if a client's session owns them: they end with the client's session.
UNUSED = """
WITH taken AS (
    DELETE FROM proxy_upstreamsession WHERE id IN (
        SELECT id FROM proxy_upstreamsession
        WHERE last_used_at < statement_timestamp() - make_interval(secs => %(seconds)s)
            AND NOT EXISTS (SELECT FROM proxy_session WHERE id = proxy_upstreamsession.owner_id)
        ORDER BY last_used_at LIMIT %(most)s FOR UPDATE SKIP LOCKED
    ) RETURNING id, connection_id, server_id, key, sealed_id, version
)
"""
# Selects the targets of the taken sessions, for messages to their servers. A session has a target only if the server's
# address is unchanged and the identity may still be used. For the parts of the key see query.sql.
TOLD = """
SELECT t.id::text, t.sealed_id, t.version, t.connection_id::text, s.id::text, s.name, s.url, s.timeout_seconds,
    s.max_concurrent, s.auth_type, s.header_name, i.secret_ciphertext,
    s.private IS NOT FALSE
FROM taken t
JOIN servers_server s ON s.id = t.server_id AND s.enabled AND s.archived_at IS NULL
    AND md5(s.url) = split_part(t.key, ' ', 5)
LEFT JOIN servers_identity i ON i.id = split_part(t.key, ' ', 1)::uuid AND i.enabled AND i.revoked_at IS NULL
    AND i.unconfirmed_since IS NULL
WHERE t.sealed_id <> '' AND (i.id IS NOT NULL OR split_part(t.key, ' ', 1) = s.id::text)
"""


def _counted(table: str) -> str:
    """Return a SELECT with the rows of the query TOLD. The added first column is the number of rows in `table`.

    If TOLD has no rows, the SELECT has one row, with the number and NULLs.
    """
    return f"SELECT (SELECT count(*) FROM {table}), told.* FROM (SELECT) one LEFT JOIN ({TOLD}) told ON true"  # noqa: S608


LEASE_SECONDS = 30  # A lease ends this long after the worker last asked for it.
LEASE = f"""
WITH held AS (
    UPDATE proxy_upstreamsession SET
        leased_by = %(worker)s, leased_until = now() + make_interval(secs => %(seconds)s), last_used_at = now()
    WHERE owner_id = ANY(%(owners)s::uuid[]) AND sealed_id <> ''
        AND (leased_by = %(worker)s OR coalesce(leased_until <= now(), true))
    RETURNING *
), taken AS (
    SELECT * FROM held WHERE id <> ALL(%(known)s::uuid[])
), used AS (
    -- Listening counts as use of the session.
    UPDATE proxy_session SET last_used_at = now()
    WHERE id = ANY(%(owners)s::uuid[]) AND last_used_at < now() - interval '1 minute'
)
{TOLD.replace("SELECT t.id::text", "SELECT t.owner_id::text, t.key, t.id::text", 1)}
AND EXISTS (
    SELECT FROM gateways_assignment a JOIN connections_connection c ON c.gateway_id = a.gateway_id
    WHERE c.id = t.connection_id AND a.server_id = t.server_id AND a.enabled AND a.removed_at IS NULL
        AND a.tool_policy <> 'block_all'
)
UNION ALL
SELECT h.owner_id::text, '', h.id::text, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM held h WHERE h.id = ANY(%(known)s::uuid[])
UNION ALL
SELECT '', '', u.id::text, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM proxy_upstreamsession u
WHERE u.owner_id = ANY(%(owners)s::uuid[]) AND u.sealed_id <> '' AND u.leased_by <> %(worker)s
    AND u.leased_until > now()
"""  # noqa: S608 - constant SQL


# Leases the sessions of running calls. Returns, for each session, whether this worker has the lease.
LEASE_ROWS = """
WITH taken AS (
    UPDATE proxy_upstreamsession SET
        leased_by = %(worker)s, leased_until = now() + make_interval(secs => %(seconds)s), last_used_at = now()
    WHERE id = ANY(%(rows)s::uuid[]) AND sealed_id <> ''
        AND (leased_by = %(worker)s OR coalesce(leased_until <= now(), true))
    RETURNING id
)
SELECT u.id::text, EXISTS (SELECT FROM taken t WHERE t.id = u.id)
FROM proxy_upstreamsession u WHERE u.id = ANY(%(rows)s::uuid[])
"""
TARGET = f"""
WITH taken AS (SELECT * FROM proxy_upstreamsession WHERE id = %(row)s)
{TOLD.replace("SELECT t.id::text", "SELECT t.owner_id::text, t.key, t.id::text", 1)}
"""  # noqa: S608 - constant SQL
# Leases `subscriptions/listen` at servers of MCP 2026-07-28. These have no sessions, so the rows have no sealed id.
LEASE_LISTENS = """
INSERT INTO proxy_upstreamsession AS u
    (id, owner_id, connection_id, server_id, key, sealed_id, version, log_level, opened_at, last_used_at, leased_by,
     leased_until)
SELECT gen_random_uuid(), owner, connection, server, key, '', %(version)s, '', now(), now(), %(worker)s,
    now() + make_interval(secs => %(seconds)s)
FROM unnest(%(owners)s::uuid[], %(connections)s::uuid[], %(servers)s::uuid[], %(keys)s::text[])
    AS w (owner, connection, server, key)
ON CONFLICT (owner_id, server_id, key) DO UPDATE SET
    leased_by = excluded.leased_by, leased_until = excluded.leased_until, last_used_at = excluded.last_used_at
WHERE u.leased_by = excluded.leased_by OR coalesce(u.leased_until <= now(), true)
RETURNING id::text, owner_id::text, server_id::text, key
"""
# Notifies other workers, which may want to read the streams. Deletes the rows of `subscriptions/listen`.
RELEASE = """
WITH released AS (
    UPDATE proxy_upstreamsession SET leased_by = NULL, leased_until = NULL
    WHERE id = ANY(%(rows)s::uuid[]) AND leased_by = %(worker)s AND sealed_id <> ''
    RETURNING owner_id
), dropped AS (
    DELETE FROM proxy_upstreamsession
    WHERE id = ANY(%(rows)s::uuid[]) AND leased_by = %(worker)s AND sealed_id = ''
    RETURNING owner_id
)
SELECT pg_notify('gateway', 'upstream ' || owner_id)
FROM (SELECT owner_id FROM released UNION SELECT owner_id FROM dropped) r
"""


class Taken(NamedTuple):
    """A row of the query TOLD: a session at a server, and the data for requests to the server about this session."""

    row: str
    sealed_id: bytes
    version: str
    connection_id: str
    server_id: str
    server_name: str
    url: str
    timeout_s: int
    max_concurrent: int
    auth_type: str
    header_name: str
    ciphertext: bytes | None
    private: bool


class Leased(NamedTuple):
    """The result of `lease`. Sessions are named by row id."""

    targets: dict[str, tuple[str, Target]]  # The owner and target of each leased session that is not in `known`.
    known: dict[str, str]  # The owner of each leased session whose target the caller knows already.
    elsewhere: list[str]  # The sessions that are leased to other workers.


MOST_SESSIONS = 100  # Sessions of one connection.
SETTLE_SECONDS = 1.0  # How long to wait for other workers to write the last use of sessions.
MOST_SUBSCRIPTIONS = 100  # Subscriptions of one session.
UPSTREAM_IDLE_SECONDS = 3600.0
SWEEP_SECONDS = 60.0
MOST_AT_A_SWEEP = 200
AT_ONCE = 8

logger = logging.getLogger(__name__)


def session_digest(session_id: str) -> bytes:
    """Return the digest under which a client's session id is stored."""
    return hashlib.sha256(session_id.encode("latin-1", "replace")).digest()


class StoredSessions:
    """Session store of McpClient: sessions outlive the worker that opened them."""

    def __init__(self, state: StatePool, cipher: Cipher) -> None:
        self._state = state
        self._cipher = cipher

    async def find(self, target: Target) -> SessionHandle | None:
        """Return the stored session for this target; None if there is none. Raises DatabaseUnavailable."""
        rows = await self._state.fetch(FIND, _identity(target))
        try:
            return open_session(rows[0], self._cipher) if rows else None
        except Undecryptable:  # The operator lost a key, so the session cannot be used.
            await self._state.fetch(FORGET, {"row": rows[0][0]})
            return None

    async def keep(self, target: Target, session: SessionHandle) -> SessionHandle:
        """Store this session unless there is one already. Return the stored session. Raises DatabaseUnavailable."""
        sealed_id = self._cipher.seal(session.id) if session.id else b""
        given = {
            **_identity(target),
            "connection": target.connection_id,
            "sealed_id": sealed_id,
            "version": session.version,
        }
        (row,) = await self._state.fetch(KEEP, given)
        try:
            return open_session(row[:4], self._cipher)
        except Undecryptable as error:
            raise DatabaseUnavailable("a session is encrypted with a key that this worker does not have") from error

    async def note_level(self, target: Target, session: SessionHandle) -> None:
        """Store the log level that was sent to the server in this session. Raises DatabaseUnavailable."""
        if session.row:
            await self._state.fetch(NOTE_LEVEL, {"row": session.row, "level": session.log_level})

    async def forget(self, target: Target, session: SessionHandle) -> None:
        """Delete this session, but not a newer session for the target.

        If a client's session owns the deleted session, mark the client's session as lost. Raises DatabaseUnavailable.
        """
        if session.row:
            await self._state.fetch(LOSE if target.has_own_session else FORGET, {"row": session.row})

    def take_all(self) -> list[tuple[Target, SessionHandle]]:
        """Return an empty list, because no stored session has to end with this process."""
        return []


async def _wait_for_sweep() -> None:
    await asyncio.sleep(SWEEP_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311  no secret


def _identity(target: Target) -> dict[str, str]:
    return {
        "owner": target.owner_id or target.connection_id,
        "server": target.server_id,
        "key": target.session_key,
    }


class SessionKeeper:
    """Opens and ends the sessions of clients, and ends sessions unused for `hours`."""

    def __init__(self, state: StatePool, cipher: Cipher, client: McpClient, hours: float) -> None:
        self._state = state
        self._cipher = cipher
        self._client = client
        self._idle_seconds = hours * 3600
        self._ending: set[str] = set()  # Connections whose surplus sessions are being ended.
        self._background = Background(DatabaseUnavailable)

    def start(self) -> None:
        self._background.forever("idle sessions", self._sweep_all, _wait_for_sweep)

    async def stop(self) -> None:
        await self._background.stop()

    async def open(
        self, row: str, connection_id: str, version: str, capabilities: Object, client: tuple[str, str]
    ) -> str:
        """Open a client's session, and return the session id that the client gets. Raises DatabaseUnavailable.

        `row` is the id of the `initialize` call, and becomes the id of the session's database row. If the connection
        then has more than MOST_SESSIONS sessions, the surplus, least recently used ones are ended in the background.
        """
        session_id = token_text.mint(token_text.SESSION)
        name, client_version = client
        given = {
            "id": row,
            "digest": session_digest(session_id),
            "connection": connection_id,
            "version": version,
            "capabilities": Jsonb(capabilities),
            "declared": declared(capabilities),
            "client_name": name,
            "client_version": client_version,
            "most": MOST_SESSIONS,
        }
        ((is_full,),) = await self._state.fetch(OPEN, given)
        if is_full and connection_id not in self._ending:
            self._ending.add(connection_id)
            self._background.spawn("surplus sessions", self._end_surplus(connection_id))
        return session_id

    async def _end_surplus(self, connection_id: str) -> None:
        """End the surplus sessions of a connection, the least recently used ones."""
        try:
            # Workers write the last use only once a minute. Ask them to write it now.
            await self._state.fetch("SELECT pg_notify('gateway', 'sessions ')")
            await asyncio.sleep(SETTLE_SECONDS)
            given = {"connection": connection_id, "most": MOST_SESSIONS}
            await self._end_in_background(await self._state.fetch(f"{END_SURPLUS}{OF_GONE}{TOLD}", given))
        except DatabaseUnavailable as error:  # Opening the next session tries again.
            logger.warning("surplus sessions could not be ended", extra={"error": str(error)})
        finally:
            self._ending.discard(connection_id)

    async def set_level(self, session: str, level: str) -> None:
        """Store the client's minimum log level. Raises DatabaseUnavailable."""
        await self._state.fetch(SET_LEVEL, {"session": session, "level": level})

    async def subscribe(self, session: str, uri: str) -> bool:
        """Add `uri` to the session's subscriptions. Return False if there are too many or the session has ended.

        Raises DatabaseUnavailable.
        """
        given = {"session": session, "uri": uri, "most": MOST_SUBSCRIPTIONS}
        return bool(await self._state.fetch(SUBSCRIBE, given))

    async def unsubscribe(self, session: str, uri: str) -> None:
        """Remove `uri` from the session's subscriptions. Raises DatabaseUnavailable."""
        await self._state.fetch(UNSUBSCRIBE, {"session": session, "uri": uri})

    async def kept(self, target: Target) -> str | None:
        """Return the row id of the session for this target; None if there is none. Raises DatabaseUnavailable."""
        rows = await self._state.fetch(FIND, _identity(target))
        return rows[0][0] if rows else None

    async def subscriptions(self, sessions: Sequence[str]) -> dict[str, list[str]]:
        """Return the subscribed URIs of each session that has subscriptions. Raises DatabaseUnavailable."""
        return dict(await self._state.fetch(SUBSCRIPTIONS, {"sessions": list(sessions)}))

    async def end(self, session: str) -> None:
        """End a client's session, and the sessions at servers that belong to it. Raises DatabaseUnavailable."""
        await self._end_in_background(await self._state.fetch(f"{END}{OF_GONE}{TOLD}", {"session": session}))

    async def sweep(self) -> int:
        """End idle client sessions and idle sessions at servers, and return their number. Raises DatabaseUnavailable.

        If a client session ends, its sessions at servers end, too. The number does not include them.
        """
        idle = {"seconds": self._idle_seconds, "most": MOST_AT_A_SWEEP}
        ended = await self._state.fetch(f"{END_IDLE}{OF_GONE}{_counted('gone')}", idle)
        unused = {"seconds": UPSTREAM_IDLE_SECONDS, "most": MOST_AT_A_SWEEP}
        dropped = await self._state.fetch(f"{UNUSED}{_counted('taken')}", unused)
        at_once = asyncio.Semaphore(AT_ONCE)

        async def end(target: Target) -> None:
            async with at_once:
                await self._client.end(target)

        rows = [row[1:] for row in (*ended, *dropped) if row[1]]
        await asyncio.gather(*(end(target) for target in self._targets(rows)))
        return int(ended[0][0] + dropped[0][0])

    async def _end_in_background(self, rows: list[tuple[Any, ...]]) -> None:
        for target in self._targets(rows):
            self._client.end_in_background(target)

    async def _sweep_all(self) -> None:
        while await self.sweep() >= MOST_AT_A_SWEEP:
            pass

    async def lease(self, worker: str, owners: Sequence[str], known: Collection[str]) -> Leased:
        """Lease the sessions that these owners have at servers. Raises DatabaseUnavailable.

        An owner is a client's session, or the connection of a client without a session. A session at a server is
        leased to one worker at a time. `known` has the row ids of the sessions whose targets the caller already has:
        the result does not contain these targets.
        """
        given = {"worker": worker, "owners": list(owners), "seconds": LEASE_SECONDS, "known": list(known)}
        rows = await self._state.fetch(LEASE, given)
        return Leased(
            self._owned([row for row in rows if row[1]]),
            {row[2]: row[0] for row in rows if row[0] and not row[1]},
            [row[2] for row in rows if not row[0]],
        )

    async def lease_rows(self, worker: str, rows: Sequence[str]) -> dict[str, bool]:
        """Lease these sessions. Return, for each session that still exists, whether this worker has the lease.

        See `lease`. Raises DatabaseUnavailable.
        """
        given = {"worker": worker, "rows": list(rows), "seconds": LEASE_SECONDS}
        return dict(await self._state.fetch(LEASE_ROWS, given))

    async def target_of(self, row: str) -> Target | None:
        """Return the target of this session, with the credential; None if the session or its access has ended.

        Raises DatabaseUnavailable.
        """
        found = self._owned(await self._state.fetch(TARGET, {"row": row}))
        return found[row][1] if row in found else None

    def _owned(self, rows: list[tuple[Any, ...]]) -> dict[str, tuple[str, Target]]:
        found = {}
        for owner, key, *row in rows:
            for target in self._targets([tuple(row)]):
                told = capabilities_of(key.rpartition(" ")[2])
                own = owner != target.connection_id
                found[str(row[0])] = (
                    owner,
                    target._replace(session_key=key, capabilities=told, owner_id=owner, has_own_session=own),
                )
        return found

    async def lease_listens(self, worker: str, wanted: Sequence[tuple[str, str, str, str]]) -> dict[str, str]:
        """Lease `subscriptions/listen` streams at servers. Each is leased to one worker at a time, as in `lease`.

        `wanted` has a tuple for each stream: owner, connection, server and key. Returns the row ids of the leased
        streams by key. Raises DatabaseUnavailable.
        """
        owners, connections, servers, keys = (list(column) for column in zip(*wanted, strict=True))
        given: dict[str, Any] = {"owners": owners, "connections": connections, "servers": servers, "keys": keys}
        given |= {"worker": worker, "seconds": LEASE_SECONDS, "version": versions.MODERN}
        return {key: row for row, _, _, key in await self._state.fetch(LEASE_LISTENS, given)}

    async def release(self, worker: str, rows: Sequence[str]) -> None:
        """Release these leases, so that other workers can take them. Raises DatabaseUnavailable."""
        await self._state.fetch(RELEASE, {"worker": worker, "rows": list(rows)})

    def _targets(self, rows: list[tuple[Any, ...]]) -> list[Target]:
        targets = []
        for row in rows:
            try:
                targets.append(self._target(Taken._make(row)))
            except (Undecryptable, oauth_client.Unsendable):  # The session then expires at the server.
                continue
        return targets

    def _target(self, taken: Taken) -> Target:
        header = None
        if taken.ciphertext is not None and taken.auth_type != "none":
            secret = self._cipher.open(bytes(taken.ciphertext))
            header = oauth_client.header_of(taken.auth_type, taken.header_name, secret)
        return Target(
            server_id=taken.server_id,
            server_name=taken.server_name,
            url=taken.url,
            era=SESSION,
            timeout_s=taken.timeout_s,
            max_concurrent=taken.max_concurrent,
            connection_id=taken.connection_id,
            credential=header,
            generation="",
            session=open_session((taken.row, taken.sealed_id, taken.version, ""), self._cipher),
            private=taken.private,
        )
