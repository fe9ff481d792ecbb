"""The MCP Connections page: who is connected to what, as whom (requirements 5.5)."""

from __future__ import annotations

from django.http import HttpResponse
from django.views.decorators.http import require_GET

from capabilities import Capability, requires
from connections.mcp_rows import McpFilter, number
from connections.models import ConnectionQuerySet
from connections.rows import STATUSES, Row, visible
from ui.pages import AppRequest, page_of, show

ROWS = 25


@require_GET
@requires(Capability.MCP_CONNECTIONS_READ)
def listing(request: AppRequest) -> HttpResponse:
    asked = McpFilter(request.GET)
    page = page_of(request, asked.narrow(visible(request.user)), ROWS, ConnectionQuerySet.with_details)
    context = {
        "page": page,
        "rows": [Row(connection, request.user) for connection in page],
        "number": number(request.user, asked),
        "chosen": asked.cleaned_data,
        "statuses": STATUSES,
        "gateways": asked.gateways,
        "narrowed": asked.narrowed,
    }
    return show(request, "connections/mcp.html#results", context)
