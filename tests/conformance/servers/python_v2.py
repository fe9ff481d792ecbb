"""The suite's server on Python SDK 2, with the defaults of MCPServer and `run`: both eras at one address."""
# mypy: ignore-errors

import sys
from collections import Counter

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.shared.exceptions import MCPError
from mcp_types import EmptyResult, SetLevelRequestParams, SubscribeRequestParams, UnsubscribeRequestParams

from tests.conformance.servers.everything import offer

server = MCPServer("conformance-python-v2", version="1.0")
counts = Counter()


async def announce(context, what):
    await (context.notify_tools_changed() if what == "tools" else context.notify_prompts_changed())


async def count(context):
    session = (context.headers or {}).get("mcp-session-id")
    if session is None:
        return 1
    counts[session] += 1
    return counts[session]


async def accept(context, params):
    return EmptyResult()


offer(server, Context, UserMessage, MCPError, announce, count)

# MCPServer has no decorators for these methods of the session era.
for method, kind in {
    "logging/setLevel": SetLevelRequestParams,
    "resources/subscribe": SubscribeRequestParams,
    "resources/unsubscribe": UnsubscribeRequestParams,
}.items():
    server._lowlevel_server.add_request_handler(method, kind, accept)

if __name__ == "__main__":
    server.run(transport="streamable-http", port=int(sys.argv[1]))
