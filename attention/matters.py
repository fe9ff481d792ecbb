"""Matters: the kinds of things that need a person's attention, such as servers that are down.

The page Needs attention lists the matters, and notifications report them. The navigation rail counts some of them.

To add a matter, add it to MATTERS. Its function `find` returns an OpenMatter. The `link` of an OpenMatter is the URL of
a list, its `number` is the number of rows in this list, and its `things` has the names of the first rows. The matter
"refusals" is different: the rows of its list are calls, but its `things` has the names of the agents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlencode

from django.db.models import Count, Exists, F, OuterRef, QuerySet, Value, Window
from django.db.models.functions import Concat
from django.urls import reverse

from access.models import Review
from accounts.asking import MOST_OPEN, open_requests
from accounts.models import User
from approvals.models import Hold
from attention.refusals import unusual
from capabilities import Capability
from connections.carried_identities import lacking_identity
from gateways.models import AccessRequest, AccessRequestQuerySet, Feature
from hosts.forms import PENDING
from hosts.models import Host
from servers.forms import shared_identity_to_renew
from servers.models import Health, Identity, Server
from sinks.models import Sink
from tokens.models import Token, TokenKind
from tokens.rows import needing

NAMED = 5  # Names shown per matter.
MOST_KEYS = 200  # Ids stored with each message, to recognise new things later.

FAILING, UNUSUAL, TO_DECIDE, TO_FIX = "Failing now", "Unusual", "To decide", "To fix"
ENDS_SOON, TO_CLEAN_UP = "Ends soon", "To clean up"
GROUPS = (FAILING, UNUSUAL, TO_DECIDE, TO_FIX, ENDS_SOON, TO_CLEAN_UP)  # Worst first.


class OpenMatter(NamedTuple):
    """The things of one matter that need attention now, their number, and the link to their list."""

    number: int
    things: dict[str, str]  # Names by id; only the first ones if there are many.
    link: str  # The URL of the complete list.
    counts_things: bool = True  # False for refusals: `number` counts the refused calls, `things` are the agents.

    @property
    def names(self) -> list[str]:
        return list(self.things.values())[:NAMED]

    @property
    def unnamed(self) -> int:
        """The number of things that are not in `names`."""
        return max((self.number if self.counts_things else len(self.things)) - len(self.names), 0)


@dataclass(frozen=True)
class Matter:
    """A kind of thing that needs attention."""

    name: str
    title: str
    group: str
    icon: str
    words: tuple[str, str]  # The sentences for one thing and for several.
    # `find(person)` returns the things that wait for this person if `may` is empty or the matter has `also`, otherwise
    # the things of everyone. `find(None)` returns the things of everyone; `may` must not be empty then.
    find: Callable[[User | None], OpenMatter]
    # Each of these capabilities allows acting on the things. If empty, people see and act on their own things only.
    may: tuple[Capability, ...] = ()
    act: str = "Review"
    at_once: bool = False  # Notify a channel of new things every ten minutes at most, not once a day at most.
    is_urgent: bool = False  # The things end within minutes: notify a channel every minute at most.
    # People with this capability do not see this matter: they see another matter, which has everyone's things.
    unless: Capability | None = None
    # Returns people who need no capability to act on some of the things.
    also: Callable[[], QuerySet[User]] | None = None

    @property
    def is_own(self) -> bool:
        return not self.may

    def is_for(self, person: User) -> bool:
        """True if `person` may act on this matter."""
        if self.is_own:
            return self.unless is None or not person.has_perm(self.unless)
        if any(map(person.has_perm, self.may)):
            return True
        return self.also is not None and person.narrowed_to is None and self.also().filter(pk=person.pk).exists()

    def sentence(self, number: int) -> str:
        """Return the sentence for this number of things, such as "2 apps wait for approval"."""
        return self.words[number != 1].format(f"{number:,}")


def waiting_for(person: User) -> Iterator[tuple[Matter, OpenMatter]]:
    """Yield the matters that need the attention of `person`, worst first, each with its open things."""
    for matter in MATTERS:
        if matter.is_for(person) and (found := matter.find(person)).number:
            yield matter, found


def _listed(page: str, rows: QuerySet[Any], name: str, **query: str) -> OpenMatter:
    """Return `rows` as an open matter. The view `page` with the parameters `query` must list the same rows."""
    counted = rows.annotate(matching=Window(Count("*")))
    first = list(counted.values_list("pk", name, "matching")[:MOST_KEYS])
    number = first[0][-1] if first else 0
    things = {str(pk): str(words) for pk, words, _ in first}
    return OpenMatter(number, things, f"{reverse(page)}{'?' if query else ''}{urlencode(query)}")


# Querysets whose rows the rail counts too.


def apps_to_approve() -> QuerySet[Host]:
    return Host.objects.live().filter(PENDING).order_by("-first_seen_at", "pk")


def definitions_to_judge() -> QuerySet[Feature]:
    waiting = Feature.objects.needing_attention().placed().filter(assignment__gateway__archived_at=None)
    return waiting.order_by(F("changed_at").desc(nulls_last=True), "-first_seen_at", "pk")


def servers_down() -> QuerySet[Server]:
    return Server.objects.live().filter(enabled=True, health=Health.DOWN)


def access_to_decide(person: User | None) -> AccessRequestQuerySet:
    return AccessRequest.objects.to_decide(person).order_by("created_at", "pk")


def _approvers() -> QuerySet[User]:
    return User.objects.filter(approves__archived_at=None, approves__isnull=False, is_active=True).distinct()


def _access(person: User | None) -> OpenMatter:
    rows = access_to_decide(person)
    asked = rows.annotate(words=Concat("user__email", Value(": "), "gateway__name"))
    return _listed("gateways:access_requests", asked, "words", show="decide" if person else "open")


def _hold_approvers() -> QuerySet[User]:
    """Return the active people who are approvers of a waiting hold (see `HoldQuerySet.asking`)."""
    return User.objects.filter(Exists(Hold.objects.waiting().asking(OuterRef("pk"))), is_active=True)


def _holds(person: User | None) -> OpenMatter:
    rows = Hold.objects.to_decide(person)
    asked = rows.annotate(words=Concat("tool", Value(", asked by "), "connection__host__name"))
    return _listed("approvals:waiting", asked, "words", **({"show": "decide"} if person else {}))


def _shared_identities(person: User | None) -> OpenMatter:
    return _listed(
        "servers:list",
        Server.objects.live().filter(shared_identity_to_renew()).order_by("name"),
        "name",
        identities="1",
    )


def _own_connections(person: User | None) -> OpenMatter:
    assert person is not None
    return _listed("connections:mine", lacking_identity(person), "host__name", needs="1")


def _own_identities(person: User | None) -> OpenMatter:
    assert person is not None
    return _listed("connections:mine", Identity.objects.own(person).needing_attention(), "label", needs="1")


def _tokens(care: str, order: str) -> Callable[[User | None], OpenMatter]:
    def find(person: User | None) -> OpenMatter:
        rows = Token.objects.filter(needing(care), kind=TokenKind.ACCESS).order_by(order, "pk")
        return _listed("tokens:list", rows, "name", owner="all", care=care)

    return find


def _own_tokens(person: User | None) -> OpenMatter:
    rows = Token.objects.filter(needing("expiring"), kind=TokenKind.ACCESS, connection__user=person)
    return _listed("tokens:list", rows.order_by("expires_at", "pk"), "name", care="expiring")


def _requests(person: User | None) -> OpenMatter:
    asked = open_requests(MOST_OPEN)
    things = {f"{each.pk}:{capability.slug}": f"{each.email}: {capability.label}" for each, capability, _ in asked}
    return OpenMatter(len(asked), things, f"{reverse('accounts:people')}?asking=1")


def _refusals(person: User | None) -> OpenMatter:
    found = unusual()
    things = {str(one.host): f"{one.name}: {one.refused}, usual: {one.usual}" for one in found.agents}
    return OpenMatter(found.refused, things, f"{reverse('auditlog:calls')}?{found.query}", counts_things=False)


def _reviews(person: User | None) -> OpenMatter:
    assert person is not None
    return _listed("access:reviews", Review.objects.waiting_for(person).order_by("due_on", "pk"), "name", show="mine")


MATTERS = (
    Matter(
        "servers-down", "Servers down", FAILING, "server", ("{} server is down", "{} servers are down"),
        lambda person: _listed("servers:list", servers_down().order_by("name"), "name", health="down"),
        (Capability.SERVERS_MANAGE, Capability.SERVERS_TOGGLE), act="Open servers", at_once=True,
    ),
    Matter(
        "sinks-late", "Log sinks failing or behind", FAILING, "logs",
        ("{} log sink is failing or behind", "{} log sinks are failing or behind"),
        lambda person: _listed("sinks:list", Sink.objects.late(), "name", late="1"),
        (Capability.SINKS_MANAGE,), act="Open sinks", at_once=True,
    ),
    Matter(
        "refusals", "Unusual refusals", UNUSUAL, "warning",
        ("{} call refused in an hour, more than usual", "{} calls refused in an hour, more than usual"),
        _refusals, (Capability.LOGS_READ,), act="Open logs", at_once=True,
    ),
    Matter(
        "apps", "Apps to approve", TO_DECIDE, "apps", ("{} app waits for approval", "{} apps wait for approval"),
        lambda person: _listed("hosts:list", apps_to_approve(), "name", status="pending"),
        (Capability.HOSTS_TOGGLE,), at_once=True,
    ),
    Matter(
        "holds", "Held calls", TO_DECIDE, "allowed",
        ("{} call waits for your approval", "{} calls wait for your approval"),
        _holds, (Capability.APPROVALS_DECIDE,), act="Decide", at_once=True, is_urgent=True, also=_hold_approvers,
    ),
    Matter(
        "access", "Access requests", TO_DECIDE, "lock",
        ("{} request for access waits for you", "{} requests for access wait for you"),
        _access, (Capability.GATEWAYS_MANAGE,), act="Decide", at_once=True, also=_approvers,
    ),
    Matter(
        "requests", "Capabilities asked for", TO_DECIDE, "people",
        ("{} person asks for a capability", "{} people ask for a capability"),
        _requests, (Capability.PEOPLE_MANAGE,), act="Decide", at_once=True,
    ),
    Matter(
        "own-reviews", "Access reviews", TO_DECIDE, "people",
        ("{} access review waits for your answers", "{} access reviews wait for your answers"),
        _reviews, act="Answer",
    ),
    Matter(
        "definitions", "Changed definitions", TO_DECIDE, "quarantine",
        ("{} definition waits for a decision", "{} definitions wait for a decision"),
        lambda person: _listed("gateways:changed", definitions_to_judge(), "exposed_name"),
        (Capability.GATEWAYS_MANAGE,), act="Compare",
    ),
    Matter(
        "shared-identities", "Shared credentials to renew", TO_FIX, "identity",
        ("{} server refuses its shared credential or needs a new sign-in",
         "{} servers refuse their shared credential or need a new sign-in"),
        _shared_identities, (Capability.SERVERS_MANAGE,), act="Open servers",
    ),
    Matter(
        "own-connections", "Your connections without a credential", TO_FIX, "connection",
        ("{} of your connections lacks a credential", "{} of your connections lack a credential"),
        _own_connections, act="Add credential",
    ),
    Matter(
        "own-identities", "Your credentials to renew", TO_FIX, "identity",
        ("{} of your credentials needs a new sign-in or secret", "{} of your credentials need a new sign-in or secret"),
        _own_identities, act="Renew",
    ),
    Matter(
        "tokens-ending", "Tokens that end soon", ENDS_SOON, "key",
        ("{} token ends within 14 days", "{} tokens end within 14 days"),
        _tokens("expiring", "expires_at"), (Capability.API_TOKENS_MANAGE,),
    ),
    Matter(
        "own-tokens", "Your tokens that end soon", ENDS_SOON, "key",
        ("{} of your tokens ends within 14 days", "{} of your tokens end within 14 days"),
        _own_tokens, unless=Capability.API_TOKENS_MANAGE,
    ),
    Matter(
        "tokens-idle", "Tokens not used for 90 days", TO_CLEAN_UP, "key",
        ("{} token was not used for 90 days", "{} tokens were not used for 90 days"),
        _tokens("idle", "last_used_at"), (Capability.API_TOKENS_MANAGE,),
    ),
    Matter(
        "tokens-unlimited", "Tokens without an expiry", TO_CLEAN_UP, "key",
        ("{} token never expires", "{} tokens never expire"),
        _tokens("unlimited", "created_at"), (Capability.API_TOKENS_MANAGE,),
    ),
)  # fmt: skip
BY_NAME = {matter.name: matter for matter in MATTERS}
