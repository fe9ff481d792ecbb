"""One HTTP request at /mcp/<slug>: its headers (parsed once), its body, its message, and its row in the log."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from proxy.access.decision import Access, AccessQuery, AccessRow, AssignedServer, ServersNeeded, TokenDigests, Wanted
from proxy.access.features import Named, lookup_key, named
from proxy.config import Config
from proxy.open_files import NO_STREAM
from proxy.store import sessions
from proxy.store.call_log import CallRow, new_uid
from proxy.tasks import TASK_METHODS, Task
from wire import hosts, jsonrpc, token_text, trace_context, versions
from wire.fair_queue import HeldBytes
from wire.jsonrpc import LARGE, MOST_VALUES, MalformedMessage, Message, Object, storable
from wire.mcp import NAMED_BY, decoded_value, extensions_in
from wire.rewriting import TaskIds
from wire.trace_context import Trace

if TYPE_CHECKING:
    from proxy.tracing import CallSpan

type Scope = MutableMapping[str, Any]
type Pair = tuple[bytes, bytes]

PREFIX = "/mcp/"

# The kinds of tokens that an MCP endpoint accepts.
MCP_TOKEN_KINDS = (token_text.ACCESS, token_text.OAUTH_ACCESS)

SESSION_ID = b"mcp-session-id"

# ASGI scope extension: a dict shared by successive requests on an HTTP connection with the same header block.
SAME_HEAD = "gateway.same_head"

TRACED_BY = frozenset({trace_context.PARENT.encode(), trace_context.HOPS_KEY})

ACCEPT_BOTH = b"application/json, text/event-stream"


class Accepted(NamedTuple):
    """The response formats the client accepts. `*/*` alone does not count as accepting an event stream."""

    json: bool
    stream: bool


class RequestHeaders(NamedTuple):
    """Parsed path and headers, without Content-Length, which differs between otherwise equal requests."""

    http_method: str
    slug: str  # Empty if the path is not that of a gateway.
    host_is_known: bool  # The Host header is one of the gateway's host names.
    origin: str | None
    origin_is_allowed: bool  # Also True without an Origin.
    presents_bearer: bool
    token_digests: TokenDigests | None  # None without a well-formed token.
    client_ip: str
    is_json: bool
    accepted: Accepted
    user_agent: str
    protocol_version: str
    session_digest: bytes | None  # None without a session id.
    trace: Trace  # Trace headers, forwarded with requests to servers.


class HeaderReader:
    """Parses request headers, checks host and origin, and replaces the token with its digests."""

    def __init__(self, config: Config, access: Access) -> None:
        self._config = config
        self._access = access
        self._origins = Origins(config.public_url, config.allowed_origins)

    def read(self, scope: Scope) -> RequestHeaders:
        """Return the parsed headers. Requests with the same SAME_HEAD in `scope` share one result of parsing."""
        noted = scope.get("extensions", {}).get(SAME_HEAD)
        if noted is None:
            return self._read(scope)
        request_headers: RequestHeaders | None = noted.get(RequestHeaders)
        if request_headers is None:
            request_headers = noted[RequestHeaders] = self._read(scope)
        return request_headers

    def _read(self, scope: Scope) -> RequestHeaders:
        header_pairs: Sequence[Pair] = scope["headers"]
        headers = dict(header_pairs)
        slug = scope["path"].removeprefix(PREFIX).removesuffix("/")
        origin = _text(headers, b"origin") if b"origin" in headers else None
        peer = scope["client"][0] if scope.get("client") else ""
        hops = [value.decode("latin-1") for name, value in header_pairs if name == b"x-forwarded-for"]
        bearer = headers.get(b"authorization", b"")[:7].lower() == b"bearer "
        token = _token(header_pairs) if bearer else None
        return RequestHeaders(
            http_method=scope["method"],
            slug="" if "/" in slug else slug,
            # More than one Host is always refused (RFC 9112 section 3.2).
            host_is_known=(not self._config.hosts or hosts.of_header(_text(headers, b"host")) in self._config.hosts)
            and sum(name == b"host" for name, _ in header_pairs) < 2,
            origin=origin,
            origin_is_allowed=self._origins.allows(origin),
            presents_bearer=bearer,
            token_digests=None if token is None else self._access.digests(token),
            client_ip=self._config.client_address(peer, hops),
            is_json=headers.get(b"content-type", b"").partition(b";")[0].strip().lower() == b"application/json",
            accepted=accepted_formats(headers.get(b"accept")),
            user_agent=_text(headers, b"user-agent"),
            protocol_version=_text(headers, b"mcp-protocol-version"),
            session_digest=_session_digest(header_pairs) if SESSION_ID in headers else None,
            trace=trace_context.forwarded_headers(headers) if headers.keys() & TRACED_BY else trace_context.NONE,
        )


class Origins:
    """The allowed browser origins: the gateway's own, and the origins that the operator configured."""

    def __init__(self, public_url: str, allowed: Iterable[str]) -> None:
        scheme, host, port = hosts.origin_of(public_url)
        names = hosts.LOOPBACK if host in hosts.LOOPBACK else {host}
        self._allowed = {*((scheme, name, port) for name in names), *map(hosts.origin_of, allowed)}

    def allows(self, origin: str | None) -> bool:
        """Return whether this origin is allowed.

        If `origin` is None, return True, because clients other than browsers send no origin.
        """
        try:
            return origin is None or hosts.origin_of(origin) in self._allowed
        except ValueError:
            return False


def accepted_formats(value: bytes | None) -> Accepted:
    """Return the formats that an Accept header allows: both, one or none. Without a header, only JSON is allowed."""
    if value is None or value == b"*/*":
        return Accepted(json=True, stream=False)
    if value == ACCEPT_BOTH:
        return Accepted(json=True, stream=True)
    named = set()
    for part in value.decode("latin-1").lower().split(","):
        kind, *parameters = (word.strip() for word in part.split(";"))
        if not any(word.replace(" ", "") in {"q=0", "q=0.0", "q=0.00", "q=0.000"} for word in parameters):
            named.add(kind)
    return Accepted(
        json=bool(named & {"application/json", "application/*", "*/*"}),
        stream=bool(named & {"text/event-stream", "text/*"}),
    )


def _token(header_pairs: Iterable[Pair]) -> str | None:
    """Return the token of the Authorization header.

    Return None if the token is malformed, or if the request has several such headers.
    """
    values = [value for name, value in header_pairs if name == b"authorization"]
    text = values[0][7:].strip().decode("latin-1")
    return text if len(values) == 1 and token_text.well_formed(text, MCP_TOKEN_KINDS) else None


def _session_digest(header_pairs: Iterable[Pair]) -> bytes:
    """Return the digest of the session id. Several session headers give a digest that matches no session."""
    return sessions.session_digest(
        "".join(value.decode("latin-1") for name, value in header_pairs if name == SESSION_ID)
    )


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1")


type Event = MutableMapping[str, Any]
type Receive = Callable[[], Awaitable[Event]]
type Send = Callable[[Event], Awaitable[None]]
type App = Callable[[Scope, Receive, Send], Awaitable[None]]


# Bytes of a body that are read before the token is authorized. The rest of the body is read only for allowed tokens.
UNAUTHENTICATED_BODY = 64 * 1024


class Continued(NamedTuple):
    """An approved call whose server asked for input.

    `hold` is the id of the call's hold. `before` is the id of the request whose answer asked for the input.
    """

    hold: str
    before: str


class ClientLeft(Exception):
    """The client disconnected before its request was complete."""


class McpRequest:
    """A request with the state of its processing."""

    __slots__ = (
        "_more",
        "_parts",
        "_size",
        "admitted",
        "arrived",
        "asked_at",
        "assigned",
        "began",
        "body",
        "client_left",
        "continues",
        "ending",
        "feature",
        "grant",
        "header_pairs",
        "headers",
        "held",
        "malformed",
        "may_have_run",
        "may_stream",
        "mcp_task",
        "message",
        "modern",
        "origin",
        "parsed_headers",
        "query",
        "receive",
        "row",
        "send",
        "span",
        "task",
        "uid",
        "uses_approval",
        "version",
    )

    def __init__(self, request_headers: RequestHeaders, scope: Scope, receive: Receive, send: Send) -> None:
        self.arrived = time.time()
        self.began = time.perf_counter()
        self.receive = receive
        self.send = send
        self.may_stream = NO_STREAM not in scope.get("extensions", {})
        self.parsed_headers = request_headers
        self.header_pairs: list[Pair] = scope["headers"]
        self.headers: dict[bytes, bytes] = dict(self.header_pairs)
        self.uid = new_uid(self.arrived)
        self.row = CallRow(self.uid, self.arrived)
        self.assigned: AssignedServer | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._more = True
        self.body = b""
        self.message: Message | None = None
        self.feature: Named | None = None  # The feature the message names.
        self.mcp_task: Task | None = None  # The task the message is about.
        # The protocol version in the client's header. Without the header: the session's version, once that is known.
        self.version = request_headers.protocol_version
        self.malformed: MalformedMessage | None = None
        self.modern = False
        # The browser's origin; set only if the origin is allowed.
        self.origin: str | None = None
        self.grant: AccessRow | None = None
        # Whether the checks of the token, app or agent, gateway, connection and rate limit allowed the call, even if a
        # later check refuses it.
        self.admitted = False
        # False only while it is certain that no server has executed the call.
        self.may_have_run = False
        # `client_left`: the client is known to have disconnected. `uses_approval`: the call used an approval to run.
        self.client_left = False
        self.uses_approval = False
        self.continues: Continued | None = None
        # `query`: the access query. `task`: the task that serves the request. `ending`: why the request ends early.
        self.query: AccessQuery | None = None
        self.task: asyncio.Task[Any] | None = None
        self.ending: Any = None
        # The share of the memory budget that a large answer takes until the client has read the answer.
        self.held: HeldBytes | None = None
        # `asked_at`: the time of the access query. `span`: the span of the call; None if the call is not traced.
        self.asked_at = 0.0
        self.span: CallSpan | None = None

    @property
    def task_ids(self) -> TaskIds | None:
        """The ids of the task that the request is about; None if it is not about a task."""
        return None if self.mcp_task is None else self.mcp_task.ids

    @property
    def was_cancelled(self) -> bool:
        """True if the call ended because the client cancelled it or disconnected, not because access was lost."""
        ending = self.ending
        return self.client_left or (ending is not None and ending.denied is None and ending.refusal is None)

    @property
    def extensions(self) -> Object:
        """The extensions in the client capabilities of a request in MCP 2026-07-28; empty for any other request."""
        if not self.modern or self.message is None:
            return {}
        return extensions_in(self.message.meta.get(versions.CAPABILITIES_KEY))

    def header(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1")

    @property
    def trace(self) -> Trace:
        """The trace context for requests to servers."""
        return self.parsed_headers.trace if self.span is None else self.span.trace

    def callers_trace(self) -> Trace:
        """Return the caller's trace context: from the message if it has one, otherwise from the headers."""
        message = self.message
        if message is not None and trace_context.PARENT in message.meta:
            told = trace_context.in_meta(message.meta, self.headers)
            if trace_context.PARENT in told:
                return told
        return self.trace

    async def read(self, limit: int) -> bool:
        """Read the body and return True; return False if it is larger than `limit` bytes. Raises ClientLeft.

        After False, another `read` with a higher `limit` continues where the first `read` stopped.
        """
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit:
            return False
        parts, size = self._parts, self._size
        while self._more and size <= limit:
            event = await self.receive()
            if event["type"] == "http.disconnect":
                raise ClientLeft
            part = event.get("body", b"")
            parts.append(part)
            size += len(part)
            self._more = event.get("more_body", False)
        self._size = size
        if size > limit:
            return False
        self.body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts = []
        return True

    async def disconnected(self) -> None:
        """Wait until the client disconnects."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    def parse(self) -> None:
        """Parse the body. An error is stored in `malformed`, and reported only after authentication."""
        if len(self.body) > LARGE and jsonrpc.has_more_values(self.body, MOST_VALUES):
            self.malformed = MalformedMessage(jsonrpc.INVALID_REQUEST, f"The body has more than {MOST_VALUES:,} values")
            return
        try:
            self.message = message = jsonrpc.parse_message(self.body)
        except MalformedMessage as error:
            self.malformed = error
        else:
            self.feature = named(message)

    def set_task(self, task: Task | None) -> None:
        """Set the task of the message. Access is then decided as for a call of the tool that created the task."""
        if task is not None:
            self.mcp_task, self.feature = task, task.feature

    def set_grant(self, grant: AccessRow) -> None:
        """Set the grant found for the token. The request then counts as a call, which gets a row in the log."""
        row, task = self.row, self.mcp_task
        if task is not None and (task.connection_id, task.is_modern) != (grant.connection_id, self.modern):
            self.mcp_task = self.feature = None  # Another connection's task must not be revealed, not even in the log.
        self.grant = row.grant = grant
        row.client_ip, row.user_agent = self.parsed_headers.client_ip, self.parsed_headers.user_agent
        if grant.session is not None:
            self.version = self.version or grant.session.version
            row.session_id = grant.session.id
            row.client_name, row.client_version = grant.session.client_name, grant.session.client_version
        row.protocol_version = self.version
        row.request_bytes = len(self.body)
        if self.message is not None:
            row.method = self.message.method or "response"
            if self.feature is not None and self.feature.name:
                row.feature_type, row.feature_name = self.feature
        elif self.parsed_headers.http_method != "POST":
            row.method = self.parsed_headers.http_method
        else:
            row.method = jsonrpc.method_in(self.body)

    def rename(self, feature: Named, grant: AccessRow) -> None:
        """Replace the requested feature by `feature`, and the grant by `grant`.

        The row in the log names `feature`, and later checks of access are for `feature`.
        """
        self.feature, self.grant = feature, grant  # The grant's credentials are redacted from recorded payloads.
        self.row.feature_type, self.row.feature_name = feature
        if self.query is not None:
            wanted = Wanted(ServersNeeded.OF_FEATURE, feature.kind, lookup_key(feature))
            self.query = self.query._replace(wanted=wanted)

    def set_server(self, assigned: AssignedServer) -> None:
        """Set the server of the call."""
        row = self.row
        self.assigned = assigned
        row.server_id, row.server_name = assigned.server_id, assigned.server_name
        row.identity_id, row.identity_label = assigned.identity_id or "", assigned.identity_label or ""

    def set_client(self, info: object) -> None:
        """Set the client's name and version from its `clientInfo`."""
        if isinstance(info, dict):
            name, version = info.get("name"), info.get("version")
            self.row.client_name = storable(name) if isinstance(name, str) else ""
            self.row.client_version = storable(version) if isinstance(version, str) else ""


# The era of a request, and the headers that repeat parts of its body (MCP 2026-07-28, Streamable HTTP).

ROUTING_HEADERS = frozenset({b"mcp-protocol-version", b"mcp-method", b"mcp-name"})


def is_modern(version: str, message: Message) -> bool:
    """Return whether the rules of MCP 2026-07-28 apply to a message. Unknown versions count as modern.

    `version` is the value of the header MCP-Protocol-Version; empty without this header.
    """
    if message.method == "initialize":  # Not in MCP 2026-07-28; the version in its params is a proposal.
        return versions.MODERN_KEY in message.meta
    return (version != "" and version not in versions.SESSION_VERSIONS) or versions.MODERN_KEY in message.meta


def unsupported(version: str) -> MalformedMessage:
    """Return the refusal of an unknown protocol version."""
    data: Object = {"supported": list(versions.SUPPORTED), "requested": version}
    return MalformedMessage(jsonrpc.UNSUPPORTED_VERSION, "Unsupported protocol version", data)


def check_modern(message: Message, pairs: Iterable[tuple[bytes, bytes]]) -> None:
    """Check headers against the body. Raises MalformedMessage for the first check that fails."""
    given: dict[bytes, str] = {}
    for name, value in pairs:
        if name in ROUTING_HEADERS:
            if name in given:
                raise MalformedMessage(jsonrpc.HEADER_MISMATCH, f"The header {name.decode()} occurs twice")
            given[name] = value.decode("latin-1").strip()
    version = _envelope(message)
    _compare("MCP-Protocol-Version", given.get(b"mcp-protocol-version"), version)
    _compare("Mcp-Method", given.get(b"mcp-method"), message.method)
    spelled = given.get(b"mcp-name")
    if message.method in NAMED_BY and (spelled is not None or message.method not in TASK_METHODS):
        named = message.params.get(NAMED_BY[message.method])
        _compare("Mcp-Name", None if spelled is None else decoded_value(spelled), named)
    if version != versions.MODERN:
        raise unsupported(version)


def _envelope(message: Message) -> str:
    version = message.meta.get(versions.MODERN_KEY)
    capabilities = message.meta.get(versions.CAPABILITIES_KEY)
    if not isinstance(version, str):
        raise MalformedMessage(jsonrpc.INVALID_PARAMS, f"_meta must carry {versions.MODERN_KEY}")
    if not isinstance(capabilities, dict):
        raise MalformedMessage(jsonrpc.INVALID_PARAMS, f"_meta must carry {versions.CAPABILITIES_KEY}")
    return version


def _compare(name: str, header: str | None, body: object) -> None:
    if header is None:
        raise MalformedMessage(jsonrpc.HEADER_MISMATCH, f"The header {name} is missing")
    if header != body:
        raise MalformedMessage(jsonrpc.HEADER_MISMATCH, f"The header {name} differs from the body")
