"""The gateways or tools that each person may use, as bits of an integer, which are fast to count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import groupby
from operator import or_
from typing import NamedTuple
from uuid import UUID

from django.db import connection

from access.in_force import InForce, Pair
from gateways.models import FeatureQuerySet

NO_TEAMS = frozenset[UUID]()
# The SQL statement that decides calls uses gateways_features_of() too.
_IN_SETS = """
SELECT s.tool_set_id, s.feature_id FROM gateways_features_of(%s::uuid[]) s JOIN ({tools}) f (id) ON f.id = s.feature_id
"""


class AccessUnit(NamedTuple):
    """A gateway or, in a report about tools, a tool on a gateway.

    A set of units is an integer with one bit for each unit.
    """

    gateway: UUID
    feature: UUID | None = None


@dataclass
class GivenUnits:
    """The access units (AccessUnit) given to everybody, to teams and to people, as bits."""

    everyone: int = 0
    teams: dict[UUID, int] = field(default_factory=lambda: defaultdict(int))
    people: dict[UUID, int] = field(default_factory=lambda: defaultdict(int))
    _of_teams: dict[frozenset[UUID], int] = field(default_factory=dict)

    def to(self, person: UUID, teams: frozenset[UUID]) -> int:
        """Return, as bits, all access units given to the person, to any of `teams`, or to everyone."""
        if teams not in self._of_teams:
            self._of_teams[teams] = reduce(or_, (self.teams.get(team, 0) for team in teams), self.everyone)
        return self._of_teams[teams] | self.people.get(person, 0)


class PermittedUnits:
    """The access units (AccessUnit) that each person may use.

    Without `features`, each gateway is a unit. With `features`, each of these features is a unit.
    """

    def __init__(self, known: InForce, features: FeatureQuerySet | None = None) -> None:
        self.known = known
        self.units = _units(known, features)
        self._at: dict[UUID, int] = {}  # The bits of each gateway; they are consecutive.
        start = 0
        for gateway, units in groupby(self.units, lambda unit: unit.gateway):
            number = len([*units])
            self._at[gateway] = ((1 << number) - 1) << start
            start += number
        self._gateways = self._given_gateways()
        self._tools = None if features is None else self._given_tools(features)

    def of(self, person: UUID) -> int:
        """Return the bits of the access units (AccessUnit) that this person may use."""
        teams = self.known.teams_of.get(person, NO_TEAMS)
        bits = self._gateways.to(person, teams)
        return bits if self._tools is None else bits & self._tools.to(person, teams)

    def at(self, gateways: Iterable[UUID]) -> int:
        """Return all units of these gateways, as bits of an integer."""
        return sum(self._at[pk] for pk in {*gateways} if pk in self._at)

    def by_person(self, pairs: Iterable[Pair]) -> dict[UUID, int]:
        """Return a set of access units (AccessUnit) for each person, as bits.

        The set has all units of the gateways that `pairs` lists for the person.
        """
        found = defaultdict[UUID, int](int)
        for person, gateway in pairs:
            found[person] |= self._at.get(gateway, 0)
        return found

    def in_bits(self, bits: int) -> Iterator[AccessUnit]:
        """Yield the units whose bits are set in `bits`, from the lowest bit to the highest."""
        for number, bit in enumerate(reversed(f"{bits:b}")):
            if bit == "1":
                yield self.units[number]

    def _given_gateways(self) -> GivenUnits:
        known, given = self.known, GivenUnits(self.at(each.pk for each in self.known.gateways if each.for_everyone))
        for gateway, teams in known.open_to.items():
            for team in teams:
                given.teams[team] |= self._at.get(gateway, 0)
        given.people.update(self.by_person(known.opened))
        given.people.update(dict.fromkeys(known.use_all, (1 << len(self.units)) - 1))
        return given

    def _given_tools(self, features: FeatureQuerySet) -> GivenUnits:
        known, given = self.known, GivenUnits(self.at(each.pk for each in self.known.gateways if each.gives_all))
        bits = self._bits_of_sets({tool_set for tool_set, _, _ in known.tool_grants}, features)
        for tool_set, team, person in known.tool_grants:
            if team:
                given.teams[team] |= bits.get(tool_set, 0)
            elif person:
                given.people[person] |= bits.get(tool_set, 0)
            else:
                given.everyone |= bits.get(tool_set, 0)
        return given

    def _bits_of_sets(self, sets: Iterable[UUID], features: FeatureQuerySet) -> dict[UUID, int]:
        number = {unit.feature: n for n, unit in enumerate(self.units)}
        found = defaultdict[UUID, int](int)
        tools, parameters = features.order_by().values("pk").query.sql_with_params()
        with connection.cursor() as cursor:
            cursor.execute(_IN_SETS.format(tools=tools), [[*sets], *parameters])
            for tool_set, feature in cursor.fetchall():
                if feature in number:  # A tool of an archived gateway has no unit.
                    found[tool_set] |= 1 << number[feature]
        return found


def _units(known: InForce, features: FeatureQuerySet | None) -> Sequence[AccessUnit]:
    """Return the gateways, sorted by name.

    If `features` are given, return these features instead, sorted by gateway and name.
    """
    if features is None:
        return [AccessUnit(each.pk) for each in known.gateways]
    place = {each.pk: number for number, each in enumerate(known.gateways)}
    rows = features.order_by().values_list("assignment__gateway", "pk", "exposed_name")
    found = sorted((at, name, pk, gateway) for gateway, pk, name in rows if (at := place.get(gateway)) is not None)
    return [AccessUnit(gateway, pk) for _, _, pk, gateway in found]
