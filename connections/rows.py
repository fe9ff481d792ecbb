"""A connection as a row of a list: status, tokens, and the actions the viewer may take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django import forms
from django.db.models import Case, Count, Exists, OuterRef, Q, Value, When
from django.utils import timezone

from accounts.models import User
from auditlog.outcomes import in_short
from capabilities import Capability
from connections.models import Connection, ConnectionQuerySet, stopped_above
from gateways.models import Reach
from hosts.models import Host, HostKind
from tokens.models import Token, prefixed
from ui.forms import ListFilter, holds

if TYPE_CHECKING:
    from django.db.models import Manager

TYPES = {"app": HostKind.HEADED, "agent": HostKind.TOKEN}
STATUSES = ("active", "blocked", "disabled", "expired", "revoked")
TOKEN_ORDER = ("waiting", "active", "expired")  # By status, in lists of a connection's tokens.
LIVE = "live"  # All statuses but `revoked`.


def connections_visible_to(viewer: User, *opening: Capability) -> ConnectionQuerySet:
    """Return all connections if `viewer` has MCP_CONNECTIONS_READ or one of `opening`, otherwise the viewer's own."""
    rows = Connection.objects.all()
    return rows if any(map(viewer.has_perm, (Capability.MCP_CONNECTIONS_READ, *opening))) else rows.own(viewer)


def may_connect(viewer: User, host: Host) -> bool:
    """Return whether `viewer` may make tokens, and thereby connections, for the agent `host`."""
    may_make_tokens = host.allow_enrolment or viewer.has_perm(Capability.API_TOKENS_CREATE)
    return host.is_agent and host.enabled and viewer.uses_gateways and may_make_tokens


def visible(viewer: User, *opening: Capability) -> ConnectionQuerySet:
    """Return the connections `viewer` may see, with everything a row shows.

    A capability in `opening` lets the viewer see all connections.
    """
    return connections_visible_to(viewer, *opening).with_details()


def counted_for(viewer: User) -> Q:
    """Return a filter for `Count("connections")`, so that only connections that `viewer` may see are counted."""
    sees_all = viewer.has_perm(Capability.MCP_CONNECTIONS_READ)
    return Q(connections__isnull=False) if sees_all else Q(connections__user=viewer)


def blocked(connection: Connection) -> str:
    """Return the reason why `connection` is blocked, in words; empty if it is not blocked."""
    return in_short(connection.blocked_reason)


@dataclass(frozen=True)
class ConnectionRow:
    """One connection as `viewer` sees it; the connection must be loaded `with_details`.

    At most `most_tokens` tokens are listed below the row; None means all.
    """

    connection: Connection
    viewer: User
    most_tokens: int | None = None

    @property
    def name(self) -> str:
        """The accessible name of the row's switch."""
        return f"{self.connection.host.name} on {self.connection.gateway.name} as {self.connection.user.email}"

    @property
    def may_open_gateway(self) -> bool:
        """True if the viewer may open the page of the connection's gateway."""
        gateway = self.connection.gateway
        sees_all = self.viewer.has_perm(Capability.GATEWAYS_READ)
        within_reach = (gateway.reach == Reach.EVERYONE and self.viewer.uses_gateways) or (
            self.is_own and getattr(self.connection, "reaches", False)
        )
        return gateway.archived_at is None and (sees_all or within_reach)

    @property
    def calls_query(self) -> str:
        return urlencode({"connection": self.connection.pk})

    @cached_property
    def tokens(self) -> list[Any]:
        """The tokens (of an agent) or keys (of an app) that were not revoked, newest first."""
        return [token for token in self._all_tokens if not token.revoked_at]

    @cached_property
    def listed_tokens(self) -> list[Any]:
        """The tokens below the row: first those that wait to be collected, then active ones, then expired ones."""
        return sorted(self.tokens, key=lambda token: TOKEN_ORDER.index(token.status))[: self.most_tokens]

    @property
    def further_tokens(self) -> int:
        """The number of tokens that are not listed."""
        return len(self.tokens) - len(self.listed_tokens)

    @property
    def _all_tokens(self) -> Iterable[Any]:
        manager: Manager[Any] = self.connection.tokens
        return manager.all()

    @cached_property
    def active(self) -> int:
        """The number of tokens or keys that can be used."""
        return sum(token.status == "active" for token in self.tokens)

    @cached_property
    def status(self) -> str:
        """`revoked`, `disabled`, `expired`, `blocked` or `active`, in that order of precedence."""
        if not self.connection.is_live:
            return "revoked"
        if not self.connection.enabled:
            return "disabled"
        if not self.active:
            return "expired"
        return "blocked" if self.connection.blocked_by else "active"

    @property
    def status_text(self) -> str:
        """The status in words.

        For the status `expired`, the text is "new token not collected" if a token waits to be collected. It is "no
        active token" if every token is revoked.
        """
        if self.status != "expired":
            return self.status
        if any(token.status == "waiting" for token in self.tokens):
            return "new token not collected"
        return self.status if self.tokens else "no active token"

    @property
    def blocked(self) -> str:
        """The reason why the connection is blocked, in words; empty if its status is not `blocked`."""
        return blocked(self.connection) if self.status == "blocked" else ""

    @property
    def needs_identity(self) -> bool:
        """True if the connection works, but has no usable identity for a server of its gateway.

        Servers that need no identity do not count.
        """
        lacks = bool(getattr(self.connection, "needs_identity", False))
        return lacks and self.status == "active" and not self.blocked

    @property
    def prefix(self) -> str:
        """The prefix of the newest unrevoked token or key.

        If all tokens and keys are revoked, it is the prefix of the newest token or key. If the connection has no token
        or key, it is empty.
        """
        newest = next(iter(self.tokens or self._all_tokens), None)
        return newest.prefix if newest else ""

    @property
    def shows_tokens(self) -> bool:
        """True if tokens are listed below the row.

        An agent's connection may have several tokens. An app's connection has one key, whose prefix is in the row.
        """
        return self.connection.is_live and self.connection.host.is_agent and bool(self.tokens or self.may_add_token)

    @cached_property
    def is_own(self) -> bool:
        return self.connection.user_id == self.viewer.pk

    @property
    def may_revoke(self) -> bool:
        return self.connection.is_live and self.connection.may_be_revoked_by(self.viewer)

    @property
    def may_regenerate(self) -> bool:
        """True if the viewer may replace the connection's secret."""
        if self.connection.host.is_agent:
            # The new secret is shown, and everyone who has it can act as the owner.
            return self.is_own
        # An app's key is never shown.
        return self.viewer.has_perm(Capability.MCP_CONNECTIONS_REVOKE)

    @property
    def offers_key(self) -> bool:
        """True if the row has the button to replace the secret."""
        return self.status == "active" and self.may_regenerate

    @property
    def may_ask_for_new(self) -> bool:
        """True if the viewer may end another person's token secrets, so that the person must collect new ones."""
        return not self.is_own and self.connection.is_live and self.connection.host.is_agent and self.may_end_tokens

    @property
    def offers_asking(self) -> bool:
        """True if the connection's row has the button to ask the owner to collect a new token."""
        return self.may_ask_for_new and bool(self.active) and self.viewer.has_perm(Capability.MCP_CONNECTIONS_REVOKE)

    @property
    def may_edit_tokens(self) -> bool:
        return self.is_own or self.viewer.has_perm(Capability.API_TOKENS_MANAGE)

    @property
    def may_end_tokens(self) -> bool:
        return self.may_edit_tokens or self.viewer.has_perm(Capability.MCP_CONNECTIONS_REVOKE)

    @property
    def may_add_token(self) -> bool:
        """True if the viewer may add a token to the connection.

        People add tokens only to their own connections, because a token acts as its creator.
        """
        return self.is_own and self.connection.enabled and may_connect(self.viewer, self.connection.host)


class ConnectionFilter(ListFilter):
    type = forms.ChoiceField(required=False, choices=[(name, name) for name in TYPES])
    status = forms.MultipleChoiceField(
        required=False, choices=[(name, name.capitalize()) for name in (LIVE, *STATUSES)]
    )

    @property
    def takes_long(self) -> bool:
        """True if the filter takes long, because a chosen status depends on the tokens of each connection."""
        return not {"active", "blocked", "expired"}.isdisjoint(self.values.get("status", ()))

    def narrow(self, rows: ConnectionQuerySet) -> ConnectionQuerySet:
        if words := self.values.get("q"):
            named = _of_person(words) | holds("host__name", words) | holds("gateway__name", words)
            rows = rows.filter(named | _holding(prefixed(words)))
        if kind := TYPES.get(self.values.get("type", "")):
            rows = rows.filter(host__kind=kind)
        if statuses := self.values.get("status"):
            rows = rows.filter(_any_of(statuses))
        return rows


def _of_person(words: str) -> Q:
    """Match the connections of the person whose e-mail is `words`.

    If there is no such person, match the connections of all people whose e-mail contains `words`.
    """
    person = User.objects.filter(email__iexact=words).first() if "@" in words else None
    return Q(user=person) if person else holds("user__email", words)


def connection_counts(rows: ConnectionQuerySet) -> dict[str, int]:
    """Return the number of `rows` by status. The keys are STATUSES."""
    in_order = {  # By precedence: the first match counts.
        "revoked": Q(revoked_at__isnull=False),
        "disabled": Q(enabled=False),
        "expired": ~Q(pk__in=_tokens_in_use().values("connection")),
        "blocked": stopped_above(),
    }
    status = Case(*(When(which, then=Value(name)) for name, which in in_order.items()), default=Value("active"))
    counted = dict(rows.order_by().annotate(told=status).values_list("told").annotate(number=Count("*")))
    return {status: counted.get(status, 0) for status in STATUSES}


def active(rows: ConnectionQuerySet) -> ConnectionQuerySet:
    """Return the connections among `rows` whose status is `active`."""
    return rows.filter(_any_of(["active"]))


def _holding(credentials: Q) -> Q:
    """Match connections with a token or key that `credentials` matches; if `credentials` is empty, an empty Q."""
    # An empty Q has no effect in `a | b`.
    return Q(pk__in=Token.objects.filter(credentials).values("connection")) if credentials else Q()


def _usable() -> Q:
    """Match connections with a usable token or key."""
    return Q(Exists(_tokens_in_use().filter(connection=OuterRef("pk"))))


def _tokens_in_use() -> Any:
    """Return the tokens and keys that have a secret and are neither revoked nor expired."""
    tokens: Any = Connection._meta.get_field("tokens").related_model
    unexpired = Q(expires_at=None) | Q(expires_at__gt=timezone.now())
    return tokens.objects.filter(unexpired, revoked_at=None, digest__isnull=False)


def _any_of(statuses: Iterable[str]) -> Q:
    """Match the connections that have one of these statuses, which may include LIVE."""
    live, on = Q(revoked_at=None), Q(revoked_at=None, enabled=True)
    means = {
        LIVE: live,
        "active": on & _usable() & ~stopped_above(),
        "blocked": on & _usable() & stopped_above(),
        "disabled": live & Q(enabled=False),
        "expired": on & ~_usable(),
        "revoked": ~live,
    }
    return reduce(or_, (means[status] for status in statuses))
