"""Features of `python_v1.py` that gateway tests use and the conformance suite does not check."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import mcp_types as types
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import TextContent

from tests.conformance import fixtures

pytestmark = [
    pytest.mark.full,
    # SDK warnings about session-era features that 2026-07-28 no longer has.
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]

ASKS_THREE = "test_input_required_result_multiple_inputs"
ASKS_TWICE = "test_input_required_result_multi_round"
WATCHED = "test://watched-resource"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    fixtures.install_v1()
    with fixtures.running("python-v1") as url:
        yield url


async def sample(context: Any, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
    return types.CreateMessageResult(role="assistant", content=TextContent(text="Hi."), model="m")


async def enter(context: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
    assert isinstance(params, types.ElicitRequestFormParams)
    return types.ElicitResult(action="accept", content=dict.fromkeys(params.requested_schema["properties"], "Ann"))


async def roots(context: Any) -> types.ListRootsResult:
    return types.ListRootsResult.model_validate({"roots": [{"uri": "file:///work"}]})


@asynccontextmanager
async def connected(url: str, **callbacks: Any) -> AsyncIterator[Client]:
    async with Client(streamable_http_client(url), mode="legacy", **callbacks) as client:
        yield client


def text_of(result: Any) -> str:
    assert isinstance(result.content[0], TextContent)
    return result.content[0].text


async def test_tool_asks_person_model_and_roots(server: str) -> None:
    able = {"sampling_callback": sample, "elicitation_callback": enter, "list_roots_callback": roots}
    async with connected(server, **able) as client:
        at_once = text_of(await client.call_tool(ASKS_THREE, {}))
        in_turn = text_of(await client.call_tool(ASKS_TWICE, {}))

    assert at_once.replace(" ", "") == 'action=accept,content={"name":"Ann"};Hi.;file:///work'
    assert in_turn.count("Ann") == 2


async def test_client_that_can_do_nothing_is_told_so(server: str) -> None:
    async with connected(server) as client:
        result = await client.call_tool(ASKS_THREE, {})

    assert result.is_error
    assert "The client refused" in text_of(result)


async def test_session_hears_of_changes_and_of_what_it_watches(server: str) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def hear(message: Any) -> None:
        heard.put_nowait(message.method.removeprefix("notifications/"))

    async def heard_until(method: str) -> list[str]:
        before = []
        async with asyncio.timeout(10):
            while (latest := await heard.get()) != method:
                before.append(latest)
        return before

    async with connected(server, message_handler=hear) as client:
        while heard.empty():  # Repeat: messages sent before the client opens its standing stream are lost.
            await client.call_tool("test_trigger_tool_change", {})
        await client.subscribe_resource(WATCHED)
        await client.call_tool("test_trigger_resource_update", {})
        await heard_until("resources/updated")
        await client.unsubscribe_resource(WATCHED)
        await client.call_tool("test_trigger_resource_update", {})
        await client.call_tool("test_trigger_prompt_change", {})

        assert "resources/updated" not in await heard_until("prompts/list_changed")
