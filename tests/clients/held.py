"""Call a tool with a client's default time-outs, and print the text: `python held.py NAME URL TOKEN TOOL [MODE]`."""
# mypy: ignore-errors

import asyncio
import sys

ARGUMENTS = {"n": 1}


async def fastmcp(url, token, tool, mode):
    from fastmcp import Client

    async with Client(url, auth=token, mode=mode) as client:
        return (await client.call_tool(tool, ARGUMENTS, raise_on_error=False)).content


async def openai_agents(url, token, tool, mode):
    from agents.mcp import MCPServerStreamableHttp

    async with MCPServerStreamableHttp({"url": url, "headers": {"Authorization": f"Bearer {token}"}}) as server:
        return (await server.call_tool(tool, ARGUMENTS)).content


PROGRAMS = {"fastmcp": fastmcp, "openai-agents": openai_agents}

if __name__ == "__main__":
    name, url, token, tool, *mode = sys.argv[1:]
    content = asyncio.run(PROGRAMS[name](url, token, tool, *(mode or [""])))
    sys.stdout.write(content[0].text)
