"""The rows that decide who may use which gateways, read once for a report.

The rules are those of the deciding statement (proxy/access/query.sql); tests/access compares both in random worlds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from django.db.models import Q, QuerySet, StringAgg, TextField, Value
from django.db.models.functions import Cast, Lower

from accounts.models import Team, User
from connections.models import uses_every_gateway
from gateways.models import Gateway, GatewayGrant, Reach, ToolGrant, ToolsGiven

type Pair = tuple[UUID, UUID]


class GatewayFacts(NamedTuple):
    """A gateway; `gives_all` is False if only granted tools can be used there."""

    pk: UUID
    name: str
    for_everyone: bool
    gives_all: bool


@dataclass(frozen=True)
class Facts:
    """The people and gateways, with the teams, roles and grants between them.

    `people` are those who may use anything at all, by e-mail address. `opened` are pairs of person and gateway,
    `tool_grants` triples of tool set, team and person; None and None is everybody.
    """

    people: Mapping[UUID, str]
    gateways: tuple[GatewayFacts, ...]
    open_to: Mapping[UUID, frozenset[UUID]]  # The teams of each gateway that is for teams.
    teams_of: Mapping[UUID, frozenset[UUID]]
    use_all: frozenset[UUID]
    opened: frozenset[Pair]
    tool_grants: tuple[tuple[UUID, UUID | None, UUID | None], ...] = field(default=())


def people_who_use() -> QuerySet[User]:
    """Return the active people whose role uses gateways."""
    return User.objects.filter(Q(role=None) | Q(role__uses_gateways=True), is_active=True)


def facts_now(people: QuerySet[User] | None = None) -> Facts:
    """Return the facts about those of `people` (None: all) who use gateways."""
    using = people_who_use()
    if people is not None:
        using = using.filter(pk__in=people.order_by().values("pk"))
    gateways = tuple(
        GatewayFacts(pk, name, reach == Reach.EVERYONE, given == ToolsGiven.ALL)
        for pk, name, reach, given in Gateway.objects.live()
        .order_by(Lower("name"), "pk")
        .values_list("pk", "name", "reach", "tools_given")
    )
    return Facts(
        dict(using.order_by("email").values_list("pk", "email")),
        gateways,
        _grouped(Gateway.teams.through.objects.filter(gateway__reach=Reach.TEAMS).values_list("gateway_id", "team_id")),
        _teams_of(None if people is None else using),
        frozenset(uses_every_gateway().values_list("pk", flat=True)),
        frozenset(GatewayGrant.objects.live().order_by().values_list("user_id", "gateway_id")),
        tuple(ToolGrant.objects.live().order_by().values_list("tool_set_id", "team_id", "user_id")),
    )


def _teams_of(people: QuerySet[User] | None) -> Mapping[UUID, frozenset[UUID]]:
    """Return the teams of these people (None: all). Few combinations of teams occur, so each is read once."""
    rows: Any = Team.users.through.objects.order_by().values("user_id")
    if people is not None:
        rows = rows.filter(user__in=people.order_by().values("pk"))
    teams = StringAgg(Cast("team_id", TextField()), Value(" "), order_by="team_id")
    combinations: dict[str, frozenset[UUID]] = {}
    found = {}
    for person, words in rows.annotate(teams=teams).values_list("user_id", "teams"):
        if words not in combinations:
            combinations[words] = frozenset(map(UUID, words.split()))
        found[person] = combinations[words]
    return found


def _grouped(pairs: Iterable[Pair]) -> Mapping[UUID, frozenset[UUID]]:
    found = defaultdict[UUID, set[UUID]](set)
    for one, other in pairs:
        found[one].add(other)
    return {one: frozenset(others) for one, others in found.items()}
