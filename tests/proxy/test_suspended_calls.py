"""Suspended calls of 2026-07-28: the stored state, its lifetime, and what remains after failures."""

import asyncio
import threading
from typing import Any

import pytest

from auditlog.models import Call
from proxy.models import PendingRequest, SuspendedCall
from proxy.server_requests import END, FINISH, HOLD, LOOK
from proxy.store.bus import PendingRequests
from proxy.store.pg import StatePool
from tests import make
from tests.conftest import Run
from tests.eventually import PATIENCE
from tests.proxy.asking import FORM, Asker, answers_of
from tests.proxy.conftest import Start, eventually
from tests.proxy.scripted import Object, Request
from tests.proxy.test_bridging import GIVEN, Work, ask, result_of, retry
from tests.proxy.test_failing_parts import UNAVAILABLE, fail_statements, failing
from wire.client import McpClient
from wire.mcp import RpcResponse, Target

NOT_FOUND = -32601


class Hasty(Asker):
    """A server that waits at most `seconds` for the client's answer, and then answers the call."""

    seconds = 0.0

    async def _call(self, request: Request) -> None:
        await request.open_stream()
        await request.event({"jsonrpc": "2.0", "id": 1, **FORM})
        for _ in range(200):
            if self.answers:
                break
            await asyncio.sleep(self.seconds / 200)
        await self._finish(request, [*self.answers])


class ByCall(Asker):
    """A server that sends one request in each call, so that several calls of one session wait at the same time."""

    async def _call(self, request: Request) -> None:
        waiting = asyncio.get_running_loop().create_future()
        self._waiting[request.headers["mcp-session-id"], request.message["id"]] = waiting
        await request.open_stream()
        await request.event({"jsonrpc": "2.0", "id": request.message["id"], **FORM})
        await self._finish(request, [await asyncio.wait_for(waiting, PATIENCE)])


@pytest.fixture
def work(start: Start, run: Run) -> Work:
    user = make.user(email="ana@example.com")
    gateway = make.gateway(slug="work")
    return Work(gateway, make.connection(make.agent(by=user), gateway, user), start, run)


def refused(answered: Object) -> Any:
    """Return the code of the error that the server got instead of the client's answer."""
    return answers_of({"result": answered})[0]["error"]["code"]


@pytest.mark.full
def test_a_client_that_cannot_give_it_is_not_asked_and_its_call_goes_on(work: Work) -> None:
    work.put(Asker(asks=[FORM]).app())

    answered = result_of(ask(work.agent(), capabilities={"roots": {}}))

    assert (answered["resultType"], refused(answered)) == ("complete", NOT_FOUND)
    assert not SuspendedCall.objects.exists()


@pytest.mark.full
def test_a_connection_has_a_bounded_number_of_calls_that_wait(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.server_requests.MOST_SUSPENDED", 1)
    work.put(ByCall().app())
    user = make.user(email="bob@example.com")
    agent = work.agent()
    other = work.start().agent(make.connection(make.agent(by=user), work.gateway, user))

    waits = result_of(ask(agent))

    assert refused(result_of(ask(agent))) == NOT_FOUND
    assert result_of(ask(other))["resultType"] == "input_required"
    assert result_of(retry(agent, waits))["resultType"] == "complete"
    eventually(lambda: result_of(ask(agent))["resultType"] == "input_required")


def test_a_call_that_cannot_be_held_is_not_asked_and_goes_on(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    work.put(Asker(asks=[FORM]).app())
    agent = work.agent()
    fail_statements(monkeypatch, HOLD)

    assert refused(result_of(ask(agent))) == NOT_FOUND

    monkeypatch.undo()
    assert result_of(retry(agent, result_of(ask(agent))))["resultType"] == "complete"


@pytest.mark.full
def test_a_call_that_is_over_before_its_client_could_be_asked_leaves_nothing(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.server_requests.GATHER_SECONDS", 20)
    held: list[str] = []
    add = PendingRequests.add

    async def noted(pending: PendingRequests, uid: str, *given: Any) -> None:
        await add(pending, uid, *given)
        held.append(uid)
        server.answers.append({})

    monkeypatch.setattr(PendingRequests, "add", noted)
    server = Hasty()
    server.seconds = 20
    work.put(server.app())

    assert result_of(ask(work.agent()))["resultType"] == "complete"
    assert len(held) == 1
    eventually(lambda: not SuspendedCall.objects.exists())
    eventually(lambda: not PendingRequest.objects.exists())


@pytest.mark.full
def test_a_call_that_ran_keeps_its_answer_although_its_row_cannot_be_deleted(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.server_requests.GATHER_SECONDS", 20)
    add = PendingRequests.add

    async def noted(pending: PendingRequests, uid: str, *given: Any) -> None:
        await add(pending, uid, *given)
        server.answers.append({})  # The server then ends the call.

    monkeypatch.setattr(PendingRequests, "add", noted)
    fail_statements(monkeypatch, END)
    server = Hasty()
    server.seconds = 20
    docs = work.put(server.app())

    answer = ask(work.agent())

    assert SuspendedCall.objects.exists()
    assert (answer.status_code, "retry-after" in answer.headers) == (200, False)
    assert result_of(answer)["resultType"] == "complete"
    assert len(docs.asked("tools/call")) == 1
    assert [row.outcome for row in Call.objects.filter(method="tools/call")] == ["ok"]


@pytest.mark.full
def test_a_retry_gets_the_answer_of_its_call_although_the_row_of_that_cannot_be_deleted(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = work.put(Asker(asks=[FORM]).app())
    agent = work.agent()
    wanted = result_of(ask(agent))
    fail_statements(monkeypatch, END)

    answer = retry(agent, wanted)

    assert (answer.status_code, "retry-after" in answer.headers) == (200, False)
    assert answers_of({"result": result_of(answer)}) == [{"jsonrpc": "2.0", "id": 0, "result": GIVEN}]
    assert len(docs.asked("tools/call")) == 1
    rows = Call.objects.filter(method="tools/call").order_by("id")
    assert [row.outcome for row in rows] == ["ok", "ok"]


@pytest.mark.full
def test_a_question_that_ended_before_its_client_was_asked_is_not_put(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.server_requests.GATHER_SECONDS", 0.5)
    told: list[Object] = []

    class Patient(Asker):
        async def _finish(self, request: Request, answers: list[Object]) -> None:
            told.extend(answers)
            await asyncio.sleep(1)  # Longer than the gateway collects questions for the client.
            await super()._finish(request, answers)

    work.put(Patient(asks=[FORM]).app())

    answered = result_of(ask(work.agent(answer_seconds=0.01)))

    assert answered["resultType"] == "complete"
    assert "did not answer" in told[0]["error"]["message"]


def test_a_call_whose_questions_cannot_be_read_ends_and_its_server_is_told(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = work.put(Asker(asks=[FORM]).app())
    agent = work.agent()
    monkeypatch.setattr(PendingRequests, "open", failing(UNAVAILABLE))

    assert ask(agent).status_code == 503

    eventually(lambda: docs.asked("notifications/cancelled"))
    eventually(lambda: not SuspendedCall.objects.exists())


def test_only_the_held_call_whose_row_is_gone_is_cancelled(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.server_requests.BEAT_SECONDS", 0.1)
    docs = work.put(ByCall().app())
    agent = work.agent()
    result_of(ask(agent))
    gone = SuspendedCall.objects.get()
    stays = result_of(ask(agent))

    gone.delete()

    eventually(lambda: docs.asked("notifications/cancelled"))
    (kept,) = SuspendedCall.objects.all()
    before = kept.beat_at
    eventually(lambda: SuspendedCall.objects.get().beat_at > before)
    assert result_of(retry(agent, stays))["resultType"] == "complete"
    assert len(docs.asked("notifications/cancelled")) == 1


def test_a_worker_that_stops_ends_the_calls_it_holds_and_their_retries_are_told(work: Work) -> None:
    docs = work.put(Asker(asks=[FORM]).app())
    proxy = work.start()
    agent = proxy.agent(work.connection)
    wanted = result_of(ask(agent))

    proxy.stop()

    assert not SuspendedCall.objects.exists()
    assert docs.asked("notifications/cancelled")
    answer = retry(work.elsewhere(agent), wanted, GIVEN)
    assert "its call is over" in answer.json()["error"]["message"]


@pytest.mark.full
def test_a_retry_gets_the_answer_of_its_call_although_the_database_was_away_for_a_moment(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.server_requests.LOOK_SECONDS", 0.05)
    fetch, failed = StatePool.fetch, {LOOK: threading.Event(), FINISH: threading.Event()}

    async def fails_once(state: StatePool, sql: str, params: Any = ()) -> list[tuple[Any, ...]]:
        if sql in failed and server.answers and not failed[sql].is_set():
            failed[sql].set()
            raise UNAVAILABLE
        return await fetch(state, sql, params)

    class Slow(Asker):
        async def _finish(self, request: Request, answers: list[Object]) -> None:
            await asyncio.to_thread(failed[LOOK].wait, PATIENCE)
            await super()._finish(request, answers)

    monkeypatch.setattr(StatePool, "fetch", fails_once)
    server = Slow(asks=[FORM])
    work.put(server.app())
    agent = work.agent()

    answer = retry(agent, result_of(ask(agent)))

    assert all(each.is_set() for each in failed.values())
    assert (answer.status_code, result_of(answer)["resultType"]) == (200, "complete")


@pytest.mark.parametrize(
    ("fault", "status", "outcome", "reason"),
    [(ValueError("s3cret"), 500, "rpc_error", "internal_error"), (UNAVAILABLE, 503, "unavailable", "")],
)
def test_a_fault_inside_the_gateway_is_none_of_the_servers_for_the_retry_either(
    work: Work, monkeypatch: pytest.MonkeyPatch, fault: Exception, status: int, outcome: str, reason: str
) -> None:
    ask_server = McpClient.ask

    async def fails(client: McpClient, upstream: Target, method: str, *given: Any, **more: Any) -> RpcResponse:
        answer = await ask_server(client, upstream, method, *given, **more)
        if method == "tools/call":
            raise fault
        return answer

    work.put(Asker(asks=[FORM]).app())
    agent = work.agent()
    monkeypatch.setattr(McpClient, "ask", fails)

    answer = retry(agent, result_of(ask(agent)))

    assert (answer.status_code, "s3cret" in answer.text) == (status, False)
    row = Call.objects.filter(method="tools/call").order_by("-id")[0]
    assert (row.outcome, row.deny_reason, row.http_status) == (outcome, reason, status)
    eventually(lambda: not SuspendedCall.objects.exists())
