"""A server and a client of fastmcp 4, with tasks of MCP 2026-07-28.

`serve PORT` runs the server. `use URL TOKEN OTHER` runs the client, and prints its results as JSON. OTHER is the token
of another client, which gets no access to the tasks. The program needs the environment of `tests/matrix/fastmcp.lock`,
because the product's environment lacks fastmcp-tasks.
"""
# mypy: ignore-errors

import asyncio
import json
import sys

from fastmcp import Client, Context, FastMCP
from fastmcp.utilities.tasks import TaskConfig
from fastmcp_tasks import TasksExtension
from fastmcp_tasks.client import _send_cancel, _send_get, call_tool_task
from mcp.shared.exceptions import MCPError
from mcp_types import ElicitRequest, ElicitRequestFormParams, InputRequiredResult

SCHEMA = {"type": "object", "properties": {"value": {"type": "string"}}, "required": ["value"]}

server = FastMCP("tasks")
server.add_extension(TasksExtension(url="memory://"))


@server.tool(task=TaskConfig(mode="required"))
async def ask(context: Context) -> str | InputRequiredResult:
    """Ask for a name, and return a greeting."""
    if not context.input_responses:
        params = ElicitRequestFormParams(message="Who is there?", requested_schema=SCHEMA)
        return InputRequiredResult(input_requests={"who": ElicitRequest(params=params)})
    return f"Hello {context.input_responses['who'].content['value']}"


@server.tool(task=TaskConfig(mode="required"))
async def wait() -> str:
    """Wait until cancelled."""
    await asyncio.sleep(600)
    return "waited"


async def use(url: str, token: str, other: str) -> dict[str, object]:
    async def who(message: str, response_type: type, params: object, context: object) -> object:
        return response_type(value="Ana")

    async with (
        Client(url, auth=token, mode="2026-07-28", elicitation_handler=who) as client,
        Client(url, auth=other, mode="2026-07-28") as stranger,
    ):
        task = await call_tool_task(client, "ask")
        waiting = await task.wait(state="input_required")
        done = await task.result()
        slow = await call_tool_task(client, "wait")
        failures = {
            "get": await failure(_send_get(stranger.session, slow.task_id)),
            "cancel": await failure(_send_cancel(stranger.session, slow.task_id)),
            "made up": await failure(_send_get(stranger.session, "made up")),
        }
        await slow.cancel()
        ended = await slow.wait()
        return {
            "task": task.task_id,
            "waiting": [waiting.task_id, waiting.status],
            "done": done.content[0].text,
            "failures": failures,
            "ended": [ended.task_id == slow.task_id, ended.status],
        }


async def failure(asked: object) -> object:
    try:
        return str(await asked)
    except MCPError as error:
        return [error.error.code, error.error.message]


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        server.run(transport="http", host="127.0.0.1", port=int(sys.argv[2]), show_banner=False)
    else:
        print(json.dumps(asyncio.run(use(*sys.argv[2:]))))  # noqa: T201 - a program
