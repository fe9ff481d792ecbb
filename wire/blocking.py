"""The MCP client for synchronous code: pages, the REST API, commands and chores."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from wire.client import McpClient, Spoken
from wire.definitions import TOOL, Definition
from wire.errors import UpstreamError
from wire.pool import Transport
from wire.rpc_messages import MODERN, Target, era_for


class Discovery(NamedTuple):
    """The eras a server speaks, and what it lists, by kind. A kind that it could not list is not among these."""

    spoken: Spoken
    features: dict[str, list[Definition]]


def discover(target: Target, transport: Transport, *, seconds: float, kinds: Sequence[str] = (TOOL,)) -> Discovery:
    """Find out what a server speaks and offers; takes `seconds` at most, and a moment to end the session.

    The conversation has an event loop of its own and closes `transport`. It needs a thread in which no loop runs: one
    that serves a synchronous view, or that of a command. Raises an UpstreamError when it does not list the first kind.
    """
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(_discover(target, transport, seconds, kinds))


async def _discover(target: Target, transport: Transport, seconds: float, kinds: Sequence[str]) -> Discovery:
    async with transport, McpClient(transport) as client:
        ends = asyncio.get_running_loop().time() + seconds
        spoken = await client.probe(target._replace(timeout_s=min(target.timeout_s, seconds)))
        target = target._replace(era=era_for(spoken.eras, MODERN))
        features = {}
        for kind in kinds:
            left = max(ends - asyncio.get_running_loop().time(), 0.001)
            try:
                features[kind] = (await client.list_features(target, kind, seconds=left)).definitions
            except UpstreamError:
                if kind == kinds[0]:
                    raise
                # The server is there and lists its tools; that it fails at this says nothing more.
        return Discovery(spoken, features)
