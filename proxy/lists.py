"""Lists of tools, prompts, resources and templates, from the stored, approved features.

When a client requests a stored list older than a minute, the server is asked for its list in the background. A client
waits only for servers that have never answered, and for servers whose lists differ by session.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from psycopg.types.json import Jsonb

from proxy.access.decision import (
    NOT_INTRODUCED,
    Access,
    AccessRow,
    AssignedServer,
    Introduction,
    ServersNeeded,
    Wanted,
)
from proxy.access.features import (
    IdentityUnreadable,
    Named,
    Refusal,
    identity_refusal,
    is_usable,
    server_of,
    target_for_lists,
    target_of,
)
from proxy.handshake import Eras
from proxy.refresh import IdentityUnavailable, Refresher
from proxy.request import McpRequest
from proxy.store.pg import DatabaseUnavailable, StatePool
from proxy.store.usage import UsageTracker
from wire import definitions, jsonrpc, rewriting, versions
from wire.background import Background
from wire.cipher import Cipher
from wire.client import Listed, McpClient
from wire.definitions import CATALOGUES, Definition, dotted_name
from wire.errors import AccessRefused, Busy, TimedOut, UpstreamError, failure_text
from wire.jsonrpc import Id, Object
from wire.mcp import MODERN, PROMPT, RESOURCE, SESSION, TEMPLATE, TOOL, ServerDescription, era_for
from wire.trace_context import NONE, Trace

logger = logging.getLogger(__name__)

# The `_meta` key under which a list response names the servers whose current list is not available, and the reasons.
UNAVAILABLE = "gateway-admin/unavailable"
# The `_meta` key that is True if the list is incomplete: no list is stored for a server named under UNAVAILABLE,
# although the connection has a usable identity for that server.
PARTIAL = "gateway-admin/partial"

FRESH_SECONDS = 60.0  # A stored list is not requested again for this long.
RETRY_SECONDS = 10.0  # After a failure, a list is not requested again for this long.
WAIT_SECONDS = 1.5  # How long a client waits for a server without a stored list.
LIVE_SECONDS = 3.0  # How long a client waits for a server whose lists differ by session.

PAGE = 1_000  # Definitions in one page of a list.
CURSOR = "cursor"

LEARN = "SELECT gateways_learn(%s, %s, %s, %s, %s)"
KEEP_TTL = """
UPDATE gateways_listing SET ttl_ms = %s
WHERE assignment_id = %s AND identity_id IS NOT DISTINCT FROM %s AND kind = %s AND ttl_ms <> %s
"""
MOST_TTL_MS = 60_000  # Clients must not cache lists for longer: an administrator can switch features off at any time.

type Lookup = Callable[[], Awaitable[AccessRow | None]]


class Unavailable(NamedTuple):
    """A server whose current list is not available, and why. Its stored features may be listed nevertheless."""

    assigned: AssignedServer
    reason: str


class ListPage(NamedTuple):
    """A page of usable features, as JSON texts for clients."""

    member: str
    items: Sequence[str]
    unavailable: Sequence[Unavailable]
    next_cursor: str = ""
    ttl_ms: int = 0

    def response(self, request_id: Id | None, more: Object) -> bytes:
        """Return the JSON-RPC response, with the members `more` in its result.

        The definitions are JSON texts already, so they are inserted as they are.
        """
        if self.unavailable:
            named = [{"server": a.server_name, "alias": a.alias, "reason": reason} for a, reason in self.unavailable]
            meta: Object = {UNAVAILABLE: named}
            if any(not _is_known(assigned) and not identity_refusal(assigned) for assigned, _ in self.unavailable):
                meta[PARTIAL] = True
            more = {"_meta": meta, **more}
        if self.next_cursor:
            more = {"nextCursor": self.next_cursor, **more}
        rest = jsonrpc.dumps(more)[1:-1]
        texts = ",".join(self.items).encode()
        result = b'{"%b":[%b]%b%b}' % (self.member.encode(), texts, b"," if rest else b"", rest)
        return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (jsonrpc.dumps(request_id), result)


class BadListCursor(Exception):
    """The cursor was not issued for this list of this gateway."""


class Position(NamedTuple):
    """The last definition on a page of a list: its index in the list, and a digest of its key."""

    at: int
    digest: str

    def next_in(self, keys: Sequence[str]) -> int:
        """Return the index in `keys` at which the next page begins: directly after the last definition of this page.

        If the last definition was removed from the list, the next page begins at the former index of that definition.
        """
        if self.at < len(keys) and _digest(keys[self.at]) == self.digest:
            return self.at + 1
        return next((now + 1 for now, key in enumerate(keys) if _digest(key) == self.digest), self.at)


class NoServerAnswered(UpstreamError):
    """Several servers were asked, all of them failed, and no list is stored."""

    sentence = "No server of this gateway answered ({server})."


class ListKey(NamedTuple):
    """Key for de-duplicating concurrent list requests to a server."""

    assignment_id: str
    identity_id: str | None
    owner_id: str | None  # Set only if the server's lists differ by session.
    kind: str


class Lists:
    """Answers list requests from stored lists, and requests new lists from servers."""

    def __init__(
        self,
        client: McpClient,
        access: Access,
        state: StatePool,
        cipher: Cipher,
        usage: UsageTracker,
        seconds: float,
        refresher: Refresher,
        eras: Eras,
    ) -> None:
        self.refresher = refresher
        self.eras = eras
        self._client = client
        self._access = access
        self._state = state
        self._cipher = cipher
        self._usage = usage
        self._seconds = seconds
        self._asking: dict[ListKey, asyncio.Task[list[Definition]]] = {}
        self._again: set[ListKey] = set()
        self._background = Background(UpstreamError, DatabaseUnavailable)
        # Time and task of the last request for a server's introduction, by server and identity.
        self._introducing: dict[tuple[str, str], tuple[float, asyncio.Task[Sequence[ServerDescription] | None]]] = {}

    async def stop(self) -> None:
        """Stop the background requests."""
        await self._background.stop()

    async def answer(self, request: McpRequest, grant: AccessRow, kind: str, cursor: object = None) -> ListPage:
        """Return a page of the features this connection may use; the first page if there is no cursor.

        Raises BadListCursor. Raises an UpstreamError if nothing is stored and all servers failed.
        """
        after = self._position(cursor, grant, kind) if cursor is not None else None
        ready, unavailable = _split_by_readiness(grant.assignments)
        live: dict[str, list[Definition] | UpstreamError] = {}
        waited = [assigned for assigned in ready if assigned.lists_live or not _is_known(assigned)]
        if waited:
            answers = await self._wait_for(waited, grant, kind, request)
            live = {assigned.id: answer for assigned, answer in zip(waited, answers, strict=True)}
            grant = await self._look_up(request, grant, kind)
            ready, unavailable = _split_by_readiness(grant.assignments)
        for assigned in ready:
            answer = live.get(assigned.id)
            if isinstance(answer, UpstreamError):
                unavailable.append(Unavailable(assigned, answer.reason))
            elif answer is None and assigned.listing is not None:
                age, _, error, _ = assigned.listing
                if error:
                    unavailable.append(Unavailable(assigned, error))
                if age > (RETRY_SECONDS if error else FRESH_SECONDS):
                    self.refresh(assigned, grant, kind)
        _raise_if_nothing_is_known(ready, live)
        listing = self._page(_shown(request, grant, ready, kind, live), unavailable, grant, kind, after)
        kept = [0 if each.listing is None or each.lists_live else each.listing.ttl_ms for each in ready]
        return listing._replace(ttl_ms=0 if unavailable else min(kept, default=0))

    def _page(
        self,
        shown: dict[str, str],
        unavailable: Sequence[Unavailable],
        grant: AccessRow,
        kind: str,
        after: Position | None,
    ) -> ListPage:
        member, keys = CATALOGUES[kind].member, [*shown]
        begin = after.next_in(keys) if after is not None else 0
        end = begin + PAGE
        if not begin and end >= len(keys):
            return ListPage(member, [*shown.values()], unavailable)
        cursor = self._cursor(grant, kind, Position(end - 1, _digest(keys[end - 1]))) if end < len(keys) else ""
        return ListPage(member, [shown[key] for key in keys[begin:end]], unavailable, cursor)

    def _cursor(self, grant: AccessRow, kind: str, last: Position) -> str:
        return self._cipher.seal(json.dumps([CURSOR, grant.gateway_id, kind, *last])).decode()

    def _position(self, cursor: object, grant: AccessRow, kind: str) -> Position:
        """Return the position sealed in a cursor. Raises BadListCursor."""
        try:
            facts = json.loads(self._cipher.open(cursor.encode("ascii") if isinstance(cursor, str) else b""))
        except ValueError:  # Includes Undecryptable.
            raise BadListCursor from None
        if not isinstance(facts, list) or facts[:3] != [CURSOR, grant.gateway_id, kind]:
            raise BadListCursor
        return Position(*facts[3:])

    async def look_again(
        self, request: McpRequest, grant: AccessRow, assigned: AssignedServer, wanted: Wanted
    ) -> tuple[AccessRow, Sequence[Definition]]:
        """Request the server's list, then re-read the grant. Return the grant and the list. Raises an UpstreamError."""
        trace = request.trace
        listed = await self._ask(assigned, grant, wanted.kind, trace, self._seconds)
        return await self._look_up(request, grant, wanted.kind, wanted), listed

    async def with_own_name(self, request: McpRequest, grant: AccessRow, feature: Named) -> AccessRow:
        """Re-read and return the grant, with the features whose own name at their server is `feature.name`."""
        return await self._look_up(
            request, grant, feature.kind, Wanted(ServersNeeded.BY_OWN_NAME, feature.kind, feature.name)
        )

    def refresh(self, assigned: AssignedServer, grant: AccessRow, kind: str) -> None:
        """Request this server's list in the background.

        If a request for this list is running already, make another request after it.
        """
        asked = _asked(assigned, grant, kind)
        if asked in self._asking:
            self._again.add(asked)  # The list may have changed since the running request began.
        else:
            self._start(asked, assigned, grant, NONE, self._seconds)

    async def introduced(self, request: McpRequest, grant: AccessRow) -> AccessRow:
        """Return the grant with the servers' capabilities and instructions.

        Missing capabilities and instructions are requested. They are left out if they do not arrive in WAIT_SECONDS.
        """

        async def introduce(assigned: AssignedServer) -> AssignedServer:
            is_known = assigned.capabilities(modern=request.modern) is not None
            if not is_usable(assigned) or identity_refusal(assigned) or is_known:
                return assigned
            # Wait: a client asks only once, so the answer should be complete.
            infos = await self._introduction(assigned, grant, request.trace)
            if infos is None:
                return assigned
            said = {info.era: info.capabilities for info in infos}
            before = assigned.introduction or NOT_INTRODUCED
            now = Introduction(said.get(SESSION), infos[-1].instructions, said.get(MODERN), before.is_given)
            return assigned._replace(introduction=now)

        return grant._replace(assignments=await asyncio.gather(*map(introduce, grant.assignments)))

    async def _introduction(
        self, assigned: AssignedServer, grant: AccessRow, trace: Trace
    ) -> Sequence[ServerDescription] | None:
        key = assigned.server_id, assigned.identity_id or ""
        now = time.monotonic()
        asked_at, task = self._introducing.get(key, (now, None))
        if task is None or (task.done() and now - asked_at > RETRY_SECONDS):
            asked_at, work = now, self._introduce(assigned, grant, trace)
            task = self._background.spawn("introduction of a server", work)
            fresh = {each: held for each, held in self._introducing.items() if now - held[0] < FRESH_SECONDS}
            self._introducing = fresh | {key: (now, task)}
        with suppress(TimeoutError):  # All requests for this introduction share the deadline of the first.
            return await asyncio.wait_for(asyncio.shield(task), max(asked_at + WAIT_SECONDS - now, 0))
        return None

    async def _introduce(
        self, assigned: AssignedServer, grant: AccessRow, trace: Trace
    ) -> Sequence[ServerDescription] | None:
        try:
            upstream = target_for_lists(assigned, grant, self._cipher, trace)
            # `introduce` also stores the result: stored capabilities decide to which servers the gateway subscribes.
            return await self.eras.introduce(upstream)
        except (UpstreamError, DatabaseUnavailable) as error:
            logger.debug(
                "a server did not introduce itself", extra={"error": str(error), "server": assigned.server_name}
            )
            return None
        except Exception:  # One server's bad answer must not affect the others.
            logger.exception("a server's introduction was not stored", extra={"server": assigned.server_name})
            return None

    # Asking servers

    async def _wait_for(
        self, assignments: Sequence[AssignedServer], grant: AccessRow, kind: str, request: McpRequest
    ) -> Sequence[list[Definition] | UpstreamError]:
        """Return, for each server, its list or an error.

        The error is TimedOut for a list that takes longer than a client may wait. The request for such a list
        continues in the background.
        """

        async def ask(assigned: AssignedServer) -> list[Definition] | UpstreamError:
            hop = None if request.span is None else request.span.hop(assigned, CATALOGUES[kind].method)
            fault: BaseException | None = None
            try:
                seconds = LIVE_SECONDS if assigned.lists_live else WAIT_SECONDS
                if assigned.listing is None:  # The server was never asked: the first list should be complete.
                    seconds = assigned.timeout_s
                return await self._ask(assigned, grant, kind, request.trace if hop is None else hop.trace, seconds)
            except UpstreamError as error:
                fault = error
                return error
            finally:
                if hop is not None:
                    hop.end(error=fault)

        return await asyncio.gather(*(ask(assigned) for assigned in assignments))

    async def _ask(
        self, assigned: AssignedServer, grant: AccessRow, kind: str, trace: Trace, seconds: float
    ) -> list[Definition]:
        asked = _asked(assigned, grant, kind)
        task = self._asking.get(asked)
        if task is None:
            task = self._start(asked, assigned, grant, trace, max(self._seconds, seconds))
        try:
            return await asyncio.wait_for(asyncio.shield(task), seconds)
        except TimeoutError:
            raise TimedOut(assigned.server_name, seconds) from None

    def _start(
        self, asked: ListKey, assigned: AssignedServer, grant: AccessRow, trace: Trace, seconds: float
    ) -> asyncio.Task[list[Definition]]:
        work = self._ask_and_learn(asked, assigned, grant, trace, seconds)
        task = self._asking[asked] = self._background.spawn("list of a server", work)

        def done(task: asyncio.Task[list[Definition]]) -> None:
            del self._asking[asked]
            if asked in self._again:
                self._again.discard(asked)
                if not task.cancelled():
                    self._start(asked, assigned, grant, NONE, self._seconds)

        task.add_done_callback(done)
        return task

    async def _ask_and_learn(
        self, asked: ListKey, assigned: AssignedServer, grant: AccessRow, trace: Trace, seconds: float
    ) -> list[Definition]:
        try:
            assigned = await self.refresher.fresh(assigned)
            try:
                listed = await self._list(asked, assigned, grant, trace, seconds)
            except AccessRefused as refusal:
                renewed = await self.refresher.after(refusal, assigned)
                if renewed is None:
                    raise
                listed = await self._list(asked, renewed, grant, trace, seconds)
        except (Busy, Refusal, IdentityUnavailable):  # The server was not asked.
            raise
        except IdentityUnreadable as error:  # Nor here, but people are told that these tools cannot be used.
            await self._write(asked, None, error.reason)
            raise
        except UpstreamError as error:
            self._usage.server_contacted(
                assigned, failure_text(error, assigned.url), credential_refused=error.reason == "credential_refused"
            )
            await self._write(asked, None, error.reason)
            raise
        self._usage.server_contacted(assigned)
        rows = await asyncio.to_thread(definitions.rows, asked.kind, assigned.alias, listed.definitions)
        await self._write(asked, Jsonb(rows), "")
        await self._keep_ttl(asked, min(listed.ttl_ms, MOST_TTL_MS))
        return listed.definitions

    async def _keep_ttl(self, asked: ListKey, ttl_ms: int) -> None:
        with suppress(DatabaseUnavailable):
            parameters = (ttl_ms, asked.assignment_id, asked.identity_id, asked.kind, ttl_ms)
            await self._state.fetch(KEEP_TTL, parameters)

    async def _list(
        self, asked: ListKey, assigned: AssignedServer, grant: AccessRow, trace: Trace, seconds: float
    ) -> Listed:
        if assigned.lists_live:
            upstream = target_of(assigned, grant, self._cipher, trace)
        else:
            upstream = target_for_lists(assigned, grant, self._cipher, trace)
        if upstream.era:
            self.eras.refresh(upstream)
        else:
            eras = await self.eras.find(upstream)
            upstream = upstream._replace(era=era_for(eras, SESSION if assigned.lists_live else MODERN))
        return await self._client.list_features(upstream, asked.kind, seconds=seconds)

    async def _write(self, asked: ListKey, said: Jsonb | None, fault: str) -> None:
        try:
            await self._state.fetch(LEARN, (asked.assignment_id, asked.identity_id, asked.kind, said, fault))
        except DatabaseUnavailable as error:
            logger.warning("a server's list was not stored", extra={"error": str(error)})

    async def _look_up(
        self, request: McpRequest, grant: AccessRow, kind: str, wanted: Wanted | None = None
    ) -> AccessRow:
        """Re-read the grant, with the features that `wanted` selects; by default, all features of `kind`.

        Return `grant` unchanged if there is no access query (`request.query`), or if the token no longer exists.
        """
        if request.query is None:
            return grant
        again = request.query._replace(wanted=wanted or Wanted(ServersNeeded.ALL, kind))
        found = await self._access.put(again)
        return grant if found is None else found


def _asked(assigned: AssignedServer, grant: AccessRow, kind: str) -> ListKey:
    identity_id = assigned.identity_id if assigned.scheme == "per_user" else None
    return ListKey(assigned.id, identity_id, grant.owner_id if assigned.lists_live else None, kind)


def _is_known(assigned: AssignedServer) -> bool:
    return assigned.listing is not None and assigned.listing.is_known


def _shown(
    request: McpRequest,
    grant: AccessRow,
    ready: Sequence[AssignedServer],
    kind: str,
    live: dict[str, list[Definition] | UpstreamError],
) -> dict[str, str]:
    """Return the usable features as JSON texts by name.

    If tools or prompts of several servers have the same name, only the one that gets the calls is returned.
    """
    shown: dict[str, str] = {}
    knows_dots = request.modern or request.version in versions.DOTTED
    for assigned in ready:
        answer = live.get(assigned.id) if assigned.lists_live else None
        said = None
        if isinstance(answer, list):
            said = {definitions.exposed(kind, assigned.alias, definitions.name_of(kind, each)) for each in answer}
        for exposed, stored, dotted, told in assigned.features or ():
            name, text = exposed, definitions.restated(stored, told) if told else stored
            if dotted and knows_dots and (spelled := dotted_name(assigned.alias, dotted)):
                name, text = spelled, definitions.restated(text, {"name": spelled})
            # If two servers list the same URI, both resources are listed, each with its alias.
            key = name if kind in (TOOL, PROMPT) or not grant.several_servers else f"{assigned.alias} {name}"
            if key in shown or (said is not None and exposed not in said):
                continue
            if kind not in (TOOL, PROMPT) or server_of(grant.assignments, name) is assigned:
                shown[key] = _mapped(kind, assigned.alias, text) if grant.several_servers else text
    return shown


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:16]


def _mapped(kind: str, alias: str, text: str) -> str:
    """Return this definition with the server's alias in its URIs. Only gateways with several servers need this."""
    if not alias or (kind in (TOOL, PROMPT) and "resourceUri" not in text):
        return text
    value = jsonrpc.loads(text.encode())
    changed = dict(value)
    if kind == RESOURCE:
        changed["uri"] = rewriting.exposed_uri(alias, value["uri"])
    elif kind == TEMPLATE:
        changed["uriTemplate"] = rewriting.exposed_template(alias, value["uriTemplate"])
    if isinstance(meta := value.get("_meta"), dict):
        changed["_meta"] = rewriting.exposed_meta(meta, alias)
    return jsonrpc.dumps(changed).decode()


def _split_by_readiness(assignments: Sequence[AssignedServer]) -> tuple[list[AssignedServer], list[Unavailable]]:
    """Return two lists: the servers that can be called, and the servers for which a usable identity is missing.

    Servers that the token may not use at this gateway are left out.
    """
    ready, unavailable = [], []
    for assigned in assignments:
        if not is_usable(assigned):
            continue
        if reason := identity_refusal(assigned):
            unavailable.append(Unavailable(assigned, reason))
        else:
            ready.append(assigned)
    return ready, unavailable


def _raise_if_nothing_is_known(
    ready: Sequence[AssignedServer], live: dict[str, list[Definition] | UpstreamError]
) -> None:
    """Raise an error if all requests for lists failed, and no server has a stored list.

    Without the error, the client would get an empty list.
    """
    faults = [answer for answer in live.values() if isinstance(answer, UpstreamError)]
    if not faults or len(faults) < len(live) or any(_is_known(assigned) or assigned.features for assigned in ready):
        return
    if len(faults) == 1:
        raise faults[0]
    raise NoServerAnswered(", ".join(f'"{fault.server}"' for fault in faults))
