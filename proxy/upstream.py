"""One request to one server: within its bound and its time, on the wire it speaks."""

import asyncio
from collections.abc import Callable
from typing import Self

from proxy import modern_wire
from proxy.exchange import MODERN, SESSION, Answer, Hear, Target, WrongEra
from proxy.faults import BadAnswer, Busy, NotRecordable, TimedOut
from proxy.jsonrpc import Object
from proxy.session_wire import SessionWire
from proxy.time_limit import TimeLimit
from proxy.transport import Transport

SWEEP_SECONDS = 60

type LearnEra = Callable[[str, str, str], None]


class Upstreams:
    """The servers as this process calls them; `learn_era` is told (server id, URL, era) when one was found out.

    While `may_begin()` is false no request is sent: its row in the log could not be written.
    """

    def __init__(self, transport: Transport, learn_era: LearnEra, may_begin: Callable[[], bool] = lambda: True) -> None:
        self._transport = transport
        self._may_begin = may_begin
        self._sessions = SessionWire(transport)
        self._learn_era = learn_era
        self._eras: dict[str, str] = {}
        self._gates: dict[str, tuple[int, asyncio.Semaphore]] = {}
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
        hear: Hear,
        *,
        schema: object = None,
        seconds: float | None = None,
    ) -> Answer:
        """The server's answer to one request of ours; raises a Fault, or NotRecordable.

        `hear` gets the notifications that precede it; `schema` is that of the tool which is called;
        `seconds` shortens the server's own time limit.
        """
        limit = min(target.timeout_s, seconds or target.timeout_s)
        gate = self._gate(target)
        admitted = False
        try:
            with TimeLimit(limit):
                await gate.acquire()
                admitted = True
                if not self._may_begin():
                    raise NotRecordable
                return await self._on_its_wire(target, method, params, hear, schema)
        except TimeoutError:
            if not admitted:
                raise Busy(target.server_name, f"{target.max_concurrent} calls are under way") from None
            raise TimedOut(target.server_name, f"No answer within {limit:g} seconds") from None
        finally:
            if admitted:
                gate.release()

    async def _on_its_wire(self, target: Target, method: str, params: Object, hear: Hear, schema: object) -> Answer:
        era = self._eras.get(target.url) or target.era or await self._probe(target)
        for attempt in (era, SESSION if era == MODERN else MODERN):
            try:
                if attempt == MODERN:
                    return await modern_wire.ask(self._transport, target, method, params, hear, schema=schema)
                return await self._sessions.ask(target, method, params, hear)
            except WrongEra:
                self._learn(target, SESSION if attempt == MODERN else MODERN)
        raise BadAnswer(target.server_name, "speaks neither wire")

    async def _probe(self, target: Target) -> str:
        era = MODERN if await modern_wire.is_spoken(self._transport, target) else SESSION
        self._learn(target, era)
        return era

    def _learn(self, target: Target, era: str) -> None:
        self._eras[target.url] = era
        self._learn_era(target.server_id, target.url, era)

    def _gate(self, target: Target) -> asyncio.Semaphore:
        """The bound on calls under way at this server: a slow one must not use up everything."""
        known = self._gates.get(target.server_id)
        if known is None or known[0] != target.max_concurrent:
            known = target.max_concurrent, asyncio.Semaphore(target.max_concurrent)
            self._gates[target.server_id] = known
        return known[1]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self._sessions.sweep()
