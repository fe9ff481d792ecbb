"""prompts/get is routed and checked by the prompt's name, as a call is by the tool's. Its answer is unchanged."""

import json

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


PROMPT = {"messages": [{"role": "user", "content": {"type": "text", "text": "ü"}}], "future": [1]}


@pytest.mark.full
def test_a_prompt_is_got_under_the_servers_own_name_and_its_answer_passes_byte_for_byte(work: Work) -> None:
    text = b'{"jsonrpc": "2.0", "id": ID, "result": {"messages": [], "n": 1.10, "n": 2e0}}'
    docs = put(work, prompts_get=returning(text))
    offer("hello", "prompt")

    answer = work.agent.ask("prompts/get", {"name": "docs__hello", "arguments": {"a": "1"}})

    assert answer.content == text.replace(b"ID", b"1")
    assert docs.asked("prompts/get")[0].body["params"] == {"name": "hello", "arguments": {"a": "1"}}
    row = work.proxy.last()
    assert (row.method, row.feature_type, row.feature_name) == ("prompts/get", "prompt", "docs__hello")
    assert (row.outcome, row.server_name) == ("ok", "Docs")


@pytest.mark.full
def test_a_prompt_that_is_switched_off_is_refused_and_a_tool_of_its_name_is_not(work: Work) -> None:
    docs = put(work, prompts_get=returning(PROMPT), tools_call=returning({"content": []}))
    prompt = offer("hello", "prompt")
    offer("hello", "tool")
    assert "result" in work.agent.ask("prompts/get", {"name": "docs__hello"}).json()

    prompt.disable(by=None)

    error = work.agent.ask("prompts/get", {"name": "docs__hello"}).json()["error"]
    assert (error["code"], error["data"]["reason"]) == (-32003, "prompt_disabled")
    assert "hello" in error["message"]
    assert len(docs.asked("prompts/get")) == 1
    row = work.proxy.last()
    assert (row.outcome, row.deny_reason, row.feature_type) == ("denied", "prompt_disabled", "prompt")
    assert "result" in work.agent.call("docs__hello").json()


@pytest.mark.full
def test_an_unknown_prompt_is_invalid_params_in_both_eras(work: Work) -> None:
    put(work, prompts_get=failing(-32602, "Unknown prompt"))
    body, headers = modern("prompts/get", {"name": "other__hello"})

    session = work.agent.ask("prompts/get", {"name": "other__hello"})
    new = work.agent.post(body, **headers)

    assert (session.status_code, session.json()["error"]["code"]) == (200, -32602)
    assert (new.status_code, new.json()["error"]["code"]) == (400, -32602)


def test_params_of_a_wrong_form_reach_no_server(work: Work) -> None:
    docs = put(work, prompts_get=returning(PROMPT))

    wrong: list[object] = [{}, {"name": 7}, {"name": ""}, {"name": "a\0"}, {"name": "a", "arguments": []}]
    for params in wrong:
        assert work.agent.ask("prompts/get", params).json()["error"]["code"] == -32602, params
    assert docs.asked("prompts/get") == []


@pytest.mark.full
@pytest.mark.parametrize(("new_client", "new_server"), [(False, True), (True, False)])
def test_between_the_eras_only_the_members_of_the_era_differ(work: Work, new_client: bool, new_server: bool) -> None:
    kept = '"messages": [], "n": 1.10, "big": 123456789012345678901234567890, "huge": 1e400, "lone": "\\ud83d"'
    own = '"resultType": "complete", ' if new_server else ""
    text = f'{{"jsonrpc": "2.0", "id": ID, "result": {{{own}{kept}}}}}'
    put(work, modern=new_server, prompts_get=returning(text.encode()))
    offer("hello", "prompt")
    params = {"name": "docs__hello"}
    body, headers = modern("prompts/get", params) if new_client else (None, {})

    answer = work.agent.post(body, **headers) if new_client else work.agent.ask("prompts/get", params)

    result = json.loads(answer.content)["result"]
    assert result.get("resultType") == ("complete" if new_client else None)
    for spelled in ("1.10", "123456789012345678901234567890", "1e400", "\\ud83d"):
        assert spelled in answer.text
