"""The Tools tab of a gateway: the tools, prompts, resources and templates of its servers, and their switches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.core.exceptions import BadRequest
from django.db.models import Case, When
from django.db.models.functions import Lower
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from auditlog.reasons import REASONS
from auditlog.versions import ChangedMeanwhile
from capabilities import Capability, own_resource, requires
from capabilities.catalogue import SEES_GATEWAYS
from connections.impact import cuts
from gateways import assignment_views
from gateways.differences import DiffLine, difference, pages, whole
from gateways.forms import FeatureFilter, listed_kind
from gateways.models import Feature, FeatureKind, FeatureState, Gateway, Listing, ToolPolicy
from gateways.models.feature import FIRST_LIST
from gateways.refresh import Refreshed, refresh
from gateways.views import PLURALS, WITHIN_REACH, offered_by_kind
from gateways.views import gateway_or_404 as find_gateway
from servers.models import Server
from ui.pages import (
    NOTHING_IS_DELETED,
    AppRequest,
    Undo,
    answer,
    confirm,
    open_page,
    page_of,
    seen_version,
    show,
    wants_fragment,
)

NEW_FOR = timedelta(days=7)
MOST_AWAITED = timedelta(seconds=60)  # Several times the timeout for asking a server.
SAME_ATTEMPT = timedelta(seconds=10)  # One attempt records the server's health and its failure, one after the other.


@dataclass(frozen=True)
class ToolRow:
    """A feature as a row of a table."""

    feature: Feature

    @property
    def effect(self) -> str:
        """The effect the server claims, as text; not verified."""
        return self.feature.claim

    @property
    def is_new(self) -> bool:
        """True if it was first seen recently, and not with the first list of its server."""
        since = self.feature.first_seen_at - self.feature.assignment.created_at
        return since > FIRST_LIST and timezone.now() - self.feature.first_seen_at < NEW_FOR

    @property
    def icon(self) -> str:
        return "tool" if self.feature.kind == FeatureKind.TOOL else self.feature.kind


class Tab(NamedTuple):
    """A kind of features, and the number of those offered."""

    value: str
    label: str
    number: int
    is_chosen: bool


class RefreshSummary(NamedTuple):
    """The outcome of the last requests for a server's features, made with the identities of `people` people."""

    asked_at: datetime
    learnt_at: datetime | None
    people: int
    failing: int
    why: str

    @property
    def is_awaited(self) -> bool:
        """True if it was asked for the first time and has not answered yet; `is_lost` if that took too long."""
        return not (self.failing or self.learnt_at)

    @property
    def is_lost(self) -> bool:
        return self.is_awaited and timezone.now() - self.asked_at > MOST_AWAITED

    @classmethod
    def of(cls, listings: list[Listing], server: Server, cause: str = "") -> RefreshSummary | None:
        """Summarise `listings`, or return None if there are none. `cause` is the reason of a failure just now."""
        if not listings:
            return None
        latest = max(listings, key=lambda one: one.asked_at)
        failed = [one for one in listings if one.error]
        told = max(failed, key=lambda one: one.asked_at, default=None)
        answered = [one.learnt_at for one in listings if one.learnt_at]
        people = sum(one.identity_id is not None for one in listings)
        why = cause or (_why(told, server) if told else "")
        return cls(latest.asked_at, max(answered, default=None), people, len(failed), why)


def _why(told: Listing, server: Server) -> str:
    """Return the reason of the failure, worded as on the server's page if both are of the same attempt."""
    checked, reason = server.health_checked_at, REASONS.get(told.error)
    if server.health_error and checked and abs(checked - told.asked_at) < SAME_ATTEMPT:
        return f"{server.name} {server.health_error}."
    return reason.sentence if reason else told.error


@dataclass(frozen=True)
class ServerGroup:
    """A server on the page, its features shown there, and the outcome of asking it."""

    assignment: Any
    rows: list[ToolRow]
    said: RefreshSummary | None


def tab_url(gateway: Gateway) -> str:
    return reverse("gateways:tools", args=[gateway.slug])


@require_GET
@own_resource(WITHIN_REACH, others=SEES_GATEWAYS)
def listing(request: AppRequest, slug: str) -> HttpResponse:
    gateway = find_gateway(request.user, slug)
    return show(request, "gateways/tools.html#tools", {"tab": "tools", **_listed(request, gateway)})


def _listed(request: AppRequest, gateway: Any, refreshed: Iterable[Refreshed] = ()) -> dict[str, Any]:
    kind = listed_kind(request.GET.get("kind", ""))
    assignments = list(assignment_views.counted(gateway.assignments.all(), kind))
    filters = FeatureFilter(request.GET, assignments=assignments)
    features = filters.narrow(Feature.objects.filter(assignment__in=assignments)).select_related("assignment")
    by_kind = Case(*(When(kind=each, then=place) for place, each in enumerate(PLURALS)))
    order = (Lower("assignment__server__name"), "assignment__alias", by_kind, "exposed_name")
    page = page_of(request, features.order_by(*order))
    tabs = _tabs(gateway, kind)
    offered = next(tab.number for tab in tabs if tab.is_chosen)
    failed = {one.assignment.pk: one for one in refreshed if one.failure}
    with_empty = not filters.is_narrow and page.number == 1
    causes = {pk: one.cause for pk, one in failed.items() if one.is_noted}
    groups = _grouped(assignments, list(page), kind, causes, with_empty=with_empty)
    said = causes.keys() & {group.assignment.pk for group in groups if group.said and group.said.failing}
    return {
        "gateway": gateway,
        "assignments": assignments,
        "groups": groups,
        "is_awaited": any(group.said and group.said.is_awaited and not group.said.is_lost for group in groups),
        "page": page,
        "policies": ToolPolicy.choices,
        "filters": filters.cleaned_data,
        "states": FeatureFilter.STATES,
        "narrowed": filters.is_narrow,
        "kind": kind or "all",
        "what": PLURALS[kind].lower() if kind else "features",
        "tabs": tabs,
        "offered": offered,
        "missing": 0 if filters.is_narrow else page.paginator.count - offered,
        # Failures shown next to their server are not repeated.
        "failures": [one.failure for pk, one in failed.items() if pk not in said],
        "changed": False,
    }


def _tabs(gateway: Any, chosen: FeatureKind | None) -> list[Tab]:
    """Count the features of each kind that the gateway's servers offer."""
    numbers = offered_by_kind(gateway)
    tabs = [Tab(kind.value, label, numbers.get(kind, 0), kind == chosen) for kind, label in PLURALS.items()]
    return [*tabs, Tab("all", "All", sum(numbers.values()), chosen is None)]


def _grouped(
    assignments: list[Any],
    features: list[Feature],
    kind: FeatureKind | None,
    causes: Mapping[UUID, str],
    *,
    with_empty: bool,
) -> list[ServerGroup]:
    """Group features by server; `with_empty` includes servers without any. `causes` are failures of this refresh."""
    said: dict[Any, list[Listing]] = {}
    listings = Listing.objects.filter(assignment__in=assignments)
    for one in listings.filter(kind=kind) if kind else listings:
        said.setdefault(one.assignment_id, []).append(one)
    by_id = {a.pk: a for a in assignments}
    for feature in features:
        feature.assignment = by_id.get(feature.assignment_id, feature.assignment)
    groups = [
        ServerGroup(
            a,
            [ToolRow(one) for one in features if one.assignment_id == a.pk],
            RefreshSummary.of(said.get(a.pk, []), a.server, causes.get(a.pk, "")),
        )
        for a in assignments
    ]
    return [group for group in groups if group.rows or (with_empty and not group.assignment.tool_count)]


@require_POST
@requires(Capability.GATEWAYS_MANAGE)
def refresh_features(request: AppRequest, slug: str) -> HttpResponse:
    gateway = find_gateway(request.user, slug)
    refreshed = refresh(gateway, by=request.user)
    failures = [server.failure for server in refreshed if server.failure]
    gateway = find_gateway(request.user, slug)
    context = _listed(request, gateway, refreshed)
    toast = f"{context['offered']} {context['what']} known"
    if failures and not wants_fragment(request):
        toast = " ".join([toast + ".", *failures])
    return answer(request, "gateways/tools.html#tools", {**context, "fragment": True}, to=tab_url(gateway), toast=toast)


@require_POST
@requires(Capability.GATEWAYS_MANAGE)
def policy(request: AppRequest, pk: UUID) -> HttpResponse:
    """Change the tool policy of an assigned server."""
    assignment = assignment_views.assignment_or_404(request.user, pk)
    name = request.POST.get("policy", "")
    if name not in ToolPolicy.values:
        raise BadRequest("There is no such policy.")
    try:
        assignment.edit(tool_policy=name, by=request.user, seen=seen_version(request))
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
    feature = feature_or_404(request, pk)
    undo = Undo.if_changed(feature.enable(by=request.user), reverse("gateways:disable_tool", args=[feature.pk]))
    return changed(request, feature, f"{feature.exposed_name} enabled", undo)


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def disable(request: AppRequest, pk: UUID) -> HttpResponse:
    feature = feature_or_404(request, pk)
    gateway, what = feature.assignment.gateway, feature.get_kind_display().lower()
    if request.method == "GET":
        return confirm(
            request,
            title=f"Disable {what}",
            kind="primary",
            text=f"Disable this {what}? {feature.exposed_name} leaves {gateway.name} on the next request. "
            f"{NOTHING_IS_DELETED}",
            more=cuts(feature, request.user),
            target="#feature-head" if is_open(request, feature) else f"#tool-{feature.pk}",
            back=tab_url(gateway),
        )
    undo = Undo.if_changed(feature.disable(by=request.user), reverse("gateways:enable_tool", args=[feature.pk]))
    return changed(request, feature, f"{feature.exposed_name} disabled", undo)


def feature_or_404(request: AppRequest, pk: UUID) -> Feature:
    """Return the feature, or 404 if the user may not see its gateway."""
    rows = Feature.objects.select_related("assignment__gateway", "assignment__server").filter(
        assignment__removed_at=None, assignment__gateway__in=Gateway.objects.visible_to(request.user)
    )
    return get_object_or_404(rows, pk=pk)


def page_url(feature: Feature) -> str:
    return reverse("gateways:feature", args=[feature.pk])


def is_open(request: AppRequest, feature: Feature) -> bool:
    """True if the request was sent from the page of this feature."""
    return open_page(request) == page_url(feature)


def changed(request: AppRequest, feature: Feature, toast: str, undo: Undo | None) -> HttpResponse:
    """Render the part of the page with the switch: the head of the feature's page, or its row."""
    template = "gateways/feature.html#head" if is_open(request, feature) else "gateways/tools.html#row"
    context = {"row": ToolRow(feature), "gateway": feature.assignment.gateway}
    return answer(request, template, context, to=tab_url(feature.assignment.gateway), toast=toast, undo=undo)


# The list of changed definitions of all gateways, each with its difference and the two decisions.

SHOWN = 8  # Definitions a page; each is shown with what differs.
MOST_LINES = 40
MOST_QUARANTINED = 30


@dataclass(frozen=True)
class Waiting:
    """A definition that waits for a decision, and how it differs from the approved one."""

    feature: Feature

    @property
    def all_lines(self) -> list[DiffLine]:
        offered, approved = self.feature.offered or "", self.feature.approved
        return pages(difference(approved, offered) if approved else whole(offered))[0]

    @property
    def lines(self) -> list[DiffLine]:
        return self.all_lines[:MOST_LINES]

    @property
    def is_cut(self) -> bool:
        """True if there are more lines than the list shows; the feature's page shows them all."""
        return len(self.all_lines) > MOST_LINES


@require_GET
@own_resource(WITHIN_REACH)
def inbox(request: AppRequest) -> HttpResponse:
    page = page_of(
        request,
        Feature.objects.waiting_for(request.user),
        SHOWN,
        detail=lambda rows: rows.select_related("assignment__gateway", "assignment__server"),
    )
    quarantined = Feature.objects.seen_by(request.user).filter(state=FeatureState.QUARANTINED)
    placed = quarantined.select_related("assignment__gateway", "assignment__server").order_by("exposed_name", "pk")
    context = {
        "page": page,
        "rows": [Waiting(feature) for feature in page.object_list],
        "quarantined": list(placed[:MOST_QUARANTINED]),
        "here": reverse("gateways:changed"),
    }
    return show(request, "gateways/changed.html", context)
