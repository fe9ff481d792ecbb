"""Every refusal is one sentence and the URL of a page that the person can open."""

import asyncio
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urldefrag

import pytest
from django.db.models import Model
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

from accounts.models import User
from connections.models import Connection
from gateways.models import Gateway
from hosts.models import Host
from proxy.access.decision import DENIALS
from proxy.access.features import IdentityUnreadable, Named, Refusal, UnknownFeature
from proxy.call import Endpoint
from proxy.reasons import REASONS
from proxy.refresh import IdentityUnavailable
from proxy.server_requests import BadState, CallLost, InputRefused
from proxy.store.call_log import CallWriter
from proxy.tasks import UnknownTask
from tests.conftest import Run, SignIn
from tests.proxy.conftest import PUBLIC_URL, Agent, Start, sql
from tests.proxy.features import offer
from tests.proxy.scripted import offering
from tests.proxy.test_tools_call import Work, work_of
from wire import errors
from wire.mcp import TOOL

ONE_SENTENCE = re.compile(rf"[A-Z\"](?:(?!\. ).)+\. {re.escape(PUBLIC_URL)}(/\S+)")

# An error for each reason that occurs after the access decision.
FAULTS: dict[str, Exception] = {
    "unknown_tool": UnknownFeature(TOOL, "it"),
    "unknown_task": UnknownTask(),
    "identity_unavailable": IdentityUnavailable("Docs"),
    "identity_unreadable": IdentityUnreadable("Docs"),
    "credential_refused": errors.AccessRefused("Docs", 401),
    "address_blocked": errors.AddressBlocked("Docs"),
    "unreachable": errors.Unreachable("Docs"),
    "timeout": errors.TimedOut("Docs", 30.0),
    "bad_answer": errors.BadAnswer("Docs"),
    "too_large": errors.TooLarge("Docs"),
    "request_state": BadState("this requestState is too old"),
    "session_lost": errors.SessionEnded("Docs"),
    "call_lost": CallLost("Docs"),
    "input_refused": InputRefused("Docs"),
    "loop": errors.Loop("Docs"),
    "internal_error": RuntimeError("a fault of our own"),
    "busy": errors.Busy("Docs", seconds=2),
}
SWITCHES = {
    "host_disabled": "UPDATE hosts_host SET enabled = false",
    "host_pending": "UPDATE hosts_host SET enabled = true, approved_at = NULL, needs_approval = true",
    "gateway_disabled": "UPDATE gateways_gateway SET enabled = false",
    "connection_disabled": "UPDATE connections_connection SET enabled = false",
    "gateway_not_reachable": "UPDATE gateways_gateway SET reach = 'teams'",
    "host_not_allowed_here": "UPDATE gateways_gateway SET hosts_allowed = 'listed'",
    "rate_limited": "UPDATE gateways_gateway SET calls_per_minute = 1",
}
NAMED = {"rate_limited": "There were more calls than the gateway's limit allows: 1 a minute."}


def message_of(agent: Agent, **headers: str) -> str:
    """Return the Python SDK's message for a refused call, or for its refused first request."""

    async def ask() -> str:
        own = {"Authorization": f"Bearer {agent.secret}", **headers}
        try:
            async with (
                create_mcp_http_client(headers=own) as http,
                Client(streamable_http_client(agent.url, http_client=http), mode="legacy") as client,
            ):
                await client.call_tool("docs__it", {})
        except (MCPError, ExceptionGroup) as raised:
            error: BaseException = raised
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            assert isinstance(error, MCPError)
            return error.error.message
        raise AssertionError("it was not refused")

    return asyncio.run(ask())


def page_in(message: str) -> str:
    found = ONE_SENTENCE.fullmatch(message)
    assert found, message
    return urldefrag(found[1]).url


@pytest.fixture
def work(start: Start, run: Run) -> Work:
    work = work_of(start(), run)
    work.put(offering("it"))
    offer("it", "tool")
    return work


@pytest.fixture
def opens(sign_in: SignIn) -> Callable[[str], None]:
    def check(page: str) -> None:
        assert sign_in(User.objects.get(email="ana@example.com")).get(page).status_code == 200, page

    return check


@pytest.mark.full
def test_a_refused_request_reads_as_a_sentence_and_a_page(
    work: Work, opens: Callable[[str], None], subtests: pytest.Subtests
) -> None:
    models: tuple[type[Model], ...] = (Host, Connection, Gateway)
    before = {model: model._default_manager.values().get() for model in models}
    for reason, statement in SWITCHES.items():
        sql(statement)
        with subtests.test(str(reason)):
            said = message_of(work.agent)
            assert said.startswith(NAMED.get(reason) or REASONS[reason].sentence)
            opens(page_in(said))
        for model, row in before.items():
            model._default_manager.update(**row)
    said = message_of(work.agent, Origin="https://elsewhere.example")
    assert said.startswith(REASONS["origin"].sentence)
    opens(page_in(said))


@pytest.mark.full
def test_a_call_that_is_refused_or_fails_reads_as_a_sentence_and_a_page(
    start: Start, run: Run, opens: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = ""

    async def fails(_: Endpoint, __: Any, grant: Any, *___: Any) -> None:
        raise FAULTS.get(reason) or Refusal(reason, grant.assignments[0], Named(TOOL, "it"))

    monkeypatch.setattr(Endpoint, "_forward", fails)
    work = work_of(start(), run)
    work.put(offering("it"))
    sql("UPDATE gateways_assignment SET identity_scheme = 'per_user'")
    offer("it", "tool")
    published = {reason for reason, denied in DENIALS.items() if denied.published}
    for reason in REASONS.keys() - {*SWITCHES, "origin"} - published:
        said = work.agent.call("docs__it").json()["error"]["message"]
        opens(page_in(said))
        assert work.proxy.last().deny_reason in {reason, ""}, said


def test_an_app_whose_access_ended_is_told_to_sign_in_again_and_not_to_make_a_token(work: Work) -> None:
    refused = Agent(work.agent.url, "gwo_" + "x" * 44).listed()

    advice = refused.headers["www-authenticate"].partition("error_description=")[2]
    assert "Sign in" in advice
    assert "API Tokens" not in advice


def test_a_token_is_judged_also_when_calls_could_not_be_recorded_a_moment_ago(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql("UPDATE hosts_host SET enabled = false")
    answers = iter([False])
    may_begin = CallWriter.may_begin
    monkeypatch.setattr(CallWriter, "may_begin", lambda writer: next(answers, True) and may_begin(writer))

    first, second = work.agent.call("docs__it"), work.agent.call("docs__it")

    assert {first.status_code, second.status_code} <= {403, 503}
    assert "result" not in first.text


ARGUMENTS = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"docs__it","arguments":{"x":%b}}}'
CAPABILITIES = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18",'
    b'"capabilities":{"x":%b},"clientInfo":{"name":"x","version":"1"}}}'
)


@pytest.mark.full
def test_deep_nesting_passes_or_is_refused_without_a_fault(work: Work) -> None:
    for place in (ARGUMENTS, CAPABILITIES):
        for depth in (100, 990, 1_010, 5_000):
            body = place % (b"[" * depth + b"]" * depth)
            answered = work.agent.post(body, Content_Type="application/json")
            assert answered.status_code == (200 if depth < 1_020 else 400), (place, depth)
