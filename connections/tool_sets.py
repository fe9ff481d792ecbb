"""The tool sets on a gateway's Access tab, the people who have them, and the limits of apps and agents."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID

from django import forms
from django.core.exceptions import ValidationError
from django.db.models import IntegerField, Prefetch, Q
from django.db.models.expressions import RawSQL
from django.db.models.functions import Lower
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods

from accounts.models import Team, User
from accounts.rules import NameTaken
from capabilities import Capability, requires
from connections.given_tools import asking_grants, limited_to, refused_by, with_features, without_grant
from connections.models import HostAtGateway
from gateways.models import (
    STATED_EFFECTS,
    BadEnd,
    Feature,
    FeatureQuerySet,
    Gateway,
    GatewayError,
    StillInUse,
    ToolGrant,
    ToolSet,
    ToolSetQuerySet,
    ToolsGiven,
    fitting,
    in_sets,
)
from gateways.views import gateway_or_404
from hosts.models import Host
from ui.forms import ExplainedChoice, ListFilter
from ui.pages import YEARS, AppRequest, Undo, first_names, is_for, leave, number_of, posted, seen_version
from ui.tables import LIVE, Column, Table
from ui.viewset import confirmed, form_page, list_page

TABLE = Table(
    "tool-sets",
    "Tool sets",
    (
        Column("name", "Set", sorts=(Lower("name"),), value="tool_set.name"),
        Column(
            "tools",
            "Tools",
            5,
            kind="number",
            on_phone=True,
            hint="Number of tools, prompts and resources in the set now.",
            value="tool_set.feature_count",
        ),
        Column(
            "given",
            "Given to",
            14,
            priority=2,
            on_phone=True,
            value=lambda row: [grant.subject for grant in row.tool_set.live_grants],
        ),
        Column(
            "limits",
            "Limits",
            10,
            priority=3,
            hint="Apps and agents that can use only the tools of this set.",
            value=lambda row: [limit.host.name for limit in row.tool_set.live_limits],
        ),
        Column("acts", "Actions", 5, kind="acts", said=False),
    ),
    order="name",
    row_id="tool_set.pk",
)
TOOLS = Table(
    "tools-of-set",
    "Tools of this set",
    (
        Column("name", "Name", sorts=("exposed_name",), value="exposed_name"),
        Column("kind", "Type", 8, priority=3),
        Column("effect", "Effect", 8, priority=2, hint=LIVE, value="claim"),
    ),
    order="name",
)
GIVEN = {
    ToolsGiven.ALL: "Everybody who may use the gateway can use all its tools.",
    ToolsGiven.GRANTED: "People can use only tools in a set that is given to everybody, to their teams or to them.",
}
MOST_NAMES, MOST_PATTERNS = 5_000, 100
LONGEST_NAMES = 1_000_000
_COUNTED = """(
    SELECT count(*) FROM gateways_features_of(ARRAY[gateways_toolset.id]) s
    JOIN gateways_feature f ON f.id = s.feature_id JOIN gateways_assignment a ON a.id = f.assignment_id
    JOIN servers_server v ON v.id = a.server_id
    WHERE f.missing_since IS NULL AND a.removed_at IS NULL AND v.archived_at IS NULL
)"""


# The forms.


class ToolsGivenForm(forms.Form):
    tools_given = forms.ChoiceField(
        label="Who may use its tools", choices=ToolsGiven.choices, widget=ExplainedChoice(GIVEN)
    )


class ToolSetForm(forms.Form):
    """Form to create or edit a set of the tools of `gateway`."""

    name = forms.CharField(max_length=80)
    patterns = forms.CharField(
        required=False,
        max_length=4000,
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text="Names as clients see them, one per line: * is any text, ? any character. Example: github__get_*",
    )
    effects = forms.MultipleChoiceField(
        required=False,
        choices=STATED_EFFECTS,
        widget=forms.CheckboxSelectMultiple,
        help_text=(
            "Only tools with one of these effects. A tool without a stated effect counts as destructive. Prompts and "
            "resources never match an effect."
        ),
    )
    members = forms.CharField(
        label="Chosen one by one",
        required=False,
        max_length=LONGEST_NAMES,
        widget=forms.Textarea(attrs={"rows": 4}),
        help_text="Names of tools, prompts and resources, one per line. They are in the set even if no pattern or "
        "effect matches them. On the set's page, you can select them from a list.",
    )

    def __init__(self, *args: Any, gateway: Gateway, tool_set: ToolSet | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gateway, self.tool_set = gateway, tool_set

    def clean_patterns(self) -> list[str]:
        patterns = lines(self.cleaned_data["patterns"])
        if long := [pattern for pattern in patterns if len(pattern) > 200]:
            raise ValidationError(f"This pattern has more than 200 characters: {long[0][:40]}…")
        if len(patterns) > MOST_PATTERNS:
            raise ValidationError(f"Use at most {MOST_PATTERNS} patterns.")
        return patterns

    def clean_members(self) -> list[Feature]:
        """Return the features named in the field `members`. Raises ValidationError for unknown or too many names."""
        return features_named(self.gateway, lines(self.cleaned_data["members"]), self.tool_set)

    @property
    def features(self) -> FeatureQuerySet:
        """The features that a set with the form's values would contain now. Requires a valid form."""
        told = self.cleaned_data
        chosen = Q(pk__in=[feature.pk for feature in told["members"]])
        return features_at(self.gateway).filter(chosen | fitting(told["patterns"], told["effects"]))


class GiveForm(forms.Form):
    """Form to give a set to everybody, a team or a person."""

    to = forms.ChoiceField(
        label="Give to",
        choices=[("everyone", "Everybody"), ("team", "A team"), ("person", "A person")],
        widget=forms.RadioSelect,
    )
    team = forms.ModelChoiceField(Team.objects.all(), required=False)
    email = forms.EmailField(label="Person", required=False, help_text="E-mail address.")
    ends_on = forms.DateField(
        label="Until",
        required=False,
        widget=forms.DateInput(attrs={"type": "date"}),
        help_text="The last day, in UTC. If empty, the grant lasts until somebody ends it.",
    )

    def clean_ends_on(self) -> date | None:
        day: date | None = self.cleaned_data["ends_on"]
        if day and day.year not in YEARS:
            raise ValidationError(f"Choose a day before the year {YEARS.stop}.")
        return day

    def clean(self) -> dict[str, Any]:
        values = super().clean() or self.cleaned_data
        match values.get("to"):
            case "team" if not values.get("team"):
                self.add_error("team", "Choose a team.")
            case "person":
                values["user"] = User.objects.filter(email__iexact=values.get("email") or "").first()
                if values["user"] is None and "email" not in self.errors:
                    self.add_error("email", "There is no person with this e-mail.")
        return values

    @property
    def subject(self) -> dict[str, Any]:
        """The team or person as a keyword argument of `give`; empty for everybody."""
        to = self.cleaned_data["to"]
        if to == "person":
            return {"user": self.cleaned_data["user"]}
        return {"team": self.cleaned_data["team"]} if to == "team" else {}

    @property
    def ends_at(self) -> datetime | None:
        """The end of the chosen last day; None if no day is chosen."""
        day: date | None = self.cleaned_data["ends_on"]
        return datetime.combine(day + timedelta(days=1), time(), UTC) if day else None


class ToolSetField(forms.ModelChoiceField):  # type: ignore[type-arg]  # Not generic at run time.
    def label_from_instance(self, obj: ToolSet) -> str:
        return obj.name


class ToolLimitForm(forms.Form):
    """Form to limit an app or agent to one tool set of `gateway`, or to lift the limit."""

    tool_set = ToolSetField(ToolSet.objects.none(), required=False, label="Only the tools of", empty_label="No limit")

    def __init__(self, *args: Any, gateway: Gateway, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["tool_set"].queryset = sets_at(gateway)  # type: ignore[attr-defined]


class ToolSetFilter(ListFilter):
    def narrow(self, rows: ToolSetQuerySet) -> ToolSetQuerySet:
        return rows.matching(self.values.get("q", ""))


def lines(text: str) -> list[str]:
    return list(dict.fromkeys(filter(None, map(str.strip, text.splitlines()))))


# The rows.


def features_at(gateway: Gateway) -> FeatureQuerySet:
    """Return the features that servers of `gateway` offer."""
    return Feature.objects.offered().placed().filter(assignment__gateway=gateway.pk)


def features_named(gateway: Gateway, names: Collection[str], tool_set: ToolSet | None = None) -> list[Feature]:
    """Return the features with these exposed names, including members of `tool_set` that servers no longer offer.

    Raises ValidationError for too many names, and for an unknown name.
    """
    if len(names) > MOST_NAMES:
        raise ValidationError(f"Choose at most {MOST_NAMES:,} names.")
    found = {feature.pk: feature for feature in features_at(gateway).filter(exposed_name__in=names)}
    if tool_set is not None:
        found |= {feature.pk: feature for feature in tool_set.members.filter(exposed_name__in=names)}
    known = {feature.exposed_name for feature in found.values()}
    if missing := [name for name in names if name not in known]:
        raise ValidationError(f"This gateway has no {missing[0][:100]}.")
    return [*found.values()]


def sets_at(gateway: Gateway) -> ToolSetQuerySet:
    return ToolSet.objects.live().filter(gateway=gateway.pk).order_by(Lower("name"), "pk")


def with_holders(rows: ToolSetQuerySet) -> Any:
    """Return the sets, each with its live grants, the hosts limited to it, and the number of its offered features."""
    grants = ToolGrant.objects.live().select_related("team", "user").order_by("given_at")
    limited = HostAtGateway.objects.live().select_related("host").order_by("host__name")
    counted: Any = rows.annotate(feature_count=RawSQL(_COUNTED, [], IntegerField()))  # noqa: S611
    return counted.select_related("gateway").prefetch_related(
        Prefetch("grants", grants, "live_grants"), Prefetch("limited", limited, "live_limits")
    )


class ToolSetRow:
    """A row of the list of tool sets. `with_holders` must have loaded the set."""

    def __init__(self, tool_set: Any) -> None:
        self.tool_set = tool_set
        self.given = first_names([grant.subject for grant in tool_set.live_grants])
        self.limits = first_names([row.host.name for row in tool_set.live_limits])


def _page_url(gateway: Gateway) -> str:
    return reverse("connections:tool_sets", args=[gateway.slug])


def set_url(tool_set: ToolSet) -> str:
    return reverse("connections:tool_set", args=[tool_set.pk])


def find_set(request: AppRequest, pk: UUID) -> ToolSet:
    visible = ToolSet.objects.live().filter(gateway__in=Gateway.objects.visible_to(request.user))
    tool_set: ToolSet = get_object_or_404(with_holders(visible), pk=pk)
    return tool_set


# The pages.


@require_GET
@requires(Capability.GATEWAYS_READ)
def listing(request: AppRequest, slug: str) -> HttpResponse:
    gateway = gateway_or_404(request.user, slug)
    return list_page(
        request,
        "connections/tool_sets.html#sets",
        ToolSet.objects.live().filter(gateway=gateway.pk),
        table=TABLE,
        filters=ToolSetFilter(request.GET),
        detail=with_holders,
        wrap=ToolSetRow,
        gateway=gateway,
        tab="access",
    )


@require_GET
@requires(Capability.GATEWAYS_READ)
def detail(request: AppRequest, pk: UUID) -> HttpResponse:
    tool_set = find_set(request, pk)
    gateway = gateway_or_404(request.user, tool_set.gateway.slug)
    features = in_sets(features_at(gateway), [tool_set])
    context = {"gateway": gateway, "tab": "access", "tool_set": tool_set}
    context["effects"] = [label for effect, label in STATED_EFFECTS if effect in tool_set.effects]
    context["members"] = {*tool_set.members.values_list("pk", flat=True)}
    return list_page(request, "connections/tool_set.html#tools", features, table=TOOLS, **context)


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def restrict(request: AppRequest, slug: str) -> HttpResponse:
    """Choose whether people can use all tools of the gateway, or only the tools that grants give them."""
    gateway = gateway_or_404(request.user, slug)
    if is_for(request, "would-refuse"):
        form, refused = ToolsGivenForm(request.GET), ""
        if form.is_valid() and form.cleaned_data["tools_given"] != ToolsGiven.ALL:
            refused = refused_by(gateway, request.user, asking_grants)
        return render(request, "ui/would_refuse.html#refused", {"refused": refused})
    form = ToolsGivenForm(posted(request), initial={"tools_given": gateway.tools_given})
    back, before = _page_url(gateway), gateway.tools_given

    def save() -> HttpResponse:
        gateway.edit(**form.cleaned_data, by=request.user, seen=seen_version(request))
        undo = Undo.if_changed(before != gateway.tools_given, request.path, [("tools_given", before)])
        return leave(request, back, "Tools changed", undo)

    context = {"gateway": gateway, "heading": "Change who may use its tools", "version": gateway.version}
    return form_page(request, "ui/would_refuse.html", form, save, back=back, **context)


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def add(request: AppRequest, slug: str) -> HttpResponse:
    gateway = gateway_or_404(request.user, slug)
    if is_for(request, "would-have"):
        return _would_have(request, gateway, None)
    form = ToolSetForm(posted(request), gateway=gateway)

    def save() -> HttpResponse:
        tool_set = ToolSet.objects.add(gateway=gateway, **form.cleaned_data, by=request.user)
        return leave(request, set_url(tool_set), f"{tool_set.name} added")

    context = {"heading": "Add a tool set", "submit": "Add", "back": _page_url(gateway)}
    return form_page(request, "connections/tool_set_form.html", form, save, {NameTaken: "name"}, **context)


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def edit(request: AppRequest, pk: UUID) -> HttpResponse:
    tool_set = find_set(request, pk)
    if is_for(request, "would-have"):
        return _would_have(request, tool_set.gateway, tool_set)
    options: dict[str, Any] = {"gateway": tool_set.gateway, "tool_set": tool_set}
    form = ToolSetForm(posted(request), **options, initial=_filled(tool_set))

    def save() -> HttpResponse:
        tool_set.edit(**form.cleaned_data, by=request.user, seen=seen_version(request))
        return leave(request, set_url(tool_set), "Tool set changed")

    context = {"heading": f"Edit {tool_set.name}", "back": set_url(tool_set), "version": tool_set.version}
    return form_page(request, "connections/tool_set_form.html", form, save, {NameTaken: "name"}, **context)


def _filled(tool_set: ToolSet) -> dict[str, Any]:
    """Return the initial values of the form that edits `tool_set`."""
    told = tool_set.editable()
    return told | {name: "\n".join(told[name]) for name in ("patterns", "members")}


def _would_have(request: AppRequest, gateway: Gateway, tool_set: ToolSet | None) -> HttpResponse:
    """Show how many features the set would have with the choices in the form.

    If the set is in use, also show the recent calls that the change would have refused.
    """
    form, told = ToolSetForm(request.POST, gateway=gateway, tool_set=tool_set), ""
    form.fields["name"].required = False
    if form.is_valid():
        found = number_of(form.features.count(), "tool, prompt or resource", "tools, prompts and resources")
        told = f"With these choices, the set has {found} now."
        if tool_set is not None and tool_set.is_in_use:
            told += f" {refused_by(gateway, request.user, with_features(tool_set, form.features))}"
    return render(request, "connections/tool_set_form.html#would_have", {"would_have": told})


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def archive(request: AppRequest, pk: UUID) -> HttpResponse:
    tool_set = find_set(request, pk)
    return confirmed(
        request,
        lambda: tool_set.archive(by=request.user),
        f"{tool_set.name} archived",
        back=set_url(tool_set),
        to=_page_url(tool_set.gateway),
        faults=StillInUse,
        title="Archive tool set",
        text=f'Archive "{tool_set.name}"? This cannot be undone.',
        more="The set has no grant and limits no app or agent.",
        icon="revoke",
    )


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def give(request: AppRequest, pk: UUID) -> HttpResponse:
    """Give a set to everybody, a team or a person."""
    tool_set = find_set(request, pk)
    form, back = GiveForm(posted(request), initial={"to": "everyone"}), set_url(tool_set)

    def save() -> HttpResponse:
        whose = {"team": None, "user": None} | form.subject
        replaces = ToolGrant.objects.live().filter(tool_set=tool_set, **whose).exists()
        try:
            grant = ToolGrant.objects.give(tool_set, **form.subject, ends_at=form.ends_at, by=request.user)
        except GatewayError as error:
            if isinstance(error, BadEnd):
                raise
            return leave(request, back, str(error))
        # Ending a grant that replaced an earlier one would take away more than was given.
        undo = Undo.if_changed(not replaces, reverse("connections:end_grant", args=[grant.pk]))
        return leave(request, back, f"{tool_set.name} given to {grant.subject}", undo)

    errors, heading = {BadEnd: ("ends_on", "Choose today or a later day.")}, f"Give {tool_set.name}"
    return form_page(request, "ui/dialog.html", form, save, errors, heading=heading, submit="Give", back=back)


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def end_grant(request: AppRequest, pk: UUID) -> HttpResponse:
    rows = ToolGrant.objects.select_related("tool_set__gateway", "gateway", "team", "user")
    grant = get_object_or_404(rows, gateway__in=Gateway.objects.visible_to(request.user), pk=pk)
    back, gateway = set_url(grant.tool_set), grant.gateway
    gives_all = gateway.tools_given == ToolsGiven.ALL
    then = "Ending the grant has no effect while everybody can use all tools of the gateway."
    if not gives_all:
        then = "From the next request on, the tools of this set are refused, unless another grant gives them."

    def act() -> HttpResponse:
        subject = {"to": "team" if grant.team else "person" if grant.user else "everyone"}
        if grant.ends_at:
            # A grant that ends at midnight has the day before as its last day.
            subject["ends_on"] = (grant.ends_at - timedelta.resolution).astimezone(UTC).date().isoformat()
        subject |= {"team": str(grant.team.pk)} if grant.team else {"email": grant.user.email} if grant.user else {}
        url = reverse("connections:give_tools", args=[grant.tool_set.pk])
        undo = Undo.if_changed(grant.end(by=request.user), url, [*subject.items()])
        return leave(request, back, f"{grant.tool_set.name} taken from {grant.subject}", undo)

    return confirmed(
        request,
        act,
        back=back,
        title="End grant",
        text=f"Take {grant.tool_set.name} from {grant.subject}? {then}",
        more=lambda: "" if gives_all else refused_by(gateway, request.user, without_grant(grant)),
        kind="primary",
    )


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def limit(request: AppRequest, slug: str, host: UUID) -> HttpResponse:
    """Limit an app or agent to a set of tools, for everyone who uses it on this gateway."""
    gateway = gateway_or_404(request.user, slug)
    row = HostAtGateway.objects.at(gateway, get_object_or_404(Host.objects.live(), pk=host))
    if is_for(request, "would-refuse"):
        asked, refused = ToolLimitForm(request.GET, gateway=gateway), ""
        if asked.is_valid() and (tool_set := asked.cleaned_data["tool_set"]):
            refused = refused_by(gateway, request.user, limited_to(row.host, tool_set))
        return render(request, "ui/would_refuse.html#refused", {"refused": refused})
    form = ToolLimitForm(posted(request), gateway=gateway, initial={"tool_set": row.tool_set_id})
    back, before = reverse("connections:gateway_hosts", args=[slug]), row.tool_set_id

    def save() -> HttpResponse:
        changed = row.limit(form.cleaned_data["tool_set"], by=request.user)
        undo = Undo.if_changed(changed, request.path, [("tool_set", str(before or ""))])
        return leave(request, back, f"Limit of {row.host} changed", undo)

    context = {"heading": f"Limit {row.host}", "back": back}
    return form_page(request, "ui/would_refuse.html", form, save, {GatewayError: "tool_set"}, **context)
