"""Sessions, calls and their state belong to one connection: nobody else can use, end or cancel them."""

import json
import time
from contextlib import ExitStack
from dataclasses import replace

import httpx
import pytest

from tests.contract.agents import Agent, Object, Stream, eventually, reason, result_of, text
from tests.contract.servers import Server
from tests.contract.world import Place

pytestmark = pytest.mark.full

ELICITS: Object = {"elicitation": {"form": {}}}


def in_the_session_of(agent: Agent, other: Agent) -> Agent:
    """Return `agent` with the session id of `other`."""
    return Agent(agent.url, agent.secret, dict(other.headers))


def must_not_be_found(answer: httpx.Response) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, -32001)
    assert error["message"].startswith("Session not found")


def test_session_of_another_connection_is_not_found_and_goes_on(place: Place, server: Server) -> None:
    _, stranger = place.another()
    own = place.agent.initialize()
    thief = in_the_session_of(stranger, own)

    must_not_be_found(thief.call("echo", text="x"))
    assert thief_verb(thief, "DELETE") == thief_verb(thief, "GET") == 404
    assert not server.calls()

    assert text(own.call("echo", text="own")) == "own"
    with own.listening() as stream:
        assert not stream.over.is_set()
    assert thief_verb(own, "DELETE") in {200, 202, 204}
    must_not_be_found(own.call("echo", text="ended"))


def thief_verb(agent: Agent, verb: str) -> int:
    with agent.opened(verb, None) as stream:
        assert stream.begun.wait(30)
        return stream.status


def test_cancelling_somebody_elses_call_does_nothing(place: Place, server: Server) -> None:
    _, stranger = place.another()
    own = place.agent.initialize()
    with own.under_way("slow", 77) as call:
        assert server.started.acquire(timeout=30)
        cancel = {"method": "notifications/cancelled", "params": {"requestId": 77}}

        assert stranger.post(cancel).status_code == 202
        assert stranger.initialize().post(cancel).status_code == 202
        assert in_the_session_of(stranger, own).post(cancel).status_code == 404
        time.sleep(1)

        assert not call.over.is_set()
        server.release()
        assert text(call.answer()) == "done"
    assert not server.cancelled.acquire(blocking=False)


def test_own_call_can_be_cancelled(place: Place, server: Server) -> None:
    own, numbers = place.agent.initialize(), range(78, 86)  # Enough that some run in another worker.
    with ExitStack() as stack:
        calls = [stack.enter_context(own.under_way("slow", number)) for number in numbers]
        assert all(server.started.acquire(timeout=30) for _ in calls)

        for number in numbers:
            cancel = {"method": "notifications/cancelled", "params": {"requestId": number}}
            assert own.post(cancel).status_code == 202

        assert not [call for call in calls if "result" in call.answer()]
    # The calls were cancelled, and did not time out.
    assert [row["outcome"] for row in place.calls() if row["feature_name"] == "slow"] == ["cancelled"] * len(calls)
    assert all(server.cancelled.acquire(timeout=30) for _ in calls)


def answered_with(name: str, call: Stream) -> Object:
    """Wait until the server asks for input during this call, and return an answer with this name."""
    eventually(lambda: "elicitation/create" in call.methods())
    (asked,) = [event for event in call.events if "method" in event]
    return {"id": asked["id"], "result": {"action": "accept", "content": {"name": name}}}


def test_question_of_a_server_is_answered_by_whom_it_was_put_to(place: Place) -> None:
    _, stranger = place.another()
    own, theirs = (agent.initialize(**ELICITS) for agent in (place.agent, stranger))
    with own.under_way("ask") as call:
        assert stranger.post(answered_with("Eve", call)).status_code == 202
        assert theirs.post(answered_with("Mallory", call)).status_code == 202
        assert own.post(answered_with("Ada", call)).status_code == 202

        assert json.loads(text(call.answer())) == [{"name": "Ada"}]


def test_stream_of_a_call_is_resumed_in_its_own_session_only(place: Place) -> None:
    _, stranger = place.another()
    own, thief = (agent.initialize(**ELICITS) for agent in (place.agent, stranger))
    with own.under_way("ask") as call:
        answer = answered_with("Ada", call)
        resumes = {"Last-Event-ID": call.last_event_id}
        assert all(resumes.values())
        with replace(thief, headers=thief.headers | resumes).listening() as stolen:
            own.post(answer)
            assert "Ada" in text(call.answer())
            with replace(own, headers=own.headers | resumes).listening() as resumed:
                assert resumed.over.wait(30)

            assert stolen.over.wait(30)
        assert "Ada" in text(resumed.answer())
        assert "Ada" not in str(stolen.events)


def waiting(agent: Agent, tool: str = "ask") -> Object:
    """Call a tool that needs input (2026-07-28), and return the further params with which to retry the call."""
    return retry_of(agent.call_modern(tool, ELICITS), "Ada")


def retry_of(answer: httpx.Response, name: str) -> Object:
    wanted = result_of(answer)
    assert wanted["resultType"] == "input_required"
    given = {"action": "accept", "content": {"name": name}}
    return {"inputResponses": dict.fromkeys(wanted["inputRequests"], given), "requestState": wanted["requestState"]}


def must_be_refused(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["error"]["code"], reason(answer)) == (400, -32602, "request_state")


def test_request_state_is_good_once(place: Place, server: Server) -> None:
    retry = waiting(place.agent)

    assert "Ada" in text({"result": result_of(place.agent.call_modern("ask", ELICITS, **retry))})

    must_be_refused(place.agent.call_modern("ask", ELICITS, **retry))
    assert len(server.calls("ask")) == 1


def test_request_state_is_good_once_while_its_call_goes_on(place: Place, server: Server) -> None:
    first = waiting(place.agent, "ask_twice")
    second = retry_of(place.agent.call_modern("ask_twice", ELICITS, **first), "Ben")

    must_be_refused(place.agent.call_modern("ask_twice", ELICITS, **first))

    answer = place.agent.call_modern("ask_twice", ELICITS, **second)
    assert json.loads(text({"result": result_of(answer)})) == [{"name": "Ada"}, {"name": "Ben"}]
    assert len(server.calls("ask_twice")) == 1


def test_request_state_is_good_for_its_own_request_only(place: Place, server: Server) -> None:
    retry = waiting(place.agent)

    must_be_refused(place.agent.call_modern("ask", ELICITS, **{**retry, "arguments": {"other": True}}))
    must_be_refused(place.agent.call_modern("slow", ELICITS, **retry))

    assert not server.calls("slow")
    assert len(server.calls("ask")) == 1


def test_request_state_is_good_for_its_own_connection_only(place: Place, server: Server) -> None:
    _, stranger = place.another()
    retry = waiting(place.agent)

    must_be_refused(stranger.call_modern("ask", ELICITS, **retry))

    assert "Ada" in text({"result": result_of(place.agent.call_modern("ask", ELICITS, **retry))})
    assert len(server.calls("ask")) == 1


def test_request_state_that_was_changed_is_refused(place: Place, server: Server) -> None:
    retry = waiting(place.agent)
    state = str(retry["requestState"])
    forged = state[:-6] + ("AAAAAA" if state[-6:] != "AAAAAA" else "BBBBBB")

    must_be_refused(place.agent.call_modern("ask", ELICITS, **{**retry, "requestState": forged}))
    eventually(lambda: len(server.calls("ask")) == 1)
