"""The one SELECT that decides requests, in batches.

Requests that arrive while the statement runs share the next one, so each is decided by data read after its arrival.
Nothing is cached.
"""

import hashlib
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import orjson
from psycopg.adapt import Transformer
from psycopg.pq.abc import PGresult

from proxy.access.decision import AccessRow, AssignedServer, SessionGrant
from proxy.store.database import DatabaseUnavailable, GroupCommit, PgConnection, Waiting, fail, resolve
from wire import token_text

logger = logging.getLogger(__name__)

STATEMENT = Path(__file__).with_name("query.sql").read_bytes()
STATEMENTS = {
    b"decide": STATEMENT,
    b"decide_calls": re.sub(rb"/\* not for calls \*/.*?/\* end \*/", b"", STATEMENT, flags=re.DOTALL),
}
# The statement for a host, a gateway and a person instead of a token.
STATEMENT_OF_TRIPLE = re.sub(
    rb"^/\* token \*/.*?/\* end token \*/",
    lambda _: Path(__file__).with_name("query_of_triple.sql").read_bytes(),
    STATEMENT,
    flags=re.DOTALL | re.MULTILINE,
)
PARAMETERS = ("int[]", "bytea[]", "text[]", "text[]", "int[]", "text[]", "text[]", "bytea[]", "text[]")


def _preparing(name: bytes) -> bytes:
    return b"PREPARE %s (%s) AS %s" % (name, ", ".join(PARAMETERS).encode(), STATEMENTS[name])


# Setup of the connection that `find_again` uses. Nothing is planned in advance: most workers never use it.
SETUP_TO_FIND_AGAIN = (
    b"SET application_name = 'gateway access'",
    b"SET plan_cache_mode = 'force_generic_plan'",
    b"SET enable_seqscan = off",
    b"SET enable_bitmapscan = off",
    b"SET enable_memoize = off",  # Equal queries are sent once, and each hash table is made anew for each execution.
    b"SET jit = off",
    b"SET statement_timeout = '4s'",
    b"SET default_transaction_read_only = on",
    _preparing(b"decide"),
)
SETUP = (
    *SETUP_TO_FIND_AGAIN,
    _preparing(b"decide_calls"),
    # Plan now instead of for the first request. The plans also keep the top of the PostgreSQL process's heap in use;
    # otherwise each execution would return that memory to the operating system and allocate it again.
    *(b"EXECUTE %s (%s)" % (name, b", ".join([b"'{}'"] * len(PARAMETERS))) for name in STATEMENTS),
)

SLUG = "[a-z0-9-]{1,40}"  # A gateway in a URL, as a pattern.
_is_slug = re.compile(SLUG).fullmatch


class ServersNeeded(IntEnum):
    """The servers of the gateway that the statement returns for a request."""

    NONE = 0
    ALL = 1
    OF_FEATURE = 2  # Those that may have the named feature.
    INTRODUCED = 3  # All, with their introductions (capabilities, instructions) instead of their features.
    BY_OWN_NAME = 4  # All, with the feature of which this is the server's own name.


class Wanted(NamedTuple):
    """The servers and features that the statement returns for a request.

    `kind` is tool, prompt, resource or template. `name` is the feature's name as the client sent it; for a resource,
    the URIs its server may use for it, one per line.
    """

    servers: ServersNeeded
    kind: str = ""
    name: str = ""


NOTHING = Wanted(ServersNeeded.NONE)
FOR_CALLS = (ServersNeeded.NONE, ServersNeeded.OF_FEATURE)


class TokenDigests(NamedTuple):
    """The digests or checksums a token may be stored under, one for each key; each of them is looked up."""

    digests: tuple[bytes | None, ...]
    checksums: tuple[str | None, ...]


class AccessQuery(NamedTuple):
    """One request's parameters of the statement; equal ones are sent once."""

    token: TokenDigests
    slug: str
    wanted: Wanted
    session: bytes | None = None
    declared: str = ""


def access_query(
    token: TokenDigests, slug: str, wanted: Wanted = NOTHING, session: bytes | None = None, declared: str = ""
) -> AccessQuery:
    """Return the query for this token at the gateway of this slug; an invalid slug becomes empty."""
    return AccessQuery(token, slug if _is_slug(slug) else "", wanted, session, declared)


class Access(GroupCommit[AccessQuery, AccessRow | None]):
    """Finds the grants of requests, in batches."""

    def __init__(self, conninfo: str, token_keys: Sequence[bytes], max_waiting: int = 2000) -> None:
        self._connection = PgConnection(conninfo, SETUP)
        self._token_keys = token_keys
        super().__init__(
            "access",
            [self._handle],
            [self._connection],
            to_error=lambda error: DatabaseUnavailable(str(error)),
            max_waiting=max_waiting,
        )

    def digests(self, token: str) -> TokenDigests:
        """Return what `query.sql` looks a bearer token up by: checksums for OAuth access tokens, else digests."""
        if token.startswith(token_text.OAUTH_ACCESS):
            return TokenDigests((None,), (hashlib.sha256(token.encode()).hexdigest(),))
        return TokenDigests((*token_text.candidates(token, self._token_keys),), (None,) * len(self._token_keys))

    async def find_grant(
        self,
        token: TokenDigests,
        slug: str,
        wanted: Wanted = NOTHING,
        session: bytes | None = None,
        declared: str = "",
    ) -> AccessRow | None:
        """Return the current grant of this token, or None if it is unknown. Raises DatabaseUnavailable.

        `session` is the digest of the session id in the request; `declared` are the client capabilities that servers
        are sent for a request without a session.
        """
        return await self.put(access_query(token, slug, wanted, session, declared))

    async def _handle(self, batch: list[Waiting[AccessQuery, AccessRow | None]]) -> None:
        # Concurrent calls of one client often have equal queries: each is sent once.
        numbers = {query: number for number, query in enumerate(dict.fromkeys(query for query, _ in batch))}
        grants = read_grants(await self._connection.query_with_retry(statement_for(numbers), parameters([*numbers])))
        for query, future in batch:
            grant = grants.get(numbers[query])
            if isinstance(grant, DatabaseUnavailable):
                logger.error("what the database says of a token cannot be read", extra={"error": str(grant)})
                fail([(query, future)], grant)
            else:
                resolve(future, grant)


def statement_for(queries: Iterable[AccessQuery]) -> bytes:
    """Return the name of the smallest prepared statement that answers all these queries."""
    for query in queries:
        wanted = query.wanted
        if wanted.servers not in FOR_CALLS or wanted.kind == "resource" or query.token.digests[0] is None:
            return b"decide"
    return b"decide_calls"


async def find_again(
    query: Callable[[bytes, Sequence[bytes]], Awaitable[PGresult]], queries: Sequence[AccessQuery]
) -> list[AccessRow | DatabaseUnavailable | None]:
    """Return the current grants of these queries, by one statement that `query` runs over its own connection.

    None for an unknown token, DatabaseUnavailable for a row that cannot be read. Raises DatabaseUnavailable or
    StatementRejected.
    """
    numbers = {each: number for number, each in enumerate(dict.fromkeys(queries))}
    grants = read_grants(await query(b"decide", parameters([*numbers])))
    return [grants.get(numbers[each]) for each in queries]


def read_grants(result: PGresult) -> dict[int, AccessRow | DatabaseUnavailable]:
    """Return the grants by query number. A row that cannot be read fails its own query only."""
    transformer = Transformer()
    transformer.set_pgresult(result)
    grants: dict[int, AccessRow | DatabaseUnavailable] = {}
    for number, *values in transformer.load_rows(0, result.ntuples, list):
        try:
            values[_ASSIGNMENTS] = _assigned_servers(values[_ASSIGNMENTS])
            if values[_SESSION] is not None:
                values[_SESSION] = SessionGrant._make(orjson.loads(values[_SESSION]))
            grants[number] = AccessRow._make(values)
        except (ValueError, RecursionError) as error:
            grants[number] = DatabaseUnavailable(str(error))
    return grants


_ASSIGNMENTS = AccessRow._fields.index("assignments")
_SESSION = AccessRow._fields.index("session")


def _assigned_servers(text: str | None) -> tuple[AssignedServer, ...]:
    if text is None:
        return ()
    try:
        rows = orjson.loads(text)
    except ValueError:  # A tool's schema may contain an integer too large for orjson.
        rows = json.loads(text)
    return tuple(map(AssignedServer._make, rows))


def parameters(queries: Sequence[AccessQuery]) -> list[bytes]:
    """Return the statement's parameters as PostgreSQL array texts, with one element per digest."""
    rows = [
        (n, query, digest, checksum)
        for n, query in enumerate(queries)
        for digest, checksum in zip(query.token.digests, query.token.checksums, strict=True)
    ]
    return [
        _array([str(n) for n, _, _, _ in rows]),
        _array([_bytes(digest) for _, _, digest, _ in rows]),
        _array([checksum or "NULL" for _, _, _, checksum in rows]),
        _array([f'"{query.slug}"' for _, query, _, _ in rows]),
        _array([str(query.wanted.servers.value) for _, query, _, _ in rows]),
        _array([_quoted(query.wanted.name) for _, query, _, _ in rows]),
        _array([_quoted(query.wanted.kind) for _, query, _, _ in rows]),
        _array([_bytes(query.session) for _, query, _, _ in rows]),
        _array([f'"{query.declared}"' for _, query, _, _ in rows]),
    ]


def _array(elements: list[str]) -> bytes:
    return ("{" + ",".join(elements) + "}").encode(errors="replace")


def _bytes(value: bytes | None) -> str:
    return "NULL" if value is None else f'"\\\\x{value.hex()}"'


def _quoted(text: str) -> str:
    """Quote `text` as an array element. NULs are dropped: PostgreSQL rejects them, and no feature name has one."""
    if "\\" in text or '"' in text or "\0" in text:
        text = text.replace("\0", "").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
