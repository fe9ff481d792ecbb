"""The MCP client for synchronous code: pages, the REST API, commands and chores."""

import asyncio
from typing import NamedTuple

from wire import versions
from wire.client import McpClient
from wire.jsonrpc import Object
from wire.pool import Transport
from wire.rpc_messages import MODERN, ServerInfo, Target


class Discovery(NamedTuple):
    """What a server speaks ("session" or "modern"), what it says of itself, and its usable tools as it sent them."""

    era: str
    info: ServerInfo
    tools: list[Object]


def discover(target: Target, transport: Transport, *, seconds: float) -> Discovery:
    """Find out what a server speaks and offers; takes `seconds` at most, and a moment to end the session.

    The conversation has an event loop of its own and closes `transport`. It needs a thread in which no loop runs: one
    that serves a synchronous view, or that of a command. Raises an UpstreamError.
    """
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(_discover(target, transport, seconds))


async def _discover(target: Target, transport: Transport, seconds: float) -> Discovery:
    infos: list[ServerInfo] = []
    async with transport, McpClient(transport, introduced=lambda _, info: infos.append(info)) as client:
        tools = (await client.list_tools(target, seconds=seconds)).tools
        era = client.era(target)
        modern = era == MODERN
        # A server may turn out to speak the other era than it was introduced in.
        unsaid = ServerInfo(versions.MODERN if modern else "", {}, "")
        info = next((info for info in reversed(infos) if (info.version == versions.MODERN) == modern), unsaid)
        return Discovery(era, info, tools)
