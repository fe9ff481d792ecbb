"""The tab *Least privilege* of an app or agent (a host): what it may use, and what it used in the last 30 days.

The tab lists the tools that at least one person may use through the host. The tab suggests hiding a tool only if nobody
used it, because hiding a tool takes it away from everybody on the gateway.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Q
from django.http import HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET

from accounts.models import User
from auditlog import replica
from auditlog.models import ENDINGS, Call
from auditlog.views import log_alone
from capabilities import Capability, requires
from connections.given_tools import given_to
from connections.models import Connection, ConnectionQuerySet
from connections.rows import active, connections_visible_to
from gateways.models import Assignment, Feature, Gateway
from gateways.usage import IN_ORDER, ServerUse, uses
from hosts.models import Host
from hosts.views import host_or_404
from ui.pages import AppRequest, may_follow, show
from ui.viewset import MOST_PICKED

USED_IN = timedelta(days=30)
REPLAYED = timedelta(days=90)
MOST_READ = 10_000  # Only this many of the agent's newest calls are read.
MOST_REFUSED = 1_000  # At most this many of the calls that would have been refused are read.
SHOWN = 10
MOST_TOOLS = 50
MOST_CONNECTIONS = 20
MOST_GATEWAYS = 10
COUNTED_AT_ONCE = 1_000  # For a host with more connections, the page says "Counting…" first.
MOST_ASSIGNMENTS = 20  # Assigned servers searched for tools that nobody used.
COLUMNS = ("uid", "created_at", "method", "feature_name", "user_email", "outcome")  # The payloads are not read.
TEXTS = ("description", "input_schema", "approved", "shown", "offered")  # Long, and not on the page.

TOOLS_USED = """
SELECT gateway_id, server_id, feature_name, count(*), max(created_at)
FROM (
    SELECT gateway_id, server_id, feature_name, created_at FROM auditlog_call
    WHERE host_id = %s AND created_at >= %s AND created_at < %s AND method = 'tools/call' AND feature_name <> ''
        AND server_id IS NOT NULL AND outcome <> ALL(%s)
    ORDER BY created_at DESC LIMIT %s
) c GROUP BY 1, 2, 3
"""


class ToolOfAgent(NamedTuple):
    """A tool that the host may call on a gateway, and how often the host called it in the last 30 days."""

    feature: Feature
    calls: int
    last_at: datetime | None


@dataclass
class LeastPrivilege:
    """The tools and connections of `host`, divided into those used in the last 30 days and the others.

    `refused` shows the effect of disabling the `unused` connections. It has the calls that these connections made 30 to
    90 days ago, and that would have been refused if the connections had been disabled at that time.
    """

    host: Host
    tools: list[ToolOfAgent] = field(default_factory=list)
    not_given: Counter[Gateway] = field(default_factory=Counter)  # Number of tools nobody may use through the host.
    used: int = 0  # Connections in use.
    unused: list[Connection] = field(default_factory=list)  # At most MOST_PICKED.
    unused_count: int = 0  # All of them.
    refused: list[Call] = field(default_factory=list)
    hideable: list[ServerUse] = field(default_factory=list)
    is_cut: bool = False  # True if there were at least MOST_READ calls.

    @property
    def used_tools(self) -> list[ToolOfAgent]:
        return [tool for tool in self.tools if tool.calls]

    @property
    def unused_tools(self) -> list[ToolOfAgent]:
        return [tool for tool in self.tools if not tool.calls]

    @classmethod
    def seen_by(cls, viewer: User, host: Host) -> LeastPrivilege:
        """Return the LeastPrivilege of those enabled connections of `host` that `viewer` may see."""
        return cls.of(host, connections_visible_to(viewer).live().filter(host=host, enabled=True))

    @classmethod
    def of(cls, host: Host, connections: ConnectionQuerySet) -> LeastPrivilege:
        """Return the LeastPrivilege of `connections`, which are enabled connections of `host`."""
        now = timezone.now()
        in_use = Q(connected_at__gte=now - USED_IN) | Q(last_used_at__gte=now - USED_IN)
        unused = connections.exclude(in_use).select_related("gateway", "user")
        page = cls(host, used=connections.filter(in_use).count(), unused=list(unused[:MOST_PICKED]))
        page.unused_count = unused.count() if len(page.unused) == MOST_PICKED else len(page.unused)
        pks = [one.pk for one in page.unused]
        # Sorted in Python: with ORDER BY, PostgreSQL would read the log backwards from its newest call.
        # `span` ends 30 days ago, because unused connections have no later calls.
        span = (now - REPLAYED, now - USED_IN)
        calls = Call.objects.filter(connection_id__in=pks, created_at__range=span).order_by()
        calls = calls.exclude(outcome__in=ENDINGS["denied"]).only(*COLUMNS)
        found = list(calls[:MOST_REFUSED]) if pks else []
        page.refused = sorted(found, key=lambda call: call.created_at, reverse=True)
        people = {*active(connections).order_by().values_list("gateway_id", "user_id")}
        assignments = Assignment.objects.on().filter(
            gateway__in={gateway for gateway, _ in people}, gateway__enabled=True
        )
        ordered = assignments.select_related("server", "gateway").order_by("gateway__name", "alias", "pk")
        page._add_tools(list(ordered), people)
        return page

    def _add_tools(self, assignments: list[Assignment], people: set[tuple[UUID, UUID]]) -> None:
        now = timezone.now()
        parameters: list[Any] = [self.host.pk, now - USED_IN, now + USED_IN, list(ENDINGS["denied"]), MOST_READ]
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(IN_ORDER)
            cursor.execute(TOOLS_USED, parameters)
            rows = cursor.fetchall()
        called = {(gateway, server, name): (calls, last) for gateway, server, name, calls, last in rows}
        self.is_cut = sum(calls for calls, _ in called.values()) == MOST_READ
        features = Feature.objects.tools().callable().filter(assignment__in=[one.pk for one in assignments])
        given = {*given_to(features, people, self.host.pk).values_list("pk", flat=True)}
        by_pk = {one.pk: one for one in assignments}
        for feature in features.defer(*TEXTS).order_by("exposed_name"):
            feature.assignment = one = by_pk[feature.assignment_id]
            if feature.pk not in given:
                self.not_given[one.gateway] += 1
                continue
            calls, last = called.get((one.gateway_id, one.server_id, feature.exposed_name[:300]), (0, None))
            self.tools.append(ToolOfAgent(feature, calls, last))
        self.tools.sort(key=lambda tool: (-tool.calls, tool.feature.exposed_name))
        for use in uses(assignments[:MOST_ASSIGNMENTS]):
            if use.to_switch_off:
                self.hideable.append(use)


@require_GET
@requires(Capability.LOGS_READ)
def least_privilege(request: AppRequest, pk: UUID) -> HttpResponse:
    if not request.user.has_perm(Capability.HOSTS_READ):
        return log_alone("host", pk)
    host = host_or_404(request.user, pk)
    many = host.row_count > COUNTED_AT_ONCE  # type: ignore[attr-defined]
    if many and may_follow(request):
        return show(request, "hosts/least_privilege.html", {"host": host, "tab": "least privilege"})
    page = replica.read_from_replica(request, lambda: LeastPrivilege.seen_by(request.user, host))
    context: dict[str, Any] = {
        "host": host,
        "tab": "least privilege",
        "page": page,
        "used_tools": page.used_tools[:MOST_TOOLS],
        "more_used": len(page.used_tools[MOST_TOOLS:]),
        "unused_tools": page.unused_tools[:MOST_TOOLS],
        "more_unused": len(page.unused_tools[MOST_TOOLS:]),
        "not_given": page.not_given.most_common(MOST_GATEWAYS),
        "more_not_given": len(page.not_given) - MOST_GATEWAYS,
        "unused": page.unused[:MOST_CONNECTIONS],
        "more_connections": page.unused_count - MOST_CONNECTIONS if page.unused[MOST_CONNECTIONS:] else 0,
        "refused": page.refused[:SHOWN],
        "is_more": len(page.refused) == MOST_REFUSED,
        "calls_url": f"{reverse('auditlog:calls')}?{urlencode({'host': host.pk, 'range': '30d'})}",
    }
    return show(request, "hosts/least_privilege.html#counted", context)
