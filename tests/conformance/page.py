"""An MCP server that imitates a browser, with one page per session: `python -m tests.conformance.page PORT`.

Runs on Python SDK 1 in a separate environment, and speaks only the session era, like most servers that control a
browser. `snapshot` reveals a lost session by a blank page, and mixed-up sessions by the URL of another session's page.
"""
# mypy: ignore-errors

import asyncio
import sys
from collections import defaultdict
from weakref import WeakKeyDictionary

from mcp.server.fastmcp import Context, FastMCP
from mcp.shared.message import ServerMessageMetadata
from mcp.types import ListRootsRequest, ListRootsResult, SamplingMessage, ServerRequest, TextContent
from pydantic import BaseModel

server = FastMCP("page", port=int(sys.argv[1]), log_level="WARNING")
pages = WeakKeyDictionary()
STEP_SECONDS = 0.1


class Answer(BaseModel):
    name: str


def page_of(context):
    return pages.setdefault(context.session, defaultdict(int, address="about:blank"))


@server.tool()
def navigate(url: str, context: Context) -> str:
    """Open a URL on this session's page."""
    page_of(context)["address"] = url
    return f"opened {url}"


@server.tool()
def snapshot(context: Context) -> str:
    """Return the URL of this session's page, and how many loads of it were stopped."""
    return f"at {page_of(context)['address']}, stopped {page_of(context)['stopped']}"


@server.tool()
async def load(seconds: float, context: Context) -> str:
    """Load the page for `seconds`. If the client cancels the call, the load is counted as stopped."""
    try:
        for step in range(round(seconds / STEP_SECONDS)):
            await context.report_progress(step, seconds / STEP_SECONDS)
            await asyncio.sleep(STEP_SECONDS)
    except asyncio.CancelledError:
        page_of(context)["stopped"] += 1
        raise
    return "loaded"


@server.tool()
async def dialog(context: Context) -> str:
    """Show a dialog on the page and wait for the person's answer."""
    answered = await context.elicit("Who are you?", Answer)
    return f"{answered.action}: {answered.data.name}" if answered.action == "accept" else answered.action


@server.tool()
async def summary(context: Context) -> str:
    """Let the client's model summarise the page."""
    wanted = SamplingMessage(role="user", content=TextContent(type="text", text="Sum it up."))
    said = await context.session.create_message([wanted], max_tokens=100, related_request_id=context.request_id)
    return said.content.text


@server.tool()
async def folders(context: Context) -> str:
    """Request the client's roots on this call's stream; the SDK's `list_roots` would use the standing stream."""
    on_this_stream = ServerMessageMetadata(related_request_id=context.request_id)
    asked = ServerRequest(ListRootsRequest(method="roots/list"))
    told = await context.session.send_request(asked, ListRootsResult, metadata=on_this_stream)
    return ", ".join(str(root.uri) for root in told.roots)


if __name__ == "__main__":
    server.run(transport="streamable-http")
