"""The Tools tab of a gateway: its tools, their switches, and the tool policy of each server."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.core.exceptions import BadRequest
from django.db.models.functions import Lower
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from auditlog.versions import ChangedMeanwhile
from capabilities import Capability, own_resource, requires
from capabilities.catalogue import SEES_GATEWAYS
from connections.impact import cuts
from gateways import assignment_views
from gateways.forms import ToolFilter
from gateways.models import Feature, Gateway, ToolPolicy
from gateways.refresh import Refreshed, refresh
from gateways.views import WITHIN_REACH
from gateways.views import find as find_gateway
from ui.pages import NOTHING_IS_DELETED, AppRequest, answer, confirm, page_of, seen, show, wants_fragment

NEW_FOR = timedelta(days=7)
SHOWN = 32  # Tools a page; more would make it too heavy.


@dataclass(frozen=True)
class ToolRow:
    """One tool of a table."""

    tool: Feature

    @property
    def effect(self) -> str:
        """What its server claims it does; a claim, nothing more."""
        hints = self.tool.annotations
        if hints.get("readOnlyHint") is True:
            return "Read only"
        if hints.get("destructiveHint") is True:
            return "Destructive"
        return "Writes" if hints.get("readOnlyHint") is False else ""

    @property
    def is_new(self) -> bool:
        """Whether it came after its server was assigned, and lately."""
        age = self.tool.first_seen_at - self.tool.assignment.created_at
        return age > timedelta(hours=1) and timezone.now() - self.tool.first_seen_at < NEW_FOR


@dataclass(frozen=True)
class Group:
    """One server of the page, and those of its tools that the page shows."""

    assignment: Any
    rows: list[ToolRow]


def tab_url(gateway: Gateway) -> str:
    return reverse("gateways:tools", args=[gateway.slug])


@require_GET
@own_resource(WITHIN_REACH, others=SEES_GATEWAYS)
def listing(request: AppRequest, slug: str) -> HttpResponse:
    gateway = find_gateway(request.user, slug)
    return show(request, "gateways/tools.html#tools", {"tab": "tools", **_listed(request, gateway)})


def _listed(request: AppRequest, gateway: Any, refreshed: Iterable[Refreshed] = ()) -> dict[str, Any]:
    assignments = list(assignment_views.counted(gateway.assignments.all()))
    filters = ToolFilter(request.GET, assignments=assignments)
    tools = filters.narrow(Feature.objects.tools().filter(assignment__in=assignments)).select_related("assignment")
    page = page_of(
        request, tools.order_by(Lower("assignment__server__name"), "assignment__alias", "exposed_name"), SHOWN
    )
    narrowed = any(filters.cleaned_data.values())
    return {
        "gateway": gateway,
        "assignments": assignments,
        "groups": _grouped(assignments, list(page), with_empty=not narrowed and page.number == 1),
        "page": page,
        "policies": ToolPolicy.choices,
        "filters": filters.cleaned_data,
        "narrowed": narrowed,
        "missing": 0 if narrowed else page.paginator.count - gateway.tool_count,
        "failures": [server.failure for server in refreshed if server.failure],
        "changed": False,
    }


def _grouped(assignments: list[Any], tools: list[Feature], *, with_empty: bool) -> list[Group]:
    groups = [Group(a, [ToolRow(tool) for tool in tools if tool.assignment_id == a.pk]) for a in assignments]
    return [group for group in groups if group.rows or (with_empty and not group.assignment.tool_count)]


@require_POST
@requires(Capability.GATEWAYS_MANAGE)
def refresh_tools(request: AppRequest, slug: str) -> HttpResponse:
    gateway = find_gateway(request.user, slug)
    refreshed = refresh(gateway, by=request.user)
    failures = [server.failure for server in refreshed if server.failure]
    gateway = find_gateway(request.user, slug)
    toast = f"{gateway.tool_count} tools known"
    if failures and not wants_fragment(request):
        toast = " ".join([toast + ".", *failures])
    context = _listed(request, gateway, refreshed)
    return answer(request, "gateways/tools.html#tools", {**context, "fragment": True}, to=tab_url(gateway), toast=toast)


@require_POST
@requires(Capability.GATEWAYS_MANAGE)
def policy(request: AppRequest, pk: UUID) -> HttpResponse:
    """Allow all, only the selected, or none of an assigned server's tools."""
    assignment = assignment_views.find(request.user, pk)
    name = request.POST.get("policy", "")
    if name not in ToolPolicy.values:
        raise BadRequest("There is no such policy.")
    try:
        assignment.edit(tool_policy=name, by=request.user, seen=seen(request))
        toast = f"{assignment.server.name}: {ToolPolicy(name).label}"
    except ChangedMeanwhile as clash:
        current = ", ".join(f"{ToolPolicy(change.now).label}, set by {change.by}" for change in clash.changes)
        toast = f"Nothing was changed: somebody else chose {current}. Choose again to change it."
    gateway = find_gateway(request.user, assignment.gateway.slug)
    context = {**_listed(request, gateway), "fragment": True}
    return answer(request, "gateways/tools.html#tools", context, to=tab_url(gateway), toast=toast)


@require_POST
@requires(Capability.GATEWAYS_MANAGE)
def enable(request: AppRequest, pk: UUID) -> HttpResponse:
    tool = find(request, pk)
    tool.enable(by=request.user)
    return changed(request, tool, f"{tool.exposed_name} enabled")


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def disable(request: AppRequest, pk: UUID) -> HttpResponse:
    tool = find(request, pk)
    gateway = tool.assignment.gateway
    if request.method == "GET":
        return confirm(
            request,
            title="Disable tool",
            text=f"Disable this tool? {tool.exposed_name} leaves {gateway.name} on the next request. "
            f"{NOTHING_IS_DELETED}",
            more=cuts(tool, request.user),
            target=f"#tool-{tool.pk}",
            back=tab_url(gateway),
        )
    tool.disable(by=request.user)
    return changed(request, tool, f"{tool.exposed_name} disabled")


def find(request: AppRequest, pk: UUID) -> Feature:
    """The tool, or 404 when its gateway is out of sight."""
    rows = (
        Feature.objects.tools()
        .select_related("assignment__gateway")
        .filter(assignment__removed_at=None, assignment__gateway__in=Gateway.objects.visible_to(request.user))
    )
    return get_object_or_404(rows, pk=pk)


def changed(request: AppRequest, tool: Feature, toast: str) -> HttpResponse:
    to = tab_url(tool.assignment.gateway)
    return answer(request, "gateways/tools.html#row", {"row": ToolRow(tool)}, to=to, toast=toast)
