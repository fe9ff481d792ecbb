"""Statistics of the last day's calls: counts, outcomes, and each server's results by hour."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import NamedTuple
from uuid import UUID

from django.db import connection
from django.http import HttpRequest
from django.utils import timezone

from auditlog import replica
from auditlog.models import Call
from auditlog.rollups.reading import Bars, book
from auditlog.search.criteria import RowCount, Search
from auditlog.search.query_language import parse_search
from servers.models import Server

DAY = timedelta(hours=24)
HOURS = 24
LISTED = 8
GROUND = f"M 0 16h{5 * HOURS - 2}"  # Dashed by the style sheet like the bars: three wide, two apart.

SERVER_FAILED = ("upstream_error", "timeout")  # Failures of the server, not of the tool.
# Used where roll-ups are incomplete.
# Failures are first found by their outcome, then only whether there was any call: both look at few rows.
HOURLY = """
SELECT s.id, h.n,
    EXISTS (SELECT FROM auditlog_call c WHERE c.server_id = s.id AND c.created_at >= h.at
        AND c.created_at < h.at + interval '1 hour'),
    (s.id, h.n) IN (
        SELECT f.server_id, floor(extract(epoch FROM f.created_at - %(since)s) / 3600)::int
        FROM unnest(%(failed)s::text[]) AS o (outcome) CROSS JOIN LATERAL (
            SELECT server_id, created_at FROM auditlog_call c
            WHERE c.outcome = o.outcome AND c.outcome <> 'ok' AND c.created_at >= %(since)s
            ORDER BY c.created_at DESC LIMIT 2000
        ) f WHERE f.server_id IS NOT NULL
    )
FROM unnest(%(servers)s::uuid[]) AS s (id)
CROSS JOIN (SELECT n, %(since)s + n * interval '1 hour' AS at FROM generate_series(0, 23) n) h
"""


class Traffic:
    """The calls of the last day. Parts are read on access; the cost is independent of their number."""

    def __init__(self, request: HttpRequest) -> None:
        self._request = request
        since = timezone.now() - DAY
        self._all, self._refused = Search([], since), Search(parse_search("denied"), since)

    @cached_property
    def total(self) -> RowCount:
        return replica.read_from_replica(self._request, self._all.count)

    @cached_property
    def denied(self) -> RowCount:
        return replica.read_from_replica(self._request, self._refused.count)

    @cached_property
    def recent(self) -> Sequence[Call]:
        """The newest calls."""
        return replica.read_from_replica(self._request, lambda: self._all.page(None, LISTED).page.rows)

    @cached_property
    def denials(self) -> Sequence[Call]:
        """The newest denied calls."""
        return replica.read_from_replica(self._request, lambda: self._refused.page(None, LISTED).page.rows)


class Hour(NamedTuple):
    """One hour of a server."""

    called: bool
    failed: bool


@dataclass(frozen=True)
class ServerTraffic:
    """A server and its last day."""

    server: Server
    hours: Sequence[Hour]

    @property
    def failed(self) -> int:
        return sum(hour.failed for hour in self.hours)

    @property
    def answered(self) -> int:
        return sum(hour.called and not hour.failed for hour in self.hours)

    @property
    def drawn(self) -> list[tuple[str, str]]:
        """SVG paths by state. Dashes of quiet hours come first and are covered by the bars of other hours."""
        paths = {"none": GROUND, "ok": "", "down": ""}
        for n, hour in enumerate(self.hours):
            if hour.called or hour.failed:
                paths["down" if hour.failed else "ok"] += f"M{5 * n} 0h3v18h-3z"
        return [(state, path) for state, path in paths.items() if path]


def health(servers: Sequence[Server]) -> list[ServerTraffic]:
    """The servers with the last 24 hours of each."""
    since = (timezone.now() - timedelta(hours=HOURS - 1)).replace(minute=0, second=0, microsecond=0)
    hours = _hours([server.pk for server in servers], since) if servers else {}
    return [ServerTraffic(server, [hours[server.pk, n] for n in range(HOURS)]) for server in servers]


def _hours(servers: Sequence[UUID], since: datetime) -> dict[tuple[UUID, int], Hour]:
    where, until = {"server_id": list(servers)}, since + timedelta(hours=HOURS)
    with book() as opened:
        bars = Bars(since, timedelta(hours=1))
        found = opened.read(where, since, until, by=("server_id", "outcome"), bars=bars, timed=False)
    if found is None:
        return _hours_of_log(servers, since)
    outcomes: dict[tuple[UUID, int], set[str]] = defaultdict(set)
    for (server, outcome, n), numbers in found.items():
        if numbers.calls:
            outcomes[server, n].add(outcome)
    places = ((server, n) for server in servers for n in range(HOURS))
    return {place: Hour(bool(outcomes[place]), not outcomes[place].isdisjoint(SERVER_FAILED)) for place in places}


def _hours_of_log(servers: Sequence[UUID], since: datetime) -> dict[tuple[UUID, int], Hour]:
    with connection.cursor() as cursor:
        cursor.execute(HOURLY, {"servers": list(servers), "since": since, "failed": list(SERVER_FAILED)})
        return {(server, n): Hour(called, failed) for server, n, called, failed in cursor.fetchall()}
