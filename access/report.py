"""The access report: who may use which gateways and tools, with filters, counts and sort orders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from itertools import batched
from typing import Any
from uuid import UUID

from django.utils import timezone

from access.as_of import assignments_at, connections_at, members_at, tools_at
from access.in_force import InForce, Pair, in_force_at, in_force_now, without_new
from access.lines import AccessLine, Key, LineLoader
from access.permitted import PermittedUnits
from accounts.models import User
from accounts.people_forms import matching_words
from connections.models import Connection
from gateways.models import Feature, FeatureQuerySet
from ui.forms import holds

MOST_SORTED = 1_000  # Longer reports are not sorted by start or use, because that requires loading all lines.
LOADED_AT_ONCE = 500
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
SORTS = {"since": "since", "used": "last_used_at"}


@dataclass(frozen=True)
class Asked:
    """The filters of a report. An empty list of ids does not filter, except that an empty `hosts` matches nothing."""

    q: str = ""  # Text in a person's name or address, or in a gateway's name.
    people: Sequence[UUID] = ()
    teams: Sequence[UUID] = ()
    gateways: Sequence[UUID] = ()
    servers: Sequence[UUID] = ()
    hosts: Sequence[UUID] | None = None  # An empty list (no agent has the name) matches nothing.
    tool: str = ""  # Text in the exposed name of a tool.
    feature: Feature | None = None  # This tool of its server, on all gateways.
    unused: int = 0  # Days.
    on: date | None = None  # Show the access at the end of this day (UTC).


@dataclass
class AccessReport:
    """The lines of the access report that match the filters in `asked`.

    The report is a sequence that can be sliced. It loads lines only when they are needed. By default, the lines are
    sorted by person, gateway and tool.
    """

    asked: Asked = field(default_factory=Asked)
    # "-person", or one of SORTS with or without "-". More than MOST_SORTED lines stay sorted by person.
    sort: str = ""
    ordered = True

    @cached_property
    def known(self) -> InForce:
        return in_force_at(self.moment, self._people()) if self.moment else in_force_now(self._people())

    @property
    def moment(self) -> datetime | None:
        """The end of the requested past day; None for the present access."""
        return end_of(self.asked.on) if self.asked.on and self.asked.on < timezone.now().date() else None

    @cached_property
    def units(self) -> PermittedUnits:
        return PermittedUnits(self.known, self._features())

    def count(self) -> int:
        return sum(bits.bit_count() for _, bits in self._found)

    def __len__(self) -> int:
        return self.count()

    def __getitem__(self, asked: slice) -> list[AccessLine]:
        start, stop = asked.start or 0, self.count() if asked.stop is None else asked.stop
        if self.is_sortable and self.sort.removeprefix("-") in SORTS:
            return self._sorted[start:stop]
        return LineLoader(self.known, [*self._keys(start, stop)]).lines()

    def __iter__(self) -> Iterator[AccessLine]:
        for keys in batched(self._keys(0, self.count()), LOADED_AT_ONCE):
            yield from LineLoader(self.known, keys).lines()

    @property
    def is_sortable(self) -> bool:
        """True if there are few enough lines to sort them by the start of the access, or by the last use."""
        return self.count() <= MOST_SORTED

    @cached_property
    def _sorted(self) -> list[AccessLine]:
        name, is_descending = SORTS[self.sort.removeprefix("-")], self.sort.startswith("-")
        return sorted(self, key=lambda line: getattr(line, name) or LONG_AGO, reverse=is_descending)

    def _keys(self, start: int, stop: int) -> Iterator[Key]:
        """Yield the keys of the lines from `start` up to, but not including, `stop`."""
        at = 0
        for person, bits in self._found:
            if (after := at + bits.bit_count()) > start:
                for number, unit in enumerate(self.units.in_bits(bits), at):
                    if start <= number < stop:
                        yield person, unit.gateway, unit.feature
            if (at := after) >= stop:
                return

    @cached_property
    def _found(self) -> list[tuple[UUID, int]]:
        """The people who have lines, in the order of the report.

        Each item has the id of a person and, as bits, the access units of the person's lines.
        """
        where, used = self._where(), self._unused()
        found = []
        for person in self.known.people:
            asked = where(person)
            bits = self.units.of(person) & asked if asked else 0
            if bits and (bits := used(person, bits)):
                found.append((person, bits))
        return found[::-1] if self.sort == "-person" else found

    # The filters.

    def _people(self) -> Any:
        """Return the people that the filters select; None for everybody."""
        if not (self.asked.people or self.asked.teams):
            return None
        people: Any = User.objects.all()
        if self.asked.people:
            people = people.filter(pk__in=self.asked.people)
        if self.asked.teams:
            people = people.filter(pk__in=members_at(self.moment, self.asked.teams))
        return people

    def _features(self) -> FeatureQuerySet | None:
        if not (self.asked.tool or self.asked.feature):
            return None
        tools = tools_at(self.moment)
        if self.asked.tool:
            tools = tools.filter(holds("exposed_name", self.asked.tool))
        if one := self.asked.feature:
            tools = tools.filter(assignment__server=one.assignment.server_id, name=one.name)
        if self.asked.servers:
            tools = tools.filter(assignment__server__in=self.asked.servers)
        return tools

    def _where(self) -> Any:
        """Return a function that takes a person's id and returns the access units that match the filters, as bits."""
        asked, units = self.asked, self.units
        everywhere = units.at(each.pk for each in self.known.gateways)
        allowed = units.at(asked.gateways) if asked.gateways else everywhere
        if asked.servers:
            placed = assignments_at(self.moment).filter(server__in=asked.servers)
            allowed &= units.at(placed.order_by().values_list("gateway", flat=True))
        by_agent = None if asked.hosts is None else units.by_person(self._connected(asked.hosts))
        named = units.at(each.pk for each in self.known.gateways if asked.q.casefold() in each.name.casefold())
        known = {*User.objects.filter(matching_words(asked.q)).values_list("pk", flat=True)} if asked.q else set()

        def narrowed(person: UUID) -> int:
            bits = allowed if by_agent is None else allowed & by_agent.get(person, 0)
            return bits if not asked.q or person in known else bits & named

        return narrowed

    def _connected(self, hosts: Sequence[UUID]) -> Iterable[Pair]:
        rows = connections_at(self.moment).filter(host__in=hosts)
        return rows.order_by().values_list("user_id", "gateway_id")

    def _unused(self) -> Any:
        """Return a function that takes a person's id and access units, and returns the unused units (all as bits).

        A unit is unused if the person has not used its gateway in the last `asked.unused` days. If the person got the
        unit during those days, it counts as unused only if the person had used the gateway before those days. All units
        are returned if `asked.unused` is not set, or if the report is about a past moment.
        """
        if not self.asked.unused or self.moment:
            return lambda _, bits: bits
        limit = timezone.now() - timedelta(days=self.asked.unused)
        rows = Connection.objects.order_by().values_list("user_id", "gateway_id")
        lately = self.units.by_person(rows.filter(last_used_at__gte=limit))
        before = self.units.by_person(rows.filter(last_used_at__lt=limit))
        old = PermittedUnits(without_new(self.known, limit), self._features())

        def left(person: UUID, bits: int) -> int:
            had = old.of(person) if person in old.known.people else 0
            return bits & ~lately.get(person, 0) & (had | before.get(person, 0))

        return left


def end_of(day: date) -> datetime:
    """Return the last moment of a day in UTC."""
    return datetime.combine(day, time.max, UTC)
