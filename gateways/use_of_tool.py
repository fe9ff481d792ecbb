"""Recent use of one tool: calls, errors, durations and callers, computed from its newest calls."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db import connection
from django.utils import timezone

from auditlog.models import ENDINGS
from gateways.models import Feature

HOUR, DAY, WEEK = timedelta(hours=1), timedelta(days=1), timedelta(days=7)
MOST_READ = 10_000  # Calls of one tool; an index of the names gives the newest first.
PEOPLE = 10

STATEMENT = """
WITH c AS (
    SELECT created_at, outcome, duration_ms, user_email FROM auditlog_call
    WHERE feature_name = ANY(%(names)s) AND feature_name <> '' AND method = 'tools/call'
        AND gateway_id = ANY(%(gateways)s) AND server_id = %(server)s AND created_at >= %(week)s
        AND created_at < %(until)s
    ORDER BY created_at DESC LIMIT %(most)s
)
SELECT grouping(user_email), user_email, max(created_at),
    count(*), count(*) FILTER (WHERE outcome = ANY(%(errors)s)),
    percentile_cont(0.95) WITHIN GROUP (ORDER BY duration_ms),
    count(*) FILTER (WHERE created_at >= %(day)s),
    count(*) FILTER (WHERE created_at >= %(day)s AND outcome = ANY(%(errors)s)),
    percentile_cont(0.95) WITHIN GROUP (ORDER BY duration_ms) FILTER (WHERE created_at >= %(day)s)
FROM c GROUP BY GROUPING SETS ((), (user_email)) ORDER BY 1 DESC, 4 DESC, 2 LIMIT %(people)s
"""


class CallStats(NamedTuple):
    """The number of calls in a period, of failed ones, and the 95th percentile of their duration in ms."""

    calls: int = 0
    errors: int = 0
    p95: float | None = None


class ToolUser(NamedTuple):
    """A person who used a tool."""

    email: str
    calls: int
    last: datetime


class UseOfTool(NamedTuple):
    """The use of a tool; `is_cut` if only its newest calls were read."""

    day: CallStats
    week: CallStats
    people: Sequence[ToolUser]
    is_cut: bool

    @classmethod
    def of(cls, places: Sequence[Feature]) -> UseOfTool:
        """Return the use of one tool, given as its features on several gateways."""
        now = timezone.now()
        told: dict[str, Any] = {
            "names": sorted({place.exposed_name[:300] for place in places}),
            "gateways": [place.assignment.gateway_id for place in places],
            "server": places[0].assignment.server_id,
            "errors": list(ENDINGS["error"]),
            "day": now - DAY,
            "week": now - WEEK,
            "until": now + HOUR,  # Spares PostgreSQL the partitions of future days; an hour allows for clock skew.
            "most": MOST_READ,
            "people": PEOPLE + 1,
        }
        with connection.cursor() as cursor:
            cursor.execute(STATEMENT, told)
            (_, _, _, *numbers), *people = cursor.fetchall()
        callers = [ToolUser(email or "Nobody known", calls, last) for _, email, last, calls, *_ in people]
        return cls(CallStats(*numbers[3:]), CallStats(*numbers[:3]), callers, numbers[0] >= MOST_READ)
