"""A headed app on the Python SDK: signs in through the browser, then prints the tool names and one result."""

import asyncio
import json
import os
import subprocess
import sys
from urllib.parse import parse_qs

import httpx2
from mcp.client import Client
from mcp.client.auth import OAuthClientProvider, TokenStorage
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from mcp_types import TextContent
from pydantic import AnyUrl


class InMemory(TokenStorage):
    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None
        self.client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


async def main() -> None:
    answer: asyncio.Future[dict[str, list[str]]] = asyncio.get_running_loop().create_future()

    async def called_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = (await reader.readline()).split()[1].decode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()
        answer.set_result(parse_qs(target.partition("?")[2]))

    async def callback() -> AuthorizationCodeResult:
        came = await answer
        return AuthorizationCodeResult(code=came["code"][0], state=came["state"][0], iss=came["iss"][0])

    async def browse(url: str) -> None:
        await asyncio.to_thread(subprocess.run, [os.environ["BROWSER"], url], check=True)

    url = os.environ["GATEWAY_URL"]
    listener = await asyncio.start_server(called_back, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    metadata = OAuthClientMetadata(
        client_name="Python SDK",
        redirect_uris=[AnyUrl(f"http://127.0.0.1:{port}/callback")],
        token_endpoint_auth_method="none",
    )
    signing_in = OAuthClientProvider(url, metadata, InMemory(), browse, callback)
    async with (
        httpx2.AsyncClient(auth=signing_in, timeout=30) as http,
        Client(streamable_http_client(url, http_client=http), mode=sys.argv[1]) as client,
    ):
        tools = [tool.name for tool in (await client.list_tools()).tools]
        result = await client.call_tool(os.environ["TOOL"], json.loads(os.environ["ARGUMENTS"]))
    assert isinstance(result.content[0], TextContent)
    sys.stdout.write(json.dumps({"tools": tools, "text": result.content[0].text}) + "\n")


asyncio.run(main())
