"""The Python SDK at its default time-outs: a held call runs once after approval, and the SDK gets the answer."""

import contextlib
import json
from typing import Any

import httpx2
import pytest
from mcp.client import Client
from mcp.client.client import ConnectMode
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from approvals.models import Hold, HoldState
from tests.approvals.conftest import TOOL, Desk

pytestmark = pytest.mark.full
MODES = ("legacy", "2026-07-28")


def python(desk: Desk, mode: ConnectMode = "legacy", seconds: float | None = None) -> Any:
    """Return the outcome of one call of the Python SDK: its result, or its error."""
    import asyncio

    async def call() -> None:
        headers = {"Authorization": f"Bearer {desk.agent.secret}"}
        async with httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(30, read=300)) as http:
            transport = streamable_http_client(desk.agent.url, http_client=http)
            async with Client(transport, mode=mode) as client:
                try:
                    outcome.append(await client.call_tool(TOOL, {"n": 1}, read_timeout_seconds=seconds))
                except MCPError as error:
                    outcome.append(error)

    outcome: list[Any] = []
    with contextlib.suppress(ExceptionGroup):  # The SDK fails to deliver the answer to a call that it gave up.
        asyncio.run(call())
    return outcome[0]


def ran(desk: Desk, text: str) -> bool:
    """Return True if `text` is the server's answer, and the server was called once."""
    return "count" in json.loads(text) and desk.runs == 1


@pytest.mark.parametrize("mode", MODES)
def test_the_python_sdk_waits_and_calls_again(desk: Desk, mode: ConnectMode) -> None:
    desk.wait(None)
    held = python(desk, mode)
    assert held.is_error
    Hold.objects.get().approve(by=desk.ben)

    answer = python(desk, mode)

    assert ran(desk, answer.content[0].text)


@pytest.mark.parametrize("mode", MODES)
def test_an_approval_after_the_client_left_is_used_by_its_next_call(desk: Desk, mode: ConnectMode) -> None:
    desk.wait(240)
    left = python(desk, mode, seconds=1)
    assert isinstance(left, MCPError)
    hold = Hold.objects.get()
    assert hold.state == HoldState.WAITING
    hold.approve(by=desk.ben)
    assert desk.runs == 0

    assert ran(desk, python(desk, mode).content[0].text)
