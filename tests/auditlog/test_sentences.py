"""Each admin event has a sentence with links to its objects, and no name can change what the sentence says."""

import re
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from accounts.models import Role, Team, User, WorkspaceSettings
from auditlog.actions import Action
from auditlog.models import Event
from auditlog.sentences import RETIRED, sentence
from capabilities import Capability
from connections.models import Connection
from gateways.models import Feature
from servers.models import AuthType
from tests import make
from tests.conftest import SignIn

ROOT = Path(__file__).resolve().parents[2]
PATH = "/settings/admin-events/"
ANA = "ana@example.com"


def test_statements_write_no_event_without_a_sentence() -> None:
    """Some events are written by SQL statements, which do not use the event names defined in the code."""
    sources = [*ROOT.glob("*/migrations/*.py"), *ROOT.glob("proxy/**/*.sql")]
    texts = [text for path in sources if "INSERT INTO auditlog_event (" in (text := path.read_text())]
    subjects = "|".join(sorted({action.partition(".")[0] for action in Action}))
    written = {name for text in texts for name in re.findall(rf"'((?:{subjects})\.[a-z_]+)'", text)}

    assert written >= {"feature.held", "feature.changed", "identity.sign_in_needed", "proxy.unknown_tokens_refused"}
    assert written <= set(Action)


def test_an_event_that_says_nothing_of_its_own_is_a_whole_sentence_too(subtests: pytest.Subtests) -> None:
    assert all(action.sentences for action in Action)
    assert not set(RETIRED) & set(Action)
    for action in [*Action, *RETIRED, "thing.from_the_future"]:
        bare = Event(action=action, actor_email=ANA, target_type="thing", target_id="7", target_label="Thing")
        least = Formatter().parse((getattr(action, "sentences", ()) or RETIRED.get(action) or ("",))[-1])

        with subtests.test(str(action)):
            said = sentence(bare)

            # Events of rules always have the mode and the place.
            assert {name for _, name, _, _ in least if name} <= {"actor", "target", "mode", "place"}
            assert re.fullmatch(r"(ana@example\.com|“Thing”|[A-Z]).* .*[^ .]\.", said)
            assert not set(said) & set("{}_")


# --- Sentences about real changes -----------------------------------------------------------------------------------

pytestmark = pytest.mark.django_db


def last(action: str) -> str:
    return sentence(Event.objects.filter(action=action).latest("id"))


def of_switches(ana: User) -> dict[str, str]:
    host, gateway, server = (
        make.agent(by=ana, name="CI bot"),
        make.gateway(by=ana, name="Work"),
        make.server(by=ana, name="GitHub"),
    )
    assigned, link = make.assignment(gateway, server), make.connection(host, gateway, ana)
    for thing in (host, gateway, server, assigned, link):
        thing.disable(by=ana)
        thing.enable(by=ana)
    gateway.edit(by=ana, name="Works")
    return {
        "host.created": f"{ANA} created the agent “CI bot”.",
        "host.disabled": f"{ANA} disabled the agent “CI bot”.",
        "gateway.enabled": f"{ANA} enabled the gateway “Work”.",
        "gateway.updated": f"{ANA} renamed the gateway “Work” to “Works”.",
        "server.created": f"{ANA} added the server “GitHub”.",
        "assignment.created": "The system assigned the server “GitHub” to the gateway “Work”.",
        "assignment.disabled": f"{ANA} disabled the server “GitHub” on the gateway “Work”.",
        "connection.opened": f"{ANA} let “CI bot” use the gateway “Work” as {ANA}.",
        "connection.disabled": f"{ANA} disabled the connection of “CI bot” to the gateway “Work” as {ANA}.",
    }


def of_tokens(ana: User) -> dict[str, str]:
    link = make.connection(make.agent(by=ana), make.gateway(by=ana), ana)
    issued = make.token(link, name="ci")
    first = str(issued.token)
    issued.token.rotate(by=None, presented=issued.secret)
    second = str(issued.token)
    issued.token.edit(by=ana, name="nightly", calls_per_minute=5)
    issued.token.revoke(by=ana)
    return {
        "token.issued": f"{ANA} created the token “{first}”.",
        "token.rotated": f"The token “{second}” regenerated its own secret.",
        "token.updated": f"{ANA} changed the name and calls per minute of the token “{issued.token}”.",
        "token.revoked": f"{ANA} revoked the token “{issued.token}”.",
    }


def of_people(ana: User) -> dict[str, str]:
    role = Role.objects.add(name="Watcher", capabilities=(), by=None)
    bo = User.objects.invite(email="bo@example.com", role=role, by=None)
    team = Team.objects.add(name="Support", users=[ana], by=None)
    team.edit(name="Support", users=[bo], by=None)
    ana.edit(email=ana.email, display_name="Ana S.", by=ana)
    bo.give_role(Role.objects.add(name="Reader", capabilities=(), by=None), by=None)
    ana.end_sessions(by=ana)
    bo.deactivate(by=None)
    WorkspaceSettings.edit(by=ana, name="Acme", log_retention_days=120)
    return {
        "user.invited": "The system invited bo@example.com with the role “Watcher”.",
        "team.updated": f"The system added bo@example.com to the team “Support” and removed {ANA}.",
        "user.updated": f"{ANA} changed their display name.",
        "user.role_changed": "The system gave bo@example.com the role “Reader”.",
        "user.signed_out_everywhere": f"{ANA} signed out everywhere.",
        "user.deactivated": "The system deactivated bo@example.com.",
        "workspace.updated": f"{ANA} changed the name and log retention days of the workspace.",
    }


@pytest.mark.full
def test_an_event_is_told_in_one_sentence(sign_in: SignIn) -> None:
    ana = make.user(*Capability, email=ANA)
    for happen in (of_switches, of_tokens, of_people):
        told = happen(ana)
        assert {action: last(action) for action in told} == told

    sign_in(make.user(email="ben@example.com")).post("/gateways/add/", {"name": "x"})
    refused = "ben@example.com was refused: the capability “Basic gateway management” is missing."
    assert last("attempt.refused") == refused
    by_key = Event(
        action="host.disabled", actor_email=ANA, target_type="host", target_label="CI", changes={"through": "cron"}
    )
    assert sentence(by_key) == f"{ANA} disabled the agent “CI” with the API key “cron”."
    by_key.changes = {"through": "API key cron (gwp_0000)"}
    assert sentence(by_key) == f"{ANA} disabled the agent “CI” with the API key “cron (gwp_0000)”."


def test_a_name_stays_one_name() -> None:
    """If a name contains the separator of a label, or the label was cut, the sentence has the label as a whole."""
    for name in ("CI / boss@example.com / Payroll", "CI” was approved. The host “X", "x" * 250):
        label = f"{name} / {ANA} / Work"[:200]
        event = Event(action="connection.revoked", actor_email=ANA, target_type="connection", target_label=label)

        assert name[:180] in sentence(event)
        assert sentence(event).startswith(f"{ANA} revoked the connection ")
        assert "boss@example.com" not in sentence(event).partition(" as ")[2]


def test_no_name_ends_before_it_ends() -> None:
    quoted = {
        "Bot": "“Bot”",
        "Bot”. The host “Other": "«Bot”. The host “Other»",
        'a” «b» "c"': r'"a” «b» \"c\""',
        "two\nlines": r'"two\nlines"',
        "Bot\u202e": r'"Bot\u202e"',
    }
    for name, said in quoted.items():
        event = Event(action="host.disabled", actor_email=ANA, target_type="host", target_label=name)
        assert sentence(event) == f"{ANA} disabled the agent {said}."

    tried = {"email": "ana@example.com; the sign-in of bo@example.com"}
    event = Event(action=Action.SIGN_IN_REFUSED, target_type="address", target_label="192.0.2.1", changes=tried)
    assert sentence(event) == f"Too many passwords were tried for “{tried['email']}”; further attempts were refused."


# --- Pages that show the sentences -----------------------------------------------------------------------------------


def main(page: Any) -> str:
    return str(page.content.decode()).split('<main class="page"')[1].split("</main>")[0]


def drawer(page: Any) -> str:
    return main(page).split('<aside class="drawer"')[1]


def everything(by: User) -> dict[str, Any]:
    """Create an object of each kind that has a page, and events about the objects; return the objects by kind."""
    host, gateway = make.agent(by=by), make.gateway(by=by)
    server = make.server(by=by, auth_type=AuthType.BEARER)
    assigned = make.assignment(gateway, server, identity_scheme="per_user")
    link = make.connection(host, gateway, by)
    feature = Feature.objects.create(assignment=assigned, kind="tool", name="search", exposed_name="docs__search")
    feature.disable(by=by)
    assigned.disable(by=by)
    return {
        "host": host,
        "gateway": gateway,
        "server": server,
        "assignment": assigned,
        "connection": link,
        "feature": feature,
        "identity": make.identity(server, by),
        "token": make.token(link).token,
        "team": Team.objects.add(name="Support", users=(), by=by),
        "role": Role.objects.add(name="Watcher", capabilities=(), by=by),
    }


def leads(client: Client, kind: str) -> str:
    """Return the link in the sentence of the newest event about this kind of object."""
    event = Event.objects.filter(target_type=kind).latest("id")
    found = re.search(r'<span class="sentence">.*?</h2>', drawer(client.get(f"{PATH}{event.uid}/")), re.DOTALL)
    assert found
    links = [
        url
        for url in re.findall(r'<a href="([^"]+)"', found[0])
        if not url.startswith("/people/") or kind in ("team", "role")
    ]
    return links[-1] if links else ""


@pytest.mark.full
def test_the_subject_leads_to_its_page_and_nowhere_once_it_is_gone(sign_in: SignIn) -> None:
    boss = make.user(*Capability, email=ANA)
    things, client = everything(boss), sign_in(boss)

    pages = {kind: leads(client, kind) for kind in things}
    for url in pages.values():
        assert client.get(url).status_code == 200
    assert pages["token"] == pages["connection"] == f"/hosts/{things['host'].pk}/connections/"
    assert pages["assignment"] == f"/gateways/{things['gateway'].slug}/servers/"
    assert pages["identity"] == f"/servers/{things['server'].slug}/identities/"

    for thing in (things["host"], things["gateway"], things["server"]):
        thing.disable(by=boss)
    Connection.objects.archive_host(things["host"], by=boss)
    Connection.objects.archive_gateway(things["gateway"], by=boss)
    things["assignment"].remove(by=boss)
    type(things["assignment"]).objects.archive_server(things["server"], by=boss)
    for removed in ("team", "role"):
        things[removed].remove(by=boss)
    assert {kind: leads(client, kind) for kind in things} == dict.fromkeys(things, "")


@pytest.mark.full
def test_the_things_of_a_page_are_found_in_one_statement(
    sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    boss = make.user(*Capability, email=ANA)
    everything(boss)
    client = sign_in(boss)
    client.get(PATH)

    with django_assert_num_queries(6):  # session, user, permissions, rows, count, things
        client.get(PATH, headers={"HX-Request": "true"})
