"""The proxy as an ASGI app: one runtime per process, opened and closed by whoever mounts it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from proxy import metrics
from proxy.access.query import Access
from proxy.config import Config
from proxy.dispatch import Dispatcher
from proxy.endpoint import Endpoint
from proxy.request_headers import PREFIX
from proxy.store.call_writer import CallWriter
from proxy.store.rate_limits import Limits
from proxy.store.usage import UsageTracker
from proxy.tools_call import ToolCaller
from proxy.tools_list import ToolLister
from wire.cipher import Cipher
from wire.client import McpClient
from wire.guard import Guard
from wire.pool import Transport

__all__ = ["PREFIX", "Config", "runtime"]


@asynccontextmanager
async def runtime(config: Config) -> AsyncIterator[Endpoint]:
    """The app that serves paths under PREFIX, for as long as the block runs."""
    access = Access(config.conninfo, config.token_keys, config.room)
    writer = CallWriter(config.conninfo, lanes=config.record_lanes, room=config.room, observe=metrics.BATCHES.observe)
    limits = Limits(config.conninfo, config.limit_seconds, config.room)
    marks = UsageTracker(config.conninfo, config.stranger_seconds)
    cipher = Cipher(config.encryption_keys)
    transport = Transport(
        Guard(config.private_upstreams, config.own_endpoints),
        limit=config.answer_limit,
        listener=config.listener,
        secret=config.listener_secret,
    )
    mcp_client = McpClient(
        transport,
        marks.era,
        lambda: not writer.refuses,
        workers=config.workers,
        queue_seconds=config.queue_seconds,
    )
    async with transport, mcp_client as client:
        lister = ToolLister(client, cipher, marks, config.list_seconds)
        caller = ToolCaller(client, lister, cipher, marks)
        methods = Dispatcher(lister, caller, config.public_url, config.token_calls)
        lanes: dict[str, Access | Limits | CallWriter] = {"access": access, "limits": limits, "record": writer}
        metrics.watch(
            {name: partial(getattr, part, "waiting") for name, part in lanes.items()},
            {name: partial(getattr, part, "fault") for name, part in lanes.items()},
            lambda: transport.idle,
        )
        for part in (access, limits, writer, marks):
            part.start()
        for part in (access, limits, writer, marks):
            await part.tried()
        try:
            yield Endpoint(config, access, limits, writer, marks, methods)
        finally:
            for part in (access, limits, writer, marks):
                await part.stop()
