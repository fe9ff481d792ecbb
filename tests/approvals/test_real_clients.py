"""Clients of others, at their default time-outs, whose calls are held: the call runs once, and they get its answer."""

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from mcp.client import Client
from mcp.client.client import ConnectMode
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from approvals.models import Hold, HoldState
from tests.approvals.conftest import TOOL, Desk
from tests.clients.fixtures import FOLDER, MODULES, Npm
from tests.eventually import eventually

pytestmark = pytest.mark.xdist_group("clients")
MODES = ("legacy", "2026-07-28")


@contextmanager
def typescript(desk: Desk, npm: Npm, progress: str = "") -> Iterator[Callable[[], Callable[[], Any]]]:
    """Yield a function that begins a call of the TypeScript SDK, and returns a function that reads a line of it."""
    told = {"GATEWAY_URL": desk.agent.url, "TOKEN": str(desk.agent.secret), "TOOL": TOOL, "ARGUMENTS": '{"n": 1}'}
    program = subprocess.Popen(
        [MODULES / ".bin" / "node", "held.mjs"],
        env=npm.environment | told | {"PROGRESS": progress},
        cwd=FOLDER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    stdin, stdout = program.stdin, program.stdout

    def begin() -> Callable[[], Any]:
        stdin.write("call\n")
        stdin.flush()
        return lambda: json.loads(stdout.readline())

    try:
        yield begin
        stdin.close()
        assert program.wait(60) == 0
    finally:
        program.kill()
        stdout.close()


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
    """Return whether this is the answer of the server, and the server was called once."""
    return "count" in json.loads(text) and desk.runs == 1


@pytest.mark.full
def test_the_typescript_sdk_calls_again_after_the_approval(desk: Desk, npm: Npm) -> None:
    desk.wait(None)
    with typescript(desk, npm) as begin:
        held = begin()()
        assert (held["isError"], held["meta"]["state"]) == (True, "waiting")
        Hold.objects.get().approve(by=desk.ben)

        answer = begin()()

    assert not answer["isError"]
    assert ran(desk, answer["text"])


@pytest.mark.full
def test_the_typescript_sdk_waits_if_it_reports_progress(desk: Desk, npm: Npm) -> None:
    desk.wait(None)
    with typescript(desk, npm, progress="yes") as begin:
        read = begin()
        assert "Waiting for approval" in read()["progress"]
        Hold.objects.get().approve(by=desk.ben)
        answer = read()

    assert ran(desk, answer["text"])


@pytest.mark.full
@pytest.mark.parametrize("mode", MODES)
def test_the_python_sdk_waits_and_calls_again(desk: Desk, mode: ConnectMode) -> None:
    desk.wait(None)
    held = python(desk, mode)
    assert held.is_error
    Hold.objects.get().approve(by=desk.ben)

    answer = python(desk, mode)

    assert ran(desk, answer.content[0].text)


@pytest.mark.full
def test_a_client_that_gives_up_after_five_seconds_is_answered_before(desk: Desk) -> None:
    desk.wait(None)
    held = python(desk, seconds=5)
    assert "Call the tool again" in held.content[0].text
    Hold.objects.get().approve(by=desk.ben)

    assert ran(desk, python(desk, seconds=5).content[0].text)


@pytest.mark.full
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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("state", ["denied", "withdrawn", "expired"])
def test_a_client_that_waits_is_told_what_became_of_its_call(desk: Desk, mode: ConnectMode, state: str) -> None:
    desk.wait(240)
    call = desk.pool.submit(python, desk, mode)
    eventually(Hold.objects.exists)
    hold = Hold.objects.get()
    match state:
        case "denied":
            hold.deny(by=desk.ben, sentence="Not today.")
        case "withdrawn":
            hold.withdraw(by=desk.connection.user)
        case _:
            Hold.objects.update(ends_at=hold.asked_at)

    result = call.result(120)

    assert result.is_error
    assert result.meta["state"] == state
    assert "Nothing was executed" in result.content[0].text
    assert desk.runs == 0
