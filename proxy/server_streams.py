"""What servers say of their own accord, while a client listens here.

A server of the session era says it on the standing stream of a session, which is opened for who listens; one of
2026-07-28 on a `subscriptions/listen`. Of several workers one holds each of these.
"""

import asyncio
import hashlib
import logging
import random
from collections.abc import Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import uuid4

from proxy.access.decision import AssignedServer, Grant, decide
from proxy.access.query import Access, AccessQuery, ServersNeeded, Wanted
from proxy.catalog import (
    PROMPT,
    RESOURCE,
    TEMPLATE,
    TOOL,
    IdentityUnreadable,
    Named,
    OutOfScope,
    Refusal,
    Resolved,
    identity_refusal,
    is_nameable,
    is_usable,
    lookup_key,
    resolve,
    target,
)
from proxy.lists import Lists
from proxy.refresh import IdentityUnavailable
from proxy.request import McpRequest
from proxy.server_requests import Asking, ServerRequests
from proxy.store.bus import Bus
from proxy.store.database import DatabaseUnavailable
from proxy.store.sessions import MOST_SUBSCRIPTIONS, SessionKeeper
from proxy.streams import LIST_CHANGED, LISTEN_KINDS, StandingStream, Streams
from wire import uris
from wire.cipher import Cipher
from wire.client import McpClient
from wire.errors import UpstreamError
from wire.jsonrpc import Object
from wire.rpc_messages import MODERN, Answer, Target, ignore

logger = logging.getLogger(__name__)

LEASE_AGAIN_SECONDS = 10.0
AGAIN_SECONDS = 2.0  # Before a stream that ended is opened again,
MOST_AGAIN_SECONDS = 60.0  # doubled each time until so many.
SESSION_SECONDS = 0.3  # How long sessions that are opened for somebody are waited for.

UPDATED = "notifications/resources/updated"

# The kinds of features in each list.
KINDS = {"tools": (TOOL,), "prompts": (PROMPT,), "resources": (RESOURCE, TEMPLATE)}
LIST_OF = {method: name for name, method in LIST_CHANGED.items()}

INTRODUCED = Wanted(ServersNeeded.INTRODUCED)


@dataclass
class Audience:
    """Those who listen with one token, in one session if any; what they may hear now, as one of them is granted it.

    `heard` are the resources they want to hear of, by assignment: how its server calls each, and how they do.
    """

    standing: list[StandingStream]
    grant: Grant
    heard: dict[str, dict[str, str]] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()

    @property
    def owner(self) -> str:
        return self.grant.owner_id

    def alias(self, assigned: AssignedServer) -> str:
        return assigned.alias if self.grant.several_servers else ""


class Source(NamedTuple):
    """A server that is listened to for somebody."""

    audience: Audience
    assigned: AssignedServer
    target: Target


@dataclass
class Held:
    """What this worker listens to."""

    source: Source
    task: asyncio.Task[None]
    begun: asyncio.Event


class ServerStreams:
    """Listens at servers for those who listen here; of several workers one does it for each session at a server."""

    def __init__(
        self,
        streams: Streams,
        keeper: SessionKeeper,
        client: McpClient,
        bus: Bus,
        access: Access,
        lists: Lists,
        cipher: Cipher,
        requests: ServerRequests,
    ) -> None:
        self.streams = streams
        self._keeper = keeper
        self._client = client
        self._bus = bus
        self._access = access
        self._lists = lists
        self._cipher = cipher
        self._requests = requests
        self._name = str(uuid4())
        self._held: dict[str, Held] = {}  # By row.
        # The sessions that were opened for who listens, by owner and assignment: the row, and what was subscribed to.
        self._sessions: dict[tuple[str, str], tuple[str, frozenset[str]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._worker: asyncio.Task[None] | None = None
        bus.on("upstream", self._look_again)
        bus.on("cut", self._look_again)
        bus.on("resource", self._tell_updated)

    def start(self) -> None:
        self._worker = asyncio.create_task(self._work(), name="streams of servers")

    async def stop(self) -> None:
        """Listen to nobody any more; other workers may at once."""
        held, self._held = self._held, {}
        ending = [self._worker, *(each.task for each in held.values()), *self._tasks]
        for task in filter(None, ending):
            task.cancel()
        await asyncio.gather(*filter(None, ending), return_exceptions=True)
        if held:
            with suppress(DatabaseUnavailable):
                await self._keeper.release(self._name, [*held])

    async def honoured(self, request: McpRequest, wanted: Sequence[str]) -> list[str]:
        """Which of these resources a `subscriptions/listen` may be told of. Raises DatabaseUnavailable."""
        assert request.query is not None, "it was authorized"
        grant = await self._access.put(request.query._replace(wanted=INTRODUCED))
        watched = {each.id for each in grant.assignments if _offers(each, "resources", "subscribe")} if grant else set()
        found = await self._resolved(request.query, wanted[:MOST_SUBSCRIPTIONS])
        return [uri for uri, resolved in found.items() if resolved is not None and resolved.assigned.id in watched]

    def _look_again(self, owner: str | None) -> None:
        """What is to be listened to for this owner, or for anybody, may have changed."""
        if any(not owner or standing.owner == owner for standing in self.streams.standing()):
            self.streams.changed.set()

    async def _work(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LEASE_AGAIN_SECONDS):
                    await self.streams.changed.wait()
            await asyncio.sleep(random.uniform(0.02, 0.06))  # noqa: S311 - many come at once
            self.streams.changed.clear()
            try:
                await self._follow()
            except DatabaseUnavailable as error:
                logger.warning("streams of servers could not be leased", extra={"error": str(error)})
            except Exception:  # The next look may fare better; without one nobody would be listened to again.
                logger.exception("what is to be listened to could not be found out")

    async def _follow(self) -> None:
        """Listen to what is to be listened to, and to nothing else."""
        audiences = await self._audiences(self.streams.standing())
        sources = [source for audience in audiences for source in await self._sources(audience)]
        await self._open_sessions([each for each in sources if self._client.era(each.target) != MODERN])
        wanted = await self._leased_listens(sources) | await self._leased_sessions(audiences)
        gone = [row for row in self._held if row not in wanted]
        for row in gone:
            self._held.pop(row).task.cancel()
        for row, source in wanted.items():
            if row in self._held:
                self._held[row].source = source
            else:
                self._hold(row, source)
        if gone:
            await self._keeper.release(self._name, gone)
        for audience in audiences:
            self._tell_begun(audience)

    # For whom, and what

    async def _audiences(self, standing: Iterable[StandingStream]) -> list[Audience]:
        """Who listens here, as the database grants it now. Raises DatabaseUnavailable."""
        by_query: dict[AccessQuery, list[StandingStream]] = {}
        for each in standing:
            if each.request.query is not None:
                by_query.setdefault(each.request.query, []).append(each)
        grants = await asyncio.gather(*(self._access.put(query._replace(wanted=INTRODUCED)) for query in by_query))
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

    async def _resolved(self, query: AccessQuery, named: Sequence[str]) -> dict[str, Resolved | None]:
        """Whose resource each of these is, and None where it may not be read. Raises DatabaseUnavailable."""

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

    async def _sources(self, audience: Audience) -> list[Source]:
        sources = []
        for assigned in audience.grant.assignments:
            if is_usable(assigned) and not identity_refusal(assigned):
                with suppress(IdentityUnreadable, IdentityUnavailable, Refusal):
                    assigned = await self._lists.refresher.fresh(assigned)  # noqa: PLW2901 - the same, with a fresh token
                    sources.append(Source(audience, assigned, target(assigned, audience.grant, self._cipher)))
        return sources

    # What is held

    async def _open_sessions(self, sources: Sequence[Source]) -> None:
        """Have a session at each of these that says something on it, subscribed to what its client wants to hear of.

        The client of a session subscribes in it by itself. In that of a connection nothing is unsubscribed: listeners
        at other workers may want it too, and what nobody here wants is not told.
        """
        begun: dict[tuple[str, str], tuple[str, frozenset[str]]] = {}
        tasks = []
        for audience, assigned, upstream in sources:
            named = frozenset(audience.heard.get(assigned.id, ())) if audience.grant.session is None else frozenset()
            if not named and not any(_offers(assigned, name, "listChanged") for name in KINDS):
                continue
            key = audience.owner, assigned.id
            row = upstream.session.row if upstream.session is not None else ""
            named |= begun[key][1] if key in begun else frozenset()
            row_before, before = self._sessions.get(key, ("", frozenset()))
            if row_before not in {"", row}:
                before = frozenset()  # That session was lost.
            begun[key] = row, named | before
            if key not in self._sessions or named - before:
                tasks.append(self._run(self._open_session(key, upstream, named - before)))
        self._sessions = begun
        if tasks:
            await asyncio.wait(tasks, timeout=SESSION_SECONDS)

    async def _open_session(self, key: tuple[str, str], upstream: Target, named: Collection[str]) -> None:
        try:
            if not named and upstream.session is None:
                await self._client.ask(upstream, "ping", {}, ignore)
            for uri in named:
                await self._client.ask(upstream, "resources/subscribe", {"uri": uri}, ignore)
        except UpstreamError:
            self._sessions.pop(key, None)  # Tried again the next time.
            raise

    async def _leased_listens(self, sources: Sequence[Source]) -> dict[str, Source]:
        """The listens at servers of 2026-07-28 that this worker is to hold, by row. Raises DatabaseUnavailable."""
        keyed = {_listen_key(source): source for source in sources if self._client.era(source.target) == MODERN}
        keyed = {key: source for key, source in keyed.items() if _wishes(source)}
        if not keyed:
            return {}
        rows = [
            (source.audience.owner, source.audience.grant.connection_id, source.assigned.server_id, key)
            for key, source in keyed.items()
        ]
        return {row: keyed[key] for key, row in (await self._keeper.lease_listens(self._name, rows)).items()}

    async def _leased_sessions(self, audiences: Sequence[Audience]) -> dict[str, Source]:
        """The sessions at servers that this worker is to listen to, by row. Raises DatabaseUnavailable."""
        by_owner = {audience.owner: audience for audience in audiences}
        leased = await self._keeper.lease(self._name, list(by_owner)) if by_owner else {}
        wanted = {}
        for row, (owner, upstream) in leased.items():
            audience = by_owner.get(owner)
            if audience is not None and (assigned := _assigned(audience.grant, upstream)) is not None:
                wanted[row] = Source(audience, assigned, upstream)
        return wanted

    def _hold(self, row: str, source: Source) -> None:
        begun = asyncio.Event()
        self._held[row] = Held(source, asyncio.create_task(self._listen(row, begun)), begun)

    async def _listen(self, row: str, begun: asyncio.Event) -> None:
        await asyncio.sleep(0)  # Until it is held.

        async def on_notification(message: Object) -> None:
            begun.set()
            await self._pass_on(self._held[row].source, message)

        async def on_request(asked: Object, answer: Answer) -> None:
            audience, _, upstream = self._held[row].source
            newest = audience.standing[-1]
            asking = Asking(newest.request, audience.grant, upstream, newest)
            await self._requests.carry(asking, asked, answer)

        pause = AGAIN_SECONDS
        while True:
            source = self._held[row].source
            try:
                if source.target.session is None:
                    goes_on = await self._client.subscribe(source.target, _wishes(source), on_notification)
                else:
                    goes_on = await self._client.listen(source.target, on_notification, on_request, begun.set)
                if not goes_on:
                    begun.set()
                    return  # The entry stays, so that a server without a stream is not asked again and again.
                pause = AGAIN_SECONDS
            except UpstreamError as error:
                logger.debug("the stream of a server ended", extra={"error": str(error)})
            begun.set()
            await asyncio.sleep(pause)
            pause = min(2 * pause, MOST_AGAIN_SECONDS)

    def _tell_begun(self, audience: Audience) -> None:
        waiting = [standing for standing in audience.standing if not standing.heard.is_set()]
        if not waiting:
            return
        begun = [held.begun for held in self._held.values() if held.source.audience is audience]

        async def tell() -> None:
            for each in begun:
                await each.wait()
            for standing in waiting:
                standing.heard.set()

        self._run(tell())

    # What is told

    async def _pass_on(self, source: Source, message: Object) -> None:
        method, (audience, assigned, _) = message["method"], source
        with suppress(DatabaseUnavailable):
            if (name := LIST_OF.get(method)) is not None:
                for kind in KINDS[name]:
                    self._lists.refresh(assigned, audience.grant, kind)
                await self._bus.publish("lists", f"{audience.grant.gateway_id} {name} said")
            elif method == UPDATED and isinstance(uri := _params(message).get("uri"), str):
                await self._updated(audience, uris.exposed_uri(audience.alias(assigned), uri))

    async def _updated(self, audience: Audience, uri: str) -> None:
        if uri in audience.refused:
            return
        if audience.grant.session is not None:
            # One message goes on one stream of a session only.
            audience.standing[-1].put(_update(uri))
        else:
            # Of a connection other workers may have streams too.
            await self._bus.publish("resource", f"{audience.owner} {_digest(uri)}")

    def _tell_updated(self, told: str | None) -> None:
        owner, _, digest = (told or "").partition(" ")
        for standing in self.streams.standing():
            if standing.owner == owner:
                for uri in standing.uris:
                    if _digest(uri) == digest:
                        standing.put(_update(uri))

    def _run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        async def run() -> None:
            try:
                await work
            except (UpstreamError, DatabaseUnavailable) as error:
                logger.debug("a server cannot be listened to", extra={"error": str(error)})

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _offers(assigned: AssignedServer, name: str, member: str) -> bool:
    """Whether the server said of itself that it has this."""
    capabilities: Mapping[str, Mapping[str, object]] = (assigned.introduction or (None,))[0] or {}
    return member in capabilities.get(name, ())


def _assigned(grant: Grant, upstream: Target) -> AssignedServer | None:
    """The server of this session, as it may be used now; None when it may not, or as somebody else."""
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


def _params(message: Object) -> Object:
    params = message.get("params")
    return params if isinstance(params, dict) else {}


def _wishes(source: Source) -> Object:
    """What a server of 2026-07-28 is asked to tell."""
    audience, assigned, _ = source
    wishes: Object = {LISTEN_KINDS[name]: True for name in KINDS if _offers(assigned, name, "listChanged")}
    if heard := audience.heard.get(assigned.id):
        wishes["resourceSubscriptions"] = sorted(heard)
    return wishes


def _listen_key(source: Source) -> str:
    """What a listen is kept under: as whom, for which connection's server, and what is asked."""
    named = " ".join((source.audience.owner, source.assigned.id, *sorted(map(str, _wishes(source).items()))))
    return f"{source.assigned.upstream_key} listen {_digest(named)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def _update(uri: str) -> Object:
    return {"jsonrpc": "2.0", "method": UPDATED, "params": {"uri": uri}}
