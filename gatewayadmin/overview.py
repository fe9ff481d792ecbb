"""The dashboard: what is yours, and the numbers your role may see."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db.models import Count, Q
from django.http import HttpResponse
from django.utils import timezone
from django.views.decorators.http import require_GET

from auditlog.models import Call, Outcome
from capabilities import Capability, signed_in
from connections.models import Connection
from connections.rows import Row
from hosts.models import Host
from servers.models import Health, Server
from tokens.models import Kind, Token
from ui.pages import AppRequest, show

REFUSED = (Outcome.DENIED, Outcome.UNAUTHORIZED, Outcome.RATE_LIMITED)
SHOWN = 10


@require_GET
@signed_in("each part is one's own or asks for its capability")
def overview(request: AppRequest) -> HttpResponse:
    user = request.user
    own = Connection.objects.with_details().own(user).live()
    context: dict[str, Any] = {
        "own_rows": [Row(connection, user) for connection in own[:SHOWN]],
        "own_tokens": Token.objects.live()
        .filter(kind=Kind.ACCESS, connection__user=user)
        .select_related("connection__host", "connection__gateway")[:SHOWN],
    }
    if user.has_perm(Capability.HOSTS_READ):
        context["hosts"] = Host.objects.live().aggregate(all=Count("pk"), disabled=Count("pk", filter=Q(enabled=False)))
    if user.has_perm(Capability.MCP_CONNECTIONS_READ):
        context["active_connections"] = Connection.objects.live().filter(enabled=True).count()
    if user.has_perm(Capability.LOGS_READ):
        context |= _traffic()
    if user.has_perm(Capability.SERVERS_MANAGE) or user.has_perm(Capability.SERVERS_TOGGLE):
        context["servers_down"] = Server.objects.live().filter(enabled=True, health=Health.DOWN)[:SHOWN]
    return show(request, "overview.html", context)


def _traffic() -> dict[str, Any]:
    """The calls of the last 24 hours, and the latest that were refused."""
    recent = Call.objects.filter(created_at__gte=timezone.now() - timedelta(hours=24))
    return {
        "calls": recent.aggregate(all=Count("pk"), denied=Count("pk", filter=Q(outcome__in=REFUSED))),
        "denials": recent.filter(outcome__in=REFUSED)[:SHOWN],
    }
