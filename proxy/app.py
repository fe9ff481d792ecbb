"""The proxy as an ASGI app: one runtime per process, opened and closed by the app that mounts it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from proxy import metrics
from proxy.access.decision import SETUP_TO_FIND_AGAIN, Access
from proxy.call import Endpoint, Parts
from proxy.config import Config, Traces
from proxy.handshake import Eras, Handshake
from proxy.holds import Holds
from proxy.lists import Lists
from proxy.message_router import RouterParts
from proxy.refresh import Refresher
from proxy.request import PREFIX
from proxy.server_requests import ServerRequests, SuspendedCalls
from proxy.store.bus import Bell, Bus, PendingRequests
from proxy.store.call_log import CallWriter, PayloadRecorder
from proxy.store.events import StreamEvents
from proxy.store.pg import StatePool
from proxy.store.rate_limits import Limits
from proxy.store.sessions import SessionKeeper, StoredSessions
from proxy.store.usage import UsageTracker
from proxy.streams import Resumption, Streams
from proxy.upstream_streams import ServerStreams
from wire.cipher import Cipher
from wire.client import McpClient
from wire.fair_queue import ByteBudget
from wire.guard import Guard
from wire.http import Transport
from wire.oauth_client import MOST_BYTES
from wire.reader_process import ReaderProcess

if TYPE_CHECKING:
    from proxy.tracing import Tracer

__all__ = ["PREFIX", "Config", "Traces", "runtime"]


@asynccontextmanager
async def runtime(config: Config) -> AsyncIterator[Endpoint]:
    """Yield the app that serves the paths under PREFIX, and stop its components when the block ends."""
    access = Access(config.conninfo, config.token_keys, config.max_waiting)
    state = StatePool(config.conninfo)
    bus = Bus(config.conninfo, state, SETUP_TO_FIND_AGAIN)
    writer = CallWriter(
        config.conninfo,
        bus=bus,
        connections=config.log_connections,
        max_waiting=config.max_waiting,
        observe=metrics.COMMIT_ROWS.observe,
    )
    limits = Limits(config.conninfo, config.limit_seconds, config.max_waiting)
    streams = Streams(bus, state, config.public_url)
    usage = UsageTracker(config.conninfo, config.unknown_token_seconds, streams.sessions)
    bus.on("sessions", usage.write_sessions)
    cipher = Cipher(config.encryption_keys)
    guard = Guard(config.private_upstreams, config.own_endpoints, proxy=config.outbound_proxy, runner=config.runner)
    budget = ByteBudget(config.answers_limit, config.queue_seconds)
    transport = Transport(
        guard,
        limit=config.answer_limit,
        listener=config.listener,
        secret=config.listener_secret,
        budget=budget,
    )
    mcp_client = McpClient(
        transport,
        writer.may_begin,
        store=StoredSessions(state, cipher),
        introduced=usage.introduced,
        contradicted=lambda target: eras.doubt(target),  # noqa: PLW0108 - `eras` needs this client
        workers=config.workers,
        queue_seconds=config.queue_seconds,
    )
    entered, named = (Transport(each, limit=MOST_BYTES) for each in (guard, guard.for_hosts_of_others()))
    async with (
        _tracer(config.traces) as tracer,
        transport,
        entered,
        named,
        mcp_client as client,
        AsyncExitStack() as running,
    ):
        refresher = Refresher(state, entered, named, cipher)
        eras = Eras(state, client, usage)
        lists = Lists(client, access, state, cipher, usage, config.list_seconds, refresher, eras)
        bell = Bell(bus)
        pending = PendingRequests(state, bell, cipher)
        redactor = ReaderProcess()  # A second reader process: redacting payloads should not wait for large answers.
        running.callback(redactor.close)
        recorder = PayloadRecorder(cipher, redactor)
        requests = ServerRequests(client, pending, writer, recorder, cipher, config.answer_seconds)
        suspended = SuspendedCalls(state, bell, pending, requests, cipher, streams)
        holds = Holds(state, bus, cipher, requests, config.public_url)
        streams.before_stop.append(holds.end_waits)
        keeper = SessionKeeper(state, cipher, client, config.session_hours)
        events = StreamEvents(state, bus, cipher)
        router = RouterParts(streams, keeper, client, bus, requests, pending, events)
        server_streams = ServerStreams(router, access, lists, cipher)
        connections: dict[str, Access | Limits | CallWriter] = {"access": access, "limits": limits, "record": writer}
        metrics.watch(
            {name: partial(getattr, part, "waiting") for name, part in connections.items()},
            {name: partial(getattr, part, "fault") for name, part in connections.items()},
            partial(getattr, transport, "idle"),
            client.at_servers,
        )
        # Components stop in reverse order, even if one raises: the writer stops after everything that creates rows.
        running.push_async_callback(state.stop)
        await state.start()
        for part in (usage, writer, limits, access, bus, streams):
            running.push_async_callback(part.stop)
            part.start()
        for stop in (refresher.stop, eras.stop, lists.stop, holds.stop):
            running.push_async_callback(stop)
        for looping in (keeper, server_streams, requests, suspended):
            running.push_async_callback(looping.stop)
            looping.start()
        running.push_async_callback(events.stop)
        for part in (access, limits, writer, usage, bus):
            await part.first_attempt()
        parts = Parts(
            access=access,
            limits=limits,
            writer=writer,
            recorder=recorder,
            usage=usage,
            client=client,
            budget=budget,
            lists=lists,
            handshake=Handshake(keeper),
            refresher=refresher,
            requests=requests,
            suspended=suspended,
            holds=holds,
            streams=streams,
            server_streams=server_streams,
            resumption=Resumption(events, keeper, server_streams),
            tracer=tracer,
        )
        yield Endpoint(config, parts)


@asynccontextmanager
async def _tracer(config: Traces | None) -> AsyncIterator[Tracer | None]:
    """Yield the tracer. OpenTelemetry is imported only here, because it takes 7 MB and a third of a second."""
    if config is None:
        yield None
        return
    from proxy.tracing import Tracer  # noqa: PLC0415

    tracer = Tracer(config)
    metrics.watch_spans(tracer.counts)
    try:
        yield tracer
    finally:
        await asyncio.to_thread(tracer.stop)
