"""A token as a row of the API Tokens page, and the filters of that page."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, cached_property
from typing import Any, NamedTuple
from urllib.parse import urlencode

from django import forms
from django.db.models import Count, F, Prefetch, Q
from django.db.models.functions import Coalesce
from django.http import QueryDict
from django.utils import timezone

from accounts.models import User
from auditlog.outcomes import in_short
from capabilities import Capability, CapabilityRequired
from connections import rows as connections
from connections.models import Connection, ConnectionQuerySet, stopped_above
from gateways.models import Assignment
from hosts.models import Host, HostKind, HostQuerySet
from servers.models import Server
from tokens.models import Token, TokenKind, TokenQuerySet, TokenScope, sought
from ui.forms import ListFilter
from ui.states import status_text
from ui.tables import Column, Table

# The tokens a person may see and change, and the servers a token reaches; shared by pages and REST.

# Capabilities for other people's tokens; own tokens need none. No capability gives access to another person's secret.
EDITING = Capability.API_TOKENS_MANAGE
ENDING = (Capability.API_TOKENS_MANAGE, Capability.MCP_CONNECTIONS_REVOKE)
SEES = (
    Capability.API_TOKENS_READ,
    Capability.MCP_CONNECTIONS_READ,
)  # A person who reads connections may see tokens: the row of a connection shows its tokens' names and prefixes.

NOTICES = 3  # Waiting tokens that the template shows before "more".
STATUSES = ("active", "waiting", "expired", "revoked", "all")


def tokens_visible_to(viewer: User) -> TokenQuerySet:
    """Return the tokens that `viewer` may see. Keys of apps are left out."""
    tokens = Token.objects.filter(kind=TokenKind.ACCESS)
    return tokens if any(map(viewer.has_perm, SEES)) else tokens.filter(connection__user=viewer)


def hosts_for(viewer: User) -> HostQuerySet:
    """Return the enabled agents `viewer` may create a token for.

    If `viewer` has API_TOKENS_CREATE, return all enabled agents. If not, return only agents that allow enrolment.
    """
    agents = Host.objects.live().filter(kind=HostKind.TOKEN, enabled=True)
    return agents if viewer.has_perm(Capability.API_TOKENS_CREATE) else agents.filter(allow_enrolment=True)


def may_create(viewer: User) -> bool:
    """Return whether `viewer` may create a token, for an existing agent or for a new one."""
    may_some = viewer.has_perm(Capability.API_TOKENS_CREATE) or hosts_for(viewer).exists()
    return viewer.uses_gateways and may_some


def foremost_waiting(owner: User) -> list[Token]:
    """Return up to NOTICES + 1 tokens of `owner` that have a new secret to collect, the oldest request first."""
    waiting = Token.objects.filter(of_status("waiting"), connection__user=owner)
    asked = waiting.prefetch_related(Prefetch("connection", _connections().all())).select_related("asked_by")
    return list(asked.order_by("asked_at")[: NOTICES + 1])


def of_status(status: str) -> Q:
    """Match the tokens whose status is now `status`, one of STATUSES; `all` matches every token."""
    now = timezone.now()
    lasting = Q(revoked_at=None) & (Q(expires_at=None) | Q(expires_at__gt=now))
    means = {
        "active": lasting & Q(digest__isnull=False),
        "waiting": lasting & Q(digest=None),
        "expired": Q(revoked_at=None) & Q(expires_at__lte=now),
        "revoked": Q(revoked_at__isnull=False),
    }
    return means.get(status, Q())


def with_scope(tokens: TokenQuerySet) -> TokenQuerySet:
    """Prefetch the data of a token's row, except the servers of tokens that reach all servers."""
    offered = Assignment.objects.placed()
    narrowed = TokenScope.objects.filter(assignment__in=offered).select_related("assignment__server")
    return tokens.prefetch_related(
        Prefetch("connection", _connections().all()), Prefetch("scopes", narrowed), "revoked_by"
    )


@cache  # Django takes longer to build this query than PostgreSQL to answer it.
def _connections() -> ConnectionQuerySet:
    return Connection.objects.with_reach().select_related("host", "gateway", "user")


def with_reach(tokens: TokenQuerySet) -> TokenQuerySet:
    """Prefetch the data of a token's row, including all servers that the token reaches."""
    offered = Assignment.objects.placed().select_related("server")
    return with_scope(tokens).prefetch_related(Prefetch("connection__gateway__assignments", offered))


def servers_of(token: Token) -> list[Server]:
    """Return the servers `token` now reaches, each once.

    `token` must be loaded by `with_reach`. If the token is limited to certain servers, `with_scope` is enough.
    """
    if token.scope_all:
        assignments = list(token.connection.gateway.assignments.all())
    else:
        assignments = [scope.assignment for scope in token.scopes.all()]
    return list({assignment.server_id: assignment.server for assignment in assignments}.values())


# The columns of the lists of tokens and API keys.

SECRET_SINCE = Coalesce("rotated_at", "created_at")

TOKENS = Table(
    "tokens",
    "API tokens",
    (
        Column("pick", "Pick", 2, kind="pick"),
        Column("name", "Name", value="token.name"),
        Column("owner", "Owner", 8, is_extra=True, value="token.connection.user.email"),
        Column("prefix", "Prefix", 7, priority=2, on_phone=True, value="token.prefix"),
        Column("host", "Host", 6.5, on_phone=True, value="token.connection.host.name"),
        Column("gateway", "Gateway", 5.5, priority=3, on_phone=True, value="token.connection.gateway.name"),
        Column("servers", "Servers", 5, priority=3),
        Column(
            "created",
            "Created",
            6.5,
            sorts=("created_at",),
            most_first=True,
            is_extra=True,
            hint="Regenerating a token changes its secret, not this date.",
            value="token.created_at",
        ),
        Column("secret", "Secret since", 6.5, sorts=(SECRET_SINCE,), is_extra=True, value="token.secret_since"),
        Column(
            "expires",
            "Expiration date",
            7.5,
            kind="moment",
            sorts=("expires_at",),
            on_phone=True,
            value="token.expires_at",
        ),
        Column(
            "used",
            "Last used date",
            6.5,
            priority=3,
            sorts=("last_used_at",),
            most_first=True,
            value="token.last_used_at",
        ),
        Column("status", "Status", 7.5, on_phone=True, value=lambda row: status_text(row.token.status, row.blocked)),
        Column("revoked", "Revoked", 7, is_extra=True, value="token.revoked_at"),
        Column("revoked_by", "Revoked by", 8, is_extra=True, value="token.revoked_by.email"),
        Column("acts", "Actions", 7, kind="acts", said=False),
    ),
    row_id="token.pk",
)
API_KEYS = Table(
    "api-keys",
    "API keys",
    (
        Column("name", "Name"),
        Column("prefix", "Prefix", 7.5, priority=2, on_phone=True),
        Column("owner", "Owner", 8, is_extra=True, value="user.email"),
        Column("capabilities", "Capabilities", 14, priority=3),
        Column("created", "Created", 6.5, sorts=("created_at",), most_first=True, is_extra=True, value="created_at"),
        Column("expires", "Expires", 7.5, on_phone=True, value="expires_at"),
        Column("used", "Last used", 6.5, priority=3, sorts=("last_used_at",), most_first=True, value="last_used_at"),
        Column(
            "status",
            "Status",
            10,
            priority=2,
            on_phone=True,
            value=lambda key: status_text(key.status, key.blocked),
        ),
        Column("acts", "Actions", 9, kind="acts", said=False),
    ),
)


EXPIRES_SOON = timedelta(days=14)
IDLE = timedelta(days=90)


class SecretUse(NamedTuple):
    """The old or new secret of a token, its last use, and the addresses that have used it since the replacement."""

    name: str
    prefix: str
    last_used_at: datetime | None
    addresses: list[str]


@dataclass(frozen=True)
class TokenRow:
    """One token as `viewer` sees it. The token must be loaded by `with_scope`."""

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
        """The names of the servers that the token may reach."""
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
        """The time until an active token expires, if this is at most EXPIRES_SOON; otherwise empty."""
        remaining = self.token.expires_at - timezone.now() if self.token.expires_at else None
        if remaining is None or self.token.status != "active" or remaining > EXPIRES_SOON:
            return ""
        hours = remaining.seconds // 3600
        return f"in {remaining.days}d" if remaining.days else f"in {hours}h" if hours else "in under 1h"

    @property
    def blocked(self) -> str:
        """The reason why an active token is blocked, in words; empty if it is not blocked."""
        return in_short(self.token.blocked_reason)

    @property
    def may_edit(self) -> bool:
        return self.token.status in ("active", "waiting") and self.connection.may_edit_tokens

    @property
    def may_regenerate(self) -> bool:
        """True if the viewer may regenerate the token and see the new secret."""
        return self.token.status == "active" and self.token.connection.is_on and self.connection.may_regenerate

    @property
    def may_collect(self) -> bool:
        """True if the viewer can collect a new secret now."""
        return self.token.status == "waiting" and self.is_own and self.token.connection.is_on

    @property
    def may_ask_for_new(self) -> bool:
        return self.token.status == "active" and self.connection.may_ask_for_new

    @property
    def may_end_previous(self) -> bool:
        return self.may_revoke and self.token.previous_works_until is not None

    @cached_property
    def secrets(self) -> list[SecretUse]:
        """The old and the new secret with their use since the replacement.

        Only the old secret if the new one is not collected yet. Empty if the secret was never replaced.
        """
        token, since = self.token, self.token.asked_at or self.token.rotated_at
        old = SecretUse(
            "Old", token.previous_prefix, token.previous_last_used_at, self._addresses(token.previous_prefix)
        )
        if token.status == "waiting":  # There is no new secret yet.
            return [old]
        new = SecretUse("New", token.prefix, token.secret_last_used_at, self._addresses(token.prefix))
        return [old, new] if since else []

    def _addresses(self, prefix: str) -> list[str]:
        since = self.token.asked_at or self.token.rotated_at
        return self.token.recent_addresses(since, prefix) if since else []

    @property
    def may_revoke(self) -> bool:
        return not self.token.revoked_at and self.connection.may_end_tokens


class Care(NamedTuple):
    """A category of active tokens that need attention. The page has a card that links to the list of these tokens."""

    title: str
    note: str


CARES = {
    "unused": Care("Never used", "check or revoke"),
    "idle": Care("Idle for 90 days", "likely not needed"),
    "unlimited": Care("No expiry", "until revoked"),
    "old": Care("Older than 90 days", "regenerate or revoke"),
    "expiring": Care("Expiring within 14 days", "replace or extend"),
}


# The statuses that are counted; a token has exactly one of them.
TOLD = ("revoked", "expired", "waiting", "active")

_OFF = Q(enabled=False) | Q(revoked_at__isnull=False)


def needing(care: str) -> Q:
    """Match the tokens that the card `care` counts; `care` is a key of CARES."""
    return of_status("active") & _means()[care]


def _means() -> dict[str, Q]:
    """Return the conditions of the categories in CARES, by key.

    A category consists of the active tokens that meet its condition.
    """
    now = timezone.now()
    return {
        "unused": Q(last_used_at=None),
        "idle": Q(last_used_at__lte=now - IDLE),
        "unlimited": Q(expires_at=None),
        "old": Q(rotated_at__lte=now - IDLE) | Q(rotated_at=None, created_at__lte=now - IDLE),
        "expiring": Q(expires_at__gt=now, expires_at__lte=now + EXPIRES_SOON),
    }


def owner_of_listed(viewer: User, query: QueryDict) -> User | None:
    """Return the viewer if only the viewer's tokens are listed; None if everyone's are listed (`?owner=all`)."""
    return None if query.get("owner") == "all" else viewer


def listed(viewer: User, query: QueryDict) -> TokenQuerySet:
    """Return the viewer's own tokens. With `?owner=all`, return everyone's tokens.

    Raises CapabilityRequired if the viewer may not see everyone's tokens.
    """
    tokens = Token.objects.filter(kind=TokenKind.ACCESS)
    if owner := owner_of_listed(viewer, query):
        return tokens.filter(connection__user=owner)
    if not viewer.has_perm(Capability.API_TOKENS_READ):
        raise CapabilityRequired(Capability.API_TOKENS_READ)
    return tokens


class TokenFilter(ListFilter):
    """The filters of the list of tokens. By default, the list shows active tokens."""

    owner = forms.ChoiceField(required=False, choices=[("all", "Everyone")])
    status = forms.ChoiceField(required=False, choices=[(name, name) for name in STATUSES])
    care = forms.ChoiceField(required=False, choices=[(name, care.title) for name, care in CARES.items()])

    @property
    def values(self) -> dict[str, Any]:
        return {"status": "active"} | {name: value for name, value in super().values.items() if value}

    def narrow(self, rows: TokenQuerySet) -> TokenQuerySet:
        """Return the matching tokens, sorted by expiry. With status `revoked`, the latest revocation comes first."""
        chosen = self.values
        state = needing(chosen["care"]) if "care" in chosen else of_status(chosen["status"])
        tokens = rows.filter(state & sought(chosen.get("q", ""), of_many="owner" in chosen))
        if chosen["status"] == "revoked":
            return tokens.order_by("-revoked_at", "pk")
        return tokens.order_by(F("expires_at").asc(nulls_last=True), "pk")

    def counted(self, tokens: TokenQuerySet, owner: User | None) -> tuple[dict[str, int], int]:
        """Return the `token_counts` of `tokens`, and the number of tokens that match the filters.

        For a search, return an empty dictionary instead of the `token_counts`.
        """
        if "q" in self.values:  # A search uses other indexes, so counting all tokens too would take twice as long.
            return {}, self.narrow(tokens).count()
        counted = token_counts(tokens, owner)
        of_all = sum(counted[name] for name in TOLD)
        return counted, counted.get(self.values.get("care", self.values["status"]), of_all)


def token_counts(tokens: TokenQuerySet, owner: User | None) -> dict[str, int]:
    """Return the number of `tokens` for each status and for each card of CARES.

    The key `blocked` has the number of active tokens whose connection is disabled, revoked or blocked. If all
    tokens belong to one person, pass this person as `owner`: the query is then faster.
    """
    # With an owner, only the owner's connections are scanned.
    stopped = Connection.objects.filter(_OFF | stopped_above(), **({"user": owner} if owner else {})).order_by()
    told = {name: of_status(name) for name in TOLD} | {name: needing(name) for name in CARES}
    told["blocked"] = of_status("active") & Q(connection__in=stopped.values("pk"))
    counted: dict[str, int] = tokens.order_by().aggregate(**{name: Count("pk", filter=q) for name, q in told.items()})
    return counted
