"""The MCP client for synchronous code: pages, the REST API, commands and chores."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from wire import versions
from wire.client import McpClient
from wire.definitions import TOOL, Definition
from wire.errors import UpstreamError
from wire.pool import Transport
from wire.rpc_messages import MODERN, ServerInfo, Target


class Discovery(NamedTuple):
    """What a server speaks ("session" or "modern"), what it says of itself, and what it lists, by kind.

    A kind that it could not list is not among these.
    """

    era: str
    info: ServerInfo
    features: dict[str, list[Definition]]


def discover(target: Target, transport: Transport, *, seconds: float, kinds: Sequence[str] = (TOOL,)) -> Discovery:
    """Find out what a server speaks and offers; takes `seconds` at most, and a moment to end the session.

    The conversation has an event loop of its own and closes `transport`. It needs a thread in which no loop runs: one
    that serves a synchronous view, or that of a command. Raises an UpstreamError when it does not list the first kind.
    """
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(_discover(target, transport, seconds, kinds))


async def _discover(target: Target, transport: Transport, seconds: float, kinds: Sequence[str]) -> Discovery:
    first, *others = kinds
    infos: list[ServerInfo] = []
    async with transport, McpClient(transport, introduced=lambda _, info: infos.append(info)) as client:
        began = asyncio.get_running_loop().time()
        features = {first: await client.list_features(target, first, seconds=seconds)}
        for kind in others:
            left = seconds - (asyncio.get_running_loop().time() - began)
            try:
                features[kind] = await client.list_features(target, kind, seconds=left)
            except UpstreamError:  # The server is there and lists its tools; that it fails at this says nothing more.
                continue
        era = client.era(target)
        modern = era == MODERN
        # A server may turn out to speak the other era than it was introduced in.
        unsaid = ServerInfo(versions.MODERN if modern else "", {}, "")
        info = next((info for info in reversed(infos) if (info.version == versions.MODERN) == modern), unsaid)
        return Discovery(era, info, features)
