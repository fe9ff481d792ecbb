"""Lists (columns, sort order, selected rows), and the palette, which finds pages, objects and actions."""

import html
import json
import re
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client

import accounts.people_views
import accounts.role_views
import accounts.views
import connections.views
import gateways.team_views
import gateways.tool_views
import gateways.views
import hosts.views
import rules.views
import scim.views
import servers.views
import sinks.views
import tokens.rows
from accounts.models import Role, User
from auditlog.models import Event
from capabilities import Capability
from connections.models import Connection
from gateways.models import Feature
from hosts.models import Host
from sinks.models import Sink
from tests import make
from tests.conftest import SignIn
from tests.meanwhile import meanwhile
from tests.workspace import ROOT
from tokens.models import Token
from ui.tables import Table

ROOMS = (
    accounts.people_views, accounts.role_views, accounts.views, connections.views, gateways.team_views,
    gateways.tool_views, gateways.views, hosts.views,
    rules.views, scim.views, servers.views, sinks.views, tokens.rows,
)  # fmt: skip
KINDS = (*connections.views.TABS.values(), *gateways.tool_views.FEATURES.values())
TABLES = [*(one for room in ROOMS for one in vars(room).values() if isinstance(one, Table)), *KINDS]
HTMX = {"HX-Request": "true"}
STYLES = (ROOT / "static" / "gateway" / "app.css").read_text()
# For each column priority, the list width in rem from which such columns are shown; a shorter name is useless.
STEPS = re.findall(r'^@container table \(width < (\d+)rem\) \{ \[data-priority="(\d)"\]', STYLES, re.MULTILINE)
SHORTEST_NAME = 5.5


def heads(response: Any) -> list[str]:
    return re.findall(r'<th scope="col"[^>]*>(?:<(?:span|a)[^>]*>)?([^<]+)<', response.content.decode())


@pytest.mark.full
def test_each_column_has_its_width_and_all_together_leave_room_for_the_name(subtests: pytest.Subtests) -> None:
    for table in TABLES:
        columns = table.columns
        usual = [column for column in columns if not column.is_extra]
        with subtests.test(table.key):
            assert [column.name for column in columns if column.width is None] == ["name"]
            widths = {column.width_text for column in usual if column.width}
            assert [width for width in widths if f'[data-w="{width}"] {{ width:' not in STYLES] == []
            assert [column.name for column in columns if column.kind == "acts"] in ([], [columns[-1].name])
            for step, first in STEPS:
                there = sum(column.width or 0 for column in usual if column.priority <= int(first))
                assert int(step) - there >= SHORTEST_NAME, (step, there)
            # 768 px are 48 rem, so at least a quarter of the width remains for the name.
            assert sum(column.width or 0 for column in usual if not column.priority) <= 34


def names(response: Any) -> list[str]:
    return re.findall(r'class="row-link"[^>]*>([^<]+)<', response.content.decode())


@pytest.mark.full
def test_the_order_is_in_the_address_and_its_head_leads_to_the_other_way_round(ana: User, sign_in: SignIn) -> None:
    for name in ("beta", "alpha", "gamma"):
        make.agent(by=ana, name=name)
    client = sign_in(ana)

    assert names(client.get("/hosts/")) == ["alpha", "beta", "gamma"]
    back = client.get("/hosts/?sort=-name")
    assert names(back) == ["gamma", "beta", "alpha"]
    assert 'aria-sort="descending"><a href="?sort=name"' in back.content.decode()
    assert names(client.get("/hosts/?sort=password")) == ["alpha", "beta", "gamma"]


@pytest.mark.full
def test_columns_are_chosen_in_the_address_and_kept_until_the_usual_ones_are_asked_for(
    ana: User, sign_in: SignIn
) -> None:
    make.agent(by=ana)
    make.server(by=ana)
    client = sign_in(ana)
    usual = heads(client.get("/hosts/"))

    chosen = heads(client.get("/hosts/?columns=&columns=added&columns=status"))
    assert chosen == ["Name", "Created", "Status", "Enabled"]
    assert heads(client.get("/hosts/")) == chosen, "it is remembered"
    assert heads(client.get("/servers/"))[0] == "Name", "of each list apart"
    assert heads(client.get("/hosts/?columns=")) == usual
    assert heads(client.get("/hosts/")) == usual


def test_the_address_that_a_filter_leaves_says_only_what_was_chosen(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)
    form = "q=bot&type=&sort=name&columns=&columns=type&columns=connections&columns=users"
    form += "&columns=seen&columns=status"

    response = client.get(f"/hosts/?{form}", headers=HTMX)

    assert response["HX-Push-Url"] == "/hosts/?q=bot"


def test_picked_hosts_are_switched_off_after_one_question_one_event_each_and_back_by_undo(
    ana: User, sign_in: SignIn
) -> None:
    gateway = make.gateway()
    bots = [make.agent(by=ana, name=f"bot {letter}") for letter in "abc"]
    make.connection(bots[0], gateway, ana)
    waiting = make.app("Newcomer", needs_approval=True)
    picks = [str(host.pk) for host in (*bots[:2], waiting)]
    client = sign_in(ana)

    asked = client.post("/switch/hosts/", {"act": "disable", "pick": picks})
    said = asked.content.decode()
    assert "Disable 2 apps or agents" in said
    assert "Cuts off 1 connection, 1 app or agent, 1 person." in said
    assert "Not changed: Newcomer (waits for approval)." in said
    assert Host.objects.filter(enabled=False, kind=bots[0].kind).count() == 0, "asking does nothing"

    fields = dict.fromkeys(("act", "sure", "back"))
    fields = {name: re.search(rf'name="{name}" value="([^"]*)"', said)[1] for name in fields}  # type: ignore[index]
    done = client.post("/switch/hosts/", {**fields, "pick": picks}, follow=True)
    assert set(Host.objects.filter(enabled=False).values_list("name", flat=True)) == {"bot a", "bot b"}
    assert Event.objects.filter(action="host.disabled").count() == 2
    toast = re.search(r'<div class="toast">.*?</div>', done.content.decode())[0]  # type: ignore[index]
    assert "2 apps or agents disabled" in toast

    undo = re.findall(r'name="(act|sure|pick)" value="([^"]*)"', toast)
    client.post("/switch/hosts/", {"act": "enable", "pick": [value for name, value in undo if name == "pick"]})
    assert not Host.objects.filter(enabled=False).exists()
    assert Event.objects.filter(action="host.enabled").count() == 2


def test_picked_rows_take_the_capability_of_the_switch_and_are_those_one_may_see(
    ana: User, ann: User, sign_in: SignIn
) -> None:
    host, gateway = make.agent(by=ana), make.gateway()
    connection = make.connection(host, gateway, ana)
    picks = {"act": "disable", "sure": "1"}

    assert sign_in(ann).post("/switch/hosts/", {**picks, "pick": str(host.pk)}).status_code == 403
    assert sign_in(ann).post("/switch/connections/", {**picks, "pick": str(connection.pk)}).status_code == 403
    sign_in(ana).post("/switch/connections/", {**picks, "pick": [str(connection.pk), "not-an-id"]})
    assert list(Connection.objects.values_list("enabled", flat=True)) == [False]
    sign_in(ana).post("/switch/gateways/", {**picks, "pick": str(gateway.pk)})
    gateway.refresh_from_db()
    assert not gateway.enabled
    assert 'name="pick"' not in sign_in(ann).get("/gateways/").content.decode()


# --- The palette --------------------------------------------------------------------------------------------------


def found(client: Any, words: str) -> list[tuple[str, str]]:
    """Return the entries that the palette finds for these words, without entries of the documentation."""
    return [(text, url) for text, url in found_with_help(client, words) if not url.startswith("/help/")]


def found_with_help(client: Any, words: str) -> list[tuple[str, str]]:
    page = client.get("/find/", {"q": words}, headers=HTMX).content.decode()
    links = re.findall(r'<a href="([^"]+)">.*?<span>([^<]*)</span>(?:<small|</a)', page)
    posts = re.findall(r'<form method="post" action="([^"]+)">.*?<span>([^<]*)</span>(?:<small|</button)', page)
    return [(text, url) for url, text in (*links, *posts)]


def test_the_palette_finds_things_by_name_and_what_may_be_done_with_them(ana: User, sign_in: SignIn) -> None:
    host = make.agent(by=ana, name="Nightly report")
    token = make.token(make.connection(host, make.gateway(name="Nightly work"), ana), name="nightly-token")
    client = sign_in(ana)

    every = dict(found(client, "nightly"))
    assert every["Nightly report"] == f"/hosts/{host.pk}/"
    assert every["Disable Nightly report"] == f"/hosts/{host.pk}/disable/"
    assert "Nightly work" in every
    assert "nightly-token" in every
    verbs = dict(found(client, "disa nightly rep"))
    assert list(verbs) == ["Disable Nightly report"]
    assert f"/tokens/{token.token.pk}/revoke/" in dict(found(client, "revoke nightly")).values()
    assert client.get("/find/", {"q": "night\0ly"}).status_code == 200
    assert dict(found(client, "add a serv")) == {"Add a server": "/servers/add/", "Add Gateway Admin": "/servers/"}
    assert dict(found(client, "profile and")) == {"Profile and password": "/settings/profile"}
    make.server(by=ana, name="Nightly server")
    make.gateway(by=ana, name="Nightly secret", reach="teams")
    stranger = sign_in(make.user())
    assert set(dict(found(stranger, "nightly"))) <= {"Nightly work"}
    assert found(stranger, "workspace") == []


@pytest.mark.django_db
def test_the_palette_offers_an_auditor_nothing_to_change_and_no_gateway_to_use(sign_in: SignIn) -> None:
    make.built_in_roles()
    ben = make.user(email="ben@example.com")
    auditor = User.objects.create_user("ada@example.com", role=Role.objects.get(name="Auditor"))
    client = sign_in(auditor)

    assert dict(found(client, "ben@")) == {ben.email: f"/people/{ben.pk}/"}
    for words in ("run a tool", "playground", "connect an agent", "create a token"):
        assert found(client, words) == [], words
    assert "y" not in client.get("/").context["letters"]
    for path in ("/", "/tools/"):
        assert not re.findall(r'href="/(?:playground|connect/client)/', client.get(path).content.decode()), path


def acts(client: Any, words: str) -> list[tuple[str, str, str]]:
    """Return the actions the palette finds: the link or form URL, the text, and the kind of object."""
    page = client.get("/find/", {"q": words}, headers=HTMX).content.decode()
    opened, inside = r'<(?:a href|form method="post" action)="([^"]+)">', r"(?:(?!</a|</form).)*?"
    act = rf"{opened}{inside}<span>([^<]*)</span><small>([^<]*)</small>"
    return [
        (f"{'post' if 'form' in m[0] else 'go'} {m[1]}", m[2], m[3])
        for m in re.finditer(act, page)
        if not m[1].startswith("/help/")
    ]


def test_an_act_of_the_palette_names_the_kind_and_an_app_that_names_itself_is_not_enabled_there(
    ana: User, sign_in: SignIn
) -> None:
    app, agent = make.app("GitHub", enabled=False), make.agent(by=ana, name="GitHub")
    server = make.server(by=ana, name="GitHub", slug="github")
    for one in (agent, server):
        one.disable(by=ana)
    client = sign_in(ana)

    assert sorted(acts(client, "enable github")) == [
        (f"go /hosts/{app.pk}/", "Enable GitHub", "App (OAuth), self-reported name"),
        (f"post /hosts/{agent.pk}/enable/", "Enable GitHub", "Agent (token)"),
        (f"post /servers/{server.slug}/enable/", "Enable GitHub", "Server github"),
    ]
    assert f'"/hosts/{app.pk}/enable/"' in client.get(f"/hosts/{app.pk}/").content.decode()


@pytest.mark.full
def test_an_act_of_the_palette_tells_its_thing_from_others_of_the_same_name(ana: User, sign_in: SignIn) -> None:
    agents = make.agent(by=ana, name="Same"), make.agent(by=ana, name="Other")
    gateway = make.gateway(make.server(by=ana, name="Same", slug="same"), name="Same", slug="same-gateway")
    make.app("Same")
    for agent in agents:
        make.token(make.connection(agent, gateway, ana), name="Same")
    for email in ("one@example.com", "two@example.com"):
        User.objects.filter(pk=make.user().pk).update(email=email, display_name="Same")
    client = sign_in(ana)

    disabled = ["Agent (token)", "App (OAuth)", "Gateway same-gateway", "Server same"]
    assert sorted(note for _, _, note in acts(client, "disable same")) == disabled
    ended = acts(client, "revoke same")
    assert len({note for _, _, note in ended}) == len(ended) == 2
    manager = sign_in(make.user(Capability.PEOPLE_MANAGE))
    people = [note for _, _, note in acts(manager, "deactivate same")]
    assert people == ["Person one@example.com", "Person two@example.com"]


TRADE_WORDS = (
    *("sso", "audit", "export", "kill switch", "idle", "disable tool", "least privilege", "siem", "prompt injection"),
    *("policy", "rbac", "mfa", "offboard", "webhook", "rotate", "backup", "docs"),
)


@pytest.mark.full
def test_the_palette_finds_help_and_pages_by_the_words_of_the_trade(ana: User, ann: User, sign_in: SignIn) -> None:
    administrator, member = sign_in(ana), sign_in(ann)

    for words in TRADE_WORDS:
        assert any(url.startswith("/help/") for _, url in found_with_help(administrator, words)), words
        assert found_with_help(member, words), words
    assert ("Sign-in by your organisation", "/settings/organisation/") in found(sign_in(make.user(*Capability)), "saml")
    assert dict(found(administrator, "stale agents"))["Tokens idle for 90 days"].endswith("?owner=all&amp;care=idle")


@pytest.mark.full
def test_the_palette_leads_to_calls_of_an_outcome_and_a_time(ana: User, sign_in: SignIn) -> None:
    refused = make.call(outcome="denied", host_name="Nightly")
    for outcome in ("unauthorized", "rate_limited", "ok"):
        make.call(outcome=outcome, host_name="Other")
    make.call(outcome="ok", host_name="Nightly")
    client = sign_in(ana)
    counted = client.get("/").context["traffic"].refused
    listed = client.get(dict(found(client, "denied"))["Refused calls"]).context["page"]
    assert {call.outcome for call in listed.rows} == {"denied", "unauthorized", "rate_limited"}
    assert str(counted) == "3"

    today = html.unescape(dict(found(client, "refused today nightly"))["Refused calls with “nightly” today"])
    yesterday = html.unescape(dict(found(client, "refused yesterday"))["Refused calls yesterday"])

    assert [call.pk for call in client.get(today).context["page"].rows] == [refused.pk]
    assert not client.get(yesterday).context["page"].rows
    assert found(sign_in(make.user()), "refused yesterday") == []


def asked_and_done(client: Client, path: str, picks: list[str]) -> tuple[str, str]:
    """Return the confirmation for these rows, and the page after the person typed the number of rows."""
    asked = client.post(path, {"pick": picks})
    said = html.unescape(asked.content.decode())
    assert asked.status_code == 200
    assert "The name does not match" not in said
    number = re.search(r"Type <b>(.*?)</b> to confirm", said)[1]  # type: ignore[index]
    wrong = client.post(path, {"pick": picks, "typed": f"not {number}"})
    assert wrong.status_code == 422
    done = client.post(path, {"pick": picks, "typed": number}, follow=True)
    toast = re.search(r'<div class="toast">.*?</div>', done.content.decode(), re.DOTALL)[0]  # type: ignore[index]
    assert "Undo" not in toast, "what is ended for good is not taken back"
    return said, html.unescape(toast)


def test_picked_connections_are_revoked_once_their_number_is_typed_one_event_each_and_those_that_refuse_are_named(
    ana: User, sign_in: SignIn
) -> None:
    gateway = make.gateway()
    links = [make.connection(make.agent(by=ana, name=f"bot {letter}"), gateway, ana) for letter in "abc"]
    make.token(links[0])
    make.token(links[0], name="second")
    links[2].revoke(by=ana)
    picks = [str(link.pk) for link in links]

    said, toast = asked_and_done(sign_in(ana), "/revoke/connections/", picks)

    assert "Revoke 2 connections" in said
    assert "2 connections and 2 tokens of 1 person end with the next request. No call of the last 7 days would" in said
    assert "This cannot be undone." in said
    assert "(revoked already)" in said
    assert "2 connections revoked" in toast
    assert Connection.objects.live().count() == 0
    assert Event.objects.filter(action="connection.revoked").count() == 3


def test_picked_hosts_are_archived_with_their_connections_but_none_that_is_still_enabled(
    ana: User, sign_in: SignIn
) -> None:
    gateway = make.gateway()
    on, off, other = (make.agent(by=ana, name=f"bot {letter}") for letter in "abc")
    link = make.connection(off, gateway, ana)
    for host in (off, other):
        host.disable(by=ana)

    said, toast = asked_and_done(sign_in(ana), "/archive/hosts/", [str(host.pk) for host in (on, off, other)])

    assert "Archive 2 apps or agents" in said
    assert "1 connection and 0 tokens of 1 person end with the next request." in said
    assert "Not changed: bot a (still enabled)." in toast
    assert set(Host.objects.live().values_list("name", flat=True)) == {"bot a"}
    link.refresh_from_db()
    assert not link.is_live


@pytest.mark.full
def test_picked_tokens_are_revoked_and_those_of_others_only_by_who_may_end_them(
    ana: User, ann: User, viv: User, sign_in: SignIn
) -> None:
    gateway, host = make.gateway(), make.agent(by=ana)
    link = make.connection(host, gateway, viv)
    own, ended = make.token(link).token, make.token(link, name="ended").token
    others = make.token(make.connection(host, gateway, ana)).token
    ended.revoke(by=viv)
    picks = [str(own.pk), str(ended.pk), str(others.pk), str(uuid4()), "not-an-id"]

    said, toast = asked_and_done(sign_in(viv), "/revoke/tokens/", picks)

    assert "Requests of 1 agent with these tokens fail with 401 immediately." in said
    assert "1 token revoked" in toast
    assert f"{ended} (revoked already)" in said
    assert f"{ended} (revoked already)" in toast
    assert set(Token.objects.filter(revoked_at=None).values_list("pk", flat=True)) == {others.pk}
    nothing = sign_in(ann).post("/revoke/tokens/", {"pick": picks, "typed": "1 token"}, follow=True)
    assert "Nothing was selected" in nothing.content.decode(), "she knows of neither"
    asked_and_done(sign_in(ana), "/revoke/tokens/", [str(others.pk)])
    assert not Token.objects.filter(revoked_at=None).exists()


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_a_picked_token_that_somebody_revokes_at_that_moment_is_named_and_the_others_end(
    ana: User, sign_in: SignIn
) -> None:
    link = make.connection(make.agent(by=ana), make.gateway(), ana)
    ends, lives = make.token(link, name="a").token, make.token(link, name="b").token
    client, picks = sign_in(ana), {"pick": [str(ends.pk), str(lives.pk)], "typed": "2 tokens"}

    done = meanwhile(lambda: client.post("/revoke/tokens/", picks, follow=True), lambda: ends.revoke(by=ana))

    told = html.unescape(done.content.decode())
    assert f"1 token revoked. Not changed: {ends} (This token is already revoked.)." in told
    assert Event.objects.filter(action="token.revoked").count() == 2
    assert not Token.objects.filter(revoked_at=None).exists()


@pytest.mark.full
def test_ending_selected_rows_needs_the_single_capability_and_skips_invisible_ones(
    ana: User, ann: User, sign_in: SignIn
) -> None:
    host, gateway = make.agent(by=ana), make.gateway()
    link = make.connection(host, gateway, ana)
    host.disable(by=ana)
    picks = {"pick": [str(link.pk), str(host.pk)]}

    refused = sign_in(ann).post("/archive/hosts/", picks | {"typed": "1 app or agent"})
    unseen = sign_in(ann).post("/revoke/connections/", picks | {"typed": "1 connection"}, follow=True)

    assert refused.status_code == 403
    assert "Nothing was selected" in unseen.content.decode()
    link.refresh_from_db()
    assert link.is_live
    assert Host.objects.live().filter(pk=host.pk).exists()


@pytest.mark.full
def test_a_switch_is_taken_back_from_its_toast_either_way(
    ana: User, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    server = make.server(auth_type="bearer")
    assignment = make.assignment(make.gateway(), server, identity_scheme="per_user")
    Feature.objects.learn(assignment, [{"name": "search"}])
    things: dict[str, Any] = {
        "hosts": make.agent(by=ana),
        "tools": assignment.features.get(),
        "assignments": assignment,
        "identities": make.identity(server, ana),
        "settings/sinks": Sink.objects.add(name="Copies", kind="stdout", by=ana),
    }
    client = sign_in(ana)

    for room, thing in things.items():
        states, address = [], f"/{room}/{thing.pk}/disable/"
        for _ in range(3):
            answer = client.post(address, headers=HTMX | {"HX-Target": f"row-{thing.pk}"})
            address = json.loads(answer["HX-Trigger"])["toast"]["undo"]
            thing.refresh_from_db()
            states.append(thing.enabled)
        with subtests.test(room):
            assert states == [False, True, False]

    person, client = make.user(), sign_in(make.user(*Capability))
    page = client.post(f"/people/{person.pk}/deactivate/", follow=True).content.decode()
    address = re.search(r'<div class="toast">.*?action="([^"]+)"', page, re.DOTALL)[1]  # type: ignore[index]
    person.refresh_from_db()
    assert not person.is_active
    client.post(address)
    person.refresh_from_db()
    assert person.is_active
