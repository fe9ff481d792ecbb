"""Pages that show one object as YAML. People copy the YAML into a configuration file."""

from __future__ import annotations

from uuid import UUID

from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.views.decorators.http import require_GET

from accounts.models import Role, Team
from capabilities import Capability, requires
from configuration.export import export_one
from hosts.models import Host
from rules.models import Rule
from sinks.models import Sink
from ui.pages import AppRequest


@require_GET
@requires(Capability.GATEWAYS_READ)
def gateway(request: AppRequest, slug: str) -> HttpResponse:
    return _page(request, "gateways", slug, reverse("gateways:detail", args=[slug]))


@require_GET
@requires(Capability.SERVERS_READ)
def server(request: AppRequest, slug: str) -> HttpResponse:
    return _page(request, "servers", slug, reverse("servers:detail", args=[slug]))


@require_GET
@requires(Capability.HOSTS_READ)
def agent(request: AppRequest, pk: UUID) -> HttpResponse:
    host = get_object_or_404(Host.objects.live(), pk=pk)
    return _page(request, "agents", host.name, reverse("hosts:detail", args=[pk]))


@require_GET
@requires(Capability.RULES_READ)
def rule(request: AppRequest, pk: UUID) -> HttpResponse:
    return _page(request, "rules", get_object_or_404(Rule, pk=pk).name, reverse("rules:edit", args=[pk]))


@require_GET
@requires(Capability.PEOPLE_READ)
def role(request: AppRequest, pk: UUID) -> HttpResponse:
    return _page(request, "roles", get_object_or_404(Role, pk=pk).name, reverse("accounts:role", args=[pk]))


@require_GET
@requires(Capability.PEOPLE_READ)
def team(request: AppRequest, pk: UUID) -> HttpResponse:
    return _page(request, "teams", get_object_or_404(Team, pk=pk).name, reverse("gateways:team", args=[pk]))


@require_GET
@requires(Capability.SINKS_MANAGE)
@requires(Capability.LOGS_READ)
@requires(Capability.AUDIT_READ)
def sink(request: AppRequest, pk: UUID) -> HttpResponse:
    return _page(request, "sinks", get_object_or_404(Sink, pk=pk).name, reverse("sinks:sink", args=[pk]))


@require_GET
@requires(Capability.WORKSPACE_READ)
def workspace(request: AppRequest) -> HttpResponse:
    return _page(request, "workspace", "", reverse("accounts:workspace"), "Workspace settings")


@require_GET
@requires(Capability.WORKSPACE_READ)
@requires(Capability.PEOPLE_READ)
def organisation(request: AppRequest) -> HttpResponse:
    return _page(request, "organisation", "", reverse("sso:settings"), "Sign-in by your organisation")


def _page(request: AppRequest, kind: str, key: str, back: str, title: str = "") -> HttpResponse:
    text = export_one(kind, key, request.user)
    if text is None:
        raise Http404
    return render(request, "configuration/yaml.html", {"text": text, "name": title or key, "back": back})
