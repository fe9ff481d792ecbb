"""The log as a tab of the host, the gateway or the server it is about; who may not see those gets the log alone."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.http import Http404, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.http import require_GET

from auditlog.search.filters import CallFilter
from auditlog.views import listing
from capabilities import Capability, requires
from capabilities.sections import SEES_SERVERS
from gateways.models import Gateway
from gateways.views import find as find_gateway
from hosts.views import find as find_host
from servers.models import Server
from servers.views import find as find_server
from ui.pages import AppRequest


@require_GET
@requires(Capability.LOGS_READ)
def host(request: AppRequest, pk: UUID) -> HttpResponse:
    """The calls of one host."""
    if not request.user.has_perm(Capability.HOSTS_READ):
        return _alone("host", pk)
    return _tab(request, "host", find_host(request.user, pk))


@require_GET
@requires(Capability.LOGS_READ)
def gateway(request: AppRequest, slug: str) -> HttpResponse:
    """The calls through one gateway."""
    if not Gateway.objects.visible_to(request.user).filter(slug=slug).exists():
        return _alone("gateway", _pk(Gateway.objects.filter(slug=slug)))
    return _tab(request, "gateway", find_gateway(request.user, slug))


@require_GET
@requires(Capability.LOGS_READ)
def server(request: AppRequest, slug: str) -> HttpResponse:
    """The calls that went to one server."""
    if not any(request.user.has_perm(capability) for capability in SEES_SERVERS):
        return _alone("server", _pk(Server.objects.filter(slug=slug)))
    return _tab(request, "server", find_server(slug))


def _tab(request: AppRequest, kind: str, thing: Any) -> HttpResponse:
    chosen = CallFilter(request.GET, {kind: str(thing.pk)})
    return listing(request, f"auditlog/of_{kind}.html", {kind: thing, "tab": "logs"}, chosen)


def _alone(kind: str, pk: UUID) -> HttpResponse:
    return redirect(f"{reverse('auditlog:calls')}?{urlencode({kind: pk})}")


def _pk(rows: Any) -> UUID:
    found = rows.values_list("pk", flat=True).first()
    if found is None:
        raise Http404
    return UUID(str(found))
