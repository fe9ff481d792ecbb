"""The catalogue: one entry for each tool of a server, across all gateways the viewer may see."""

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
from gateways.models import Assignment, Feature, FeatureQuerySet, FeatureState, Gateway
from gateways.tool_views import NEW_FOR, ToolRow
from servers.models import Server, ServerQuerySet
from ui.forms import holds

SPAN = STRETCHES["30d"].label  # The period searched for calls, unless that takes too long.
PERIODS = {STRETCHES[name].label: STRETCHES[name].length for name in ("30d", "7d", "24h", "1h", "5m")}
# Limits for periods the roll-ups do not cover: single calls are read then, over a shorter period if necessary.
MOST_COUNTED = 1_000  # Calls of each tool of a page; more are "1,000+".
MOST_CALLS = 60_000  # Calls to read to sort all tools by their number.
MOST_LOOKED_UP = 60_000  # Index look-ups for the last call of each tool: one per tool and day.

# SQL of each sort order. Tools that were never used come last in both directions.
SORTS = {
    "tool": "lower(t.name) {way}",
    "server": "lower(s.name) {way}",
    "effect": "t.effect {way}",
    "gateways": "t.gateways {way}",
    "calls": "t.calls {way}",
    "last": "t.used {way} NULLS LAST",
}
BY_USE = ("calls", "last")
# Assignments and servers are few: assignments are joined before grouping, servers after it.
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
# The features of given tools; each name is looked up in an index.
PLACES = """
SELECT f.id FROM unnest(%s::uuid[], %s::text[]) AS t (server_id, name)
JOIN gateways_assignment a ON a.server_id = t.server_id
JOIN gateways_feature f ON f.assignment_id = a.id AND f.kind = 'tool' AND f.name = t.name
"""
# PostgreSQL underestimates the rows of calls and of word matches. Without this it would choose a nested loop, or sort
# all tools to group them.
HASHED = "SET LOCAL enable_mergejoin = off; SET LOCAL enable_sort = off"
HASHED_ALL = f"{HASHED}; SET LOCAL enable_nestloop = off"
# Calls and last call of each tool on a gateway. float8 represents every realistic count exactly; a sum of bigint is
# numeric and takes twice as long.
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
# In this order an index on names finds the newest call, or that there is none.
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
    """A period to search for calls, with its label."""

    label: str
    since: datetime

    @classmethod
    def of(cls, label: str) -> Period:
        return cls(label, timezone.now() - PERIODS[label])

    @classmethod
    def to_count_all(cls) -> Period:
        """Return the longest period whose calls can all be counted quickly."""
        # Planning for the partitions of a month takes PostgreSQL milliseconds, so start with the day.
        month, week, day, hour, minutes = map(cls.of, PERIODS)
        longer = [*takewhile(cls.is_soon_counted, (day, week, month))]
        return longer[-1] if longer else hour if hour.is_soon_counted() else minutes

    @classmethod
    def to_look_up(cls, tools: int) -> Period:
        """Return the longest period in which the last calls of this many tools are found quickly."""
        return cls.of(SPAN if tools * PERIODS[SPAN].days <= MOST_LOOKED_UP else "7 d")

    @property
    def bounds(self) -> list[datetime]:
        """The start and end of the period. The end spares PostgreSQL future partitions and allows for clock skew."""
        return [self.since, self.since + PERIODS[self.label] + timedelta(hours=1)]

    def is_soon_counted(self) -> bool:
        """True if PostgreSQL expects to read at most MOST_CALLS rows for this period."""
        plan = json.loads(Call.objects.filter(created_at__gte=self.since).order_by().explain(format="json"))
        return int(plan[0]["Plan"]["Plan Rows"]) <= MOST_CALLS


class CatalogueRow(NamedTuple):
    """An entry before its features are read: the tool, its use if that sorts, and the total number of entries."""

    server: UUID
    name: str
    calls: int
    used: datetime | None
    total: int


class LastUseJoin(NamedTuple):
    """The SQL join `u` of the last call, and maybe the number of calls, of each tool; with its parameters."""

    joined: str = ""
    parameters: Sequence[Any] = ()
    tells_calls: bool = False

    @classmethod
    def of(cls, rows: str, parameters: Sequence[Any]) -> LastUseJoin:
        """Return the join for `rows`, a query of calls or of roll-ups."""
        return cls(CALLED.format(of_places=OF_PLACES.format(rows=rows)), parameters, tells_calls=True)


@dataclass
class CatalogueEntry:
    """One tool of a server. `feature` is the oldest of its features, `places` are those on all gateways.

    Its use is counted for `found`: the features that match the filters.
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
        """The effect the server claims, as text; empty if it does not state one."""
        return self.feature.claim

    @cached_property
    def gateways(self) -> list[Gateway]:
        """The gateways on which clients can call the tool."""
        offering = {place.assignment.gateway.pk: place.assignment.gateway for place in self.places if is_offered(place)}
        return list(offering.values())

    @property
    def gateway_names(self) -> list[str]:
        return [gateway.name for gateway in self.gateways]

    @property
    def undecided(self) -> Feature | None:
        """A feature whose definition waits for a decision, or None."""
        waiting = (place for place in self.places if place.offered_hash and place.state != FeatureState.QUARANTINED)
        return next(waiting, None)

    @property
    def is_new(self) -> bool:
        """True if the tool was first seen recently, and not with the first list of its server."""
        return ToolRow(self.feature).is_new

    @property
    def quarantined(self) -> Feature | None:
        return next((place for place in self.places if place.state == FeatureState.QUARANTINED), None)


def is_offered(place: Feature) -> bool:
    """True if clients of its gateway can call it."""
    return place.assignment.gateway.enabled and place.enabled and not place.blocked


def servers_seen_by(viewer: User) -> ServerQuerySet:
    """Return the servers of the tools `viewer` may see, by name."""
    of_tools = Feature.objects.tools_seen_by(viewer).order_by().values("assignment__server")
    return Server.objects.filter(pk__in=of_tools).order_by("name")


class Catalogue:
    """The tools `viewer` may see, filtered and sorted: a lazy sequence of entries that supports slices.

    Use is only shown to people who may read the log, and only if asked for (`tells_use`). Otherwise entries cannot be
    sorted or filtered by use, and `period` is None. `period` is the time over which calls are counted, `looked_up` the
    time searched for the last call of each tool.
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
        self._chosen = self._narrowed(values)  # Not limited to the viewer: `_features` does that, or a join.
        self._is_narrowed = any(values.get(name) for name in ("name", "q", "effect", "server", "server_ids", "show"))
        self.tells_use = tells_use and viewer.has_perm(Capability.LOGS_READ)
        known = [name for name in SORTS if self.tells_use or name not in BY_USE]
        self.sort = sort if sort.removeprefix("-") in known else "tool"
        self.only_unused = self.tells_use and values.get("show") == "unused"
        self._read_rollups(wanted=(self.only_unused or self._by in BY_USE) and _are_days_counted())
        self._expected, self._known = expected, list[CatalogueRow]()
        self._unused: list[CatalogueRow] | None = None
        self._total: int | None = None

    @property
    def _features(self) -> FeatureQuerySet:
        return self._chosen.seen_by(self._viewer)

    @property
    def _by(self) -> str:
        return self.sort.removeprefix("-")

    @property
    def _sorts_calls(self) -> bool:
        """True if entries are sorted by their number of calls in `period`."""
        return self._by == "calls" and not self.only_unused

    def _read_rollups(self, *, wanted: bool) -> None:
        """Use the roll-ups if `wanted`; otherwise the log, over a period that can be read quickly."""
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
        """Return the number of entries."""
        if self._total is None and self._expected.stop and not self.only_unused:
            self._known = self._rows(self._expected.start, self._expected.stop - self._expected.start)
        if self._total is None:
            of_each = self._features.order_by().values("assignment__server", "name").distinct()
            self._total = len(self._all_unused) if self.only_unused else of_each.count()
        return self._total

    def __len__(self) -> int:
        return self.count()

    def __getitem__(self, asked: slice) -> list[CatalogueEntry]:
        start, stop = asked.start or 0, self.count() if asked.stop is None else asked.stop
        if self.only_unused:
            return self._entries(self._all_unused[start:stop])
        is_known = self._known and start == self._expected.start and stop <= self._expected.stop
        return self._entries(self._known[: stop - start] if is_known else self._rows(start, stop - start))

    def find(self, feature: Feature) -> CatalogueEntry:
        """Return the entry of the tool of `feature`."""
        same = {"assignment__server": feature.assignment.server_id, "name": feature.name}
        self._chosen = self._chosen.filter(**same)
        return self._entries(self._rows(0, 1))[0]

    @property
    def _all_unused(self) -> list[CatalogueRow]:
        if self._unused is None:
            self._unused = self._rows(0, None)
        return self._unused

    def _rows(self, start: int, most: int | None) -> list[CatalogueRow]:
        """Return these entries, with their number of calls if that sorts them."""
        with book() as opened:
            rows = self._joined(self._use(opened), start, most)
        if rows or not start:
            self._total = rows[0].total if rows else 0
        return rows

    def _use(self, opened: Book) -> LastUseJoin:
        """Return the join needed to sort or filter by use, empty if there is none."""
        if self._is_counted:
            if query := opened.query_of(TOOL_CALLS, *_month(), by=OF_TOOLS):
                return LastUseJoin.of(*query)
            self._read_rollups(wanted=False)
        if self.looked_up:
            return LastUseJoin(LAST, self.looked_up.bounds)
        return LastUseJoin.of(COUNTED, self.period.bounds) if self._by == "calls" and self.period else LastUseJoin()

    def _joined(self, use: LastUseJoin, start: int, most: int | None) -> list[CatalogueRow]:
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
            # DISTINCT makes PostgreSQL sort everything. It is only needed if a server is on a gateway twice: rare.
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
            return [CatalogueRow(*row) for row in cursor.fetchall()]

    def _entries(self, rows: list[CatalogueRow]) -> list[CatalogueEntry]:
        features = Feature.objects.select_related("assignment__server", "assignment__gateway")
        at = RawSQL(PLACES, [[row.server for row in rows], [row.name for row in rows]])  # noqa: S611  (a constant)
        places = self._places(at)
        found = places
        if self._is_narrowed:
            of_places = self._chosen.filter(pk__in=[place.pk for place in places]).order_by()
            listed = {*of_places.values_list("pk", flat=True)}
            found = [place for place in places if place.pk in listed]
        # For each tool, the oldest feature among those that match the filters.
        learnt: dict[tuple[UUID, str], list[tuple[datetime, UUID]]] = defaultdict(list)
        for place in found:
            learnt[place.assignment.server_id, place.name].append((place.first_seen_at, place.pk))
        firsts = {tool: min(each)[1] for tool, each in learnt.items()}
        known = features.in_bulk([firsts[row.server, row.name] for row in rows if (row.server, row.name) in firsts])
        by_tool = {
            (row.server, row.name): CatalogueEntry(known[pk], row.calls, last_used_at=row.used)
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
        """Return the features at `at`, ordered by gateway, with only the columns the list needs."""
        told = ("name", "exposed_name", "enabled", "state", "kind", "offered_hash", "missing_since", "first_seen_at")
        of_assignment = ("server", "gateway", "alias", "enabled", "tool_policy")
        shown: Any = Feature.objects.tools_seen_by(self._viewer).filter(pk__in=at).select_related("assignment")
        shown = shown.order_by("assignment__gateway__name", "assignment__alias")
        places = list(shown.only(*told, *(f"assignment__{name}" for name in of_assignment)))
        # Servers and gateways are few: read each once.
        assignments = [place.assignment for place in places]
        gateways = Gateway.objects.in_bulk({one.gateway_id for one in assignments})
        servers = Server.objects.in_bulk({one.server_id for one in assignments})
        of_gateway, of_server = Assignment.gateway.field, Assignment.server.field
        for one in assignments:  # As prefetching does: setting the attribute checks each instance, which is slower.
            of_gateway.set_cached_value(one, gateways[one.gateway_id])
            of_server.set_cached_value(one, servers[one.server_id])
        return places

    def _tell_use(self, entries: list[CatalogueEntry]) -> None:
        """Set the number of calls and the last call of each entry."""
        if not self._is_counted and not self._tell_counted(entries):
            self._tell_looked_up(entries)

    def _tell_counted(self, entries: list[CatalogueEntry]) -> bool:
        """Set the use of each entry from the roll-ups. Return False if they do not cover the period."""
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

    def _tell_looked_up(self, entries: list[CatalogueEntry]) -> None:
        """Set the use of each entry from the log, counting at most MOST_COUNTED calls."""
        most = 1 if self._sorts_calls else MOST_COUNTED + 1
        with connection.cursor() as cursor:
            cursor.execute(USE, [*_by_name(entries), *Period.of(SPAN).bounds, most])
            for n, calls, last in cursor.fetchall():
                entries[n].last_used_at = last
                if not self._sorts_calls:
                    entries[n].calls, entries[n].are_more = min(calls, MOST_COUNTED), calls > MOST_COUNTED


def _by_place(entries: Sequence[CatalogueEntry]) -> dict[tuple[UUID, UUID, str], list[CatalogueEntry]]:
    """Return the entries by the columns of their calls in the log: gateway, server and name (300 characters)."""
    known = defaultdict(list)
    for entry in entries:
        for place in entry.found:
            known[place.assignment.gateway_id, place.assignment.server_id, place.exposed_name[:300]].append(entry)
    return known


def _by_name(entries: Sequence[CatalogueEntry]) -> list[list[Any]]:
    """Return columns to look calls up by: entry number, gateways that use one name for it, server, and that name.

    Gateways with the same name are searched together, which finds the newest call sooner.
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
    """Return SPAN, extended to the beginning of its first day: roll-ups that old exist for whole days only."""
    since, until = Period.of(SPAN).bounds
    return [DAYS.begin(since), until]
