"""One request to one server: within its bound and its time, on the wire it speaks."""

import asyncio
import time
from collections.abc import Callable
from typing import Self

from wire import stateless
from wire.errors import BadAnswer, Busy, NotRecordable, TimedOut
from wire.fair_queue import FairQueue, Full
from wire.jsonrpc import Object
from wire.pool import Transport
from wire.rpc_messages import MODERN, SESSION, OnNotification, RpcResponse, Target, WrongEra
from wire.sessions import SessionWire
from wire.time_limit import TimeLimit

SWEEP_SECONDS = 60
RETRY_SECONDS = 2  # What a caller that found a server busy is asked to wait.

type LearnEra = Callable[[str, str, str], None]


class Upstreams:
    """The servers as this process calls them; `learn_era` is told (server id, URL, era) when one was found out.

    Of the calls a server may have under way this process takes its share: `workers` processes divide the bound, and
    each has one place at least. A call waits `queue_seconds` for a place at most. While `may_begin()` is false no
    request is sent: its row in the log could not be written.
    """

    def __init__(
        self,
        transport: Transport,
        learn_era: LearnEra,
        may_begin: Callable[[], bool] = lambda: True,
        *,
        workers: int = 1,
        queue_seconds: float = 10,
    ) -> None:
        self._transport = transport
        self._may_begin = may_begin
        self._sessions = SessionWire(transport)
        self._learn_era = learn_era
        self._eras: dict[str, str] = {}
        self._workers = workers
        self._queue_seconds = queue_seconds
        self._queues: dict[str, FairQueue] = {}
        self._sweeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._sweeper = asyncio.create_task(self._sweep(), name="idle sessions")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._sessions.close()

    async def ask(
        self,
        target: Target,
        method: str,
        params: Object,
        hear: OnNotification,
        *,
        person: str = "",
        schema: object = None,
        seconds: float | None = None,
    ) -> RpcResponse:
        """The server's answer to one request of ours; raises a Fault, or NotRecordable.

        `hear` gets the notifications that precede it; `person` is whose call it is, for a fair share of the server;
        `schema` is that of the tool which is called; `seconds` shortens the server's own time limit, and then what the
        request has to wait for its turn counts too.
        """
        queue = self._queue(target)
        person, connection = person or target.connection_id, target.connection_id
        began = time.monotonic()
        if not queue.enter_now(person, connection):
            await self._wait_for_turn(queue, target, person, seconds)
        limit = float(target.timeout_s)
        if seconds is not None:
            limit = min(limit, max(seconds - (time.monotonic() - began), 0.001))
        try:
            with TimeLimit(limit):
                if not self._may_begin():
                    raise NotRecordable
                return await self._on_its_wire(target, method, params, hear, schema)
        except TimeoutError:
            raise TimedOut(target.server_name, f"No answer within {limit:g} seconds") from None
        finally:
            queue.leave(person, connection)

    async def _wait_for_turn(self, queue: FairQueue, target: Target, person: str, seconds: float | None) -> None:
        wait = min(self._queue_seconds, seconds or self._queue_seconds)
        try:
            with TimeLimit(wait):
                await queue.enter(person, target.connection_id)
        except TimeoutError:
            detail = f"{queue.waiting} calls wait, {queue.bound} may be under way in this worker"
            raise Busy(target.server_name, detail, seconds=RETRY_SECONDS) from None
        except Full:
            raise Busy(target.server_name, "too many calls wait", seconds=RETRY_SECONDS) from None

    async def _on_its_wire(
        self, target: Target, method: str, params: Object, hear: OnNotification, schema: object
    ) -> RpcResponse:
        era = self._eras.get(target.url) or target.era or await self._probe(target)
        for attempt in (era, SESSION if era == MODERN else MODERN):
            try:
                if attempt == MODERN:
                    return await stateless.ask(self._transport, target, method, params, hear, schema=schema)
                return await self._sessions.ask(target, method, params, hear)
            except WrongEra:
                self._learn(target, SESSION if attempt == MODERN else MODERN)
        raise BadAnswer(target.server_name, "speaks neither wire")

    async def _probe(self, target: Target) -> str:
        era = MODERN if await stateless.is_spoken(self._transport, target) else SESSION
        self._learn(target, era)
        return era

    def _learn(self, target: Target, era: str) -> None:
        self._eras[target.url] = era
        self._learn_era(target.server_id, target.url, era)

    def _queue(self, target: Target) -> FairQueue:
        """The places at this server: a slow one must not use up everything, nor its callers each other's time."""
        bound = max(1, target.max_concurrent // self._workers)
        queue = self._queues.get(target.server_id)
        if queue is None:
            queue = self._queues[target.server_id] = FairQueue(bound)
        queue.bound = bound
        return queue

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self._sessions.sweep()
            for server_id in [server_id for server_id, queue in self._queues.items() if queue.is_idle]:
                del self._queues[server_id]
