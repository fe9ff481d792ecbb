"""The Tools page, and the Tools tab of a gateway, where the features of its servers are enabled and disabled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from django.core.exceptions import BadRequest
from django.core.paginator import Paginator
from django.db.models import Case, When
from django.db.models.functions import Lower
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import User
from auditlog.outcomes import REASONS
from auditlog.versions import ChangedMeanwhile
from capabilities import Capability, own_resource, requires
from connections.given_tools import given_to
from connections.impact import cuts
from gateways.catalogue import BY_USE, SPAN, Catalogue, is_new, servers_seen_by
from gateways.feature_refresh import Refreshed, refresh
from gateways.forms import CatalogueFilter, FeatureFilter, listed_kind
from gateways.models import Assignment, Feature, FeatureKind, Gateway, Listing, ToolPolicy
from gateways.views import (
    PLURALS,
    WITHIN_REACH,
    assignment_or_404,
    counted_assignments,
    gateway_or_404,
    offered_by_kind,
)
from servers.models import Server
from ui.export import list_export
from ui.pages import (
    NOTHING_IS_DELETED,
    PAGE_SIZE,
    AppRequest,
    Undo,
    answer,
    is_for,
    may_follow,
    open_page,
    open_query,
    page_of,
    seen_version,
    show,
    wants_fragment,
)
from ui.tables import Column, Table, TableView, show_list
from ui.viewset import switch_off, switch_on

# The Tools page: all tools on the gateways the viewer may see, each tool once.

COUNTED_AT_ONCE = 500  # If the viewer sees more assigned servers, the calls are counted after the page was sent.

CATALOGUE = Table(
    "catalogue",
    "Tools of all servers",
    (
        Column("name", "Tool", sorts=("name",), value="feature.name"),
        Column("server", "Server", 9, priority=2, sorts=("server",), on_phone=True, value="server.name"),
        Column("effect", "Effect", 7, priority=3, sorts=("effect",), on_phone=True),
        Column("state", "State", 9, on_phone=True),
        Column("gateways", "Gateways", 9, priority=3, sorts=("gateways",), value="gateway_names"),
        Column(
            "calls",
            f"Calls {SPAN.label}",
            7,
            kind="number",
            sorts=("calls",),
            most_first=True,
            needs=Capability.LOGS_READ,
        ),
        Column(
            "last",
            "Last use",
            7,
            priority=3,
            sorts=("last",),
            most_first=True,
            needs=Capability.LOGS_READ,
            value="last_used_at",
        ),
    ),
    order="name",
    row_id="feature.pk",
)


@require_GET
@own_resource(WITHIN_REACH)
def catalogue(request: AppRequest) -> HttpResponse:
    servers = list(servers_seen_by(request.user).values_list("slug", "name"))
    filters = CatalogueFilter(request.GET, servers=servers, may_read=request.user.has_perm(Capability.LOGS_READ))
    table = CATALOGUE.seen(request)
    page = request.GET.get("page")
    tools: Any = Catalogue(request.user, filters.values, table.sort.replace("name", "tool"), page=page)
    if file := list_export(request, table, tools):
        return file
    counts_later = may_follow(request) and _takes_long(request.user, table, tools)
    tools.tells_use = tools.tells_use and not counts_later
    found = Paginator([] if counts_later and tools.joins_use else tools, PAGE_SIZE).get_page(page)
    context: dict[str, Any] = {
        "page": found,
        "counts_later": counts_later and (tools.joins_use or bool(found.object_list)),
        "table": table,
        "tools": tools,
        "filter_form": filters,
        "filters": filters.values,
        "narrowed": filters.is_narrow,
        "waiting": None if is_for(request, "catalogue") else Feature.objects.waiting_for(request.user).count(),
    }
    return show_list(request, "gateways/catalogue.html", context)


def _takes_long(viewer: User, table: TableView, tools: Catalogue) -> bool:
    """Return True if the page needs numbers of calls, and counting the calls takes long.

    Counting takes long if `viewer` sees more than COUNTED_AT_ONCE assigned servers.
    """
    if not (tools.joins_use or (tools.tells_use and any(map(table.shows, BY_USE)))):
        return False
    return Assignment.objects.seen_by(viewer).count() > COUNTED_AT_ONCE


@require_GET
@own_resource(WITHIN_REACH, others=Capability.GATEWAYS_READ)
def moved(request: AppRequest, pk: UUID) -> HttpResponse:
    """Redirect the former URL of a tool's page to the present URL. The parameter `version` is renamed to `show`."""
    page, version = reverse("gateways:feature", args=[pk]), request.GET.get("version")
    return redirect(f"{page}?{urlencode({'show': version})}#definition" if version else page, permanent=True)


# The Tools tab of a gateway: the tools, prompts, resources and templates of its servers, to enable and disable.

MOST_AWAITED = timedelta(seconds=60)  # Several times the timeout for asking a server.
# A failed attempt to get a server's list is recorded twice: in the server's health and in a `Listing`. Records that are
# further apart than this belong to different attempts.
SAME_ATTEMPT = timedelta(seconds=10)
NAMES = {
    "tool": "Tool (exposed name)",
    "prompt": "Prompt (exposed name)",
    "resource": "Address",
    "template": "Address",
    "all": "Exposed name",
}
FEATURES = {
    kind: Table(
        f"features-{kind}",
        "Tools, prompts and resources of this server",
        (
            Column("name", name),
            Column("state", "State", 9, on_phone=True),
            Column("title", "Title", 16, priority=2, on_phone=True),
            Column("effect", "Effect", 8, priority=3),
            Column("first", "First seen", 7, priority=4),
            Column("last", "Last seen", 7, priority=3, on_phone=True),
            Column("acts", "Enabled", 6, kind="acts"),
        ),
    )
    for kind, name in NAMES.items()
}


@dataclass(frozen=True)
class ToolRow:
    """A feature as a row of a table; `is_given` is False if the viewer needs a grant for the feature and has none."""

    feature: Feature
    is_given: bool = True

    @property
    def effect(self) -> str:
        """The effect that an administrator or the server states, as text; not verified."""
        return self.feature.claim

    @property
    def is_new(self) -> bool:
        return is_new(self.feature)

    @property
    def icon(self) -> str:
        return "tool" if self.feature.kind == FeatureKind.TOOL else self.feature.kind


class Tab(NamedTuple):
    """A tab with the features of one kind, or of all kinds; `number` is the number of features offered."""

    value: str
    label: str
    number: int
    is_chosen: bool


class RefreshSummary(NamedTuple):
    """The outcome of the last requests for a server's features."""

    asked_at: datetime
    learnt_at: datetime | None
    people: int  # The number of identities used in these requests.
    failing: int  # The number of identities whose requests failed; a failure without an identity counts as one more.
    why: str

    @property
    def is_awaited(self) -> bool:
        """True until a request is answered or fails for the first time.

        If this takes longer than MOST_AWAITED, `is_lost` is True, too.
        """
        return not (self.failing or self.learnt_at)

    @property
    def is_lost(self) -> bool:
        return self.is_awaited and timezone.now() - self.asked_at > MOST_AWAITED

    @classmethod
    def of(cls, listings: list[Listing], server: Server, cause: str = "") -> RefreshSummary | None:
        """Return a summary of `listings`, or None if there are none.

        If the server failed in the refresh that was just made, `cause` is the failure as a sentence.
        """
        if not listings:
            return None
        latest = max(listings, key=lambda one: one.asked_at)
        failed = [one for one in listings if one.error]
        told = max(failed, key=lambda one: one.asked_at, default=None)
        answered = [one.learnt_at for one in listings if one.learnt_at]
        people = {one.identity_id for one in listings if one.identity_id}
        failing = {one.identity_id for one in failed}
        why = cause or (_why(told, server) if told else "")
        return cls(latest.asked_at, max(answered, default=None), len(people), len(failing), why)


def _why(told: Listing, server: Server) -> str:
    """Return the reason for the failed request `told`, in the words of the server's page if it shows this request."""
    checked, reason = server.health_checked_at, REASONS.get(told.error)
    if server.health_error and checked and abs(checked - told.asked_at) < SAME_ATTEMPT:
        return f"{server.name} {server.health_error}."
    return reason.sentence if reason else told.error


@dataclass(frozen=True)
class ServerGroup:
    """A server on the page, its features, and the outcome of the last requests for its features."""

    assignment: Any
    rows: list[ToolRow]
    said: RefreshSummary | None


def _tools_url(gateway: Gateway) -> str:
    return reverse("gateways:tools", args=[gateway.slug])


@require_GET
@own_resource(WITHIN_REACH, others=Capability.GATEWAYS_READ)
def tools(request: AppRequest, slug: str) -> HttpResponse:
    gateway = gateway_or_404(request.user, slug)
    return show(request, "gateways/tools.html#tools", {"tab": "tools", **_listed(request, gateway)})


def _listed(request: AppRequest, gateway: Any, refreshed: Iterable[Refreshed] = ()) -> dict[str, Any]:
    kind = listed_kind(request.GET.get("kind", ""))
    assignments = list(counted_assignments(gateway.assignments.all(), kind))
    filters = FeatureFilter(request.GET, assignments=assignments)
    features = filters.narrow(Feature.objects.filter(assignment__in=assignments)).select_related("assignment")
    by_kind = Case(*(When(kind=each, then=place) for place, each in enumerate(PLURALS)))
    order = (Lower("assignment__server__name"), "assignment__alias", by_kind, "exposed_name")
    page = page_of(request, features.order_by(*order))
    tabs = _tabs(gateway, kind)
    offered = next(tab.number for tab in tabs if tab.is_chosen)
    missing = (
        features.filter(missing_since__isnull=False).count() if filters.is_narrow else page.paginator.count - offered
    )
    failed = {one.assignment.pk: one for one in refreshed if one.failure}
    with_empty = not filters.is_narrow and page.number == 1
    causes = {pk: one.cause for pk, one in failed.items() if one.is_noted}
    groups = _grouped(assignments, list(page), request.user, kind, causes, with_empty=with_empty)
    said = causes.keys() & {group.assignment.pk for group in groups if group.said and group.said.failing}
    return {
        "gateway": gateway,
        "assignments": assignments,
        "groups": groups,
        "is_awaited": any(group.said and group.said.is_awaited and not group.said.is_lost for group in groups),
        "page": page,
        "policies": ToolPolicy.choices,
        "filter_form": filters,
        "filters": filters.values,
        "narrowed": filters.is_narrow,
        "kind": kind or "all",
        "what": PLURALS[kind].lower() if kind else "features",
        "tabs": tabs,
        "offered": offered,
        "missing": missing,
        # Failures shown next to their server are not repeated.
        "failures": [one.failure for pk, one in failed.items() if pk not in said],
        "changed": False,
    }


def _tabs(gateway: Any, chosen: FeatureKind | None) -> list[Tab]:
    """Return a tab for each kind of feature, and a tab for all kinds.

    Each tab has a number: how many features of its kind the gateway's servers offer. The tab for all kinds has the sum.
    """
    numbers = offered_by_kind(gateway)
    tabs = [Tab(kind.value, label, numbers.get(kind, 0), kind == chosen) for kind, label in PLURALS.items()]
    return [*tabs, Tab("all", "All", sum(numbers.values()), chosen is None)]


def _given(features: list[Feature], viewer: User) -> set[UUID]:
    """Return the ids of those `features` that need no grant, or for which `viewer` has a grant."""
    asked = Feature.objects.filter(pk__in=[feature.pk for feature in features])
    pairs = {(feature.assignment.gateway_id, viewer.pk) for feature in features}
    return {*given_to(asked, pairs).values_list("pk", flat=True)}


def _grouped(
    assignments: list[Any],
    features: list[Feature],
    viewer: User,
    kind: FeatureKind | None,
    causes: Mapping[UUID, str],
    *,
    with_empty: bool,
) -> list[ServerGroup]:
    """Return the features grouped by server. If `with_empty` is True, servers without offered features are included.

    If a refresh was just made, `causes` has a sentence about each failure, by the id of the assignment.
    """
    said: dict[Any, list[Listing]] = {}
    listings = Listing.objects.filter(assignment__in=assignments)
    for one in listings.filter(kind=kind) if kind else listings:
        said.setdefault(one.assignment_id, []).append(one)
    given = _given(features, viewer)
    by_id = {a.pk: a for a in assignments}
    for feature in features:
        feature.assignment = by_id.get(feature.assignment_id, feature.assignment)
    groups = [
        ServerGroup(
            a,
            [ToolRow(one, one.pk in given) for one in features if one.assignment_id == a.pk],
            RefreshSummary.of(said.get(a.pk, []), a.server, causes.get(a.pk, "")),
        )
        for a in assignments
    ]
    return [group for group in groups if group.rows or (with_empty and not group.assignment.tool_count)]


@require_POST
@requires(Capability.GATEWAYS_MANAGE)
def refresh_features(request: AppRequest, slug: str) -> HttpResponse:
    gateway = gateway_or_404(request.user, slug)
    refreshed = refresh(gateway, by=request.user)
    failures = [server.failure for server in refreshed if server.failure]
    gateway = gateway_or_404(request.user, slug)
    context = _listed(request, gateway, refreshed)
    toast = f"{context['offered']} {context['what']} known"
    if failures and not wants_fragment(request):
        toast = " ".join([toast + ".", *failures])
    return answer(
        request, "gateways/tools.html#tools", {**context, "fragment": True}, to=_tools_url(gateway), toast=toast
    )


@require_POST
@requires(Capability.GATEWAYS_MANAGE)
def policy(request: AppRequest, pk: UUID) -> HttpResponse:
    """Change the tool policy of an assigned server."""
    assignment = assignment_or_404(request.user, pk)
    name = request.POST.get("policy", "")
    if name not in ToolPolicy.values:
        raise BadRequest("There is no such policy.")
    try:
        assignment.edit(tool_policy=name, by=request.user, seen=seen_version(request))
        toast = f"{assignment.server.name}: {ToolPolicy(name).label}"
    except ChangedMeanwhile as clash:
        current = ", ".join(f"{ToolPolicy(change.now).label}, set by {change.by}" for change in clash.changes)
        toast = f"Your change was not saved. The policy is now {current}. Choose again to change it."
    gateway = gateway_or_404(request.user, assignment.gateway.slug)
    context = {**_listed(request, gateway), "fragment": True}
    return answer(request, "gateways/tools.html#tools", context, to=_tools_url(gateway), toast=toast)


@require_POST
@requires(Capability.GATEWAYS_MANAGE)
def enable(request: AppRequest, pk: UUID) -> HttpResponse:
    feature = feature_or_404(request, pk)
    return switch_on(request, feature, feature.exposed_name, reverse("gateways:disable_tool", args=[pk]), _switched)


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def disable(request: AppRequest, pk: UUID) -> HttpResponse:
    feature = feature_or_404(request, pk)
    gateway, what, name = feature.assignment.gateway, feature.get_kind_display().lower(), feature.exposed_name
    return switch_off(
        request,
        feature,
        name,
        reverse("gateways:enable_tool", args=[pk]),
        _switched,
        title=f"Disable {what}",
        text=f"Disable this {what}? {name} disappears from {gateway.name} on the next request. {NOTHING_IS_DELETED}",
        more=lambda: cuts(feature, request.user),
        target="#feature-head" if _is_open(request, feature) else f"#tool-{pk}",
        back=_tools_url(gateway),
    )


def feature_or_404(request: AppRequest, pk: UUID) -> Feature:
    """Return the feature. Raises Http404 if the user may not see the feature's gateway."""
    rows = Feature.objects.select_related("assignment__gateway", "assignment__server").filter(
        assignment__removed_at=None, assignment__gateway__in=Gateway.objects.visible_to(request.user)
    )
    return get_object_or_404(rows, pk=pk)


def page_url(feature: Feature) -> str:
    return reverse("gateways:feature", args=[feature.pk])


def _is_open(request: AppRequest, feature: Feature) -> bool:
    """True if the request was sent from the page of this feature."""
    return open_page(request) == page_url(feature)


def _switched(request: AppRequest, feature: Feature, toast: str, undo: Undo | None = None) -> HttpResponse:
    """Render the part of the page with the on/off switch: the head of the feature's page, or the row in the list."""
    template, gateway = "gateways/feature.html#head", feature.assignment.gateway
    context = {"row": ToolRow(feature, feature.pk in _given([feature], request.user)), "gateway": gateway}
    if not _is_open(request, feature):
        template, kind = "gateways/tools.html#row", listed_kind(open_query(request).get("kind", ""))
        # The heading above the rows counts the features of the kind that the page lists.
        rows = Assignment.objects.filter(pk=feature.assignment_id)
        context["switched"] = counted_assignments(rows, kind).first()
    return answer(request, template, context, to=_tools_url(gateway), toast=toast, undo=undo)
