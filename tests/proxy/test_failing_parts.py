"""Responses and log rows when a component fails in the middle of a request."""

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import pytest

from gatewayadmin.config import database
from proxy.models import Session
from proxy.reasons import REASONS
from proxy.server_requests import _answers
from proxy.store.call_log import NotRecorded
from proxy.store.pg import DatabaseUnavailable, StatePool
from proxy.store.sessions import SessionKeeper
from proxy.store.usage import UsageTracker
from proxy.streams import honoured
from servers.models import Health, Server
from tests import make, upstreams
from tests.conftest import Run
from tests.eventually import PATIENCE
from tests.proxy.conftest import Agent, Proxy, Start, eventually_unused, in_words
from tests.proxy.listening import listening
from tests.proxy.test_features_by_name import assigned
from tests.proxy.test_standing_streams import in_session
from tests.proxy.test_streams import work_of

UNAVAILABLE = DatabaseUnavailable("the database did not answer")
CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "docs__echo", "arguments": {"text": "x"}}}


def failing(error: Exception) -> Any:
    async def fails(*_: Any, **__: Any) -> None:
        raise error

    return fails


def fail_statements(monkeypatch: pytest.MonkeyPatch, *failed: str) -> None:
    """Make these statements fail as if the database did not answer; other statements work."""
    fetch = StatePool.fetch

    async def fails(state: StatePool, sql: str, params: Any = ()) -> list[tuple[Any, ...]]:
        if sql in failed:
            raise UNAVAILABLE
        return await fetch(state, sql, params)

    monkeypatch.setattr(StatePool, "fetch", fails)


@pytest.fixture
def agent(proxy: Proxy, run: Run) -> Agent:
    work = work_of(proxy, run)
    work.put(upstreams.docs())
    return in_session(work.agent)


def asked(agent: Agent, verb: str, body: Any = None) -> httpx.Response:
    own = {"Authorization": f"Bearer {agent.secret}", "Accept": "application/json, text/event-stream", **agent.headers}
    return httpx.request(verb, agent.url, headers=own, json=body, trust_env=False, timeout=30)


def test_requests_that_need_an_unavailable_database_get_a_retry(
    agent: Agent, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, error, verb, body, rows in (
        ("proxy.handshake.Handshake.end", UNAVAILABLE, "DELETE", None, 1),
        (
            "proxy.server_requests.ServerRequests.take_answer",
            UNAVAILABLE,
            "POST",
            {"jsonrpc": "2.0", "id": 1, "result": {}},
            1,
        ),
        ("proxy.call.Endpoint._ask_server", UNAVAILABLE, "POST", CALL, 1),
        ("proxy.streams.Resumption.standing", UNAVAILABLE, "GET", None, 0),
        ("proxy.store.call_log.CallWriter.commit", NotRecorded(NotRecorded.__doc__), "GET", None, 0),
    ):
        before = len(proxy.calls())
        with monkeypatch.context() as failed:
            failed.setattr(part, failing(error))
            answer = asked(agent, verb, body)

        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), part
        assert answer.json()["error"]["code"] == -32603
        assert error is UNAVAILABLE or answer.json()["error"]["message"].endswith("nothing was executed.")
        assert [row.outcome for row in proxy.calls()[before:]] == ["unavailable"] * rows, part
    assert agent.listed().status_code == 200


@pytest.mark.full
def test_a_fault_inside_the_gateway_is_an_answer_and_a_row(
    agent: Agent, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("proxy.call.Endpoint._ask_server", failing(ValueError("a fault with s3cret details")))

    answer = agent.call("docs__echo", {"text": "x"})

    assert answer.status_code == 500
    reason = "internal_error"
    said = in_words(REASONS[reason].sentence)
    assert answer.json()["error"] == {"code": -32603, "message": said, "data": {"reason": reason}}
    row = proxy.last()
    assert (row.outcome, row.deny_reason, row.http_status, row.rpc_error_code) == (
        "rpc_error",
        "internal_error",
        500,
        -32603,
    )
    assert "a call failed inside the gateway" in caplog.text


@pytest.mark.full
def test_sessions_nobody_uses_are_ended_although_the_database_was_away_for_a_moment(
    agent: Agent, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sweep, failed, ended = SessionKeeper.sweep, [0], []

    async def fails(keeper: SessionKeeper) -> int:
        if failed[0] < 2:
            failed[0] += 1
            raise UNAVAILABLE
        ended.append(await sweep(keeper))
        return ended[-1]

    monkeypatch.setattr("proxy.store.sessions.SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(SessionKeeper, "sweep", fails)
    start()

    # Also a session without sessions at servers counts.
    eventually_unused("proxy_session", "90 days", lambda: 1 in ended and not Session.objects.exists())
    assert failed == [2]
    assert "idle sessions" in [getattr(record, "task", "") for record in caplog.records]


@pytest.mark.full
def test_the_id_of_an_event_that_is_none_of_ours_begins_a_stream_anew(agent: Agent) -> None:
    for last in ("nonsense", "s-1-1", "c-00000000-0000-0000-0000-000000000000"):
        with listening(agent, "GET", Last_Event_ID=last) as stream:
            assert stream.begun.wait(PATIENCE)
            assert stream.status == 200, last


def test_subscriptions_and_answers_of_a_wrong_form_are_none() -> None:
    assert [honoured(given) for given in (None, 5, "tools")] == [([], [])] * 3
    responses: list[object] = [None, 5, {"no id": {}}, {"0192aa00-0000-7000-8000-000000000000": 5}]
    assert [list(_answers(given)) for given in responses] == [[]] * 4


@pytest.mark.django_db(transaction=True)
def test_the_last_call_decides_whether_a_server_is_down_whoever_called() -> None:
    docs, others = make.server(slug="docs"), make.server(slug="others")
    ann, ben = str(uuid4()), str(uuid4())

    async def main() -> None:
        usage = UsageTracker(database.conninfo(), 60)
        for server, faults in ((docs, ("", "did not answer", "")), (others, ("did not answer", "", "did not answer"))):
            for identity, fault in zip((ann, ben, ann), faults, strict=True):
                usage.server_contacted(assigned(str(server.pk), "", identity_id=identity), fault)
        await usage.stop()

    asyncio.run(main())

    health = {server.slug: (server.health, server.health_error) for server in Server.objects.all()}
    assert health == {"docs": (Health.OK, ""), "others": (Health.DOWN, "did not answer")}
