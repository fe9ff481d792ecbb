"""The dashboard: the viewer's own objects, and the numbers visible to the viewer's role."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from pytest_django import DjangoAssertNumQueries

from accounts.models import Team, User
from auditlog.models import Call, Outcome
from auditlog.rollups import keeping
from capabilities import Capability
from capabilities.catalogue import including
from gatewayadmin.overview import SHOWN
from gateways.models import Feature, IdentityScheme, Reach
from servers.models import Health, Identity, Server
from sinks.models import Sink
from tests import make
from tests.conftest import SignIn, wire_size

pytestmark = pytest.mark.django_db


def text(response: Any) -> str:
    return str(response.content.decode())


def a_call(outcome: Outcome, **fields: Any) -> Call:
    at = fields.pop("created_at", datetime.now(UTC) - timedelta(minutes=1))
    Call.partitions.make_for(at.date())
    defaults = {"uid": uuid4(), "correlation_id": uuid4(), "method": "tools/call", "http_status": 200, "duration_ms": 1}
    return Call.objects.create(created_at=at, outcome=outcome, **(defaults | fields))


@pytest.mark.full
@pytest.mark.parametrize(
    ("capabilities", "words"),
    [
        ((Capability.HOSTS_TOGGLE,), "<span>Hosts</span>"),
        (sorted(including([Capability.MCP_CONNECTIONS_READ])), "<span>Live connections</span>"),
        ((Capability.LOGS_READ,), "<span>Requests 24 h</span>"),
        ((Capability.API_TOKENS_MANAGE,), "Tokens expiring in 14 days"),
        ((Capability.SERVERS_TOGGLE, Capability.SERVERS_MANAGE), "Connect timeout"),
    ],
)
def test_each_number_needs_its_capability(capabilities: Sequence[Capability], words: str, sign_in: SignIn) -> None:
    make.server().note_health(Health.DOWN, "connect timeout")
    make.call()
    person = make.user()
    make.token(make.connection(make.agent(by=person), make.gateway(), person), expires_in_days=7)

    for capability in capabilities:
        assert words in text(sign_in(make.user(capability)).get("/"))
    assert words not in text(sign_in(make.user(*set(Capability) - {*capabilities})).get("/"))


@pytest.mark.full
def test_a_person_without_any_capability_sees_their_own_things(sign_in: SignIn) -> None:
    person = make.user()
    own = make.connection(make.agent(by=make.user(), name="Feedback bot"), make.gateway(), person)
    make.token(own, name="feedback-mine")
    other = make.user()
    make.token(make.connection(make.agent(by=other, name="Secret bot"), make.gateway(), other), name="not-mine")

    page = text(sign_in(person).get("/"))

    for words in ("Your connections", "Feedback bot", "Your API tokens", "feedback-mine"):
        assert words in page
    for words in ("Secret bot", "not-mine", "hosts.all", "calls.day"):
        assert words not in page


@pytest.mark.full
def test_the_last_day_is_counted_and_its_refusals_are_listed(ana: User, sign_in: SignIn) -> None:
    a_call(Outcome.OK)
    a_call(Outcome.DENIED, host_name="CI bot", deny_reason="host_disabled")
    a_call(Outcome.CANCELLED)
    a_call(Outcome.OK, created_at=datetime.now(UTC) - timedelta(hours=25))

    response = sign_in(ana).get("/")

    traffic = response.context["traffic"]
    assert (str(traffic.total), str(traffic.refused)) == ("3", "1")
    assert "CI bot" in text(response)


@pytest.mark.full
def test_calls_and_refusals_stand_in_one_column_and_what_else_there_is_in_the_other(ana: User, sign_in: SignIn) -> None:
    a_call(Outcome.DENIED, deny_reason="host_disabled")
    make.server()
    make.token(make.connection(make.agent(by=ana), make.gateway(), ana), expires_in_days=7)

    page = text(sign_in(ana).get("/"))

    titles = [page.index(f'id="{name}-title"') for name in ("recent", "refusals", "expiring", "health")]
    assert titles == sorted(titles)
    assert page[titles[0] : titles[-1]].count('<div class="stack">') == 1


@pytest.mark.full
def test_each_figure_of_the_last_day_is_told_once(ana: User, sign_in: SignIn) -> None:
    """The figures are in the plots, or are plain numbers while there are no roll-ups."""
    a_call(Outcome.OK)
    a_call(Outcome.DENIED)
    client = sign_in(ana)

    without = text(client.get("/"))
    keeping.keep_up(5)
    with_plots = text(client.get("/"))

    for page in (without, with_plots):
        for words in ("Requests 24 h", "Refused 24 h", "<span>Hosts</span>", "<span>Live connections</span>"):
            assert page.count(words) == 1
    assert "calls.day" in without
    assert "calls.day" not in with_plots
    assert "plots." not in without
    assert "<span>Requests 7 d</span>" in text(client.get("/?range=7d"))


@pytest.mark.full
def test_without_traffic_the_page_says_how_to_begin(ana: User, sign_in: SignIn) -> None:
    page = text(sign_in(ana).get("/"))

    assert "No traffic yet. Create" in page
    assert "No app or agent acts as you yet." in page
    assert "You have no API tokens." in page


@pytest.mark.full
def test_the_first_step_is_the_one_that_is_still_missing(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)
    assert "Create <a" in text(client.get("/"))

    empty = make.gateway(name="Empty")
    assert ">Empty</a> exposes nothing yet: assign a server" in text(client.get("/"))

    make.assignment(empty, make.server())
    page = text(client.get("/"))
    assert ">Empty</a> is ready: connect" in page
    assert "Create <a" not in page

    make.connection(make.agent(by=ana), empty, ana)
    assert "You are connected: make the first call" in text(client.get("/"))


@pytest.mark.full
def test_the_page_costs_the_same_however_much_there_is(
    ana: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(5):
        make.token(make.connection(make.agent(by=ana), make.gateway(), ana))
        a_call(Outcome.DENIED)
    client = sign_in(ana)

    # Viewer (3), notices (2), own connections, own connections without an identity, own tokens and their connections,
    # first steps, newest own connections with their tokens, identities and servers (4), hosts, connections, expiring
    # tokens, waiting definitions, failing sinks, refused identities, servers, and if any server exists; from the
    # log: the count, the newest calls, refused calls (three outcomes in one) and their range, the number of others,
    # plots, roll-ups, and the newest id (2); the counts in the navigation.
    with django_assert_num_queries(33):
        client.get("/")


def test_numbers_lead_to_the_lists_they_count(ana: User, sign_in: SignIn) -> None:
    a_call(Outcome.OK)

    page = text(sign_in(ana).get("/"))

    for path in (
        "/hosts/",
        "/settings/mcp-connections?type=all&amp;status=live",
        "/logs/",
        "/logs/?q=refused",
    ):
        assert f'{path}"><header><span>' in page


@pytest.mark.full
def test_tokens_that_end_within_a_week_are_listed(ana: User, sign_in: SignIn) -> None:
    connection = make.connection(make.agent(by=ana, name="CI bot"), make.gateway(), ana)
    make.token(connection, name="ends-soon", expires_in_days=7)
    make.token(connection, name="ends-late", expires_in_days=90)

    expiring = text(sign_in(ana).get("/")).split('id="expiring-title"')[1].split("</section>")[0]

    assert "ends-soon" in expiring
    assert "ends-late" not in expiring


@pytest.mark.full
@pytest.mark.parametrize(("tokens", "told"), [(SHOWN, f">{SHOWN}<"), (SHOWN + 1, f">{SHOWN}+<")])
def test_more_expiring_tokens_than_are_listed_are_said_to_be_more(
    tokens: int, told: str, ana: User, sign_in: SignIn
) -> None:
    connection = make.connection(make.agent(by=ana), make.gateway(), ana)
    for number in range(tokens):
        make.token(connection, name=f"soon-{number}", expires_in_days=7)

    heading = text(sign_in(ana).get("/")).split('id="expiring-title">')[1].split("</h2>")[0]

    assert told in heading
    assert heading.startswith("Tokens expiring in 14 days")


@pytest.mark.full
def test_a_server_s_hours_tell_when_it_failed(ana: User, sign_in: SignIn) -> None:
    server, other = make.server(name="Docs"), make.server(name="Quiet")
    a_call(Outcome.OK, server_id=server.pk)
    a_call(Outcome.UPSTREAM_ERROR, server_id=server.pk, created_at=datetime.now(UTC) - timedelta(hours=3))
    a_call(Outcome.TIMEOUT, server_id=server.pk, created_at=datetime.now(UTC) - timedelta(hours=5))
    keeping.keep_up(5)

    page = text(sign_in(ana).get("/"))

    assert 'aria-label="Docs, last 24 hours: 1 without failures, 2 with failures"' in page
    assert f'aria-label="{other.name}, last 24 hours: 0 without failures, 0 with failures"' in page


@pytest.mark.full
@pytest.mark.parametrize("of", ["a name ", "\N{CJK UNIFIED IDEOGRAPH-8A9E}"])
def test_a_dashboard_among_the_longest_names_stays_light(of: str, ana: User, sign_in: SignIn) -> None:
    def longest(length: int) -> str:
        return (of * length)[: length - 2] + f"{number:02}"

    for number in range(14):
        server = make.server(name=longest(80))
        server.note_health(Health.DOWN, of * 40)
        gateway = make.gateway(name=longest(80))
        agent = make.agent(by=ana, name=longest(120))
        make.token(make.connection(agent, gateway, ana), name=longest(100), expires_in_days=7)
        Feature.objects.learn(make.assignment(gateway, server), [{"name": "t" * 128}])
        for outcome in Outcome.values:
            a_call(
                Outcome(outcome),
                host_name=agent.name,
                gateway_name=gateway.name,
                server_id=server.pk,
                feature_name="f" * 128,
                user_email=ana.email,
                created_at=datetime.now(UTC) - timedelta(hours=number),
            )

    assert wire_size(sign_in(ana).get("/")) <= 30 * 1024


@pytest.mark.full
def test_a_list_that_is_cut_still_says_how_many_there_are(max: User, sign_in: SignIn) -> None:
    for number in range(21):
        gateway = make.gateway(name=f"open {number}")
        if number < 10:
            make.token(make.connection(make.agent(by=max), gateway, max))

    page = text(sign_in(max).get("/"))

    assert re.findall(r'data-count="(own\.[\w.]+)"[^>]*>(\d+)<', page) == [
        ("own.gateways", "21"),
        ("own.connections.live", "10"),
        ("own.tokens", "10"),
    ]


@pytest.mark.full
def test_servers_that_are_switched_off_are_not_none(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)
    assert "No servers yet." in text(client.get("/"))

    make.server().disable(by=ana)

    assert "No servers yet." not in text(client.get("/"))
    assert "No server is enabled." in text(client.get("/"))


@pytest.mark.full
def test_nothing_of_ones_own_looks_as_if_it_worked_when_it_does_not(max: User, sign_in: SignIn) -> None:
    team = Team.objects.create(name="Platform")
    max.teams.add(team)
    closed = make.gateway(reach=Reach.TEAMS, teams=[team])
    make.token(make.connection(make.agent(by=max), closed, max))
    asking = make.gateway()
    make.assignment(asking, make.server(auth_type="bearer"), identity_scheme="per_user")
    lacking = make.connection(make.agent(by=max), asking, max)
    make.token(lacking)
    max.teams.clear()

    page = text(sign_in(max).get("/"))

    def of(thing: str) -> list[str]:
        return re.findall(rf'data-of="{thing}:.*?class="badge" data-state="(\w+)"', page, re.DOTALL)

    assert sorted(of("connection")) == ["attention", "blocked"]
    assert sorted(of("token")) == ["active", "blocked"]


@pytest.mark.full
def test_a_server_that_is_down_has_its_effect_on_tools_explained(ana: User, sign_in: SignIn) -> None:
    """The server's approved definitions stay listed; only calls fail while the server is down."""
    server = make.server(name="Docs")
    Server.objects.filter(pk=server.pk).update(health=Health.DOWN, health_error="refused the connection")

    page = text(sign_in(ana).get("/"))

    assert "Docs is down</b><small>It refused the connection. Its tools stay listed; calls to them fail" in page


@pytest.mark.full
def test_failing_sinks_and_refused_identities_need_the_attention_of_who_may_act(sign_in: SignIn) -> None:
    owner, keeper = make.user(), make.user(Capability.SINKS_MANAGE)
    watcher = make.user(Capability.MCP_CONNECTIONS_READ)
    refused = make.identity(make.server(name="Notes", auth_type="bearer"), owner, label="Notes key")
    Identity.objects.filter(pk=refused.pk).update(last_error="It answered 401.")
    sink = Sink.objects.add(name="Archive", kind="stdout", by=None)
    Sink.objects.filter(pk=sink.pk).update(failures=2, last_error="It answered 500.", last_error_at=datetime.now(UTC))

    pages = {person: text(sign_in(person).get("/")) for person in (owner, keeper, watcher, make.user())}

    told = [("your credential “Notes key”" in page, f"of {owner.email}</a>" in page) for page in pages.values()]
    assert told == [(True, False), (False, False), (False, True), (False, False)]
    failing = ["Log sink Archive is failing</a><small>It answered 500." in page for page in pages.values()]
    assert failing == [False, True, False, False]
    refused.revoke(by=owner)
    sink.disable(by=keeper)
    assert not any('id="attention-title"' in text(sign_in(person).get("/")) for person in pages)


@pytest.mark.full
def test_a_full_dashboard_is_small(sign_in: SignIn) -> None:
    name = "Quarterly reconciliation of the northern warehouses"
    boss, other = (make.user(*Capability, email=f"{who}@subsidiary.example.com") for who in ("chief", "somebody"))
    now = datetime.now(UTC)
    for number in range(12):
        each = f"{name} {number}"
        server, gateway = make.server(name=each, by=boss), make.gateway(name=each, by=boss)
        assignment = make.assignment(gateway, server, identity_scheme=IdentityScheme.PER_USER)
        own = make.connection(make.agent(by=boss, name=each), gateway, boss)
        for waits in (False, True):
            token = make.token(own, name=f"{each} {waits}", expires_in_days=7).token
            if waits:
                token.ask_for_new(by=other)
        told = {"state": "held", "offered": "{}", "offered_hash": "x", "changed_at": now}
        Feature.objects.create(assignment=assignment, kind="tool", name="tool", exposed_name=each, **told)
        server.note_health(Health.DOWN, "connect timeout " + "x" * 200)
    for hour in range(25):
        for number in range(8):
            names = dict.fromkeys(("host_name", "gateway_name", "feature_name"), f"A name of ordinary length {number}")
            told = names | {name: uuid4() for name in ("host_id", "user_id", "server_id")}
            told |= {"feature_type": "tool", "user_email": boss.email}
            a_call([*Outcome][number % 3], created_at=now - timedelta(hours=hour, minutes=1), **told)
    keeping.keep_up(5)

    page = sign_in(boss).get("/")

    for words in ("More of your tokens wait", "More servers are down", "Needs attention", "As a table", "Busiest"):
        assert words in text(page)
    assert page.content.count(b'id="waiting-') == 3
    assert wire_size(page) <= 30 * 1024
