"""A token as a row of the API Tokens page, and the filters of that page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, cached_property
from typing import Any, NamedTuple
from urllib.parse import urlencode

from django import forms
from django.db.models import Case, Count, F, IntegerField, Q, Value, When
from django.db.models.expressions import Combinable, RawSQL
from django.http import QueryDict
from django.utils import timezone

from accounts.models import User
from auditlog.reasons import in_short
from capabilities import CapabilityRequired
from connections import rows as connections
from connections.models import Connection, stopped_above
from tokens.models import Token, TokenKind, TokenQuerySet, sought
from tokens.visibility import EDITING, STATUSES, of_status, servers_of

EXPIRES_SOON = timedelta(days=7)
IDLE = timedelta(days=90)


@dataclass(frozen=True)
class TokenRow:
    """One token as `viewer` sees it; needs `with_scope`."""

    token: Token
    viewer: User

    @cached_property
    def connection(self) -> connections.ConnectionRow:
        return connections.ConnectionRow(self.token.connection, self.viewer)

    @property
    def is_own(self) -> bool:
        return self.connection.is_own

    @property
    def servers(self) -> str:
        """The servers it may reach, in words."""
        return (
            "All servers"
            if self.token.scope_all
            else ", ".join(server.name for server in servers_of(self.token)) or "None"
        )

    @property
    def calls_query(self) -> str:
        """What narrows the log to the calls of this token."""
        return urlencode({"connection": self.token.connection_id, "q": f"token is {self.token.pk}"})

    @property
    def soon(self) -> str:
        """How little time is left, when it is a week or less."""
        remaining = self.token.expires_at - timezone.now() if self.token.expires_at else None
        if remaining is None or self.token.status != "active" or remaining > EXPIRES_SOON:
            return ""
        return f"in {remaining.days}d" if remaining.days else f"in {remaining.seconds // 3600}h"

    @property
    def blocked(self) -> str:
        """What stops a token that is active itself, in words."""
        return in_short(self.token.blocked_reason)

    @property
    def may_edit(self) -> bool:
        return self.token.status in ("active", "waiting") and self.connection.may_edit_tokens

    @property
    def may_regenerate(self) -> bool:
        """Whether its new secret may be shown to the viewer, now."""
        return self.token.status == "active" and self.token.connection.is_on and self.connection.may_regenerate

    @property
    def may_collect(self) -> bool:
        """Whether the viewer is whom a new secret waits for."""
        return self.token.status == "waiting" and self.is_own and self.token.connection.is_on

    @property
    def may_ask_for_new(self) -> bool:
        return self.token.status == "active" and self.connection.may_ask_for_new

    @property
    def may_end_previous(self) -> bool:
        return self.may_revoke and self.token.previous_works_until is not None

    @property
    def may_revoke(self) -> bool:
        return not self.token.revoked_at and self.connection.may_end_tokens


class Care(NamedTuple):
    """A category of active tokens that need attention: a card with `title` links to the filtered list."""

    title: str
    note: str


CARES = {
    "unused": Care("Never used", "check or revoke"),
    "idle": Care("Idle for 90 days", "likely not needed"),
    "unlimited": Care("No expiry", "until revoked"),
    "expiring": Care("Expiring within 7 days", "replace or extend"),
}


# The statuses that are counted, each looked for after those before it; what stands for an active one, with a bit for
# each of what is told of it; and a bit for one of those that are looked for, whatever its status.
TOLD = ("revoked", "expired", "waiting", "active")
ACTIVE = 1 << 8
BITS = {name: 1 << n for n, name in enumerate((*CARES, "blocked"))}
MATCHING = 1 << 7

ANY = Q()
_OFF = Q(enabled=False) | Q(revoked_at__isnull=False)


def needing(care: str) -> Q:
    """The tokens that a card of CARES is about."""
    return of_status("active") & _means()[care]


def _means() -> dict[str, Q]:
    """Of the active tokens, those that each card of CARES is about."""
    now = timezone.now()
    return {
        "unused": Q(last_used_at=None),
        "idle": Q(last_used_at__lte=now - IDLE),
        "unlimited": Q(expires_at=None),
        "expiring": Q(expires_at__gt=now, expires_at__lte=now + EXPIRES_SOON),
    }


def owner_of_listed(viewer: User, query: QueryDict) -> User | None:
    """Whose tokens are listed: the viewer's own, or everybody's with `?owner=all`."""
    return None if query.get("owner") == "all" else viewer


def listed(viewer: User, query: QueryDict) -> TokenQuerySet:
    """The tokens of `owner_of_listed`. Raises CapabilityRequired."""
    tokens = Token.objects.filter(kind=TokenKind.ACCESS)
    if owner := owner_of_listed(viewer, query):
        return tokens.filter(connection__user=owner)
    if not viewer.has_perm(EDITING):
        raise CapabilityRequired(EDITING)
    return tokens


class TokenFilter(forms.Form):
    """The filters of the list of tokens; unknown values are ignored."""

    q = forms.CharField(required=False)
    owner = forms.ChoiceField(required=False, choices=[("all", "Everyone")])
    status = forms.ChoiceField(required=False, choices=[(name, name) for name in STATUSES])
    care = forms.ChoiceField(required=False, choices=[(name, care.title) for name, care in CARES.items()])

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.is_valid()
        self.values: dict[str, str] = {"status": "active"} | {k: v for k, v in self.cleaned_data.items() if v}

    @property
    def _words(self) -> Q:
        return sought(self.values.get("q", ""), of_many="owner" in self.values)

    @property
    def _state(self) -> str:
        """The card or the status whose tokens are listed."""
        return self.values.get("care", self.values["status"])

    def narrow(self, tokens: TokenQuerySet) -> TokenQuerySet:
        """The tokens that match, those that end first at the top."""
        state = needing(self.values["care"]) if "care" in self.values else of_status(self.values["status"])
        tokens = tokens.filter(state & self._words)
        if self.values["status"] == "revoked":
            return tokens.order_by("-revoked_at", "pk")
        return tokens.order_by(F("expires_at").asc(nulls_last=True), "pk")

    def numbers(self, tokens: TokenQuerySet, owner: User | None) -> tuple[dict[str, int], int]:
        """`numbers` of `tokens`, and how many match: each is looked at once for both."""
        if "q" not in self.values:
            counted = numbers(tokens, owner)
            of_all = sum(counted[name] for name in TOLD)
            return counted, counted.get(self._state, of_all)
        looks = _looks(tokens, owner, self._state, self._words)
        return _sums(looks), sum(number for told, number in looks if told & MATCHING)


def numbers(tokens: TokenQuerySet, owner: User | None) -> dict[str, int]:
    """How many of `tokens` have each status, how many of the active something else stops, and what each card is about.

    `owner` is whose they are, when they are one person's: nobody else's connections are looked at then.
    """
    return _sums(_looks(tokens, owner))


def _sums(looks: Iterable[tuple[int, int]]) -> dict[str, int]:
    counted = dict.fromkeys((*TOLD, *BITS), 0)
    for bits, number in looks:
        told = bits & ~MATCHING
        if told >= ACTIVE:
            counted["active"] += number
            for name, bit in BITS.items():
                counted[name] += number if told & bit else 0
        else:
            counted[TOLD[told]] += number
    return counted


def _looks(tokens: TokenQuerySet, owner: User | None, state: str = "", words: Q = ANY) -> list[tuple[int, int]]:
    """How many tokens are told by each number, so that each is looked at once.

    The number is its place in TOLD, or ACTIVE with BITS of the cards that are about it and of what is blocked; plus
    MATCHING for one with these `words`, of those that are in this `state`: both are given, or neither.
    """
    now = timezone.now()

    def with_match(status: str, number: Combinable) -> Combinable:
        # Words are looked for where the state fits, not of every token.
        return number + Case(When(words, then=Value(MATCHING)), default=0) if state in (status, "all") else number

    # What is asked of a token here, those before left open: what `of_status` and `_means` ask at length.
    ended = (
        When(revoked_at__isnull=False, then=with_match("revoked", Value(TOLD.index("revoked")))),
        When(expires_at__lte=now, then=with_match("expired", Value(TOLD.index("expired")))),
        When(digest=None, then=with_match("waiting", Value(TOLD.index("waiting")))),
    )
    unused = When(last_used_at=None, then=Value(BITS["unused"]))
    unlimited = When(expires_at=None, then=Value(BITS["unlimited"]))
    active: Combinable = Value(ACTIVE)
    active += Case(unused, When(last_used_at__lte=now - IDLE, then=Value(BITS["idle"])), default=0)
    active += Case(unlimited, When(expires_at__lte=now + EXPIRES_SOON, then=Value(BITS["expiring"])), default=0)
    active += Case(When(connection__in=_stopped(owner), then=Value(BITS["blocked"])), default=0)
    if state in CARES:
        active += Case(When(_means()[state] & words, then=Value(MATCHING)), default=0)
    number = Case(*ended, default=with_match("active", active), output_field=IntegerField())
    counted = tokens.order_by().annotate(told=number).values("told").annotate(number=Count("*"))
    return list(counted.values_list("told", "number"))


def _stopped(owner: User | None) -> Any:
    """The keys of connections that do not work; those of one person where that is who is asked about."""
    if owner:
        return Connection.objects.filter(_OFF | stopped_above(), user=owner).order_by().values("pk")
    return RawSQL(*_all_stopped())  # noqa: S611  (a constant)


@cache
def _all_stopped() -> tuple[str, tuple[Any, ...]]:
    """In SQL: it says the same every time, and to write it takes Python long."""
    return Connection.objects.filter(_OFF | stopped_above()).order_by().values("pk").query.sql_with_params()
