"""Break-glass: the question each switch asks before it cuts, with what that will be.

These views stand here, above the rooms of what they switch, because they count connections.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db import transaction
from django.http import HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from capabilities import Capability, CapabilityRequired, requires
from connections.impact import cuts
from connections.models import Connection
from gateways import assignment_views, tool_views
from gateways import views as gateway_views
from hosts import views as host_views
from servers import views as server_views
from ui.pages import AppRequest, confirm

LOST = "Nothing is deleted."


def joined(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


@require_http_methods(["GET", "POST"])
@requires(Capability.HOSTS_TOGGLE)
def host(request: AppRequest, pk: UUID) -> HttpResponse:
    """Disable a host; the second button ends its connections too, which takes the other capability."""
    found = host_views.find(request.user, pk)
    may_revoke = request.user.has_perm(Capability.MCP_CONNECTIONS_REVOKE)
    if request.method == "GET":
        return confirm(
            request,
            title="Disable host",
            text=f'Disable this host? Every connection of "{found.name}" stops on its next request. {LOST}',
            more=joined(cuts(found, request.user), "To end access for good, revoke the connections."),
            second=("revoke", "Disable and revoke all connections") if may_revoke else None,
            target="#host-head" if request.GET.get("on") == "page" else f"#host-{found.pk}",
            back=reverse("hosts:detail", args=[found.pk]),
        )
    if "revoke" not in request.POST:
        found.disable(by=request.user)
        return host_views.switched(request, found, "Host disabled")
    if not may_revoke:
        raise CapabilityRequired(Capability.MCP_CONNECTIONS_REVOKE)
    with transaction.atomic():
        found.disable(by=request.user)
        ended = Connection.objects.filter(host=found).revoke_all(by=request.user)
    told = f"Host disabled, {ended} connection{'' if ended == 1 else 's'} revoked"
    return host_views.switched(request, host_views.find(request.user, pk), told)


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_TOGGLE)
def gateway(request: AppRequest, slug: str) -> HttpResponse:
    found = gateway_views.find(request.user, slug)
    if request.method == "GET":
        return confirm(
            request,
            title="Disable gateway",
            text=f"Disable this gateway? {_connections(found, request)} {LOST}",
            more=cuts(found, request.user),
            target="#gateway-head" if request.GET.get("on") == "page" else f"#gateway-{found.slug}",
            back=gateway_views.page_url(found),
        )
    found.disable(by=request.user)
    return gateway_views.switched(request, found, "Gateway disabled")


def _connections(gateway: Any, request: AppRequest) -> str:
    if not request.user.has_perm(Capability.MCP_CONNECTIONS_READ):
        return "All its connections stop on their next request."
    match gateway.connection_count:
        case 0:
            return "Nothing is connected to it."
        case 1:
            return "Its 1 connection stops on its next request."
        case count:
            return f"All {count:,} connections stop on their next request."


@require_http_methods(["GET", "POST"])
@requires(Capability.SERVERS_TOGGLE)
def server(request: AppRequest, slug: str) -> HttpResponse:
    found: Any = server_views.find(slug)
    if request.method == "GET":
        number = found.gateway_count
        stops = f"stops on {number} gateway{'' if number == 1 else 's'} on the next request"
        return confirm(
            request,
            title="Disable server",
            text=f"Disable this server? {found.name} {stops if number else 'is on no gateway'}. {LOST}",
            more=cuts(found, request.user),
            target="#server-head" if request.GET.get("on") == "page" else f"#server-{found.slug}",
            back=server_views.page_url(found),
        )
    found.disable(by=request.user)
    return server_views.switched(request, found, "Server disabled")


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_TOGGLE)
def assignment(request: AppRequest, pk: UUID) -> HttpResponse:
    found = assignment_views.find(request.user, pk)
    if request.method == "GET":
        return confirm(
            request,
            title="Disable server on this gateway",
            text=f"Disable {found.server.name} on {found.gateway.name}? {assignment_views.tools(found)} on the next "
            f"request. {LOST}",
            more=joined(cuts(found, request.user), "Other gateways keep it."),
            target=f"#assignment-{found.pk}",
            back=assignment_views.tab_url(found.gateway),
        )
    found.disable(by=request.user)
    return assignment_views.changed(request, found, "Server disabled on this gateway")


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def tool(request: AppRequest, pk: UUID) -> HttpResponse:
    found = tool_views.find(request, pk)
    if request.method == "GET":
        return confirm(
            request,
            title="Disable tool",
            text=f"Disable this tool? {found.exposed_name} leaves {found.assignment.gateway.name} on the next request. "
            f"{LOST}",
            more=cuts(found, request.user),
            target=f"#tool-{found.pk}",
            back=tool_views.tab_url(found.assignment.gateway),
        )
    found.disable(by=request.user)
    return tool_views.changed(request, found, f"{found.exposed_name} disabled")
