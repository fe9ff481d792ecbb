"""A token as a row of the API Tokens page, and the filters of that page."""

from __future__ import annotations

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
from ui.tables import Column, Table

# The columns of the lists of tokens and API keys.

TOKENS = Table(
    "tokens",
    "API tokens",
    (
        Column("pick", "Pick", 2, kind="pick"),
        Column("name", "Name"),
        Column("prefix", "Prefix", 7.5, priority=2, on_phone=True),
        Column("host", "Host", 7, priority=3),
        Column("gateway", "Gateway", 6.5, priority=4),
        Column("servers", "Servers", 5, priority=4),
        Column("expires", "Expiration date", 10, on_phone=True),
        Column("used", "Last used date", 6.5, priority=3),
        Column("status", "Status", 14, priority=2, on_phone=True),
        Column("acts", "Actions", 7.5, kind="acts", said=False),
    ),
)
API_KEYS = Table(
    "api-keys",
    "API keys",
    (
        Column("name", "Name"),
        Column("prefix", "Prefix", 7.5, priority=2, on_phone=True),
        Column("capabilities", "Capabilities", 14, priority=3),
        Column("expires", "Expires", 7.5, on_phone=True),
        Column("used", "Last used", 6.5, priority=3),
        Column("status", "Status", 10, priority=2, on_phone=True),
        Column("acts", "Actions", 9, kind="acts", said=False),
    ),
)


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
        """The names of the servers it may reach."""
        return (
            "All servers"
            if self.token.scope_all
            else ", ".join(server.name for server in servers_of(self.token)) or "None"
        )

    @property
    def calls_query(self) -> str:
        """The query string that filters the log by this token."""
        return urlencode({"connection": self.token.connection_id, "q": f"token is {self.token.pk}"})

    @property
    def soon(self) -> str:
        """The remaining time, if it is a week or less; otherwise empty."""
        remaining = self.token.expires_at - timezone.now() if self.token.expires_at else None
        if remaining is None or self.token.status != "active" or remaining > EXPIRES_SOON:
            return ""
        return f"in {remaining.days}d" if remaining.days else f"in {remaining.seconds // 3600}h"

    @property
    def blocked(self) -> str:
        """The reason why an active token is blocked, in words."""
        return in_short(self.token.blocked_reason)

    @property
    def may_edit(self) -> bool:
        return self.token.status in ("active", "waiting") and self.connection.may_edit_tokens

    @property
    def may_regenerate(self) -> bool:
        """True if the viewer may regenerate it and see the new secret."""
        return self.token.status == "active" and self.token.connection.is_on and self.connection.may_regenerate

    @property
    def may_collect(self) -> bool:
        """True if a new secret is waiting for the viewer."""
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


# The statuses that are counted; each excludes those before it. An active token counts as ACTIVE plus a bit for each
# category it is in.
TOLD = ("revoked", "expired", "waiting", "active")
ACTIVE = 1 << 8
BITS = {name: 1 << n for n, name in enumerate((*CARES, "blocked"))}

_OFF = Q(enabled=False) | Q(revoked_at__isnull=False)


def needing(care: str) -> Q:
    """Match the tokens of a card of CARES."""
    return of_status("active") & _means()[care]


def _means() -> dict[str, Q]:
    """Return the condition of each card of CARES, for active tokens."""
    now = timezone.now()
    return {
        "unused": Q(last_used_at=None),
        "idle": Q(last_used_at__lte=now - IDLE),
        "unlimited": Q(expires_at=None),
        "expiring": Q(expires_at__gt=now, expires_at__lte=now + EXPIRES_SOON),
    }


def owner_of_listed(viewer: User, query: QueryDict) -> User | None:
    """Return the owner of the listed tokens: the viewer, or None for everyone's with `?owner=all`."""
    return None if query.get("owner") == "all" else viewer


def listed(viewer: User, query: QueryDict) -> TokenQuerySet:
    """Return the tokens of `owner_of_listed`. Raises CapabilityRequired."""
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

    def narrow(self, tokens: TokenQuerySet) -> TokenQuerySet:
        """Return the matching tokens, the first to expire at the top."""
        chosen = self.values
        state = needing(chosen["care"]) if "care" in chosen else of_status(chosen["status"])
        tokens = tokens.filter(state & sought(chosen.get("q", ""), of_many="owner" in chosen))
        if chosen["status"] == "revoked":
            return tokens.order_by("-revoked_at", "pk")
        return tokens.order_by(F("expires_at").asc(nulls_last=True), "pk")

    def counted(self, tokens: TokenQuerySet, owner: User | None) -> tuple[dict[str, int], int]:
        """Return `token_counts` of `tokens`, and the number of matches; for a search only the latter.

        A search uses other indexes, and scanning all tokens for both would take twice as long.
        """
        if "q" in self.values:
            return {}, self.narrow(tokens).count()
        counted = token_counts(tokens, owner)
        of_all = sum(counted[name] for name in TOLD)
        return counted, counted.get(self.values.get("care", self.values["status"]), of_all)


def token_counts(tokens: TokenQuerySet, owner: User | None) -> dict[str, int]:
    """Count `tokens` by status, and the active ones by card and whether they are blocked, in one scan.

    If all are one person's, `owner` limits the scan of connections to theirs.
    """
    now = timezone.now()
    # The conditions of `of_status` and `_means`, shortened: each applies only if those before do not.
    ended = (
        When(revoked_at__isnull=False, then=Value(TOLD.index("revoked"))),
        When(expires_at__lte=now, then=Value(TOLD.index("expired"))),
        When(digest=None, then=Value(TOLD.index("waiting"))),
    )
    unused = When(last_used_at=None, then=Value(BITS["unused"]))
    unlimited = When(expires_at=None, then=Value(BITS["unlimited"]))
    active: Combinable = Value(ACTIVE)
    active += Case(unused, When(last_used_at__lte=now - IDLE, then=Value(BITS["idle"])), default=0)
    active += Case(unlimited, When(expires_at__lte=now + EXPIRES_SOON, then=Value(BITS["expiring"])), default=0)
    active += Case(When(connection__in=_stopped(owner), then=Value(BITS["blocked"])), default=0)
    told = Case(*ended, default=active, output_field=IntegerField())
    looks = tokens.order_by().annotate(told=told).values("told").annotate(number=Count("*"))
    counted = dict.fromkeys((*TOLD, *BITS), 0)
    for bits, number in looks.values_list("told", "number"):
        if bits >= ACTIVE:
            counted["active"] += number
            for name, bit in BITS.items():
                counted[name] += number if bits & bit else 0
        else:
            counted[TOLD[bits]] += number
    return counted


def _stopped(owner: User | None) -> Any:
    """Return the keys of blocked connections; only the owner's, if given."""
    if owner:
        return Connection.objects.filter(_OFF | stopped_above(), user=owner).order_by().values("pk")
    return RawSQL(*_all_stopped())  # noqa: S611  (a constant)


@cache
def _all_stopped() -> tuple[str, tuple[Any, ...]]:
    """Return the SQL for all blocked connections, cached because Django takes long to compile it."""
    return Connection.objects.filter(_OFF | stopped_above()).order_by().values("pk").query.sql_with_params()
