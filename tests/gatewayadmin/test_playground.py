"""The playground: a run is a call like an agent's, and the result is shown only as text."""

import asyncio
import base64
import html
import json
import re
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from asgiref.sync import sync_to_async
from django.db import connections
from django.template.loader import render_to_string
from django.test import AsyncClient
from oauth2_provider.models import AccessToken

from accounts.models import NewAppPolicy, User, WorkspaceSettings
from auditlog.models import Call, Event
from capabilities import Capability
from connections.models import Connection
from gatewayadmin.playground import run as runs
from gatewayadmin.playground.arguments import MISSING, ArgumentsForm, form_of
from gatewayadmin.playground.results import Result
from gatewayadmin.playground.run import AgentResponse
from gateways.models import Assignment, Feature, Gateway, Reach
from hosts.models import Host
from oauth.models import Binding
from proxy.app import runtime
from proxy.request import App, Receive, Scope, Send
from tests import make
from tests.conftest import Run, SignIn
from tests.eventually import until
from tests.proxy.conftest import config
from tests.proxy.scripted import Request, Script
from tokens.models import NotYourToken, TokenAlreadyRevoked

pytestmark = pytest.mark.django_db(transaction=True)

SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
PATH = "/playground/"
type Answer = Callable[[Request], Any]


@pytest.fixture(autouse=True)
def partitions(transactional_db: None) -> None:
    Call.partitions.make_ahead()


@pytest.fixture
def member() -> User:
    """A person without capabilities for other people's objects."""
    return make.user(Capability.OAUTH_CONNECT)


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "description": "Says it.", "inputSchema": SCHEMA, **more}


def gateway_of(run: Run, call: Answer, *tools: dict[str, Any], **fields: Any) -> Gateway:
    """Return a gateway with one server, which lists these tools and answers calls with `call`."""
    upstream = run(Script([tools or (tool("say"),)], call=call).app())
    gateway = make.gateway(make.server(slug="s", url=upstream.url), slug="work", **fields)
    Feature.objects.learn(Assignment.objects.get(gateway=gateway), tools or (tool("say"),))
    return gateway


async def says(request: Request) -> None:
    await request.answer({"content": [{"type": "text", "text": request.message["params"]["arguments"]["text"]}]})


RUN = {
    "gateway": "work",
    "kind": "tool",
    "name": "s__say",
    "as": "json",
    "arguments": '{"text": "hello"}',
    "act": "run",
}


def sent(user: User, **fields: str) -> tuple[int, str]:
    """Run a tool as this person; return the status and the page."""

    async def main() -> tuple[int, str]:
        async with runtime(config()) as endpoint:
            runs.serve_by(endpoint)
            try:
                client = AsyncClient()
                await client.aforce_login(user)
                return await read(await client.post(PATH, RUN | fields))
            finally:
                runs.serve_by(None)
                await sync_to_async(connections.close_all)()

    return asyncio.run(main())


# A run is a call


def test_a_run_is_a_logged_call_of_the_person_and_the_app_playground(run: Run, member: User) -> None:
    gateway_of(run, says)

    status, page = sent(member)

    call = Call.objects.get()
    connection = Connection.objects.get()
    assert status == 200
    assert '<pre class="text" tabindex="0">hello</pre>' in page
    assert (call.method, call.feature_name, call.outcome) == ("tools/call", "s__say", "ok")
    assert (call.host_name, call.user_email, call.client_name) == ("Playground", member.email, runs.CLIENT)
    assert (call.connection_id, connection.user, connection.host.name) == (connection.pk, member, "Playground")
    assert str(call.uid) in page
    assert [event.action for event in Event.objects.order_by("id")] >= ["connection.opened"]


@pytest.mark.full
def test_the_token_of_a_run_is_on_no_page_and_in_no_row(
    run: Run, member: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway_of(run, says)
    lent: list[str] = []
    lend = type(Binding.objects).lend

    def noted(*args: Any, **kwargs: Any) -> str:
        lent.append(lend(*args, **kwargs))
        return lent[-1]

    monkeypatch.setattr(type(Binding.objects), "lend", noted)
    _, page = sent(member)

    assert lent[0] not in page
    assert AccessToken.objects.get().token == ""
    assert not any(lent[0] in json.dumps(event.changes) for event in Event.objects.all())


@pytest.mark.full
def test_a_token_is_lent_to_nobody_but_the_person_of_a_live_connection(member: User) -> None:
    gateway = make.gateway()
    other, ended = make.app_connection(make.user(), gateway), make.app_connection(member, gateway)
    ended.revoke(by=member)

    with pytest.raises(NotYourToken):
        Binding.objects.lend(other, by=member, seconds=60)
    with pytest.raises(TokenAlreadyRevoked):
        Binding.objects.lend(ended, by=member, seconds=60)
    assert not AccessToken.objects.exists()


@pytest.mark.parametrize(
    ("way", "is_noticed"),
    [("the reader is cancelled", False), ("the response is closed", True)],
    ids=["by the time limit alone", "at once"],
)
def test_leaving_ends_the_run_and_its_call_is_logged_as_cancelled(
    way: str, is_noticed: bool, run: Run, member: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_noticed:
        monkeypatch.setattr(runs, "END_SECONDS", 0)
    begun = threading.Event()

    async def never(request: Request) -> None:
        begun.set()
        while (await request.receive())["type"] != "http.disconnect":
            pass

    gateway_of(run, never)

    async def main() -> None:
        over = asyncio.Event()
        async with runtime(config()) as endpoint:
            runs.serve_by(endpoint if is_noticed else deaf(endpoint, over))
            try:
                client = AsyncClient()
                await client.aforce_login(member)
                response: Any = await client.post(PATH, RUN)
                reading = asyncio.ensure_future(read(response))
                await asyncio.to_thread(begun.wait)
                if way == "the response is closed":
                    await sync_to_async(response.close)()
                else:
                    reading.cancel()
                await until(lambda: not runs._running)
                await asyncio.wait([reading])
            finally:
                over.set()
                runs.serve_by(None)
                await sync_to_async(connections.close_all)()

    asyncio.run(main())
    assert Call.objects.get().outcome == "cancelled"


def deaf(endpoint: App, over: asyncio.Event) -> App:
    """Return the endpoint wrapped so that it does not notice a disconnect before `over` is set."""

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        async def heard() -> Any:
            if (event := await receive())["type"] == "http.disconnect":
                await over.wait()
            return event

        await endpoint(scope, heard, send)

    return served


@pytest.mark.full
def test_a_tools_claimed_effect_is_shown_beside_it_and_destructive_ones_ask_once_more(
    run: Run, member: User, sign_in: SignIn
) -> None:
    claims: dict[str, tuple[dict[str, Any], list[str]]] = {
        "say": ({"destructiveHint": True}, ["Destructive"]),
        "look": ({"readOnlyHint": True}, ["Read only"]),
        "odd": ({"readOnlyHint": 1}, []),
    }
    gateway_of(run, says, *(tool(name, annotations=annotations) for name, (annotations, _) in claims.items()))

    for name, (_, shown_beside) in claims.items():
        page = sign_in(member).get(PATH, {"gateway": "work", "name": f"s__{name}"}).content.decode()
        about = page[page.index("Says it.") : page.index("About this tool")]
        assert re.findall(r'<span class="badge"[^>]*>([^<]*)</span>', about) == shown_beside, name

    assert "may delete or overwrite data" in sent(member)[1]
    assert not Call.objects.exists()
    sent(member, act="sure")
    assert Call.objects.get().outcome == "ok"


# Limits on concurrent runs


BUSY_WITH_OWN = "3 of your runs are in progress."
BUSY = "Too many runs are in progress at the moment."


class Held:
    """A server that answers on command, and the pages that wait for its answers."""

    def __init__(self, run: Run) -> None:
        self.may_answer = threading.Event()
        self.gateway = gateway_of(run, self._answer)

    async def _answer(self, request: Request) -> None:
        await asyncio.to_thread(self.may_answer.wait)
        await request.answer({"content": [{"type": "text", "text": "here it is"}]})

    def asks(self, *people: User, leaving: bool = False) -> list[tuple[int, str]]:
        """Let `people` run a tool concurrently; return statuses and pages.

        If `leaving`, the people disconnect before the server answers, and the pages are empty.
        """

        async def main() -> list[tuple[int, str]]:
            async with runtime(config()) as endpoint:
                runs.serve_by(endpoint)
                try:
                    clients = [AsyncClient() for _ in people]
                    for client, person in zip(clients, people, strict=True):
                        await client.aforce_login(person)
                    pages: list[Any] = await asyncio.gather(*(client.post(PATH, RUN) for client in clients))
                    if leaving:
                        for page in pages:
                            await sync_to_async(page.close)()
                        return [(page.status_code, "") for page in pages]
                    self.may_answer.set()
                    return list(await asyncio.gather(*map(read, pages)))
                finally:
                    self.may_answer.set()
                    runs.serve_by(None)
                    await sync_to_async(connections.close_all)()

        return asyncio.run(main())


async def read(page: Any) -> tuple[int, str]:
    parts = [part async for part in page.streaming_content] if page.streaming else [page.content]
    return page.status_code, b"".join(parts).decode()


@pytest.mark.full
def test_one_person_has_no_more_than_three_runs_at_once_and_others_still_run(run: Run, member: User) -> None:
    held, other = Held(run), make.user(Capability.OAUTH_CONNECT)
    sent_first = (member, member, member, member, member, other)

    answers = held.asks(*sent_first)

    assert (
        sorted((status, BUSY_WITH_OWN in page) for status, page in answers[:5])
        == [(200, False)] * 3 + [(429, True)] * 2
    )
    assert answers[5][0] == 200
    assert "here it is" in answers[5][1]
    assert Call.objects.count() == AccessToken.objects.count() == 4
    assert [status for status, _ in held.asks(member, member, member)] == [200] * 3


@pytest.mark.full
def test_no_more_runs_at_once_than_a_process_has_places(
    run: Run, member: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "MOST_RUNS", 2)
    people = [make.user(Capability.OAUTH_CONNECT) for _ in range(4)]

    answers = Held(run).asks(*people)

    assert sorted((status, BUSY in page) for status, page in answers) == [(200, False)] * 2 + [(429, True)] * 2
    assert Call.objects.count() == AccessToken.objects.count() == 2


def test_a_run_for_which_there_is_no_place_makes_nothing_and_loses_nothing(
    member: User, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    make.gateway(slug="work")
    monkeypatch.setattr(runs, "MOST_RUNS", 0)
    monkeypatch.setattr(runs, "_endpoint", runs.is_served)  # The endpoint is not called.

    refused = sign_in(member).post(PATH, RUN)

    assert (refused.status_code, refused["Retry-After"]) == (429, str(runs.RETRY_SECONDS))
    assert BUSY in refused.text
    assert html.escape(RUN["arguments"]) in refused.text
    assert not Host.objects.filter(name="Playground").exists()
    assert not Connection.objects.exists()
    assert not AccessToken.objects.exists()


def test_the_time_limit_is_named_for_a_tool_that_reports_progress_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        progress = b'data: {"jsonrpc":"2.0","method":"notifications/progress","params":{"progress":1}}\n\n'
        await send({"type": "http.response.body", "body": progress, "more_body": True})
        await receive()

    async def main() -> list[Any]:
        return [step async for step in started.steps("secret")]

    monkeypatch.setattr(runs, "RUN_SECONDS", 0.1)
    monkeypatch.setattr(runs, "_endpoint", slow)
    started = runs.Run("work", runs.AgentRequest("tool", "s__say", {}), "127.0.0.1", "ann")

    assert asyncio.run(main()) == [{"progress": 1}]
    assert started.answer
    assert started.answer.left


@pytest.mark.full
def test_disconnecting_before_the_answer_frees_the_slot(run: Run, member: User) -> None:
    held = Held(run)

    for _ in range(2):
        assert held.asks(member, member, member, leaving=True) == [(200, "")] * 3
    assert held.asks(member)[0][0] == 200
    assert Call.objects.count() == 1


# The playground gives nobody additional rights


def test_a_gateway_out_of_reach_is_none_before_and_after_it_was_in_reach(run: Run, member: User) -> None:
    gateway = gateway_of(run, says, reach=Reach.TEAMS)

    def reach(of: Reach) -> None:
        Gateway.objects.filter(pk=gateway.pk).update(reach=of)

    status, page = sent(member)
    assert status == 422
    assert "There is no such gateway, or you may not use it." in page
    reach(Reach.EVERYONE)
    status, page = sent(make.user())
    assert status == 422
    assert "Your role lacks Authenticate via OAuth." in page
    assert not Connection.objects.exists()
    assert not Call.objects.exists()

    assert sent(member)[0] == 200
    reach(Reach.TEAMS)
    assert sent(member)[0] == 422
    assert Call.objects.count() == 1


@pytest.mark.full
def test_where_new_apps_wait_for_approval_the_playground_waits_too(run: Run, member: User) -> None:
    gateway_of(run, says)
    WorkspaceSettings.load()
    WorkspaceSettings.objects.update(new_app_policy=NewAppPolicy.APPROVE)

    assert "waiting for an administrator" in sent(member)[1]
    Host.objects.get(name="Playground").approve(by=make.user())
    assert sent(member)[0] == 200
    assert Call.objects.get().outcome == "ok"


@pytest.mark.full
def test_disabled_objects_stop_a_run_like_an_agent(run: Run, member: User) -> None:
    gateway_of(run, says)
    sent(member)
    connection, boss = Connection.objects.get(), make.user()
    for layer, target in {"host": connection.host, "gateway": connection.gateway, "connection": connection}.items():
        target.disable(by=boss)

        page = sent(member)[1]

        call = Call.objects.latest("id")
        assert call.deny_reason == f"{layer}_disabled"
        assert "HTTP 403" in page
        assert f'"reason": "{layer}_disabled"' in html.unescape(page)
        target.enable(by=boss)


@pytest.mark.full
def test_a_denial_shows_what_an_agent_gets_and_its_act_to_who_may(run: Run, member: User) -> None:
    gateway = gateway_of(run, says)
    owner = make.user(*Capability)
    Feature.objects.get(name="say").disable(by=owner)

    mine, theirs = html.unescape(sent(member)[1]), html.unescape(sent(owner)[1])

    agent = {"reason": "tool_disabled"}
    for page in (mine, theirs):
        assert '"code": -32003' in page
        assert f'"reason": "{agent["reason"]}"' in page
        assert page.count(">denied: tool disabled<") == 2  # Once in the result, and once in the list of runs.
    assert "Enable tool" in theirs
    assert "Enable tool" not in mine
    assert owner.email not in mine
    assert "times since" not in mine
    assert gateway.enabled


@pytest.mark.full
def test_another_persons_connection_cannot_be_checked_as(run: Run, member: User) -> None:
    gateway = gateway_of(run, says)
    other = make.connection(make.agent(by=make.user(), name="Secret agent"), gateway, make.user())

    page = sent(member, act="check", through=str(other.pk))[1]

    assert "Yes, the gateway would send this call to the server now." in page
    assert "Secret agent" not in page
    assert other.user.email not in page
    assert not Call.objects.exists()


@pytest.mark.full
def test_another_persons_arguments_are_not_filled_in(member: User, sign_in: SignIn) -> None:
    reader = make.user(Capability.OAUTH_CONNECT, Capability.LOGS_PAYLOADS)
    make.gateway(slug="work")
    payload = {"params": {"arguments": {"text": "their secret"}}}
    told: dict[str, Any] = {"feature_type": "tool", "feature_name": "s__say", "request_payload": payload}
    theirs, own = make.call(user_id=member.pk, **told), make.call(user_id=reader.pk, **told)

    def filled_in(who: User, uid: Any) -> bool:
        asked = {"gateway": "work", "name": "s__say", "again": str(uid)}
        return "their secret" in sign_in(who).get(PATH, asked).content.decode()

    assert filled_in(reader, own.uid)
    assert not filled_in(reader, theirs.uid)
    assert not filled_in(member, theirs.uid)  # The member may not view payloads.
    assert not filled_in(reader, uuid4())
    assert not filled_in(reader, "'; --")


@pytest.mark.full
def test_a_null_character_names_nothing(member: User, sign_in: SignIn) -> None:
    make.gateway(slug="work")
    client = sign_in(member)

    for asked in ({"gateway": "\0"}, {"gateway": "work", "name": "a\0b"}, {"kind": "\0"}):
        assert client.get(PATH, asked).status_code == 200, asked
        assert client.post(PATH, asked).status_code == 422, asked


# The result is hostile


HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>\u202eexe.txt<!-- run -->"


def picture(kind: str, content: bytes) -> dict[str, str]:
    return {"type": "image", "mimeType": kind, "data": base64.b64encode(content).decode()}


def test_a_tools_answer_is_never_markup(run: Run, member: User) -> None:
    async def hostile(request: Request) -> None:
        link = {"type": "resource_link", "uri": "javascript:alert(1)", "name": HOSTILE}
        drawn = picture("image/png", b"\x89PNG\r\n\x1a\n")
        others = [picture("image/svg+xml", b"<svg onload=alert(1)>"), picture("image/png", b"<svg/>")]
        content = [{"type": "text", "text": HOSTILE}, link, drawn, *others, {"type": HOSTILE}, None, 7]
        await request.answer({"content": content, "structuredContent": {"rows": [{HOSTILE: HOSTILE}]}})

    gateway_of(run, hostile)
    page = sent(member)[1]

    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert 'href="javascript:' not in page
    assert "\u202e" not in page
    assert "U+202E" in page
    assert page.count('<img class="picture"') == 1
    assert "data:image/svg" not in page
    assert page.rstrip().endswith("</html>")


@pytest.mark.full
def test_pictures_are_all_that_the_page_draws_from_itself(member: User, sign_in: SignIn) -> None:
    policy = sign_in(member).get(PATH)["Content-Security-Policy"]

    assert "img-src 'self' data:" in policy
    assert "script-src 'self';" in policy
    assert "data:" not in policy.replace("img-src 'self' data:", "")


def answer_of(structured: str, *texts: str) -> AgentResponse:
    """Return a tool's answer with `structured` as structured content and `texts` as text content."""
    content = json.dumps([{"type": "text", "text": text} for text in texts])
    body = f'{{"jsonrpc":"2.0","id":1,"result":{{"content":{content},"structuredContent":{structured}}}}}'.encode()
    return AgentResponse(200, "", body, len(body), json.loads(body), left=False)


def shown(answer: AgentResponse) -> str:
    return render_to_string("playground/result.html", {"result": Result(answer)})


def shown_and_peak(answer: AgentResponse) -> tuple[str, int]:
    """Return the displayed form of an answer, and the peak memory needed to produce it."""
    tracemalloc.start()
    try:
        return shown(answer), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_deep_or_large_answer_takes_no_more_memory_and_page_than_is_shown() -> None:
    for depth, width in ((900, 20_000), (30, 200_000)):
        answer = answer_of('{"a":' + "[" * depth + ",".join(["1"] * width) + "]" * depth + "}")

        page, peak = shown_and_peak(answer)

        assert peak < 10 << 20
        assert len(page) < 150_000
        assert "This page shows only a part of the answer: an agent gets all" in page
        assert '{\n  "a": [\n' in html.unescape(page) or depth > 30, "indented"


@pytest.mark.full
def test_all_that_is_shown_of_one_answer_shares_one_room_and_what_fits_is_whole() -> None:
    for answer in (
        answer_of("[]", *["x" * 19_000] * 50),
        answer_of("[]", *["\u200b" * 20_000] * 50),
        answer_of(json.dumps({"a": "\u202e" * 500_000})),
    ):
        page = shown(answer)
        assert len(page) < 250_000
        assert "This page shows only a part of the answer: an agent gets all" in page

    page = html.unescape(shown(answer_of('{"rows": [{"a": 1, "b": 2}]}', "one", "two")))
    assert "only a part" not in page
    assert '"b": 2' in page
    assert '"text": "two"' in page


# The form


DEEP = {
    "type": "object",
    "properties": {
        "sql": {"type": "string", "minLength": 3},
        "limit": {"type": "integer", "minimum": 1, "maximum": 50, "default": 10},
        "ratio": {"type": "number", "maximum": 0.5},
        "format": {"enum": ["table", "csv", 3]},
        "dry": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
        "where": {
            "type": "object",
            "properties": {"region": {"type": "string"}, "deep": {"$ref": "#/$defs/deep"}},
            "required": ["region"],
        },
        "either": {"oneOf": [{"type": "string"}, {"type": "object"}]},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
    },
    "required": ["sql"],
    "$defs": {"deep": {"type": "object", "properties": {"n": {"type": "integer"}}}},
}


def posted(**values: str) -> ArgumentsForm:
    """Return the form for the schema DEEP, submitted with these values; each keyword is the name of an argument."""
    controls = {argument: name for name, argument in ArgumentsForm(DEEP)._names.items()}
    return ArgumentsForm(DEEP, {controls[name]: value for name, value in values.items()})


def errors(form: ArgumentsForm) -> dict[str, list[str]]:
    return {form._names[name]: [str(error) for error in found] for name, found in form.errors.items()}


def test_form_input_becomes_arguments_of_their_types_and_empty_fields_are_omitted() -> None:
    form = posted(
        sql="a\r\nb", limit="7", ratio="1e-2", format="3", dry="false", tags="x\n\ny",
        where='{"region": "eu", "deep": {"n": 12345678901234567890}}', either='{"a": [1]}',
    )  # fmt: skip

    assert errors(form) == {}
    assert form.arguments == {
        "sql": "a\nb", "limit": 7, "ratio": 0.01, "format": 3, "dry": False, "tags": ["x", "y"],
        "where": {"region": "eu", "deep": {"n": 12345678901234567890}}, "either": {"a": [1]},
    }  # fmt: skip
    assert posted(sql="abc").arguments == {"sql": "abc"}
    assert errors(posted(limit="1")) == {"sql": [MISSING]}


def test_bad_input_gets_a_message_at_its_field_and_loses_nothing() -> None:
    for name, value, words in (
        ("sql", "ab", "Ensure this value has at least 3 characters (it has 2)."),
        ("limit", "51", "Ensure this value is less than or equal to 50."),
        ("limit", "NaN", "Enter a whole number."),
        ("ratio", "1e999", "Enter a number."),
        ("format", '"xml"', "Select a valid choice. &quot;xml&quot; is not one of the available choices."),
        ("either", '{"a": ', "This is not JSON: Expecting value, line 1, column 7."),
        ("either", "[" * 100_000, "This JSON is nested too deeply, or has a number that cannot be sent, such as NaN."),
        ("either", "NaN", "This JSON is nested too deeply, or has a number that cannot be sent, such as NaN."),
        ("either", '{"a": 1e999}', "This JSON is nested too deeply, or has a number that cannot be sent, such as NaN."),
        ("sql", "abc\0", "Null characters are not allowed."),
    ):
        form = posted(**{"sql": "select", "where": '{"region": "kept"}', name: value})

        told = {argument: [html.escape(one) for one in found] for argument, found in errors(form).items()}
        assert told == {name: [words]}
        kept = {form._names[name]: value for name, value in form.data.items()}
        assert kept[name] == value
        assert kept["where"] == '{"region": "kept"}'
    as_json = ArgumentsForm(DEEP, {"arguments": "[1]"}, as_json=True)
    assert as_json.errors["arguments"] == ["The arguments must be a JSON object: write them between { and }."]


def test_arguments_go_from_the_form_to_json_and_back_unless_something_would_be_lost() -> None:
    fits = {"sql": "abc", "limit": 3, "where": {"region": "eu"}, "tags": ["a"], "dry": False, "format": 3}

    assert form_of(DEEP, {**fits, "either": None}).as_json
    assert form_of(DEEP, {**fits, "more": 1}).as_json
    assert form_of(DEEP, fits, as_json=True).arguments == fits
    back = form_of(DEEP, fits)
    assert not back.as_json
    assert back.arguments == fits


def test_lone_surrogates_of_a_schema_are_shown_as_escapes_and_sent_unchanged() -> None:
    lone = "\ud800"
    schema = {
        "properties": {
            "text": {"type": "string", "default": lone},
            "lines": {"type": "array", "items": {"type": "string"}, "default": [lone]},
            "choice": {"enum": [lone, "z"], "default": lone},
            "json": {"default": {"q": lone}},
        }
    }

    form = ArgumentsForm(schema)
    as_json = form_of(schema, form.arguments, as_json=True)

    assert form.arguments == as_json.arguments == {"choice": lone, "json": {"q": lone}}
    assert [str(one).encode().count(b"ud800") > 0 for one in (form, as_json)] == [True, True]
    assert "ud800" in str(form_of(schema, {"text": lone}).as_p().encode())


def test_whatever_a_server_calls_a_schema_there_is_a_form() -> None:
    schemas: list[Any] = [
        None,
        7,
        {"properties": 3},
        {"properties": {"a": 7, "b": {"$ref": "#/"}}},
        {"properties": {str(n): {} for n in range(500)}},
        {"properties": {"a": {"type": ["x", 3]}}, "required": {}},
        {"properties": {"a": {"enum": "x", "minimum": "low"}}},
        {"properties": {"a": {"anyOf": [{"$ref": "#/properties/a"}, {"type": "null"}]}}},
    ]
    for schema in schemas:
        assert str(ArgumentsForm(schema)) is not None
        assert ArgumentsForm(schema, {"arguments": '{"x": 1}'}, as_json=True).arguments == {"x": 1}
