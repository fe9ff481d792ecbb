"""The tokens a person may see and change, and the servers a token reaches; shared by pages and REST."""

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

# Capabilities for other people's tokens; one's own need none. No capability gives access to another person's secret.
EDITING = Capability.API_TOKENS_MANAGE
ENDING = (Capability.API_TOKENS_MANAGE, Capability.MCP_CONNECTIONS_REVOKE)
SEES = (*ENDING, Capability.MCP_CONNECTIONS_READ)  # A connection's row shows its tokens' names and prefixes.

NOTICES = 3  # Waiting tokens shown, as in the template, before "more".
STATUSES = ("active", "waiting", "expired", "revoked", "all")


def tokens_visible_to(viewer: User) -> TokenQuerySet:
    """Return the tokens `viewer` may see, without the keys of apps."""
    tokens = Token.objects.filter(kind=TokenKind.ACCESS)
    return tokens if any(map(viewer.has_perm, SEES)) else tokens.filter(connection__user=viewer)


def hosts_for(viewer: User) -> HostQuerySet:
    """Return the agents `viewer` may create a token for: all, or those that allow enrolment."""
    agents = Host.objects.live().filter(kind=HostKind.TOKEN, enabled=True)
    return agents if viewer.has_perm(Capability.API_TOKENS_MANAGE) else agents.filter(allow_enrolment=True)


def may_create(viewer: User) -> bool:
    """Return whether `viewer` may create a token, for an existing agent or one they may add."""
    return viewer.has_perm(Capability.API_TOKENS_MANAGE) or hosts_for(viewer).exists()


def foremost_waiting(owner: User) -> list[Token]:
    """Return up to NOTICES + 1 tokens whose new secret `owner` may collect, the oldest request first."""
    waiting = Token.objects.filter(of_status("waiting"), connection__user=owner)
    asked = waiting.select_related("connection__host", "connection__gateway", "asked_by").order_by("asked_at")
    return list(asked[: NOTICES + 1])


def of_status(status: str) -> Q:
    """Match the tokens that now have one of STATUSES."""
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
    """Prefetch everything shown of tokens, except the servers of tokens that reach all."""
    offered = Assignment.objects.placed()
    narrowed = TokenScope.objects.filter(assignment__in=offered).select_related("assignment__server")
    connections = Connection.objects.with_reach().select_related("host", "gateway", "user")
    return tokens.prefetch_related(Prefetch("connection", connections), Prefetch("scopes", narrowed))


def with_reach(tokens: TokenQuerySet) -> TokenQuerySet:
    """Prefetch everything shown of tokens, including all their servers."""
    offered = Assignment.objects.placed().select_related("server")
    return with_scope(tokens).prefetch_related(Prefetch("connection__gateway__assignments", offered))


def servers_of(token: Token) -> list[Server]:
    """Return the servers `token` now reaches, each once; needs `with_reach`, or `with_scope` for a narrowed token."""
    if token.scope_all:
        assignments = list(token.connection.gateway.assignments.all())
    else:
        assignments = [scope.assignment for scope in token.scopes.all()]
    return list({assignment.server_id: assignment.server for assignment in assignments}.values())
