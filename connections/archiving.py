"""Putting hosts, gateways and servers away for good, with what that ends."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from capabilities import Capability, requires
from connections.models import Connection, StillEnabled
from gateways.models import Assignment
from gateways.models import StillEnabled as ServerStillEnabled
from gateways.views import find as find_gateway
from gateways.views import page_url as gateway_url
from hosts.models import Host
from hosts.views import find as find_host
from servers.models import Server
from servers.views import find as find_server
from servers.views import page_url as server_url
from ui.pages import AppRequest, confirm, leave

NAMED = 5
GONE = "It leaves the list for good. This cannot be undone."


@require_http_methods(["GET", "POST"])
@requires(Capability.HOSTS_TOGGLE)
@requires(Capability.MCP_CONNECTIONS_REVOKE)
def host(request: AppRequest, pk: UUID) -> HttpResponse:
    """Its connections end with it, so that takes both capabilities."""
    found = find_host(request.user, pk)
    page = reverse("hosts:detail", args=[found.pk])
    if request.method == "GET":
        return _ask(request, found, _revoked(host=found), page)
    try:
        Connection.objects.archive_host(found, by=request.user)
    except StillEnabled as error:
        return leave(request, page, str(error))
    return leave(request, reverse("hosts:list"), f"{found.name} archived")


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
@requires(Capability.MCP_CONNECTIONS_REVOKE)
def gateway(request: AppRequest, slug: str) -> HttpResponse:
    """Its connections end with it, so that takes both capabilities."""
    found = find_gateway(request.user, slug)
    if request.method == "GET":
        more = f"{_revoked(gateway=found)} Its URL is never used again."
        return _ask(request, found, more, gateway_url(found))
    try:
        Connection.objects.archive_gateway(found, by=request.user)
    except StillEnabled as error:
        return leave(request, gateway_url(found), str(error))
    return leave(request, reverse("gateways:list"), f"{found.name} archived")


@require_http_methods(["GET", "POST"])
@requires(Capability.SERVERS_MANAGE)
def server(request: AppRequest, slug: str) -> HttpResponse:
    """It leaves every gateway; connections stay."""
    found = find_server(slug)
    if request.method == "GET":
        return _ask(request, found, _removed(found), server_url(found))
    try:
        Assignment.objects.archive_server(found, by=request.user)
    except ServerStillEnabled as error:
        return leave(request, server_url(found), str(error))
    return leave(request, reverse("servers:list"), f"{found.name} archived")


def _ask(request: AppRequest, thing: Host | Server, more: str, back: str) -> HttpResponse:
    return confirm(
        request,
        title=f"Archive {thing._meta.verbose_name}",
        text=f'Archive "{thing}"? {GONE}',
        more=more,
        icon="archive",
        back=back,
    )


def _revoked(**of: object) -> str:
    """The connections that end with a thing, the first of them by name."""
    live = Connection.objects.live().filter(**of).select_related("user", "gateway", "host")
    side = "gateway" if "host" in of else "host"
    ending = [f"{one.user.email} {'on' if side == 'gateway' else 'with'} {getattr(one, side).name}" for one in live]
    return f"These connections are revoked: {_named(ending)}." if ending else "It has no connection left to revoke."


def _removed(server: Server) -> str:
    """The gateways a server leaves, the first of them by name."""
    live = server.assignments.filter(removed_at=None, gateway__archived_at=None).order_by("gateway__name")
    leaving = list(live.values_list("gateway__name", flat=True))
    return f"It is removed from {_named(leaving)}. Connections stay." if leaving else "It is on no gateway."


def _named(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
