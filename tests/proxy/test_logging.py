"""A server's log messages at or above the client's minimum level are sent on the stream of their call."""

from typing import Any

import pytest

from tests.conftest import Run
from tests.proxy.conftest import Proxy
from tests.proxy.features import offer, put
from tests.proxy.scripted import Request, failing, returning
from tests.proxy.test_endpoint import modern
from tests.proxy.test_streams import listen
from tests.proxy.test_tools_call import Work, work_of

LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
LOG_LEVEL = "io.modelcontextprotocol/logLevel"


@pytest.fixture
def work(proxy: Proxy, run: Run) -> Work:
    return work_of(proxy, run)


async def log(request: Request) -> None:
    """Send a log message at every level and one at an invalid level, then answer."""
    await request.open_stream()
    for level in LEVELS:
        params = {"level": level, "logger": "db", "data": level}
        await request.event({"jsonrpc": "2.0", "method": "notifications/message", "params": params})
    await request.event({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "loud"}})
    done = {"jsonrpc": "2.0", "id": request.message["id"], "result": {"content": []}}
    await request.event(done, last=True)


def levels_of(events: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(event["params"]["level"] for event in events if event.get("method") == "notifications/message")


def call(**meta: object) -> dict[str, Any]:
    params = {"name": "docs__it", "arguments": {}, **({"_meta": meta} if meta else {})}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


def session_of(work: Work) -> dict[str, str]:
    """Return the header of a client session."""
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "probe", "version": "1"}}
    return {"Mcp-Session-Id": work.agent.ask("initialize", params).headers["mcp-session-id"]}


@pytest.mark.full
@pytest.mark.parametrize("new_server", [False, True])
def test_a_session_hears_from_its_level_on_and_the_server_is_told_once(work: Work, new_server: bool) -> None:
    docs = put(work, modern=new_server, tools_call=log, logging_setLevel=returning({}))
    offer("it", "tool")
    headers = session_of(work)
    assert work.agent.ask("logging/setLevel", {"level": "error"}, **headers).json()["result"] == {}

    for _ in range(2):
        assert levels_of(listen(work.agent, call(), **headers).events) == LEVELS[4:]
    work.agent.ask("logging/setLevel", {"level": "debug"}, **headers)
    assert levels_of(listen(work.agent, call(), **headers).events) == LEVELS

    if new_server:
        assert [each.body["params"]["_meta"][LOG_LEVEL] for each in docs.asked("tools/call")] == [
            *["error"] * 2,
            "debug",
        ]
    else:
        assert [each.body["params"]["level"] for each in docs.asked("logging/setLevel")] == ["error", "debug"]
    # Another session of the same connection gets all messages.
    heard = listen(work.agent, call(), **session_of(work)).events
    assert levels_of(heard) == LEVELS
    assert {event["params"]["logger"] for event in heard if "method" in event} == {"docs/db"}
    assert heard[-1]["result"] == {"content": []}


@pytest.mark.full
def test_a_server_that_cannot_log_is_told_once_and_called_all_the_same(work: Work) -> None:
    docs = put(work, tools_call=log, logging_setLevel=failing(-32601, "Method not found"))
    offer("it", "tool")
    headers = session_of(work)
    work.agent.ask("logging/setLevel", {"level": "alert"}, **headers)

    for _ in range(3):
        assert levels_of(listen(work.agent, call(), **headers).events) == ("alert", "emergency")
    assert len(docs.asked("logging/setLevel")) == 1


@pytest.mark.parametrize("new_server", [False, True])
def test_a_modern_client_hears_nothing_unless_its_request_names_a_level(work: Work, new_server: bool) -> None:
    docs = put(work, modern=new_server, tools_call=log, logging_setLevel=returning({}))
    offer("it", "tool")

    def heard(**meta: object) -> tuple[str, ...]:
        body, headers = modern("tools/call", {"name": "docs__it", "arguments": {}}, **meta)
        return levels_of(listen(work.agent, body, **headers).events)

    assert heard() == ()
    assert heard(**{LOG_LEVEL: "critical"}) == LEVELS[5:]
    assert heard(**{LOG_LEVEL: "nonsense"}) == ()
    if new_server:
        told = [each.body["params"]["_meta"].get(LOG_LEVEL) for each in docs.asked("tools/call")]
        assert told == [None, "critical", None]
    else:
        assert [each.body["params"] for each in docs.asked("logging/setLevel")] == [{"level": "critical"}]


@pytest.mark.full
def test_a_level_is_refused_if_it_is_none_and_kept_by_nobody_without_a_session(work: Work) -> None:
    for level in (None, "", "loud", 3):
        assert work.agent.ask("logging/setLevel", {"level": level}).json()["error"]["code"] == -32602
    assert work.agent.ask("logging/setLevel", {"level": "error"}).json()["result"] == {}
