"""The Usage tab of a gateway, which shows the tools that are used and their callers.

On this tab, people can also disable the unused tools of a server.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from django.db import connection, transaction
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from auditlog import replica
from auditlog.charts import chosen_range
from auditlog.fields import FIELDS
from auditlog.models import ENDINGS, Event
from auditlog.names import newest_names
from auditlog.rollups.reading import book
from auditlog.rollups.schema import DAYS, OF_TOOLS, TIME_RANGES, TOOL_CALLS, range_start
from auditlog.views import log_alone
from capabilities import Capability, requires
from connections.models import Connection
from gateways.catalogue import SPAN, month
from gateways.models import Assignment, Feature, Gateway
from gateways.models.assignment import narrowings
from gateways.views import assignment_or_404, gateway_or_404
from ui.pages import AppRequest, Undo, first_names, leave, number_of, sentences, show
from ui.viewset import confirmed

PEOPLE, TOOLS = 10, 12  # Only people and tools with the most calls; more would make the page too heavy.
RANGES = {name: TIME_RANGES[name] for name in ("24h", "7d", "30d")}
DEFAULT = "30d"
LEVELS = 4
BYTES_PER_TOKEN = 4  # Tokenisers differ by a third; English and JSON take three to five bytes for each token.
DEAREST = 5
MOST_READ = 5_000  # Limit on the newest calls that are read to find callers, or to count calls or a token's tools.
MOST_CALLERS = 20
# Make PostgreSQL read an index in order. Otherwise it reads and sorts all calls of a month and discards most of them.
IN_ORDER = "SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off"

LAST_USES = """
SELECT f.assignment_id, f.id, f.exposed_name, f.enabled, u.last_at, octet_length(coalesce(f.shown, f.approved))
FROM gateways_feature f
JOIN gateways_assignment a ON a.id = f.assignment_id
LEFT JOIN {uses} u ON {same}
WHERE f.assignment_id = ANY(%s) AND f.kind = 'tool' AND f.missing_since IS NULL
ORDER BY u.last_at DESC NULLS LAST, f.exposed_name
"""
OF_ROLLUPS = """(
    SELECT c.gateway_id, c.server_id, c.feature_name, max(c.last_at) AS last_at FROM ({rows}) c
    WHERE c.ended <> ALL(%s) GROUP BY 1, 2, 3 HAVING max(c.last_at) >= %s
)"""
SAME_TOOL = """u.gateway_id = a.gateway_id AND u.server_id = a.server_id
    AND u.feature_name = left(f.exposed_name, 300)"""
# Without roll-ups: an index on names finds the newest allowed call of each tool.
OF_LOG = """LATERAL (
    SELECT c.created_at AS last_at FROM auditlog_call c
    WHERE c.feature_name = left(f.exposed_name, 300) AND c.feature_name <> '' AND c.method = 'tools/call'
        AND c.gateway_id = a.gateway_id AND c.server_id = a.server_id AND c.created_at >= %s AND c.created_at < %s
        AND c.outcome <> ALL(%s)
    ORDER BY c.created_at DESC LIMIT 1
)"""
CALLERS = """
SELECT host_name, user_email, connection_id,
    count(DISTINCT feature_name) FILTER (WHERE is_use), count(*), max(created_at), sum(count(*)) OVER ()
FROM (
    SELECT host_name, user_email, connection_id, feature_name, created_at, feature_name <> ''
        AND server_id IS NOT NULL AND outcome <> ALL(%s) AND deny_reason <> 'unknown_tool' AS is_use FROM auditlog_call
    WHERE gateway_id = %s AND created_at >= %s AND created_at < %s AND method = 'tools/call'
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

    pk: UUID
    name: str
    enabled: bool
    last_at: datetime | None
    listed_bytes: int  # Size of its definition, without administrators' texts; 0 if clients do not get the tool.

    @property
    def tokens(self) -> int:
        """The estimated number of LLM tokens that the tool's definition takes in a model's context."""
        return -(-self.listed_bytes // BYTES_PER_TOKEN)


class GatewayCaller(NamedTuple):
    """A caller of a gateway's tools: a host and user, with the number of tools used and the number of calls."""

    host: str
    email: str
    connection: UUID | None
    tools: int
    calls: int
    last_at: datetime


@dataclass
class ServerUse:
    """The tools of one assigned server.

    `narrowed` is the event of the last time that unused tools of the server were disabled. It is None if this never
    happened or was undone.
    """

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

    @property
    def tokens(self) -> int:
        """The estimated number of LLM tokens that the server's listed tools take in a model's context."""
        return sum(tool.tokens for tool in self.tools)

    @property
    def dearest_unused(self) -> list[ToolUse]:
        """The unused listed tools with the longest definitions, longest first; at most DEAREST."""
        listed = (tool for tool in self.unused if tool.listed_bytes)
        return sorted(listed, key=lambda tool: (-tool.listed_bytes, tool.name))[:DEAREST]


def uses(assignments: Iterable[Assignment]) -> list[ServerUse]:
    """Return the tools of each assignment, and the time of each tool's last call within the last SPAN.

    The results are in the order of `assignments`. Denied calls do not count.
    """
    rows = list(assignments)
    narrowed = narrowings(one.pk for one in rows)
    by_pk = {one.pk: ServerUse(one, narrowed=narrowed.get(str(one.pk))) for one in rows}
    listed = {*Feature.objects.tools().callable().filter(assignment__in=by_pk).values_list("pk", flat=True)}
    for pk, tool, name, enabled, last_at, size in _last_uses(rows):
        by_pk[pk].tools.append(ToolUse(tool, name, enabled, last_at, size if tool in listed else 0))
    return list(by_pk.values())


def _last_uses(assignments: Sequence[Assignment]) -> list[tuple[Any, ...]]:
    """Return a row of LAST_USES for each offered tool, with the time of the tool's last call that was not denied."""
    (since, until), denied = month(), list(ENDINGS["denied"])
    where: dict[str, list[Any]] = {
        **TOOL_CALLS,
        "gateway_id": [*{one.gateway_id for one in assignments}],
        "server_id": [*{one.server_id for one in assignments}],
    }
    with book() as opened, connection.cursor() as cursor:
        # Roll-ups this old exist for whole days only, and the first day begins before `since`. OF_ROLLUPS leaves out
        # tools that were last called before `since`.
        if query := opened.query_of(where, DAYS.begin(since), until, by=OF_TOOLS):
            told, same, values = OF_ROLLUPS.format(rows=query[0]), SAME_TOOL, [*query[1], denied, since]
        else:
            told, same, values = OF_LOG, "true", [since, until, denied]
        cursor.execute(LAST_USES.format(uses=told, same=same), [*values, [one.pk for one in assignments]])
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


def used_tools(assignment: Assignment) -> list[str]:
    """Return the names of the tools with a recent call that was not denied."""
    return [tool.name for tool in uses([assignment])[0].used]


def callers(gateway: Gateway) -> tuple[list[GatewayCaller], bool]:
    """Return a pair: the most frequent callers of the gateway's tools, and whether older calls may be left out.

    Only the newest MOST_READ calls are read.
    """
    denied = list(ENDINGS["denied"])
    rows = _selected(CALLERS, denied, gateway.pk, *month(), MOST_READ, MOST_CALLERS, before=IN_ORDER)
    return [GatewayCaller(*told) for *told, _ in rows], bool(rows) and rows[0][-1] >= MOST_READ


def _selected(statement: str, *parameters: Any, before: str = "") -> list[tuple[Any, ...]]:
    """Run a statement after the SET statements in `before`, and return its rows."""
    with transaction.atomic(), connection.cursor() as cursor:
        if before:
            cursor.execute(before)
        cursor.execute(statement, parameters)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


class TokenUse(NamedTuple):
    """The use of an access token.

    `used` is the number of tools called with the token in the last SPAN. `offered` is the number of tools offered by
    the servers that the token may call.
    """

    used: int
    offered: int
    label: str

    @classmethod
    def of(cls, token: UUID, connected: UUID, servers: Iterable[UUID], gateway: UUID) -> TokenUse:
        """Return the use of `token`, which belongs to connection `connected` and may call `servers` of `gateway`."""
        places = {"assignment__gateway": gateway, "assignment__server__in": list(servers)}
        offered = Feature.objects.tools().offered().filter(**places, assignment__removed_at=None).count()
        ((used,),) = _selected(CALLED_WITH, connected, token, *month(), list(ENDINGS["denied"]), MOST_READ)
        return cls(used, offered, SPAN.label)


class Cell(NamedTuple):
    """A cell of the table of people and tools, with the number of calls of the tool by the person.

    `level` is the shade of the cell's colour, from 0 to LEVELS.
    """

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
    """Return the numbers of calls by person and tool in the time range `chosen`, a key of RANGES.

    Only the newest MOST_READ calls are counted. If there are more calls, `since` in the result is the time of the
    oldest counted call. If all calls were counted, `since` is None.
    """
    until = timezone.now()
    since = range_start(until, RANGES[chosen].length)
    found = _selected(BY_PERSON_AND_TOOL, gateway.pk, since, until, MOST_READ + 1, before=IN_ORDER)
    are_more = bool(found) and found[0][-1] > MOST_READ
    calls = {(person, tool): number for person, tool, number, *_ in found if person and tool is not None}
    people, tools, tools_called = Counter[UUID](), Counter[str](), Counter[UUID]()
    for (person, tool), number in calls.items():
        people[person] += number
        if tool:  # Empty for calls without a tool name.
            tools[tool] += number
            tools_called[person] += 1
    shown = {tool: urlencode({"tool": tool}) for tool, _ in tools.most_common(TOOLS)}
    names = newest_names(FIELDS["user"], [person for person, _ in people.most_common(PEOPLE)])
    highest = max(calls.values(), default=1)
    narrowed = urlencode({"gateway": gateway.pk, "range": chosen, "method": "tools/call"})

    def cell(person: UUID, tool: str, link: str) -> Cell:
        number = calls.get((person, tool), 0)
        level = -(-LEVELS * number // highest)
        return Cell(f"{person}:{tool}", number, level, f"{narrowed}&user={person}&{link}")

    rows = [
        PersonUse(
            person,
            names.get(person) or str(person),
            [cell(person, tool, link) for tool, link in shown.items()],
            tools_called[person],
            number,
            f"{narrowed}&user={person}",
        )
        for person, number in people.most_common(PEOPLE)
    ]
    return {
        "rows": rows,
        "tools": [(tool, f"{narrowed}&{link}") for tool, link in shown.items()],
        "people_count": len(people),
        "since": min(first for *_, first, _ in found) if are_more else None,
    }


def _tab_url(gateway: Gateway) -> str:
    return reverse("gateways:usage", args=[gateway.slug])


@require_GET
@requires(Capability.LOGS_READ)
def usage(request: AppRequest, slug: str) -> HttpResponse:
    if not Gateway.objects.visible_to(request.user).filter(slug=slug).exists():
        return log_alone("gateway", get_object_or_404(Gateway, slug=slug).pk)
    gateway = gateway_or_404(request.user, slug)
    assignments = gateway.assignments.live().select_related("server", "gateway").order_by("alias", "pk")
    by_whom, are_more = replica.read_from_replica(request, lambda: callers(gateway))
    chosen = chosen_range(request.GET.get("range"), RANGES, DEFAULT)
    context = {
        "gateway": gateway,
        "tab": "usage",
        "ranges": [(name, each.label) for name, each in RANGES.items()],
        "chosen": chosen,
        "label": RANGES[chosen].label,
        **replica.read_from_replica(request, lambda: matrix(gateway, chosen)),
        "period": SPAN,
        "servers": (servers := uses(assignments)),
        "tokens": sum(one.tokens for one in servers),
        "bytes_per_token": BYTES_PER_TOKEN,
        "callers": by_whom,
        "are_more": are_more,
    }
    return show(request, "gateways/usage.html", context)


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
@requires(Capability.LOGS_READ)
def narrow(request: AppRequest, pk: UUID) -> HttpResponse:
    """Ask for a confirmation, then disable the unused tools.

    With the parameter `dearest`, only unused tools with the longest definitions are disabled.
    """
    assignment = assignment_or_404(request.user, pk)
    back, name = _tab_url(assignment.gateway), assignment.server.name
    is_dearest = "dearest" in (request.POST if request.method == "POST" else request.GET)

    def act() -> HttpResponse:
        # Looked up again: tools may have been used since the question.
        kept = _without_dearest(assignment) if is_dearest else used_tools(assignment)
        off = assignment.narrow(kept, by=request.user)
        undo = Undo.if_changed(bool(off), reverse("gateways:widen", args=[pk]))
        return leave(request, back, f"{name}: {_tools(len(off))} disabled", undo)

    title = f"Hide unused tools of {name}" if is_dearest else f"Narrow {name}"
    question = _question(assignment, is_dearest=is_dearest) if request.method == "GET" else {}
    return confirmed(request, act, back=back, title=title, kind="primary", icon="policy", **question)


def _without_dearest(assignment: Assignment) -> list[str]:
    """Return the names of all tools except `dearest_unused`, the unused tools with the longest definitions."""
    (use,) = uses([assignment])
    hidden = [tool.name for tool in use.dearest_unused]
    return list(assignment.features.exclude(exposed_name__in=hidden).values_list("exposed_name", flat=True))


def _question(assignment: Assignment, *, is_dearest: bool) -> dict[str, Any]:
    """Return keyword arguments for the confirmation: its texts, and its hidden form fields.

    The texts say which tools will be disabled or hidden.
    """
    (use,) = uses([assignment])
    gateway, days, begun = assignment.gateway, SPAN.length.days, assignment.created_at
    off = use.dearest_unused if is_dearest else use.to_switch_off
    if is_dearest:
        saved = sum(tool.tokens for tool in off)
        text = (
            f"Hide {number_of(len(off), 'tool')} that nobody used in {days} days? "
            f"This makes the tool list of {gateway.name} about {saved:,} LLM tokens shorter."
        )
    else:
        live = Connection.objects.live().filter(gateway=gateway).count()
        text = (
            f"Keep only the {len(use.used)} of {len(use.tools)} tools that were used in {days} days? "
            f"This disables {number_of(len(off), 'tool')} for {number_of(live, 'connection')} to {gateway.name}."
        )
    more = sentences(
        f"To be disabled: {first_names([tool.name for tool in off])}." if off else "",
        "Tools that the server adds later are disabled at first.",
        f"The server has been on this gateway only since {begun:%Y-%m-%d}." if begun > month()[0] else "",
        "You can undo this on this page.",
    )
    return {"text": text, "more": more, "hidden": (("dearest", 1),) if is_dearest else ()}


def _tools(number: int) -> str:
    return "1 tool is" if number == 1 else f"{number} tools are"


@require_POST
@requires(Capability.GATEWAYS_MANAGE)
def widen(request: AppRequest, pk: UUID) -> HttpResponse:
    assignment = assignment_or_404(request.user, pk)
    on = assignment.widen(by=request.user)
    may_read = request.user.has_perm(Capability.LOGS_READ)
    tools_url = reverse("gateways:tools", args=[assignment.gateway.slug])
    back = _tab_url(assignment.gateway) if may_read else tools_url
    return leave(request, back, f"{assignment.server.name}: {_tools(len(on))} enabled again")
