"""The pages of access: the catalogue of gateways, requests to use one, and the decisions on requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from django import forms
from django.db.models import Exists, OuterRef, Q, Subquery
from django.db.models.functions import Lower
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods

from accounts.models import User
from auditlog.remedies import who_can
from capabilities import NOBODY, Capability, own_resource, requires
from connections.tool_sets import sets_at
from gateways.access_forms import (
    ApproveForm,
    CatalogueAccessFilter,
    DeclineForm,
    RequestFilter,
    RequestForm,
    TakesRequestsForm,
    ToolFilter,
)
from gateways.models import (
    AccessRequest,
    AccessRequestQuerySet,
    Feature,
    Gateway,
    GatewayError,
    GatewayGrant,
    GatewayQuerySet,
    RequestState,
    ToolGrant,
    TooLong,
    ToolSet,
    ToolsGiven,
    in_sets,
    reached_until,
)
from gateways.views import count_of, counted_assignments, gateway_or_404, page_url
from ui.pages import AppRequest, first_names, leave, posted, seen_version, show, uuid_param
from ui.tables import Column, Table
from ui.viewset import confirmed, form_page, list_page

MAY_SEE = "lists only gateways that the person may see or that take requests"
OWN = "one's own requests, and those on which the person may decide"

GATEWAYS = Table(
    "access",
    "Gateways and your access",
    (
        Column("name", "Gateway", sorts=(Lower("name"),), value="gateway.name"),
        Column("about", "What it is for", 24, priority=5, on_phone=True, value="gateway.description"),
        Column("tools", "Tools", 5, kind="number", priority=2, on_phone=True, value="gateway.tool_count"),
        Column("yours", "Your access", 13, on_phone=True, value="reaches"),
        Column("acts", "Actions", 9, kind="acts", said=False),
    ),
    order="name",
    row_id="gateway.pk",
)
TOOLS = Table(
    "access-tools",
    "Tools of this gateway",
    (
        Column("name", "Name", sorts=("exposed_name",), value="exposed_name"),
        Column("about", "What it does", 20, on_phone=True, value="description"),
        Column("yours", "You may use it", 8, on_phone=True, value="usable"),
    ),
    order="name",
)
REQUESTS = Table(
    "access-requests",
    "Access requests",
    (
        Column("who", "Person", sorts=("user__email",), value="user.email"),
        Column("what", "Asks for", 16, on_phone=True),
        Column("reason", "Reason", 16, priority=5),
        Column("days", "Days", 4, kind="number", priority=3),
        Column(
            "at",
            "Asked",
            7,
            kind="moment",
            sorts=("created_at",),
            most_first=True,
            priority=2,
            on_phone=True,
            value="created_at",
        ),
        Column("state", "State", 8, sorts=("state",), on_phone=True),
    ),
    order="-at",
)


# The catalogue.


def with_access(rows: GatewayQuerySet, viewer: User) -> GatewayQuerySet:
    """Annotate each gateway with the viewer's access to it and with its number of tools."""
    without = Gateway.objects.reachable_by(viewer, by_grant=False).filter(pk=OuterRef("pk"))
    own = GatewayGrant.objects.live().filter(gateway=OuterRef("pk"), user=viewer)
    own = own if viewer.uses_gateways else own.none()
    waiting = AccessRequest.objects.filter(gateway=OuterRef("pk"), user=viewer, state=RequestState.OPEN)
    return rows.annotate(
        reaches_always=Exists(without),  # The viewer may use the gateway without a grant.
        reaches_by_grant=Exists(own),
        granted_until=Subquery(own.values("ends_at")[:1]),  # The end of the viewer's grant.
        waits=Subquery(waiting.order_by("-created_at").values("pk")[:1]),  # The newest open request's id.
        tool_count=count_of(Feature.objects.callable().tools(), "assignment__gateway"),
    )


class CatalogueRow:
    """A gateway in the catalogue of a viewer. The gateway must have the annotations of `with_access`."""

    def __init__(self, gateway: Any, viewer: User) -> None:
        self.gateway = gateway
        self.reaches: bool = gateway.reaches_always or gateway.reaches_by_grant
        self.until: datetime | None = None if gateway.reaches_always else gateway.granted_until
        # On a gateway that allows only granted tools, a person who may use the gateway may still lack some tools. So
        # this person may always request more.
        is_open = self.reaches and self.until is None and gateway.tools_given == ToolsGiven.ALL
        self.may_ask: bool = gateway.takes_requests_of(viewer) and not is_open


def catalogue_gateway_or_404(viewer: User, slug: str) -> Any:
    """Return the gateway, with the annotations of `with_access`. Raises Http404 if `viewer` may not see it."""
    rows = with_access(Gateway.objects.catalogue_of(viewer), viewer)
    return get_object_or_404(rows, slug=slug)


@require_GET
@own_resource(MAY_SEE)
def catalogue(request: AppRequest) -> HttpResponse:
    return list_page(
        request,
        "gateways/access.html",
        Gateway.objects.catalogue_of(request.user),
        table=GATEWAYS,
        filters=CatalogueAccessFilter(request.GET, viewer=request.user),
        detail=lambda rows: with_access(rows, request.user),
        wrap=lambda gateway: CatalogueRow(gateway, request.user),
    )


@require_GET
@own_resource(MAY_SEE)
def gateway(request: AppRequest, slug: str) -> HttpResponse:
    """Show the tools of a gateway, and which of them the person may use."""
    found = catalogue_gateway_or_404(request.user, slug)
    row, tools = CatalogueRow(found, request.user), Feature.objects.callable().filter(assignment__gateway=found.pk)
    grants = list(ToolGrant.objects.to(request.user).filter(gateway=found.pk))
    usable = tools if row.reaches else tools.none()
    sets = []
    if found.tools_given != ToolsGiven.ALL:
        usable = in_sets(usable, [grant.tool_set for grant in grants]) if row.reaches else usable
        sets = [(tool_set, *set_state(tool_set, grants)) for tool_set in sets_at(found)]
    asked: Any = counted_assignments(found.assignments.placed().filter(enabled=True, server__enabled=True))
    return list_page(
        request,
        "gateways/access_gateway.html",
        tools,
        table=TOOLS,
        filters=ToolFilter(request.GET),
        detail=lambda rows: rows.annotate(usable=Q(pk__in=usable.order_by().values("pk"))),
        gateway=found,
        row=row,
        sets=sets,
        has_unlisted=asked.filter(is_known=False).exists,
        may_open=Gateway.objects.visible_to(request.user).filter(pk=found.pk).exists(),
    )


def set_state(tool_set: ToolSet, grants: list[ToolGrant]) -> tuple[bool, datetime | None]:
    """Return whether any of the person's live `grants` gives the set, and the date when this access ends.

    The date is None if no grant gives the set, or if a grant without an end date gives the set.
    """
    ends = [grant.ends_at for grant in grants if grant.tool_set_id == tool_set.pk]
    dates = [end for end in ends if end]
    return bool(ends), max(dates) if dates and len(dates) == len(ends) else None


@require_http_methods(["GET", "POST"])
@own_resource(MAY_SEE)
def ask(request: AppRequest, slug: str) -> HttpResponse:
    """Request to use a gateway, or one of its tool sets. The URL parameter `set` preselects a tool set."""
    found = catalogue_gateway_or_404(request.user, slug)
    if not found.takes_requests:
        raise Http404
    initial = {"days": found.request_days, "tool_set": uuid_param(request.GET, "set")}
    reaches, until = reached_until(found, request.user)
    form = RequestForm(posted(request), gateway=found, only_sets=reaches and until is None, initial=initial)
    back = reverse("gateways:access_to", args=[slug])

    def save() -> HttpResponse:
        made = AccessRequest.objects.ask(found, **form.cleaned_data, by=request.user)
        return leave(request, reverse("gateways:access_request", args=[made.pk]), f"Requested {made.what}")

    verb = "Extend" if until else "Request"
    context = {"heading": f"{verb} access to {found.name}", "submit": "Request access", "back": back}
    return form_page(request, "ui/dialog.html", form, save, {TooLong: "days", GatewayError: None}, **context)


# Requests, and the decisions on them.


def request_or_404(viewer: User, pk: UUID) -> AccessRequest:
    """Return a request that `viewer` made or may decide on. Raises Http404 for other requests."""
    return get_object_or_404(AccessRequest.objects.concerning(viewer).with_details(), pk=pk)


def visible_request_or_404(viewer: User, pk: UUID) -> AccessRequest:
    """Return a request that `viewer` may read. Raises Http404 for other requests."""
    return get_object_or_404(AccessRequest.objects.visible_to(viewer).with_details(), pk=pk)


def deciding(asked: AccessRequest, reader: User) -> str:
    """Return a sentence that names the people who decide on the request."""
    if approvers := asked.approvers:
        return f"{first_names([person.email for person in approvers])} can decide."
    return who_can(Capability.GATEWAYS_MANAGE, reader)


@require_GET
@own_resource(OWN)
def requests(request: AppRequest) -> HttpResponse:
    """List the requests that the person may read."""
    return list_page(
        request,
        "gateways/access_requests.html",
        AccessRequest.objects.visible_to(request.user),
        table=REQUESTS,
        filters=RequestFilter(request.GET, viewer=request.user),
        detail=AccessRequestQuerySet.with_details,
    )


@require_GET
@own_resource(OWN, others=Capability.GATEWAYS_READ)
def detail(request: AppRequest, pk: UUID) -> HttpResponse:
    asked = visible_request_or_404(request.user, pk)
    context = {"asked": asked, "may_decide": asked.may_be_decided_by(request.user), "rail_entry": "gateways:access"}
    context |= {"who": deciding(asked, request.user), "grants": asked.live_grants, "own": asked.user == request.user}
    known = Gateway.objects.catalogue_of(request.user).filter(pk=asked.gateway_id)
    context["may_see_gateway"] = known.exists()
    return show(request, "gateways/access_request.html", context)


def _request_url(asked: AccessRequest) -> str:
    return reverse("gateways:access_request", args=[asked.pk])


def _to_decide_or_404(request: AppRequest, pk: UUID) -> AccessRequest:
    """Return a request on which the person may decide. Raises Http404 for other requests.

    Nobody may decide on their own request.
    """
    asked = request_or_404(request.user, pk)
    if not asked.may_be_decided_by(request.user):
        raise Http404
    return asked


def _decide(
    request: AppRequest, asked: AccessRequest, form: forms.Form, verb: Callable[..., None], text: Mapping[str, str]
) -> HttpResponse:
    back = _request_url(asked)

    def save() -> HttpResponse:
        verb(**form.cleaned_data, by=request.user)
        return leave(request, back, text["done"])

    errors = {TooLong: "days", GatewayError: None}
    return form_page(request, "ui/dialog.html", form, save, errors, back=back, **text)


@require_http_methods(["GET", "POST"])
@own_resource(OWN, others=Capability.GATEWAYS_MANAGE)
def approve(request: AppRequest, pk: UUID) -> HttpResponse:
    asked = _to_decide_or_404(request, pk)
    days = min(asked.days, asked.gateway.most_request_days)
    form = ApproveForm(posted(request), initial={"days": days})
    form.fields["days"].help_text = f"Counted from now. The gateway allows at most {asked.gateway.most_request_days}."
    text = {"heading": f"Give {asked.user.email} access to {asked.what}", "submit": "Approve", "done": "Approved"}
    return _decide(request, asked, form, asked.approve, text)


@require_http_methods(["GET", "POST"])
@own_resource(OWN, others=Capability.GATEWAYS_MANAGE)
def decline(request: AppRequest, pk: UUID) -> HttpResponse:
    asked = _to_decide_or_404(request, pk)
    text = {"heading": f"Decline the request of {asked.user.email}", "submit": "Decline", "done": "Declined"}
    return _decide(request, asked, DeclineForm(posted(request)), asked.decline, text)


@require_http_methods(["GET", "POST"])
@own_resource("one's own requests", others=NOBODY)
def withdraw(request: AppRequest, pk: UUID) -> HttpResponse:
    asked = get_object_or_404(AccessRequest.objects.select_related("gateway", "tool_set"), user=request.user, pk=pk)
    return confirmed(
        request,
        lambda: asked.withdraw(by=request.user),
        "Request withdrawn",
        back=_request_url(asked),
        faults=GatewayError,
        title="Withdraw request",
        text=f"Withdraw your request for {asked.what}? You can ask again.",
        kind="primary",
    )


@require_http_methods(["GET", "POST"])
@own_resource(OWN, others=Capability.GATEWAYS_MANAGE)
def end(request: AppRequest, pk: UUID) -> HttpResponse:
    """End the access that an approved request gave."""
    asked = request_or_404(request.user, pk)
    return confirmed(
        request,
        lambda: asked.end_access(by=request.user),
        "Access ended",
        back=_request_url(asked),
        faults=GatewayError,
        title="End access",
        text=f"End the access of {asked.user.email} to {asked.what}? From the next request on, calls are refused "
        "unless a team or another grant allows them.",
    )


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def settings(request: AppRequest, slug: str) -> HttpResponse:
    """Change whether people may request access to a gateway, for how many days, and who decides on the requests."""
    found = gateway_or_404(request.user, slug)
    names = ("takes_requests", "request_days", "most_request_days")
    initial = {name: getattr(found, name) for name in names}
    initial["approvers"] = "\n".join(found.editable()["approvers"])
    form, back = TakesRequestsForm(posted(request), initial=initial), page_url(found)

    def save() -> HttpResponse:
        found.edit(**form.cleaned_data, by=request.user, seen=seen_version(request))
        return leave(request, back, "Access requests changed")

    context = {"heading": "Change access requests", "back": back, "version": found.version}
    return form_page(request, "ui/dialog.html", form, save, **context)
