"""Read the grant of a request, and decide whether token, connection, host and gateway allow the request.

The grant is an AccessRow: the data from the database by which the gateway decides. `decide` makes the checks in rows 4
to 10 of docs/reference/decision-order.md.
"""

import hashlib
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from enum import IntEnum
from functools import cache, lru_cache
from ipaddress import ip_address, ip_network
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from psycopg.adapt import Transformer
from psycopg.pq.abc import PGresult

from proxy import reasons
from proxy.access.rules import DecidingRule, Rules, ToolClaims
from proxy.store.pg import DatabaseUnavailable, GroupCommit, PgConnection, Waiting, fail, resolve
from wire import jsonrpc, token_text
from wire.mcp import MODERN, SESSION, era_for


class FeatureRow(NamedTuple):
    """The stored row of a feature that is named in a request.

    If a resource is requested, the rows of all resource templates are read too.
    """

    name: str
    exposed_name: str
    enabled: bool
    schema: object  # Set only if the schema uses x-mcp-header.
    state: str
    # Set only if a changed definition is held back: the definition clients see, and the server's current definition.
    approved: str | None
    offered: str | None
    kind: str
    granted: bool = True  # Whether the feature is given to the person, and within the limit of the app or agent.
    claims: ToolClaims | None = None  # Set only if rules apply to the gateway.


class ListedFeature(NamedTuple):
    """A feature that this connection can list."""

    exposed_name: str
    text: str
    dotted_name: str | None  # The server's own name for the feature, if that name has dots.
    # The title and description that an administrator set, which replace the server's; None if neither is set.
    said: dict[str, str] | None


class StoredSession(NamedTuple):
    """An existing session at a server: the id of its row, and the server's session id, encrypted."""

    row: str
    sealed_id: str
    version: str
    log_level: str


class Introduction(NamedTuple):
    """The server's description of itself. A field is None if the server never sent it."""

    capabilities: dict[str, Any] | None  # In session-based versions of MCP.
    instructions: str | None  # Those sent to other identities do not count.
    modern_capabilities: dict[str, Any] | None  # In MCP 2026-07-28.
    is_given: bool = True  # Whether the person, through this app or agent, may use anything of this server.


class ListingState(NamedTuple):
    """The last list request to a server: its age in seconds and its error, and whether the server ever answered."""

    age: float
    is_known: bool
    error: str
    ttl_ms: int


class SignInState(NamedTuple):
    """State of an identity obtained by signing in at an issuer."""

    is_needed: bool  # The person must sign in again.
    seconds_left: float | None  # Until the token expires; None if the identity is not due for renewal.


class AssignedServer(NamedTuple):
    """A server behind the gateway, and the identity this connection uses there."""

    id: str
    alias: str
    enabled: bool
    scheme: str
    policy: str
    in_scope: bool
    server_id: str
    server_name: str
    url: str
    server_enabled: bool
    auth_type: str
    header_name: str
    timeout_s: int
    max_concurrent: int
    eras: str  # SESSION, MODERN or BOTH; empty while the eras are unknown.
    identity_id: str | None
    identity_label: str | None
    identity_enabled: bool | None
    ciphertext: str | None
    # With ServersNeeded.ALL, ListedFeatures in the server's order. With OF_FEATURE or BY_OWN_NAME, FeatureRows: those
    # of the matching features and, if a resource is requested, those of all templates.
    features: Sequence[Any] | None
    # `identity_allowed`: this gateway may use the shared identity. `identity_unconfirmed`: the server's path, header or
    # auth type has changed since the identity was confirmed.
    identity_allowed: bool = True
    identity_unconfirmed: bool = False
    # Key of the session at this server, and the existing session.
    upstream_key: str = ""
    upstream_session: StoredSession | None = None
    # Set only with ServersNeeded.INTRODUCED.
    introduction: Introduction | None = None
    # Whether the client's session has a log level that can be sent to this server.
    logs: bool = False
    total_s: int = 600
    # `listing` is set with ServersNeeded.ALL only; None if the server was never asked for this list. `lists_live` is
    # True if the server's lists differ by session.
    listing: ListingState | None = None
    lists_live: bool = False
    # Whether the identity was disabled by its owner.
    identity_off_by_owner: bool = False
    # Set only for an identity that was obtained by signing in at an issuer.
    sign_in: SignInState | None = None
    # Whether the server may have a private address. True for servers added before this was recorded.
    private: bool = True
    # Whether only features that were given may be used: the gateway requires this, or the app or agent has a limit.
    restricted: bool = False

    def capabilities(self, *, modern: bool) -> dict[str, Any] | None:
        """Return the server's capabilities for a client; None if the server has sent none.

        A `modern` client speaks MCP 2026-07-28.
        """
        in_sessions, _, in_modern, _ = self.introduction or NOT_INTRODUCED
        era = era_for(self.eras, MODERN if modern else SESSION) or (MODERN if modern else SESSION)
        # Those in the era in which the gateway calls the server for this client; if unknown, those in the other era.
        own, other = (in_modern, in_sessions) if era == MODERN else (in_sessions, in_modern)
        return own if own is not None else other


NOT_INTRODUCED = Introduction(None, None, None)


class SessionGrant(NamedTuple):
    """The client's session that a request names."""

    id: str
    version: str
    capabilities: dict[str, Any]  # All capabilities of the client.
    declared: str  # The names of those that are sent to servers, and a digest of any extensions, comma-separated.
    log_level: str
    client_name: str
    client_version: str
    is_lost: bool = False  # A server has lost its session with the gateway: the client has to open a new session.


class AccessRow(NamedTuple):
    """The row that `query.sql` returns for the token of one request. Each field has the name of its column."""

    token_id: str
    token_name: str
    token_prefix: str
    by_oauth: bool
    token_revoked: bool
    token_stale: bool
    token_expired: bool
    allowed_ips: str | None
    connection_id: str
    connection_revoked: bool
    connection_enabled: bool
    gateway_id: str
    gateway_name: str
    gateway_description: str
    gateway_matches: bool
    gateway_enabled: bool
    host_id: str
    host_name: str
    host_enabled: bool
    host_pending: bool
    user_id: str
    user_email: str
    user_active: bool
    reaches: bool
    host_allowed: bool
    # The servers that the query wanted (see ServersNeeded), ordered by alias.
    assignments: Sequence[AssignedServer]
    token_limit: int | None = None
    gateway_limit: int | None = None
    workspace_limit: int | None = None
    # How many bytes of each body are recorded; None: bodies are not recorded.
    recorded: int | None = None
    # The session the request names, if it exists and belongs to this connection.
    session: SessionGrant | None = None
    # Whether the gateway has more than one server, so that a URI alone does not identify its server.
    several_servers: bool = False
    # The rules for a call of a tool; None if there are none.
    rules: Rules | None = None
    # Whether the URL of the request names a gateway.
    gateway_exists: bool = True

    @property
    def owner_id(self) -> str:
        """The id of the owner of the sessions that the gateway opens at servers for this client.

        The owner is the client's own session. If the client has no session, the owner is the connection.
        """
        return self.session.id if self.session is not None else self.connection_id

    @property
    def limited(self) -> bool:
        """True if a rate limit is set for this token, its gateway or the workspace."""
        return self.token_limit is not None or self.gateway_limit is not None or self.workspace_limit is not None


class Denied(NamedTuple):
    """A refusal of the whole request. `published` is the response body if its exact bytes are documented."""

    reason: str
    status: int
    published: bytes = b""

    def body(self, public_url: str) -> bytes:
        """Return the body of the response."""
        return self.published or self.error(public_url, None)

    def error(self, public_url: str, request_id: jsonrpc.Id | None, sentence: str = "", **data: str) -> bytes:
        """Return a JSON-RPC error with the reason. Its message has `sentence`, by default the reason's sentence."""
        code = jsonrpc.UNAUTHORIZED if self.status == 401 else jsonrpc.FORBIDDEN
        text = reasons.message(self.reason, public_url, sentence)
        return jsonrpc.error(request_id, code, text, {"reason": self.reason, **data})


DENIALS = {
    name: Denied(name, reason.status, reason.published_body)
    for name, reason in reasons.REASONS.items()
    if reason.status
}
# If an app sends an OAuth token of another gateway, the refusal must make the app authorize for this gateway. If the
# URL names no gateway, the app would then ask its person to sign in again and again.
WRONG_AUDIENCE = DENIALS["unknown"]._replace(reason="wrong_gateway")


class AccessCondition(NamedTuple):
    """A field of the grant, the value that allows calls, and the reason for refusing calls with any other value."""

    field: str
    allowed: bool
    reason: str


# Checked in this order: the caller gets the reason of the first condition that fails.
TOKEN_CONDITIONS = (
    AccessCondition("token_revoked", False, "revoked"),
    AccessCondition("token_stale", False, "stale_generation"),
    AccessCondition("connection_revoked", False, "connection_revoked"),
    AccessCondition("token_expired", False, "expired"),
    AccessCondition("user_active", True, "user_inactive"),
    AccessCondition("gateway_matches", True, "wrong_gateway"),
)
# Checked after the client's IP address.
LAYER_CONDITIONS = (
    AccessCondition("host_enabled", True, "host_disabled"),
    AccessCondition("host_pending", False, "host_pending"),
    AccessCondition("gateway_enabled", True, "gateway_disabled"),
    AccessCondition("connection_enabled", True, "connection_disabled"),
    AccessCondition("reaches", True, "gateway_not_reachable"),
    AccessCondition("host_allowed", True, "host_not_allowed_here"),
)


# All fields are compared in one step, because nearly every call passes.
_token_fields = attrgetter(*(each.field for each in TOKEN_CONDITIONS))
_token_allowed = tuple(each.allowed for each in TOKEN_CONDITIONS)
_layer_fields = attrgetter(*(each.field for each in LAYER_CONDITIONS))
_layer_allowed = tuple(each.allowed for each in LAYER_CONDITIONS)


def decide(grant: AccessRow, client_ip: str) -> Denied | None:
    """Return why the token may not be used for this request, or None if it may (rows 4 to 10 of the decision order)."""
    if _token_fields(grant) != _token_allowed:
        reason = _first_failed(grant, TOKEN_CONDITIONS)
        authorizes_again = reason == "wrong_gateway" and grant.by_oauth and grant.gateway_exists
        return WRONG_AUDIENCE if authorizes_again else DENIALS[reason]
    if grant.allowed_ips is not None and not _is_allowed(client_ip, grant.allowed_ips):
        return DENIALS["ip"]
    if _layer_fields(grant) != _layer_allowed:
        return DENIALS[_first_failed(grant, LAYER_CONDITIONS)]
    return None


def _first_failed(grant: AccessRow, conditions: Sequence[AccessCondition]) -> str:
    return next(reason for field, allowed, reason in conditions if getattr(grant, field) != allowed)


def _is_allowed(client_ip: str, allowed_ips: str) -> bool:
    try:
        address = ip_address(client_ip)
        ranges = orjson.loads(allowed_ips)
        return ranges is None or any(address in ip_network(text) for text in ranges)
    except (ValueError, TypeError):
        return False


# The one SELECT that decides requests, in batches.
#
# While the statement runs, newly arrived requests wait; they share the next run of the statement. So each request is
# decided by data that was read after the request arrived. Nothing is cached.

logger = logging.getLogger(__name__)

STATEMENT = Path(__file__).with_name("query.sql").read_bytes()
STATEMENTS = {
    b"decide": STATEMENT,
    b"decide_calls": re.sub(rb"/\* not for calls \*/.*?/\* end \*/", b"", STATEMENT, flags=re.DOTALL),
}
# The same SELECT, but it finds the grant by host, gateway and person instead of by token.
STATEMENT_OF_TRIPLE = re.sub(
    rb"^/\* token \*/.*?/\* end token \*/",
    lambda _: Path(__file__).with_name("query_of_triple.sql").read_bytes(),
    STATEMENT,
    flags=re.DOTALL | re.MULTILINE,
)
PARAMETERS = ("int[]", "bytea[]", "text[]", "text[]", "int[]", "text[]", "text[]", "bytea[]", "text[]")


def _preparing(name: bytes) -> bytes:
    return b"PREPARE %s (%s) AS %s" % (name, ", ".join(PARAMETERS).encode(), STATEMENTS[name])


# Setup of the connection for `find_again`. Nothing is planned in advance: most workers never use this connection.
SETUP_TO_FIND_AGAIN = (
    b"SET application_name = 'gateway access'",
    b"SET plan_cache_mode = 'force_generic_plan'",
    b"SET enable_seqscan = off",
    b"SET enable_bitmapscan = off",
    b"SET enable_memoize = off",  # Useless here: equal queries are sent once, and memos last for one execution.
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
    """Selects which of the gateway's servers the access statement (query.sql) returns for a request."""

    NONE = 0
    ALL = 1
    OF_FEATURE = 2  # The servers that may have the named feature.
    INTRODUCED = 3  # All servers, with their introductions (capabilities, instructions) instead of their features.
    BY_OWN_NAME = 4  # All servers, each with the feature that the server itself calls by the requested name.


class Wanted(NamedTuple):
    """Selects the servers and features that the access statement (query.sql) returns for a request."""

    servers: ServersNeeded
    kind: str = ""  # tool, prompt, resource, template or instructions. The last also looks up `Introduction.is_given`.
    # As the client sent it; for a resource, the URIs that servers may use for the resource, one per line.
    name: str = ""


NOTHING = Wanted(ServersNeeded.NONE)
FOR_CALLS = (ServersNeeded.NONE, ServersNeeded.OF_FEATURE)


class TokenDigests(NamedTuple):
    """The values by which a token is looked up: its digests or, for an OAuth token, its checksum.

    Both tuples have the same length. For an OAuth token, all elements of `digests` are None. For any other token, all
    elements of `checksums` are None.
    """

    digests: tuple[bytes | None, ...]  # One for each token key.
    checksums: tuple[str | None, ...]  # Of an OAuth token.


class AccessQuery(NamedTuple):
    """Parameters of the access statement (query.sql) for one request; equal queries of a batch are sent once."""

    token: TokenDigests
    slug: str
    wanted: Wanted
    session: bytes | None = None
    declared: str = ""


def access_query(
    token: TokenDigests, slug: str, wanted: Wanted = NOTHING, session: bytes | None = None, declared: str = ""
) -> AccessQuery:
    """Return the query for this token at the gateway with this slug. An invalid slug is replaced by an empty one."""
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
        """Return the values by which `query.sql` finds a bearer token."""
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
        """Return the current grant of this token, or None for an unknown token. Raises DatabaseUnavailable.

        `session` is the digest of the id of the client's session. If the request names no session, `declared` lists the
        names of the client's capabilities that are sent to servers, comma-separated.
        """
        return await self.put(access_query(token, slug, wanted, session, declared))

    async def _handle(self, batch: list[Waiting[AccessQuery, AccessRow | None]]) -> None:
        # Concurrent calls of one client often have equal queries: each is sent once.
        numbers = {query: number for number, query in enumerate(dict.fromkeys(query for query, _ in batch))}
        grants = read_grants(await self._connection.query_with_retry(statement_for(numbers), parameters([*numbers])))
        for query, future in batch:
            grant = grants.get(numbers[query])
            if isinstance(grant, DatabaseUnavailable):
                logger.error("a token's row from the database cannot be read", extra={"error": str(grant)})
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
    """Return the current grant for each of `queries`. All grants are read by one statement.

    `query` is the function that runs the statement. An entry of the returned list is None for an unknown token, and a
    DatabaseUnavailable for a row that cannot be read. Raises DatabaseUnavailable or StatementRejected if the statement
    fails.
    """
    numbers = {each: number for number, each in enumerate(dict.fromkeys(queries))}
    grants = read_grants(await query(b"decide", parameters([*numbers])))
    return [grants.get(numbers[each]) for each in queries]


def read_grants(result: PGresult) -> dict[int, AccessRow | DatabaseUnavailable]:
    """Return the grant of each query, by the query's number.

    If the row of a query cannot be read, its value is a DatabaseUnavailable. A query without a row has no entry.
    """
    number, columns = _places(tuple(map(result.fname, range(result.nfields))))
    transformer = Transformer()
    transformer.set_pgresult(result)
    grants: dict[int, AccessRow | DatabaseUnavailable] = {}
    for values in transformer.load_rows(0, result.ntuples, tuple):
        fields = [*columns(values)]
        try:
            fields[_ASSIGNMENTS] = _assigned_servers(fields[_ASSIGNMENTS])
            if fields[_SESSION] is not None:
                fields[_SESSION] = SessionGrant(**_parsed(fields[_SESSION]))
            if fields[_RULES] is not None:
                fields[_RULES] = _rules(fields[_RULES])
            grants[values[number]] = AccessRow._make(fields)
        except (ValueError, RecursionError) as error:
            grants[values[number]] = DatabaseUnavailable(str(error))
    return grants


@cache
def _places(names: tuple[bytes, ...]) -> tuple[int, Callable[[Any], tuple[Any, ...]]]:
    """Return the position of the column `n` in a result, and a function that picks AccessRow's fields from a row.

    The column `n` has the number of the query that a row answers. `names` are the names of all columns, in order.
    """
    place = {name.decode(): number for number, name in enumerate(names)}
    return place["n"], itemgetter(*map(place.__getitem__, AccessRow._fields))


_ASSIGNMENTS, _SESSION, _RULES = map(AccessRow._fields.index, ("assignments", "session", "rules"))
# Pick the values of a JSON object's members, in the order of the tuple's fields. Keyword arguments would take ten times
# as long.
_members_of_server, _members_of_feature = itemgetter(*AssignedServer._fields), itemgetter(*FeatureRow._fields)


@lru_cache(maxsize=64)
def _rules(text: str) -> Rules:
    """Parse the rules that the access statement has returned; equal texts are parsed only once."""
    row = orjson.loads(text)
    return Rules(**row | {"rules": [DecidingRule._make(each) for each in row["rules"]], "teams": row["teams"] or []})


def _assigned_servers(text: str | None) -> tuple[AssignedServer, ...]:
    if text is None:
        return ()
    return tuple(map(_assigned_server, _parsed(text)))


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:  # A tool's schema or a client's capabilities may contain an integer too large for orjson.
        return json.loads(text)


# The types of the objects that are fields of an AssignedServer.
_WITHIN = {
    "upstream_session": StoredSession,
    "introduction": Introduction,
    "listing": ListingState,
    "sign_in": SignInState,
}


def _assigned_server(row: dict[str, Any]) -> AssignedServer:
    for name, kind in _WITHIN.items():
        if row[name] is not None:
            row[name] = kind(**row[name])
    if row["features"]:
        row["features"] = [
            _feature_row(each) if isinstance(each, dict) else ListedFeature._make(each) for each in row["features"]
        ]
    return AssignedServer._make(_members_of_server(row))


def _feature_row(members: dict[str, Any]) -> FeatureRow:
    row = FeatureRow._make(_members_of_feature(members))
    return row if row.claims is None else row._replace(claims=ToolClaims._make(row.claims))


def parameters(queries: Sequence[AccessQuery]) -> list[bytes]:
    """Return the parameters of the access statement. Each parameter is the text of a PostgreSQL array.

    The arrays are the columns of a table. For a query with an OAuth token, the table has one row, with the token's
    checksum. For any other query, it has one row for each token key, with the token's digest under this key.
    """
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
    """Quote `text` as an array element. Drop its NULs: PostgreSQL rejects NULs, and no feature name contains a NUL."""
    if "\\" in text or '"' in text or "\0" in text:
        text = text.replace("\0", "").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
