"""The catalogue: one entry per tool of a server, across all gateways the viewer may see, with the number of calls."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection
from django.db.models import Count, Q
from django.db.models.expressions import RawSQL
from django.utils import timezone

from accounts.models import User
from auditlog.models import Call
from auditlog.rollups.reading import Book, Where, book
from auditlog.rollups.schema import DAYS, OF_TOOLS, TIME_RANGES, TOOL_CALLS
from capabilities import Capability
from gateways.models import Assignment, Feature, FeatureQuerySet, FeatureState, Gateway
from gateways.models.feature import CALLABLE, FIRST_LIST
from servers.models import Server, ServerQuerySet
from ui.forms import holds
from ui.pages import PAGE_SIZE

SPAN = TIME_RANGES["30d"]  # The period in which calls are counted.
NEW_FOR = timedelta(days=7)
MOST_READ = 60_000  # The number of newest calls to read from the log if there are no roll-ups.

# SQL of each sort order. When sorted by last use, tools without any use come last in both directions.
SORTS = {
    "tool": "lower(t.name) {way}",
    "server": "lower(s.name) {way}",
    "effect": "t.effect {way}",
    "gateways": "t.gateways {way}",
    "calls": "t.calls {way}",
    "last": "t.used {way} NULLS LAST",
}
BY_USE = ("calls", "last")
# Assignments are joined before the grouping, because the rows are grouped by the server ids of the assignments. Servers
# are joined after the grouping, when there are fewer rows.
ENTRIES = """
WITH p (id, server_id, gateway_id) AS MATERIALIZED ({assignments})
SELECT t.server_id, t.name, count(*) OVER ()
FROM (
    SELECT p.server_id, f.name{told}
    FROM ({features}) AS f ({columns}) JOIN p ON p.id = f.assignment_id
    {joined}
    GROUP BY p.server_id, f.name
    {having}
) t
JOIN servers_server s ON s.id = t.server_id
ORDER BY {order}, lower(t.name), lower(s.name), t.server_id, t.name
OFFSET %s LIMIT %s
"""
# Selects the features of the given tools (server and name) by index look-ups.
PLACES = """
SELECT f.id FROM unnest(%s::uuid[], %s::text[]) AS t (server_id, name)
JOIN gateways_assignment a ON a.server_id = t.server_id
JOIN gateways_feature f ON f.assignment_id = a.id AND f.kind = 'tool' AND f.name = t.name
"""
# PostgreSQL underestimates how many rows the join with calls and the word search return. Without these settings, it
# would choose a nested loop, or sort all tools to group them.
HASHED = "SET LOCAL enable_mergejoin = off; SET LOCAL enable_sort = off"
HASHED_ALL = f"{HASHED}; SET LOCAL enable_nestloop = off"
# Selects the number of calls and the last call of each tool on each gateway. float8 represents every realistic count
# exactly; a sum of bigint is numeric and takes twice as long.
OF_PLACES = """
SELECT c.gateway_id, c.server_id, c.feature_name, sum(c.calls::float8) AS calls, max(c.last_at) AS last_at
FROM ({rows}) c GROUP BY 1, 2, 3
"""
CALLED = """
LEFT JOIN ({of_places}) u
ON u.gateway_id = p.gateway_id AND u.server_id = p.server_id AND u.feature_name = f.exposed_name::varchar(300)
"""
NEWEST = """
SELECT gateway_id, server_id, feature_name, 1 AS calls, created_at AS last_at FROM auditlog_call
WHERE created_at >= %s AND created_at < %s AND method = 'tools/call' AND feature_name <> '' AND server_id IS NOT NULL
ORDER BY created_at DESC LIMIT %s
"""

type SQL = tuple[str, list[Any]]


def month() -> list[datetime]:
    """Return two times: the start of the last SPAN, and one hour from now.

    A query that ends at the second time lets PostgreSQL skip the partitions of later periods.
    """
    now = timezone.now()
    return [now - SPAN.length, now + timedelta(hours=1)]  # An hour allows for clock skew.


class Place(NamedTuple):
    """A feature on one gateway; `is_offered` is True if the gateway's clients can call it."""

    pk: UUID
    name: str
    exposed_name: str
    state: str
    first_seen_at: datetime
    offered_hash: str
    is_offered: bool
    gateway: Gateway
    server: Server

    @property
    def state_label(self) -> str:
        return FeatureState(self.state).label


@dataclass
class CatalogueEntry:
    """One tool of a server, on all the gateways that have the server.

    Each assignment of the server to a gateway stores the tool as a feature of its own. The entry contains the features
    that the viewer may see.
    """

    feature: Feature  # The oldest of `found`.
    calls: int = 0  # Calls of the features in `found`.
    last_used_at: datetime | None = None
    places: list[Place] = field(default_factory=list)  # All features of this tool.
    found: list[Place] = field(default_factory=list)  # The features that match the filters.

    @property
    def server(self) -> Server:
        return self.feature.assignment.server

    @property
    def effect(self) -> str:
        """The effect that an administrator or the server states, as text; empty if nobody states an effect."""
        return self.feature.claim

    @cached_property
    def gateway_names(self) -> list[str]:
        """The names of the gateways on which clients can call the tool."""
        return list({place.gateway.pk: place.gateway.name for place in self.places if place.is_offered}.values())

    @property
    def undecided(self) -> Place | None:
        """The first of `places` whose definition waits for a decision, or None."""
        waiting = (place for place in self.places if place.offered_hash and place.state != FeatureState.QUARANTINED)
        return next(waiting, None)

    @property
    def state(self) -> str:
        """The state for exports: `waiting`, `quarantined`, `disabled`, `new` or empty."""
        if self.undecided or self.quarantined:
            return "waiting" if self.undecided else "quarantined"
        return "disabled" if not self.gateway_names else "new" if self.is_new else ""

    @property
    def is_new(self) -> bool:
        return is_new(self.feature)

    @property
    def quarantined(self) -> Place | None:
        return next((place for place in self.places if place.state == FeatureState.QUARANTINED), None)


def is_new(feature: Feature) -> bool:
    """Return True if the feature was first seen less than NEW_FOR ago.

    But return False if it was first seen within FIRST_LIST after its server was assigned. It then counts as a part of
    the server's first list.
    """
    since = feature.first_seen_at - feature.assignment.created_at
    return since > FIRST_LIST and timezone.now() - feature.first_seen_at < NEW_FOR


def servers_seen_by(viewer: User) -> ServerQuerySet:
    """Return the servers that have at least one tool that `viewer` may see, sorted by name."""
    of_tools = Feature.objects.tools_seen_by(viewer).order_by().values("assignment__server")
    return Server.objects.filter(pk__in=of_tools).order_by("name")


class Catalogue:
    """The tools that `viewer` may see, filtered and sorted. This is a lazy sequence of entries that supports slices.

    If `tells_use` is true and the viewer may read the log, each entry has the number of its calls in the last SPAN.
    Otherwise calls are not counted, and tools cannot be sorted or filtered by use.

    `page` is the number of the page that the caller will probably read, as text. None, or a text that is not a page
    number, stands for page 1.
    """

    ordered = True

    def __init__(
        self, viewer: User, values: dict[str, Any], sort: str = "", *, tells_use: bool = True, page: str | None = None
    ) -> None:
        self._viewer = viewer
        self._chosen = self._narrowed(values)  # May include tools that the viewer may not see. The join excludes them.
        self._is_narrowed = any(values.get(name) for name in ("name", "q", "effect", "server", "server_ids", "show"))
        self.tells_use = tells_use and viewer.has_perm(Capability.LOGS_READ)
        known = [name for name in SORTS if self.tells_use or name not in BY_USE]
        self.sort = sort if sort.removeprefix("-") in known else "tool"
        self.only_unused = self.tells_use and values.get("show") == "unused"
        self.is_cut = False  # True, after reading, if there were more calls than could be counted.
        self._start = (int(page) - 1) * PAGE_SIZE if page and re.fullmatch("[1-9][0-9]{0,6}", page) else 0

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

    @property
    def joins_use(self) -> bool:
        """True if the tools are sorted or filtered by their use, so that the query must also read the calls."""
        return self.only_unused or self.sort.removeprefix("-") in BY_USE

    def count(self) -> int:
        """Return the number of entries."""
        return self._likely[1]

    def __len__(self) -> int:
        return self.count()

    def __getitem__(self, asked: slice) -> list[CatalogueEntry]:
        start = asked.start or 0
        if start == self._start and asked.stop is not None and asked.stop - start <= PAGE_SIZE:
            return self._entries(self._likely[0][: asked.stop - start])
        return self._entries(self._read(start, None if asked.stop is None else asked.stop - start)[0])

    @cached_property
    def _likely(self) -> tuple[list[tuple[UUID, str]], int]:
        """The entries, as (server, name), of the page that will probably be read, and the total number of entries."""
        found = self._read(self._start, PAGE_SIZE)
        if self._start and not found[1]:  # There is no such page. The paginator reads the last one instead.
            return [], self._read(0, 1)[1]
        return found

    def find(self, feature: Feature) -> CatalogueEntry:
        self._chosen = self._chosen.filter(assignment__server=feature.assignment.server_id, name=feature.name)
        return self._entries(self._read(0, 1)[0])[0]

    def _read(self, start: int, most: int | None) -> tuple[list[tuple[UUID, str]], int]:
        """Return a slice of the entries as (server, name), and the total number of entries.

        The total is 0 if `start` is beyond the last entry.
        """
        by = self.sort.removeprefix("-")
        by = "tool" if self.only_unused and by in BY_USE else by
        joins_use = self.joins_use
        names = ["assignment_id", "name", *(["effect"] if by == "effect" else []), *(["exposed_name"] * joins_use)]
        features, of_features = self._chosen.order_by().values_list(*names).query.sql_with_params()
        assigned: Any = Assignment.objects.seen_by(self._viewer).order_by()
        assignments, of_assignments = assigned.values_list("pk", "server", "gateway").query.sql_with_params()
        told = {"calls": "coalesce(sum(u.calls), 0)", "used": "max(u.last_at)"} if joins_use else {}
        if by == "effect":
            told[by] = "min(f.effect)"
        elif by == "gateways":
            # DISTINCT makes PostgreSQL sort everything. It is needed only if a gateway has a server twice, a rare case.
            twice = assigned.values("server", "gateway").annotate(times=Count("pk")).filter(times__gt=1)
            told[by] = f"count({'DISTINCT ' if twice.exists() else ''}p.gateway_id)"
        most = most if most is None else most or 1  # The total is a column of the rows, so at least one row is read.
        with book() as opened, connection.cursor() as cursor:
            rows, of_rows = self._calls(opened, {}) if joins_use else ("", [])
            statement = ENTRIES.format(
                columns=", ".join(names),
                assignments=assignments,
                features=features,
                joined=CALLED.format(of_places=OF_PLACES.format(rows=rows)) if joins_use else "",
                told="".join(f", {what} AS {name}" for name, what in told.items()),
                having=f"HAVING {told['used']} IS NULL" if self.only_unused else "",
                order=SORTS[by].format(way="DESC" if self.sort.startswith("-") else "ASC"),
            )
            cursor.execute(HASHED_ALL if self._is_narrowed else HASHED)
            cursor.execute(statement, [*of_assignments, *of_features, *of_rows, start, most])
            found = cursor.fetchall()
        return [(server, name) for server, name, _ in found], found[0][2] if found else 0

    def _calls(self, opened: Book, where: Where) -> SQL:
        """Return a query for the calls of the last SPAN. Add up its rows to get the number of calls of each tool."""
        since, until = month()
        # For a time this long ago, roll-ups exist for whole days only.
        if query := opened.query_of({**where, **TOOL_CALLS}, DAYS.begin(since), until, by=OF_TOOLS):
            return query
        # There are no roll-ups for this period: read the newest calls.
        self.is_cut = Call.objects.filter(method="tools/call", created_at__gte=since)[MOST_READ:].exists()
        return NEWEST, [since, until, MOST_READ]

    def _entries(self, tools: list[tuple[UUID, str]]) -> list[CatalogueEntry]:
        at = RawSQL(PLACES, [[server for server, _ in tools], [name for _, name in tools]])  # noqa: S611  (a constant)
        places = found = self._places(at)
        if self._is_narrowed:
            matching = self._chosen.filter(pk__in=[place.pk for place in places]).order_by()
            listed = {*matching.values_list("pk", flat=True)}
            found = [place for place in places if place.pk in listed]
        by_tool: dict[tuple[UUID, str], list[Place]] = defaultdict(list)
        for place in found:
            by_tool[place.server.pk, place.name].append(place)
        # For each tool, the oldest feature among those that match the filters.
        firsts = {tool: min(each, key=lambda one: (one.first_seen_at, one.pk)) for tool, each in by_tool.items()}
        features = Feature.objects.select_related("assignment__server", "assignment__gateway")
        known = features.in_bulk([one.pk for one in firsts.values()])
        entries = {
            tool: CatalogueEntry(known[firsts[tool].pk], found=by_tool[tool])
            for tool in tools
            if tool in firsts and firsts[tool].pk in known
        }
        for place in places:
            if entry := entries.get((place.server.pk, place.name)):
                entry.places.append(place)
        if self.tells_use:
            self._tell_use(list(entries.values()))
        return list(entries.values())

    def _places(self, at: RawSQL) -> list[Place]:
        """Return the tools whose ids the subquery `at` returns, sorted by gateway.

        Tools that the viewer may not see are left out.
        """
        seen: Any = Feature.objects.tools_seen_by(self._viewer).filter(pk__in=at)
        seen = seen.annotate(is_offered=CALLABLE & Q(assignment__gateway__enabled=True))
        seen = seen.order_by("assignment__gateway__name", "assignment__alias")
        of_feature = [name for name in Place._fields if name not in ("gateway", "server")]
        rows = list(seen.values_list(*of_feature, "assignment__gateway", "assignment__server"))
        # Servers and gateways are few: read each once.
        gateways = Gateway.objects.in_bulk({gateway for *_, gateway, _ in rows})
        servers = Server.objects.in_bulk({server for *_, server in rows})
        return [Place._make((*told, gateways[gateway], servers[server])) for *told, gateway, server in rows]

    def _tell_use(self, entries: list[CatalogueEntry]) -> None:
        """Set the number of calls and the last call of each entry."""
        known: dict[tuple[Any, ...], list[CatalogueEntry]] = defaultdict(list)  # Keyed by the columns OF_TOOLS.
        for entry in entries:
            for place in entry.found:
                columns = place.gateway.pk, place.server.pk, place.exposed_name[:300]
                known[columns].append(entry)
        with book() as opened, connection.cursor() as cursor:
            where = {name: [*{one[n] for one in known}] for n, name in enumerate(OF_TOOLS)}
            rows, parameters = self._calls(opened, where)
            cursor.execute(OF_PLACES.format(rows=rows), parameters)
            for *place, calls, last in cursor.fetchall():
                for entry in known.get(tuple(place), ()):
                    entry.calls += int(calls)
                    entry.last_used_at = max(entry.last_used_at or last, last)
