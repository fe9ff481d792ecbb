"""Subscribers of this worker and the servers each may receive notifications from, re-read from the database."""

import asyncio
import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from proxy.access.decision import (
    Access,
    AccessQuery,
    AccessRow,
    AssignedServer,
    ServersNeeded,
    Wanted,
    decide,
    find_again,
)
from proxy.access.features import (
    PROMPT,
    RESOURCE,
    TEMPLATE,
    TOOL,
    Named,
    OutOfScope,
    Resolved,
    identity_refusal,
    is_nameable,
    is_usable,
    lookup_key,
    resolve,
)
from proxy.request import McpRequest
from proxy.store.bus import Bus
from proxy.store.pg import DatabaseUnavailable, StatementRejected
from proxy.store.sessions import MOST_SUBSCRIPTIONS, SessionKeeper
from proxy.streams import DECIDED_AT_ONCE, INTRODUCED, LIST_CHANGED, LISTEN_KINDS, StandingStream
from wire.errors import UpstreamError
from wire.jsonrpc import Object
from wire.mcp import MODERN, SESSION, StreamPlace, Target, era_for

UPDATED = "notifications/resources/updated"

# The kinds of features in each list.
KINDS = {"tools": (TOOL,), "prompts": (PROMPT,), "resources": (RESOURCE, TEMPLATE)}
LIST_OF = {method: name for name, method in LIST_CHANGED.items()}


@dataclass
class Audience:
    """The streams and calls of one token, in one session if any, and their current grant.

    `heard` are their resource subscriptions by assignment: the server's URI of each, and the client's. `refused` are
    the URIs they subscribed to but may not read.
    """

    standing: list[StandingStream]
    grant: AccessRow
    heard: dict[str, dict[str, str]] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()

    @property
    def owner(self) -> str:
        return self.grant.owner_id

    @property
    def modern(self) -> bool:
        """True for `subscriptions/listen`; False for a session and its calls."""
        return any(standing.request.modern for standing in self.standing)

    def era(self, assigned: AssignedServer) -> str:
        """Return the era in which the gateway subscribes to this server for them."""
        return era_for(assigned.eras, MODERN if self.modern else SESSION)

    def offers(self, assigned: AssignedServer, name: str, member: str) -> bool:
        """Return whether the server has this capability."""
        return offers(assigned, name, member, modern=self.modern)

    def alias(self, assigned: AssignedServer) -> str:
        return assigned.alias if self.grant.several_servers else ""


class Source(NamedTuple):
    """A server whose notifications an audience receives."""

    audience: Audience
    assigned: AssignedServer
    target: Target


@dataclass
class OpenServerStream:
    """One open stream from a server, read by this worker."""

    source: Source
    task: asyncio.Task[None]
    # Set when the stream was requested; some servers send no headers until their first message.
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    place: StreamPlace = field(default_factory=StreamPlace)
    was_open: bool = False
    since: float = field(default_factory=time.monotonic)
    # Messages to offer to other workers; the future of a request gets whether one took it.
    waiting: list[tuple[Object, asyncio.Future[bool]]] = field(default_factory=list)
    waiting_bytes: int = 0
    handing_over: asyncio.Task[None] | None = None

    def has_begun(self) -> None:
        """Wake all waiters: the stream is open, or will not be opened."""
        self.asked.set()
        self.begun.set()

    @property
    def row(self) -> str:
        session = self.source.target.session
        return session.row if session is not None else ""

    @property
    def is_for_calls(self) -> bool:
        """True if only calls need this stream, and no client has a stream open for it."""
        return not self.source.audience.standing


class Audiences:
    """Finds the subscribers of this worker and their grants."""

    def __init__(self, access: Access, bus: Bus, keeper: SessionKeeper) -> None:
        self._access = access
        self._bus = bus
        self._keeper = keeper

    async def honoured(self, request: McpRequest, wanted: Sequence[str]) -> list[str]:
        """Return the URIs among `wanted` that this `subscriptions/listen` may follow. Raises DatabaseUnavailable."""
        assert request.query is not None, "it was authorized"
        grant = await self._access.put(request.query._replace(wanted=INTRODUCED))
        watched = (
            {each.id for each in grant.assignments if offers(each, "resources", "subscribe", modern=True)}
            if grant
            else set()
        )
        found = await self._resolved(request.query, wanted[:MOST_SUBSCRIPTIONS])
        return [uri for uri, resolved in found.items() if resolved is not None and resolved.assigned.id in watched]

    async def find(
        self, standing: Iterable[StandingStream], granted: Mapping[AccessQuery, AccessRow]
    ) -> list[Audience]:
        """Return the audiences of these streams, as the database grants them now. Raises DatabaseUnavailable."""
        by_query: dict[AccessQuery, list[StandingStream]] = {}
        for each in standing:
            if each.request.query is not None:
                by_query.setdefault(each.request.query, []).append(each)
        grants = await self._grants(by_query, granted)
        found = {
            query: Audience(by_query[query], grant)
            for query, grant in zip(by_query, grants, strict=True)
            if grant is not None
            and decide(grant, by_query[query][0].request.parsed_headers.client_ip) is None
            and grant.owner_id == by_query[query][0].owner
        }
        sessions = [audience.owner for audience in found.values() if audience.grant.session is not None]
        subscriptions = await self._keeper.subscriptions(sessions) if sessions else {}
        for query, audience in found.items():
            named = {uri for each in audience.standing for uri in each.uris} | {*subscriptions.get(audience.owner, ())}
            refused = set()
            for uri, resolved in (await self._resolved(query, [*named])).items() if named else ():
                if resolved is None:
                    refused.add(uri)
                else:
                    audience.heard.setdefault(resolved.assigned.id, {})[resolved.name] = uri
            audience.refused = frozenset(refused)
        return [*found.values()]

    async def _grants(
        self, queries: Iterable[AccessQuery], granted: Mapping[AccessQuery, AccessRow]
    ) -> list[AccessRow | None]:
        """Return the grants of these queries; those not in `granted` are queried. Raises DatabaseUnavailable."""
        found: dict[AccessQuery, AccessRow | None] = dict(granted)
        unknown = [query for query in queries if query not in found]
        for first in range(0, len(unknown), DECIDED_AT_ONCE):
            part = unknown[first : first + DECIDED_AT_ONCE]
            try:
                grants = await find_again(self._bus.query, [query._replace(wanted=INTRODUCED) for query in part])
            except StatementRejected as error:
                raise DatabaseUnavailable(str(error)) from error
            for query, grant in zip(part, grants, strict=True):
                found[query] = None if isinstance(grant, DatabaseUnavailable) else grant
        return [found[query] for query in queries]

    async def _resolved(self, query: AccessQuery, named: Sequence[str]) -> dict[str, Resolved | None]:
        """Resolve these URIs, to None where one may not be read. Raises DatabaseUnavailable."""

        async def look_up(uri: str) -> Resolved | None:
            feature = Named(RESOURCE, uri)
            if not is_nameable(feature):
                return None
            wanted = Wanted(ServersNeeded.OF_FEATURE, RESOURCE, lookup_key(feature))
            grant = await self._access.put(query._replace(wanted=wanted))
            try:
                resolved = resolve(grant, feature) if grant is not None else None
            except (OutOfScope, UpstreamError):
                return None
            return resolved if isinstance(resolved, Resolved) else None

        return dict(zip(named, await asyncio.gather(*map(look_up, named)), strict=True))


def heeded(audience: Audience) -> list[AssignedServer]:
    """Return the usable servers that may send notifications to this audience."""
    return [
        each
        for each in audience.grant.assignments
        if (audience.heard.get(each.id) or any(audience.offers(each, name, "listChanged") for name in KINDS))
        and is_usable(each)
        and not identity_refusal(each)
    ]


def offers(assigned: AssignedServer, name: str, member: str, *, modern: bool) -> bool:
    """Return whether the server has this member of a capability for clients of this era."""
    capabilities: Mapping[str, Mapping[str, object]] = assigned.capabilities(modern=modern) or {}
    return member in capabilities.get(name, ())


def assigned_of(grant: AccessRow, upstream: Target) -> AssignedServer | None:
    """Return the server of this session as currently granted; None if not usable, or only with another identity."""
    own = upstream.session_key.rpartition(" ")[0]
    return next(
        (
            each
            for each in grant.assignments
            if each.upstream_key.rpartition(" ")[0] == own
            and each.server_id == upstream.server_id
            and is_usable(each)
            and not identity_refusal(each)
        ),
        None,
    )


def params_of(message: Object) -> Object:
    params = message.get("params")
    return params if isinstance(params, dict) else {}


def wishes(source: Source) -> Object:
    """Return the notifications to request from a server of 2026-07-28 in `subscriptions/listen`."""
    audience, assigned, _ = source
    wishes: Object = {LISTEN_KINDS[name]: True for name in KINDS if audience.offers(assigned, name, "listChanged")}
    if heard := audience.heard.get(assigned.id):
        wishes["resourceSubscriptions"] = sorted(heard)
    return wishes


def listen_key(source: Source) -> str:
    """Return the key of a `subscriptions/listen` at a server: identity, owner, assignment and wishes."""
    named = " ".join((source.audience.owner, source.assigned.id, *sorted(map(str, wishes(source).items()))))
    return f"{source.assigned.upstream_key} listen {grants_digest(named)}"


def grants_digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def update(uri: str) -> Object:
    return {"jsonrpc": "2.0", "method": UPDATED, "params": {"uri": uri}}
