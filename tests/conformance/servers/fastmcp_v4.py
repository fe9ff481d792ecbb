"""The suite's server on FastMCP 4, with the defaults of its constructor and `run`: both eras at one address.

Runs in its own virtual environment (tests/matrix/fastmcp.lock).
"""
# mypy: ignore-errors

import sys

from fastmcp import Context, FastMCP
from fastmcp.prompts import Message
from mcp.shared.exceptions import MCPError
from mcp_types import PromptListChangedNotification, ToolListChangedNotification

from tests.conformance.servers.everything import offer

server = FastMCP("conformance-fastmcp-4")


async def announce(context, what):
    await context.send_notification(
        ToolListChangedNotification() if what == "tools" else PromptListChangedNotification()
    )


async def count(context):
    counted = (await context.get_state("count") or 0) + 1
    await context.set_state("count", counted)
    return counted


offer(server, Context, Message, MCPError, announce, count)

if __name__ == "__main__":
    server.run(transport="http", port=int(sys.argv[1]))
