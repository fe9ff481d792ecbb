"""Read the notifications of servers, and forward them to the clients and calls of this worker.

Servers of the session era send notifications on the standing stream (the GET) of a session. Servers of MCP 2026-07-28
send notifications on the stream of a `subscriptions/listen`. Each stream is read by only one worker: the worker that
has the stream's lease.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple
from uuid import uuid4

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
    target_of,
)
from proxy.lists import Lists
from proxy.message_router import COMPLETED, LOGGED, PROGRESS, Carrier, RouterParts, SessionCalls, SessionUse
from proxy.refresh import IdentityUnavailable
from proxy.request import McpRequest
from proxy.store.bus import Bus
from proxy.store.pg import DatabaseUnavailable, StatementRejected
from proxy.store.sessions import MOST_SUBSCRIPTIONS, SessionKeeper
from proxy.streams import (
    ACKNOWLEDGED,
    DECIDED_AT_ONCE,
    INTRODUCED,
    LIST_CHANGED,
    LISTEN_KINDS,
    UPDATED,
    StandingStream,
    grants_digest,
    params_of,
    update,
)
from wire import rewriting
from wire.background import Background
from wire.cipher import Cipher
from wire.errors import UpstreamError
from wire.jsonrpc import Object
from wire.mcp import MODERN, PROMPT, RESOURCE, SESSION, TEMPLATE, TOOL, Answer, StreamPlace, Target, era_for, ignore
from wire.sessions import SessionLost

logger = logging.getLogger(__name__)

LEASE_AGAIN_SECONDS = 10.0
LOOK_AGAIN_SECONDS = 15.0  # An owner's subscriptions are checked at least this often.
AGAIN_SECONDS = 2.0  # Pause before a stream that ended is reopened. It is doubled each time.
MOST_AGAIN_SECONDS = 60.0  # The longest pause before a stream is reopened.
SESSION_SECONDS = 0.3  # How long a check waits for the sessions that it opens.

READY_SECONDS = 1.0  # How long a call waits in total for the stream of its session at the server.
OPEN_SECONDS = 0.1  # How long a call waits for the stream to open after the stream was requested.
SILENT_SECONDS = 60.0  # A server that offers no stream is not asked for one again for this long.
MOST_FOR_CALLS = 256  # Sessions whose stream this worker reads only for their calls.
LOST = "lost"  # Replaces a session's row id after an error, so that the next check opens the session again.


class ServerStreams:
    """Reads the streams of servers for the clients of this worker. Each stream is read by one worker."""

    def __init__(self, parts: RouterParts, access: Access, lists: Lists, cipher: Cipher) -> None:
        self.streams, self._keeper, self._client, self._bus = parts.streams, parts.keeper, parts.client, parts.bus
        self._lists = lists
        self._cipher = cipher
        self._name = str(uuid4())
        self._held: dict[str, OpenServerStream] = {}  # By row id of the session or `subscriptions/listen`.
        # The sessions opened for client streams, by owner and assignment: the row id, and the subscribed URIs.
        self._sessions: dict[tuple[str, str], tuple[str, frozenset[str]]] = {}
        self._background = Background(UpstreamError, DatabaseUnavailable)
        self._audiences = Audiences(access, parts.bus, parts.keeper)
        self.honoured = self._audiences.honoured
        self.calls = SessionCalls(self._listen_for_calls)
        self._carrier = Carrier(self._name, parts, self.calls, self._run)
        self.give_waiting = self._carrier.give_waiting
        self._courier = self._carrier.courier
        self._silent: dict[tuple[str, str], float] = {}  # Servers that offer no stream, and when this was found out.
        self._beginning: set[str] = set()  # The sessions whose stream is about to be opened for calls.
        self._looked: dict[str, float] = {}  # When the subscriptions of each owner were last checked.
        self._calls_due = 0.0  # When all sessions of calls are checked again.
        parts.bus.on("upstream", self._look_again)
        parts.bus.on("cut", self._doubt)
        parts.bus.on("ended", self._session_ended)
        parts.bus.on("resource", self._tell_updated)

    def start(self) -> None:
        self._background.forever("streams of servers", self._work, self._wait_for_news)

    async def stop(self) -> None:
        """Close all streams, and release their leases so that other workers can take them."""
        held, self._held = self._held, {}
        await self._background.stop()
        if held:
            with suppress(DatabaseUnavailable):
                await self._keeper.release(self._name, [*held])

    def _look_again(self, owner: str | None) -> None:
        """Schedule a check of the server streams that `owner` needs; None or an empty text means all owners."""
        for standing in self.streams.standing():
            if not owner or standing.owner == owner:
                self.streams.note(standing.owner)
        for use in self.calls.uses.values():
            if not owner or use.newest.grant.owner_id == owner:
                self.streams.note(use.newest.grant.owner_id)

    def _doubt(self, _: str | None) -> None:
        """Schedule a check of the sessions that calls use, because access may have been revoked."""
        self.calls.doubt()
        self._calls_due = 0.0
        self.streams.changed.set()

    def _session_ended(self, session_id: str | None) -> None:
        if session_id is not None:
            for row in [row for row, use in self.calls.uses.items() if use.newest.grant.owner_id == session_id]:
                self._drop(row)

    async def _wait_for_news(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LEASE_AGAIN_SECONDS):
                await self.streams.changed.wait()
        await asyncio.sleep(random.uniform(0.02, 0.06))  # noqa: S311 - collects simultaneous news

    async def _work(self) -> None:
        try:
            await self._follow(*self.streams.news())
        except BaseException:
            self._look_again(None)  # `news` returns each change once, so the next round must check everything.
            raise

    async def _follow(self, changed: set[str], granted: Mapping[AccessQuery, AccessRow]) -> None:
        """Open the server streams that owners now need, and close the server streams that are no longer needed.

        An owner is a client's session, or the connection of a client without a session. Only the owners in `changed`,
        and the owners that `_due` returns, are checked.
        """
        began = time.monotonic()
        standing = self.streams.standing()
        owners = changed | self._due(standing, granted, began)
        audiences = await self._audiences.find([each for each in standing if each.owner in owners], granted)
        for owner in owners:
            self._carrier.refused.pop(owner, None)
        self._carrier.refused |= {audience.owner: audience.refused for audience in audiences if audience.refused}
        pairs = [(audience, assigned) for audience in audiences for assigned in heeded(audience)]
        await self._open_sessions([each for each in pairs if each[0].era(each[1]) == SESSION], owners)
        modern = [await self._source(*each) for each in pairs if each[0].era(each[1]) == MODERN]
        wanted = await self._leased_listens(list(filter(None, modern))) | await self._leased_sessions(audiences)
        if calls_are_due := began >= self._calls_due:
            self._calls_due = began + LEASE_AGAIN_SECONDS
            self.calls.drop_idle()
        wanted |= await self._leased_for_calls(wanted, None if calls_are_due else owners)
        gone = [
            row
            for row, held in self._held.items()
            if row not in wanted
            and not (self.calls.is_beginning(row) or self.calls.of(row))
            and held.since < began
            and (held.source.audience.owner in owners or (calls_are_due and held.is_for_calls))
        ]
        await self._hold_only(wanted, gone)
        waiting = {id(held.source.audience) for held in self._held.values() if not held.begun.is_set()}
        for audience in audiences:
            if id(audience) not in waiting:
                _let_know(audience)

    async def _hold_only(self, wanted: Mapping[str, Source], gone: Sequence[str]) -> None:
        for row in gone:
            self._held.pop(row).task.cancel()
        for row, source in wanted.items():
            held = self._held.get(row)
            if held is not None and held.task.done() and held.is_for_calls and source.audience.standing:
                del self._held[row]  # The task ended while only calls needed the stream. Now a client needs it.
                held = None
            if held is not None:
                held.source = source
            else:
                self._hold(row, source)
        if gone:
            await self._keeper.release(self._name, gone)

    def _due(
        self, standing: Sequence[StandingStream], granted: Mapping[AccessQuery, AccessRow], now: float
    ) -> set[str]:
        """Return owners that have a new grant, or whose last check was more than LOOK_AGAIN_SECONDS ago."""
        looked = {each.owner: self._looked.get(each.owner, now) for each in standing}
        due = {
            each.owner
            for each in standing
            if each.request.query in granted or now - looked[each.owner] > LOOK_AGAIN_SECONDS
        }
        self._looked = looked | dict.fromkeys(due, now)
        return due

    async def _source(self, audience: Audience, assigned: AssignedServer) -> Source | None:
        with suppress(IdentityUnreadable, IdentityUnavailable, Refusal):
            assigned = await self._lists.refresher.fresh(assigned)
            extensions = audience.standing[0].request.extensions if audience.standing else {}
            upstream = target_of(assigned, audience.grant, self._cipher, modern=audience.modern, extensions=extensions)
            return Source(audience, assigned, upstream)
        return None

    # Sessions and leases

    async def _open_sessions(self, heeded: Sequence[tuple[Audience, AssignedServer]], owners: Collection[str]) -> None:
        """Open missing sessions for `heeded`, which are pairs of an audience and a server.

        Subscribe each session to the resources that its audience wants. `owners` are the client sessions and
        connections that are checked now. In `self._sessions`, the entries of all other owners stay unchanged.
        """
        begun = {key: of_row for key, of_row in self._sessions.items() if key[0] not in owners}
        tasks = []
        for audience, assigned in heeded:
            wanted = frozenset(audience.heard.get(assigned.id, ()))
            key = audience.owner, assigned.id
            row = assigned.upstream_session.row if assigned.upstream_session is not None else ""
            named = wanted | begun[key][1] if key in begun else wanted
            row_before, before = self._sessions.get(key, ("", frozenset()))
            is_lost = row_before not in {"", row}
            if is_lost:
                before = frozenset()
            # A session that a connection's clients share is never unsubscribed: other workers' clients may need it.
            begun[key] = row, named | before
            # A client with a session subscribes by itself. This is repeated only at this worker's first check, and in a
            # session that replaced a lost one.
            is_own = audience.grant.session is not None and key in self._sessions and not is_lost
            new = frozenset() if is_own else named - before
            if key not in self._sessions or is_lost or new:
                tasks.append(self._run(self._open_session(key, audience, assigned, new, tell=is_lost)))
        self._sessions = begun
        if tasks:
            await asyncio.wait(tasks, timeout=SESSION_SECONDS)

    async def _open_session(
        self,
        key: tuple[str, str],
        audience: Audience,
        assigned: AssignedServer,
        named: Collection[str],
        *,
        tell: bool,
    ) -> None:
        source = await self._source(audience, assigned)
        if source is None:
            self._sessions.pop(key, None)
            return
        upstream = source.target
        try:
            if not named and upstream.session is None:
                await self._client.ask(upstream, "ping", {}, ignore)
            for uri in named:
                await self._client.ask(upstream, "resources/subscribe", {"uri": uri}, ignore)
        except UpstreamError:
            if key in self._sessions:  # The next check tries again; until then notifications may be missed.
                self._sessions[key] = LOST, frozenset()
            raise
        if tell:
            self._tell_what_may_be(source)

    async def _leased_listens(self, sources: Sequence[Source]) -> dict[str, Source]:
        """Lease the right to send `subscriptions/listen` for these sources, whose servers speak MCP 2026-07-28.

        Only the worker that has the lease of a source sends the request. Return the sources that this worker has
        leased, by row id. Raises DatabaseUnavailable.
        """
        keyed = {listen_key(source): source for source in sources}
        keyed = {key: source for key, source in keyed.items() if wishes(source)}
        if not keyed:
            return {}
        rows = [
            (source.audience.owner, source.audience.grant.connection_id, source.assigned.server_id, key)
            for key, source in keyed.items()
        ]
        return {row: keyed[key] for key, row in (await self._keeper.lease_listens(self._name, rows)).items()}

    async def _leased_sessions(self, audiences: Sequence[Audience]) -> dict[str, Source]:
        """Lease the streams of these audiences' sessions; return the sources by row id. Raises DatabaseUnavailable."""
        by_owner = {audience.owner: audience for audience in audiences}
        if not by_owner:
            return {}
        listened = [row for row, held in self._held.items() if held.source.audience.owner in by_owner]
        leased = await self._keeper.lease(self._name, list(by_owner), listened)
        if leased.elsewhere:
            await self._courier.tell_interest(leased.elsewhere)
        known = {
            row: (owner, self._held[row].source.target) for row, owner in leased.known.items() if row in self._held
        }
        wanted = {}
        for row, (owner, upstream) in (leased.targets | known).items():
            audience = by_owner.get(owner)
            if audience is not None and (assigned := assigned_of(audience.grant, upstream)) is not None:
                wanted[row] = Source(audience, assigned, upstream)
        return wanted

    def _hold(self, row: str, source: Source) -> OpenServerStream:
        if row not in self._held:
            held = self._held[row] = OpenServerStream(
                source, self._background.spawn("stream of a server", self._listen(row))
            )
            held.task.add_done_callback(lambda _: held.wake_waiters())  # Wake waiters even if the task was cancelled.
        return self._held[row]

    # For calls

    async def _listen_for_calls(self, row: str, use: SessionUse) -> None:
        """Start opening the server's stream, and wait at most READY_SECONDS for the outcome."""
        if not use.beginning:
            use.beginning = True
            self._run(self._begin_for_calls(row, use))
        with suppress(TimeoutError):
            async with asyncio.timeout(READY_SECONDS):
                await use.settled.wait()

    async def _begin_for_calls(self, row: str, use: SessionUse) -> None:
        try:
            if row not in self._held and not self._is_silent(use) and self._make_room(1):
                self._beginning.add(row)
                leased = await self._keeper.lease_rows(self._name, [row])
                if leased.get(row):
                    self._hold(row, _for_calls(use))
                elif row in leased:
                    await self._courier.tell_interest([row])
            if (held := self._held.get(row)) is not None:
                await held.asked.wait()
                with suppress(TimeoutError):
                    async with asyncio.timeout(OPEN_SECONDS):
                        await held.begun.wait()
        finally:
            self._beginning.discard(row)
            use.beginning = False
            use.settled.set()

    def _is_silent(self, use: SessionUse) -> bool:
        """Return whether the server was recently found to offer no stream."""
        return time.monotonic() - self._silent.get(_server(use.newest.target), -SILENT_SECONDS) < SILENT_SECONDS

    def _room(self) -> int:
        """Return how many more streams that only calls need this worker may open. The number may be negative."""
        return MOST_FOR_CALLS - len(self._beginning | {row for row, held in self._held.items() if held.is_for_calls})

    def _make_room(self, wanted: int) -> bool:
        """Make room for `wanted` more streams that only calls need. Return whether there is enough room.

        If needed, close idle streams of this kind (`is_for_calls`), the longest idle first.
        """
        if (most := wanted - self._room()) <= 0:
            return True
        uses, listening = self.calls.uses, {standing.owner for standing in self.streams.standing()}
        idle = [
            row
            for row, held in self._held.items()
            if held.is_for_calls
            and held.source.audience.owner not in listening  # The client may just have opened a stream.
            and (row not in uses or not (uses[row].calls or uses[row].beginning))
        ]
        for row in sorted(idle, key=lambda row: uses[row].ended if row in uses else 0.0)[:most]:
            self._drop(row)
        return len(idle) >= most

    def _drop(self, row: str) -> None:
        """Close the server stream of this session. The next call in the session opens the stream again."""
        self.calls.uses.pop(row, None)
        if (held := self._held.pop(row, None)) is not None:
            held.task.cancel()
            self._run(self._keeper.release(self._name, [row]))

    async def _leased_for_calls(
        self, held_anyway: Collection[str], owners: Collection[str] | None
    ) -> dict[str, Source]:
        """Lease the streams of sessions with running or recent calls. Raises DatabaseUnavailable.

        Lease only sessions of `owners`; None means all owners. Leave out sessions whose row ids are in `held_anyway`.
        Return the sources by row id.
        """
        now = time.monotonic()
        self._silent = {server: at for server, at in self._silent.items() if now - at < SILENT_SECONDS}
        self._make_room(0)  # When client streams end, more sessions are read only for their calls.
        has_room = self._room() > 0
        uses = {
            row: use
            for row, use in self.calls.uses.items()
            if (owners is None or use.newest.grant.owner_id in owners)
            and use.settled.is_set()
            and row not in held_anyway
            and (row in self._held or (has_room and not self._is_silent(use)))
        }
        if not uses:
            return {}
        leased = await self._keeper.lease_rows(self._name, [*uses])
        for row in uses.keys() - leased.keys():
            self.calls.uses.pop(row, None)  # The session has ended.
        if elsewhere := [row for row, is_own in leased.items() if not is_own]:
            for row in elsewhere:  # The lease was lost to another worker.
                if row in self._held and self._held[row].since < now:
                    self._held.pop(row).task.cancel()
            await self._courier.tell_interest(elsewhere)
        # While this worker waited for the database, sessions may have been closed and others opened.
        own = [row for row, is_own in leased.items() if is_own]
        more = [row for row in own if row not in self._held and self.calls.uses.get(row) is uses[row]]
        listened = {*more[: max(self._room(), 0)], *self._held}
        if left := [row for row in own if row not in listened and row not in self._beginning]:
            self._run(self._keeper.release(self._name, left))
        return {row: _for_calls(self.calls.uses.get(row, uses[row])) for row in own if row in listened}

    async def _listen(self, row: str) -> None:
        await asyncio.sleep(0)  # Let `_hold` store the task.
        held = self._held[row]
        pause = AGAIN_SECONDS
        while True:
            try:
                if not await self._listen_once(held):
                    self._begin(held)
                    if held.is_for_calls and self._held.get(row) is held:
                        self._silent[_server(held.source.target)] = time.monotonic()
                        del self._held[row]
                        self._run(self._keeper.release(self._name, [row]))
                    return  # A client's entry stays in `_held`, so that the server is not asked again and again.
                pause = held.place.pause(AGAIN_SECONDS)
            except SessionLost:
                self._begin(held)
                # Release the lease, so that a worker whose client has a stream opens a new session.
                if held.was_open:
                    self._drop(row)
                return  # The next call checks whether the session is lost, and opens a new one if so.
            except UpstreamError as error:
                logger.debug("the stream of a server ended", extra={"error": str(error)})
            except Exception:  # Whatever a server sent, open the stream again.
                logger.exception("a server's message could not be forwarded")
            self._begin(held)
            await asyncio.sleep(pause)
            pause = min(2 * pause, MOST_AGAIN_SECONDS)
            await self._renew(held)

    async def _renew(self, held: OpenServerStream) -> None:
        """Read the session's target again before the stream is reopened, because the credential may be new."""
        if held.source.target.session is None:
            return
        with suppress(DatabaseUnavailable):
            if (upstream := await self._keeper.target_of(held.row)) is not None:
                held.source = held.source._replace(target=upstream)

    async def _listen_once(self, held: OpenServerStream) -> bool:
        """Forward the server's messages until the stream ends. Return False if the server offers no stream.

        Raises an UpstreamError, or SessionLost.
        """
        source = held.source

        async def on_request(asked: Object, answer: Answer) -> None:
            await self._carrier.carry(held, asked, answer)

        async def on_notification(message: Object) -> None:
            if message["method"] == ACKNOWLEDGED:  # The first message of a `subscriptions/listen`.
                self._opened(held)
            else:
                self._begin(held)
                await self._pass_on(held, message)

        if source.target.session is None:
            return await self._client.subscribe(source.target, wishes(source), on_notification)
        try:
            opened = partial(self._opened, held)
            asked = held.asked.set
            return await self._client.listen(source.target, on_notification, on_request, opened, held.place, asked)
        except SessionLost:
            if held.is_for_calls:
                raise
            return not await self._is_alive(source)  # Servers without streams may answer like this too.

    def _opened(self, held: OpenServerStream) -> None:
        self._begin(held)
        if held.was_open and not held.place.last_event_id:
            self._tell_what_may_be(held.source)
        held.was_open = True

    async def _is_alive(self, source: Source) -> bool:
        """Send a ping and return whether the server still knows the session. If not, the ping opens a new session."""
        with suppress(UpstreamError):
            await self._client.ask(source.target, "ping", {}, ignore)
        kept = await self._keeper.kept(source.target)
        return kept is not None and source.target.session is not None and kept == source.target.session.row

    def _tell_what_may_be(self, source: Source) -> None:
        """Refresh the lists and report subscribed resources as updated, as notifications may have been missed."""
        audience, assigned, _ = source
        for name, kinds in KINDS.items():
            if audience.offers(assigned, name, "listChanged"):
                for kind in kinds:
                    self._lists.refresh(assigned, audience.grant, kind)

        async def tell() -> None:
            for uri in audience.heard.get(assigned.id, {}).values():
                await self._carrier.tell_updated_of(audience, uri)

        self._run(tell())

    def _begin(self, held: OpenServerStream) -> None:
        held.wake_waiters()
        self._tell_begun(held.source.audience)

    def _tell_begun(self, audience: Audience) -> None:
        """Wake the audience's client streams if none of the audience's server streams is still being opened."""
        if not all(standing.heard.is_set() for standing in audience.standing) and all(
            held.begun.is_set() for held in self._held.values() if held.source.audience is audience
        ):
            _let_know(audience)

    # Notifications

    async def _pass_on(self, held: OpenServerStream, message: Object) -> None:
        method, (audience, assigned, _) = message["method"], held.source
        with suppress(DatabaseUnavailable):
            if (name := LIST_OF.get(method)) is not None:
                await self._list_changed(assigned, audience.grant, name)
            elif method == UPDATED and isinstance(uri := params_of(message).get("uri"), str):
                # Report the URI that the client has subscribed to, which may be the server's own URI.
                subscribed = audience.heard.get(assigned.id, {}).get(uri)
                exposed = subscribed or rewriting.exposed_uri(audience.alias(assigned), uri)
                await self._carrier.updated(held, message, exposed)
            elif method in (PROGRESS, LOGGED, COMPLETED):
                await self._carrier.tell(held, message)

    def list_changed(self, assigned: AssignedServer, grant: AccessRow, name: str) -> None:
        """Refresh the server's list `name`, and notify the clients of the gateway."""
        self._run(self._list_changed(assigned, grant, name))

    async def _list_changed(self, assigned: AssignedServer, grant: AccessRow, name: str) -> None:
        for kind in KINDS[name]:
            self._lists.refresh(assigned, grant, kind)
        await self._bus.publish("lists", f"{grant.gateway_id} {name} said")

    def _tell_updated(self, told: str | None) -> None:
        owner, _, told_digest = (told or "").partition(" ")
        for standing in self.streams.standing():
            if standing.owner == owner:
                for uri in standing.uris:
                    if grants_digest(uri) == told_digest:
                        standing.put(update(uri))

    def _run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return self._background.spawn("listening to servers", work)


def _server(target: Target) -> tuple[str, str]:
    return target.server_id, target.url


def _let_know(audience: Audience) -> None:
    for standing in audience.standing:
        standing.heard.set()


def _for_calls(use: SessionUse) -> Source:
    """Return the source for a server's stream that is needed only for calls, not for client streams."""
    call = use.newest
    return Source(Audience([], call.grant), call.assigned, call.target)


# The subscribers of this worker, each with the servers whose notifications it may get, as re-read from the database.

# The kinds of features in each list.
KINDS = {"tools": (TOOL,), "prompts": (PROMPT,), "resources": (RESOURCE, TEMPLATE)}
LIST_OF = {method: name for name, method in LIST_CHANGED.items()}


@dataclass
class Audience:
    """The client streams that have the same token and (if any) the same session, and their current grant."""

    standing: list[StandingStream]  # Empty if only calls need the server's stream.
    grant: AccessRow
    # The resource subscriptions of each assignment: the client's URI by the server's URI.
    heard: dict[str, dict[str, str]] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()  # Subscribed URIs that the client may not read.

    @property
    def owner(self) -> str:
        return self.grant.owner_id

    @property
    def modern(self) -> bool:
        """True if the client opened the streams by `subscriptions/listen`, False if they belong to a session."""
        return any(standing.request.modern for standing in self.standing)

    def era(self, assigned: AssignedServer) -> str:
        """Return the era of MCP to use for this audience's subscriptions at the server; empty if it is unknown."""
        return era_for(assigned.eras, MODERN if self.modern else SESSION)

    def offers(self, assigned: AssignedServer, name: str, member: str) -> bool:
        """Return whether the server's capability `name`, such as `tools`, has this `member`, such as `listChanged`."""
        return offers(assigned, name, member, modern=self.modern)

    def alias(self, assigned: AssignedServer) -> str:
        return assigned.alias if self.grant.several_servers else ""


class Source(NamedTuple):
    """A server, and the audience that receives its notifications."""

    audience: Audience
    assigned: AssignedServer
    target: Target


@dataclass
class OpenServerStream:
    """A server's stream, which this worker opens, reads, and reopens when it ends."""

    source: Source
    task: asyncio.Task[None]
    # Set when the stream was requested. Some servers send no response headers before their first message.
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    place: StreamPlace = field(default_factory=StreamPlace)
    was_open: bool = False
    since: float = field(default_factory=time.monotonic)
    # Messages to offer to other workers. The result of each future is True if a worker took the message.
    waiting: list[tuple[Object, asyncio.Future[bool]]] = field(default_factory=list)
    waiting_bytes: int = 0
    handing_over: asyncio.Task[None] | None = None

    def wake_waiters(self) -> None:
        """Wake all waiters, because the stream is open or will not be opened."""
        self.asked.set()
        self.begun.set()

    @property
    def row(self) -> str:
        session = self.source.target.session
        return session.row if session is not None else ""

    @property
    def is_for_calls(self) -> bool:
        """True if only calls need this server stream, because its audience has no client streams."""
        return not self.source.audience.standing


class Audiences:
    """Groups this worker's client streams into audiences (by token and session), with their current grants."""

    def __init__(self, access: Access, bus: Bus, keeper: SessionKeeper) -> None:
        self._access = access
        self._bus = bus
        self._keeper = keeper

    async def honoured(self, request: McpRequest, wanted: Sequence[str]) -> list[str]:
        """Return the URIs in `wanted` to which this client may subscribe. Raises DatabaseUnavailable."""
        assert request.query is not None, "it was authorized"
        grant = await self._access.put(request.query._replace(wanted=INTRODUCED))
        watched = (
            {each.id for each in grant.assignments if offers(each, "resources", "subscribe", modern=request.modern)}
            if grant
            else set()
        )
        found = await self._resolved(request.query, wanted[:MOST_SUBSCRIPTIONS])
        return [uri for uri, resolved in found.items() if resolved is not None and resolved.assigned.id in watched]

    async def find(
        self, standing: Iterable[StandingStream], granted: Mapping[AccessQuery, AccessRow]
    ) -> list[Audience]:
        """Return the audiences of these streams, each audience with its current grant.

        Streams that no longer have access are left out. Raises DatabaseUnavailable.
        """
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
        """Return the grant of each query, from `granted` or from the database.

        A grant is None if the token is unknown or the row is unreadable. Raises DatabaseUnavailable.
        """
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
        """Return the resource of each URI; None for one that may not be read. Raises DatabaseUnavailable."""

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
    """Return whether the server's capability `name` has this `member`.

    Check the capabilities for clients of MCP 2026-07-28 if `modern` is true, otherwise those for older clients.
    """
    capabilities: Mapping[str, Mapping[str, object]] = assigned.capabilities(modern=modern) or {}
    return member in capabilities.get(name, ())


def assigned_of(grant: AccessRow, upstream: Target) -> AssignedServer | None:
    """Return the grant's usable server that has the server id, identity and address of `upstream`, or None."""
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


def wishes(source: Source) -> Object:
    """Return the notifications to request with `subscriptions/listen` from a server of MCP 2026-07-28."""
    audience, assigned, _ = source
    wishes: Object = {LISTEN_KINDS[name]: True for name in KINDS if audience.offers(assigned, name, "listChanged")}
    if heard := audience.heard.get(assigned.id):
        wishes["resourceSubscriptions"] = sorted(heard)
    return wishes


def listen_key(source: Source) -> str:
    """Return the key of a `subscriptions/listen`, from identity, owner, assignment and requested notifications."""
    named = " ".join((source.audience.owner, source.assigned.id, *sorted(map(str, wishes(source).items()))))
    return f"{source.assigned.upstream_key} listen {grants_digest(named)}"
