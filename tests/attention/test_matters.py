"""Each line about a matter links to a list with the same count, and only people who can act on it see the line."""

import re
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from access.models import Review
from accounts.models import User
from attention import telling
from attention.matters import MATTERS, waiting_for
from attention.models import Notification
from attention.refusals import LEAST, MOST_LISTED
from auditlog.models import ENDINGS
from auditlog.rollups import keeping
from capabilities import Capability
from connections.models import Connection
from gateways.models import AccessRequest, IdentityScheme
from hosts.models import Host
from servers.models import AuthType, Health
from sinks.models import Sink
from tests import make
from tests.conftest import SignIn
from tests.gatewayadmin.test_attention import waiting
from tokens.models import Token

pytestmark = pytest.mark.django_db

LINE = re.compile(
    r'<li[^>]*data-of="matter:([\w-]+)">.*?<a href="([^"]+)"><span data-count="matter.number">([^<]+)<', re.DOTALL
)
# The pattern of the number in each list: in the heading, or on My identities.
COUNTS = {
    "own-connections": r'data-count="own\.connections\.lacking"[^>]*>([\d,]+)',
    "own-identities": r'data-count="own\.identities\.needing"[^>]*>([\d,]+)',
    "refusals": r'data-count="calls\.listed"[^>]*>([\d,]+)',
    "requests": r'data-count="people\.listed"[^>]*>([\d,]+)',
    "definitions": r'data-count="features\.waiting"[^>]*>([\d,]+)',
    "sinks-late": r'data-count="sinks\.late"[^>]*>([\d,]+)',
    "tokens-ending": r'data-count="tokens\.expiring"[^>]*>([\d,]+)',
    "tokens-idle": r'data-count="tokens\.idle"[^>]*>([\d,]+)',
    "tokens-unlimited": r'data-count="tokens\.unlimited"[^>]*>([\d,]+)',
}
LISTED = r'data-count="[\w-]+\.listed"[^>]*>([\d,]+)'


@pytest.fixture
def boss() -> User:
    return make.user(*Capability, email="boss@example.com")


@pytest.fixture
def world(boss: User) -> Connection:
    """Create rows for the matters, in different numbers to detect mix-ups, and rows that need no attention."""
    for name in ("Asks", "Asks too", "Asks as well"):
        make.app(name, needs_approval=True)
    make.app("Works")
    gateway = make.gateway(name="Work")
    for name in ("search", "find", "read", "write"):
        waiting(gateway, name)
    for name in ("Down", "Down too"):
        make.server(name=name).note_health(Health.DOWN, "connect timeout")
    for kind, failures in (("Late", 3), ("Fine", 0)):
        sink = Sink.objects.add(by=None, name=kind, kind="stdout")
        Sink.objects.filter(pk=sink.pk).update(failures=failures)
    make.user().ask_for(Capability.LOGS_READ)
    askable = make.gateway(reach="teams", takes_requests=True)
    for person in (*(make.user() for _ in range(6)), boss):
        AccessRequest.objects.create(gateway=askable, user=person, reason="For work", days=7)
    link = make.connection(make.agent(by=boss), gateway, boss)
    now = timezone.now()
    _reviews(boss)
    kinds: list[dict[str, Any]] = [
        {"expires_at": now + timedelta(days=10)},
        {"expires_at": None, "last_used_at": now},
        {"last_used_at": now - timedelta(days=91)},
    ]
    for number, fields in enumerate(kinds, start=2):
        for _ in range(number):
            Token.objects.filter(pk=make.token(link).token.pk).update(**fields)
    _identities(boss)
    return link


def _reviews(boss: User) -> None:
    """Start five reviews for the boss, and one for somebody else."""
    terms: dict[str, Any] = {
        "scope": "people",
        "subjects": [boss],
        "self_review": True,
        "due_on": timezone.now().date(),
    }
    for person in (*([boss] * 5), make.user(*Capability)):
        Review.objects.start(name="Access", reviewers=[person], by=boss, **terms)


def _identities(boss: User) -> None:
    """Create four identities to renew, three of the boss and one shared; and two connections without an identity."""
    gateway = make.gateway(name="Asking")
    asking = make.server(name="Mail", auth_type=AuthType.BEARER)
    make.assignment(gateway, asking, identity_scheme=IdentityScheme.PER_USER)
    for identity in [make.identity(asking, boss) for _ in range(3)] + [make.identity(asking)]:
        identity.last_error = "401"
        identity.save()
    make.identity(asking, boss)
    for _ in range(2):
        make.token(make.connection(make.agent(by=boss), gateway, boss))


def lines(client: Client) -> dict[str, tuple[str, int]]:
    """Return the link and the number of each line on the page, by matter."""
    page = client.get("/attention/").content.decode()
    found = {name: (unescape(link), words) for name, link, words in LINE.findall(page)}
    return {name: (link, _number(words)) for name, (link, words) in found.items()}


def _number(words: str) -> int:
    return int(re.findall(r"[\d,]+", words)[0].replace(",", ""))


def refused_calls(host: Host, number: int, *, ago: timedelta = timedelta(minutes=20), reason: str = "") -> None:
    kinds = ENDINGS["denied"]
    for n in range(number):
        made = {"host_id": host.pk, "host_name": host.name, "outcome": kinds[n % len(kinds)], "deny_reason": reason}
        make.call(at=timezone.now() - ago, **made)
    keeping.keep_up(30)


@pytest.mark.full
def test_each_line_leads_to_a_list_with_the_same_number(world: Connection, boss: User, sign_in: SignIn) -> None:
    refused_calls(world.host, 13)
    refused_calls(world.host, 4, reason="held")
    client = sign_in(boss)

    shown = lines(client)

    wrong = {}
    for name, (link, number) in shown.items():
        listed = client.get(link).content.decode()
        for later in re.findall(r'hx-get="(/settings/api-tokens/numbers[^"]*)"', listed):
            listed += client.get(unescape(later)).content.decode()
        counted = re.search(COUNTS.get(name, LISTED), listed)
        if counted is None or _number(counted[1]) != number:
            wrong[name] = (link, number, counted and counted[1])
    assert wrong == {}
    assert shown.keys() == {matter.name for matter in MATTERS} - {"own-tokens", "holds"}  # No call is held here.
    assert {name: number for name, (_, number) in shown.items()} == {
        "servers-down": 2, "sinks-late": 1, "refusals": 13, "apps": 3, "access": 6, "requests": 1, "definitions": 4,
        "shared-identities": 1, "own-connections": 2, "own-identities": 3, "tokens-ending": 2, "tokens-unlimited": 3,
        "tokens-idle": 4, "own-reviews": 5,
    }  # fmt: skip


@pytest.mark.full
def test_only_who_can_act_sees_it(world: Connection, sign_in: SignIn, subtests: pytest.Subtests) -> None:
    for held, seen in (
        ((), set()),
        ((Capability.HOSTS_READ, Capability.GATEWAYS_READ), set()),
        ((Capability.HOSTS_TOGGLE,), {"apps"}),
        ((Capability.SERVERS_TOGGLE,), {"servers-down"}),
        ((Capability.SERVERS_MANAGE,), {"servers-down", "shared-identities"}),
        ((Capability.API_TOKENS_MANAGE,), {"tokens-ending", "tokens-unlimited", "tokens-idle"}),
        ((Capability.PEOPLE_MANAGE,), {"requests"}),
        ((Capability.GATEWAYS_MANAGE,), {"access", "definitions"}),
    ):
        with subtests.test(", ".join(held)):
            assert lines(sign_in(make.user(*held))).keys() == seen
    assert "Nothing waits for you" in sign_in(make.user()).get("/attention/").content.decode()


@pytest.mark.full
def test_owners_see_their_own_tokens_that_end_and_nobody_elses(world: Connection, ann: User, sign_in: SignIn) -> None:
    token = make.token(make.connection(make.agent(by=ann), make.gateway(), ann), name="nightly").token
    Token.objects.filter(pk=token.pk).update(expires_at=timezone.now() + timedelta(days=2))

    client = sign_in(ann)
    [(name, (link, number))] = lines(client).items()

    assert (name, number) == ("own-tokens", 1)
    assert "nightly" in client.get(link).content.decode()


def test_refusals_are_unusual_against_the_same_hour_of_four_weeks(boss: User) -> None:
    usual, strange, few = (make.agent(by=boss, name=name) for name in ("Usual", "Strange", "Few"))
    refused_calls(usual, 12)
    refused_calls(usual, 5, ago=timedelta(weeks=2, minutes=20))
    refused_calls(strange, 12)
    refused_calls(strange, 3, ago=timedelta(weeks=2, minutes=20))
    refused_calls(strange, 12, ago=timedelta(weeks=2, hours=3))
    refused_calls(few, 9)
    for held, reason in ((few, "held"), (strange, "held"), (strange, "hold_denied")):
        refused_calls(held, 3, reason=reason)

    [found] = [found for matter, found in waiting_for(boss) if matter.name == "refusals"]

    assert (found.number, found.names) == (15, ["Strange: 15, usual: 3"])


def test_very_many_refused_agents_are_one_message_with_a_short_link(boss: User) -> None:
    for n in range(30):
        host = make.agent(by=boss, name=f"Bot {n}")
        for _ in range(LEAST):
            make.call(at=timezone.now() - timedelta(minutes=20), host_id=host.pk, host_name=host.name, outcome="denied")
    keeping.keep_up(30)

    telling.tell_at_once()

    link = Notification.objects.get(matter="refusals").link
    assert (link.count("host="), len(link) < 1000) == (MOST_LISTED, True)


def test_apps_are_approved_at_once_from_the_list(world: Connection, boss: User, sign_in: SignIn) -> None:
    client: Any = sign_in(boss)
    link, number = lines(client)["apps"]
    picked = {"pick": [str(host.pk) for host in Host.objects.filter(needs_approval=True)], "back": link}

    asked = client.post("/approve/hosts/", picked)
    done = client.post("/approve/hosts/", picked | {"sure": "1"})

    assert f"Allow {number} apps" in asked.content.decode()
    assert done["Location"] == link
    assert "apps" not in lines(client)
    assert client.post("/approve/hosts/", picked | {"sure": "1"}).status_code == 302
    assert sign_in(make.user(Capability.HOSTS_READ)).post("/approve/hosts/", picked).status_code == 403
