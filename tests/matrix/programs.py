"""The Python clients in the compatibility table: `python -m tests.matrix.programs NAME`, in that client's environment.

A client reads {"mode": ..., "targets": {server: {"url", "token", "asks"}}} from standard input, and prints
{server: {ability: reason}}. The reason says why the ability failed; it is "" if the ability works. Abilities that the
client lacks are left out.
"""
# mypy: ignore-errors

import asyncio
import contextlib
import json
import os
import re
import sys

SECONDS = 60
CANCEL_AFTER_SECONDS = 0.5
SAMPLED = "said by a model"
ROOT = "file:///home/ana/work"


def filled(schema):
    """Return content that satisfies an elicitation form."""
    wanted = (schema or {}).get("properties", {})
    return {name: value_for(wanted[name]) for name in schema.get("required", wanted) if name in wanted}


def value_for(field):
    if "default" in field:
        return field["default"]
    if "enum" in field:
        return field["enum"][0]
    kinds = {"boolean": True, "integer": field.get("minimum", 1), "number": field.get("minimum", 1)}
    formats = {"email": "ana@example.com", "date": "2026-01-01", "uri": "https://example.com/"}
    return kinds.get(field.get("type"), formats.get(field.get("format"), "Ana"))


class Session:
    """A client that uses the session class of the Python SDK 1 or 2."""

    sampling = roots = None

    def __init__(self, session):
        self.session = session

    async def list(self):
        return str(await self.session.list_tools())

    async def call(self, name, arguments, **options):
        result = await self.session.call_tool(name, arguments, **options)
        failed = getattr(result, "isError", False) or getattr(result, "is_error", False)
        if failed:
            raise RuntimeError(f"isError: {result.content}")
        return str(result)

    async def prompt(self, name, arguments):
        return str(await self.session.get_prompt(name, arguments))

    async def resource(self, uri):
        return str(await self.session.read_resource(uri))

    async def progress(self, name, arguments):
        heard = []

        async def hear(*told):
            heard.append(told)

        await self.call(name, arguments, progress_callback=hear)
        return heard

    async def cancel(self, name, arguments):
        """Cancel the call; SDK 2 notifies the server by itself."""
        call = asyncio.create_task(self.call(name, arguments))
        await asyncio.sleep(CANCEL_AFTER_SECONDS)
        await self.tell_cancelled()
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await call

    async def tell_cancelled(self):
        pass


class Host(Session):
    """A client that supports sampling and roots."""

    sampling = roots = True


class SessionOfSdk1(Host):
    async def resource(self, uri):
        from pydantic import AnyUrl

        return str(await self.session.read_resource(AnyUrl(uri)))

    async def tell_cancelled(self):
        """Send notifications/cancelled to the server; SDK 1 does not do so by itself."""
        from mcp import types

        params = types.CancelledNotificationParams(requestId=self.session._request_id - 1, reason="cancelled")
        told = types.CancelledNotification(method="notifications/cancelled", params=params)
        await self.session.send_notification(types.ClientNotification(told))


@contextlib.asynccontextmanager
async def sdk_1(url, token, mode):
    from mcp import ClientSession, types
    from mcp.client.streamable_http import streamablehttp_client

    async def answer(context, params):
        return types.ElicitResult(action="accept", content=filled(params.requestedSchema))

    async def sample(context, params):
        said = types.TextContent(type="text", text=SAMPLED)
        return types.CreateMessageResult(role="assistant", content=said, model="none")

    async def name_roots(context):
        return types.ListRootsResult(roots=[types.Root(uri=ROOT)])

    callbacks = {"elicitation_callback": answer, "sampling_callback": sample, "list_roots_callback": name_roots}
    async with (
        streamablehttp_client(url, headers=bearer(token)) as (read, write, _),
        ClientSession(read, write, **callbacks) as session,
    ):
        await session.initialize()
        yield SessionOfSdk1(session)


async def answer_on_sdk_2(context, params):
    from mcp_types import ElicitResult

    return ElicitResult(action="accept", content=filled(params.requested_schema))


async def sample_on_sdk_2(context, params):
    from mcp_types import CreateMessageResult, TextContent

    return CreateMessageResult(role="assistant", content=TextContent(type="text", text=SAMPLED), model="none")


async def roots_on_sdk_2(context):
    from mcp_types import ListRootsResult, Root

    return ListRootsResult(roots=[Root(uri=ROOT)])


ON_SDK_2 = {
    "elicitation_callback": answer_on_sdk_2,
    "sampling_callback": sample_on_sdk_2,
    "list_roots_callback": roots_on_sdk_2,
}


@contextlib.asynccontextmanager
async def sdk_2(url, token, mode):
    import httpx2
    from mcp.client import Client
    from mcp.client.streamable_http import streamable_http_client

    async with httpx2.AsyncClient(headers=bearer(token), timeout=SECONDS) as http:
        transport = streamable_http_client(url, http_client=http)
        async with Client(transport, mode=mode, **ON_SDK_2) as client:
            yield Host(client)


@contextlib.asynccontextmanager
async def mcp_remote(url, token, mode):
    """A stdio-only client, with mcp-remote as its server."""
    from mcp.client import Client
    from mcp.client.stdio import StdioServerParameters, stdio_client

    header = ["--header", f"Authorization: Bearer {token}"] if token else []
    program = StdioServerParameters(
        command="mcp-remote",
        args=[url, *header, "--allow-http", "--transport", "http-only", "--silent"],
        env={name: os.environ[name] for name in ("PATH", "HOME")},
    )
    async with Client(stdio_client(program), mode="legacy", **ON_SDK_2) as client:
        yield Host(client)


class Fastmcp(Host):
    async def call(self, name, arguments, progress_callback=None):
        result = await self.session.call_tool(name, arguments, progress_handler=progress_callback)
        return str(result)


@contextlib.asynccontextmanager
async def fastmcp(url, token, mode):
    from fastmcp import Client
    from mcp_types import CreateMessageResult, TextContent

    async def sample(messages, params, context):
        return CreateMessageResult(role="assistant", content=TextContent(type="text", text=SAMPLED), model="none")

    async def answer(message, response_type, params, context):
        return filled(params.requested_schema)

    handlers = {"elicitation_handler": answer, "sampling_handler": sample, "roots": [ROOT]}
    async with Client(url, auth=token or None, mode=mode or "auto", **handlers) as client:
        yield Fastmcp(client)


class Langchain(Session):
    """LangChain's tools, which all use one given MCP session instead of a new session per call."""

    def __init__(self, session, heard):
        super().__init__(session)
        self.heard = heard

    async def tools(self):
        from langchain_mcp_adapters.tools import load_mcp_tools

        return await load_mcp_tools(self.session, callbacks=self.heard.callbacks)

    async def list(self):
        return str([tool.name for tool in await self.tools()])

    async def call(self, name, arguments):
        return str(await (await self.tool(name)).ainvoke(arguments))

    async def tool(self, name):
        """Wait until the tool is listed, because some servers add tools only once a client with the right capabilities
        has connected.
        """
        async with asyncio.timeout(SECONDS):
            while True:
                for tool in await self.tools():
                    if tool.name == name:
                        return tool
                await asyncio.sleep(0.1)

    async def prompt(self, name, arguments):
        from langchain_mcp_adapters.prompts import load_mcp_prompt

        return str(await load_mcp_prompt(self.session, name, arguments=arguments))

    async def resource(self, uri):
        from langchain_mcp_adapters.resources import load_mcp_resources

        return str([blob.as_string() for blob in await load_mcp_resources(self.session, uris=uri)])

    async def progress(self, name, arguments):
        self.heard.clear()
        await self.call(name, arguments)
        return list(self.heard)

    cancel = None


class Heard(list):
    callbacks = None


@contextlib.asynccontextmanager
async def langchain(url, token, mode):
    from langchain_mcp_adapters.callbacks import Callbacks
    from langchain_mcp_adapters.client import MultiServerMCPClient
    from mcp.types import ElicitResult

    heard = Heard()

    async def hear(*told):
        heard.append(told)

    async def answer(context, params, where):
        return ElicitResult(action="accept", content=filled(params.requestedSchema))

    heard.callbacks = Callbacks(on_progress=hear, on_elicitation=answer)
    reached = {"server": {"transport": "streamable_http", "url": url, "headers": bearer(token)}}
    async with MultiServerMCPClient(reached, callbacks=heard.callbacks).session("server") as session:
        yield Langchain(session, heard)


class OpenaiAgents(Session):
    progress = cancel = elicitation = None


@contextlib.asynccontextmanager
async def openai_agents(url, token, mode):
    from agents.mcp import MCPServerStreamableHttp

    params = {"url": url, "headers": bearer(token), "timeout": SECONDS}
    async with MCPServerStreamableHttp(params, client_session_timeout_seconds=SECONDS) as server:
        yield OpenaiAgents(server)


class PydanticAi(Session):
    def __init__(self, toolset, heard):
        super().__init__(toolset)
        self.heard = heard

    async def call(self, name, arguments):
        return str(await self.session.direct_call_tool(name, arguments))

    async def progress(self, name, arguments):
        self.heard.clear()
        await self.call(name, arguments)
        return list(self.heard)

    cancel = None


@contextlib.asynccontextmanager
async def pydantic_ai(url, token, mode):
    from pydantic_ai.mcp import MCPToolset

    heard = []

    async def hear(*told):
        heard.append(told)

    async def answer(message, response_type, params, context):
        return filled(params.requestedSchema)

    async with MCPToolset(url, headers=bearer(token), elicitation_handler=answer, progress_handler=hear) as toolset:
        yield PydanticAi(toolset, heard)


def bearer(token):
    return {"Authorization": f"Bearer {token}"} if token else {}


PROGRAMS = {
    "sdk-1": sdk_1,
    "sdk-2": sdk_2,
    "mcp-remote": mcp_remote,
    "fastmcp": fastmcp,
    "langchain": langchain,
    "openai-agents": openai_agents,
    "pydantic-ai": pydantic_ai,
}


OWN_METHODS = {"list", "prompt", "resource", "progress", "cancel"}


async def does(client, ability, ask):
    """Return "" if the request succeeds, the reason if it fails, or None if the client lacks the ability."""
    method = getattr(client, ability if ability in OWN_METHODS else "call")
    if method is None or getattr(client, ability, True) is None:
        return None
    if ability == "list":
        return lacks(await client.list(), ask)
    if ability == "resource":
        return lacks(await client.resource(ask["name"]), ask)
    if ability == "progress":
        return "" if await client.progress(ask["name"], ask["arguments"]) else "no progress was heard"
    if ability == "cancel":
        first, second = ask
        await method(first["name"], first["arguments"])
        await asyncio.sleep(CANCEL_AFTER_SECONDS)
        return lacks(await client.call(second["name"], second["arguments"]), second)
    asks = ask if ability == "session" else [ask]
    return next(filter(None, [lacks(await method(one["name"], one["arguments"]), one) for one in asks]), "")


def lacks(text, ask):
    return "" if re.search(ask["says"], text) else f"answered {text[:200]}"


async def tried(program, mode, target):
    """Return the results of the target, over one connection."""
    found = {}
    try:
        async with program(target["url"], target["token"], mode) as client:
            for ability, ask in target["asks"].items():
                try:
                    async with asyncio.timeout(SECONDS):
                        found[ability] = await does(client, ability, ask)
                except Exception as error:  # noqa: BLE001 - whatever it says is the finding
                    found[ability] = told(error)
    except BaseException as error:
        if not isinstance(error, (Exception, BaseExceptionGroup, asyncio.CancelledError)):
            raise
        for ability in target["asks"]:
            found.setdefault(ability, f"connection: {told(error)}")
    return {ability: reason for ability, reason in found.items() if reason is not None}


def told(error):
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:300]


async def main(name):
    given = json.load(sys.stdin)
    found = {}
    for server, target in given["targets"].items():
        found[server] = await tried(PROGRAMS[name], given["mode"], target)
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
