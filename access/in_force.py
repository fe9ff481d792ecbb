"""The database rows from which a report computes who may use which gateways. A report reads them once.

This module must give the same access as proxy/access/query.sql, the query that allows or refuses calls. tests/access
compares the two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

from django.contrib.postgres.aggregates import ArrayAgg
from django.db.models import Q, QuerySet
from django.db.models.functions import Coalesce, Lower

from access.as_of import gateway_grants_at, tool_grants_at
from access.models.history import Fact, FactKind, lasted
from accounts.models import Team, User
from connections.models import uses_every_gateway
from gateways.models import Gateway, Reach, ToolsGiven

type Pair = tuple[UUID, UUID]


class GatewayInForce(NamedTuple):
    """A gateway; `gives_all` is False if only granted tools can be used on it."""

    pk: UUID
    name: str
    for_everyone: bool
    gives_all: bool


@dataclass(frozen=True)
class InForce:
    """People, gateways, and the teams, roles and grants that give people access."""

    # E-mail addresses of the active people whose role uses gateways, by id, sorted by address.
    people: Mapping[UUID, str]
    gateways: tuple[GatewayInForce, ...]
    open_to: Mapping[UUID, frozenset[UUID]]  # The teams of each gateway that is open to teams only.
    teams_of: Mapping[UUID, frozenset[UUID]]
    use_all: frozenset[UUID]  # People who may use every gateway.
    opened: frozenset[Pair]  # A person, and a gateway for which the person has a grant.
    # Tool set, team and person. In a grant to everybody, team and person are None.
    tool_grants: tuple[tuple[UUID, UUID | None, UUID | None], ...]
    moment: datetime | None = None  # The end of a past day, or None for now.


def people_who_use() -> QuerySet[User]:
    """Return the active people, except those whose role forbids the use of gateways."""
    return User.objects.filter(Q(role=None) | Q(role__uses_gateways=True), is_active=True)


def in_force_now(people: QuerySet[User] | None = None) -> InForce:
    """Return who may use which gateways now. `people` limits the result to these people; None means all."""
    using = people_who_use()
    if people is not None:
        using = using.filter(pk__in=people.order_by().values("pk"))
    gateways = tuple(
        GatewayInForce(pk, name, reach == Reach.EVERYONE, given == ToolsGiven.ALL)
        for pk, name, reach, given in Gateway.objects.live()
        .order_by(Lower("name"), "pk")
        .values_list("pk", "name", "reach", "tools_given")
    )
    return InForce(
        dict(using.order_by("email").values_list("pk", "email")),
        gateways,
        _grouped(Gateway.teams.through.objects.filter(gateway__reach=Reach.TEAMS).values_list("gateway_id", "team_id")),
        _teams_of(None if people is None else using),
        frozenset(uses_every_gateway().values_list("pk", flat=True)),
        frozenset(gateway_grants_at(None).order_by().values_list("user_id", "gateway_id")),
        tuple(tool_grants_at(None).order_by().values_list("tool_set_id", "team_id", "user_id")),
    )


def _teams_of(people: QuerySet[User] | None) -> Mapping[UUID, frozenset[UUID]]:
    """Return the teams of each of `people`, or of everybody if `people` is None."""
    rows: Any = Team.users.through.objects.all()
    if people is not None:
        rows = rows.filter(user__in=people.order_by().values("pk"))
    return _combined(rows, "user_id", "team_id")


def _combined(rows: Any, person: str, team: str) -> Mapping[UUID, frozenset[UUID]]:
    """Return the teams of each person. People with the same teams share one set."""
    found, none = dict[UUID, frozenset[UUID]](), frozenset[UUID]()
    for pk, people in rows.order_by().values(team).annotate(people=ArrayAgg(person)).values_list(team, "people"):
        joined = cache(frozenset({pk}).union)
        found |= {one: joined(found.get(one, none)) for one in people}
    return found


def _grouped(pairs: Iterable[Pair]) -> Mapping[UUID, frozenset[UUID]]:
    found = defaultdict[UUID, set[UUID]](set)
    for one, other in pairs:
        found[one].add(other)
    return {one: frozenset(others) for one, others in found.items()}


def without_new(known: InForce, limit: datetime) -> InForce:
    """Return a copy of `known` without the access that began after `limit`. `known` must be the present access."""
    true = History(Q(began_at__gt=limit, ended_at=None))
    teams, everyone, without = (
        true.pairs(FactKind.OPEN_TO),
        true.of(FactKind.EVERYONE),
        cache(frozenset[UUID].difference),
    )
    added = User.objects.filter(role__in=true.of(FactKind.USES_ALL)).values_list("pk", flat=True)
    joined = {*User.objects.filter(date_joined__gt=limit).values_list("pk", flat=True)}
    grants = gateway_grants_at(None).filter(given_at__gt=limit).order_by().values_list("user_id", "gateway_id")
    # A grant that extends one of these grants is not new.
    extended = gateway_grants_at(limit).order_by().values_list("user_id", "gateway_id")
    given = {*tool_grants_at(limit).order_by().values_list("tool_set_id", "team_id", "user_id")}
    # Before a gateway was limited to granted tools, everybody on it could use all its tools. So none of them is new.
    limited = true.of(FactKind.ONLY_GRANTED)
    none = frozenset[UUID]()
    return replace(
        known,
        people={pk: email for pk, email in known.people.items() if pk not in joined},
        gateways=tuple(
            one._replace(
                for_everyone=one.for_everyone and one.pk not in everyone, gives_all=one.gives_all or one.pk in limited
            )
            for one in known.gateways
        ),
        open_to={pk: old - teams.get(pk, none) for pk, old in known.open_to.items()},
        teams_of={pk: without(old, true.teams_of.get(pk, none)) for pk, old in known.teams_of.items()},
        use_all=known.use_all - {*added} - true.of(FactKind.ROLE) - true.of(FactKind.SUPERUSER),
        opened=known.opened - ({*grants} - {*extended}),
        tool_grants=tuple(one for one in known.tool_grants if one in given),
    )


# Access on a past day, read from the history.


def in_force_at(moment: datetime, people: QuerySet[User] | None = None) -> InForce:
    """Return who could use which gateways at `moment`. `people` limits the result to these people; None means all.

    Gateways are included even if they were disabled.
    """
    true = History(lasted(moment, "began_at", "ended_at"))
    known = (User.objects.all() if people is None else people).filter(date_joined__lte=moment)
    using = {pk: email for pk, email in known.order_by("email").values_list("pk", "email") if true.uses_gateways(pk)}
    everyone, limited = true.of(FactKind.EVERYONE), true.of(FactKind.ONLY_GRANTED)
    gateways = Gateway.objects.filter(lasted(moment, "created_at", "archived_at")).order_by(Lower("name"), "pk")
    grants = tool_grants_at(moment).exclude(everyone=False, team=None, removed_team=None, user=None).order_by()
    return InForce(
        using,
        tuple(
            GatewayInForce(pk, name, pk in everyone, pk not in limited)
            for pk, name in gateways.values_list("pk", "name")
        ),
        {pk: teams for pk, teams in true.pairs(FactKind.OPEN_TO).items() if pk not in everyone},
        true.teams_of,
        frozenset(filter(true.uses_all, using)),
        frozenset(gateway_grants_at(moment).order_by().values_list("user_id", "gateway_id")),
        tuple(grants.values_list("tool_set_id", Coalesce("team_id", "removed_team"), "user_id")),
        moment,
    )


class History:
    """The facts of the access history that match the condition `where`, grouped by their kind."""

    def __init__(self, where: Q) -> None:
        self._facts = defaultdict[str, list[tuple[UUID, UUID | None]]](list)
        facts, members = Fact.objects.filter(where).order_by(), Q(kind=FactKind.MEMBER)
        for kind, subject, other in facts.exclude(members).values_list("kind", "subject", "object"):
            self._facts[kind].append((subject, other))
        self.teams_of = _combined(facts.filter(members), "subject", "object")
        self._roles = dict(self._facts[FactKind.ROLE])
        self._away, self._superusers = self.of(FactKind.INACTIVE), self.of(FactKind.SUPERUSER)
        self._looking, self._using_all = self.of(FactKind.ONLY_LOOKS), self.of(FactKind.USES_ALL)

    def of(self, kind: str) -> frozenset[UUID]:
        return frozenset(subject for subject, _ in self._facts[kind])

    def pairs(self, kind: str) -> Mapping[UUID, frozenset[UUID]]:
        return _grouped((subject, other) for subject, other in self._facts[kind] if other)

    def uses_gateways(self, person: UUID) -> bool:
        return person not in self._away and self._roles.get(person) not in self._looking

    def uses_all(self, person: UUID) -> bool:
        return person in self._superusers or self._roles.get(person) in self._using_all
