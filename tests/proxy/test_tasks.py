"""Tasks: the gateway issues task ids, routes task requests to the server, and checks them like calls of the tool."""

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.conf import settings

from connections.models import Connection
from gateways.models import Assignment, Feature, Gateway
from tests import make
from tests.asgi_server import Upstream
from tests.conftest import Run
from tests.proxy.asking import FORM, Asker, Person
from tests.proxy.conftest import Agent, Proxy, Start, in_words
from tests.proxy.scripted import Object, Request, Script, tool
from tests.proxy.test_endpoint import modern
from wire.cipher import Cipher

RELATED = "io.modelcontextprotocol/related-task"
EXTENSION = "io.modelcontextprotocol/tasks"
OWN_ID = "their own id/ü"
DONE: Object = {"content": [{"type": "resource_link", "uri": "docs://page", "name": "page"}]}
CAN: Object = {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}


def related(task: object) -> Object:
    return {"_meta": {RELATED: {"taskId": task}}}


@dataclass
class Tasks(Asker):
    """A session-era server with one task. Before it answers `tasks/result`, it sends the requests in `asks`."""

    status: str = "working"
    said: list[Object] = field(default_factory=list)
    """The params of all requests about the task."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.call = self._make
        self.methods = {f"tasks/{each}": self._task for each in ("get", "result", "cancel", "list")}

    @property
    def capabilities(self) -> Object:
        return {"tools": {}, "tasks": CAN}

    async def _make(self, request: Request) -> None:
        params = request.message["params"]
        self.said.append(params)
        if "task" in params:
            await request.answer({"task": self._state(), **related(OWN_ID)})
        else:
            await request.answer({"content": [], "task": {"taskId": "data"}})

    async def _task(self, request: Request) -> None:
        self.said.append(request.message["params"])
        if request.message["params"].get("taskId") != OWN_ID:
            await request.fail(-32602, "Task not found")
        elif request.message["method"] == "tasks/result":
            await self._call(request)
        else:
            if request.message["method"] == "tasks/cancel":
                self.status = "cancelled"
            await request.answer(self._state())

    async def _finish(self, request: Request, answers: list[Object]) -> None:
        await request.event({"jsonrpc": "2.0", "method": "notifications/tasks/status", "params": self._state()})
        another = self._state() | {"taskId": "another"}
        await request.event({"jsonrpc": "2.0", "method": "notifications/tasks/status", "params": another})
        answer = {"jsonrpc": "2.0", "id": request.message["id"], "result": {**DONE, **related(OWN_ID)}}
        await request.event(answer, last=True)

    def _state(self) -> Object:
        at = "2026-01-01T00:00:00Z"
        return {"taskId": OWN_ID, "status": self.status, "createdAt": at, "lastUpdatedAt": at, "ttl": None}


@dataclass
class ModernTasks(Script):
    """A 2026-07-28 server that creates a task for every call."""

    modern: bool = True
    done: bool = False

    def __post_init__(self) -> None:
        self.pages = [[tool("it")]]
        self.call = self._make
        self.methods = {"tasks/get": self._get, "tasks/update": self._take, "tasks/cancel": self._take}

    @property
    def capabilities(self) -> Object:
        return {"tools": {}, "extensions": {EXTENSION: {}}}

    def _state(self, status: str) -> Object:
        at = "2026-01-01T00:00:00Z"
        return {"taskId": OWN_ID, "status": status, "createdAt": at, "lastUpdatedAt": at, "ttlMs": None}

    async def _make(self, request: Request) -> None:
        await request.answer({"resultType": "task", **self._state("working")})

    async def _get(self, request: Request) -> None:
        if self.done:
            await request.answer({"resultType": "complete", **self._state("completed"), "result": DONE})
        else:
            asked = {"inputRequests": {"who": FORM}}
            await request.answer({"resultType": "complete", **self._state("input_required"), **asked})

    async def _take(self, request: Request) -> None:
        self.done = True
        await request.answer({"resultType": "complete"})


@dataclass
class Work:
    """A gateway with one server, a connection, and workers to serve it."""

    gateway: Gateway
    connection: Connection
    start: Start
    run: Run

    def put(self, script: Script, slug: str = "docs") -> Upstream:
        upstream = self.run(script.app())
        era = "modern" if script.modern else "session"
        make.assignment(self.gateway, make.server(slug=slug, name=slug.title(), url=upstream.url, protocol_era=era))
        return upstream

    def person(self, proxy: Proxy, connection: Connection | None = None) -> Person:
        return Person(proxy.agent(connection or self.connection)).initialize()


@pytest.fixture
def work(start: Start, run: Run) -> Work:
    user = make.user(email="ana@example.com")
    gateway = make.gateway(slug="work")
    return Work(gateway, make.connection(make.agent(by=user), gateway, user), start, run)


def created(person: Person) -> str:
    """Return the id of a task that the tool creates for this client."""
    params = {"name": "docs__it", "arguments": {}, "task": {"ttl": 60_000}}
    return str(person.ask("tools/call", params)["result"]["task"]["taskId"])


UNKNOWN = {"code": -32602, "message": in_words("Unknown task."), "data": {"reason": "unknown_task"}}


# MCP 2025-11-25


def test_a_task_is_polled_ended_and_read_at_any_worker_under_one_id(work: Work) -> None:
    server = Tasks()
    docs = work.put(server)
    first, second = work.start(), work.start()
    person = work.person(first)
    elsewhere = Person(Agent(second.url("work"), person.agent.secret), session=person.session)

    made = person.ask("tools/call", {"name": "docs__it", "arguments": {}, "task": {"ttl": 5}})["result"]
    task = made["task"]["taskId"]
    polled = elsewhere.ask("tasks/get", {"taskId": task})["result"]
    read = elsewhere.ask("tasks/result", {"taskId": task})["result"]
    ended = person.ask("tasks/cancel", {"taskId": task})["result"]

    assert OWN_ID not in task
    assert (polled["taskId"], polled["status"]) == (task, "working")
    assert (ended["taskId"], ended["status"]) == (task, "cancelled")
    assert made["_meta"] == read["_meta"] == related(task)["_meta"]
    assert read["content"] == DONE["content"]
    assert [each.get("taskId", each.get("task")) for each in server.said] == [{"ttl": 5}, OWN_ID, OWN_ID, OWN_ID]
    asked = [each for each in docs.seen if each.method.startswith(("tasks/", "tools/call"))]
    assert len({each.headers["mcp-session-id"] for each in asked}) == 1
    rows = [(row.method, row.feature_name, row.server_name, row.outcome) for row in first.calls()[-4:]]
    assert rows == [
        (method, "docs__it", "Docs", "ok") for method in ("tools/call", "tasks/get", "tasks/result", "tasks/cancel")
    ]


@pytest.mark.full
def test_messages_of_a_task_carry_the_clients_id_and_back(work: Work) -> None:
    asks = [{**FORM, "params": {**FORM["params"], **related(OWN_ID)}}]
    server = Tasks(asks=asks)
    work.put(server)
    person = work.person(work.start())
    task = created(person)

    def reply(asked: Object) -> None:
        if "id" in asked:
            person.say({"id": asked["id"], "result": {"action": "decline", **related(task)}})

    person.ask("tasks/result", {"taskId": task, **related(task)}, reply)

    asked, *told = person.heard
    assert asked["params"]["_meta"] == related(task)["_meta"]
    assert [(each["method"], each["params"]["taskId"]) for each in told] == [("notifications/tasks/status", task)]
    assert server.answers[0]["result"] == {"action": "decline", **related(OWN_ID)}
    assert server.said[-1] == {"taskId": OWN_ID, **related(OWN_ID)}


@pytest.mark.full
def test_a_call_without_a_task_keeps_its_result_and_names_no_task_it_does_not_know(work: Work) -> None:
    server = Tasks()
    work.put(server)
    person = work.person(work.start())

    answer = person.ask("tools/call", {"name": "docs__it", "_meta": {**related(OWN_ID)["_meta"], "a": 1}})

    assert answer["result"] == {"content": [], "task": {"taskId": "data"}}
    assert server.said[-1]["_meta"] == {"a": 1}


@pytest.mark.full
def test_the_capability_is_announced_without_the_list_and_that_of_clients_is_not_passed_on(work: Work) -> None:
    server = Tasks()
    work.put(server)
    agent = work.start().agent(work.connection)
    params = {"protocolVersion": "2025-11-25", "capabilities": {"tasks": CAN}, "clientInfo": {"name": "x"}}

    announced = agent.ask("initialize", params).json()["result"]["capabilities"]
    body, headers = modern("server/discover")

    assert announced["tasks"] == {"cancel": {}, "requests": {"tools": {"call": {}}}}
    assert "tasks" not in agent.post(body, **headers).json()["result"]["capabilities"]
    created(Person(agent, {"tasks": CAN}).initialize())
    assert all("tasks" not in each["capabilities"] for each in server.told)
    assert agent.ask("tasks/list").json()["error"]["code"] == -32601


def broken(task: str) -> dict[str, object]:
    """Return ids that look like this task id but are invalid."""
    keys = Cipher(settings.ENCRYPTION_KEYS)
    other = Cipher([base64.urlsafe_b64encode(b"k" * 32)])
    facts = keys.open(task.encode())
    return {
        "cut off": task[:-8],
        "changed": task[:40] + ("A" if task[40] != "A" else "B") + task[41:],
        "sealed by another gateway": other.seal(facts).decode(),
        "of another kind": keys.seal(facts.replace('"task"', '"cursor"', 1)).decode(),
        "of other facts": keys.seal('["task"]').decode(),
        "no JSON": keys.seal("task").decode(),
        "the server's own": OWN_ID,
        "empty": "",
        "huge": "x" * 100_000,
        "no ASCII": "ü" * 50,
        "half a surrogate pair": "\ud83d",
        "a number": 7,
        "null": None,
    }


def test_a_task_of_another_connection_and_an_id_that_is_none_get_the_same_answer(work: Work) -> None:
    docs = work.put(Tasks())
    user = work.connection.user
    others = make.gateway(slug="others")
    Assignment.objects.assign(gateway=others, server=Assignment.objects.get().server, alias="docs", by=user)
    proxy = work.start()
    person = work.person(proxy)
    task = created(person)
    strangers = [
        work.person(proxy, make.connection(make.agent(by=user, name=gateway.slug), gateway, user))
        for gateway in (work.gateway, others)
    ]
    cases = {name: (person, {"taskId": each}) for name, each in broken(task).items()} | {"none": (person, {})}
    cases |= {f"at {who.agent.url}": (who, {"taskId": task}) for who in strangers}
    before = len(docs.seen)

    for method in ("tasks/get", "tasks/result", "tasks/cancel"):
        for name, (asking, params) in cases.items() if method == "tasks/get" else [*cases.items()][-3:]:
            assert asking.ask(method, params)["error"] == UNKNOWN, (method, name)
            row = proxy.last()
            assert (row.deny_reason, row.feature_name, row.server_name) == ("unknown_task", "", "")
    assert not [each for each in docs.seen[before:] if each.method.startswith("tasks/")]


def disable_tool(_: Work) -> None:
    Feature.objects.get(name="it").disable(by=make.user())


def disable_server(_: Work) -> None:
    Assignment.objects.get().server.disable(by=make.user())


@pytest.mark.full
@pytest.mark.parametrize("switch", [disable_tool, disable_server])
def test_a_request_about_a_task_is_refused_as_a_call_of_its_tool_is(work: Work, switch: Callable[[Work], None]) -> None:
    server = Tasks()
    work.put(server)
    proxy = work.start()
    person = work.person(proxy)
    person.agent.listed()
    task = created(person)
    asked = len(server.said)
    switch(work)

    call = person.call("docs__it")["error"]
    for method in ("tasks/get", "tasks/result", "tasks/cancel"):
        assert person.ask(method, {"taskId": task})["error"] == call
        row = proxy.last()
        assert (row.outcome, row.feature_name, row.server_name) == ("denied", "docs__it", "Docs")
    assert len(server.said) == asked


@pytest.mark.full
def test_a_revoked_connection_asks_about_its_tasks_no_more(work: Work) -> None:
    server = Tasks()
    work.put(server)
    person = work.person(work.start())
    task = created(person)
    work.connection.revoke(by=work.connection.user)

    assert person.agent.ask("tasks/get", {"taskId": task}, **person.headers).status_code == 401
    assert len(server.said) == 1


@pytest.mark.full
def test_the_tool_of_a_task_that_is_another_servers_by_now_has_no_such_task(work: Work) -> None:
    work.put(Tasks())
    person = work.person(work.start())
    task = created(person)
    Assignment.objects.get().remove(by=make.user())
    later = Tasks()
    work.put(later, "docs2")
    Assignment.objects.filter(removed_at=None).update(alias="docs")

    assert person.ask("tasks/get", {"taskId": task})["error"] == UNKNOWN
    assert later.said == []


@pytest.mark.full
def test_the_servers_own_error_about_a_task_is_the_clients(work: Work) -> None:
    server = Tasks()
    work.put(server)
    person = work.person(work.start())
    task = created(person)

    async def fail(request: Request) -> None:
        await request.fail(-32602, "Task has expired")

    server.methods["tasks/get"] = fail
    assert person.ask("tasks/get", {"taskId": task})["error"] == {"code": -32602, "message": "Task has expired"}


@pytest.mark.full
def test_a_servers_id_is_at_most_so_long(work: Work) -> None:
    server = Tasks()
    docs = work.put(server)
    person = work.person(work.start())

    async def make_long(request: Request) -> None:
        await request.answer({"task": {"taskId": "x" * 1_025, "status": "working"}})

    server.call = make_long
    error = person.ask("tools/call", {"name": "docs__it", "task": {}})["error"]
    assert error["data"]["reason"] == "bad_answer"
    assert len(docs.asked("tools/call")) == 1


# MCP 2026-07-28


def ask(agent: Agent, method: str, params: dict[str, Any], *, name: str = "") -> Any:
    """Send a request of a client that declares the extension; `name` is its Mcp-Name header, if given."""
    capabilities: Object = {"extensions": {EXTENSION: {}}, "elicitation": {}}
    body, headers = modern(method, params, **{"io.modelcontextprotocol/clientCapabilities": capabilities})
    return agent.post(body, **headers, **({"Mcp-Name": name} if name else {})).json()


def made(agent: Agent) -> str:
    result = ask(agent, "tools/call", {"name": "docs__it", "arguments": {}})["result"]
    assert (result["resultType"], result["status"]) == ("task", "working")
    return str(result["taskId"])


@pytest.mark.full
def test_a_task_of_2026_is_polled_given_input_and_ended_at_any_worker(work: Work) -> None:
    docs = work.put(ModernTasks())
    work.put(Script([[]], modern=True), "more")  # With several servers, the gateway maps URIs.
    first, second = work.start(), work.start()
    agent = first.agent(work.connection)
    elsewhere = Agent(second.url("work"), agent.secret)

    task = made(agent)
    waiting = ask(elsewhere, "tasks/get", {"taskId": task}, name=task)["result"]
    given = {"who": {"action": "decline"}}
    taken = ask(agent, "tasks/update", {"taskId": task, "inputResponses": given}, name=task)["result"]
    done = ask(elsewhere, "tasks/get", {"taskId": task})["result"]
    ended = ask(elsewhere, "tasks/cancel", {"taskId": task}, name=task)["result"]

    assert (waiting["taskId"], waiting["status"], waiting["inputRequests"]) == (task, "input_required", {"who": FORM})
    assert taken == ended == {"resultType": "complete"}
    assert (done["taskId"], done["status"]) == (task, "completed")
    assert done["result"]["content"][0]["uri"] == "gateway://docs/docs%3A%2F%2Fpage"
    seen = [each for each in docs.seen if each.method.startswith("tasks/")]
    assert {each.body["params"]["taskId"] for each in seen} == {OWN_ID}
    assert {each.headers["mcp-name"] for each in seen} == {f"=?base64?{base64.b64encode(OWN_ID.encode()).decode()}?="}
    assert docs.asked("tasks/update")[0].body["params"]["inputResponses"] == given
    meta = docs.asked("tasks/get")[0].body["params"]["_meta"]
    assert meta["io.modelcontextprotocol/clientCapabilities"]["extensions"] == {EXTENSION: {}}
    assert {row.feature_name for row in first.calls() if row.method.startswith("tasks/")} == {"docs__it"}


@pytest.mark.full
def test_a_task_of_2026_belongs_to_its_connection_and_era(work: Work) -> None:
    docs = work.put(ModernTasks())
    proxy = work.start()
    agent = proxy.agent(work.connection)
    user = work.connection.user
    other = proxy.agent(make.connection(make.agent(by=user, name="other"), work.gateway, user))
    task = made(agent)

    for method in ("tasks/get", "tasks/update", "tasks/cancel"):
        for asking, each in ((other, task), (agent, task[:-4]), (agent, 7)):
            assert ask(asking, method, {"taskId": each})["error"] == UNKNOWN
    assert work.person(proxy).ask("tasks/get", {"taskId": task})["error"] == UNKNOWN
    assert ask(agent, "tasks/get", {"taskId": task}, name="another")["error"]["code"] == -32020
    assert not [each for each in docs.seen if each.method.startswith("tasks/")]
    for method, code in (("tasks/result", -32601), ("tasks/list", -32601)):
        assert ask(agent, method, {"taskId": task})["error"]["code"] == code


def test_tasks_are_not_carried_between_the_eras(work: Work) -> None:
    server = Tasks()
    work.put(server)
    newer = work.put(Script([[tool("it")]], _answer, modern=True), "newer")
    proxy = work.start()
    agent = proxy.agent(work.connection)
    task = {"task": {"ttl": 5}}

    assert "task" not in work.person(proxy).ask("tools/call", {"name": "newer__it", **task})["result"]
    assert ask(agent, "tools/call", {"name": "docs__it", **task})["result"]["content"] == []

    assert "task" not in newer.asked("tools/call")[0].body["params"]
    assert "task" not in server.said[0]


async def _answer(request: Request) -> None:
    await request.answer({"resultType": "complete", "content": []})
