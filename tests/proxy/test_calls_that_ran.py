"""Calls that may have been executed are never repeated, whether server, connection or gateway fails."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from django.utils import timezone

from proxy.call import Endpoint
from proxy.refresh import IdentityUnavailable
from proxy.store.call_log import NotRecorded
from servers.models import Era, Server
from tests.conftest import Run
from tests.proxy.asking import BOTH as ANY_ANSWER
from tests.proxy.conftest import Agent, Proxy, Start, eventually, in_words
from tests.proxy.counting import MODERN_ERA, SESSION_ERA, Counting
from tests.proxy.features import offer
from tests.proxy.scripted import Request, Script, tool
from tests.proxy.test_endpoint import modern
from tests.proxy.test_failing_parts import UNAVAILABLE, failing
from tests.proxy.test_hostile_servers import STREAM, Peer, Talk, agent_of, hostile
from tests.proxy.test_sent_once import ADVICE
from tests.proxy.test_standing_streams import in_session
from tests.proxy.test_tools_call import Work, work_of
from wire.errors import Busy, EraLeft, UpstreamError
from wire.mcp import RpcResponse

SESSION_ONLY, MODERN_ONLY = frozenset({SESSION_ERA}), frozenset({MODERN_ERA})
BOTH_ERAS = SESSION_ONLY | MODERN_ONLY
IN_THE_ROW = {SESSION_ONLY: Era.SESSION, MODERN_ONLY: Era.MODERN, BOTH_ERAS: Era.BOTH}


@pytest.fixture
def work(proxy: Proxy, run: Run) -> Work:
    return work_of(proxy, run)


def called(agent: Agent, case: str, era: str) -> httpx.Response:
    params = {"name": "docs__it", "arguments": {"case": case}}
    if era == MODERN_ERA:
        body, headers = modern("tools/call", params)
        return agent.post(body, **headers)
    return agent.ask("tools/call", params, Accept=ANY_ANSWER)


def assert_no_advice(answer: httpx.Response) -> None:
    assert "retry-after" not in answer.headers
    assert not [words for words in ADVICE if words in answer.text.lower()], answer.text


# A server that changes which protocol versions it speaks


@pytest.mark.full
@pytest.mark.parametrize(
    ("before", "after", "client"),
    [
        (BOTH_ERAS, SESSION_ONLY, "modern"),
        (BOTH_ERAS, MODERN_ONLY, "session"),
        (SESSION_ONLY, MODERN_ONLY, "session"),
        (SESSION_ONLY, MODERN_ONLY, "bare"),
        (MODERN_ONLY, SESSION_ONLY, "modern"),
        (MODERN_ONLY, SESSION_ONLY, "session"),
    ],
    ids=lambda value: value if isinstance(value, str) else " and ".join(sorted(value)),
)
def test_a_server_that_changed_is_asked_what_it_speaks_and_its_next_call_works(
    work: Work, before: frozenset[str], after: frozenset[str], client: str
) -> None:
    server = Counting(eras=before)
    docs = work.put(server.app())
    offer("it", "tool")
    agent = in_session(work.agent) if client == "session" else work.agent
    era = MODERN_ERA if client == "modern" else SESSION_ERA
    assert "result" in called(agent, "before", era).json()
    Server.objects.update(protocol_probed_at=timezone.now() - timedelta(minutes=1))  # A probe may run again.

    server.eras = after
    docs.seen.clear()
    first = called(agent, "first", era)
    is_served = (era if era in before else next(iter(before))) in after
    if not is_served:
        eventually(Server.objects.filter(protocol_era=IN_THE_ROW[after]).exists)
    second = called(agent, "second", era)
    if client == "session" and second.status_code == 404:  # The server no longer has sessions.
        second = called(in_session(work.agent), "second", era)

    arrived = {case: [each.executed for each in server.arrivals[case]] for case in ("first", "second")}
    assert arrived == {"first": [is_served], "second": [True]}, [request.method for request in docs.seen]
    assert ("result" in first.json()) == is_served, first.text
    assert "result" in second.json(), second.text
    if not is_served:
        assert "nsupported protocol version" in first.json()["error"]["message"]
        assert_no_advice(first)
    outcomes = [row.outcome for row in work.proxy.calls() if row.method == "tools/call"]
    assert [*outcomes[:2], outcomes[-1]] == ["ok", "ok" if is_served else "rpc_error", "ok"]


# A connection that breaks after the call was written


def closes(peer: Peer, _: int) -> None:
    raise OSError


def closes_after_the_status(peer: Peer, _: int) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\n")
    raise OSError


def closes_within_the_answer(peer: Peer, _: int) -> None:
    peer.send(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"jsonrpc"')
    raise OSError


def closes_within_the_stream(peer: Peer, _: int) -> None:
    peer.send(STREAM + b"\r\n")
    peer.chunk(b": on it\n\n")
    raise OSError


@pytest.mark.full
def test_a_call_whose_connection_broke_after_it_was_written_is_not_sent_again(
    start: Start, subtests: pytest.Subtests
) -> None:
    proxy = start()
    for talk in (closes, closes_after_the_status, closes_within_the_answer, closes_within_the_stream):
        with subtests.test(talk.__name__):
            _breaks_off(proxy, talk)


def _breaks_off(proxy: Proxy, talk: Talk) -> None:
    before, arrived = len(proxy.calls()), list[int]()

    def counted(peer: Peer, request_id: int) -> None:
        arrived.append(request_id)
        talk(peer, request_id)

    with hostile(counted) as url:
        agent = agent_of(proxy, url)
        Server.objects.update(protocol_era=Era.SESSION)
        agent.call("docs__good")  # Leaves a kept-alive connection for the next call.

        answer = agent.call("docs__bad")

        assert "result" in agent.call("docs__good").json()
    assert len(arrived) == 1
    assert answer.json()["error"]["data"]["reason"] == "unreachable"
    assert_no_advice(answer)
    assert [row.outcome for row in proxy.calls()[before:]] == ["ok", "upstream_error", "ok"]


# A gateway that fails after the call


@pytest.mark.full
def test_a_gateway_that_fails_after_the_call_does_not_have_it_called_again(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Counting()
    work.put(server.app())
    offer("it", "tool")
    ask_server = Endpoint._ask_server

    async def fails(endpoint: Endpoint, *given: Any) -> RpcResponse:
        await ask_server(endpoint, *given)
        raise UNAVAILABLE

    with monkeypatch.context() as database_fails:
        database_fails.setattr(Endpoint, "_ask_server", fails)
        unanswered = called(work.agent, "unanswered", SESSION_ERA)
    with monkeypatch.context() as log_fails:
        log_fails.setattr("proxy.store.call_log.CallWriter.commit", failing(NotRecorded(NotRecorded.__doc__)))
        unrecorded = called(work.agent, "unrecorded", SESSION_ERA)

    assert {case: [each.executed for each in arrived] for case, arrived in server.arrivals.items()} == {
        "unanswered": [True],
        "unrecorded": [True],
    }
    assert unanswered.status_code == 503
    assert "may have executed it" in unrecorded.json()["error"]["message"]
    assert_no_advice(unanswered)
    assert_no_advice(unrecorded)


def errors_of(kind: type[UpstreamError]) -> Iterator[type[UpstreamError]]:
    yield kind
    for more in kind.__subclasses__():
        yield from errors_of(more)


def test_no_error_advises_to_call_again_but_of_a_call_that_was_not_sent() -> None:
    unsent = {*errors_of(Busy), IdentityUnavailable, EraLeft}

    advising = {kind for kind in errors_of(UpstreamError) if any(words in kind.sentence.lower() for words in ADVICE)}

    assert advising <= unsent


def test_a_404_to_a_call_that_ran_in_a_session_its_server_knows_is_an_error_of_the_call(work: Work) -> None:
    ran: list[str] = []

    async def call(request: Request) -> None:
        ran.append(request.headers["mcp-session-id"])
        await request.respond(404, b"no such order", {"content-type": "text/plain"})

    work.put(Script([[tool("it")]], call, sessions=True).app())

    refused = [agent.call("docs__it") for agent in (work.agent, in_session(work.agent)) for _ in range(2)]

    assert [each.status_code for each in refused] == [200] * 4
    assert {each.json()["error"]["message"] for each in refused} == {in_words('Server "Docs" answered with HTTP 404.')}
    assert len(ran) == 4
    assert ran[0] == ran[1]
    assert ran[2] == ran[3]
