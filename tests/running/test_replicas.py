"""Two `serve` processes on one database behind nginx, without sticky sessions: each can answer any request."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests import upstreams
from tests.eventually import PATIENCE, eventually
from tests.proxy.conftest import Agent
from tests.proxy.listening import Listener, listening
from tests.running.debian import programs, restart
from tests.running.processes import workers
from tests.running.replicas import (
    FAULTS,
    Replicas,
    Troubled,
    call,
    count,
    good_again,
    in_session,
    leave,
)

pytestmark = pytest.mark.full

ELICITATION: dict[str, Any] = {"elicitation": {"form": {}}}
BUSES = "FROM pg_stat_activity WHERE application_name = 'gateway bus' AND datname = current_database()"
WORKERS = 2  # Of each `serve`.
ACCEPTED = {"action": "accept", "content": {"name": "Ann"}}


def heard(listener: Listener, method: str, seconds: float = PATIENCE) -> dict[str, object]:
    """Return the first message of this method on a stream."""
    deadline = time.monotonic() + seconds
    while True:
        for event in listener.events:
            if event.get("method") == method:
                return dict(event)
        assert time.monotonic() < deadline, f"{listener.events} {listener.body!r}"
        time.sleep(0.005)


def final(listener: Listener) -> Any:
    """Return the final answer of a stream, or the body if no stream was needed."""
    return json.loads(listener.body) if listener.body else listener.events[-1]


def outcomes(both: Replicas, agent: Agent) -> list[str]:
    """Return the outcomes of this client's calls in the log."""
    return [row["outcome"] for row in both.rows(agent) if row["method"] == "tools/call"]


def each_takes_some(both: Replicas) -> bool:
    """Send a few requests; return True if each replica gets at least one."""
    taken = len(both.front.taken)
    for _ in range(4):
        httpx.get(f"{both.url}/livez", trust_env=False)
    return set(both.front.taken[taken:]) == {serve.port for serve in both.serves}


def test_a_client_has_one_session_at_the_server_whichever_replica_takes_its_calls(both: Replicas) -> None:
    agent = both.agent()
    # A client without a session has one at the server for its connection.
    assert [number for number, _ in (count(agent) for _ in range(6))] == [*range(1, 7)]
    one, two = in_session(agent), in_session(agent)
    eventually(lambda: each_takes_some(both))  # nginx skips a replica for ten seconds after it was down.
    taken = len(both.front.taken)

    counted = [count(one) for _ in range(6)]
    with ThreadPoolExecutor(12) as at_once:
        others = list(at_once.map(lambda _: count(two), range(12)))

    assert [number for number, _ in counted] == [*range(1, 7)]
    assert sorted(number for number, _ in others) == [*range(1, 13)]
    assert len({session for _, session in counted}) == len({session for _, session in others}) == 1
    assert counted[0][1] != others[0][1]
    assert set(both.front.taken[taken:]) == {serve.port for serve in both.serves}
    large = in_session(agent).call("count", {"text": "x" * (3 << 20)})
    assert large.json()["result"]["structuredContent"]["count"] == 1


# Create a person with a token at an existing agent's gateway, and a provisioning key for members.
PROVISION = """
import json
from accounts.models import Role, User
from capabilities import Capability
from connections.models import Connection
from gateways.models import Gateway
from hosts.models import Host
from scim.models import ProvisioningKey
from tokens.models import Token
role = Role.objects.get(name="Member")
key = ProvisioningKey.objects.issue(name="Okta", role=role, capabilities=role.capabilities, by=by)
person = User.objects.provision(email="leaver@example.com", display_name="", role=role, by=key.key.actor)
host = Host.objects.add_agent(name="leaver's", by=person)
gateway = Gateway.objects.get(slug={slug!r})
connection = Connection.objects.open(host=host, gateway=gateway, user=person, identities={{}}, by=person)
token = Token.objects.issue(connection, name="t", by=person).secret
print(json.dumps({{"key": key.secret, "person": str(person.pk), "token": token}}))
"""


def test_a_person_deactivated_by_a_directory_is_refused_on_the_next_call_at_every_replica(both: Replicas) -> None:
    owners = both.agent()
    made = json.loads(both.shell(PROVISION.format(slug=owners.url.rsplit("/", 1)[1])))
    agent = Agent(owners.url, made["token"], owners.headers)
    session = in_session(agent)

    def provision(number: int, active: bool) -> int:
        """As a directory, set the person's `active` through this replica; return the HTTP status."""
        url = f"http://localhost:{both.front.doors[number]}/scim/v2/Users/{made['person']}"
        schemas = ["urn:ietf:params:scim:api:messages:2.0:PatchOp"]
        body = {"schemas": schemas, "Operations": [{"op": "replace", "path": "active", "value": active}]}
        headers = {"Authorization": f"Bearer {made['key']}"}
        return httpx.patch(url, json=body, headers=headers, trust_env=False, timeout=30).status_code

    for number in (0, 1):
        # Every worker has served this person before.
        assert all(count(one) for _ in range(2 * WORKERS) for one in (agent, session))
        assert provision(number, active=False) == 204
        # Each connection is a new one, so that all workers are asked.
        statuses = [both.at(at, one).call("count").status_code for at in (0, 1) for one in (agent, session) * WORKERS]
        assert {*statuses} == {401}
        assert provision(number, active=True) == 204
        assert {both.at(at, session).call("count").status_code for at in (0, 1)} == {200}


def test_concurrent_requests_of_a_directory_create_each_object_once(both: Replicas) -> None:
    code = """
from accounts.models import Role
from scim.models import ProvisioningKey
role = Role.objects.get(name="Member")
print(ProvisioningKey.objects.issue(name="At once", role=role, capabilities=role.capabilities, by=by).secret)
"""
    headers = {"Authorization": f"Bearer {both.shell(code).strip()}"}

    def ask(method: str, number: int, path: str, **body: Any) -> httpx.Response:
        url = f"http://localhost:{both.front.doors[number % 2]}/scim/v2{path}"
        return httpx.request(method, url, json=body or None, headers=headers, trust_env=False, timeout=60)

    def join(number: int, group: str, pk: str) -> int:
        operation = {"op": "add", "path": "members", "value": [{"value": pk}]}
        return ask("PATCH", number, f"/Groups/{group}", Operations=[operation]).status_code

    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda number: ask("POST", number, "/Users", userName="twin@example.com"), range(6)))
        assert sorted(one.status_code for one in made) == [201, 409, 409, 409, 409, 409]
        people = [
            one.json()["id"]
            for one in pool.map(
                lambda number: ask("POST", number, "/Users", userName=f"p{number}@example.com"), range(6)
            )
        ]
        group = ask("POST", 0, "/Groups", displayName="Together").json()["id"]
        assert {*pool.map(join, range(6), [group] * 6, people)} == {204}
    members = ask("GET", 1, f"/Groups/{group}").json()["members"]
    assert {one["value"] for one in members} == {*people}


def test_killed_workers_and_a_restart_of_a_replica_lose_nothing_of_a_session(both: Replicas) -> None:
    agent = in_session(both.agent())
    counted = [count(agent)]
    for serve in both.serves:
        assert serve.process is not None
        worker = workers(serve.process.pid)[0]
        worker.kill()
        worker.wait()
        counted.append(count(agent))
        serve.wait_until_ready()
        counted.append(count(agent))
    restarted = both.serves[0]
    restarted.stop()
    counted += [count(agent) for _ in range(2)]
    restarted.start()
    counted += [count(both.at(0, agent)) for _ in range(4)]
    assert [number for number, _ in counted] == [*range(1, len(counted) + 1)]
    assert len({session for _, session in counted}) == 1


def test_a_request_the_client_cannot_answer_is_refused_for_it(both: Replicas) -> None:
    agent = in_session(both.agent())
    opened = len(both.counter.events("get"))
    with listening(agent, "POST", call("ask")) as answer:
        assert answer.over.wait(PATIENCE)
    assert final(answer)["result"]["structuredContent"]["answer"]["error"]["code"] == -32601

    with listening(agent, "GET"):
        both.counter.wait_for("get", opened + 1)
        answers = len(both.counter.answers)
        both.counter.say.append({"jsonrpc": "2.0", "id": "of the stream", "method": "roots/list"})
        eventually(lambda: len(both.counter.answers) > answers)
        leave(agent)
    both.counter.say.clear()
    assert both.counter.answers[-1]["id"] == "of the stream"
    assert both.counter.answers[-1]["error"]["code"] == -32601


def test_a_call_is_cancelled_from_another_replica(both: Replicas) -> None:
    agent = in_session(both.agent())
    seen, calls = len(both.counter.events("cancelled")), len(both.counter.events("call"))
    with listening(both.at(0, agent), "POST", call("wait", "slow", seconds=600)) as answer:
        both.counter.wait_for("call", calls + 1)
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "slow"}}
        assert both.at(1, agent).post(note).status_code == 202
        both.counter.wait_for("cancelled", seen + 1)
        assert answer.over.wait(PATIENCE)
    assert not [event for event in answer.events if "result" in event]
    assert outcomes(both, agent) == ["cancelled"]


def test_a_revoked_token_ends_the_streams_of_all_replicas(both: Replicas) -> None:
    agent = in_session(both.agent())
    count(agent)
    slug = agent.url.rsplit("/", 1)[1]
    calls = len(both.counter.events("call"))
    with (
        listening(both.at(0, agent), "GET") as one,
        listening(both.at(1, agent), "GET") as two,
        listening(both.at(0, agent), "POST", call("wait", "a", seconds=600)) as three,
        listening(both.at(1, agent), "POST", call("wait", "b", seconds=600)) as four,
    ):
        both.counter.wait_for("call", calls + 2)
        assert one.begun.wait(PATIENCE)
        assert two.begun.wait(PATIENCE)
        assert [stream.status for stream in (one, two)] == [200, 200]
        both.shell(
            "from tokens.models import Token\n"
            f"for token in Token.objects.filter(connection__gateway__slug={slug!r}): token.revoke(by=by)"
        )
        for stream in (one, two, three, four):
            assert stream.over.wait(PATIENCE)
    for stream in (one, two, three, four):
        assert "error" in final(stream)
        assert not [event for event in stream.events if "result" in event]


def test_a_server_request_is_answered_through_any_replica(both: Replicas) -> None:
    """The client gets the request on the call's stream, even if the server sent it on a standing stream."""
    agent = in_session(both.agent(), ELICITATION)
    for here, there, is_standing in ((0, 1, False), (1, 0, True), (0, 0, True)):
        with listening(both.at(here, agent), "POST", call("ask", standing=is_standing)) as answer:
            asked = heard(answer, "elicitation/create")
            reply = {"jsonrpc": "2.0", "id": asked["id"], "result": ACCEPTED}
            assert both.at(there, agent).post(reply).status_code == 202
            assert answer.over.wait(PATIENCE)
        assert final(answer)["result"]["structuredContent"]["answer"]["result"] == ACCEPTED
    assert outcomes(both, agent) == ["ok", "ok", "ok"]


def test_clients_of_all_replicas_are_told_of_a_changed_list(both: Replicas) -> None:
    agent = both.agent()
    slug = agent.url.rsplit("/", 1)[1]
    eventually(agent.tools)
    clients = [both.at(number, in_session(agent)) for number in (0, 1)]
    with listening(clients[0], "GET") as one, listening(clients[1], "GET") as two:
        for stream in (one, two):
            assert stream.begun.wait(PATIENCE)
        time.sleep(1.5)  # Until the workers have stored the latest facts about the server.
        told = [len(stream.events) for stream in (one, two)]
        both.shell(
            "from gateways.models import Assignment\n"
            f"Assignment.objects.get(gateway__slug={slug!r}).edit(by=by, tool_policy='block_all')"
        )
        for stream, before in zip((one, two), told, strict=True):
            stream.wait_for(before + 1)
            assert stream.events[before]["method"] == "notifications/tools/list_changed"
        for client in clients:
            leave(client)
        assert one.over.wait(PATIENCE)
        assert two.over.wait(PATIENCE)
    assert agent.tools() == []


def test_whatever_a_server_does_within_a_session_the_session_goes_on(both: Replicas) -> None:
    agent = in_session(both.agent())
    slug = agent.url.rsplit("/", 1)[1]
    both.serves[0].rows("UPDATE servers_server SET timeout_seconds = 2 WHERE slug = %s", slug)
    counted, wanted = [count(agent)], ["ok"]

    for number, (how, reason) in enumerate(FAULTS.items()):
        answered = both.at(number % 2, agent).call("bad", {"how": how}).json()
        assert answered["error"]["data"]["reason"] == reason, how
        assert answered["error"]["message"]
        counted.append(count(agent))
        wanted += ["timeout" if reason == "timeout" else "upstream_error", "ok"]

    assert [number for number, _ in counted] == [*range(1, len(counted) + 1)]
    assert len({session for _, session in counted}) == 1
    assert outcomes(both, agent) == wanted


def afresh(agent: Agent) -> Agent:
    """Return the same client in a new session."""
    return in_session(Agent(agent.url, agent.secret, {"Accept": agent.headers["Accept"]}))


def test_a_session_that_its_server_forgot_has_ended_at_all_replicas(both: Replicas) -> None:
    agent = in_session(both.agent())
    before = [count(agent) for _ in range(3)]
    both.counter.forget_sessions()

    assert [agent.call("count").status_code for _ in range(4)] == [404] * 4
    again = afresh(agent)
    after = [count(again) for _ in range(4)]
    assert [number for number, _ in after] == [1, 2, 3, 4]
    assert len({session for _, session in after}) == 1
    assert after[0][1] != before[0][1]


def test_a_lost_listen_loses_no_answer(both: Replicas) -> None:
    agent = in_session(both.agent(), ELICITATION)
    with listening(both.at(0, agent), "POST", call("ask")) as answer:
        asked = heard(answer, "elicitation/create")
        eventually(lambda: len(both.serves[0].rows(f"SELECT pid {BUSES}")) == 4)  # One for each worker.
        assert len(both.serves[0].rows(f"SELECT pg_terminate_backend(pid) {BUSES}")) == 4
        reply = {"jsonrpc": "2.0", "id": asked["id"], "result": ACCEPTED}
        assert both.at(1, agent).post(reply).status_code == 202
        assert answer.over.wait(PATIENCE)
    assert final(answer)["result"]["structuredContent"]["answer"]["result"] == ACCEPTED
    good_again(agent, PATIENCE)
    assert set(outcomes(both, agent)) == {"ok"}


def test_clients_of_a_restarted_server_begin_new_sessions_at_all_replicas(both: Replicas) -> None:
    server = Troubled()
    with ExitStack() as stack:
        upstream = stack.enter_context(upstreams.running(server))
        agent = in_session(both.agent(upstream.url))
        before = [count(agent) for _ in range(2)]
        with listening(both.at(0, agent), "GET") as stream:
            assert stream.begun.wait(PATIENCE)
            server.wait_for("get")
            stack.close()
            for _ in both.serves:
                answered = agent.call("count").json()
                assert answered["error"]["data"]["reason"] == "unreachable"
            server.forget_sessions()
            with upstreams.running(server, port=upstream.port):
                eventually(lambda: agent.call("count").status_code == 404)
                again = afresh(agent)
                after = [count(again) for _ in range(4)]
                leave(again)
                assert stream.over.wait(PATIENCE)

    assert [number for number, _ in before] == [1, 2]
    assert [number for number, _ in after] == [1, 2, 3, 4]
    assert len({session for _, session in after}) == 1
    assert after[0][1] != before[0][1]
    assert outcomes(both, agent)[:4] == ["ok", "ok", "upstream_error", "upstream_error"]


def test_a_restarted_postgresql_loses_no_session_no_stream_and_no_answer(both: Replicas) -> None:
    agent = in_session(both.agent(), ELICITATION)
    counted = [count(agent) for _ in range(4)]
    with (
        listening(both.at(0, agent), "GET") as stream,
        listening(both.at(0, agent), "POST", call("ask")) as answer,
    ):
        asked = heard(answer, "elicitation/create")
        both.serves[0].commands.stop()
        restart(programs(), both.serves[0].database_url)

        for replica in (0, 1):
            good_again(both.at(replica, agent), PATIENCE)
        counted += [count(agent) for _ in range(4)]
        reply = {"jsonrpc": "2.0", "id": asked["id"], "result": ACCEPTED}
        assert both.at(1, agent).post(reply).status_code == 202
        assert answer.over.wait(PATIENCE)
        assert final(answer)["result"]["structuredContent"]["answer"]["result"] == ACCEPTED
        assert not stream.over.is_set()
        leave(agent)
        assert stream.over.wait(PATIENCE)
    assert [number for number, _ in counted] == [1, 2, 3, 4, 7, 8, 9, 10]
    assert len({session for _, session in counted}) == 1
    assert set(outcomes(both, agent)) == {"ok"}
