"""The dashboard: the viewer's own objects, and the numbers visible to the viewer's role."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from accounts.models import User
from auditlog.models import Call, Outcome
from auditlog.rollups import keeping
from capabilities import Capability
from capabilities.catalogue import including
from gatewayadmin.overview import SHOWN
from gateways.models import Feature, IdentityScheme
from servers.models import Health, Identity
from sinks.models import Sink
from tests import make
from tests.conftest import SignIn, wire_size

pytestmark = [pytest.mark.django_db, pytest.mark.full]


def text(response: Any) -> str:
    return str(response.content.decode())


def a_call(outcome: Outcome, **fields: Any) -> Call:
    at = fields.pop("created_at", datetime.now(UTC) - timedelta(minutes=1))
    Call.partitions.make_for(at.date())
    defaults = {"uid": uuid4(), "correlation_id": uuid4(), "method": "tools/call", "http_status": 200, "duration_ms": 1}
    return Call.objects.create(created_at=at, outcome=outcome, **(defaults | fields))


def test_each_number_needs_its_capability(sign_in: SignIn, subtests: pytest.Subtests) -> None:
    make.server(name="Docs").note_health(Health.DOWN, "refused the connection")
    make.call()
    person = make.user()
    make.token(make.connection(make.agent(by=person), make.gateway(), person), expires_in_days=7)
    needed: dict[str, Iterable[Capability]] = {
        "<span>Hosts</span>": (Capability.HOSTS_TOGGLE,),
        "<span>Live connections</span>": sorted(including([Capability.MCP_CONNECTIONS_READ])),
        "<span>Requests 24 h</span>": (Capability.LOGS_READ,),
        "Tokens expiring in 14 days": (Capability.API_TOKENS_MANAGE,),
        "Docs is down</b><small>It refused the connection": (Capability.SERVERS_TOGGLE, Capability.SERVERS_MANAGE),
    }

    for words, capabilities in needed.items():
        with subtests.test(words):
            for capability in capabilities:
                assert words in text(sign_in(make.user(capability)).get("/"))
            assert words not in text(sign_in(make.user(*set(Capability) - {*capabilities})).get("/"))


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
    assert ">Secret bot</a>" in text(sign_in(make.user(Capability.API_TOKENS_CREATE)).get("/"))


def test_the_last_day_is_counted_and_leads_to_its_lists(ana: User, sign_in: SignIn) -> None:
    a_call(Outcome.OK)
    a_call(Outcome.DENIED, host_name="CI bot", deny_reason="host_disabled")
    a_call(Outcome.CANCELLED)
    a_call(Outcome.OK, created_at=datetime.now(UTC) - timedelta(hours=25))

    response = sign_in(ana).get("/")

    traffic = response.context["traffic"]
    assert (str(traffic.total), str(traffic.refused)) == ("3", "1")
    assert "CI bot" in text(response)
    for path in ("/hosts/", "/settings/mcp-connections?type=all&amp;status=live", "/logs/", "/logs/?q=refused"):
        assert f'{path}"><header><span>' in text(response)


def test_the_first_step_is_the_one_that_is_still_missing(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)
    begun = text(client.get("/"))
    assert "No traffic yet. Create <a" in " ".join(begun.split())
    assert "No servers yet." in begun

    empty = make.gateway(name="Empty")
    assert ">Empty</a> exposes nothing yet: assign a server" in text(client.get("/"))

    server = make.server()
    make.assignment(empty, server)
    page = text(client.get("/"))
    assert ">Empty</a> is ready: connect" in page
    assert "Create <a" not in page

    make.connection(make.agent(by=ana), empty, ana)
    assert "You are connected: make the first call" in text(client.get("/"))
    a_call(Outcome.OK, created_at=datetime.now(UTC) - timedelta(days=3))
    assert "No traffic yet." not in text(client.get("/"))
    server.disable(by=ana)
    page = text(client.get("/"))
    assert "No servers yet." not in page
    assert "No server is enabled." in page


def test_more_expiring_tokens_than_are_listed_are_said_to_be_more(ana: User, sign_in: SignIn) -> None:
    connection, client = make.connection(make.agent(by=ana), make.gateway(), ana), sign_in(ana)
    make.token(connection, name="ends-late", expires_in_days=90)
    for number in range(SHOWN):
        make.token(connection, name=f"soon-{number}", expires_in_days=7)

    def expiring() -> str:
        return text(client.get("/")).split('id="expiring-title">')[1].split("</section>")[0]

    assert expiring().startswith("Tokens expiring in 14 days")
    assert f">{SHOWN}<" in expiring()
    assert "soon-0" in expiring()
    assert "ends-late" not in expiring()
    make.token(connection, name="one more", expires_in_days=7)
    assert f">{SHOWN}+<" in expiring()


def test_a_server_s_hours_tell_when_it_failed(ana: User, sign_in: SignIn) -> None:
    server, other = make.server(name="Docs"), make.server(name="Quiet")
    a_call(Outcome.OK, server_id=server.pk)
    a_call(Outcome.UPSTREAM_ERROR, server_id=server.pk, created_at=datetime.now(UTC) - timedelta(hours=3))
    a_call(Outcome.TIMEOUT, server_id=server.pk, created_at=datetime.now(UTC) - timedelta(hours=5))
    keeping.keep_up(5)

    page = text(sign_in(ana).get("/"))

    assert 'aria-label="Docs, last 24 hours. Hours with calls and no failure: 1. Hours with failures: 2."' in page
    none = "Hours with calls and no failure: 0. Hours with failures: 0."
    assert f'aria-label="{other.name}, last 24 hours. {none}"' in page


def test_failing_sinks_and_refused_identities_need_the_attention_of_who_may_act(sign_in: SignIn) -> None:
    owner, keeper = make.user(), make.user(Capability.SINKS_MANAGE)
    watcher = make.user(Capability.MCP_CONNECTIONS_READ)
    refused = make.identity(make.server(name="Notes", auth_type="bearer"), owner, label="Notes key")
    Identity.objects.filter(pk=refused.pk).update(last_error="It answered 401.")
    sink = Sink.objects.add(name="Archive", kind="stdout", by=None)
    Sink.objects.filter(pk=sink.pk).update(failures=2, last_error="It answered 500.", last_error_at=datetime.now(UTC))

    pages = {person: text(sign_in(person).get("/")) for person in (owner, keeper, watcher, make.user())}

    told = [
        ("Your credential “Notes key”" in page, f"of {owner.email} does not work at Notes</a>" in page)
        for page in pages.values()
    ]
    assert told == [(True, False), (False, False), (False, True), (False, False)]
    failing = ["Log sink Archive is failing</a><small>It answered 500." in page for page in pages.values()]
    assert failing == [False, True, False, False]
    refused.revoke(by=owner)
    sink.disable(by=keeper)
    assert not any('id="attention-title"' in text(sign_in(person).get("/")) for person in pages)


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

    for words in ("You have more new tokens", "More servers are down", "Needs attention", "As a table", "Busiest"):
        assert words in text(page)
    assert page.content.count(b'id="waiting-') == 3
    assert wire_size(page) <= 30 * 1024
