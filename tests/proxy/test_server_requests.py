"""Server requests to session-era clients: forwarded by any worker, answered, and logged."""

import asyncio
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.utils import timezone

from accounts.models import WorkspaceSettings
from auditlog.models import Call
from capabilities import Capability
from connections.models import Connection
from gateways.models import Gateway, IdentityScheme
from proxy.models import PendingRequest, Session
from proxy.server_requests import ROOTS_CHANGED
from proxy.store import bus
from proxy.store.call_log import CallRow, CallWriter, NotRecorded
from servers.models import AuthType, Server
from tests import make
from tests.asgi_server import Upstream
from tests.conftest import Run
from tests.eventually import PATIENCE
from tests.proxy.asking import BOTH, EVERYTHING, FORM, LINK, ROOTS, SAMPLE, Asker, Person, Reply, answers_of, late_reply
from tests.proxy.conftest import Agent, Proxy, Start, eventually, sql
from tests.proxy.scripted import Object, Request
from tests.proxy.test_bus import end_bus_connections
from tests.proxy.test_failing_parts import fail_statements
from wire.sessions import MOST_SERVER_REQUESTS

GIVEN: Object = {"action": "accept", "content": {"name": "Ada"}}
NOT_FOUND = -32601
CANCELLED = "notifications/cancelled"


@dataclass
class Work:
    """A gateway with a server that sends requests."""

    server: Asker
    docs: Upstream
    gateway: Gateway
    connection: Connection
    start: Start
    workers: list[Proxy] = field(default_factory=list)

    def worker(self, **changes: Any) -> Agent:
        self.workers.append(self.start(**changes))
        return self.workers[-1].agent(self.connection)

    def person(self, capabilities: Object = EVERYTHING, **changes: Any) -> Person:
        return Person(self.worker(**changes), capabilities).initialize()

    def elsewhere(self, person: Person) -> Agent:
        """Return a client with the person's token at another worker."""
        return Agent(self.start().url(self.gateway.slug), person.agent.secret)


@pytest.fixture
def work(start: Start, run: Run) -> Work:
    server = Asker(asks=[FORM])
    docs = run(server.app())
    user = make.user(email="ana@example.com")
    gateway = make.gateway(make.introduced(make.server(slug="docs", name="Docs", url=docs.url)), slug="work")
    return Work(server, docs, gateway, make.connection(make.agent(by=user), gateway, user), start)


def answering(person: Person, result: Object, agent: Agent | None = None) -> Reply:
    """Return a `reply` function that sends `result`, through `agent` (default: the person's own)."""
    return lambda asked: person.say({"id": asked["id"], "result": result}, agent)


def asked_rows() -> list[Call]:
    return list(Call.objects.filter(method__in=["elicitation/create", "sampling/createMessage", "roots/list"]))


@pytest.mark.full
def test_an_answer_reaches_the_server_from_any_worker(work: Work) -> None:
    person = work.person()

    for agent in (person.agent, work.elsewhere(person)):
        answered = person.call("docs__it", answering(person, GIVEN, agent))
        assert answers_of(answered) == [{"jsonrpc": "2.0", "id": 0, "result": GIVEN}]

    for asked in person.heard:
        assert {key: asked[key] for key in FORM} == FORM
        assert asked["id"] != 0
    assert not PendingRequest.objects.exists()


@pytest.mark.full
def test_each_kind_of_request_is_carried(work: Work) -> None:
    person = work.person()
    for asked, result in (
        (LINK, {"action": "accept"}),
        (SAMPLE, {"role": "assistant", "content": {"type": "text", "text": "hi"}, "model": "m"}),
        (ROOTS, {"roots": [{"uri": "file:///home"}]}),
    ):
        work.server.asks = [asked]
        answered = person.call("docs__it", answering(person, result))
        assert answers_of(answered)[0]["result"] == result
        assert {key: person.heard[-1][key] for key in asked} == asked


@pytest.mark.full
def test_an_error_of_the_client_is_the_servers_answer(work: Work) -> None:
    person = work.person()
    error = {"code": -1, "message": "no", "data": {"x": 1}}

    answered = person.call("docs__it", lambda heard: person.say({"id": heard["id"], "error": error}))

    assert answers_of(answered)[0]["error"] == error
    assert [(row.outcome, row.rpc_error_code) for row in asked_rows()] == [("rpc_error", -1)]


@pytest.mark.full
def test_a_client_without_the_capability_is_not_asked(work: Work) -> None:
    agent = work.worker()
    capabilities: Object
    for capabilities in ({}, {"sampling": {}, "roots": {}}, {"elicitation": {"url": {}}}):
        person = Person(agent, capabilities).initialize()
        answered = person.call("docs__it")
        assert answers_of(answered)[0]["error"]["code"] == NOT_FOUND, capabilities
        assert person.heard == []
        assert work.server.told[-1]["capabilities"] == capabilities


@pytest.mark.full
def test_a_client_without_a_session_or_a_stream_is_not_asked(work: Work) -> None:
    person = work.person()
    without_stream = person.call("docs__it", accept="application/json")
    person.session = ""
    without_session = person.call("docs__it")

    for answered in (without_stream, without_session):
        assert answers_of(answered)[0]["error"]["code"] == NOT_FOUND
    assert person.heard == []


@pytest.mark.full
def test_servers_get_only_known_capabilities_of_a_client_with_very_many(work: Work) -> None:
    person = work.person({**EVERYTHING, "of_the_future": {}, "experimental": {"x": "y" * 9000}})

    answered = person.call("docs__it", answering(person, GIVEN))

    assert work.server.told[0]["capabilities"] == {"elicitation": {}, "sampling": {}, "roots": {}}
    assert answers_of(answered)[0]["result"] == GIVEN


@pytest.mark.full
def test_an_unknown_or_foreign_answer_is_taken_and_goes_nowhere(work: Work) -> None:
    person = work.person()
    other = Person(person.agent).initialize()

    def reply(asked: Object) -> None:
        wrong = {"action": "decline"}
        assert person.say({"id": "b2c9fc3e-7a52-4b06-a0b6-6d3e6cf0a9d1", "result": wrong}) == 202
        assert person.say({"id": "x" * 36, "result": wrong}) == 202
        assert person.say({"id": 0, "result": wrong}) == 202
        assert other.say({"id": asked["id"], "result": wrong}) == 202
        assert Person(person.agent).say({"id": asked["id"], "result": wrong}) == 202
        assert person.say({"id": asked["id"], "result": GIVEN}) == 202
        assert person.say({"id": asked["id"], "result": wrong}) == 202

    answered = person.call("docs__it", reply)

    assert answers_of(answered) == [{"jsonrpc": "2.0", "id": 0, "result": GIVEN}]
    assert len(work.server.answers) == 1


def test_a_client_that_does_not_answer_in_time_is_an_error_to_the_server(work: Work) -> None:
    person = work.person(answer_seconds=0.3)

    answered = person.call("docs__it")

    assert "did not answer" in answers_of(answered)[0]["error"]["message"]
    asked, cancelled = person.heard
    assert cancelled["method"] == CANCELLED
    assert cancelled["params"]["requestId"] == asked["id"]
    assert [row.outcome for row in asked_rows()] == ["timeout"]
    assert not PendingRequest.objects.exists()
    assert person.say({"id": asked["id"], "result": GIVEN}) == 202


@pytest.mark.full
def test_a_call_that_ends_first_leaves_nothing_waiting(work: Work) -> None:
    person = work.person()

    assert answers_of(person.call("docs__hasty")) == []

    eventually(lambda: [row.outcome for row in asked_rows()] == ["cancelled"])
    eventually(lambda: not PendingRequest.objects.exists())
    eventually(lambda: [answer["id"] for answer in work.server.answers if "error" in answer] == ["late"])


def test_a_request_that_its_server_cancels_is_cancelled_at_the_client(work: Work) -> None:
    asked = threading.Event()

    async def regrets(request: Request) -> None:
        await request.open_stream()
        await request.event({"jsonrpc": "2.0", "id": 1, **FORM})
        await asyncio.to_thread(asked.wait, PATIENCE)
        unknown: object
        for unknown in ("1", True, None, {}, 2):
            await request.event({"jsonrpc": "2.0", "method": CANCELLED, "params": {"requestId": unknown}})
        await request.event({"jsonrpc": "2.0", "method": CANCELLED})
        await asyncio.sleep(0.3)
        assert not cancelled()
        await request.event({"jsonrpc": "2.0", "method": CANCELLED, "params": {"requestId": 1}})
        await asyncio.to_thread(eventually, cancelled)
        await request.event({"jsonrpc": "2.0", "id": request.message["id"], "result": {"content": []}}, last=True)

    def cancelled() -> list[Object]:
        return [message for message in person.heard if message["method"] == CANCELLED]

    work.server.call = regrets
    person = work.person()

    assert person.call("docs__it", lambda _: asked.set())["result"] == {"content": []}

    (told,) = cancelled()
    assert told["params"]["requestId"] == person.heard[0]["id"]
    eventually(lambda: [row.outcome for row in asked_rows()] == ["cancelled"])
    eventually(lambda: not PendingRequest.objects.exists())
    assert person.say({"id": person.heard[0]["id"], "result": GIVEN}) == 202
    assert work.server.answers == []


@pytest.mark.full
def test_requests_that_their_server_cancels_count_for_a_while(work: Work) -> None:
    async def sends_and_cancels(request: Request) -> None:
        await request.open_stream()
        for number in range(MOST_SERVER_REQUESTS):
            await request.event({"jsonrpc": "2.0", "id": number, **FORM})
            await asyncio.to_thread(eventually, lambda expected=2 * number + 1: len(person.heard) == expected)
            await request.event({"jsonrpc": "2.0", "method": CANCELLED, "params": {"requestId": number}})
            await asyncio.to_thread(eventually, lambda expected=2 * number + 2: len(person.heard) == expected)
        await request.event({"jsonrpc": "2.0", "id": "one more", **FORM})
        await asyncio.to_thread(eventually, lambda: work.server.answers)
        await request.event({"jsonrpc": "2.0", "id": request.message["id"], "result": {"content": []}}, last=True)

    work.server.call = sends_and_cancels
    person = work.person()

    assert person.call("docs__it")["result"] == {"content": []}

    [answer] = work.server.answers
    assert (answer["id"], answer["error"]["code"]) == ("one more", NOT_FOUND)
    assert len(person.heard) == 2 * MOST_SERVER_REQUESTS
    eventually(lambda: [row.outcome for row in asked_rows()] == ["cancelled"] * MOST_SERVER_REQUESTS)


def test_an_answer_that_comes_as_its_call_ends_is_in_the_log(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    drop, answered = bus.PendingRequests.drop, threading.Event()

    async def slow(pending: bus.PendingRequests, uid: str) -> None:
        answered.set()
        await asyncio.sleep(0.5)  # The call ends meanwhile.
        await drop(pending, uid)

    async def ends_with_the_answer(request: Request) -> None:
        await request.open_stream()
        await request.event({"jsonrpc": "2.0", "id": 1, **FORM})
        await asyncio.to_thread(answered.wait, PATIENCE)
        await request.event({"jsonrpc": "2.0", "id": request.message["id"], "result": {"content": []}}, last=True)

    monkeypatch.setattr(bus.PendingRequests, "drop", slow)
    work.server.call = ends_with_the_answer
    person = work.person()

    assert person.call("docs__it", answering(person, GIVEN))["result"] == {"content": []}

    eventually(lambda: [row.outcome for row in asked_rows()] == ["ok"])
    eventually(lambda: not PendingRequest.objects.exists())


@pytest.mark.full
def test_an_answer_reaches_a_slow_client_whole_although_the_server_did_not_wait_for_its_request(work: Work) -> None:
    begun, finished = threading.Event(), threading.Event()

    async def asks_at_length_and_ends(request: Request) -> None:
        await request.open_stream()
        long = {**SAMPLE["params"], "systemPrompt": "x" * (8 << 20)}  # More than the buffers between us and the client.
        await request.event({"jsonrpc": "2.0", "id": 1, **SAMPLE, "params": long})
        await asyncio.to_thread(begun.wait, PATIENCE)
        await request.event({"jsonrpc": "2.0", "id": request.message["id"], "result": {"content": []}}, last=True)
        finished.set()

    work.server.call = asks_at_length_and_ends
    person = work.person()
    url = urlsplit(person.agent.url)
    assert url.hostname
    assert url.port
    body = json.dumps({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "docs__it"}})
    headers = {"Authorization": f"Bearer {person.agent.secret}", "Content-Type": "application/json", "Accept": BOTH}

    client = HTTPConnection(url.hostname, url.port, timeout=PATIENCE)
    client.sock = socket.socket()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
    client.sock.connect((url.hostname, url.port))
    client.request("POST", url.path, body, headers | person.headers)
    assert client.sock.recv(1, socket.MSG_PEEK)
    begun.set()
    assert finished.wait(PATIENCE)
    time.sleep(0.5)  # Time for the answer to reach the gateway.
    text = client.getresponse().read().decode()
    client.close()

    messages = [
        json.loads(line.removeprefix("data: "))
        for line in text.splitlines()
        if len(line) > len("data: ") and line.startswith("data: ")
    ]
    assert messages[-1]["id"] == 7
    assert messages[0]["method"] == SAMPLE["method"]


@pytest.mark.full
def test_a_servers_request_is_a_row_of_its_own_correlated_to_its_call_and_recorded_without_secrets(work: Work) -> None:
    WorkspaceSettings.objects.update_or_create(pk=1, defaults={"record_payloads": True})
    person = work.person()
    given = {"action": "accept", "content": {"name": "Ada", "password": "hunter2-hunter2"}}

    person.call("docs__it", answering(person, given))

    (row,) = asked_rows()
    call = Call.objects.get(method="tools/call")
    assert row.correlation_id == call.correlation_id == call.uid != row.uid
    assert (row.server_name, row.host_id, row.user_email) == ("Docs", call.host_id, "ana@example.com")
    assert (row.outcome, row.rpc_error_code, row.feature_name) == ("ok", None, "")
    assert 0 < row.duration_ms <= call.duration_ms
    assert row.request_payload
    assert row.response_payload
    assert row.request_payload["params"]["message"] == "Who?"
    assert row.response_payload["result"]["content"]["name"] == "Ada"
    assert "hunter2" not in str(row.response_payload)


@pytest.mark.full
def test_a_call_that_waits_for_a_person_gives_its_place_back_and_its_time_stands_still(work: Work) -> None:
    sql("UPDATE servers_server SET max_concurrent = 1, timeout_seconds = 1")
    person = work.person(queue_seconds=0.5)
    quick: list[Object] = []

    answered = person.call("docs__it", late_reply(person, GIVEN, quick))

    assert answers_of(answered)[0]["result"] == GIVEN
    assert quick == [{"jsonrpc": "2.0", "id": 7, "result": {"content": []}}]
    assert "result" in person.call("docs__quick")


@pytest.mark.full
def test_an_answer_is_found_although_the_bus_was_cut_off(work: Work) -> None:
    person = work.person()

    def reply(asked: Object) -> None:
        end_bus_connections(1)
        person.say({"id": asked["id"], "result": GIVEN})

    answered = person.call("docs__it", reply)

    assert answers_of(answered)[0]["result"] == GIVEN


@pytest.mark.full
def test_answers_are_sealed_where_they_wait(work: Work) -> None:
    person = work.person()
    (session,) = Session.objects.all()
    asked = PendingRequest.objects.create(
        connection_id=work.connection.pk,
        session_id=session.pk,
        method="elicitation/create",
        expires_at=timezone.now() + timedelta(minutes=1),
    )

    assert person.say({"id": str(asked.pk), "result": {"content": {"pin": "a-secret-pin"}}}) == 202

    asked.refresh_from_db()
    assert asked.answer
    assert b"a-secret-pin" not in bytes(asked.answer)


@pytest.mark.full
def test_two_requests_of_one_server_are_open_at_once(work: Work) -> None:
    """Two open requests have different ids, so they can be answered in either order."""
    work.server.asks = [FORM]
    person = work.person()
    other = Person(person.agent).initialize()
    opened = threading.Barrier(2)
    answers: dict[str, Any] = {}

    def run(who: Person, name: str) -> None:
        def reply(asked: Object) -> None:
            opened.wait(60)
            who.say({"id": asked["id"], "result": {"action": "accept", "content": {"name": name}}})

        answers[name] = answers_of(who.call("docs__it", reply))[0]["result"]["content"]

    threads = [threading.Thread(target=run, args=each) for each in ((person, "one"), (other, "two"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert answers == {"one": {"name": "one"}, "two": {"name": "two"}}


@pytest.mark.full
def test_the_end_of_an_elicitation_is_told_to_the_client(work: Work) -> None:
    done = {"jsonrpc": "2.0", "method": "notifications/elicitation/complete", "params": {"elicitationId": "e1"}}

    async def call(request: Request) -> None:
        await request.open_stream()
        await request.event(done)
        await request.event({"jsonrpc": "2.0", "id": request.message["id"], "result": {"content": []}}, last=True)

    work.server.call = call
    person = work.person()
    person.call("docs__quick")

    assert person.heard == [done]


@pytest.mark.full
def test_changed_roots_are_told_to_the_servers_that_know_of_roots(work: Work) -> None:
    person, rootless = work.person(), work.person({"sampling": {}})
    for who in (person, rootless):
        who.call("docs__quick")
        assert who.say({"method": "notifications/roots/list_changed"}) == 202

    eventually(lambda: work.docs.asked("notifications/roots/list_changed"))
    told = work.docs.asked("notifications/roots/list_changed")
    assert [request.headers["mcp-session-id"] for request in told] == ["session-0"]


COULD_NOT: dict[str, tuple[tuple[str, ...], str]] = {
    "ask": ((bus.ADD,), "could not ask the client"),
    "forget": ((bus.DROP,), ""),
}


@pytest.mark.parametrize("failed", COULD_NOT)
def test_an_unstorable_server_request_is_an_error_to_the_server_or_ignored(
    work: Work, monkeypatch: pytest.MonkeyPatch, failed: str
) -> None:
    statements, told = COULD_NOT[failed]
    person = work.person()
    fail_statements(monkeypatch, *statements)

    answered = person.call("docs__it", answering(person, GIVEN))

    (given,) = answers_of(answered)
    assert told in given["error"]["message"] if told else given["result"] == GIVEN
    assert [row.outcome for row in asked_rows()] == ["rpc_error" if told else "ok"]
    assert len(person.heard) == (0 if told else 1)


@pytest.mark.full
def test_an_answer_whose_row_cannot_be_written_does_not_reach_the_server(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = CallWriter.commit

    async def fails(writer: CallWriter, row: CallRow) -> None:
        if row.method == FORM["method"]:
            raise NotRecorded(NotRecorded.__doc__)
        await commit(writer, row)

    person = work.person()
    monkeypatch.setattr(CallWriter, "commit", fails)

    answered = person.call("docs__it", answering(person, GIVEN))

    (given,) = answers_of(answered)
    assert "could not record the answer" in given["error"]["message"]
    assert "result" not in given


@pytest.mark.full
def test_unanswered_requests_are_deleted_despite_a_short_database_outage(
    work: Work, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("proxy.server_requests.PURGE_SECONDS", 0.1)
    work.person()
    fail_statements(monkeypatch, bus.PURGE)
    # A statement that began before has ended when a failure is logged.
    eventually(lambda: "requests nobody answered" in [getattr(record, "task", "") for record in caplog.records])
    PendingRequest.objects.create(
        connection_id=work.connection.pk, method=FORM["method"], expires_at=timezone.now() - timedelta(minutes=9)
    )
    assert PendingRequest.objects.exists()

    monkeypatch.undo()

    eventually(lambda: not PendingRequest.objects.exists())


@pytest.mark.full
def test_changed_roots_are_not_told_to_servers_that_may_not_be_used(work: Work, run: Run) -> None:
    boss = make.user(*Capability)
    off, keyed = run(Asker().app()), run(Asker().app())
    make.assignment(work.gateway, make.introduced(make.server(slug="off", url=off.url)))
    protected = make.introduced(make.server(slug="keyed", url=keyed.url, auth_type=AuthType.BEARER))
    identity = make.identity(protected)
    make.assignment(work.gateway, protected, identity_scheme=IdentityScheme.SHARED, shared_identity=identity)
    person = work.person()
    for name in ("docs", "off", "keyed"):
        assert "result" in person.call(f"{name}__quick")
    Server.objects.get(slug="off").disable(by=boss)
    identity.disable(by=boss)

    assert person.say({"method": ROOTS_CHANGED}) == 202

    eventually(lambda: work.docs.asked(ROOTS_CHANGED))
    identity.enable(by=boss)
    assert person.say({"method": ROOTS_CHANGED}) == 202
    eventually(lambda: keyed.asked(ROOTS_CHANGED))
    assert (len(keyed.asked(ROOTS_CHANGED)), off.asked(ROOTS_CHANGED)) == (1, [])
