"""The page of one feature, the list of changed definitions, and the decisions on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django import forms
from django.db import connection, transaction
from django.db.models import QuerySet
from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.views.decorators.http import require_GET, require_http_methods

from accounts.models import User
from auditlog.charts import CallPlots
from auditlog.models import Call
from capabilities import Capability, own_resource, requires
from connections.given_tools import given_to, refused_by, with_effect
from connections.impact import cuts
from gateways.catalogue import Catalogue
from gateways.definitions import DiffLine, arguments, difference, pages, whole
from gateways.models import (
    LONGEST_TEXT,
    SAID_EFFECTS,
    Assignment,
    Effect,
    Feature,
    FeatureKind,
    FeatureState,
    FeatureVersion,
    IdentityScheme,
    NothingToAccept,
    OnArrival,
    OnChange,
    ToolPolicy,
    check_visible,
)
from gateways.tool_views import ToolRow, feature_or_404, page_url
from gateways.views import WITHIN_REACH, gateway_or_404, sees_servers
from ui.pages import AppRequest, Undo, first_names, is_for, leave, own_path, page_of, posted, sentences, show
from ui.templatetags.ui import visible
from ui.viewset import confirmed, form_page

# The list of changed definitions of all gateways, each with its difference and the buttons to accept or quarantine it.

SHOWN = 8  # Definitions per page, each with its differences.
MOST_LINES = 40
MOST_QUARANTINED = 30


class EffectForm(forms.Form):
    """Form in which an administrator states the effect of a tool."""

    said_effect = forms.ChoiceField(
        label="What it does",
        choices=SAID_EFFECTS,
        required=False,
        widget=forms.RadioSelect,
        help_text="Tool sets can select tools by effect. If neither you nor the server states an effect, the tool "
        "counts as destructive.",
    )


class Lines(forms.CharField):
    """Form field for a text of several lines. A line break counts as one character, as in the browser."""

    def to_python(self, value: Any) -> str:
        return str(super().to_python(value)).replace("\r\n", "\n")


class TextsForm(forms.Form):
    """Form for a tool's title and description. Clients see these texts instead of the server's texts."""

    title = forms.CharField(max_length=200, required=False, validators=[check_visible])
    description = Lines(
        max_length=LONGEST_TEXT,
        required=False,
        validators=[check_visible],
        widget=forms.Textarea(attrs={"rows": 8}),
    )

    def __init__(self, *args: Any, tool: Feature, **options: Any) -> None:
        super().__init__(*args, **options)
        for name, text in (("title", tool.title), ("description", tool.description)):
            said = visible(text[:MOST_SHOWN]) if text else "nothing"
            self.fields[name].help_text = format_html("Leave empty to use the server's text: {}", said)


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
        """True if the list of changed definitions does not show all lines. The feature's page shows all of them."""
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


# The page of one feature: the definition that clients see, the server's current definition, and the decision on it.

LATELY = timedelta(days=7)
WORDS = "words"  # The description and the arguments of a tool, in readable form.
MOST_SHOWN = 600  # Characters of the server's description beside the form.
LAST_CALLS = 5_000  # The newest calls, read to find their callers.
BY_CALLER = "SELECT {column}, count(*), max(created_at) FROM ({calls}) c GROUP BY 1 ORDER BY 2 DESC, 3 DESC"

HELD = {
    OnChange.HOLD: (
        "Clients still see the approved definition. Calls whose arguments do not fit the changed definition are "
        "refused."
    ),
    OnChange.WARN: "Clients still see the approved definition. No call is refused because of the change.",
    OnChange.ACCEPT: "Clients still see the approved definition.",
}


class DefinitionView(NamedTuple):
    value: str
    label: str


class RecentCaller(NamedTuple):
    """A person, or an app or agent, that used a feature recently."""

    name: str
    calls: int
    last: datetime


@require_GET
@own_resource(WITHIN_REACH, others=Capability.GATEWAYS_READ)
def feature(request: AppRequest, pk: UUID) -> HttpResponse:
    feature = feature_or_404(request, pk)
    gateway = gateway_or_404(request.user, feature.assignment.gateway.slug)
    feature.assignment.gateway = gateway
    versions = list(feature.versions.select_related("approved_by"))
    views = [*_views(feature)]
    wanted = request.GET.get("show", "")
    version = next((one for one in versions if str(one.pk) == wanted), None)
    earlier = _before(version, versions) if version else None
    before = None if "whole" in request.GET else earlier
    shown = wanted if version or wanted in [view.value for view in views] else views[0].value if views else ""
    parts = pages(_lines(feature, shown, version, before))
    part = _part(request, len(parts))
    context = {
        "row": ToolRow(feature),
        "gateway": gateway,
        "rail_entry": "" if feature.kind == FeatureKind.TOOL else "gateways:list",  # The first level of the breadcrumb.
        "why": _why(feature),
        "obstacles": _obstacles(feature, request.user),
        "views": views,
        "shown": shown,
        "version": version,
        "before": before,
        "earlier": earlier,
        "arguments": arguments(feature.input_schema) if shown == WORDS else [],
        "lines": parts[part - 1],
        "part": part,
        "parts": len(parts),
        "versions": versions,
        "sees_servers": sees_servers(request.user),
        "people": feature.identities.count() if _is_personal(feature) else None,
        "callers": _hosts(feature, request.user),
        **_as_tool(request, feature),
    }
    return show(request, "gateways/feature.html#definition", context)


def _as_tool(request: AppRequest, feature: Feature) -> dict[str, Any]:
    """Return template context for a tool: its gateways, the people who called it, and charts of its calls.

    If the viewer may not read the log, the context has only the gateways. The context is {} if `feature` is not a tool,
    or if the server no longer offers the tool.
    """
    seen = Feature.objects.tools_seen_by(request.user).filter(pk=feature.pk)
    if not seen.exists():
        return {}
    places = Catalogue(request.user, {}).find(feature).places
    told: dict[str, Any] = {"places": places}
    if not request.user.has_perm(Capability.LOGS_READ):
        return told
    name, server = feature.exposed_name[:300], feature.assignment.server_id
    names = {place.exposed_name[:300] for place in places}
    calls = Call.objects.filter(server_id=server, feature_name__in=names, method="tools/call")
    told["users"] = _callers("user_email", calls.filter(gateway_id__in=[one.gateway.pk for one in places]))
    where: dict[str, list[Any]] = {"server_id": [server], "feature_name": [name]}
    told["call_plots"] = CallPlots.of(request, where, {"server": str(server), "tool": name}, tops=("gateway",))
    return told


def _views(feature: Feature) -> Iterator[DefinitionView]:
    """Yield the views in which the page can show the feature's definition, the default view first."""
    # While the server offers a definition that is not approved, the default view shows it, or its differences from the
    # approved one.
    if feature.approved and feature.offered:
        yield DefinitionView("difference", "Difference")
    if feature.offered:
        yield DefinitionView("offered", "Offered now")
    # The readable text is shortened and shows the approved definition. It is not enough to decide on a new definition.
    has_words = feature.kind == FeatureKind.TOOL and not (feature.approved and feature.offered)
    words = [DefinitionView(WORDS, "In words")] if has_words else []
    approved = [DefinitionView("approved", "Approved")] if feature.approved else []
    yield from approved + words if feature.state == FeatureState.QUARANTINED else words + approved


def _before(version: FeatureVersion, versions: list[FeatureVersion]) -> FeatureVersion | None:
    """Return the version before `version`, or None; `versions` are sorted newest first."""
    earlier = (one for one in versions if one.first_seen_at < version.first_seen_at)
    return next(earlier, None)


def _lines(
    feature: Feature, shown: str, version: FeatureVersion | None, before: FeatureVersion | None
) -> list[DiffLine]:
    if version:
        return difference(before.definition, version.definition) if before else whole(version.definition)
    match shown:
        case "difference":
            return difference(feature.approved, feature.offered or "")
        case "offered":
            return whole(feature.offered or "")
        case "approved":
            return whole(feature.approved)
    return []


def _part(request: AppRequest, parts: int) -> int:
    asked = request.GET.get("part", "")
    return min(max(int(asked), 1), parts) if asked.isdecimal() and len(asked) < 9 else 1


def _why(feature: Feature) -> str:
    """Return the text that explains the feature's state; empty if clients see the definition that the server offers."""
    gateway = feature.assignment.gateway
    hidden = feature.hidden_characters
    match feature.state:
        case FeatureState.HELD:
            unseen = "It contains hidden characters, which are never accepted automatically." if hidden else ""
            return sentences("Its server changed it.", HELD[OnChange(gateway.changed_definitions)], unseen)
        case FeatureState.NEW:
            arrives = gateway.new_definitions == OnArrival.APPROVE
            because = "it contains hidden characters" if hidden and arrives else "nobody has accepted it yet"
            return f"Clients do not see it, and calls to it are refused: {because}."
        case FeatureState.QUARANTINED:
            return "It is quarantined: hidden from clients, and calls to it are refused until somebody accepts it."
    return "Its server offers another definition now." if feature.offered else ""


def _obstacles(feature: Feature, viewer: User) -> list[str]:
    """Return the reasons, other than the feature's state, why clients might not see the feature.

    Some reasons apply to all clients, others only to the viewer's clients.
    """
    given = given_to(Feature.objects.filter(pk=feature.pk), [(feature.assignment.gateway_id, viewer.pk)])
    assignment, name = feature.assignment, feature.assignment.server.name
    blocked = assignment.tool_policy == ToolPolicy.BLOCK_ALL
    found = (
        (not assignment.gateway.enabled, "The gateway is disabled."),
        (not assignment.server.enabled, f"{name} is disabled, on every gateway."),
        (not assignment.enabled, f"{name} is disabled on this gateway."),
        (blocked, f"The policy of {name} blocks everything."),
        (not blocked and not feature.enabled, "It is disabled."),
        (feature.missing_since, f"{name} no longer offers it."),
        (
            _is_personal(feature) and not feature.missing_since,
            "Each person sees it only if the server lists it for their own credential.",
        ),
        (not given.exists(), "No grant gives it to you."),
        (assignment.server.lists_live, f"If a client requests the list, {name} is asked, and may omit this feature."),
    )
    return [sentence for holds, sentence in found if holds]


def _is_personal(feature: Feature) -> bool:
    return feature.assignment.identity_scheme == IdentityScheme.PER_USER


def _hosts(feature: Feature, viewer: User) -> list[RecentCaller] | None:
    """Return the hosts that called the feature in the last week, or None if `viewer` may not read the log."""
    if not viewer.has_perm(Capability.LOGS_READ):
        return None
    assignment, name = feature.assignment, feature.exposed_name[:300]
    place = {"gateway_id": assignment.gateway_id, "server_id": assignment.server_id, "feature_name": name}
    return _callers("host_name", Call.objects.filter(**place))


def _callers(column: str, calls: QuerySet[Call]) -> list[RecentCaller]:
    """Return the different values of `column` in the calls of the last week. The most frequent value comes first.

    If there are more than LAST_CALLS calls, only the newest LAST_CALLS are read.
    """
    lately = calls.filter(created_at__gte=timezone.now() - LATELY).order_by("-created_at")
    # Fails if `calls` has a filter by an empty list (`x__in=[]`), because Django then makes no SQL.
    newest, parameters = lately.values(column, "created_at")[:LAST_CALLS].query.sql_with_params()
    with connection.cursor() as cursor:
        cursor.execute(BY_CALLER.format(column=column, calls=newest), parameters)
        return [RecentCaller(name or "Unknown", number, last_at) for name, number, last_at in cursor.fetchall()]


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def accept(request: AppRequest, pk: UUID) -> HttpResponse:
    """Ask for a confirmation, then approve the server's current definition.

    If the server offers another definition than the one in the confirmation, nothing is approved.
    """
    feature = feature_or_404(request, pk)
    back, name = _back(request, feature), feature.assignment.server.name

    def act() -> HttpResponse:
        with transaction.atomic():
            Assignment.objects.select_for_update(of=("self",)).get(pk=feature.assignment_id)
            feature.refresh_from_db()
            if request.POST.get("definition", "") != feature.offered_hash:
                return leave(request, back, f"Nothing was accepted: {name} offers another definition now.")
            feature.accept(by=request.user)
        return leave(request, back, f"{feature.exposed_name} accepted")

    hidden = feature.hidden_characters
    text = f"Accept the definition that {name} offers now? Clients get it with their next list"
    return confirmed(
        request,
        act,
        back=back,
        faults=NothingToAccept,
        title="Accept definition",
        text=f"{text}, and {feature.exposed_name} can be used." if feature.approved == "" else f"{text}.",
        more=lambda: sentences(
            f"It contains hidden characters: {first_names(hidden)}." if hidden else "", _used(feature, request.user)
        ),
        kind="danger" if hidden else "primary",
        icon="warning" if hidden else "allowed",
        hidden=[("definition", feature.offered_hash), ("back", back)],
    )


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def quarantine(request: AppRequest, pk: UUID) -> HttpResponse:
    feature = feature_or_404(request, pk)
    name, back = feature.exposed_name, _back(request, feature)
    return confirmed(
        request,
        lambda: feature.quarantine(by=request.user),
        f"{name} quarantined",
        back=back,
        title=f"Quarantine {feature.get_kind_display().lower()}",
        kind="primary",
        text=f"Quarantine {name}? It disappears from {feature.assignment.gateway.name} with the next request. "
        "Calls to it are refused until somebody accepts it.",
        more=lambda: cuts(feature, request.user),
        hidden=[("back", back)],
    )


def _back(request: AppRequest, feature: Feature) -> str:
    """Return the URL to go back to: the page that the request names, or the feature's page."""
    asked = request.POST.get("back") or request.GET.get("back", "")
    return own_path(asked, page_url(feature))


def _used(feature: Feature, viewer: User) -> str:
    """Return a sentence naming the feature's recent callers; empty if `viewer` may not read the log."""
    callers = _hosts(feature, viewer)
    if callers is None:
        return ""
    if not callers:
        return "Nobody used it in the last 7 days."
    return f"Used in the last 7 days by {first_names([one.name for one in callers])}."


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def effect(request: AppRequest, pk: UUID) -> HttpResponse:
    """State the effect of a tool, in place of the effect that the server claims."""
    tool = feature_or_404(request, pk)
    if tool.kind != FeatureKind.TOOL:
        raise Http404
    if is_for(request, "would-refuse"):
        asked, refused = EffectForm(request.GET), ""
        if asked.is_valid():
            now = asked.cleaned_data["said_effect"] or Effect.of(tool.annotations)
            refused = refused_by(tool.assignment.gateway, request.user, with_effect(tool, now))
        return render(request, "ui/would_refuse.html#refused", {"refused": refused})
    form = EffectForm(posted(request), initial={"said_effect": tool.said_effect})
    back, before = page_url(tool), tool.said_effect

    def save() -> HttpResponse:
        changed = tool.say_effect(form.cleaned_data["said_effect"], by=request.user)
        undo = Undo.if_changed(changed, request.path, [("said_effect", before)])
        return leave(request, back, f"Effect of {tool.exposed_name} changed", undo)

    heading = f"What {tool.exposed_name} does"
    return form_page(request, "ui/would_refuse.html", form, save, heading=heading, back=back)


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def texts(request: AppRequest, pk: UUID) -> HttpResponse:
    """Set the tool's title and description for clients, in place of the server's title and description."""
    tool = feature_or_404(request, pk)
    if tool.kind != FeatureKind.TOOL:
        raise Http404
    before = [("title", tool.said_title), ("description", tool.said_description)]
    form, back = TextsForm(posted(request), tool=tool, initial=dict(before)), page_url(tool)

    def save() -> HttpResponse:
        changed = tool.say_texts(**form.cleaned_data, by=request.user)
        return leave(
            request, back, f"Texts of {tool.exposed_name} changed", Undo.if_changed(changed, request.path, before)
        )

    heading = f"Texts of {tool.exposed_name} for clients"
    return form_page(request, "ui/dialog.html", form, save, heading=heading, submit="Save", back=back)
