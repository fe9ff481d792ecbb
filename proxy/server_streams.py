"""What servers say of their own accord: the standing streams of their sessions, while a client listens here."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from uuid import uuid4

from proxy.store.bus import Bus
from proxy.store.database import DatabaseUnavailable
from proxy.store.sessions import SessionKeeper
from proxy.streams import LIST_CHANGED, Streams
from wire.client import McpClient
from wire.errors import UpstreamError
from wire.jsonrpc import Object
from wire.rpc_messages import OnRequest, Target

logger = logging.getLogger(__name__)

LEASE_AGAIN_SECONDS = 10.0
AGAIN_SECONDS = 2.0  # Before a stream that ended is opened again,
MOST_AGAIN_SECONDS = 60.0  # doubled each time until so many.

# Called with the server and the method of its notification, before clients are told that a list may have changed.
type ListChanged = Callable[[Target, str], Awaitable[None]]


class ServerStreams:
    """Listens at servers for those who listen here; of several workers one does it for each session at a server."""

    def __init__(self, streams: Streams, keeper: SessionKeeper, client: McpClient, bus: Bus) -> None:
        self._streams = streams
        self._keeper = keeper
        self._client = client
        self._bus = bus
        self._name = str(uuid4())
        self._open: dict[str, asyncio.Task[None]] = {}
        self._worker: asyncio.Task[None] | None = None
        self.on_list_changed: ListChanged | None = None
        self.on_request: OnRequest | None = None

    def start(self) -> None:
        self._worker = asyncio.create_task(self._work(), name="streams of servers")

    async def stop(self) -> None:
        """Listen to nobody any more."""
        ending = [task for task in (self._worker, *self._open.values()) if task is not None]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LEASE_AGAIN_SECONDS):
                    await self._streams.changed.wait()
            await asyncio.sleep(random.uniform(0.05, 0.2))  # noqa: S311 - many come at once
            self._streams.changed.clear()
            try:
                await self._follow()
            except DatabaseUnavailable as error:
                logger.warning("streams of servers could not be leased", extra={"error": str(error)})

    async def _follow(self) -> None:
        """Listen to what is to be listened to, and to nothing else."""
        gateways = self._streams.listening()
        leased = await self._keeper.lease(self._name, list(gateways)) if gateways else {}
        for row in [row for row in self._open if row not in leased]:
            self._open.pop(row).cancel()
        for row, (owner, target) in leased.items():
            if row not in self._open and owner in gateways:
                self._open[row] = asyncio.create_task(self._listen(target, owner, gateways[owner]))

    async def _listen(self, target: Target, owner: str, gateway_id: str) -> None:
        async def on_notification(message: Object) -> None:
            await self._pass_on(message, target, owner, gateway_id)

        pause = AGAIN_SECONDS
        while True:
            try:
                if not await self._client.listen(target, on_notification, self.on_request):
                    return  # The entry stays, so that a server without a stream is not asked again and again.
                pause = AGAIN_SECONDS
            except UpstreamError as error:
                logger.debug("the stream of a server ended", extra={"error": str(error)})
            await asyncio.sleep(pause)
            pause = min(2 * pause, MOST_AGAIN_SECONDS)

    async def _pass_on(self, message: Object, target: Target, owner: str, gateway_id: str) -> None:
        method = message["method"]
        if method not in LIST_CHANGED.values():
            return
        if self.on_list_changed is not None:
            await self.on_list_changed(target, method)
        with suppress(DatabaseUnavailable):
            await self._bus.publish("lists", gateway_id)
