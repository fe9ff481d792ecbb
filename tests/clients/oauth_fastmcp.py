"""A headed app on fastmcp: signs in through the browser, then prints the tool names and one result."""

import asyncio
import json
import os
import sys

from fastmcp import Client
from fastmcp.client.auth import OAuth


async def main() -> None:
    async with Client(os.environ["GATEWAY_URL"], auth=OAuth()) as client:
        tools = [tool.name for tool in await client.list_tools()]
        result = await client.call_tool(os.environ["TOOL"], json.loads(os.environ["ARGUMENTS"]))
    sys.stdout.write(json.dumps({"tools": tools, "text": result.content[0].text}) + "\n")


asyncio.run(main())
