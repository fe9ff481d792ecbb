"""The Servers tab of a gateway: assigning, editing, disabling and removing servers."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db import IntegrityError
from django.db.models import Count, Exists, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce, Lower
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import User
from auditlog.versions import ChangedMeanwhile
from capabilities import Capability, own_resource, requires
from capabilities.catalogue import SEES_GATEWAYS, SEES_SERVERS
from connections.impact import cuts
from connections.models import Connection
from gateways.forms import AssignmentForm
from gateways.models import (
    AliasRequired,
    Assignment,
    AssignmentQuerySet,
    Feature,
    FeatureKind,
    FeatureQuerySet,
    Gateway,
    Listing,
    WrongIdentity,
)
from gateways.refresh import first_list
from gateways.views import WITHIN_REACH
from gateways.views import gateway_or_404 as find_gateway
from servers.discovery import DiscoveryFailed
from servers.models import Health, Server
from ui.pages import (
    NOTHING_IS_DELETED,
    AppRequest,
    Undo,
    answer,
    clash_context,
    confirm,
    leave,
    refuse,
    seen_version,
    sentences,
    show,
    text_of,
)


def counted(assignments: AssignmentQuerySet, kind: FeatureKind | None = FeatureKind.TOOL) -> AssignmentQuerySet:
    """Annotate live assignments with the number of tools they offer, and of those that can be called.

    `kind` counts another kind of features, None all kinds. `is_known` is False if the server has never answered, and
    there is no number yet.
    """
    features = Feature.objects.filter(kind=kind) if kind else Feature.objects.all()
    answers = Listing.objects.filter(assignment=OuterRef("pk"), learnt_at__isnull=False)
    return (
        assignments.live()
        .select_related("gateway", "server", "shared_identity")
        .annotate(
            tool_count=_number(features.offered()),
            callable_count=_number(features.callable()),
            is_known=Exists(answers.filter(kind=kind) if kind else answers) | Q(tool_count__gt=0),
        )
        .order_by(Lower("server__name"), "alias")
    )


def _number(features: FeatureQuerySet) -> Coalesce:
    """Count these `features` per assignment, as a subquery."""
    own = features.filter(assignment=OuterRef("pk")).order_by().values("assignment").annotate(number=Count("pk"))
    return Coalesce(Subquery(own.values("number")), 0)


def assignment_or_404(viewer: User, pk: UUID) -> Any:
    """Return the live assignment with its counts, or 404 if `viewer` may not see its gateway."""
    rows = counted(Assignment.objects.filter(gateway__in=Gateway.objects.visible_to(viewer)))
    return get_object_or_404(rows, pk=pk)


def tab_url(gateway: Gateway) -> str:
    return reverse("gateways:servers", args=[gateway.slug])


def sees_servers(viewer: User) -> bool:
    """True if `viewer` may open the pages of servers."""
    return any(viewer.has_perm(capability) for capability in SEES_SERVERS)


@require_GET
@own_resource(WITHIN_REACH, others=SEES_GATEWAYS)
def listing(request: AppRequest, slug: str) -> HttpResponse:
    gateway = find_gateway(request.user, slug)
    rows = counted(gateway.assignments.all())
    context = {
        "gateway": gateway,
        "tab": "servers",
        "rows": rows,
        "down": [row for row in rows if row.enabled and row.server.enabled and row.server.health == Health.DOWN],
        "sees_servers": sees_servers(request.user),
    }
    return show(request, "gateways/servers.html", context)


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def assign(request: AppRequest, slug: str) -> HttpResponse:
    gateway = find_gateway(request.user, slug)
    server = _chosen_server(request, gateway)
    form = AssignmentForm(request.POST or None, gateway=gateway, server=server)
    context = {
        "form": form,
        "gateway": gateway,
        "heading": "Assign a server",
        "submit": "Assign",
        "back": tab_url(gateway),
        "sees_servers": sees_servers(request.user),
    }
    if request.method == "GET":
        fragment = "#scheme" if request.htmx.target == "scheme" else ""
        return show(request, f"gateways/assign.html{fragment}", context)
    if form.is_valid():
        try:
            assignment = Assignment.objects.assign(gateway=gateway, by=request.user, **form.cleaned_data)
        except WrongIdentity as refusal:
            form.add_error("shared_identity", str(refusal))
        except IntegrityError:
            form.refuse()
        except AliasRequired as refusal:
            form.refuse(refusal)
        else:
            text, more = _assigned(assignment, request.user), _left_to_bring(assignment)
            return leave(request, tab_url(gateway), text.removesuffix(".") + more if more else text)
    return refuse(request, "gateways/assign.html", context)


def _assigned(assignment: Assignment, by: User) -> str:
    """Ask the server for its tools, and describe the outcome in words."""
    asked, name = first_list(assignment, by=by), assignment.server.name
    if asked is None:
        return f"{name} assigned. It is switched off, so it was not asked for its tools."
    if isinstance(asked.outcome, DiscoveryFailed):
        return f"{name} assigned, but it {asked.outcome}. Its tools are not known yet."
    count = len(asked.outcome.tools)
    return f"{name} assigned, {count:,} tool{'' if count == 1 else 's'} known"


def _left_to_bring(assignment: Assignment) -> str:
    """Return how many live connections need an identity for a newly assigned server, as a clause; empty if none."""
    if not Assignment.objects.per_user().filter(pk=assignment.pk).exists():
        return ""
    count = Connection.objects.live().filter(gateway=assignment.gateway_id).count()
    return f". {count:,} connection{' needs' if count == 1 else 's need'} an identity for it" if count else ""


def _chosen_server(request: AppRequest, gateway: Gateway) -> Server | None:
    """Return the server the form is about: the requested one, or one not yet on this gateway, or any."""
    reference = text_of(request.POST, "server") or text_of(request.GET, "server")
    live = Server.objects.live()
    if reference:
        return live.filter(slug=reference).first()
    absent = live.exclude(pk__in=gateway.assignments.live().values("server"))
    return absent.filter(enabled=True).first() or absent.first() or live.first()


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def edit(request: AppRequest, pk: UUID) -> HttpResponse:
    assignment = assignment_or_404(request.user, pk)
    form = AssignmentForm(
        request.POST or None, gateway=assignment.gateway, server=assignment.server, assignment=assignment
    )
    context = {
        "form": form,
        "gateway": assignment.gateway,
        "heading": f"Edit {assignment.server.name}",
        "submit": "Save",
        "back": tab_url(assignment.gateway),
        "version": assignment.version,
    }
    if request.method == "GET":
        return show(request, "gateways/assign.html", context)
    if form.is_valid():
        try:
            assignment.edit(by=request.user, seen=seen_version(request), **form.cleaned_data)
        except ChangedMeanwhile as clash:
            context |= clash_context(clash)
        except WrongIdentity as refusal:
            form.add_error("shared_identity", str(refusal))
        except IntegrityError:
            form.refuse()
        except AliasRequired as refusal:
            form.refuse(refusal)
        else:
            return leave(request, tab_url(assignment.gateway), "Assignment saved")
    return refuse(request, "gateways/assign.html", context)


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def remove(request: AppRequest, pk: UUID) -> HttpResponse:
    assignment = assignment_or_404(request.user, pk)
    if request.method == "GET":
        return confirm(
            request,
            title="Remove server",
            text=f"Remove {assignment.server.name} from {assignment.gateway.name}? "
            f"{_stopping_tools(assignment)} on the next request. Connections stay.",
            more="Its tool switches and history on this gateway end with it.",
            icon="remove",
            back=tab_url(assignment.gateway),
        )
    assignment.remove(by=request.user)
    return leave(request, tab_url(assignment.gateway), f"{assignment.server.name} removed")


def _stopping_tools(assignment: Any) -> str:
    """Return the start of a sentence with the number of tools that stop working with `assignment`."""
    match assignment.callable_count:
        case 0:
            return "Its tools stop"
        case 1:
            return "Its 1 tool stops"
        case count:
            return f"Its {count:,} tools stop"


@require_POST
@requires(Capability.GATEWAYS_TOGGLE)
def enable(request: AppRequest, pk: UUID) -> HttpResponse:
    assignment = assignment_or_404(request.user, pk)
    back = reverse("gateways:disable_assignment", args=[assignment.pk])
    undo = Undo.if_changed(assignment.enable(by=request.user), back)
    return changed(request, assignment, "Server enabled on this gateway", undo)


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_TOGGLE)
def disable(request: AppRequest, pk: UUID) -> HttpResponse:
    assignment = assignment_or_404(request.user, pk)
    if request.method == "GET":
        return confirm(
            request,
            title="Disable server on this gateway",
            kind="primary",
            text=f"Disable {assignment.server.name} on {assignment.gateway.name}? {_stopping_tools(assignment)} on the "
            f"next request. {NOTHING_IS_DELETED}",
            more=sentences(cuts(assignment, request.user), "Other gateways keep it."),
            target=f"#assignment-{assignment.pk}",
            back=tab_url(assignment.gateway),
        )
    back = reverse("gateways:enable_assignment", args=[assignment.pk])
    undo = Undo.if_changed(assignment.disable(by=request.user), back)
    return changed(request, assignment, "Server disabled on this gateway", undo)


def changed(request: AppRequest, assignment: Assignment, toast: str, undo: Undo | None) -> HttpResponse:
    context = {"assignment": assignment, "gateway": assignment.gateway, "sees_servers": sees_servers(request.user)}
    return answer(request, "gateways/servers.html#row", context, to=tab_url(assignment.gateway), toast=toast, undo=undo)
