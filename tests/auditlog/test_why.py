"""The cause and remedy of a refused call: who stopped it, how to allow it, and whether it would work now."""

import json
import logging
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from oauth2_provider.models import AccessToken, Application, RefreshToken

from accounts.models import Role, User
from auditlog.actions import Action
from auditlog.models import Call, Event
from auditlog.remedies import REMEDIES
from auditlog.why import Question, current_decision, near_tools
from capabilities import Capability
from connections.models import Connection
from gateways.models import Assignment, Feature, Gateway, IdentityScheme, Reach, ToolPolicy
from hosts.models import Host
from oauth.models import Binding
from proxy import dry_run
from proxy.access.features import Named
from rules.models import Rule
from servers.models import AuthType, Identity, Server
from tests import make
from tests.conftest import SignIn
from tests.rest import Rest
from tests.undone import undone
from tokens.models import Token
from wire import token_text

pytestmark = pytest.mark.django_db

TOOL = "docs__echo"


class Scene:
    """Ana's connection of her agent “CI bot” to the gateway “Work”, whose server `docs` has the tool `echo`."""

    def __init__(self, ana: User) -> None:
        self.owner = ana
        self.server = make.server(slug="docs", auth_type=AuthType.BEARER)
        self.gateway = make.gateway(slug="work", name="Work")
        self.own = make.identity(self.server, ana)
        self.assignment = make.assignment(self.gateway, self.server, identity_scheme=IdentityScheme.PER_USER)
        self.tool = Feature.objects.create(assignment=self.assignment, name="echo", exposed_name=TOOL)
        self.host = make.agent(by=ana, name="CI bot")
        self.link = make.connection(self.host, self.gateway, ana, [self.own])
        self.token = make.token(self.link, name="nightly").token

    def call(self, reason: str = "", **more: Any) -> Call:
        """Create a logged call that was refused for this reason."""
        told: dict[str, Any] = {
            "outcome": "denied" if reason else "ok",
            "deny_reason": reason,
            "feature_type": "tool",
            "feature_name": TOOL,
            "host_id": self.host.pk,
            "host_name": self.host.name,
            "gateway_id": self.gateway.pk,
            "gateway_name": self.gateway.name,
            "user_id": self.owner.pk,
            "user_email": self.owner.email,
            "connection_id": self.link.pk,
            "token_id": self.token.pk,
            "server_id": self.server.pk,
            "identity_id": self.own.pk,
            "client_ip": "10.1.2.3",
        }
        return make.call(**(told | more))

    @property
    def query(self) -> dict[str, str]:
        return {"host": self.host.name, "user": self.owner.email, "gateway": "work", "tool": TOOL}


@pytest.fixture
def scene(ana: User) -> Scene:
    return Scene(ana)


def text(response: Any) -> str:
    return " ".join(str(response.content.decode()).split())


def page(client: Client, call: Call, *, now: bool = False) -> str:
    return text(client.get(f"/logs/{call.uid}/{'now/' if now else ''}"))


# The disabled object, by deny reason, with the capability required to enable it.
SWITCHES: list[tuple[str, Callable[[Scene], Any], Capability]] = [
    ("host_disabled", lambda scene: scene.host, Capability.HOSTS_TOGGLE),
    ("gateway_disabled", lambda scene: scene.gateway, Capability.GATEWAYS_TOGGLE),
    ("connection_disabled", lambda scene: scene.link, Capability.CONNECTIONS_TOGGLE),
    ("server_disabled", lambda scene: scene.server, Capability.SERVERS_TOGGLE),
    ("assignment_disabled", lambda scene: scene.assignment, Capability.GATEWAYS_TOGGLE),
    ("tool_disabled", lambda scene: scene.tool, Capability.GATEWAYS_MANAGE),
    ("identity_disabled", lambda scene: scene.own, Capability.IDENTITIES_MANAGE),
]


@pytest.mark.full
def test_a_refusal_names_who_and_how_often_and_its_act_ends_it(
    scene: Scene, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    for reason, get_thing, needed in SWITCHES:
        with subtests.test(str(reason)), undone():
            boss, judge = make.user(), make.user(Capability.LOGS_READ, Capability.AUDIT_READ, needed)
            thing = get_thing(scene)
            thing.disable(by=boss)
            refused = [scene.call(reason) for _ in range(3)]
            client = sign_in(judge)

            shown = page(client, refused[-1])
            assert f"Disabled by {boss.email}" in shown
            assert "Refused 3 times since" in shown
            sent = {"reason": reason, "subject": str(thing.pk), "back": f"/logs/{refused[-1].uid}/now/"}
            assert f'name="subject" value="{sent["subject"]}"' in shown
            answer = client.post("/logs/remedy/", sent)

            assert (answer.status_code, answer["Location"]) == (302, sent["back"])
            latest = Event.objects.latest("id")
            assert (latest.actor_id, latest.target_id) == (judge.pk, sent["subject"])
            assert latest.action.endswith(".enabled")
            assert "Yes, the gateway would send this call to the server now." in page(client, refused[-1], now=True)
            assert "The reason for this refusal no longer applies." in page(client, refused[-1])


def holding(needed: Capability) -> str:
    """Return the sentence that names the roles with the capability `needed`."""
    *others, last = sorted(role.name for role in Role.objects.with_capabilities() if needed in role.granted)
    return f"People with the role {', '.join(others)}{' or ' if others else ''}{last} can change this."


@pytest.mark.full
def test_people_who_may_not_end_it_learn_who_can(scene: Scene, sign_in: SignIn, subtests: pytest.Subtests) -> None:
    reader, auditor = make.user(Capability.LOGS_READ), make.user(Capability.LOGS_READ, Capability.AUDIT_READ)
    for reason, get_thing, needed in SWITCHES:
        with subtests.test(str(reason)), undone():
            thing = get_thing(scene)
            thing.disable(by=make.user())
            call, holder = scene.call(reason), make.user(needed)

            shown = page(sign_in(reader), call)
            assert 'action="/logs/remedy/"' not in shown
            assert holding(needed) in shown
            assert "Disabled by" not in shown  # The person who disabled it is in the admin events only.
            assert holder.email not in shown
            named = page(sign_in(auditor), call)
            assert holder.email in named
            assert " can change this.</small>" in named
            sent = {"reason": reason, "subject": str(thing.pk)}
            assert sign_in(reader).post("/logs/remedy/", sent).status_code == 403
            thing.refresh_from_db()
            assert thing.enabled is False


@pytest.mark.full
def test_decisions_on_other_pages_are_linked_or_named(scene: Scene, sign_in: SignIn) -> None:
    scene.owner.deactivate(by=None)
    Token.objects.update(allowed_ips=["192.0.2.0/24"])
    person, token = reverse("accounts:person", args=[scene.owner.pk]), reverse("tokens:edit", args=[scene.token.pk])
    for reason, needed, words, address in (
        ("user_inactive", Capability.PEOPLE_MANAGE, "Open the person", person),
        ("ip", Capability.API_TOKENS_MANAGE, "Edit the token", token),
    ):
        call = scene.call(reason)

        led = page(sign_in(make.user(Capability.LOGS_READ, needed)), call)
        told = page(sign_in(make.user(Capability.LOGS_READ)), call)

        assert f'href="{address}"' in led
        assert words in led
        assert words not in told
        assert holding(needed) in told
    rule = Rule.objects.add(name="Large", effect="refuse", when="args.amount > 500", mode="on", by=None)
    scene.call(rule_id=str(rule.pk))  # Was approved, after the rule was changed to hold calls.
    assert "Refused once since" in page(
        sign_in(make.user(Capability.LOGS_READ)), scene.call("rule_refused", rule_id=str(rule.pk))
    )


@pytest.mark.full
def test_the_owner_of_an_identity_is_led_to_it_and_others_are_told_whose_it_is(scene: Scene, sign_in: SignIn) -> None:
    scene.owner.role = make.role(Capability.LOGS_READ)
    scene.owner.save()
    boss = make.user(*Capability)

    def check(reason: str, address: str) -> None:
        call, button = scene.call(reason), f'class="button" data-size="small" href="{address}"'
        shown = page(sign_in(boss), call)
        assert button in page(sign_in(scene.owner), call)
        assert button not in shown
        assert f"Only {scene.owner.email} can fix this, on My identities." in shown

    Identity.objects.update(unconfirmed_since=timezone.now())
    check("identity_unconfirmed", f"/identities/{scene.own.pk}/confirm/")
    scene.link.identities.all().delete()
    check("identity_missing", reverse("connections:mine"))


@pytest.mark.full
def test_for_what_has_ended_nothing_is_offered_to_switch_on(scene: Scene, sign_in: SignIn) -> None:
    judge = sign_in(make.user(Capability.LOGS_READ, Capability.HOSTS_TOGGLE, Capability.GATEWAYS_MANAGE))
    scene.tool.disable(by=scene.owner)
    scene.host.disable(by=scene.owner)
    off, tool = scene.call("host_disabled"), scene.call("tool_disabled")
    assert "Enable agent" in page(judge, off)
    assert "Enable tool" in page(judge, tool)

    Connection.objects.archive_host(scene.host, by=scene.owner)
    scene.assignment.remove(by=scene.owner)

    for call in (off, tool):
        assert 'action="/logs/remedy/"' not in page(judge, call)
    assert "The object was archived, removed or revoked." in page(judge, off)


@pytest.mark.full
def test_an_app_that_waits_is_approved_from_its_refused_call(scene: Scene, sign_in: SignIn) -> None:
    scene.host.needs_approval = True
    scene.host.save()
    judge = make.user(Capability.LOGS_READ, Capability.HOSTS_TOGGLE)
    sent = {"reason": "host_pending", "subject": str(scene.host.pk), "back": "/logs/"}

    assert "Allow</button>" in page(sign_in(judge), scene.call("host_pending"))
    assert sign_in(judge).post("/logs/remedy/", sent).status_code == 302
    assert Event.objects.filter(action=Action.HOST_APPROVED, actor_id=judge.pk).exists()
    assert sign_in(judge).post("/logs/remedy/", sent).status_code == 302  # Another person was quicker.


def test_an_owner_does_not_undo_what_an_administrator_did(scene: Scene, sign_in: SignIn) -> None:
    scene.own.disable(by=make.user(Capability.IDENTITIES_MANAGE))
    scene.owner.role = make.role(Capability.LOGS_READ)
    scene.owner.save()
    sent = {"reason": "identity_disabled", "subject": str(scene.own.pk)}

    assert sign_in(scene.owner).post("/logs/remedy/", sent).status_code == 403
    assert not Identity.objects.get(pk=scene.own.pk).enabled


@pytest.mark.full
def test_an_act_for_what_is_not_there_does_nothing(ana: User, sign_in: SignIn) -> None:
    ana.role = make.role(*Capability)
    ana.save()
    client = sign_in(ana)
    wrong: list[dict[str, str]] = [
        {},
        {"reason": "no such reason", "subject": str(uuid4())},
        {"reason": "host_disabled", "subject": str(uuid4())},
        {"reason": "host_disabled", "subject": "no id"},
        {"reason": "revoked", "subject": str(uuid4())},
    ]
    for sent in wrong:
        answer = client.post("/logs/remedy/", sent, follow=True)

        assert answer.redirect_chain == [("/logs/", 302)], sent
        assert "This cannot be enabled" in answer.content.decode(), sent
    assert not Event.objects.exists()


def test_an_act_leads_back_to_a_page_of_this_site_only(scene: Scene, sign_in: SignIn) -> None:
    client = sign_in(make.user(Capability.LOGS_READ, Capability.HOSTS_TOGGLE))
    for back in ("https://evil.example/", "//evil.example/", "javascript:alert(1)", ""):
        scene.host.disable(by=None)
        sent = {"reason": "host_disabled", "subject": str(scene.host.pk), "back": back}

        assert client.post("/logs/remedy/", sent)["Location"] == "/logs/", back


# --- Would it work now? -----------------------------------------------------------------------------------------------


def test_every_reason_a_verdict_can_give_says_what_ends_it() -> None:
    lasting = {"wrong_gateway", "unknown_tool", "identity_unreadable"}
    given = {*dry_run._PASSED, *dry_run._PASSED_AT_SERVER, "not_connected", "no_token"} - {"wrong_gateway"}

    assert given - set(REMEDIES) == set()
    assert lasting.isdisjoint(given)


@pytest.mark.full
def test_asking_again_says_the_next_obstacle_too(scene: Scene, viv: User, sign_in: SignIn) -> None:
    scene.link.disable(by=None)
    scene.own.revoke(by=scene.owner)
    call, client = scene.call("connection_disabled"), sign_in(viv)

    before, shown = page(client, call), page(client, call, now=True)

    assert "7 checks not reached" in before
    assert "<b>Tool</b>" not in before
    assert "No. It would stop at Gateway and connection." in shown
    assert "The connection has no credential for this server." in shown
    assert f"Only {scene.owner.email} can fix this, on My identities." in shown


@pytest.mark.full
def test_asking_calls_nobody_and_logs_nothing(scene: Scene, viv: User, sign_in: SignIn) -> None:
    call, events = scene.call("connection_disabled"), Event.objects.count()

    page(sign_in(viv), call, now=True)
    Rest.of(viv).get(f"/logs/{call.uid}/now")
    Rest.of(viv).get("/logs/what-if", **scene.query)

    assert (Call.objects.count(), Event.objects.count()) == (1, events)
    assert Token.objects.get(pk=scene.token.pk).last_used_at is None


def test_another_token_of_the_connection_answers_where_it_gets_further(scene: Scene, viv: User) -> None:
    call = scene.call("revoked")
    scene.token.revoke(by=scene.owner)
    rest = Rest.of(viv)
    assert rest.get(f"/logs/{call.uid}/now").json()["reason"] == "revoked"

    make.token(scene.link, name="another")
    answer = rest.get(f"/logs/{call.uid}/now").json()

    assert (answer["works"], answer["reason"]) == (True, None)
    assert any("passes the most checks" in note for note in answer["notes"])


def test_a_revoked_token_names_who_ended_its_connection(scene: Scene, ana: User, sign_in: SignIn) -> None:
    scene.link.revoke(by=ana)

    assert f"Revoked by {ana.email}" in page(
        sign_in(make.user(Capability.LOGS_READ, Capability.AUDIT_READ)), scene.call("revoked")
    )


@pytest.mark.full
def test_the_address_of_the_call_counts_and_any_other_can_be_asked_about(scene: Scene, viv: User) -> None:
    scene.token.edit(allowed_ips=["192.0.2.0/24"], by=scene.owner)
    rest = Rest.of(viv)

    assert rest.get(f"/logs/{scene.call('ip').uid}/now").json()["reason"] == "ip"
    assert rest.get("/logs/what-if", **scene.query).json()["works"] is True
    assert rest.get("/logs/what-if", **scene.query, address="192.0.2.9").json()["works"] is True
    assert rest.get("/logs/what-if", **scene.query, address="10.0.0.1").json()["reason"] == "ip"
    assert rest.get("/logs/what-if", **scene.query, address="here").status_code == 400


@pytest.mark.full
def test_a_call_of_somebody_who_is_gone_is_not_asked_about(viv: User, sign_in: SignIn) -> None:
    call = make.call(
        host_id=uuid4(), gateway_id=uuid4(), user_id=uuid4(), outcome="denied", deny_reason="host_disabled"
    )

    assert "Would it work now?" not in page(sign_in(viv), call)
    assert page(sign_in(viv), call, now=True)
    gone_too = Rest.of(viv).get(f"/logs/{call.uid}/now")
    assert (gone_too.status_code, "no longer exists" in gone_too.json()["detail"]) == (404, True)
    assert Rest.of(viv).get(f"/logs/{uuid4()}/now").status_code == 404
    stranger = make.user(*(set(Capability) - {Capability.LOGS_READ}))
    assert Rest.of(stranger).get(f"/logs/{call.uid}/now").status_code == 403
    assert sign_in(stranger).get("/logs/what-if/").status_code == 403


# --- What if ----------------------------------------------------------------------------------------------------------


def test_what_if_shows_the_trail_of_its_address(scene: Scene, viv: User, sign_in: SignIn) -> None:
    scene.tool.disable(by=None)
    client = sign_in(viv)

    shown = text(client.get("/logs/what-if/", scene.query))
    by_id = {"host": str(scene.host.pk), "user": str(scene.owner.pk), "gateway": str(scene.gateway.pk), "tool": TOOL}

    assert "No. It would stop at Tool." in shown
    assert "No. It would stop at Tool." in text(client.get("/logs/what-if/", by_id))
    assert 'value="CI bot"' in shown
    assert "Ask" in text(client.get("/logs/what-if/"))


def test_what_if_says_what_a_rule_does_with_these_arguments(scene: Scene, viv: User, sign_in: SignIn) -> None:
    rule = Rule.objects.add(name="Large", effect="refuse", when="args.amount > 500", mode="on", by=None)
    client, rest = sign_in(viv), Rest.of(viv)

    assert "Large" not in text(client.post("/logs/what-if/", scene.query | {"arguments": '{"amount": 400}'}))
    for effect, words, reason in (
        ("refuse", "refuses it", "rule_refused"),
        ("hold", "holds it for approval", "held"),
    ):
        Rule.objects.filter(pk=rule.pk).update(effect=effect)
        asked = text(client.post("/logs/what-if/", scene.query | {"arguments": '{"amount": 600}'}))
        told = rest.post("/logs/what-if", scene.query | {"arguments": {"amount": 600}}).json()

        assert "No. It would stop at Rules." in asked
        assert f"The rule “Large” {words}." in asked
        assert told["obstacles"][0]["reason"] == reason


@pytest.mark.full
def test_arguments_of_a_what_if_are_in_no_address_and_in_no_log(
    scene: Scene, viv: User, sign_in: SignIn, caplog: pytest.LogCaptureFixture
) -> None:
    scene.link.disable(by=None)
    secret = make.unique("secret")
    question = scene.query | {"arguments": json.dumps({"password": secret})}
    client, rest = sign_in(viv), Rest.of(viv)

    with caplog.at_level(logging.DEBUG):
        answer = client.post("/logs/what-if/", question)
        told = rest.post("/logs/what-if", scene.query | {"arguments": {"password": secret}})

    assert (answer.status_code, told.json()["reason"]) == (200, "connection_disabled")
    shown = text(answer)
    addresses = re.findall(r'(?:href|action|name="back" value|hx-\S+)="([^"]*)', shown)
    assert any("what-if" in address for address in addresses)
    assert not any(secret in address for address in addresses)
    assert 'method="post"' in shown
    assert secret not in f"{answer.headers}{told.headers}{caplog.text}"
    assert not any(secret in str(event.changes) for event in Event.objects.all())
    assert secret not in text(client.get("/logs/what-if/", question))  # Arguments in an address are not read.
    assert rest.get("/logs/what-if", **question).status_code == 400
    no_token = Client(enforce_csrf_checks=True)
    no_token.force_login(viv)
    assert no_token.post("/logs/what-if/", question).status_code == 403


@pytest.mark.full
def test_what_if_without_a_tool_checks_only_access(scene: Scene, viv: User) -> None:
    query = {name: value for name, value in scene.query.items() if name != "tool"}
    rest = Rest.of(viv)

    assert rest.get("/logs/what-if", **query).json()["works"] is True
    Gateway.objects.update(reach=Reach.TEAMS)
    scene.owner.role = make.role()
    scene.owner.save()
    answer = rest.get("/logs/what-if", **query).json()
    assert [one["reason"] for one in answer["obstacles"]] == ["gateway_not_reachable"]


def test_each_picker_says_what_is_wrong_with_it(
    scene: Scene, viv: User, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    client, rest = sign_in(viv), Rest.of(viv)
    for name, value, words in (
        ("host", str(uuid4()), "There is no app or agent"),
        ("user", "nobody@example.com", "There is no person"),
        ("gateway", "", "Choose a gateway."),
        ("host", "a\0b", "Null characters are not allowed."),
        ("tool", "x" * 501, "no more than 500"),
    ):
        query = scene.query | {name: value}
        with subtests.test(words):
            shown = client.get("/logs/what-if/", query)
            told = rest.get("/logs/what-if", **{key: one for key, one in query.items() if one})

            assert (shown.status_code, told.status_code) == (422, 400)
            assert words in text(shown)
            assert words in str(told.json()["errors"][name])
            assert TOOL in text(shown) or name == "tool"  # Texts in other fields are preserved.


@pytest.mark.full
def test_several_of_one_name_are_told_apart_by_id(scene: Scene, viv: User) -> None:
    make.app("ci BOT")
    rest = Rest.of(viv)
    make.user()

    told = rest.get("/logs/what-if", **scene.query)

    assert "Enter the id of the right one." in str(told.json()["errors"]["host"])
    assert rest.get("/logs/what-if", **scene.query | {"host": str(scene.host.pk)}).json()["works"] is True


@pytest.mark.full
def test_unreadable_objects_answer_like_missing_ones(scene: Scene, sign_in: SignIn) -> None:
    """Readers who may see only the log can look up objects that occur in calls, and no other objects."""
    reader = make.user(Capability.LOGS_READ)
    rest = Rest.of(reader)
    Gateway.objects.update(reach=Reach.TEAMS)

    hidden = rest.get(
        "/logs/what-if", **scene.query | {"host": str(scene.host.pk), "user": str(scene.owner.pk)}
    ).json()["errors"]
    assert set(hidden) == {"host", "user", "gateway"}
    shown = text(sign_in(reader).get("/logs/what-if/"))
    assert not any(name in shown for name in (scene.host.name, scene.owner.email, scene.gateway.slug))

    Connection.objects.filter(pk=scene.link.pk).update(last_used_at=scene.link.connected_at)  # The app made a call.
    assert rest.get("/logs/what-if", **scene.query).json()["works"] is True


# --- Unknown tools ----------------------------------------------------------------------------------------------------


def test_tools_of_nearly_the_name_that_the_reader_may_see_are_told(scene: Scene, viv: User) -> None:
    asked = {"docs__ecko": [TOOL], "echo": [TOOL], "dcos__echo": [TOOL], "docs__weather_of_mars": []}
    assert {name: near_tools(viv, scene.gateway, name) for name in asked} == asked

    Gateway.objects.update(reach=Reach.TEAMS)
    assert near_tools(make.user(Capability.LOGS_READ), scene.gateway, "docs__ecko") == []
    Feature.objects.update(missing_since=scene.link.connected_at)
    assert near_tools(make.user(Capability.GATEWAYS_READ), scene.gateway, "docs__ecko") == []


@pytest.mark.full
def test_near_tools_are_told_in_the_trail_and_in_what_if(scene: Scene, viv: User, sign_in: SignIn) -> None:
    Assignment.objects.update(tool_policy=ToolPolicy.SELECTED)
    call = scene.call("unknown_tool", feature_name="docs__ecko", outcome="rpc_error", server_id=None)
    query = scene.query | {"tool": "docs__ecko"}
    client = sign_in(viv)

    assert f"Similar: <code>{TOOL}</code>" in page(client, call)
    Assignment.objects.update(tool_policy=ToolPolicy.ALLOW_ALL)
    assert "The reason for this refusal no longer applies." not in page(client, call)  # Only the server knows.
    open_answer = Rest.of(viv).get("/logs/what-if", **query).json()
    assert (open_answer["works"], open_answer["near"]) == (None, [TOOL])
    assert [line["result"] for line in open_answer["checks"] if line["check"] == "Tool"] == ["open"]
    Assignment.objects.update(tool_policy=ToolPolicy.SELECTED)
    assert urlencode({"tool": TOOL}) in text(client.get("/logs/what-if/", query))
    answer = Rest.of(viv).get("/logs/what-if", **query).json()
    assert (answer["reason"], answer["near"]) == ("unknown_tool", [TOOL])


# --- Tokens of apps ---------------------------------------------------------------------------------------------------


def test_a_person_without_tokens_sees_that_and_the_next_step(ana: User) -> None:
    server = make.server(slug="docs")
    gateway, host = make.gateway(server, slug="work"), make.agent(by=ana)
    question = Question(host, ana, gateway, Named("tool", TOOL))
    Feature.objects.create(assignment=gateway.assignments.get(), name="echo", exposed_name=TOOL)

    def reasons() -> list[str]:
        return [obstacle.reason for obstacle in current_decision(question).verdict.obstacles]

    assert reasons() == ["not_connected"]
    link = make.connection(host, gateway, ana)
    assert reasons() == ["no_token"]
    make.token(link)
    assert reasons() == []
    Host.objects.update(enabled=False)
    Server.objects.update(enabled=False)
    assert reasons() == ["host_disabled", "server_disabled"]


@pytest.fixture
def app_question(ana: User) -> Question:
    """Return a question about calls of a connected app whose access token has just expired."""
    link = make.app_connection(ana, make.gateway(slug="apps"))
    key = link.tokens.get()
    application = Application.objects.create(client_type="public", authorization_grant_type="authorization-code")
    told = {"user": ana, "application": application, "token": token_text.mint(token_text.OAUTH_ACCESS)}
    access = AccessToken.objects.create(expires=timezone.now() - timedelta(seconds=1), scope="mcp", **told)
    Binding.objects.create(connection=link, access_token=access, generation=key.generation)
    return Question(link.host, ana, link.gateway)


def test_an_app_whose_access_token_ended_has_to_connect_again(app_question: Question) -> None:
    assert current_decision(app_question).verdict.reason == "expired"

    AccessToken.objects.update(expires=timezone.now() + timedelta(hours=1))
    assert current_decision(app_question).works is True


def test_an_app_that_gets_another_access_token_by_itself_is_let_in(app_question: Question) -> None:
    link, access = Connection.objects.get(), AccessToken.objects.get()
    told = {"user": access.user, "application": access.application, "token": token_text.mint(token_text.OAUTH_REFRESH)}
    Binding.objects.create(connection=link, refresh_token=RefreshToken.objects.create(**told))

    assert current_decision(app_question).works is True
    link.disable(by=None)
    assert current_decision(app_question).verdict.reason == "connection_disabled"
    RefreshToken.objects.update(revoked=timezone.now())
    assert current_decision(app_question).verdict.reason == "expired"
