"""One table has the methods of each era; documentation, announced capabilities and handlers match it."""

import re
from typing import Any

import pytest

from proxy.response import MODERN_STATUS
from tests.conftest import Run
from tests.proxy.conftest import Proxy, eventually
from tests.proxy.features import offer, put
from tests.proxy.scripted import Request, returning
from tests.proxy.test_endpoint import modern
from tests.proxy.test_tools_call import Work, work_of
from tests.workspace import ROOT
from wire.mcp import METHODS

CAPABILITIES = {method.capability for method in METHODS.values()} - {""}
PAGE = ROOT / "docs" / "reference" / "protocol.md"


@pytest.fixture
def work(proxy: Proxy, run: Run) -> Work:
    return work_of(proxy, run)


def documented() -> dict[str, tuple[bool, bool, str]]:
    rows = re.findall(r"^\| `([\w/]+)` \| (yes|no) \| (yes|no) \| (?:`(\w+)`)? *\|$", PAGE.read_text(), re.MULTILINE)
    return {name: (session == "yes", new == "yes", capability) for name, session, new, capability in rows}


def test_the_page_shows_the_table() -> None:
    assert documented() == {
        name: (method.session, method.modern, method.capability) for name, method in METHODS.items()
    }


@pytest.mark.full
def test_a_method_is_found_in_the_eras_the_table_says_and_in_no_other(work: Work, subtests: pytest.Subtests) -> None:
    for name in (*METHODS, "tasks/list", "no/such"):
        with subtests.test(name):
            _is_found_where_the_table_says(name, work)


def _is_found_where_the_table_says(name: str, work: Work) -> None:
    method = METHODS.get(name)
    standing = {"subscriptions/listen", "resources/subscribe", "resources/unsubscribe"}
    body, headers = modern(name)

    def is_found(code: object) -> bool:
        return code != -32601

    session = work.agent.ask(name).json().get("error", {}).get("code")
    assert is_found(session) == (method is not None and method.session) or name in standing
    if name != "subscriptions/listen":
        answer = work.agent.post(body, **headers)
        new = answer.json().get("error", {}).get("code")
        # A missing parameter is reported before an unknown method.
        assert is_found(new) == (method is not None and method.modern) or new in MODERN_STATUS
        if not is_found(new):
            assert answer.status_code == 404


@pytest.mark.full
def test_initialize_and_discover_announce_what_servers_offer_and_is_served(work: Work) -> None:
    async def introduce(request: Request) -> None:
        offered: dict[str, Any] = {
            "tools": {},
            "prompts": {},
            "resources": {},
            "completions": {},
            "logging": {},
            "tasks": {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}, "prompts": {"get": {}}}},
        }
        await request.answer({"protocolVersion": "2025-06-18", "capabilities": offered, "serverInfo": {"name": "x"}})

    put(work, initialize=introduce, tools_call=returning({"content": []}))
    offer("it", "tool")
    assert "result" in work.agent.call("docs__it").json()

    def announced() -> set[str]:
        told = work.agent.ask("initialize", {"protocolVersion": "2025-11-25"}).json()["result"]["capabilities"]
        return set(told)

    eventually(lambda: announced() == CAPABILITIES)
    body, headers = modern("server/discover")
    # In 2026-07-28, tasks are an extension instead.
    assert set(work.agent.post(body, **headers).json()["result"]["capabilities"]) == CAPABILITIES - {"tasks"}


@pytest.mark.full
@pytest.mark.parametrize("is_modern", [False, True], ids=["session server", "modern server"])
def test_features_nobody_has_called_are_announced_at_once(work: Work, is_modern: bool) -> None:
    async def introduce(request: Request) -> None:
        offered: dict[str, Any] = {"tools": {}, "prompts": {}, "resources": {"subscribe": True}}
        said = {"protocolVersion": "2025-11-25", "supportedVersions": ["2026-07-28"], "capabilities": offered}
        await request.answer({**said, "serverInfo": {"name": "x"}, "instructions": "Ask for pages."})

    method = "server_discover" if is_modern else "initialize"
    docs = put(work, modern=True, server_discover=introduce) if is_modern else put(work, initialize=introduce)

    told = work.agent.ask("initialize", {"protocolVersion": "2025-11-25"}).json()["result"]

    assert set(told["capabilities"]) == {"tools", "prompts", "resources"}
    assert told["capabilities"]["resources"]["subscribe"] is True
    assert "Ask for pages." in told["instructions"]
    body, headers = modern("server/discover")
    assert work.agent.post(body, **headers).json()["result"]["capabilities"] == told["capabilities"]
    assert len(docs.asked(method.replace("_", "/"))) == 1
    again = work.agent.ask("initialize", {"protocolVersion": "2025-11-25"}).json()["result"]
    assert again["capabilities"] == told["capabilities"]


def test_a_server_that_does_not_answer_holds_up_no_handshake_for_long(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.lists.WAIT_SECONDS", 0.2)

    async def silent(request: Request) -> None:
        await request.receive()
        await request.receive()

    put(work, initialize=silent)

    for _ in range(2):
        told = work.agent.ask("initialize", {"protocolVersion": "2025-11-25"}).json()["result"]
        assert set(told["capabilities"]) == {"tools"}
