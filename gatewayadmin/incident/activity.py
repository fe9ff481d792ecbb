"""The calls of an incident's subject in the last 24 hours, compared with a usual day.

A usual day is the average of at most 28 days before these 24 hours.

At most the newest MOST_READ calls are read. If there are more calls, the totals come from the roll-ups, unless the
roll-ups lack them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import ceil, floor
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection, transaction
from django.utils import timezone

from auditlog.models import ENDINGS, Call
from auditlog.rollups.reading import book
from auditlog.rollups.schema import range_start
from gateways.usage import IN_ORDER

DAY = timedelta(days=1)
BEFORE = timedelta(days=28)
MOST_READ = 10_000  # The newest calls of a subject.
SHOWN = 12  # Largest number of tools, and of addresses, on the page.
ODD = 3  # A number is unusual if it is at least this many times the usual number.
FEWEST_ODD = 10

CALLS = """
SELECT tool, host(client_ip), created_at >= %s, denied, count(*), min(created_at), max(created_at),
    trim((array_agg(client ORDER BY created_at DESC))[1])
FROM (
    SELECT CASE method WHEN 'tools/call' THEN feature_name ELSE '' END AS tool, client_ip,
        outcome = ANY(%s) AS denied, client_name || ' ' || client_version AS client, created_at
    FROM auditlog_call WHERE {where} AND created_at >= %s AND created_at < %s ORDER BY created_at DESC LIMIT %s
) c GROUP BY tool, client_ip, 3, denied
"""
BY_ROLLUP = ("host_id", "user_id", "server_id")


class CallTally(NamedTuple):
    """The number of calls with equal `tool`, `ip`, `recent` and `denied`. `recent` is True for the last 24 hours."""

    tool: str
    ip: str | None
    recent: bool
    denied: bool
    calls: int
    first: datetime
    last: datetime
    client: str


@dataclass
class Count:
    """The number of calls in the last 24 hours (`now`), and in the period before these 24 hours (`before`).

    That period is `days` days long. If `days` is 0, `per_day` is None.
    """

    now: int = 0
    before: int = 0
    days: int = 0

    @property
    def per_day(self) -> float | None:
        return self.before / self.days if self.days else None

    @property
    def usual(self) -> str:
        """The usual number of calls per day as text; empty if it is not known."""
        if self.per_day is None:
            return ""
        return "under 1" if 0 < self.per_day < 1 else f"{round(self.per_day):,}"

    @property
    def is_odd(self) -> bool:
        """True if `now` is far above the usual number per day."""
        return self.per_day is not None and self.now >= max(FEWEST_ODD, ODD * self.per_day)


@dataclass
class ToolCount(Count):
    """The calls of one tool."""

    name: str = ""
    denied: int = 0

    @property
    def is_new(self) -> bool:
        return bool(self.days) and not self.before

    @property
    def times(self) -> int:
        """`now` divided by `per_day`, rounded; 0 if `now` is not unusual (`is_odd`), or if `per_day` is 0."""
        return round(self.now / self.per_day) if self.is_odd and self.per_day else 0


@dataclass
class AddressCount(Count):
    """The numbers of calls from one address.

    `client` is the client of the newest of these calls. `since` is the time of the earliest call.
    """

    ip: str = ""
    client: str = ""
    since: datetime | None = None

    @property
    def is_new(self) -> bool:
        return bool(self.days) and not self.before


@dataclass
class Activity:
    """A subject's calls up to `until`.

    If not all calls were read, `reaches_to` is the time of the oldest call that was read; otherwise it is None.
    """

    since: datetime
    until: datetime
    calls: Count = field(default_factory=Count)
    refused: Count = field(default_factory=Count)
    tools: list[ToolCount] = field(default_factory=list)
    addresses: list[AddressCount] = field(default_factory=list)
    reaches_to: datetime | None = None
    has_totals: bool = True  # False if `calls` and `refused`, too, count only calls since `reaches_to`.
    last_at: datetime | None = None

    @property
    def new_tools(self) -> int:
        return sum(one.is_new for one in self.tools)

    @property
    def new_addresses(self) -> int:
        return sum(one.is_new for one in self.addresses)

    @classmethod
    def of(cls, columns: dict[str, UUID]) -> Activity:
        """Return the activity of the calls whose columns have these values; the first column must have an index."""
        until = timezone.now()
        since = range_start(until, DAY)
        groups = _read(columns, since, until)
        activity = cls(since, until)
        if not groups:
            return activity
        oldest = min(group.first for group in groups)
        is_cut = sum(group.calls for group in groups) == MOST_READ
        days = _days(since, oldest, is_cut=is_cut)
        activity.reaches_to = oldest if is_cut else None
        activity.last_at = max(group.last for group in groups)
        activity.calls, activity.refused = _total(groups, days), _total([g for g in groups if g.denied], days)
        activity._split(groups, days)
        if is_cut:
            activity.has_totals = activity._complete(columns)
        return activity

    def _split(self, groups: list[CallTally], days: int) -> None:
        tools, addresses = defaultdict[str, list[CallTally]](list), defaultdict[str, list[CallTally]](list)
        for group in groups:
            tools[group.tool].append(group)
            addresses[group.ip or ""].append(group)
        tools.pop("", None)
        for name, of_tool in tools.items():
            total, denied = _total(of_tool, days), sum(g.calls for g in of_tool if g.denied and g.recent)
            self.tools.append(ToolCount(total.now, total.before, days, name, denied))
        for ip, of_address in addresses.items():
            total, newest = _total(of_address, days), max(of_address, key=lambda group: group.last)
            first = min(group.first for group in of_address)
            self.addresses.append(AddressCount(total.now, total.before, days, ip, newest.client, first))
        self.tools = _recent(self.tools)
        self.addresses = _recent(self.addresses)

    def _complete(self, columns: dict[str, UUID]) -> bool:
        """Take the totals from the roll-ups. Return False if the roll-ups lack the totals of these `columns`."""
        if len(columns) > 1 or not columns.keys() <= {*BY_ROLLUP}:
            return False
        where = {name: [value] for name, value in columns.items()}
        with book() as rollups:
            now = rollups.total(where, self.since, self.until, timed=False)
            before = rollups.total(where, self.since - BEFORE, self.since, timed=False)
        if now is None or before is None:
            return False
        days = _days(self.since, _first_call(columns, self.since))
        self.calls = Count(now.calls, before.calls, days)
        self.refused = Count(now.denied, before.denied, days)
        return True


def _days(since: datetime, first: datetime, *, is_cut: bool = False) -> int:
    """Return the number of days from the earliest known call (`first`) to `since`: at least 0, at most `BEFORE`.

    If `is_cut` is True, calls before `first` were not read, and the number is rounded down. Otherwise, it is rounded
    up.
    """
    days = (since - first) / DAY
    return max(0, min(BEFORE.days, floor(days) if is_cut else ceil(days)))


def _first_call(columns: dict[str, UUID], since: datetime) -> datetime:
    """Return the time of the first call in the four weeks before `since`; `since` if there is none."""
    calls = Call.objects.filter(**columns, created_at__gte=since - BEFORE, created_at__lt=since)
    return calls.order_by("created_at").values_list("created_at", flat=True).first() or since


def _recent[C: Count](counts: list[C]) -> list[C]:
    """Return the tools or addresses that had calls in the last 24 hours, most calls first."""
    return sorted((one for one in counts if one.now), key=lambda one: -one.now)


def _total(groups: list[CallTally], days: int) -> Count:
    now = sum(group.calls for group in groups if group.recent)
    return Count(now, sum(group.calls for group in groups) - now, days)


def _read(columns: dict[str, UUID], since: datetime, until: datetime) -> list[CallTally]:
    where = " AND ".join(f"{name} = %s" for name in columns)
    parameters: list[Any] = [since, list(ENDINGS["denied"]), *columns.values(), since - BEFORE, until + DAY, MOST_READ]
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(IN_ORDER)
        cursor.execute(CALLS.format(where=where), parameters)
        return [CallTally(*row) for row in cursor.fetchall()]
