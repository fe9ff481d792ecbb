"""Sessions in PostgreSQL: those of clients, and those they have at servers. Any worker serves any request of one.

Reading costs no statement of its own: `query.sql` finds both. Here they are opened, lost and ended.
"""

from typing import Any

from proxy.store.database import DatabaseUnavailable
from proxy.store.state import State
from wire.cipher import Cipher, Unreadable
from wire.jsonrpc import Object
from wire.rpc_messages import Session, Target

# What of a client's capabilities can be passed on to servers, and the members of each that are told along.
BRIDGED = {"elicitation": ("form", "url"), "roots": (), "sampling": ("context", "tools")}

FIND = """
SELECT id::text, sealed_id, version FROM proxy_upstreamsession
WHERE owner_id = %(owner)s AND server_id = %(server)s AND key = %(key)s
"""
# Of two workers that open one at once, the second gets the row of the first.
KEEP = """
INSERT INTO proxy_upstreamsession AS u
    (id, owner_id, connection_id, server_id, key, sealed_id, version, opened_at, last_used_at)
VALUES (
    gen_random_uuid(), %(owner)s, %(connection)s, %(server)s, %(key)s, %(sealed_id)s, %(version)s,
    statement_timestamp(), statement_timestamp()
)
ON CONFLICT (owner_id, server_id, key) DO UPDATE SET last_used_at = excluded.last_used_at
RETURNING id::text, sealed_id, version
"""
FORGET = "DELETE FROM proxy_upstreamsession WHERE id = %(row)s"


def declared(capabilities: object) -> str:
    """What of a client's capabilities servers are told, as a short text that is the same whatever their order."""
    if not isinstance(capabilities, dict):
        return ""
    names: list[str] = []
    for name, members in BRIDGED.items():
        if isinstance(told := capabilities.get(name), dict):
            names += [name, *(f"{name}.{member}" for member in members if isinstance(told.get(member), dict))]
    return ",".join(names)


def capabilities_of(text: str) -> Object:
    """The capabilities that `declared` made this text of."""
    capabilities: Object = {}
    for name in filter(None, text.split(",")):
        group, _, member = name.partition(".")
        of_group = capabilities.setdefault(group, {})
        if member:
            of_group[member] = {}
    return capabilities


def opened(row: Any, cipher: Cipher) -> Session:
    """The session of a row: its id there, the sealed id, the version. Raises Unreadable."""
    uid, sealed_id, version = row
    sealed = sealed_id.encode() if isinstance(sealed_id, str) else bytes(sealed_id)
    return Session(cipher.open(sealed) if sealed else "", version, uid)


class StoredSessions:
    """The store of the client that calls servers: sessions outlast the worker that opened them."""

    def __init__(self, state: State, cipher: Cipher) -> None:
        self._state = state
        self._cipher = cipher

    async def find(self, target: Target) -> Session | None:
        """The session kept for this target. Raises DatabaseUnavailable."""
        rows = await self._state.fetch(FIND, _identity(target))
        try:
            return opened(rows[0], self._cipher) if rows else None
        except Unreadable:  # The operator lost a key: what cannot be used is no session.
            await self._state.fetch(FORGET, {"row": rows[0][0]})
            return None

    async def keep(self, target: Target, session: Session) -> Session:
        """Keep this one, unless another worker's came first; the one that is kept. Raises DatabaseUnavailable."""
        sealed_id = self._cipher.seal(session.id) if session.id else b""
        given = {
            **_identity(target),
            "connection": target.connection_id,
            "sealed_id": sealed_id,
            "version": session.version,
        }
        (row,) = await self._state.fetch(KEEP, given)
        try:
            return opened(row, self._cipher)
        except Unreadable as error:
            raise DatabaseUnavailable("a session is sealed with a key that this worker does not know") from error

    async def forget(self, target: Target, session: Session) -> None:
        """Drop this session; another that took its place stays. Raises DatabaseUnavailable."""
        if session.row:
            await self._state.fetch(FORGET, {"row": session.row})

    def take_all(self) -> list[tuple[Target, Session]]:
        """None ends with this process."""
        return []


def _identity(target: Target) -> dict[str, str]:
    return {
        "owner": target.owner_id or target.connection_id,
        "server": target.server_id,
        "key": target.session_key,
    }
