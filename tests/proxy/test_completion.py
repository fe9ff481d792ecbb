"""completion/complete is sent to the server of the prompt or template, unless the server has no completions."""

import pytest

from tests.conftest import Run
from tests.proxy.conftest import Proxy
from tests.proxy.features import offer, put
from tests.proxy.scripted import failing, returning
from tests.proxy.test_endpoint import modern
from tests.proxy.test_tools_call import Work, work_of


@pytest.fixture
def work(proxy: Proxy, run: Run) -> Work:
    return work_of(proxy, run)


VALUES = {"completion": {"values": ["a", "b"], "total": 2, "hasMore": False}}
ARGUMENT = {"name": "id", "value": "a"}


@pytest.mark.full
@pytest.mark.parametrize(
    ("ref", "own"),
    [
        ({"type": "ref/prompt", "name": "docs__hello"}, {"type": "ref/prompt", "name": "hello"}),
        (
            {"type": "ref/resource", "uri": "gateway://docs/docs%3A%2F%2Fpage%2F({id})"},
            {"type": "ref/resource", "uri": "docs://page/{id}"},
        ),
    ],
)
def test_it_goes_to_the_server_of_its_ref_under_the_servers_own_name(
    work: Work, ref: dict[str, str], own: dict[str, str]
) -> None:
    docs, other = put(work, completion_complete=returning(VALUES)), put(work, "other")
    offer("hello", "prompt")
    offer("docs://page/{id}", "template")

    answer = work.agent.ask("completion/complete", {"ref": ref, "argument": ARGUMENT, "context": {"arguments": {}}})

    assert answer.json()["result"] == VALUES
    assert docs.asked("completion/complete")[0].body["params"] == {
        "ref": own,
        "argument": ARGUMENT,
        "context": {"arguments": {}},
    }
    assert other.asked("completion/complete") == []
    assert work.proxy.last().feature_type == ("prompt" if "name" in ref else "resource")


@pytest.mark.full
def test_a_server_without_completions_completes_nothing(work: Work) -> None:
    put(work, completion_complete=failing(-32601, "Method not found"))
    offer("hello", "prompt")
    params = {"ref": {"type": "ref/prompt", "name": "docs__hello"}, "argument": ARGUMENT}
    body, headers = modern("completion/complete", params)

    session, new = work.agent.ask("completion/complete", params), work.agent.post(body, **headers)

    assert session.json()["result"] == {"completion": {"values": []}}
    assert new.json()["result"] == {"completion": {"values": []}, "resultType": "complete"}
    assert (session.status_code, new.status_code) == (200, 200)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["prompt", "template"])
def test_disabled_features_get_no_completions(work: Work, kind: str) -> None:
    docs = put(work, completion_complete=returning(VALUES))
    name = "hello" if kind == "prompt" else "docs://page/{id}"
    offer(name, kind, enabled=False)
    ref = {"type": "ref/prompt", "name": "docs__hello"} if kind == "prompt" else {"type": "ref/resource", "uri": name}

    error = work.agent.ask("completion/complete", {"ref": ref, "argument": ARGUMENT}).json()["error"]

    assert error["code"] == -32003
    assert docs.asked("completion/complete") == []


@pytest.mark.parametrize("ref", [None, 7, {}, {"type": "ref/prompt"}, {"type": "ref/resource", "uri": 3}])
def test_a_ref_of_a_wrong_form_is_invalid(work: Work, ref: object) -> None:
    assert work.agent.ask("completion/complete", {"ref": ref, "argument": ARGUMENT}).json()["error"]["code"] == -32602
