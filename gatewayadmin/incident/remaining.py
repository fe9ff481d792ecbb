"""The access that remains in an incident: what a subject can still use, or which gateways still offer a server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.db.models import Count, Q

from accounts.models import Team
from connections.given_tools import given_to
from connections.models import Connection, HostAtGateway
from connections.rows import ConnectionRow
from gatewayadmin.incident.subjects import Subject
from gateways.models import Assignment, Feature, FeatureQuerySet, GatewayGrant, ToolGrant, ToolsGiven


class Given(NamedTuple):
    """A grant on which access is based."""

    name: str  # "the gateway", or the name of the granted tool set.
    until: datetime | None  # None if the grant has no end.


class Reached(NamedTuple):
    """The remaining access through one connection.

    If the subject of the incident is a server, this is the remaining access through one gateway instead.
    """

    row: ConnectionRow | None  # None if the subject is a server.
    gateway: Any
    servers: list[str]
    tools: int
    grants: Sequence[Given] = ()


def remaining(subject: Subject, most: int | None = None) -> list[Reached]:
    """Return the remaining access: an item for each live connection of `subject`, at most `most` items.

    The item of a blocked connection has no tools. If the subject is a server, return an item for each gateway that
    still offers the server, and ignore `most`.
    """
    if subject.kind == "server":
        assignments = list(subject.assignments)
        return _of_server(assignments, _by_assignment(_offered(assignments)))
    return _of_connections(subject, subject.live(most))


def _offered(assignments: Sequence[Assignment]) -> FeatureQuerySet:
    return Feature.objects.tools().callable().filter(assignment__in=[one.pk for one in assignments])


def _by_assignment(features: FeatureQuerySet) -> Counter[UUID]:
    return Counter(dict(features.order_by().values_list("assignment").annotate(number=Count("*"))))


def _of_server(assignments: Sequence[Assignment], tools: Counter[UUID]) -> list[Reached]:
    by_gateway = {one.gateway: [each for each in assignments if each.gateway == one.gateway] for one in assignments}
    return [
        Reached(None, gateway, [each[0].server.name], sum(tools[one.pk] for one in each))
        for gateway, each in by_gateway.items()
    ]


def _of_connections(subject: Subject, connections: Sequence[Connection]) -> list[Reached]:
    assignments = list(subject.assignments.filter(gateway__in={one.gateway_id for one in connections}))
    offered = _offered(assignments)
    tools, grants, found = _by_assignment(offered), Grants.of(connections), []
    for connection in connections:
        row = ConnectionRow(connection, subject.viewer)
        # The old token may still work while its owner has not collected the new token.
        is_overlapping = row.status == "expired" and any(one.previous_works_until for one in row.tokens)
        works = row.status == "active" or (is_overlapping and not connection.blocked_by)
        mine = [one for one in assignments if one.gateway_id == connection.gateway_id and works]
        usable = _by_assignment(grants.usable(offered, connection)) if mine and grants.narrows(connection) else tools
        number = sum(usable[one.pk] for one in mine)
        names = [one.server.name for one in mine]
        found.append(Reached(row, connection.gateway, names, number, grants.behind(connection)))
    return found


@dataclass(frozen=True)
class Grants:
    """The grants and tool limits that apply to some connections. `of` reads them for all these connections at once."""

    gateways: dict[tuple[UUID, UUID], GatewayGrant]  # By gateway and user.
    tools: list[ToolGrant]
    members: set[tuple[UUID, UUID]]  # Team and user.
    limited: set[tuple[UUID, UUID]]  # Gateway and host.

    @classmethod
    def of(cls, connections: Sequence[Connection]) -> Grants:
        gateways, users = {one.gateway_id for one in connections}, {one.user_id for one in connections}
        opened = GatewayGrant.objects.live().filter(gateway__in=gateways, user__in=users)
        teams = Team.users.through.objects.filter(user__in=users).values_list("team_id", "user_id")
        limits = HostAtGateway.objects.filter(gateway__in=gateways, tool_set__isnull=False)
        members = {*teams}
        theirs = Q(everyone=True) | Q(user__in=users) | Q(team__in=[team for team, _ in members])
        given = ToolGrant.objects.live().filter(theirs, gateway__in=gateways, gateway__tools_given=ToolsGiven.GRANTED)
        return cls(
            {(one.gateway_id, one.user_id): one for one in opened},
            [*given.select_related("tool_set").order_by("tool_set__name")],
            members,
            {*limits.values_list("gateway_id", "host_id")},
        )

    def narrows(self, connection: Connection) -> bool:
        """True if the connection may use only some tools of its gateway."""
        is_limited = (connection.gateway_id, connection.host_id) in self.limited
        return is_limited or connection.gateway.tools_given != ToolsGiven.ALL

    def usable(self, offered: FeatureQuerySet, connection: Connection) -> FeatureQuerySet:
        return given_to(offered, [(connection.gateway_id, connection.user_id)], connection.host_id)

    def behind(self, connection: Connection) -> list[Given]:
        """Return the grants that give this connection access to its gateway, and to tool sets of this gateway."""
        opened = self.gateways.get((connection.gateway_id, connection.user_id))
        return [
            *([Given("the gateway", opened.ends_at)] if opened else []),
            *(Given(one.tool_set.name, one.ends_at) for one in self.tools if self._is_for(one, connection)),
        ]

    def _is_for(self, grant: ToolGrant, connection: Connection) -> bool:
        is_theirs = grant.everyone or grant.user_id == connection.user_id
        in_team = grant.team_id is not None and (grant.team_id, connection.user_id) in self.members
        return grant.gateway_id == connection.gateway_id and (is_theirs or in_team)
