"""The Gateways pages: the list of gateways, and the page of a gateway with its log and servers.

The module also has the form to choose the gateways on which a shared identity may be used.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

from django.db import IntegrityError
from django.db.models import Count, Exists, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce, Lower
from django.forms import Form
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import User
from auditlog.charts import CallPlots
from auditlog.views import log_alone, log_tab
from capabilities import Capability, own_resource, requires
from connections.impact import archived_with, cut_together, cuts, narrowed_to
from connections.models import Connection, StillEnabled
from connections.rows import connections_visible_to
from gateways.feature_refresh import first_list
from gateways.forms import (
    TAKEN,
    AssignmentForm,
    DefinitionsForm,
    GatewayFilter,
    GatewayForm,
    IdentityGatewaysForm,
    LimitForm,
    NameForm,
    ReachForm,
)
from gateways.models import (
    AliasRequired,
    Assignment,
    AssignmentQuerySet,
    Feature,
    FeatureKind,
    Gateway,
    GatewayQuerySet,
    IdentityGateways,
    Listing,
    Reach,
    WrongIdentity,
    allow_identity,
)
from servers.discovery import DiscoveryFailed
from servers.forms import suggest
from servers.models import Health, Identity, Server
from ui.pages import (
    NOTHING_IS_DELETED,
    AppRequest,
    Undo,
    answer,
    is_for,
    leave,
    number_of,
    posted,
    seen_version,
    sentences,
    show,
    switch_target,
    text_of,
)
from ui.tables import CALLS, CREATED, LIVE, Column, Table
from ui.viewset import Picked, archive_page, confirmed, form_page, list_page, switch_off, switch_on, switch_picked

GATEWAYS = Table(
    "gateways",
    "Gateways",
    (
        Column("pick", "Pick", 2, kind="pick", needs=Capability.GATEWAYS_TOGGLE),
        Column("name", "Name", sorts=(Lower("name"),)),
        Column("url", "Gateway URL", 20, priority=2, on_phone=True),
        Column("servers", "Servers", 5, priority=3, kind="number", value="server_count"),
        Column("tools", "Tools", 4, priority=3, kind="number", value="tool_count"),
        Column("connections", "Connections", 7, priority=3, kind="number", hint=LIVE, value="connection_count"),
        CALLS,
        CREATED,
        Column("reach", "Reach", 7, priority=3, sorts=("reach", Lower("name")), on_phone=True, value="reach_text"),
        Column("enabled", "Enabled", 5, kind="switch", value="enabled"),
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
        Column("scheme", "Identity scheme", 9, priority=3, on_phone=True),
        Column("shared", "Shared identity", 10, priority=3),
        Column("tools", "Tools", 5, kind="number", priority=2, on_phone=True),
        Column("health", "Health", 11, priority=2, on_phone=True),
        Column("enabled", "Enabled", 5, kind="switch"),
        Column("acts", "Actions", 9, kind="acts", said=False),
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
    """Annotate each gateway with the numbers of its servers, tools and connections.

    Only live connections that `viewer` may see are counted.
    """
    tools = Feature.objects.tools().offered().filter(assignment__removed_at=None)
    return gateways.annotate(
        server_count=count_of(Assignment.objects.filter(removed_at=None), "gateway"),
        tool_count=count_of(tools, "assignment__gateway"),
        connection_count=count_of(connections_visible_to(viewer).live(), "gateway"),
    ).order_by(Lower("name"))


def count_of(rows: QuerySet[Any], by: str) -> Coalesce:
    """Return a subquery that counts the `rows` whose foreign key `by` refers to the row of the outer query."""
    # An index without the primary key can answer COUNT(*), but not COUNT(id).
    counted = rows.filter(**{by: OuterRef("pk")}).order_by().values(by).annotate(number=Count("*"))
    return Coalesce(Subquery(counted.values("number")), 0)


def gateway_or_404(viewer: User, slug: str) -> Any:
    """Return the live gateway with its counts. Raises Http404 if `viewer` may not see the gateway."""
    rows = counted(Gateway.objects.visible_to(viewer).select_related("created_by"), viewer)
    waiting = Feature.objects.needing_attention().placed()
    rows = rows.annotate(
        row_count=count_of(connections_visible_to(viewer), "gateway"),  # Live and ended, as on the Connections tab.
        waiting_count=count_of(waiting, "assignment__gateway"),  # Definitions to accept or quarantine.
    )
    return get_object_or_404(rows, slug=slug)


def offered_by_kind(gateway: Gateway) -> dict[str, int]:
    """Count the features that the gateway's servers offer, by kind."""
    features = Feature.objects.offered().filter(assignment__gateway=gateway.pk, assignment__removed_at=None)
    return dict(features.order_by().values_list("kind").annotate(number=Count("*")))


def page_url(gateway: Gateway) -> str:
    return reverse("gateways:detail", args=[gateway.slug])


def _switched(request: AppRequest, gateway: Gateway, toast: str, undo: Undo | None = None) -> HttpResponse:
    """Render the part of the page with the on/off switch: the head of the gateway's page, or its row in the list."""
    fragment = "gateways/base.html#head" if request.htmx.target == "gateway-head" else "gateways/list.html#row"
    return answer(request, fragment, {"gateway": gateway}, to=page_url(gateway), toast=toast, undo=undo)


@require_GET
@own_resource(WITHIN_REACH)
def listing(request: AppRequest) -> HttpResponse:
    rows = counted(Gateway.objects.visible_to(request.user).prefetch_related("teams"), request.user)
    return list_page(request, "gateways/list.html", rows, table=GATEWAYS, filters=GatewayFilter(request.GET))


@require_GET
@own_resource(WITHIN_REACH, others=Capability.GATEWAYS_READ)
def find_by_id(request: AppRequest, pk: UUID) -> HttpResponse:
    """Redirect to the page of the gateway with this id; logs contain the id, not the slug."""
    return redirect(page_url(get_object_or_404(Gateway.objects.visible_to(request.user), pk=pk)))


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def add(request: AppRequest) -> HttpResponse:
    form = GatewayForm(posted(request))
    context = {"heading": "Add a gateway", "submit": "Add a gateway", "back": reverse("gateways:list")}

    def save() -> HttpResponse:
        gateway = Gateway.objects.add(**form.cleaned_data, by=request.user)
        return leave(request, reverse("gateways:servers", args=[gateway.slug]), f"{gateway.name} added")

    return form_page(request, "gateways/form.html", form, save, {IntegrityError: ("name", TAKEN)}, **context)


@require_GET
@requires(Capability.GATEWAYS_MANAGE)
def slug(request: AppRequest) -> HttpResponse:
    """Suggest a slug while the name is typed, and show the resulting URL."""
    suggestion = request.GET.get("slug") or suggest(request.GET.get("name", ""), Gateway.objects.all(), 40)
    return render(request, "gateways/form.html#slug", {"made": Gateway(slug=suggestion) if suggestion else None})


@require_GET
@own_resource(WITHIN_REACH, others=Capability.GATEWAYS_READ)
def detail(request: AppRequest, slug: str) -> HttpResponse:
    try:
        gateway = gateway_or_404(request.user, slug)
    except Http404:
        known = get_object_or_404(Gateway.objects.catalogue_of(request.user), slug=slug)
        return redirect("gateways:access_to", known.slug)
    numbers = offered_by_kind(gateway)
    kinds = [(kind.value, label, numbers[kind]) for kind, label in PLURALS.items() if numbers.get(kind)]
    context: dict[str, Any] = {"gateway": gateway, "tab": "overview", "kinds": kinds}
    context["has_grants"] = gateway.people_given.live().exists  # Queried only for a gateway with reach `teams`.
    if request.user.has_perm(Capability.LOGS_READ):
        where, filters = {"gateway_id": [gateway.pk]}, {"gateway": str(gateway.pk)}
        context["call_plots"] = CallPlots.of(request, where, filters, tops=("tool", "user"))
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
    form = NameForm(posted(request), gateway=gateway, initial=_present(gateway, NameForm))
    return _edit(request, gateway, form, "Rename", "Gateway renamed", submit="Rename")


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def reach(request: AppRequest, slug: str) -> HttpResponse:
    gateway = gateway_or_404(request.user, slug)
    if is_for(request, "would-refuse"):
        return _reach_refused(request, gateway)
    form = ReachForm(posted(request), initial={"reach": gateway.reach, "teams": gateway.teams.all()})
    return _edit(request, gateway, form, "Change reach", "Reach changed")


def _reach_refused(request: AppRequest, gateway: Gateway) -> HttpResponse:
    """Show how many recent calls would have been refused with the reach selected in the form."""
    form, refused = ReachForm(request.GET), ""
    if form.is_valid() and form.cleaned_data["reach"] == Reach.TEAMS:
        refused = narrowed_to(gateway, form.cleaned_data["teams"], request.user)
    return render(request, "ui/would_refuse.html#refused", {"refused": refused})


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def limit(request: AppRequest, slug: str) -> HttpResponse:
    gateway = gateway_or_404(request.user, slug)
    form = LimitForm(posted(request), initial=_present(gateway, LimitForm))
    return _edit(request, gateway, form, "Change limit", "Limit changed")


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def definitions(request: AppRequest, slug: str) -> HttpResponse:
    """Change whether new and changed definitions are approved automatically."""
    gateway = gateway_or_404(request.user, slug)
    form = DefinitionsForm(posted(request), initial=_present(gateway, DefinitionsForm))
    return _edit(request, gateway, form, "Change what is approved", "Definitions changed")


def _present(gateway: Gateway, form: type[Form]) -> dict[str, Any]:
    """Return the gateway's current values for the fields of a form."""
    return {name: getattr(gateway, name) for name in form.base_fields}


def _edit(
    request: AppRequest, gateway: Gateway, form: Form, heading: str, done: str, submit: str = "Save"
) -> HttpResponse:
    """Show the form for one group of settings, then save these settings."""
    context = {"gateway": gateway, "heading": heading, "submit": submit, "version": gateway.version}
    back = page_url(gateway)

    def save() -> HttpResponse:
        gateway.edit(**form.cleaned_data, by=request.user, seen=seen_version(request))
        return leave(request, back, done)

    taken = {IntegrityError: ("name", TAKEN)}
    return form_page(request, "gateways/form.html", form, save, taken, back=back, **context)


@require_POST
@requires(Capability.GATEWAYS_TOGGLE)
def enable(request: AppRequest, slug: str) -> HttpResponse:
    gateway = gateway_or_404(request.user, slug)
    return switch_on(request, gateway, "Gateway", reverse("gateways:disable", args=[slug]), _switched)


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_TOGGLE)
def disable(request: AppRequest, slug: str) -> HttpResponse:
    gateway = gateway_or_404(request.user, slug)
    return switch_off(
        request,
        gateway,
        "Gateway",
        reverse("gateways:enable", args=[slug]),
        _switched,
        text=f"Disable this gateway? {_stopping_connections(gateway, request.user)} {NOTHING_IS_DELETED}",
        more=lambda: cuts(gateway, request.user),
        target=switch_target(request, "gateway", slug),
        back=page_url(gateway),
    )


def _stopping_connections(gateway: Any, viewer: User) -> str:
    if not viewer.has_perm(Capability.MCP_CONNECTIONS_READ):
        return "All its connections stop on their next request."
    match gateway.connection_count:
        case 0:
            return "It has no connections."
        case 1:
            return "Its 1 connection stops on its next request."
        case count:
            return f"All {count:,} connections stop on their next request."


@require_POST
@requires(Capability.GATEWAYS_TOGGLE)
def switch(request: AppRequest) -> HttpResponse:
    """Enable or disable the gateways selected in the list."""
    rows, back = Gateway.objects.visible_to(request.user), reverse("gateways:list")
    picked = Picked(request, rows, ("gateway", "gateways"), back=back)
    return switch_picked(picked, partial(cut_together, viewer=request.user))


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
@requires(Capability.MCP_CONNECTIONS_REVOKE)
def archive(request: AppRequest, slug: str) -> HttpResponse:
    """Archive the gateway and revoke its connections; the person must have the capabilities for both."""
    gateway = gateway_or_404(request.user, slug)
    return archive_page(
        request,
        gateway,
        lambda: Connection.objects.archive_gateway(gateway, by=request.user),
        StillEnabled,
        more=lambda: f"{archived_with(gateway)} The URL of the gateway will never be used again.",
        back=page_url(gateway),
        to=reverse("gateways:list"),
    )


# The Servers tab: assigning, editing, disabling and removing servers.


def counted_assignments(
    assignments: AssignmentQuerySet, kind: FeatureKind | None = FeatureKind.TOOL
) -> AssignmentQuerySet:
    """Annotate live assignments with the numbers of their offered and callable features.

    `is_known` is False if the server has not answered a request for its features yet, so that the numbers are unknown.
    `kind` is the kind of feature to count, None for all kinds.
    """
    features = Feature.objects.filter(kind=kind) if kind else Feature.objects.all()
    answers = Listing.objects.filter(assignment=OuterRef("pk"), learnt_at__isnull=False)
    return (
        assignments.live()
        .select_related("gateway", "server", "shared_identity")
        .annotate(
            tool_count=count_of(features.offered(), "assignment"),
            callable_count=count_of(features.callable(), "assignment"),
            # False if the server has never answered, so that the numbers are not known yet.
            is_known=Exists(answers.filter(kind=kind) if kind else answers) | Q(tool_count__gt=0),
        )
        .order_by(Lower("server__name"), "alias")
    )


def assignment_or_404(viewer: User, pk: UUID) -> Any:
    """Return the live assignment with its counts. Raises Http404 if `viewer` may not see the assignment's gateway."""
    rows = counted_assignments(Assignment.objects.filter(gateway__in=Gateway.objects.visible_to(viewer)))
    return get_object_or_404(rows, pk=pk)


def _servers_url(gateway: Gateway) -> str:
    return reverse("gateways:servers", args=[gateway.slug])


def sees_servers(viewer: User) -> bool:
    """True if `viewer` may open the pages of servers."""
    return viewer.has_perm(Capability.SERVERS_READ)


def _assignment_switched(request: AppRequest, row: Assignment, toast: str, undo: Undo | None = None) -> HttpResponse:
    context = {"assignment": row, "gateway": row.gateway, "sees_servers": sees_servers(request.user)}
    told = f"{toast} on this gateway"
    return answer(request, "gateways/servers.html#row", context, to=_servers_url(row.gateway), toast=told, undo=undo)


@require_GET
@own_resource(WITHIN_REACH, others=Capability.GATEWAYS_READ)
def servers(request: AppRequest, slug: str) -> HttpResponse:
    gateway = gateway_or_404(request.user, slug)
    rows = counted_assignments(gateway.assignments.all())
    down = [row for row in rows if row.enabled and row.server.enabled and row.server.health == Health.DOWN]
    context = {"gateway": gateway, "tab": "servers", "rows": rows, "down": down}
    return show(request, "gateways/servers.html", context | {"sees_servers": sees_servers(request.user)})


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def assign(request: AppRequest, slug: str) -> HttpResponse:
    gateway = gateway_or_404(request.user, slug)
    form = AssignmentForm(posted(request), gateway=gateway, server=_chosen_server(request, gateway))

    def save() -> HttpResponse:
        assignment = Assignment.objects.assign(gateway=gateway, by=request.user, **form.cleaned_data)
        text, more = _assigned(assignment, request.user), _left_to_bring(assignment)
        return leave(request, _servers_url(gateway), text.removesuffix(".") + more if more else text)

    fragment = "#scheme" if request.method == "GET" and request.htmx.target == "scheme" else ""
    return _assignment_form(request, form, save, fragment, heading="Assign a server", submit="Assign")


def _assignment_form(
    request: AppRequest, form: AssignmentForm, save: Any, fragment: str = "", **context: str
) -> HttpResponse:
    taken = f"Another server on {form.gateway.name} has taken this alias just now."
    errors = {WrongIdentity: "shared_identity", IntegrityError: ("alias", taken), AliasRequired: "alias"}
    shown = {"gateway": form.gateway, "back": _servers_url(form.gateway), "sees_servers": sees_servers(request.user)}
    return form_page(request, f"gateways/assign.html{fragment}", form, save, errors, **shown, **context)


def _assigned(assignment: Assignment, by: User) -> str:
    """Ask the newly assigned server for its tools, and describe the outcome in words."""
    name = assignment.server.name
    asked = next(iter(first_list(assignment, by=by)), None)
    if asked is None:
        return f"{name} assigned. It is disabled, so it was not asked for its tools."
    if isinstance(asked.outcome, DiscoveryFailed):
        return f"{name} assigned, but it {asked.outcome}. Its tools are not known yet."
    count = len(asked.outcome.tools)
    return f"{name} assigned, {number_of(count, 'tool')} known"


def _left_to_bring(assignment: Assignment) -> str:
    """Return the end of the message about `assignment`, or "" if there is nothing to add.

    If each person has to add their own identity, it says how many live connections of the gateway need one.
    """
    if not Assignment.objects.per_user().filter(pk=assignment.pk).exists():
        return ""
    count = Connection.objects.live().filter(gateway=assignment.gateway_id).count()
    return f". {count:,} connection{' needs' if count == 1 else 's need'} a credential for it" if count else ""


def _chosen_server(request: AppRequest, gateway: Gateway) -> Server | None:
    """Return the server to preselect in the form.

    If the submitted form or the URL names a server, return this server, or None if there is no such server. Otherwise
    return any server, preferably one that is not on this gateway yet, or None if there are no servers.
    """
    reference = text_of(request.POST, "server") or text_of(request.GET, "server")
    live = Server.objects.live()
    if reference:
        return live.filter(slug=reference).first()
    absent = live.exclude(pk__in=gateway.assignments.live().values("server"))
    return absent.filter(enabled=True).first() or absent.first() or live.first()


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def edit_assignment(request: AppRequest, pk: UUID) -> HttpResponse:
    row = assignment_or_404(request.user, pk)
    form = AssignmentForm(posted(request), gateway=row.gateway, server=row.server, assignment=row)

    def save() -> HttpResponse:
        row.edit(by=request.user, seen=seen_version(request), **form.cleaned_data)
        return leave(request, _servers_url(row.gateway), "Assignment saved")

    return _assignment_form(request, form, save, heading=f"Edit {row.server.name}", submit="Save", version=row.version)


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def remove_assignment(request: AppRequest, pk: UUID) -> HttpResponse:
    row = assignment_or_404(request.user, pk)
    return confirmed(
        request,
        lambda: row.remove(by=request.user),
        f"{row.server.name} removed",
        back=_servers_url(row.gateway),
        title="Remove server",
        text=f"Remove {row.server.name} from {row.gateway.name}? {_stopping_tools(row)} on the next request. "
        "Connections are not changed.",
        more=lambda: sentences(cuts(row, request.user), "Its tool settings and history on this gateway are lost."),
        icon="remove",
    )


def _stopping_tools(assignment: Any) -> str:
    """Return the start of a sentence about the tools of `assignment`, such as "Its 3 tools stop"."""
    match assignment.callable_count:
        case 0:
            return "Its tools stop"
        case 1:
            return "Its 1 tool stops"
        case count:
            return f"Its {count:,} tools stop"


@require_POST
@requires(Capability.GATEWAYS_TOGGLE)
def enable_assignment(request: AppRequest, pk: UUID) -> HttpResponse:
    row = assignment_or_404(request.user, pk)
    return switch_on(request, row, "Server", reverse("gateways:disable_assignment", args=[pk]), _assignment_switched)


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_TOGGLE)
def disable_assignment(request: AppRequest, pk: UUID) -> HttpResponse:
    row = assignment_or_404(request.user, pk)
    return switch_off(
        request,
        row,
        "Server",
        reverse("gateways:enable_assignment", args=[pk]),
        _assignment_switched,
        title="Disable server on this gateway",
        text=f"Disable {row.server.name} on {row.gateway.name}? {_stopping_tools(row)} on the next request. "
        f"{NOTHING_IS_DELETED}",
        more=lambda: sentences(cuts(row, request.user), "Other gateways are not affected."),
        target=f"#assignment-{pk}",
        back=_servers_url(row.gateway),
    )


def shared_identity_or_404(pk: UUID) -> Identity:
    return get_object_or_404(Identity.objects.live().shared().select_related("server"), pk=pk)


@require_http_methods(["GET", "POST"])
@requires(Capability.IDENTITIES_MANAGE)
def identity_gateways(request: AppRequest, pk: UUID) -> HttpResponse:
    """Choose the gateways on which a shared identity may be used."""
    identity = shared_identity_or_404(pk)
    form = IdentityGatewaysForm(posted(request), identity=identity)
    back = reverse("servers:identities", args=[identity.server.slug])
    context: dict[str, Any] = {
        "heading": f"Gateways that may use “{identity.label}”",
        "version": IdentityGateways(identity).version,
    }

    def save() -> HttpResponse:
        allow_identity(identity, form.cleaned_data["gateways"], by=request.user, seen=seen_version(request))
        return leave(request, back, "Gateways saved")

    return form_page(request, "gateways/identity_form.html", form, save, back=back, **context)
