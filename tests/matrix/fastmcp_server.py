"""A server on fastmcp, both eras at one address: `python -m tests.matrix.fastmcp_server PORT`.

Runs in a virtual environment of its own (`fastmcp.lock`), because fastmcp's server part needs more than the clients do.
"""
# mypy: ignore-errors

import sys

from fastmcp import Context, FastMCP

server = FastMCP("fastmcp")


@server.tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool
async def steps(context: Context) -> str:
    """Report progress three times."""
    for step in range(3):
        await context.report_progress(step, 3)
    return "stepped"


@server.prompt
def greet(name: str) -> str:
    """Ask for a greeting."""
    return f"Say hello to {name}."


@server.resource("notes://today")
def today() -> str:
    """A note."""
    return "Nothing today."


if __name__ == "__main__":
    server.run(transport="http", host="127.0.0.1", port=int(sys.argv[1]), show_banner=False)
