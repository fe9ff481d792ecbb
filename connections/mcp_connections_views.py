"""The MCP Connections page: all connections with host, gateway and user, with filters and counts."""

from __future__ import annotations

from dataclasses import dataclass

from django import forms
from django.db.models.functions import Lower
from django.http import HttpResponse, QueryDict
from django.views.decorators.http import require_GET

from accounts.models import User
from capabilities import requires
from capabilities.catalogue import SEES_CONNECTIONS
from connections.lists import MCP
from connections.models import ConnectionQuerySet
from connections.rows import (
    STATUSES,
    ConnectionFilter,
    ConnectionRow,
    connection_counts,
    connections_visible_to,
    visible,
)
from gateways.models import Gateway
from ui.pages import AppRequest, page_of
from ui.tables import show_list

GATEWAYS = 40  # Choices of the filter; more would make the page too heavy. The search finds the others.
KINDS = ("app", "agent", "all")


class McpFilter(ConnectionFilter):
    """The filters of the page, by default apps only; invalid values are ignored."""

    gateway = forms.MultipleChoiceField(required=False)

    def __init__(self, query: QueryDict) -> None:
        parameters = query.copy()
        if parameters.get("type") not in KINDS:
            parameters["type"] = "app"
        super().__init__(parameters)
        self.fields["type"].choices = [(name, name) for name in KINDS]  # type: ignore[attr-defined]
        live = Gateway.objects.live().order_by(Lower("name"))
        self.gateways = list(live.values_list("slug", "name")[:GATEWAYS])
        self.fields["gateway"].choices = self.gateways  # type: ignore[attr-defined]

    @property
    def narrowed(self) -> bool:
        """True if a filter other than the type is set."""
        return any(value for name, value in self.cleaned_data.items() if name != "type")

    def narrow(self, rows: ConnectionQuerySet) -> ConnectionQuerySet:
        rows = super().narrow(rows)
        slugs = self.cleaned_data.get("gateway")
        return rows.filter(gateway__slug__in=slugs) if slugs else rows


@dataclass(frozen=True, slots=True)
class ConnectionCounts:
    """The number of connections in a list, and of active and blocked ones, as shown in its header."""

    rows: int
    active: int
    blocked: int

    def __str__(self) -> str:
        blocked = f", {self.blocked:,} blocked" if self.blocked else ""
        return f"{self.rows:,} connection{'' if self.rows == 1 else 's'}, {self.active:,} active{blocked}"


def number(viewer: User, filters: McpFilter) -> ConnectionCounts:
    """Return the counts for the filtered list."""
    counts = connection_counts(filters.narrow(connections_visible_to(viewer)))
    return ConnectionCounts(sum(counts.values()), counts["active"], counts["blocked"])


@require_GET
@requires(*SEES_CONNECTIONS)
def mcp_connections(request: AppRequest) -> HttpResponse:
    filters = McpFilter(request.GET)
    count = number(request.user, filters)
    table = MCP.seen(request)
    matching = table.ordered(filters.narrow(visible(request.user)))
    page = page_of(request, matching, detail=ConnectionQuerySet.with_details, count=count.rows)
    context = {
        "page": page,
        "table": table,
        "rows": [ConnectionRow(connection, request.user) for connection in page],
        "number": count,
        "filters": filters.cleaned_data,
        "statuses": STATUSES,
        "gateways": filters.gateways,
        "narrowed": filters.narrowed,
    }
    return show_list(request, "connections/mcp.html#results", context)
