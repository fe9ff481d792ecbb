"""Functions that return the rows that were in force at `moment`; a `moment` of None means now."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Q, QuerySet

from access.models.history import Fact, FactKind, lasted
from accounts.models import Team
from connections.models import Connection
from gateways.models import Assignment, Feature, FeatureQuerySet, GatewayGrant, ToolGrant
from servers.models import Identity
from tokens.models import Token, TokenKind
from tokens.rows import of_status


def connections_at(moment: datetime | None) -> QuerySet[Connection]:
    if moment is None:
        return Connection.objects.live()
    return Connection.objects.filter(lasted(moment, "connected_at", "revoked_at"))


def tokens_at(moment: datetime | None) -> QuerySet[Token]:
    tokens = Token.objects.filter(kind=TokenKind.ACCESS)
    if moment is None:
        return tokens.filter(of_status("active"), connection__revoked_at=None)
    return tokens.filter(lasted(moment, "created_at", "revoked_at", "expires_at", "connection__revoked_at"))


def identities_at(moment: datetime | None) -> QuerySet[Identity]:
    if moment is None:
        return Identity.objects.live()
    return Identity.objects.filter(lasted(moment, "created_at", "revoked_at"))


def assignments_at(moment: datetime | None) -> Any:
    if moment is None:
        return Assignment.objects.placed()
    return Assignment.objects.filter(lasted(moment, "created_at", "removed_at", "server__archived_at"))


def tools_at(moment: datetime | None) -> FeatureQuerySet:
    """Return the tools that clients can call; for a past `moment`, all tools offered then, even disabled ones."""
    tools = Feature.objects.tools()
    if moment is None:
        return tools.callable()
    placed = ("assignment__removed_at", "assignment__server__archived_at")
    # Disabled tools are included, because no record says which tools were disabled.
    return tools.filter(lasted(moment, "first_seen_at", "missing_since", *placed), assignment__created_at__lte=moment)


def gateway_grants_at(moment: datetime | None) -> QuerySet[GatewayGrant]:
    return GatewayGrant.objects.live() if moment is None else GatewayGrant.objects.filter(_given(moment))


def tool_grants_at(moment: datetime | None) -> QuerySet[ToolGrant]:
    return ToolGrant.objects.live() if moment is None else ToolGrant.objects.filter(_given(moment))


def _given(moment: datetime) -> Q:
    return lasted(moment, "given_at", "ends_at", "ended_at")


def members_at(moment: datetime | None, teams: Sequence[UUID]) -> QuerySet[Any, Any]:
    """Return the ids of the people in at least one of `teams` at `moment`, or now if `moment` is None."""
    if moment is None:
        return Team.users.through.objects.filter(team__in=teams).values("user")
    return Fact.objects.at(moment).filter(kind=FactKind.MEMBER, object__in=teams).order_by().values("subject")
