"""Which tokens a person may see and change, and which servers a token includes; shared by pages and REST."""

from __future__ import annotations

from django.db.models import Prefetch, Q
from django.utils import timezone

from accounts.models import User
from capabilities import Capability
from connections.models import Connection
from gateways.models import Assignment
from hosts.models import Host, HostKind, HostQuerySet
from servers.models import Server
from tokens.models import Token, TokenKind, TokenQuerySet, TokenScope

# What it takes for another person's token; one's own are always one's own. No capability opens another's secret.
EDITING = Capability.API_TOKENS_MANAGE
ENDING = (Capability.API_TOKENS_MANAGE, Capability.MCP_CONNECTIONS_REVOKE)
SEES = (*ENDING, Capability.MCP_CONNECTIONS_READ)  # A token's name and prefix stand in its connection's row.

NOTICES = 3  # Tokens that wait, as the template knows; then it says that there are more.
STATUSES = ("active", "waiting", "expired", "revoked", "all")


def known_to(viewer: User) -> TokenQuerySet:
    """The tokens `viewer` may know of; keys of apps are none."""
    tokens = Token.objects.filter(kind=TokenKind.ACCESS)
    return tokens if any(map(viewer.has_perm, SEES)) else tokens.filter(connection__user=viewer)


def hosts_for(viewer: User) -> HostQuerySet:
    """The agents `viewer` may make a token for: all, or those that take enrolment."""
    agents = Host.objects.live().filter(kind=HostKind.TOKEN, enabled=True)
    return agents if viewer.has_perm(Capability.API_TOKENS_MANAGE) else agents.filter(allow_enrolment=True)


def may_create(viewer: User) -> bool:
    """Whether `viewer` may make a token: for an agent there is, or for one they add."""
    return viewer.has_perm(Capability.API_TOKENS_MANAGE) or hosts_for(viewer).exists()


def foremost_waiting(owner: User) -> list[Token]:
    """The tokens whose new secret `owner` may collect, those asked for first at the top: those that are told, and one
    more when there are more."""
    waiting = Token.objects.filter(of_status("waiting"), connection__user=owner)
    asked = waiting.select_related("connection__host", "connection__gateway", "asked_by").order_by("asked_at")
    return list(asked[: NOTICES + 1])


def of_status(status: str) -> Q:
    """The tokens of one of STATUSES at this moment."""
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
    """Tokens with everything that is told of them; of those that reach all servers, the servers are left out."""
    offered = Assignment.objects.placed()
    narrowed = TokenScope.objects.filter(assignment__in=offered).select_related("assignment__server")
    connections = Connection.objects.with_reach().select_related("host", "gateway", "user")
    return tokens.prefetch_related(Prefetch("connection", connections), Prefetch("scopes", narrowed))


def with_reach(tokens: TokenQuerySet) -> TokenQuerySet:
    """Tokens with all related rows for display, including their servers."""
    offered = Assignment.objects.placed().select_related("server")
    return with_scope(tokens).prefetch_related(Prefetch("connection__gateway__assignments", offered))


def servers_of(token: Token) -> list[Server]:
    """The servers `token` reaches at present, each once; needs `with_reach`, or `with_scope` for a narrowed one."""
    if token.scope_all:
        assignments = list(token.connection.gateway.assignments.all())
    else:
        assignments = [scope.assignment for scope in token.scopes.all()]
    return list({assignment.server_id: assignment.server for assignment in assignments}.values())
