"""A connection as a row of the Connections tabs: status, tokens, and the actions the viewer may take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from operator import or_
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django import forms
from django.db import DEFAULT_DB_ALIAS
from django.db import connection as database
from django.db.models import BooleanField, Case, Exists, OuterRef, Q, Value, When
from django.db.models.expressions import RawSQL
from django.utils import timezone

from accounts.models import User
from auditlog.reasons import in_short
from capabilities import Capability
from capabilities.catalogue import SEES_CONNECTIONS
from connections.models import UNBLOCKED, Connection, ConnectionQuerySet, stopped_above
from gateways.models import Reach
from hosts.models import HostKind
from tokens.models import Token, prefixed
from ui.matching import holds

if TYPE_CHECKING:
    from django.db.models import Manager

OPENS_GATEWAYS = (Capability.GATEWAYS_READ, Capability.GATEWAYS_MANAGE, Capability.GATEWAYS_TOGGLE)
TYPES = {"app": HostKind.HEADED, "agent": HostKind.TOKEN}
STATUSES = ("active", "blocked", "disabled", "expired", "revoked")

# Behind an OFFSET, so that each row is asked once; PostgreSQL would sort them all by what it does not know to be few.
NUMBERS = "SELECT c.told, count(*) FROM ({rows} OFFSET 0) c (told) GROUP BY 1"


def known_to(viewer: User, *opening: Capability) -> ConnectionQuerySet:
    """The connections `viewer` may see: all with one of SEES_CONNECTIONS or `opening`, else their own."""
    rows = Connection.objects.all()
    return rows if any(map(viewer.has_perm, (*SEES_CONNECTIONS, *opening))) else rows.own(viewer)


def visible(viewer: User, *opening: Capability) -> ConnectionQuerySet:
    """The same, with everything that a row shows."""
    return known_to(viewer, *opening).with_details()


def counted_for(viewer: User, prefix: str = "connections__") -> Q:
    """Which of the connections of a row count for `viewer`: those they may see."""
    sees_all = any(map(viewer.has_perm, SEES_CONNECTIONS))
    return Q(**{f"{prefix}isnull": False}) if sees_all else Q(**{f"{prefix}user": viewer})


def blocked(connection: Connection) -> str:
    """Which layer above stops `connection`, in words; empty when none does."""
    return in_short(connection.blocked_reason)


@dataclass(frozen=True)
class ConnectionRow:
    """One connection as `viewer` sees it; needs its details fetched (`with_details`)."""

    connection: Connection
    viewer: User

    @property
    def name(self) -> str:
        """The accessible name of the row's switch."""
        return f"{self.connection.host.name} on {self.connection.gateway.name} as {self.connection.user.email}"

    @property
    def may_open_gateway(self) -> bool:
        """Whether the page of its gateway is there for the viewer."""
        gateway = self.connection.gateway
        sees_all = any(map(self.viewer.has_perm, OPENS_GATEWAYS))
        within_reach = gateway.reach == Reach.EVERYONE or (self.is_own and getattr(self.connection, "reaches", False))
        return gateway.archived_at is None and (sees_all or within_reach)

    @property
    def calls_query(self) -> str:
        """What narrows the log to its calls."""
        return urlencode({"connection": self.connection.pk})

    @cached_property
    def tokens(self) -> list[Any]:
        """The credentials that have not been revoked, newest first."""
        return [token for token in self._all_tokens if not token.revoked_at]

    @property
    def _all_tokens(self) -> Iterable[Any]:
        manager: Manager[Any] = self.connection.tokens
        return manager.all()

    @cached_property
    def active(self) -> int:
        """How many credentials could be used now."""
        return sum(token.status == "active" for token in self.tokens)

    @property
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
        """The status in words; a connection without any credential left, or yet to be collected, says so."""
        if self.status != "expired":
            return self.status
        if any(token.status == "waiting" for token in self.tokens):
            return "new token not collected"
        return self.status if self.tokens else "no active token"

    @property
    def blocked(self) -> str:
        """What stops a connection that is switched on and holds a credential, in words."""
        return blocked(self.connection) if self.status == "blocked" else ""

    @property
    def needs_identity(self) -> bool:
        """Whether it works, but lacks its person's identity for a server of its gateway."""
        lacks = bool(getattr(self.connection, "needs_identity", False))
        return lacks and self.status == "active" and not self.blocked

    @property
    def prefix(self) -> str:
        """The first characters of the newest credential, revoked or not."""
        newest = next(iter(self.tokens or self._all_tokens), None)
        return newest.prefix if newest else ""

    @property
    def shows_tokens(self) -> bool:
        """Whether tokens are listed below: agents may hold several, apps have the one key."""
        return self.connection.is_live and self.connection.host.is_agent and bool(self.tokens or self.may_add_token)

    @property
    def is_own(self) -> bool:
        return self.connection.user_id == self.viewer.pk

    @property
    def may_revoke(self) -> bool:
        return self.connection.is_live and self.connection.may_be_revoked_by(self.viewer)

    @property
    def may_regenerate(self) -> bool:
        """Whether the viewer may give its credential another secret.

        An agent's secret acts as its owner, so it is shown to nobody else; an app's key is shown to nobody at all.
        """
        if self.connection.host.is_agent:
            return self.is_own
        return self.viewer.has_perm(Capability.MCP_CONNECTIONS_REVOKE)

    @property
    def offers_key(self) -> bool:
        """Whether the key button is there: the break-glass covers regeneration too."""
        return self.status == "active" and self.may_regenerate

    @property
    def may_ask_for_new(self) -> bool:
        """Whether the viewer may end the secrets of its tokens, which are another's, and have the owner collect new."""
        return not self.is_own and self.connection.is_live and self.connection.host.is_agent and self.may_end_tokens

    @property
    def offers_asking(self) -> bool:
        """Whether the row itself offers that, beside its trash button, and not only the line of each token."""
        return self.may_ask_for_new and bool(self.active) and self.viewer.has_perm(Capability.MCP_CONNECTIONS_REVOKE)

    @property
    def may_edit_tokens(self) -> bool:
        return self.is_own or self.viewer.has_perm(Capability.API_TOKENS_MANAGE)

    @property
    def may_end_tokens(self) -> bool:
        return self.may_edit_tokens or self.viewer.has_perm(Capability.MCP_CONNECTIONS_REVOKE)

    @property
    def may_add_token(self) -> bool:
        """A token always acts as the person who makes it, so only one's own connection takes another."""
        host = self.connection.host
        may_make_tokens = host.allow_enrolment or self.viewer.has_perm(Capability.API_TOKENS_MANAGE)
        return self.is_own and host.enabled and may_make_tokens


class ConnectionFilter(forms.Form):
    """The filters of a list of connections; unknown values are ignored."""

    q = forms.CharField(required=False)
    type = forms.ChoiceField(required=False, choices=[(name, name) for name in TYPES])
    status = forms.MultipleChoiceField(required=False, choices=[(name, name) for name in STATUSES])

    def narrow(self, rows: ConnectionQuerySet) -> ConnectionQuerySet:
        """The connections that match."""
        self.is_valid()
        if words := self.cleaned_data.get("q"):
            rows = rows.filter(
                holds("user__email", words)
                | holds("host__name", words)
                | holds("gateway__name", words)
                | _holding(prefixed(words))
            )
        if kind := TYPES.get(self.cleaned_data.get("type", "")):
            rows = rows.filter(host__kind=kind)
        if statuses := self.cleaned_data.get("status"):
            rows = rows.with_reach().annotate(usable=_usable()).filter(_any_of(statuses))
        return rows


def numbers(rows: ConnectionQuerySet) -> dict[str, int]:
    """How many of `rows` have each of STATUSES."""
    # Asked one after the other, as they take precedence.
    in_use = _tokens_in_use().order_by("connection").values("connection").distinct()
    stopped = RawSQL(*_stopped_above(), output_field=BooleanField())  # noqa: S611  (a constant)
    asked = {
        "revoked": Q(revoked_at__isnull=False),
        "disabled": Q(enabled=False),
        "expired": ~Q(pk__in=in_use),
        "blocked": stopped,
    }
    # As numbers, which take less to group by than words.
    told = (When(which, then=Value(STATUSES.index(status))) for status, which in asked.items())
    status = Case(*told, default=Value(STATUSES.index("active")))
    found: Any = rows.order_by().prefetch_related(None).annotate(told=status)
    sql, parameters = found.values_list("told").query.sql_with_params()
    with database.cursor() as cursor:
        cursor.execute(NUMBERS.format(rows=sql), parameters)
        counted = dict(cursor.fetchall())
    return {status: counted.get(n, 0) for n, status in enumerate(STATUSES)}


@cache
def _stopped_above() -> tuple[str, tuple[Any, ...]]:
    """What `stopped_above` is in SQL: it says the same every time, and to write it takes longer than to ask."""
    query = Connection.objects.filter(stopped_above()).query
    sql, parameters = query.get_compiler(DEFAULT_DB_ALIAS).compile(query.where)
    return sql, tuple(parameters)


def _holding(credentials: Q) -> Q:
    """The connections that hold one of these credentials, if any are asked for."""
    return Q(pk__in=Token.objects.filter(credentials).values("connection")) if credentials else Q()


def _usable() -> Exists:
    """Whether a connection holds a credential that could be used now."""
    return Exists(_tokens_in_use().filter(connection=OuterRef("pk")))


def _tokens_in_use() -> Any:
    """The credentials that could be used now: those that are neither revoked nor expired."""
    tokens: Any = Connection._meta.get_field("tokens").related_model
    unexpired = Q(expires_at=None) | Q(expires_at__gt=timezone.now())
    return tokens.objects.filter(unexpired, revoked_at=None, digest__isnull=False)


def _any_of(statuses: Iterable[str]) -> Q:
    live = Q(revoked_at=None)
    means = {
        "active": live & Q(enabled=True, usable=True) & UNBLOCKED,
        "blocked": live & Q(enabled=True, usable=True) & ~UNBLOCKED,
        "disabled": live & Q(enabled=False),
        "expired": live & Q(enabled=True, usable=False),
        "revoked": ~live,
    }
    return reduce(or_, (means[status] for status in statuses))
