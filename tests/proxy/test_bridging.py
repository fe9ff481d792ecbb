"""A client and a server of different eras, when the server needs input before it answers."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from auditlog.models import Call
from connections.models import Connection
from gateways.models import Gateway
from proxy.models import PendingRequest, SuspendedCall
from servers.models import Era, Server
from tests import make
from tests.asgi_server import App, Upstream
from tests.conftest import Run
from tests.eventually import PATIENCE
from tests.proxy.asking import BOTH as ANY
from tests.proxy.asking import EVERYTHING, FORM, ROOTS, SAMPLE, Asker, Person, answers_of
from tests.proxy.conftest import Agent, Start, eventually, in_words, sql
from tests.proxy.scripted import MODERN, Object, Request, calling
from wire.client import McpClient
from wire.errors import Busy, NotRecordable

GIVEN: Object = {"action": "accept", "content": {"name": "Ada"}}
INVALID_PARAMS = -32602


@dataclass
class Work:
    """A gateway `work`, a connection to it, and workers to serve it."""

    gateway: Gateway
    connection: Connection
    start: Start
    run: Run

    def put(self, app: App, slug: str = "docs", **fields: Any) -> Upstream:
        upstream = self.run(app)
        make.assignment(self.gateway, make.server(slug=slug, name=slug.title(), url=upstream.url, **fields))
        return upstream

    def agent(self, **changes: Any) -> Agent:
        return self.start(**changes).agent(self.connection)

    def elsewhere(self, agent: Agent) -> Agent:
        """Return a client with this agent's token at another worker."""
        return Agent(self.start().url(self.gateway.slug), agent.secret)


@pytest.fixture
def work(start: Start, run: Run) -> Work:
    user = make.user(email="ana@example.com")
    gateway = make.gateway(slug="work")
    return Work(gateway, make.connection(make.agent(by=user), gateway, user), start, run)


def ask(agent: Agent, name: str = "docs__it", capabilities: Object = EVERYTHING, **more: Any) -> httpx.Response:
    """Make one 2026-07-28 call; `more` are further members of its params."""
    params, headers = call_of(name, capabilities, **more)
    return agent.ask("tools/call", params, **headers)


def call_of(name: str, capabilities: Object = EVERYTHING, **more: Any) -> tuple[Object, dict[str, str]]:
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": capabilities,
        **more.pop("_meta", {}),
    }
    params = {"name": name, "arguments": {"b": 1, "a": 2}, **more, "_meta": meta}
    headers = {"MCP_Protocol_Version": MODERN, "Mcp_Method": "tools/call", "Mcp_Name": name, "Accept": ANY}
    return params, headers


def result_of(answer: httpx.Response) -> Object:
    """Return the result, from a JSON body or the last event."""
    if answer.headers["content-type"] == "application/json":
        return dict(answer.json()["result"])
    return dict(json.loads(answer.text.rpartition("data: ")[2])["result"])


def retry(agent: Agent, wanted: Object, answers: Any = GIVEN, **more: Any) -> httpx.Response:
    """Repeat the call that got the result `wanted`, and give `answers` to each input request of this result."""
    return ask(agent, **{**answering(wanted, answers), **more})


def answering(wanted: Object, answers: Any = GIVEN) -> Object:
    return {"inputResponses": dict.fromkeys(wanted["inputRequests"], answers), "requestState": wanted["requestState"]}


# Both of 2026-07-28


@pytest.mark.full
def test_input_required_passes_untouched_between_two_of_2026(work: Work) -> None:
    wanted = {"resultType": "input_required", "inputRequests": {"k": {**FORM}}, "requestState": "its own, 1.10"}

    async def call(request: Request) -> None:
        done = "inputResponses" in request.message["params"]
        await request.answer({"resultType": "complete", "content": []} if done else wanted)

    docs = work.put(calling(call, modern=True))
    agent = work.agent()

    assert result_of(ask(agent)) == wanted
    assert result_of(retry(agent, wanted))["content"] == []

    first, second = (request.body["params"] for request in docs.asked("tools/call"))
    assert first["_meta"]["io.modelcontextprotocol/clientCapabilities"] == {
        "elicitation": {"form": {}, "url": {}},
        "sampling": {},
        "roots": {},
    }
    assert (second["inputResponses"], second["requestState"]) == ({"k": GIVEN}, "its own, 1.10")

    ask(agent, capabilities={"roots": {}, "tasks": {}})
    told = docs.asked("tools/call")[2].body["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"]
    assert told == {"roots": {}}


# A client with a session, a server of 2026-07-28


def wanting(*rounds: Object) -> tuple[App, list[Object]]:
    """Return a 2026-07-28 server that requires these inputs one after the other, and the list of params it gets."""
    got: list[Object] = []

    async def call(request: Request) -> None:
        params = request.message["params"]
        got.append(params)
        number = int(params.get("requestState", "0"))
        if number < len(rounds):
            wanted = {"resultType": "input_required", "inputRequests": rounds[number], "requestState": str(number + 1)}
            await request.answer(wanted)
        else:
            await request.answer({"resultType": "complete", "content": [], "structuredContent": {"done": True}})

    return calling(call, modern=True), got


def test_a_session_client_is_asked_on_its_stream_what_a_server_of_2026_wants(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.server_requests.MOST_ROUNDS", 2)
    app, got = wanting({"who": FORM, "where": ROOTS}, {"text": SAMPLE})
    work.put(app)
    person = Person(work.agent()).initialize()
    agent = work.elsewhere(person.agent)
    given = {
        "elicitation/create": GIVEN,
        "roots/list": {"roots": []},
        "sampling/createMessage": {"role": "assistant", "model": "m", "content": {"type": "text", "text": "x"}},
    }

    answered = person.call(
        "docs__it", lambda asked: person.say({"id": asked["id"], "result": given[asked["method"]]}, agent)
    )

    assert answered["result"] == {"content": [], "structuredContent": {"done": True}}
    assert [params.get("inputResponses") for params in got] == [
        None,
        {"who": GIVEN, "where": {"roots": []}},
        {"text": given["sampling/createMessage"]},
    ]
    assert sorted(Call.objects.exclude(correlation_id__in=Call.objects.values("uid")).values_list("uid")) == []
    call = Call.objects.get(method="tools/call")
    assert Call.objects.filter(correlation_id=call.uid).count() == 4


@pytest.mark.full
def test_a_server_that_gives_no_state_gets_none_back(work: Work) -> None:
    got: list[Object] = []

    async def call(request: Request) -> None:
        got.append(request.message["params"])
        wanted = {"resultType": "input_required", "inputRequests": {"who": FORM}}
        await request.answer({"resultType": "complete", "content": []} if got[1:] else wanted)

    work.put(calling(call, modern=True))
    person = Person(work.agent()).initialize()

    answered = person.call("docs__it", lambda asked: person.say({"id": asked["id"], "result": GIVEN}))

    assert answered["result"] == {"content": []}
    assert got[1]["inputResponses"] == {"who": GIVEN}
    assert "requestState" not in got[1]


@dataclass
class Wanted:
    """Inputs that a 2026-07-28 server requires of a session client, and the call's outcome.

    `outcome` is None if the call gets a result. If it gets an error, `outcome` is the error's data or a part of its
    message. `rounds` is the number of requests that the server gets.
    """

    inputs: list[Any]
    outcome: Object | str | None
    rounds: int
    answer: Object = field(default_factory=lambda: {"result": GIVEN})
    asked: int = 0
    capabilities: Object = field(default_factory=lambda: EVERYTHING)


BAD: Object = {"reason": "bad_answer"}
WANTED = {
    "state alone": Wanted([{}, {}], None, rounds=3),
    "inputs that are no object": Wanted([["who"]], BAD, rounds=1),
    "nothing that can be asked": Wanted([{"who": "Ada"}], BAD, rounds=1),
    "more at once than is asked": Wanted([{str(number): FORM for number in range(101)}], BAD, rounds=1),
    "input more than ten times": Wanted([{"who": FORM}] * 20, BAD, rounds=11, asked=10),
    "what the client cannot give": Wanted([{"who": FORM}], BAD, rounds=1, capabilities={"roots": {}}),
    "what the client refuses": Wanted(
        [{"who": FORM}], {"reason": "input_refused"}, rounds=1, asked=1, answer={"error": {"code": -1, "message": "no"}}
    ),
    "what the client answers with no result": Wanted(
        [{"who": FORM}], "needs input that the client did not give.", rounds=1, asked=1, answer={"result": 5}
    ),
}


@pytest.mark.full
def test_a_session_client_is_asked_for_no_more_than_it_can_give(work: Work, subtests: pytest.Subtests) -> None:
    agent = work.agent()
    for number, (name, case) in enumerate(WANTED.items()):
        with subtests.test(name):
            app, got = wanting(*case.inputs)
            work.put(app, f"s{number}")
            person = Person(agent, case.capabilities).initialize()
            answer = case.answer

            answered = person.call(f"s{number}__it", lambda asked: person.say({"id": asked["id"], **answer}))  # noqa: B023

            if case.outcome is None:
                assert "result" in answered
                assert [params.get("requestState") for params in got] == [None, "1", "2"]
            elif isinstance(case.outcome, str):
                assert case.outcome in answered["error"]["message"]
            else:
                assert answered["error"]["data"] == case.outcome | {"server": f"S{number}"}
            assert (len(got), len(person.heard)) == (case.rounds, case.asked)
            told = got[0]["_meta"]["io.modelcontextprotocol/clientCapabilities"]
            assert told.keys() == case.capabilities.keys()

    async def answer_in_an_unknown_kind(request: Request) -> None:
        await request.answer({"resultType": "of_the_future", "content": []})

    work.put(calling(answer_in_an_unknown_kind, modern=True), "future")
    assert Person(agent).initialize().call("future__it")["error"]["data"]["reason"] == "bad_answer"


@pytest.mark.parametrize("error", [Busy("Docs", seconds=1), NotRecordable()], ids=["busy", "not recordable"])
def test_a_call_of_which_one_round_was_sent_is_not_said_to_be_unexecuted(
    work: Work, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    app, got = wanting({"who": FORM})
    work.put(app)
    person = Person(work.agent()).initialize()
    ask = McpClient.ask

    async def ask_in_one_round(
        client: McpClient, target: Any, method: str, params: Object, *rest: Any, **more: Any
    ) -> Any:
        if "inputResponses" in params:
            raise error
        return await ask(client, target, method, params, *rest, **more)

    monkeypatch.setattr(McpClient, "ask", ask_in_one_round)

    answered = person.call("docs__it", lambda asked: person.say({"id": asked["id"], "result": GIVEN}))

    assert answered["error"]["data"]["reason"] == "call_lost"
    assert "may have executed it" in answered["error"]["message"]
    assert len(got) == 1
    assert Call.objects.get(method="tools/call").outcome == "upstream_error"


# A client of 2026-07-28, a server with sessions


@pytest.mark.full
def test_a_client_of_2026_gets_input_required_for_what_a_session_server_asks(work: Work) -> None:
    server = Asker(asks=[FORM, SAMPLE])
    work.put(server.app())
    agent = work.agent()
    other = work.elsewhere(agent)

    first = result_of(ask(agent))
    assert b"Who?" not in bytes(PendingRequest.objects.get().asked or b"Who?")
    second = result_of(retry(other, first))
    done = result_of(retry(other, second, {"model": "m"}))

    assert (first["resultType"], second["resultType"], done["resultType"]) == ("input_required",) * 2 + ("complete",)
    assert [[*wanted["inputRequests"].values()] for wanted in (first, second)] == [[FORM], [SAMPLE]]
    assert [answer["result"] for answer in answers_of({"result": done})] == [GIVEN, {"model": "m"}]
    eventually(lambda: not SuspendedCall.objects.exists())  # Deleted after the answer.
    eventually(lambda: not PendingRequest.objects.exists())
    rows = Call.objects.filter(method="elicitation/create")
    assert [row.correlation_id for row in rows] == [Call.objects.filter(method="tools/call").order_by("id")[0].uid]


@pytest.mark.full
def test_the_outcome_of_a_call_that_waited_is_spelled_as_its_server_spelled_it(work: Work) -> None:
    spelled = b'"n":1.10,"big":123456789012345678901234567890,"huge":1e400,"lone":"\\ud83d","nul":"\\u0000"'

    class Exact(Asker):
        async def _finish(self, request: Request, answers: list[Object]) -> None:
            start = b'data: {"jsonrpc": "2.0", "id": %d, ' % request.message["id"]
            body = start + b'"result": {"content": [], ' + spelled + b"}}\n\n"
            await request.send({"type": "http.response.body", "body": body})

    work.put(Exact(asks=[FORM]).app())
    agent = work.agent()
    answered = retry(agent, result_of(ask(agent)))

    assert spelled in answered.content


@pytest.mark.full
def test_messages_after_a_server_request_do_not_end_the_call(work: Work) -> None:
    class Telling(Asker):
        async def _finish(self, request: Request, answers: list[Object]) -> None:
            params = {"progressToken": request.message["params"]["_meta"]["progressToken"], "progress": 1}
            await request.event({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})
            await super()._finish(request, answers)

    work.put(Telling(asks=[FORM]).app())
    agent: Agent = work.agent()
    token: Object = {"_meta": {"progressToken": "p"}}

    wanted = result_of(ask(agent, **token))

    assert result_of(retry(agent, wanted, **token))["resultType"] == "complete"
    assert [row.outcome for row in Call.objects.filter(method="tools/call")] == ["ok", "ok"]


@pytest.mark.full
def test_unanswered_server_requests_are_asked_again(work: Work) -> None:
    work.put(Asker(asks=[FORM]).app())
    agent = work.agent()
    assert result_of(ask(agent, "docs__quick"))["resultType"] == "complete"
    assert not SuspendedCall.objects.exists()
    first = result_of(ask(agent))

    again = result_of(retry(agent, first, inputResponses={}))

    assert again["inputRequests"] == first["inputRequests"]
    assert again["requestState"] != first["requestState"]
    assert result_of(retry(agent, again))["resultType"] == "complete"


def tampered(state: str) -> str:
    return state[:-5] + ("A" if state[-5] != "A" else "B") + state[-4:]


@pytest.mark.full
def test_a_request_state_is_good_once_in_time_and_for_its_own_request_and_connection(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    work.put(Asker(asks=[FORM]).app())
    agent, user, now = work.agent(), make.user(), time.time
    other = Agent(agent.url, make.token(make.connection(make.agent(by=user), work.gateway, user)).secret)
    wanted = result_of(ask(agent))

    for change in (
        {"requestState": tampered(wanted["requestState"])},
        {"requestState": "somebody else's"},
        {"requestState": 7},
        {"arguments": {"a": 3}},
        {"name": "docs__quick"},
    ):
        refused = retry(agent, wanted, **change)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, INVALID_PARAMS), change
        assert "requestState" in refused.json()["error"]["message"]
        assert Call.objects.order_by("-id")[0].rpc_error_code == INVALID_PARAMS
    assert retry(other, wanted).json()["error"]["code"] == INVALID_PARAMS
    with monkeypatch.context() as later:
        later.setattr("proxy.server_requests.now", lambda: now() + 301)
        assert retry(agent, wanted).json()["error"]["message"] == in_words(
            "Invalid params: this requestState is too old."
        )
    assert result_of(retry(agent, wanted))["resultType"] == "complete"
    assert retry(agent, wanted).json()["error"]["code"] == INVALID_PARAMS


@pytest.mark.full
def test_a_call_that_waits_is_resumed_although_its_server_has_learnt_the_other_era(work: Work) -> None:
    docs = work.put(Asker(asks=[FORM]).app())
    agent = work.agent()
    wanted = result_of(ask(agent))
    Server.objects.update(protocol_era=Era.BOTH)

    assert result_of(retry(agent, wanted))["resultType"] == "complete"
    assert len(docs.asked("tools/call")) == 1


@pytest.mark.full
def test_a_retry_that_is_repeated_is_refused_and_takes_no_news_from_the_first(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.server_requests.LOOK_SECONDS", 600)  # The worker must be notified, not poll.
    released = threading.Event()

    class Slow(Asker):
        async def _finish(self, request: Request, answers: list[Object]) -> None:
            await asyncio.to_thread(released.wait, PATIENCE)
            await super()._finish(request, answers)

    server = Slow(asks=[FORM])
    work.put(server.app())
    agent = work.agent()
    wanted = result_of(ask(agent))

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(retry, agent, wanted)
        eventually(lambda: server.answers)
        repeated = retry(agent, wanted)
        released.set()
        assert result_of(first.result(PATIENCE))["resultType"] == "complete"

    assert repeated.json()["error"]["code"] == INVALID_PARAMS


def test_a_call_whose_worker_died_says_so(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.server_requests.BEAT_SECONDS", 600)
    monkeypatch.setattr("proxy.server_requests.LOOK_SECONDS", 0.05)
    work.put(Asker(asks=[FORM]).app())
    agent = work.agent()
    wanted = result_of(ask(agent))
    # Make the row look like that of a killed worker, whose heartbeats have stopped.
    SuspendedCall.objects.update(beat_at="2026-01-01T00:00Z")

    lost = retry(agent, wanted, {"action": "cancel"}, inputResponses={})

    assert "was lost" in lost.json()["error"]["message"]
    eventually(lambda: not SuspendedCall.objects.exists())


async def asks_and_is_silent(request: Request) -> None:
    await request.open_stream()
    await request.event({"jsonrpc": "2.0", "id": 1, **FORM})
    await asyncio.sleep(60)


@pytest.mark.full
def test_a_client_that_goes_away_while_it_waits_ends_the_call(work: Work) -> None:
    server = Asker()
    server.call = asks_and_is_silent
    docs = work.put(server.app())
    agent = work.agent()
    wanted = result_of(ask(agent))

    params, given = call_of("docs__it", **answering(wanted))
    headers = {"Authorization": f"Bearer {agent.secret}"} | {name.replace("_", "-"): given[name] for name in given}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(agent.url, json=body, headers=headers, timeout=1, trust_env=False)

    eventually(lambda: docs.asked("notifications/cancelled"))
    eventually(lambda: not SuspendedCall.objects.exists())


@pytest.mark.full
def test_stored_messages_are_encrypted_and_deleted_later(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.server_requests.PURGE_SECONDS", 0.2)

    async def call(request: Request) -> None:
        await request.open_stream()
        await request.event({"jsonrpc": "2.0", "id": 1, **FORM})
        result = {"content": [{"type": "text", "text": "a-secret-result"}]}
        await asyncio.sleep(1)  # Enough time for the question to reach the client.
        await request.event({"jsonrpc": "2.0", "id": request.message["id"], "result": result}, last=True)

    server = Asker()
    server.call = call
    work.put(server.app())
    ask(work.agent())

    eventually(SuspendedCall.objects.exclude(outcome=None).exists)
    assert b"a-secret-result" not in bytes(SuspendedCall.objects.get().outcome or b"")
    sql("UPDATE proxy_suspendedcall SET expires_at = now() - interval '1 s'")
    eventually(lambda: not SuspendedCall.objects.exists())


@pytest.mark.full
def test_an_error_and_a_timeout_of_the_server_reach_the_retry(work: Work) -> None:
    async def fails(request: Request) -> None:
        await request.open_stream()
        await request.event({"jsonrpc": "2.0", "id": 1, **FORM})
        await asyncio.sleep(1)  # Enough time for the question to reach the client.
        error = {"code": -1, "message": "no", "data": {"x": 1}}
        await request.event({"jsonrpc": "2.0", "id": request.message["id"], "error": error}, last=True)

    for slug, call, seconds in (("docs", fails, 30), ("slow", asks_and_is_silent, 1)):
        server = Asker()
        server.call = call
        work.put(server.app(), slug, timeout_seconds=seconds)
    agent = work.agent()

    failed, late = (
        retry(agent, result_of(ask(agent, name)), name=name).json()["error"] for name in ("docs__it", "slow__it")
    )

    assert failed == {"code": -1, "message": "no", "data": {"x": 1}}
    assert late["data"]["reason"] == "timeout"
    assert [row.outcome for row in Call.objects.filter(method="tools/call", server_name="Slow").order_by("id")] == [
        "ok",
        "timeout",
    ]


@pytest.mark.full
@pytest.mark.parametrize(
    ("cut", "retries"), [("token", False), ("server", True)], ids=["nobody waits", "its retry waits elsewhere"]
)
def test_a_suspended_call_whose_access_is_cut_is_cancelled_at_its_server(work: Work, cut: str, retries: bool) -> None:
    docs = work.put(Asker(asks=[FORM, FORM]).app())
    agent = work.agent()
    wanted = result_of(ask(agent))
    if retries:
        wanted = result_of(retry(work.elsewhere(agent), wanted))
    assert docs.asked("notifications/cancelled") == []

    if cut == "token":
        work.connection.tokens.filter(kind="access").get().revoke(by=work.connection.user)
    else:
        Server.objects.get(slug="docs").disable(by=work.connection.user)

    eventually(lambda: docs.asked("notifications/cancelled"), seconds=5)  # The cancellation takes about one second.
    eventually(lambda: not SuspendedCall.objects.exists())
