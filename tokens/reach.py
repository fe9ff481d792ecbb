"""Which servers a token reaches, told without asking the database once per token."""

from __future__ import annotations

from django.db.models import Prefetch

from gateways.models import Assignment
from servers.models import Server
from tokens.models import Token, TokenQuerySet, TokenScope


def with_reach(tokens: TokenQuerySet) -> TokenQuerySet:
    """Tokens with everything that is told of them, their servers included."""
    offered = Assignment.objects.live().filter(server__archived_at=None).select_related("server")
    narrowed = TokenScope.objects.filter(assignment__in=offered).select_related("assignment__server")
    return tokens.select_related("connection__host", "connection__gateway", "connection__user").prefetch_related(
        Prefetch("connection__gateway__assignments", offered), Prefetch("scopes", narrowed)
    )


def servers_of(token: Token) -> list[Server]:
    """The servers `token` reaches at present, each once; needs `with_reach`."""
    if token.scope_all:
        assignments = list(token.connection.gateway.assignments.all())
    else:
        assignments = [scope.assignment for scope in token.scopes.all()]
    return list({assignment.server_id: assignment.server for assignment in assignments}.values())
