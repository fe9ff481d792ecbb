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
@pytest.mark.parametrize("client", ["session", "bare", "modern"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (BOTH_ERAS, SESSION_ONLY),
        (BOTH_ERAS, MODERN_ONLY),
        (SESSION_ONLY, MODERN_ONLY),
        (MODERN_ONLY, SESSION_ONLY),
    ],
    ids=["both to session", "both to modern", "session to modern", "modern to session"],
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
@pytest.mark.parametrize("talk", [closes, closes_after_the_status, closes_within_the_answer, closes_within_the_stream])
def test_a_call_whose_connection_broke_after_it_was_written_is_not_sent_again(start: Start, talk: Talk) -> None:
    proxy = start()
    arrived: list[int] = []

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
    assert [row.outcome for row in proxy.calls()] == ["ok", "upstream_error", "ok"]


# A gateway that fails after the call


@pytest.mark.full
def test_a_database_that_fails_after_the_call_does_not_have_it_called_again(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Counting()
    work.put(server.app())
    offer("it", "tool")
    ask_server = Endpoint._ask_server

    async def fails(endpoint: Endpoint, *given: Any) -> RpcResponse:
        await ask_server(endpoint, *given)
        raise UNAVAILABLE

    monkeypatch.setattr(Endpoint, "_ask_server", fails)

    answer = called(work.agent, "it", SESSION_ERA)

    assert [each.executed for each in server.arrivals["it"]] == [True]
    assert answer.status_code == 503
    assert_no_advice(answer)


@pytest.mark.full
def test_a_call_that_ran_and_cannot_be_recorded_is_not_to_be_called_again(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Counting()
    work.put(server.app())
    offer("it", "tool")
    monkeypatch.setattr("proxy.store.call_log.CallWriter.commit", failing(NotRecorded(NotRecorded.__doc__)))

    answer = called(work.agent, "it", SESSION_ERA)

    assert [each.executed for each in server.arrivals["it"]] == [True]
    assert "may have executed it" in answer.json()["error"]["message"]
    assert_no_advice(answer)


def errors_of(kind: type[UpstreamError]) -> Iterator[type[UpstreamError]]:
    yield kind
    for more in kind.__subclasses__():
        yield from errors_of(more)


def test_no_error_advises_to_call_again_but_of_a_call_that_was_not_sent() -> None:
    unsent = {*errors_of(Busy), IdentityUnavailable, EraLeft}

    advising = {kind for kind in errors_of(UpstreamError) if any(words in kind.sentence.lower() for words in ADVICE)}

    assert advising <= unsent


@pytest.mark.parametrize("has_session", [True, False])
def test_a_404_to_a_call_that_ran_in_a_session_its_server_knows_is_an_error_of_the_call(
    work: Work, has_session: bool
) -> None:
    ran: list[str] = []

    async def call(request: Request) -> None:
        ran.append(request.headers["mcp-session-id"])
        await request.respond(404, b"no such order", {"content-type": "text/plain"})

    work.put(Script([[tool("it")]], call, sessions=True).app())
    agent = in_session(work.agent) if has_session else work.agent

    refused = [agent.call("docs__it") for _ in range(2)]

    assert [each.status_code for each in refused] == [200, 200]
    assert {each.json()["error"]["message"] for each in refused} == {in_words('Server "Docs" answered with HTTP 404.')}
    assert len(ran) == 2
    assert len({*ran}) == 1
