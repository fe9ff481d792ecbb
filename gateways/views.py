"""The Gateways pages: the list, the page of a gateway with its log, and enabling, disabling and archiving it."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

from django.db import IntegrityError
from django.db.models import Count, IntegerField, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce, Lower
from django.forms import Form
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import User
from auditlog.instruments import Instruments
from auditlog.versions import ChangedMeanwhile
from auditlog.views import log_alone, log_tab
from capabilities import Capability, own_resource, requires
from capabilities.catalogue import SEES_CONNECTIONS, SEES_GATEWAYS
from connections.impact import archived_with, cut_together, cuts
from connections.models import Connection, StillEnabled
from connections.rows import counted_for
from gateways.forms import DefinitionsForm, GatewayFilter, GatewayForm, LimitForm, NameForm, ReachForm
from gateways.models import Feature, FeatureKind, Gateway, GatewayQuerySet
from servers.forms import suggest
from ui import bulk
from ui.bulk import Switching
from ui.pages import (
    NOTHING_IS_DELETED,
    AppRequest,
    Undo,
    answer,
    clash_context,
    confirm,
    confirm_archiving,
    leave,
    page_of,
    refuse,
    seen_version,
    show,
    switch_target,
    was_typed,
)
from ui.tables import WEEK, Column, Table, show_list

# The columns of the lists of gateways, their servers and tools, and of teams.

GATEWAYS = Table(
    "gateways",
    "Gateways",
    (
        Column("pick", "Pick", 2, kind="pick", needs=Capability.GATEWAYS_TOGGLE),
        Column("name", "Name", sorts=(Lower("name"),)),
        Column("url", "Gateway URL", 20, priority=3),
        Column("servers", "Servers", 4, priority=2, kind="number"),
        Column("tools", "Tools", 4, priority=3, kind="number"),
        Column("connections", "Connections", 6, priority=2, kind="number"),
        Column("calls", "Calls", 6, priority=3, kind="number", hint=WEEK, needs=Capability.LOGS_READ, is_extra=True),
        Column("reach", "Reach", 7, priority=3, sorts=("reach", Lower("name")), on_phone=True),
        Column("enabled", "Enabled", 5, kind="switch"),
        Column("acts", "Actions", 4, kind="acts", said=False),
    ),
    order="name",
)
SERVERS = Table(
    "servers-of-gateway",
    "Servers of this gateway",
    (
        Column("name", "Server"),
        Column("alias", "Alias", 7, priority=4),
        Column("scheme", "Identity scheme", 9, priority=2, on_phone=True),
        Column("shared", "Shared identity", 10, priority=3),
        Column("tools", "Tools", 5, kind="number", on_phone=True),
        Column("health", "Health", 12, priority=2, on_phone=True),
        Column("enabled", "Enabled", 5, kind="switch"),
        Column("acts", "Actions", 9, kind="acts", said=False),
    ),
)
NAMES = {
    "tool": "Tool (exposed name)",
    "prompt": "Prompt (exposed name)",
    "resource": "Address",
    "template": "Address",
    "all": "Exposed name",
}


def _features(kind: str) -> Table:
    return Table(
        f"features-{kind}",
        "Tools, prompts and resources of this server",
        (
            Column("name", NAMES[kind]),
            Column("state", "State", 9, on_phone=True),
            Column("title", "Title", 16, priority=2, on_phone=True),
            Column("effect", "Effect", 8, priority=3),
            Column("first", "First seen", 7, priority=4),
            Column("last", "Last seen", 7, priority=3, on_phone=True),
            Column("acts", "Enabled", 6, kind="acts"),
        ),
    )


FEATURES = {kind: _features(kind) for kind in NAMES}
TEAMS = Table(
    "teams",
    "Teams",
    (
        Column("name", "Name"),
        Column("people", "People", 6, kind="number", on_phone=True),
        Column("gateways", "Gateways for teams", 10, kind="number", on_phone=True),
    ),
)
MEMBERS = Table(
    "members",
    "People of this team",
    (
        Column("name", "Name"),
        Column("email", "Email", 16, priority=2, on_phone=True),
        Column("role", "Role", 8, priority=3),
        Column("status", "Status", 10, on_phone=True),
        Column("acts", "Actions", 4, kind="acts", said=False),
    ),
)


PLURALS = {
    FeatureKind.TOOL: "Tools",
    FeatureKind.PROMPT: "Prompts",
    FeatureKind.RESOURCE: "Resources",
    FeatureKind.TEMPLATE: "Templates",
}
WITHIN_REACH = "lists only gateways within one's reach"


def counted(gateways: GatewayQuerySet, viewer: User) -> GatewayQuerySet:
    """Annotate gateways with the number of servers, tools and live connections that `viewer` may see."""
    assigned = Q(assignments__removed_at=None, assignments__isnull=False)
    tools = Q(assignments__features__kind=FeatureKind.TOOL, assignments__features__missing_since=None)
    return gateways.annotate(
        server_count=_number("assignments", assigned),
        tool_count=_number("assignments__features", assigned & tools),
        connection_count=_number("connections", counted_for(viewer) & Q(connections__revoked_at=None)),
    ).order_by(Lower("name"))


def _number(of: str, condition: Q) -> Subquery:
    """Count in a subquery: joining several relations would multiply the counts."""
    rows = Gateway.objects.filter(pk=OuterRef("pk")).annotate(number=Count(of, filter=condition))
    return Subquery(rows.order_by().values("number"), output_field=IntegerField())


def gateway_or_404(viewer: User, slug: str) -> Any:
    """Return the live gateway with its counts, or 404 if `viewer` may not see it.

    `row_count` includes ended connections, as their tab does. `waiting_count` counts definitions that wait for a
    decision.
    """
    rows = counted(Gateway.objects.visible_to(viewer).select_related("created_by"), viewer)
    waiting = Feature.objects.needing_attention().placed().filter(assignment__gateway=OuterRef("pk"))
    numbers = waiting.order_by().values("assignment__gateway").annotate(number=Count("pk")).values("number")
    rows = rows.annotate(
        row_count=_number("connections", counted_for(viewer)), waiting_count=Coalesce(Subquery(numbers), 0)
    )
    return get_object_or_404(rows, slug=slug)


def offered_by_kind(gateway: Gateway) -> dict[str, int]:
    """Count the features its servers offer, by kind."""
    features = Feature.objects.offered().filter(assignment__gateway=gateway.pk, assignment__removed_at=None)
    return dict(features.order_by().values_list("kind").annotate(Count("pk")))


def page_url(gateway: Gateway) -> str:
    return reverse("gateways:detail", args=[gateway.slug])


@require_GET
@own_resource(WITHIN_REACH)
def listing(request: AppRequest) -> HttpResponse:
    filters = GatewayFilter(request.GET)
    rows = filters.narrow(Gateway.objects.visible_to(request.user)).prefetch_related("teams")
    table = GATEWAYS.seen(request)
    context = {
        "page": page_of(request, table.ordered(counted(rows, request.user))),
        "table": table,
        "filters": filters.cleaned_data,
        "narrowed": any(filters.cleaned_data.values()),
    }
    return show_list(request, "gateways/list.html#results", context)


@require_GET
@own_resource(WITHIN_REACH, others=SEES_GATEWAYS)
def find_by_id(request: AppRequest, pk: UUID) -> HttpResponse:
    """Redirect to the page of the gateway with this id; logs contain the id, not the slug."""
    return redirect(page_url(get_object_or_404(Gateway.objects.visible_to(request.user), pk=pk)))


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def add(request: AppRequest) -> HttpResponse:
    form = GatewayForm(request.POST or None)
    context = {"form": form, "heading": "Add a gateway", "submit": "Add a gateway", "back": reverse("gateways:list")}
    if request.method == "GET":
        return show(request, "gateways/form.html", context)
    if form.is_valid():
        try:
            gateway = Gateway.objects.add(**form.cleaned_data, by=request.user)
        except IntegrityError:
            form.refuse()
        else:
            return leave(request, reverse("gateways:servers", args=[gateway.slug]), f"{gateway.name} added")
    return refuse(request, "gateways/form.html", context)


@require_GET
@requires(Capability.GATEWAYS_MANAGE)
def slug(request: AppRequest) -> HttpResponse:
    """Suggest a slug, and show the URL it makes, while the name is typed."""
    suggestion = request.GET.get("slug") or suggest(request.GET.get("name", ""), Gateway.objects.all(), 40)
    return render(request, "gateways/form.html#slug", {"made": Gateway(slug=suggestion) if suggestion else None})


@require_GET
@own_resource(WITHIN_REACH, others=SEES_GATEWAYS)
def detail(request: AppRequest, slug: str) -> HttpResponse:
    gateway = gateway_or_404(request.user, slug)
    numbers = offered_by_kind(gateway)
    kinds = [(kind.value, label, numbers[kind]) for kind, label in PLURALS.items() if numbers.get(kind)]
    context: dict[str, Any] = {"gateway": gateway, "tab": "overview", "kinds": kinds}
    if request.user.has_perm(Capability.LOGS_READ):
        context["instruments"] = Instruments.of(
            request,
            {"gateway_id": [gateway.pk]},
            {"gateway": str(gateway.pk)},
            tops=("tool", "user"),
        )
    return show(request, "gateways/overview.html", context)


@require_GET
@requires(Capability.LOGS_READ)
def logs(request: AppRequest, slug: str) -> HttpResponse:
    """Show the calls through one gateway."""
    if not Gateway.objects.visible_to(request.user).filter(slug=slug).exists():
        return log_alone("gateway", get_object_or_404(Gateway, slug=slug).pk)
    return log_tab(request, "gateway", gateway_or_404(request.user, slug))


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def rename(request: AppRequest, slug: str) -> HttpResponse:
    gateway = gateway_or_404(request.user, slug)
    initial = {"name": gateway.name, "description": gateway.description}
    form = NameForm(request.POST or None, gateway=gateway, initial=initial)
    context = {"form": form, "gateway": gateway, "heading": "Rename", "submit": "Rename", "back": page_url(gateway)}
    context["version"] = gateway.version
    if request.method == "GET":
        return show(request, "gateways/form.html", context)
    if form.is_valid():
        try:
            gateway.edit(**form.cleaned_data, by=request.user, seen=seen_version(request))
        except ChangedMeanwhile as clash:
            context |= clash_context(clash)
        except IntegrityError:
            form.refuse()
        else:
            return leave(request, page_url(gateway), "Gateway renamed")
    return refuse(request, "gateways/form.html", context)


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def reach(request: AppRequest, slug: str) -> HttpResponse:
    gateway = gateway_or_404(request.user, slug)
    form = ReachForm(request.POST or None, initial={"reach": gateway.reach, "teams": gateway.teams.all()})
    return _edited(request, gateway, form, "Reach")


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def limit(request: AppRequest, slug: str) -> HttpResponse:
    gateway = gateway_or_404(request.user, slug)
    form = LimitForm(request.POST or None, initial={"calls_per_minute": gateway.calls_per_minute})
    return _edited(request, gateway, form, "Limit")


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def definitions(request: AppRequest, slug: str) -> HttpResponse:
    """Change how new and changed definitions are treated."""
    gateway = gateway_or_404(request.user, slug)
    names = ("new_definitions", "changed_definitions")
    form = DefinitionsForm(request.POST or None, initial={name: getattr(gateway, name) for name in names})
    return _edited(request, gateway, form, "Definitions", heading="Change what is approved")


def _edited(request: AppRequest, gateway: Gateway, form: Form, what: str, heading: str = "") -> HttpResponse:
    """Show the form for one group of settings, then save it."""
    heading = heading or f"Change {what.lower()}"
    context = {"form": form, "gateway": gateway, "heading": heading, "submit": "Save", "back": page_url(gateway)}
    context["version"] = gateway.version
    if request.method == "GET":
        return show(request, "gateways/form.html", context)
    if not form.is_valid():
        return refuse(request, "gateways/form.html", context)
    try:
        gateway.edit(**form.cleaned_data, by=request.user, seen=seen_version(request))
    except ChangedMeanwhile as clash:
        return refuse(request, "gateways/form.html", context | clash_context(clash))
    return leave(request, page_url(gateway), f"{what} changed")


@require_POST
@requires(Capability.GATEWAYS_TOGGLE)
def enable(request: AppRequest, slug: str) -> HttpResponse:
    gateway = gateway_or_404(request.user, slug)
    undo = Undo.if_changed(gateway.enable(by=request.user), reverse("gateways:disable", args=[gateway.slug]))
    return switched(request, gateway, "Gateway enabled", undo)


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_TOGGLE)
def disable(request: AppRequest, slug: str) -> HttpResponse:
    gateway = gateway_or_404(request.user, slug)
    if request.method == "GET":
        return confirm(
            request,
            title="Disable gateway",
            kind="primary",
            text=f"Disable this gateway? {_stopping_connections(gateway, request.user)} {NOTHING_IS_DELETED}",
            more=cuts(gateway, request.user),
            target=switch_target(request, "gateway", gateway.slug),
            back=page_url(gateway),
        )
    undo = Undo.if_changed(gateway.disable(by=request.user), reverse("gateways:enable", args=[gateway.slug]))
    return switched(request, gateway, "Gateway disabled", undo)


@require_POST
@requires(Capability.GATEWAYS_TOGGLE)
def switch(request: AppRequest) -> HttpResponse:
    """Enable or disable the gateways selected in the list."""
    way = Switching("gateway", "gateways", partial(cut_together, viewer=request.user))
    return bulk.switch(request, Gateway.objects.visible_to(request.user), way, back=reverse("gateways:list"))


def _stopping_connections(gateway: Any, viewer: User) -> str:
    if not any(map(viewer.has_perm, SEES_CONNECTIONS)):
        return "All its connections stop on their next request."
    match gateway.connection_count:
        case 0:
            return "Nothing is connected to it."
        case 1:
            return "Its 1 connection stops on its next request."
        case count:
            return f"All {count:,} connections stop on their next request."


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
@requires(Capability.MCP_CONNECTIONS_REVOKE)
def archive(request: AppRequest, slug: str) -> HttpResponse:
    """Archive the gateway. Needs both capabilities, because it ends its connections."""
    gateway = gateway_or_404(request.user, slug)
    if request.method == "GET" or not (gateway.enabled or was_typed(request, str(gateway))):
        more = f"{archived_with(gateway)} Its URL is never used again."
        return confirm_archiving(request, gateway, more=more, back=page_url(gateway))
    try:
        Connection.objects.archive_gateway(gateway, by=request.user)
    except StillEnabled as error:
        return leave(request, page_url(gateway), str(error))
    return leave(request, reverse("gateways:list"), f"{gateway.name} archived")


def switched(request: AppRequest, gateway: Gateway, toast: str, undo: Undo | None = None) -> HttpResponse:
    """Render the part of the page with the switch: the head of the gateway's page, or its row."""
    fragment = "gateways/base.html#head" if request.htmx.target == "gateway-head" else "gateways/list.html#row"
    return answer(request, fragment, {"gateway": gateway}, to=page_url(gateway), toast=toast, undo=undo)
