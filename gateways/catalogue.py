"""The tools of all servers that somebody may see: one entry for each tool of a server, on whatever gateways it is."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from itertools import takewhile
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection
from django.db.models import Count
from django.db.models.expressions import RawSQL
from django.utils import timezone

from accounts.models import User
from auditlog.models import Call
from auditlog.ranges import STRETCHES
from auditlog.rollups.reading import Book, array, book
from auditlog.rollups.schema import DAYS, OF_TOOLS, TOOL_CALLS
from capabilities import Capability
from gateways.models import Assignment, Feature, FeatureQuerySet, Gateway, State
from gateways.tool_views import NEW_FOR, FeatureRow
from servers.models import Server, ServerQuerySet
from ui.matching import holds

SPAN = STRETCHES["30d"].label  # How far back calls are looked for, unless that takes too long.
PERIODS = {STRETCHES[name].label: STRETCHES[name].length for name in ("30d", "7d", "24h", "1h", "5m")}
# Where the roll-ups cannot tell, each call is read. What takes more than this is looked for over a shorter time.
MOST_COUNTED = 1_000  # Calls of each tool of a page; more are "1,000+".
MOST_CALLS = 60_000  # Calls to read to sort all tools by their number.
MOST_LOOKED_UP = 60_000  # Places to look into for the last call of each tool: one for each day.

# Each way to sort, as SQL; what was never used comes last, whichever way.
SORTS = {
    "tool": "lower(t.name) {way}",
    "server": "lower(s.name) {way}",
    "effect": "t.effect {way}",
    "gateways": "t.gateways {way}",
    "calls": "t.calls {way}",
    "last": "t.used {way} NULLS LAST",
}
BY_USE = ("calls", "last")
# There are few assignments and servers beside the features: the first are joined before, the others afterwards.
ENTRIES = """
WITH p (id, server_id, gateway_id) AS MATERIALIZED ({assignments})
SELECT t.server_id, t.name, t.calls, t.used, count(*) OVER ()
FROM (
    SELECT p.server_id, f.name, {told}
    FROM ({features}) AS f ({columns}) JOIN p ON p.id = f.assignment_id
    {joined}
    GROUP BY p.server_id, f.name
    {having}
) t
JOIN servers_server s ON s.id = t.server_id
ORDER BY {order}, lower(t.name), lower(s.name), t.server_id, t.name
OFFSET %s LIMIT %s
"""
# Where a tool of these is; each name is looked up in an index.
PLACES = """
SELECT f.id FROM unnest(%s::uuid[], %s::text[]) AS t (server_id, name)
JOIN gateways_assignment a ON a.server_id = t.server_id
JOIN gateways_feature f ON f.assignment_id = a.id AND f.kind = 'tool' AND f.name = t.name
"""
# PostgreSQL takes what was called, and what words find, for a few rows: it would compare each tool with each that was
# called, and sort all tools to group them.
HASHED = "SET LOCAL enable_mergejoin = off; SET LOCAL enable_sort = off"
HASHED_ALL = f"{HASHED}; SET LOCAL enable_nestloop = off"
# Of what these rows tell of: how often it was called, and when the last time. A float holds every number of calls there
# may be; a sum of bigint is numeric, and takes twice as long.
OF_PLACES = """
SELECT c.gateway_id, c.server_id, c.feature_name, sum(c.calls::float8) AS calls, max(c.last_at) AS last_at
FROM ({rows}) c GROUP BY 1, 2, 3
"""
CALLED = """
LEFT JOIN ({of_places}) u
ON u.gateway_id = p.gateway_id AND u.server_id = p.server_id AND u.feature_name = f.exposed_name::varchar(300)
"""
COUNTED = """
SELECT gateway_id, server_id, feature_name, 1 AS calls, created_at AS last_at FROM auditlog_call
WHERE created_at >= %s AND created_at < %s AND method = 'tools/call' AND feature_name <> '' AND server_id IS NOT NULL
"""
# In this order an index of the names gives the newest call, and none of a tool that was not called.
LAST = """
LEFT JOIN LATERAL (
    SELECT c.created_at AS last_at FROM auditlog_call c
    WHERE c.feature_name = f.exposed_name::varchar(300) AND c.feature_name <> '' AND c.method = 'tools/call'
        AND c.gateway_id = p.gateway_id AND c.server_id = p.server_id AND c.created_at >= %s AND c.created_at < %s
    ORDER BY c.created_at DESC LIMIT 1
) u ON true
"""
USE = """
SELECT t.n, count(c.created_at), max(c.created_at)
FROM unnest(%s::int[], %s::text[], %s::uuid[], %s::text[]) AS t (n, gateways, server_id, name)
CROSS JOIN LATERAL (
    SELECT c.created_at FROM auditlog_call c
    WHERE c.feature_name = t.name AND c.feature_name <> '' AND c.method = 'tools/call'
        AND c.gateway_id = ANY(t.gateways::uuid[]) AND c.server_id = t.server_id
        AND c.created_at >= %s AND c.created_at < %s
    ORDER BY c.created_at DESC LIMIT %s
) c GROUP BY t.n
"""


class Period(NamedTuple):
    """How far back calls are looked for, and how that is said."""

    label: str
    since: datetime

    @classmethod
    def of(cls, label: str) -> Period:
        return cls(label, timezone.now() - PERIODS[label])

    @classmethod
    def to_count_all(cls) -> Period:
        """The longest one of which all calls are counted in a moment."""
        # It takes PostgreSQL milliseconds to plan for the partitions of a month, so the day is asked about first.
        month, week, day, hour, minutes = map(cls.of, PERIODS)
        longer = [*takewhile(cls.is_soon_counted, (day, week, month))]
        return longer[-1] if longer else hour if hour.is_soon_counted() else minutes

    @classmethod
    def to_look_up(cls, tools: int) -> Period:
        """The longest one in which the last call of so many tools is found in a moment."""
        return cls.of(SPAN if tools * PERIODS[SPAN].days <= MOST_LOOKED_UP else "7 d")

    @property
    def bounds(self) -> list[datetime]:
        """From when to when calls are looked for: not in the partitions of days to come, whatever a clock says."""
        return [self.since, self.since + PERIODS[self.label] + timedelta(hours=1)]

    def is_soon_counted(self) -> bool:
        """Whether PostgreSQL expects to read few rows of the log for it."""
        plan = json.loads(Call.objects.filter(created_at__gte=self.since).order_by().explain(format="json"))
        return int(plan[0]["Plan"]["Plan Rows"]) <= MOST_CALLS


class Row(NamedTuple):
    """An entry before it is read: the tool, its use where that sorts, and how many entries there are in all."""

    server: UUID
    name: str
    calls: int
    used: datetime | None
    total: int


class Use(NamedTuple):
    """What tools are joined with as `u`, with its parameters: when each was called last, and maybe how often."""

    joined: str = ""
    parameters: Sequence[Any] = ()
    tells_calls: bool = False

    @classmethod
    def of(cls, rows: str, parameters: Sequence[Any]) -> Use:
        """What rows of single calls, or of many, tell of each tool."""
        return cls(CALLED.format(of_places=OF_PLACES.format(rows=rows)), parameters, tells_calls=True)


@dataclass
class Entry:
    """One tool of a server. `feature` is what the first of its gateways learnt of it, `places` what each has.

    What is told of its use is of `found`: the places that the list is narrowed to.
    """

    feature: Feature
    calls: int = 0
    are_more: bool = False
    last_used_at: datetime | None = None
    places: list[Feature] = field(default_factory=list)
    found: list[Feature] = field(default_factory=list)

    @property
    def server(self) -> Server:
        return self.feature.assignment.server

    @property
    def effect(self) -> str:
        """What its server claims it does; empty when it does not say."""
        return self.feature.claim

    @cached_property
    def gateways(self) -> list[Gateway]:
        """The gateways that offer it: nothing between them and the server keeps it from being called."""
        offering = {place.assignment.gateway.pk: place.assignment.gateway for place in self.places if is_offered(place)}
        return list(offering.values())

    @property
    def gateway_names(self) -> list[str]:
        return [gateway.name for gateway in self.gateways]

    @property
    def undecided(self) -> Feature | None:
        """Where its definition waits for a decision; None when it does nowhere."""
        waiting = (place for place in self.places if place.offered_hash and place.state != State.QUARANTINED)
        return next(waiting, None)

    @property
    def is_new(self) -> bool:
        """Whether it came lately, and after its server was assigned."""
        return FeatureRow(self.feature).is_new

    @property
    def quarantined(self) -> Feature | None:
        return next((place for place in self.places if place.state == State.QUARANTINED), None)


def is_offered(place: Feature) -> bool:
    """Whether its gateway offers it to somebody."""
    return place.assignment.gateway.enabled and place.enabled and not place.blocked


def servers_seen_by(viewer: User) -> ServerQuerySet:
    """The servers of these tools, by name."""
    of_tools = Feature.objects.tools_seen_by(viewer).order_by().values("assignment__server")
    return Server.objects.filter(pk__in=of_tools).order_by("name")


class Catalogue:
    """The tools `viewer` may see, narrowed and sorted; a sequence of entries of which slices are asked for.

    How often and when a tool was called is told to who may read the log; for others, and for who does not ask
    (`tells_use`), that is neither a way to sort nor to narrow, and `period` is None. It says over which time calls are
    counted, and `looked_up` for the last of each.
    """

    ordered = True

    def __init__(
        self,
        viewer: User,
        values: dict[str, Any],
        sort: str = "",
        *,
        expected: slice = slice(0, 0),
        tells_use: bool = True,
    ) -> None:
        self._viewer = viewer
        self._chosen = self._narrowed(values)  # Not by the viewer: read by `_features`, or joined with what they see.
        self._is_narrowed = any(values.get(name) for name in ("name", "q", "effect", "server", "server_ids", "show"))
        self.tells_use = tells_use and viewer.has_perm(Capability.LOGS_READ)
        known = [name for name in SORTS if self.tells_use or name not in BY_USE]
        self.sort = sort if sort.removeprefix("-") in known else "tool"
        self.only_unused = self.tells_use and values.get("show") == "unused"
        self._read_rollups(wanted=(self.only_unused or self._by in BY_USE) and _are_days_counted())
        self._expected, self._known = expected, list[Row]()
        self._unused: list[Row] | None = None
        self._total: int | None = None

    @property
    def _features(self) -> FeatureQuerySet:
        return self._chosen.seen_by(self._viewer)

    @property
    def _by(self) -> str:
        return self.sort.removeprefix("-")

    @property
    def _sorts_calls(self) -> bool:
        """Whether entries are sorted by their calls, which are counted then, over `period`."""
        return self._by == "calls" and not self.only_unused

    def _read_rollups(self, *, wanted: bool) -> None:
        """Have all tools compared by what the roll-ups tell, or by the log and over as long as that can be read."""
        self._is_counted = wanted
        self.period = self._period() if self.tells_use else None
        self.looked_up = self._looked_up() if self.only_unused or self._by == "last" else None

    def _period(self) -> Period:
        return Period.to_count_all() if self._sorts_calls and not self._is_counted else Period.of(SPAN)

    def _looked_up(self) -> Period:
        return Period.of(SPAN) if self._is_counted else Period.to_look_up(self._features.count())

    def _narrowed(self, values: dict[str, Any]) -> FeatureQuerySet:
        tools: Any = Feature.objects.tools().offered().matching(values.get("q", ""))
        if name := values.get("name"):
            tools = tools.filter(holds("exposed_name", name))
        if effects := values.get("effect"):
            tools = tools.filter(effect__in=effects)
        if servers := values.get("server"):
            tools = tools.filter(assignment__server__slug__in=servers)
        if pks := values.get("server_ids"):
            tools = tools.filter(assignment__server__in=pks)
        match values.get("show"):
            case "new":
                tools = tools.new_since(timezone.now() - NEW_FOR)
            case "changed":
                tools = tools.needing_attention()
        narrowed: FeatureQuerySet = tools
        return narrowed

    def count(self) -> int:
        """How many entries there are."""
        if self._total is None and self._expected.stop and not self.only_unused:
            self._known = self._rows(self._expected.start, self._expected.stop - self._expected.start)
        if self._total is None:
            of_each = self._features.order_by().values("assignment__server", "name").distinct()
            self._total = len(self._all_unused) if self.only_unused else of_each.count()
        return self._total

    def __len__(self) -> int:
        return self.count()

    def __getitem__(self, asked: slice) -> list[Entry]:
        start, stop = asked.start or 0, self.count() if asked.stop is None else asked.stop
        if self.only_unused:
            return self._entries(self._all_unused[start:stop])
        is_known = self._known and start == self._expected.start and stop <= self._expected.stop
        return self._entries(self._known[: stop - start] if is_known else self._rows(start, stop - start))

    def find(self, feature: Feature) -> Entry:
        """The entry of the tool that this feature is of."""
        same = {"assignment__server": feature.assignment.server_id, "name": feature.name}
        self._chosen = self._chosen.filter(**same)
        return self._entries(self._rows(0, 1))[0]

    @property
    def _all_unused(self) -> list[Row]:
        if self._unused is None:
            self._unused = self._rows(0, None)
        return self._unused

    def _rows(self, start: int, most: int | None) -> list[Row]:
        """Which entries these are, and how often each was called where that sorts them."""
        with book() as opened:
            rows = self._joined(self._use(opened), start, most)
        if rows or not start:
            self._total = rows[0].total if rows else 0
        return rows

    def _use(self, opened: Book) -> Use:
        """What use is joined with, as far as it sorts or narrows."""
        if self._is_counted:
            if query := opened.query_of(TOOL_CALLS, *_month(), by=OF_TOOLS):
                return Use.of(*query)
            self._read_rollups(wanted=False)
        if self.looked_up:
            return Use(LAST, self.looked_up.bounds)
        return Use.of(COUNTED, self.period.bounds) if self._by == "calls" and self.period else Use()

    def _joined(self, use: Use, start: int, most: int | None) -> list[Row]:
        by = "tool" if self.only_unused and self._by in BY_USE else self._by
        names = ["assignment_id", "name"]
        names += ["effect"] if by == "effect" else []
        names += ["exposed_name"] if use.joined else []
        chosen: Any = self._chosen.order_by()
        features, of_features = chosen.values_list(*names).query.sql_with_params()
        assigned: Any = Assignment.objects.seen_by(self._viewer).order_by()
        assignments, of_assignments = assigned.values_list("pk", "server", "gateway").query.sql_with_params()
        told = {
            "calls": "coalesce(sum(u.calls), 0)::bigint" if use.tells_calls else "0",
            "used": "max(u.last_at)" if use.joined else "NULL",
        }
        if by == "effect":
            told[by] = "min(f.effect)"
        elif by == "gateways":
            # To tell them apart PostgreSQL sorts all; few servers, if any, are on a gateway twice.
            twice = assigned.values("server", "gateway").annotate(times=Count("pk")).filter(times__gt=1)
            told[by] = f"count({'DISTINCT ' if twice.exists() else ''}p.gateway_id)"
        statement = ENTRIES.format(
            columns=", ".join(names),
            assignments=assignments,
            features=features,
            joined=use.joined,
            told=", ".join(f"{what} AS {name}" for name, what in told.items()),
            having=f"HAVING {told['used']} IS NULL" if self.only_unused else "",
            order=SORTS[by].format(way="DESC" if self.sort.startswith("-") else "ASC"),
        )
        with connection.cursor() as cursor:
            cursor.execute(HASHED_ALL if self._is_narrowed else HASHED)
            cursor.execute(statement, [*of_assignments, *of_features, *use.parameters, start, most])
            return [Row(*row) for row in cursor.fetchall()]

    def _entries(self, rows: list[Row]) -> list[Entry]:
        features = Feature.objects.select_related("assignment__server", "assignment__gateway")
        at = RawSQL(PLACES, [[row.server for row in rows], [row.name for row in rows]])  # noqa: S611  (a constant)
        places = self._places(at)
        found = places
        if self._is_narrowed:
            of_places = self._chosen.filter(pk__in=[place.pk for place in places]).order_by()
            listed = {*of_places.values_list("pk", flat=True)}
            found = [place for place in places if place.pk in listed]
        # Of each the first that any of its gateways learnt, among those that the list is narrowed to.
        learnt: dict[tuple[UUID, str], list[tuple[datetime, UUID]]] = defaultdict(list)
        for place in found:
            learnt[place.assignment.server_id, place.name].append((place.first_seen_at, place.pk))
        firsts = {tool: min(each)[1] for tool, each in learnt.items()}
        known = features.in_bulk([firsts[row.server, row.name] for row in rows if (row.server, row.name) in firsts])
        by_tool = {
            (row.server, row.name): Entry(known[pk], row.calls, last_used_at=row.used)
            for row in rows
            if (pk := firsts.get((row.server, row.name))) in known
        }
        for place in places:
            if entry := by_tool.get((place.assignment.server_id, place.name)):
                entry.places.append(place)
        for place in found:
            if entry := by_tool.get((place.assignment.server_id, place.name)):
                entry.found.append(place)
        entries = list(by_tool.values())
        if self.tells_use:
            self._tell_use(entries)
        return entries

    def _places(self, at: RawSQL) -> list[Feature]:
        """These features as far as the list tells of them, by their gateways."""
        told = ("name", "exposed_name", "enabled", "state", "kind", "offered_hash", "missing_since", "first_seen_at")
        of_assignment = ("server", "gateway", "alias", "enabled", "tool_policy")
        shown: Any = Feature.objects.tools_seen_by(self._viewer).filter(pk__in=at).select_related("assignment")
        shown = shown.order_by("assignment__gateway__name", "assignment__alias")
        places = list(shown.only(*told, *(f"assignment__{name}" for name in of_assignment)))
        # Of servers and gateways there are few: each is read once.
        assignments = [place.assignment for place in places]
        gateways = Gateway.objects.in_bulk({one.gateway_id for one in assignments})
        servers = Server.objects.in_bulk({one.server_id for one in assignments})
        of_gateway, of_server = Assignment.gateway.field, Assignment.server.field
        for one in assignments:  # As prefetching does: an assignment to the attribute checks each, which takes longer.
            of_gateway.set_cached_value(one, gateways[one.gateway_id])
            of_server.set_cached_value(one, servers[one.server_id])
        return places

    def _tell_use(self, entries: list[Entry]) -> None:
        """How often each was called, and when the last time."""
        if not self._is_counted and not self._tell_counted(entries):
            self._tell_looked_up(entries)

    def _tell_counted(self, entries: list[Entry]) -> bool:
        """The same as the roll-ups say it; whether they could."""
        known = _by_place(entries)
        where: dict[str, Any] = {name: [*{place[n] for place in known}] for n, name in enumerate(OF_TOOLS)}
        with book() as opened, connection.cursor() as cursor:
            query = opened.query_of(where | TOOL_CALLS, *_month(), by=OF_TOOLS)
            if query is None:
                return False
            cursor.execute(OF_PLACES.format(rows=query[0]), query[1])
            found = cursor.fetchall()
        for one in entries:
            one.calls, one.last_used_at = one.calls if self._sorts_calls else 0, None
        for *place, calls, last in found:
            for entry in known.get(tuple(place), ()):
                entry.calls += 0 if self._sorts_calls else int(calls)
                entry.last_used_at = max(entry.last_used_at or last, last)
        return True

    def _tell_looked_up(self, entries: list[Entry]) -> None:
        """The same of the log, where more than a thousand are not counted."""
        most = 1 if self._sorts_calls else MOST_COUNTED + 1
        with connection.cursor() as cursor:
            cursor.execute(USE, [*_by_name(entries), *Period.of(SPAN).bounds, most])
            for n, calls, last in cursor.fetchall():
                entries[n].last_used_at = last
                if not self._sorts_calls:
                    entries[n].calls, entries[n].are_more = min(calls, MOST_COUNTED), calls > MOST_COUNTED


def _by_place(entries: Sequence[Entry]) -> dict[tuple[UUID, UUID, str], list[Entry]]:
    """These entries by what the log says of their calls: gateway, server and as much of the name as it keeps."""
    known = defaultdict(list)
    for entry in entries:
        for place in entry.found:
            known[place.assignment.gateway_id, place.assignment.server_id, place.exposed_name[:300]].append(entry)
    return known


def _by_name(entries: Sequence[Entry]) -> list[list[Any]]:
    """Columns to look calls up by: the number of an entry, gateways that give it one name, its server, this name.

    They are looked for together: the newest call of any of them is soon found.
    """
    numbered = {id(entry): n for n, entry in enumerate(entries)}
    named: dict[tuple[int, UUID, str], set[str]] = defaultdict(set)
    for (gateway, server, name), there in _by_place(entries).items():
        for entry in there:
            named[numbered[id(entry)], server, name].add(str(gateway))
    numbers, servers, names = ([key[n] for key in named] for n in range(3))
    return [numbers, [array(each) for each in named.values()], servers, names]


def _are_days_counted() -> bool:
    with book() as opened:
        return opened.knows_days_from(_month()[0])


def _month() -> list[datetime]:
    """SPAN from the beginning of a day on: of so long ago the part of one would be read from the log."""
    since, until = Period.of(SPAN).bounds
    return [DAYS.begin(since), until]
