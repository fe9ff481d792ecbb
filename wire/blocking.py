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
    """The eras a server speaks and its features by kind. Kinds that could not be listed are missing."""

    spoken: Spoken
    features: dict[str, list[Definition]]


def discover_blocking(
    target: Target, transport: Transport, *, seconds: float, kinds: Sequence[str] = (TOOL,)
) -> Discovery:
    """Find out which eras a server speaks and which features it lists, within `seconds`.

    Runs its own event loop and closes `transport`, so it must be called in a thread without a running loop, such as
    that of a synchronous view or a command. Raises an UpstreamError when the first kind cannot be listed.
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
                # The server lists its tools, so failing at another kind is not an error.
        return Discovery(spoken, features)
