"""Recent use of a gateway: which tools were called by whom, as the basis for narrowing its servers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from django.db import connection, transaction
from django.utils import timezone

from auditlog.groups import BY, newest_names
from auditlog.models import ENDINGS, Event
from auditlog.ranges import STRETCHES, range_start
from auditlog.rollups.reading import book
from gateways.catalogue import SPAN, Period
from gateways.models import Assignment, Feature, Gateway
from gateways.models.assignment import narrowings

PEOPLE, TOOLS = 10, 12  # Those with the most calls; more would make the page too heavy.
RANGES = {name: STRETCHES[name] for name in ("24h", "7d", "30d")}
DEFAULT = "30d"
LEVELS = 4
MOST_READ = 5_000  # The newest calls of a gateway, read to find its callers.
MOST_CALLERS = 20
MOST_COUNTED = 50_000  # The newest calls of a gateway, counted by person and tool.
# Read an index in its order: otherwise PostgreSQL reads and sorts all calls of a month and discards most of them.
IN_ORDER = "SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off"

# An index on names finds the newest allowed call quickly. Finding that there is none reads each day's partition, so
# tools known to be unused (from the roll-ups) are skipped.
LAST_USES = """
SELECT f.assignment_id, f.exposed_name, f.enabled, u.last_at
FROM gateways_feature f
JOIN gateways_assignment a ON a.id = f.assignment_id
LEFT JOIN LATERAL (
    SELECT c.created_at AS last_at FROM auditlog_call c
    WHERE c.feature_name = left(f.exposed_name, 300) AND c.feature_name <> '' AND c.method = 'tools/call'
        AND c.gateway_id = a.gateway_id AND c.server_id = a.server_id AND c.created_at >= %s AND c.created_at < %s
        AND c.outcome <> ALL(%s)
        AND (%s::text[] IS NULL OR a.server_id || ' ' || left(f.exposed_name, 300) = ANY(%s))
    ORDER BY c.created_at DESC LIMIT 1
) u ON true
WHERE f.assignment_id = ANY(%s) AND f.kind = 'tool' AND f.missing_since IS NULL
ORDER BY u.last_at DESC NULLS LAST, f.exposed_name
"""
CALLERS = """
SELECT host_name, user_email, connection_id, count(DISTINCT feature_name), count(*), max(created_at),
    sum(count(*)) OVER ()
FROM (
    SELECT host_name, user_email, connection_id, feature_name, created_at FROM auditlog_call
    WHERE gateway_id = %s AND created_at >= %s AND created_at < %s AND method = 'tools/call' AND feature_name <> ''
        AND server_id IS NOT NULL AND outcome <> ALL(%s) AND deny_reason <> 'unknown_tool'
    ORDER BY created_at DESC LIMIT %s
) c GROUP BY host_name, user_email, connection_id ORDER BY 5 DESC, 1, 2 LIMIT %s
"""


BY_PERSON_AND_TOOL = """
SELECT user_id, tool, count(*), min(created_at), sum(count(*)) OVER ()
FROM (
    SELECT user_id, CASE method WHEN 'tools/call' THEN feature_name END AS tool, created_at FROM auditlog_call
    WHERE gateway_id = %s AND created_at >= %s AND created_at < %s ORDER BY created_at DESC LIMIT %s
) c GROUP BY user_id, tool
"""
CALLED_WITH = """
SELECT count(DISTINCT (server_id, feature_name)) FROM (
    SELECT server_id, feature_name FROM auditlog_call
    WHERE connection_id = %s AND token_id = %s AND created_at >= %s AND created_at < %s AND method = 'tools/call'
        AND feature_name <> '' AND server_id IS NOT NULL AND outcome <> ALL(%s) AND deny_reason <> 'unknown_tool'
    ORDER BY created_at DESC LIMIT %s
) c
"""


class ToolUse(NamedTuple):
    """A tool offered on a gateway, and the time of its last call within the period searched."""

    name: str
    enabled: bool
    last_at: datetime | None


class GatewayCaller(NamedTuple):
    """A caller of a gateway's tools: how many different tools, and how many calls."""

    host: str
    email: str
    connection: UUID | None
    tools: int
    calls: int
    last_at: datetime


@dataclass
class ServerUse:
    """The tools of one assigned server; `narrowed` is its last narrowing that was not undone."""

    assignment: Assignment
    tools: list[ToolUse] = field(default_factory=list)
    narrowed: Event | None = None

    @property
    def used(self) -> list[ToolUse]:
        return [tool for tool in self.tools if tool.last_at]

    @property
    def unused(self) -> list[ToolUse]:
        return [tool for tool in self.tools if not tool.last_at]

    @property
    def to_switch_off(self) -> list[ToolUse]:
        """The tools that are enabled and were not used."""
        return [tool for tool in self.unused if tool.enabled]


def period_of(assignments: Iterable[Assignment]) -> Period:
    """Return the period to search for uses: 30 days, less if there are very many tools."""
    return Period.to_look_up(Feature.objects.tools().offered().filter(assignment__in=list(assignments)).count())


def called_tools(gateway: Gateway, period: Period) -> list[str] | None:
    """Return the called and not denied tools of a gateway, each as server id and exposed name.

    None if the roll-ups do not cover the period.
    """
    where: dict[str, list[Any]] = {"gateway_id": [gateway.pk], "method": ["tools/call"]}
    with book() as opened:
        found = opened.read(where, *period.bounds, by=("server_id", "feature_name"), timed=False)
    if found is None:
        return None
    return [f"{server} {name}" for (server, name), numbers in found.items() if numbers.calls > numbers.denied]


def uses(assignments: Iterable[Assignment], period: Period, called: list[str] | None = None) -> list[ServerUse]:
    """Return the use of the tools of each assignment, in order; with `called`, only search for those tools."""
    rows = list(assignments)
    narrowed = narrowings(one.pk for one in rows)
    by_pk = {one.pk: ServerUse(one, narrowed=narrowed.get(str(one.pk))) for one in rows}
    with connection.cursor() as cursor:
        cursor.execute(LAST_USES, [*period.bounds, list(ENDINGS["denied"]), called, called, list(by_pk)])
        for pk, *told in cursor.fetchall():
            by_pk[pk].tools.append(ToolUse(*told))
    return list(by_pk.values())


def used_tools(assignment: Assignment) -> list[str]:
    """Return the names of the tools that were called recently and not denied."""
    return [tool.name for tool in uses([assignment], period_of([assignment]))[0].used]


def callers(gateway: Gateway, period: Period) -> tuple[list[GatewayCaller], bool]:
    """Return the most frequent callers of the gateway's tools, and whether there were more calls than were read."""
    parameters: list[Any] = [gateway.pk, *period.bounds, list(ENDINGS["denied"]), MOST_READ, MOST_CALLERS]
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(IN_ORDER)
        cursor.execute(CALLERS, parameters)
        rows = cursor.fetchall()
    return [GatewayCaller(*told) for *told, _ in rows], bool(rows) and rows[0][-1] >= MOST_READ


class TokenUse(NamedTuple):
    """The number of different tools a token called recently, and the number its servers offer."""

    used: int
    offered: int
    label: str

    @classmethod
    def of(cls, token: UUID, connected: UUID, servers: Iterable[UUID], gateway: UUID) -> TokenUse:
        """Return the use of `token` of the connection `connected`, which includes `servers` of `gateway`."""
        period = Period.of(SPAN)
        places = {"assignment__gateway": gateway, "assignment__server__in": list(servers)}
        offered = Feature.objects.tools().offered().filter(**places, assignment__removed_at=None).count()
        with connection.cursor() as cursor:
            cursor.execute(CALLED_WITH, [connected, token, *period.bounds, list(ENDINGS["denied"]), MOST_READ])
            (used,) = cursor.fetchone()
        return cls(used, offered, period.label)


class Cell(NamedTuple):
    """The number of calls of a tool by a person; `level` is the shade, from 0 to LEVELS."""

    of: str
    calls: int
    level: int
    link: str


class PersonUse(NamedTuple):
    """A person with their calls per tool and in total."""

    pk: UUID
    name: str
    cells: list[Cell]
    used: int
    calls: int
    link: str


def matrix(gateway: Gateway, chosen: str) -> dict[str, Any]:
    """Return calls by person and tool in the range `chosen` of RANGES, from the newest MOST_COUNTED calls.

    `since` is the oldest call counted, if there were more.
    """
    until = timezone.now()
    since = range_start(until, RANGES[chosen].length)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(IN_ORDER)
        cursor.execute(BY_PERSON_AND_TOOL, [gateway.pk, since, until, MOST_COUNTED + 1])
        found = cursor.fetchall()
    are_more = bool(found) and found[0][-1] > MOST_COUNTED
    calls = {(person, tool): number for person, tool, number, *_ in found if person and tool}
    people, tools = Counter[UUID](), Counter[str]()
    for (person, tool), number in calls.items():
        people[person] += number
        tools[tool] += number
    shown = [tool for tool, _ in tools.most_common(TOOLS)]
    names = newest_names(BY["user"], [person for person, _ in people.most_common(PEOPLE)], since, until)
    highest = max(calls.values(), default=1)
    narrowed = {"gateway": str(gateway.pk), "range": chosen, "method": "tools/call"}

    def cell(person: UUID, tool: str) -> Cell:
        number = calls.get((person, tool), 0)
        level = -(-LEVELS * number // highest)
        link = urlencode({**narrowed, "user": str(person), "tool": tool})
        return Cell(f"{person}:{tool}", number, level, link)

    rows = [
        PersonUse(
            person,
            names.get(person) or str(person),
            [cell(person, tool) for tool in shown],
            sum(one == person for one, _ in calls),
            number,
            urlencode({**narrowed, "user": str(person)}),
        )
        for person, number in people.most_common(PEOPLE)
    ]
    return {
        "rows": rows,
        "tools": [(tool, urlencode({**narrowed, "tool": tool})) for tool in shown],
        "people_count": len(people),
        "since": min(first for *_, first, _ in found) if are_more else None,
    }
