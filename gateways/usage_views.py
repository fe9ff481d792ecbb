"""The Usage tab of a gateway: which tools were called and by whom, and narrowing each server to those."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from auditlog import replica
from auditlog.instruments import chosen_range
from auditlog.models import ENDINGS
from auditlog.views import log_alone
from capabilities import Capability, requires
from connections.models import Connection
from gateways import assignment_views
from gateways.models import Assignment, Feature, Gateway
from gateways.use_of_gateway import DEFAULT, RANGES, called_tools, callers, matrix, period_of, used_tools, uses
from gateways.views import gateway_or_404 as find_gateway
from ui.pages import AppRequest, Undo, confirm, first_names, leave, sentences, show

# Recent use of one tool: calls, errors, durations and callers, computed from its newest calls.

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


def tab_url(gateway: Gateway) -> str:
    return reverse("gateways:usage", args=[gateway.slug])


@require_GET
@requires(Capability.LOGS_READ)
def usage(request: AppRequest, slug: str) -> HttpResponse:
    if not Gateway.objects.visible_to(request.user).filter(slug=slug).exists():
        return log_alone("gateway", get_object_or_404(Gateway, slug=slug).pk)
    gateway = find_gateway(request.user, slug)
    assignments = list(gateway.assignments.live().select_related("server", "gateway").order_by("alias", "pk"))
    period = period_of(assignments)
    by_whom, are_more = replica.read_from_replica(request, lambda: callers(gateway, period))
    chosen = chosen_range(request.GET.get("range"), RANGES, DEFAULT)
    context = {
        "gateway": gateway,
        "tab": "usage",
        "ranges": [(name, each.label) for name, each in RANGES.items()],
        "chosen": chosen,
        "label": RANGES[chosen].label,
        **replica.read_from_replica(request, lambda: matrix(gateway, chosen)),
        "period": period,
        "servers": uses(assignments, period, called_tools(gateway, period)),
        "callers": by_whom,
        "are_more": are_more,
    }
    return show(request, "gateways/usage.html", context)


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
@requires(Capability.LOGS_READ)
def narrow(request: AppRequest, pk: UUID) -> HttpResponse:
    """Confirm, then disable the tools that were not used. Use is looked up again on POST."""
    assignment = assignment_views.assignment_or_404(request.user, pk)
    back = tab_url(assignment.gateway)
    if request.method == "GET":
        period = period_of([assignment])
        use = uses([assignment], period)[0]
        off, name = [tool.name for tool in use.to_switch_off], assignment.server.name
        live = Connection.objects.live().filter(gateway=assignment.gateway_id).count()
        lately = period.label.replace(" d", " days")
        connections = f"{live} {'connection' if live == 1 else 'connections'}"
        return confirm(
            request,
            title=f"Narrow {name}",
            kind="primary",
            icon="policy",
            text=f"Leave on the {len(use.used)} of {len(use.tools)} tools that were used in {lately}? "
            f"{_tools(len(off))} switched off for {connections} to {assignment.gateway.name}.",
            more=sentences(
                f"Switched off: {first_names(off)}." if off else "",
                "What its server adds later starts switched off.",
                _young(assignment, period.since),
                "Undo stands on this page afterwards.",
            ),
            back=back,
        )
    off = assignment.narrow(used_tools(assignment), by=request.user)
    undo = Undo.if_changed(bool(off), reverse("gateways:widen", args=[pk]))
    return leave(request, back, f"{assignment.server.name}: {_tools(len(off))} switched off", undo)


def _tools(number: int) -> str:
    return "1 tool is" if number == 1 else f"{number} tools are"


def _young(assignment: Assignment, since: datetime) -> str:
    begun = assignment.created_at
    return f"It is here only since {begun:%Y-%m-%d}." if begun > since else ""


@require_POST
@requires(Capability.GATEWAYS_MANAGE)
def widen(request: AppRequest, pk: UUID) -> HttpResponse:
    assignment = assignment_views.assignment_or_404(request.user, pk)
    on = assignment.widen(by=request.user)
    back = (
        tab_url(assignment.gateway)
        if request.user.has_perm(Capability.LOGS_READ)
        else reverse("gateways:tools", args=[assignment.gateway.slug])
    )
    return leave(request, back, f"{assignment.server.name}: {_tools(len(on))} switched on again")
