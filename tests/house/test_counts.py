"""Numbers and states on pages agree with the database.

People with a built-in role open every page; people with a single capability open the pages that require it. The test
fails for a number without a key, a key without a query, a page that is never visited, or a key that is never found
(see `page_numbers`).
"""

import re
from collections.abc import Iterator
from datetime import timedelta
from functools import cached_property
from ipaddress import ip_network
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from allauth.mfa.models import Authenticator
from django.db import transaction
from django.test import override_settings
from django.urls import reverse
from django.utils import timezone

from access.models import Review, may_review
from accounts.models import ApiKey
from approvals.models import Allowance, AllowFor
from auditlog.checkpoints import sealing
from auditlog.models import Call, Event
from auditlog.rollups import keeping
from capabilities import Capability
from capabilities.catalogue import BUILT_IN
from connections.models import Connection
from directory.models import DirectoryAddress
from gateways.models import AccessRequest, Feature, ToolGrant, ToolSet
from rules.models import Rule
from scim.models import ProvisioningKey
from servers.models import Identity
from tests import make, upstreams
from tests.accounts.soft_key import added
from tests.house.count_questions import ASKS, FIXED, NOT_STORED, QUESTIONS, STATES, SWITCHED_ON, Ask
from tests.house.dead_ends import Follower
from tests.house.doors import INSTEAD, PLACES, Door, browser, channel_of, doors, session_of
from tests.house.every_state import SET, World, built, ids
from tests.house.page_numbers import NUMBER, Counted, Page, Shown, Switch
from tests.oauth.apps import App, register
from tests.undone import undone
from tokens.models import Token

pytestmark = pytest.mark.django_db

ROOT = Path(__file__).resolve().parents[2]

VIEWERS = [*(role.name for role in BUILT_IN), *Capability]
# Files, redirects, and pages of a flow that starts elsewhere.
NOT_PAGES = re.compile(
    r"export|live|slug|find|authenticate|callback|^go$|^gateways:tool$|^oauth:(?!registered|help|client)"
    r"|^auditlog:(verifier|public_key)$|^connections:mcp_counts$|^tokens:numbers$|^directory:file$"
    r"|^access:report$"  # tests/access/test_report.py compares its numbers.
)
# Pages visited for every object; for dialogs, one or two objects are enough.
OF_ALL = {
    *("accounts:person", "connections:for_gateway", "connections:for_host", "connections:enrolled", "gateways:detail"),
    *("gateways:feature", "gateways:servers", "gateways:tools", "gateways:team", "hosts:detail", "oauth:registered"),
    *("servers:client", "servers:detail", "servers:gateways", "servers:identities"),
    *("auditlog:call", "auditlog:now", "auditlog:event", "tokens:collect"),
}
# Placeholders in braces are values named by the walk.
QUERIES = {
    "accounts:decline_request": ("?capability=api-tokens:manage",),
    "connections:mcp": (
        "",
        "?type=all",
        "?type=agent",
        "?type=all&status=blocked",
        "?type=all&status=revoked",
        "?columns=calls",
    ),
    "connections:for_gateway": ("", "?status=disabled"),
    "connections:for_host": ("", "?status=blocked&status=expired"),
    "connections:gateway_hosts": ("", "?show=others"),
    "hosts:list": ("", "?status=pending", "?type=agent", "?columns=calls"),
    "gateways:list": ("", "?columns=calls"),
    "servers:list": ("", "?health=down", "?columns=calls"),
    "gateways:tools": ("", "?kind=prompt", "?kind=all", "?kind=all&state=attention", "?enabled=off"),
    "gateways:usage": ("", "?range=24h"),
    "gateways:catalogue": ("", "?show=changed", "?effect=unknown&sort=-server"),
    "accounts:people": ("", "?status=invited", "?status=deactivated"),
    "tokens:list": ("", "?owner=all", "?owner=all&status=waiting", "?owner=all&care=expiring"),
    "tokens:numbers": ("?owner=all", "?owner=all&care=expiring"),
    "tokens:api_keys": ("", "?owner=all", "?status=revoked"),
    "auditlog:calls": ("", "?range=7d&chart=latency", "?q=error"),
    "auditlog:facet": ("", "?range=7d", "?q=error", "?tab=host&host={bot}"),
    "auditlog:wait": ("", "?gateway=wide&since={since}", "?connection={asking}&since={since}"),
    "auditlog:what_if": (
        "",
        "?host={bot}&user={boss}&gateway=wide&tool=search",
        "?host={halted}&user={boss}&gateway=shut",
    ),
    "connections:mine": ("", "?needs=1"),
    "gateways:access_requests": ("", "?show=decide"),
    "access:reviews": ("", "?show=mine"),
    "sinks:list": ("", "?late=1"),
    "setup": ("", "?until={since}"),
    "auditlog:groups": ("", "?by=tool&range=7d", "?by=reason", "?by=user&q=error"),
    "auditlog:busiest": ("", "?range=7d"),
}
# Counts that are truncated, change while a person looks, are loaded later, or are on a dashboard without roll-ups.
NOT_MET = {
    "review.given_since",
    "facet.newest",
    "feature.parts",
    "calls.new",
    "calls.day",
    "calls.day.denied",
    "least.more",
    "least.not_given",
    "playground.not_given",
    "tokens.blocked",
}
# Pages reached only after an action.
BY_AN_ACT = {"oauth:gateway", "oauth:identity", "oauth:consent", "oauth:token"}
WITHOUT_A_PASSWORD = {"sso:confirm"}  # People with a password are redirected to the password question.
# Pages of somebody who lacks a required sign-in, of a plan just made, and of servers that are programs.
IN_OTHER_STATES = {"accounts:required", "configuration:apply", "servers:program", "servers:standard_error"}
ELSEWHERE = "https://gateway.example.com"  # A public URL needs a mail server, so one first step remains.


@pytest.fixture(scope="module")
def world(django_db_setup: None, django_db_blocker: Any) -> Iterator[World]:
    with django_db_blocker.unblock(), transaction.atomic():
        world = built()
        Rule.objects.add(name="Label all", effect="label", text="all", by=world.boss)
        DirectoryAddress.objects.add(team=None, by=world.boss)
        keeping.keep_up(30)
        sealing.keep_up()
        yield world
        transaction.set_rollback(True)


PAGES = [door for door in doors() if door.method == "GET" and not NOT_PAGES.search(door.name)]


class Walk:
    """A person who opens every page open to them, for a few objects of each kind."""

    def __init__(self, world: World, held: frozenset[Capability]) -> None:
        self.world, self.held = world, held
        self.viewer = world.person(*held)
        self.viewer.password = SET
        self.viewer.save()
        self.own = make.connection(world.hosts["bot"], world.gateways["wide"], self.viewer)
        self.token = world.put(make.token(self.own, name="own").token, "active")
        world.put(self.own, "active")
        self.waiting = world.put(make.token(self.own, name="waiting").token, "waiting")
        Token.objects.filter(pk=self.waiting.pk).update(digest=None, asked_by=world.boss, asked_at=timezone.now())
        self.identity = world.put(make.identity(world.servers["mail"], self.viewer, label="own"), "active")
        Identity.objects.filter(pk=self.identity.pk).update(secret_hint="")
        self.asking = world.put(make.connection(world.hosts["bot"], world.gateways["asking"], self.viewer), "active")
        world.put(make.connection(world.hosts["idle"], world.gateways["asking"], self.viewer), "expired")
        world.lacking.add(str(self.asking.pk))
        world.put(make.token(self.asking, name="asking").token, "active")
        for host in [host for name, host in world.hosts.items() if len(name) == 4 and name.isalpha()][-4:]:
            carrying = make.connection(host, world.gateways["asking"], self.viewer, [self.identity])
            world.put(carrying, "active")
            world.put(make.token(carrying, name="carrying").token, "active")
        self.request = AccessRequest.objects.create(
            gateway=world.gateways["closed"], user=self.viewer, reason="For work", days=5
        )
        self.hold = make.hold(self.own, world.servers["docs"], tool="search", arguments={"text": "one"})
        allowed = make.hold(self.own, world.servers["docs"], tool="search", arguments={"text": "other"})
        self.allowance = Allowance.objects.give(allowed, AllowFor.HOUR, [], by=world.boss)
        self.reviews = self._reviews()
        self._called()
        self.client = browser(session_of(self.viewer))
        self.things = self._things()

    def _reviews(self) -> list[Any]:
        """Start a review for the viewer to answer, if the viewer may review; return the ids of started reviews."""
        if not may_review(self.viewer):
            return []
        due, team = timezone.now().date(), self.world.teams["Platform"]
        terms: dict[str, Any] = {"name": "Quarter", "scope": "teams", "due_on": due, "self_review": True}
        return [Review.objects.start(subjects=[team], reviewers=[self.viewer], by=self.world.boss, **terms).pk]

    def _called(self) -> None:
        """Log calls of this person: a successful one, and one refused for a missing identity."""
        said: dict[str, Any] = {"user_id": self.viewer.pk, "user_email": self.viewer.email, "host_name": "Bot"}
        ends: list[tuple[Connection, dict[str, Any]]] = [
            (self.own, {"outcome": "ok"}),
            (self.asking, {"outcome": "denied", "deny_reason": "identity_missing"}),
        ]
        for connection, ended in ends:
            gateway = connection.gateway
            make.opening_call(
                method="tools/call", connection_id=connection.pk, gateway_id=gateway.pk, gateway_name=gateway.name,
                host_id=connection.host_id, **said, **ended,
            )  # fmt: skip

    def _things(self) -> dict[str, list[Any]]:
        world = self.world
        by_state = {state: pk for pk, state in world.states.items()}
        rows = {str(row.pk): row.pk for row in Connection.objects.filter(pk__in=world.states)}
        links = [self.own.pk, *[pk for key, pk in rows.items() if world.states[key] in ("blocked", "disabled")][:2]]
        tokens = Token.objects.filter(connection__user=world.boss, pk__in=world.states)
        people = [world.boss.pk, *world.teams["Platform"].users.values_list("pk", flat=True)[:1]]

        features = {row.state: row.pk for row in Feature.objects.filter(assignment=world.assignments["wide/docs"])}
        refused, one_request = [world.refused.uid, world.same_request.uid], world.same_request.correlation_id
        newest = Event.objects.order_by("-pk").values_list("uid", flat=True)[:1]
        return {
            "gateway_slug": ["wide", "closed", "asking", "shut", "empty"],
            "gateway": [],
            "host": ids([world.hosts["bot"], world.hosts["app"], world.hosts["asker"]]),
            "server_slug": ["docs", "mail", "old", "crm", "issuing"],
            "server": [world.servers["docs"].pk],
            "assignment": ids([world.assignments["wide/docs"], world.assignments["wide/old"]]),
            "tool": [features["approved"], features["held"], features["quarantined"], world.searched.pk, world.own.pk],
            "connection": links,
            "token": [self.token.pk, self.waiting.pk, *ids(tokens.filter(expires_at=None))[:1]],
            "identity": [self.identity.pk, *ids(Identity.objects.filter(owner=None).live())[:1]],
            "shared_identity": ids(Identity.objects.filter(owner=None).live())[:1],
            "person": [*people, by_state["invited"], by_state["deactivated"]],
            "role": [world.boss.role_id],
            "team": ids(world.teams.values())[:2],
            "call": [*Call.objects.filter(outcome="ok").values_list("uid", flat=True)[:1], *refused],
            "own_call": list(Call.objects.filter(user_id=self.viewer.pk).values_list("uid", flat=True)[:1]),
            "client_session": list(Call.objects.exclude(session_id=None).values_list("session_id", flat=True)[:1]),
            "event": [*newest, *Event.objects.filter(correlation_id=one_request).values_list("uid", flat=True)[:1]],
            "api_key": ids(ApiKey.objects.filter(user=world.boss, revoked_at=None))[:1],
            "security_key": [added(self.viewer).pk],
            "session": [],
            "provisioning_key": [str(pk) for pk in ProvisioningKey.objects.values_list("pk", flat=True)],
            "channel": [channel_of(self.viewer).pk],
            "access_request": ids(AccessRequest.objects.visible_to(self.viewer).exclude(user=self.viewer)),
            "access_review": self.reviews,
            "own_access_request": [self.request.pk],
            "askable_slug": ["closed"],
            "tool_grant": ids(ToolGrant.objects.live()),
            "tool_set": ids(ToolSet.objects.order_by("name")),
            "sink": [key for key, state in world.states.items() if state == "failing"],
            "flow": [],
            "hold": [self.hold.pk],
            "allowance": [self.allowance.pk],
            "rule": ids(Rule.objects.all()),
            "directory_address": ids(DirectoryAddress.objects.all()),
        }

    def may_enter(self, door: Door) -> bool:
        return door.is_for_owners or all(self.held & one_of for one_of in door.wanted)

    def addresses(self, door: Door, *, every: bool = False) -> Iterator[str]:
        """Yield this page's addresses for its first one or two objects, or for all objects if `every` or in OF_ALL."""
        start = next((start for start in PLACES if door.path.startswith(start)), "")
        kind = INSTEAD.get(door.name, "")
        things = self.things.get(kind) or self.things[PLACES[start]] if start and "<" in door.path else [None]
        for thing in things if every or door.name in OF_ALL else things[: 2 if door.name in ASKS else 1]:
            values = {"pk": thing, "slug": thing, "uid": thing, "name": "outcome", "user_pk": self.viewer.pk}
            values["host"] = self.world.hosts["bot"].pk
            values["assignment"] = self.world.assignments["asking/mail"].pk
            if ":assignment>" in door.path:
                values["pk"] = self.asking.pk
            taken = {name: value for name, value in values.items() if f":{name}>" in door.path}
            for query in QUERIES.get(door.name, ("",)):
                yield reverse(door.name, kwargs=taken) + query.format(**self.named)

    @cached_property
    def named(self) -> dict[str, Any]:
        """Return the values of the placeholders in QUERIES."""
        hosts = {name: self.world.hosts[name].pk for name in ("bot", "halted")}
        since = quote((timezone.now() - timedelta(minutes=10)).isoformat())
        return {"boss": self.world.boss.pk, "asking": self.asking.pk, "since": since, **hosts}

    def acts(self) -> Iterator[tuple[str, str, str]]:
        """Yield pages to create a token, connect an app and test a server, and the overview without a mail server."""
        host = f"/connect/?host={self.world.hosts['idle'].pk}"
        gateway = self.client.get(host)["Location"]
        identity = self.client.post(gateway, {"gateway": "asking"})["Location"]
        token = f"{self.client.get(f'{host}&gateway=wide')['Location']}token/"
        led = [("oauth:gateway", gateway), ("oauth:identity", identity), ("oauth:token", token)]
        if self.viewer.has_perm(Capability.OAUTH_CONNECT):
            app = self.client.get(App(register(client_name="App").json()["client_id"]).question(None))["Location"]
            led += [("oauth:gateway", app), ("oauth:consent", self.client.post(app, {"gateway": "wide"})["Location"])]
        for view, address in led:
            yield view, address, self.client.get(address).content.decode()
        if self.viewer.has_perm(Capability.SERVERS_MANAGE):
            yield "servers:add", "/servers/add/", self.checked()
        with override_settings(PUBLIC_URL=ELSEWHERE, MAIL_SERVER=None):
            yield "overview", "/", self.client.get("/").content.decode()

    def checked(self) -> str:
        """Return the *Add a server* page after the server has answered the test."""
        loopback = [ip_network("127.0.0.0/8")]
        with upstreams.running(upstreams.docs()) as server, override_settings(PRIVATE_UPSTREAMS=loopback):
            page = self.client.post("/servers/add/", {"check": "1", "url": server.url})
        return str(page.content.decode())

    def without_factor(self) -> Iterator[tuple[str, str, str]]:
        """Yield the second-factor pages while the second factor is off."""
        Authenticator.objects.filter(user=self.viewer).delete()
        for view in ("mfa_index", "mfa_activate_totp"):
            yield view, reverse(view), self.client.get(reverse(view)).content.decode()

    def pages(self) -> Iterator[tuple[str, str, str]]:
        return chain(self.acts(), self.open_pages(), self.without_factor())

    def pages_for_this(self) -> Iterator[tuple[str, str, str]]:
        """Yield the overview, and the pages that require one of the capabilities in `held`."""
        taking = [door for door in PAGES if any(self.held & one_of for one_of in door.wanted)]
        return self.open_pages([*(door for door in PAGES if door.name == "overview"), *taking])

    def open_pages(self, doors: list[Door] = PAGES) -> Iterator[tuple[str, str, str]]:
        """Yield the pages that this person may open. Pages of the authorize flow are left out."""
        for door in filter(self.may_enter, doors):
            for address in self.addresses(door):
                response = self.client.get(address)
                if response.status_code == 200 and response["Content-Type"].startswith("text/html"):
                    yield door.name, address, response.content.decode()


def capabilities_of(who: str | Capability) -> frozenset[Capability]:
    if isinstance(who, Capability):
        return frozenset({who})
    return next(role.capabilities for role in BUILT_IN if role.name == who)


def wrong_in(page: Page, ask: Ask) -> Iterator[str]:
    """Yield the differences between this page and the database."""
    for text in page.loose:
        if NUMBER.search(FIXED.sub("", text)):
            yield f"no key for the number in {text!r}"
    for one in page.counted:
        if one.key == "page.rows":
            yield from wrong_total(one, page)
        elif one.key not in NOT_STORED:
            yield from wrong_number(one, ask.about(one.of))
    for shown in page.states:
        yield from wrong_state(shown, STATES, (shown.state, shown.text), ask.about(shown.of))
    for switch in page.switches:
        yield from wrong_state(switch, SWITCHED_ON, (switch.on, switch.blocked), ask.about(switch.of))


def wrong_number(one: Counted, ask: Ask) -> Iterator[str]:
    question = QUESTIONS.get("ask" if one.key.startswith("ask.") else one.key)
    if question is None:
        yield f"no question for {one.key}: {one.text!r}"
        return
    expected = question(ask)
    if isinstance(expected, str):
        said: Any = one.text
    else:
        said = tuple(float(n.replace(",", "")) for n in NUMBER.findall(FIXED.sub("", one.text or one.label)))
        expected = expected if isinstance(expected, tuple) else (expected,)
    if said != expected and (said, expected) != ((), (0,)):  # The page may write zero as a word.
        yield f"{one.key} of {one.of!r}: {one.text!r}, but {expected}"


def wrong_total(one: Counted, page: Page) -> Iterator[str]:
    """Yield a fault if no other number on the page equals the total that a shortened list states."""
    if one.numbers[-1] not in {number for other in page.counted if other.key != one.key for number in other.numbers}:
        yield f"{one.text!r}, but none of the lists has as many"


def wrong_state(shown: Shown | Switch, table: dict[str, Any], said: tuple[object, object], ask: Ask) -> Iterator[str]:
    question = table.get(ask.kind)
    if question is None:
        yield f"nobody's state: {shown}"
    elif said not in (allowed := question(ask)):
        yield f"{shown}, but {allowed}"


def keys_of_templates() -> set[str]:
    """Return the `data-count` keys in templates, except keys that a template builds from parts."""
    pages = "".join(path.read_text() for path in (ROOT / "templates").rglob("*.html"))
    chosen = re.findall(r"data-count=.{{ \w+\|yesno:'([^']+)' }}", pages)
    return {*re.findall(r'data-count="([^"{]+)"', pages), *(key for keys in chosen for key in keys.split(","))}


def test_every_key_has_a_question_and_every_question_a_key() -> None:
    keys = keys_of_templates()

    assert keys <= QUESTIONS.keys() | NOT_STORED | {"page.rows"}
    assert {key for key in QUESTIONS if " in " not in key} - keys <= MADE


# Keys built by the page from parts: a kind of feature, a list of tokens or keys, a confirmation, a person's access.
# Checkboxes of filters name the value that the number beside them counts.
MADE = {
    "ask",
    "facet.calls",
    *(
        key
        for key in QUESTIONS
        if key.startswith(("gateway.features.", "tokens.", "keys.", "plots.", "rail.", "person."))
    ),
    *(key for key in QUESTIONS if key.endswith(".listed")),
}


ENOUGH = (frozenset(Capability), frozenset({Capability.PEOPLE_READ, Capability.PEOPLE_MANAGE}))


@pytest.mark.full
def test_every_number_and_state_on_every_page_is_what_the_database_holds_and_no_link_is_refused(
    world: World, subtests: pytest.Subtests
) -> None:
    for who in VIEWERS:
        if (held := capabilities_of(who)) not in ENOUGH:
            with subtests.test(str(who)), undone():
                seen, _, wrong = walked(world, held, everything=not isinstance(who, Capability))
                assert "overview" in seen
                assert wrong == []


def walked(
    world: World, held: frozenset[Capability], *, everything: bool = True
) -> tuple[set[str], set[str], list[str]]:
    """Return the pages that a person with these capabilities gets, the keys found on them, and the faults.

    If `everything` is False, the person opens only the overview and the pages that require one of the capabilities.
    """
    person = Walk(world, held)
    follower = Follower(person.client)
    seen, met = set[str](), set[str]()
    wrong: list[str] = []
    for view, address, html in person.pages() if everything else person.pages_for_this():
        page = Page.read(html)
        seen.add(view)
        wrong += follower.faults(address, html)
        met |= {one.key for one in page.counted}
        wrong += [f"{address}: {fault}" for fault in wrong_in(page, Ask(world, person.viewer, address, view))]
    return seen, met, wrong


@pytest.mark.full
def test_the_walks_reach_every_page_and_every_number(world: World) -> None:
    """Two people are enough: one with every capability, and one who only sees and manages people."""
    (seen, met, wrong), (_, met_with_little, wrong_with_little) = (walked(world, held) for held in ENOUGH)

    assert seen == ({door.name for door in PAGES} | BY_AN_ACT) - WITHOUT_A_PASSWORD - IN_OTHER_STATES
    assert keys_of_templates() - met - met_with_little == NOT_MET
    assert wrong + wrong_with_little == []
