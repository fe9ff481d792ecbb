"""Clients that open URLs are asked once to open a held call's page. Approved calls that ask for input continue."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from mcp.client import Client
from mcp.client.client import ConnectMode
from mcp.client.streamable_http import streamable_http_client
from mcp_types import ElicitResult

from approvals.models import Hold, HoldState
from auditlog.models import Call
from tests import make
from tests.approvals.conftest import TOOL, Desk, counted
from tests.cases import first
from tests.eventually import eventually
from tests.proxy.asking import FORM, Person
from tests.proxy.conftest import PUBLIC_URL, Agent
from tests.proxy.scripted import Object, Request, calling
from tests.proxy.test_bridging import ask, result_of

MODES = ("legacy", "2026-07-28")
URL: Object = {"elicitation": {"url": {}}}
FORMS: Object = {"elicitation": {"form": {}}}
ARGUMENTS = {"b": 1, "a": 2}
PAGE = "gateway-approval"


def opening(desk: Desk, mode: ConnectMode, action: str, opened: list[str]) -> Any:
    """Return the result of one call by the Python SDK. The client answers each request to open a URL with `action`."""

    async def answer(context: Any, params: Any) -> ElicitResult:
        opened.append(params.url)
        return ElicitResult(action=action)  # type: ignore[arg-type]

    async def call() -> Any:
        headers = {"Authorization": f"Bearer {desk.agent.secret}"}
        async with httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(30, read=300)) as http:
            transport = streamable_http_client(desk.agent.url, http_client=http)
            async with Client(transport, mode=mode, elicitation_callback=answer) as client:
                return await client.call_tool(TOOL, ARGUMENTS)

    return asyncio.run(call())


@pytest.mark.parametrize(
    ("action", "mode"), first(1, [("accept", MODES[0]), ("decline", MODES[1]), ("cancel", MODES[0])])
)
def test_a_client_that_opens_urls_is_sent_the_page_once_and_its_answer_decides_nothing(
    desk: Desk, mode: ConnectMode, action: str
) -> None:
    desk.wait(240)
    opened: list[str] = []
    call = desk.pool.submit(opening, desk, mode, action, opened)
    eventually(lambda: opened or call.done())
    hold = Hold.objects.get()
    assert opened == [f"{PUBLIC_URL}/approvals/{hold.pk}/"]
    time.sleep(0.3)  # Time for the client's answer.
    hold.refresh_from_db()
    assert (hold.state, call.done(), desk.runs) == (HoldState.WAITING, False, 0)

    hold.approve(by=desk.ben)

    result = call.result(120)
    assert json.loads(result.content[0].text)["count"] == desk.runs == len(opened) == 1


@pytest.mark.full
def test_a_later_call_of_the_same_hold_is_not_sent_the_page(desk: Desk) -> None:
    desk.wait(3)
    opened: list[str] = []

    for _ in "ab":
        result = opening(desk, MODES[1], "accept", opened)
        assert (result.is_error, result.meta["state"]) == (True, "waiting")

    eventually(lambda: len(opened) == Hold.objects.count() == 1)


@pytest.mark.full
def test_the_page_is_asked_for_in_a_session_and_logged_and_the_client_is_told_when_the_wait_is_over(
    desk: Desk,
) -> None:
    desk.wait(240)
    client = Person(desk.agent, URL).initialize()

    def reply(message: Object) -> None:
        if message["method"] == "elicitation/create":
            client.say({"id": message["id"], "result": {"action": "accept"}})
            eventually(lambda: Call.objects.filter(method="elicitation/create", outcome="ok").exists())
            Hold.objects.get().approve(by=desk.ben)

    result = client.call(TOOL, reply)["result"]

    hold = Hold.objects.get()
    asked, over = (message for message in client.heard if message["method"] != "notifications/progress")
    assert asked["params"] == {
        "mode": "url",
        "message": "This call waits for approval by a person who may decide on held calls.",
        "url": f"{PUBLIC_URL}/approvals/{hold.pk}/",
        "elicitationId": str(hold.pk),
    }
    assert (over["method"], over["params"]) == ("notifications/elicitation/complete", {"elicitationId": str(hold.pk)})
    assert counted(result) == 1
    row = Call.objects.get(method="elicitation/create")
    assert (row.correlation_id, row.hold_id) == (Call.objects.get(method="tools/call").uid, hold.pk)


@pytest.mark.full
def test_a_client_that_opens_no_urls_is_not_asked(desk: Desk) -> None:
    none: tuple[Object, ...] = ({}, {"elicitation": {}}, {"elicitation": {"form": {}}}, {"elicitation": 1})
    for capabilities in none:
        assert result_of(ask(desk.agent, TOOL, capabilities))["isError"] is True
        client = Person(desk.agent, capabilities).initialize()
        assert client.call(TOOL)["result"]["isError"] is True
        assert not [message for message in client.heard if message["method"] == "elicitation/create"]


class Form:
    """A server of 2026-07-28 whose tool asks for a form before it runs; `given` lists the params of its calls."""

    def __init__(self, state: str | None = "its own") -> None:
        self.given: list[Object] = []
        self.wanted: Object = {"resultType": "input_required", "inputRequests": {"k": FORM}}
        self.wanted |= {"requestState": state} if state else {}

    async def call(self, request: Request) -> None:
        params = request.message["params"]
        self.given.append(params)
        done = params.get("inputResponses", {}).get("k")
        await request.answer({"resultType": "complete", "content": []} if done else self.wanted)

    @property
    def ran(self) -> int:
        return sum("inputResponses" in params for params in self.given)


type DeskOf = Callable[..., Desk]


@pytest.fixture
def form() -> Form:
    return Form()


@pytest.fixture
def desk_at_form(desk_of: DeskOf, form: Form) -> Desk:
    return desk_of(app=calling(form.call, modern=True, name="count"))


def begun(desk: Desk) -> Object:
    """Make a call that is held, approve and repeat it; return the result, in which the server asks for input."""
    ask(desk.agent, TOOL, FORMS)
    Hold.objects.get().approve(by=desk.ben)
    return result_of(ask(desk.agent, TOOL, FORMS))


def retried(wanted: Object, agent: Agent, **more: Any) -> Object:
    answers = {"inputResponses": {"k": {"action": "accept"}}, "requestState": wanted["requestState"]}
    answer = ask(agent, TOOL, FORMS, **answers | more)
    return result_of(answer) if '"result"' in answer.text else dict(answer.json()["error"])


def is_refused(answer: Object) -> bool:
    return bool(answer.get("data", {}).get("reason") == "request_state")


@pytest.mark.full
@pytest.mark.parametrize("state", ["its own", None])
def test_an_approved_call_that_asks_for_input_goes_on_once(desk_of: DeskOf, state: str | None) -> None:
    form = Form(state)
    desk = desk_of(app=calling(form.call, modern=True, name="count"))
    wanted = begun(desk)
    assert (wanted["resultType"], wanted["inputRequests"]) == ("input_required", {"k": FORM})
    assert wanted["requestState"] != state

    assert retried(wanted, desk.agent)["content"] == []

    assert form.given[-1].get("requestState") == state
    hold = Hold.objects.get()
    row = desk.proxies[0].last()
    assert (hold.state, hold.run_call, row.hold_id, row.outcome) == (HoldState.USED, row.uid, hold.pk, "ok")
    assert is_refused(retried(wanted, desk.agent))
    assert form.ran == 1


@pytest.mark.full
def test_other_arguments_another_state_another_connection_or_a_changed_rule_continue_nothing(
    desk_at_form: Desk, form: Form
) -> None:
    desk, wanted = desk_at_form, begun(desk_at_form)
    own = desk.connection
    other = make.connection(make.agent(by=own.user, name="Other bot"), own.gateway, own.user)

    for more in ({"arguments": {"b": 1, "a": 3}}, {"requestState": "its own"}, {"requestState": "forged"}):
        assert is_refused(retried(wanted, desk.agent, **more)), more
    assert is_refused(retried(wanted, desk.proxies[0].agent(other)))
    desk.rule.edit(hold_minutes=5, by=None)
    assert is_refused(retried(wanted, desk.agent))

    assert form.ran == 0


def test_of_two_that_continue_a_call_at_once_one_goes_on(desk_at_form: Desk, form: Form) -> None:
    desk, wanted = desk_at_form, begun(desk_at_form)

    both = [desk.pool.submit(retried, wanted, desk.agent) for _ in "ab"]

    assert sorted(is_refused(each.result(60)) for each in both) == [False, True]
    assert form.ran == 1


def test_the_answer_to_the_page_does_not_reach_the_server(desk_at_form: Desk, form: Form) -> None:
    desk = desk_at_form
    offered = result_of(ask(desk.agent, TOOL, URL))
    assert (offered["resultType"], [*offered["inputRequests"]]) == ("input_required", [PAGE])
    assert "requestState" not in offered
    Hold.objects.get().approve(by=desk.ben)

    result = result_of(ask(desk.agent, TOOL, URL, inputResponses={PAGE: {"action": "accept"}}))

    assert result["inputRequests"] == {"k": FORM}
    assert "inputResponses" not in form.given[-1]
