"""completion/complete is sent to the server of the prompt or template, unless the server has no completions."""

from typing import Any

import pytest

from gateways.models import Feature
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


def test_it_goes_to_the_server_of_its_ref_under_the_servers_own_name_unless_that_is_disabled(work: Work) -> None:
    docs, other = put(work, completion_complete=returning(VALUES)), put(work, "other")
    offer("hello", "prompt")
    offer("docs://page/{id}", "template")
    prompt = {"type": "ref/prompt", "name": "docs__hello"}
    template = {"type": "ref/resource", "uri": "gateway://docs/docs%3A%2F%2Fpage%2F({id})"}

    def completed(ref: object) -> dict[str, Any]:
        params = {"ref": ref, "argument": ARGUMENT, "context": {"arguments": {}}}
        return dict(work.agent.ask("completion/complete", params).json())

    for ref, feature_type in ((prompt, "prompt"), (template, "resource")):
        assert completed(ref)["result"] == VALUES
        assert work.proxy.last().feature_type == feature_type
    sent = {"argument": ARGUMENT, "context": {"arguments": {}}}
    assert [each.body["params"] for each in docs.asked("completion/complete")] == [
        {"ref": {"type": "ref/prompt", "name": "hello"}, **sent},
        {"ref": {"type": "ref/resource", "uri": "docs://page/{id}"}, **sent},
    ]

    for wrong in (None, 7, {}, {"type": "ref/prompt"}, {"type": "ref/resource", "uri": 3}):
        assert completed(wrong)["error"]["code"] == -32602
    Feature.objects.update(enabled=False)
    assert [completed(ref)["error"]["code"] for ref in (prompt, template)] == [-32003] * 2
    assert len(docs.asked("completion/complete")) == 2
    assert other.asked("completion/complete") == []


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
