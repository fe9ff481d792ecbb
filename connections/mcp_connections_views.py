"""The MCP Connections page: who is connected to what, as whom."""

from __future__ import annotations

from django.http import HttpResponse
from django.views.decorators.http import require_GET

from capabilities import Capability, requires
from connections.mcp_connections_filters import McpFilter, number
from connections.models import ConnectionQuerySet
from connections.rows import STATUSES, ConnectionRow, visible
from ui.pages import AppRequest, page_of, show

ROWS = 25


@require_GET
@requires(Capability.MCP_CONNECTIONS_READ)
def listing(request: AppRequest) -> HttpResponse:
    asked = McpFilter(request.GET)
    there = number(request.user, asked)
    found = asked.narrow(visible(request.user))
    page = page_of(request, found, ROWS, ConnectionQuerySet.with_details, count=there.rows)
    context = {
        "page": page,
        "rows": [ConnectionRow(connection, request.user) for connection in page],
        "number": there,
        "chosen": asked.cleaned_data,
        "statuses": STATUSES,
        "gateways": asked.gateways,
        "narrowed": asked.narrowed,
    }
    return show(request, "connections/mcp.html#results", context)
