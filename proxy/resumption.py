"""Resume standing streams and streams of calls for clients that reconnect with `Last-Event-ID`."""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial

from proxy.access.decision import AccessRow
from proxy.audiences import UPDATED
from proxy.request import McpRequest
from proxy.response import is_primed
from proxy.server_streams import ServerStreams
from proxy.store.events import CALL, EventId, Kept, StreamEvents
from proxy.store.pg import DatabaseUnavailable
from proxy.store.sessions import SessionKeeper
from proxy.streams import LIST_CHANGED, StandingStream
from wire import jsonrpc, sse

ALIVE_SECONDS = 3.0  # The worker with the stream of a call answers within this time.
LISTENING_SECONDS = 2.0  # How long to wait for the servers' streams before reporting possible changes.
HANDED_OVER_SECONDS = 1.0  # The worker that had a standing stream writes its events within this time.

CALL_LOST = "The call was lost: what became of it is not known any more."

# The streams that resume a call's stream here, by session and stream.
type Repeats = dict[tuple[str, str], StandingStream]


class Resumption:
    """Opens the standing streams of sessions, including resumed ones."""

    def __init__(self, events: StreamEvents, keeper: SessionKeeper, server_streams: ServerStreams) -> None:
        self.events = events
        self.server_streams = server_streams
        self._keeper = keeper
        self._repeats: Repeats = {}

    async def standing(self, request: McpRequest, grant: AccessRow) -> StandingStream:
        """Return the stream for this GET in a session. Raises DatabaseUnavailable."""
        assert grant.session is not None, "refused before"
        name = EventId.read(request.header(b"last-event-id")) if b"last-event-id" in request.headers else None
        if name is not None and name.kind == CALL:
            return StandingStream(
                request, grant, lists=(), feed=_Repeat(self.events, name, self._repeats).feed, repeats=True
            )
        missed = await self._take(grant.session.id, name) if name is not None else []
        subscribed = (await self._keeper.subscriptions([grant.session.id])).get(grant.session.id, [])
        standing = self._begun(request, grant, name, missed)
        lists = LIST_CHANGED.values() if name is not None else ()
        standing.feed = partial(self._begin_to_tell, lists=lists, subscribed=subscribed)
        return standing

    def _begun(
        self, request: McpRequest, grant: AccessRow, name: EventId | None, missed: Sequence[Kept]
    ) -> StandingStream:
        session = grant.session
        assert session is not None
        if name is None:
            history = self.events.begin_standing(session.id)
        else:
            last = max([name.number, *(event.number for event in missed)])
            history = self.events.begin(session.id, name._replace(number=last))
        standing = StandingStream(request, grant, history=history)

        def taken() -> None:
            history.end()
            standing.end(b"")

        history.taken = taken
        if is_primed(session.version) and name is None:
            standing.beginning = history.beginning()
        for event in missed:
            if event.data:
                standing.put_event(sse.event(event.data, history.event_id(event.number)))
        return standing

    async def _take(self, session_id: str, name: EventId) -> list[Kept]:
        """Take over a standing stream: end it elsewhere and return its later events. Raises DatabaseUnavailable."""
        news = self.events.listen(name.stream)
        try:
            missed = await self.events.read(session_id, name)
            if not _is_over(missed):
                await self.events.want(session_id, name)
                with suppress(TimeoutError):
                    async with asyncio.timeout(HANDED_OVER_SECONDS):
                        while not _is_over(missed):
                            await news.wait()
                            news.clear()
                            missed = await self.events.read(session_id, name)
            await self.events.take(session_id, name)
        finally:
            self.events.forget(name.stream, news)
        return missed

    async def _begin_to_tell(
        self, standing: StandingStream, *, lists: Iterable[str], subscribed: Sequence[str]
    ) -> None:
        """Send the stored messages; then report once that lists and subscribed resources may have changed."""
        self.server_streams.give_waiting(standing.owner)
        for method in lists:
            standing.put({"jsonrpc": "2.0", "method": method})
        if not subscribed:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(LISTENING_SECONDS):
                await standing.heard.wait()
        with suppress(DatabaseUnavailable):
            for uri in await self.server_streams.honoured(standing.request, subscribed):
                standing.put({"jsonrpc": "2.0", "method": UPDATED, "params": {"uri": uri}})


class _Repeat:
    """Sends the events of a call's stream after a given one, until the call is over.

    If the client resumes the same call again, the earlier repeat ends.
    """

    def __init__(self, events: StreamEvents, name: EventId, repeats: Repeats) -> None:
        self._events = events
        self._name = name
        self._repeats = repeats

    async def feed(self, standing: StandingStream) -> None:
        """Fill this stream, and end it."""
        key = standing.owner, self._name.stream
        if (earlier := self._repeats.get(key)) is not None:
            earlier.end(b"")
        self._repeats[key] = standing
        news = self._events.listen(self._name.stream)
        try:
            await self._follow(standing, news)
        except DatabaseUnavailable:
            standing.end(b"")  # The client reconnects with the id of its last event.
        finally:
            self._events.forget(self._name.stream, news)
            if self._repeats.get(key) is standing:
                del self._repeats[key]

    async def _follow(self, standing: StandingStream, news: asyncio.Event) -> None:
        session_id, name = standing.owner, self._name
        is_alive = False
        while True:
            news.clear()
            for event in await self._events.read(session_id, name):
                name = name._replace(number=event.number)
                if event.data:
                    standing.put_event(sse.event(event.data, name.text()))
                if event.is_last:
                    standing.end(b"")
                    return
            if not is_alive:
                await self._events.want(session_id, name)
            try:
                async with asyncio.timeout(ALIVE_SECONDS):
                    await news.wait()
                is_alive = True
            except TimeoutError:
                if not is_alive:
                    self._lose(standing)
                    return
                is_alive = False  # Ask once more.

    def _lose(self, standing: StandingStream) -> None:
        """End the stream of a call that no worker has, or that never belonged to this session."""
        if self._name.request_id is None:
            standing.end(b"")
            return
        data = {"reason": "call_lost"}
        standing.end(jsonrpc.error(self._name.request_id, jsonrpc.INTERNAL_ERROR, CALL_LOST, data))


def _is_over(missed: Sequence[Kept]) -> bool:
    return any(event.is_last for event in missed)
