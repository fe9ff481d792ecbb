"""Forms of the Gateways pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.db.models import Q

from accounts.models import Team
from auditlog.rollups.schema import TIME_RANGES
from gateways.models import (
    AliasRequired,
    Assignment,
    Effect,
    FeatureKind,
    FeatureQuerySet,
    FeatureState,
    Gateway,
    GatewayQuerySet,
    IdentityScheme,
    OnArrival,
    OnChange,
    Reach,
    alias_validator,
)
from servers.forms import SlugField, SlugForm
from servers.models import Identity, Server
from ui.forms import ExplainedChoice, FilterMenu, LimitField, ListFilter, named

TAKEN = "This name or slug has just been taken. Choose another."

NEW = {
    OnArrival.APPROVE: "New definitions without hidden characters are shown to clients at once.",
    OnArrival.WAIT: "New definitions are hidden until somebody accepts them.",
}
CHANGED = {
    OnChange.HOLD: (
        "Clients still see the approved definition. Calls whose arguments do not fit the changed definition are "
        "refused."
    ),
    OnChange.WARN: "Clients still see the approved definition. No call is refused because of the change. The change is "
    "listed under Tools, Changed.",
    OnChange.ACCEPT: "Clients are shown the change at once. Only changes with hidden characters are held back.",
}
SCHEMES = (IdentityScheme.PER_USER, IdentityScheme.SHARED, IdentityScheme.NONE)


class ReachForm(forms.Form):
    """Form to choose the people who may use a gateway: everyone, or the people of some teams."""

    reach = forms.ChoiceField(choices=Reach.choices, initial=Reach.EVERYONE, widget=forms.RadioSelect)
    teams = forms.ModelMultipleChoiceField(
        Team.objects.all(), required=False, widget=forms.CheckboxSelectMultiple, help_text="Used for the reach “Teams”."
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not Team.objects.exists():
            del self.fields["teams"]
            self.fields["reach"].help_text = "There is no team yet. Create one first, or choose “Everyone”."

    def clean(self) -> dict[str, Any]:
        values = super().clean() or self.cleaned_data
        if values.get("reach") == Reach.TEAMS and not values.get("teams"):
            self.add_error("teams" if "teams" in self.fields else "reach", "Choose at least one team.")
        if values.get("reach") == Reach.EVERYONE:
            values["teams"] = []
        return values


class LimitForm(forms.Form):
    calls_per_minute = LimitField(help_text="Limit for all connections of the gateway together. Empty: no limit.")


class DefinitionsForm(forms.Form):
    """Form to choose what happens to new and changed definitions of tools, prompts and resources."""

    new_definitions = forms.ChoiceField(label="New definitions", choices=OnArrival.choices, widget=ExplainedChoice(NEW))
    changed_definitions = forms.ChoiceField(
        label="Changed definitions", choices=OnChange.choices, widget=ExplainedChoice(CHANGED)
    )


class NameForm(forms.Form):
    """Form for the name and description of `gateway`; `gateway` is None for a new gateway."""

    name = forms.CharField(max_length=80)
    description = forms.CharField(
        required=False,
        max_length=1000,
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text="Shown where people choose a gateway.",
    )

    def __init__(self, *args: Any, gateway: Gateway | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gateway = gateway

    def clean_name(self) -> str:
        name = str(self.cleaned_data["name"])
        others = Gateway.objects.live().filter(named(name))
        if (others.exclude(pk=self.gateway.pk) if self.gateway else others).exists():
            raise ValidationError("A gateway with this name already exists.")
        return name


class GatewayForm(SlugForm, NameForm, ReachForm):
    slug = SlugField(Gateway.objects.all(), max_length=40, help_text="Last part of the Gateway URL; cannot be changed.")
    field_order = ("name", "slug", "description", "reach", "teams")


class AssignmentForm(forms.Form):
    """Form for the settings of a server on `gateway`; `assignment` is None if the server is not assigned yet."""

    server = forms.ModelChoiceField(Server.objects.none(), to_field_name="slug", empty_label=None)
    alias = forms.CharField(
        required=False,
        max_length=16,
        validators=[alias_validator],
        error_messages={"max_length": "An alias can have at most 16 characters."},
        help_text="Prefix of the server's tool names. Empty: the server's slug.",
    )
    bare = forms.BooleanField(
        label="Without alias",
        required=False,
        help_text="Tools keep their own names. Possible only if this is the gateway's only server.",
    )
    identity_scheme = forms.ChoiceField(choices=[(s.value, s.label) for s in SCHEMES], widget=forms.RadioSelect)
    shared_identity = forms.ModelChoiceField(Identity.objects.none(), required=False, empty_label="Choose a credential")

    def __init__(
        self,
        *args: Any,
        gateway: Gateway,
        server: Server | None,
        assignment: Assignment | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.gateway, self.upstream, self.assignment = gateway, server, assignment
        self.absent: list[str] = []  # Shared identities of the server that are not allowed on this gateway.
        if assignment:
            del self.fields["server"]
        else:
            self.fields["server"].queryset = Server.objects.live()  # type: ignore[attr-defined]
        if server:
            identities = Identity.objects.live().shared().filter(server=server)
            shared = identities.filter(gateways=gateway)
            if assignment and assignment.shared_identity_id:  # Keep the current identity selectable, even if withdrawn.
                shared = identities.filter(Q(gateways=gateway) | Q(pk=assignment.shared_identity_id)).distinct()
            self.absent = list(identities.exclude(pk__in=shared).order_by("label").values_list("label", flat=True))
            self.fields["shared_identity"].queryset = shared  # type: ignore[attr-defined]
            if self.absent:
                self.fields["shared_identity"].error_messages["invalid_choice"] = (
                    f"This shared credential may not be used on {gateway.name}. A person with Identity "
                    f"management can allow it on the Identities tab of {server.name}."
                )
            self.fields["shared_identity"].label_from_instance = lambda identity: identity.label  # type: ignore[attr-defined]
            self.initial = self._start(server)

    def _start(self, server: Server) -> dict[str, Any]:
        if self.assignment:
            return {
                "alias": self.assignment.alias,
                "bare": not self.assignment.alias,
                "identity_scheme": self.assignment.identity_scheme,
                "shared_identity": self.assignment.shared_identity_id,
            }
        scheme = IdentityScheme.PER_USER if server.needs_credential else IdentityScheme.NONE
        return {"server": server.slug, "identity_scheme": scheme}

    def _alias(self, values: dict[str, Any]) -> str:
        """Return the alias to save: by default the server's slug; empty if `bare` (“Without alias”) is ticked.

        Raises ValidationError if another server of the gateway has the alias, if `bare` is ticked but the gateway needs
        an alias, or if `bare` is ticked but an alias was entered.
        """
        alias, bare = values["alias"], values.pop("bare", False)
        others = self._others()
        if bare and alias:
            raise ValidationError("Leave this empty, or untick “Without alias”.")
        had_no_alias = self.assignment is not None and not self.assignment.alias
        if bare and not had_no_alias and others.exists():
            raise ValidationError(str(AliasRequired.__doc__))
        alias = alias if alias or bare or self.upstream is None else self.upstream.slug
        if alias and others.filter(alias=alias).exists():
            raise ValidationError(f"Another server on {self.gateway.name} has the alias “{alias}”.")
        return str(alias)

    def _others(self) -> Any:
        others = self.gateway.assignments.live()
        return others.exclude(pk=self.assignment.pk) if self.assignment else others

    def clean(self) -> dict[str, Any]:
        values = super().clean() or self.cleaned_data
        if "alias" in values:
            try:
                values["alias"] = self._alias(values)
            except ValidationError as refusal:
                self.add_error("alias", refusal)
        if self.upstream and "identity_scheme" in values:
            self._check_scheme(self.upstream, values)
        return values

    def _check_scheme(self, server: Server, values: dict[str, Any]) -> None:
        scheme = values["identity_scheme"]
        if server.needs_credential and scheme == IdentityScheme.NONE:
            self.add_error("identity_scheme", f"{server.name} needs a credential. Choose a shared or per-user one.")
        if not server.needs_credential and scheme != IdentityScheme.NONE:
            self.add_error("identity_scheme", f"{server.name} takes no credential: its auth type is “No credential”.")
        elif scheme == IdentityScheme.SHARED and not values.get("shared_identity"):
            self.add_error("shared_identity", "Choose the credential everyone uses.")
        if scheme != IdentityScheme.SHARED:
            values["shared_identity"] = None


class IdentityGatewaysForm(forms.Form):
    """Form to choose the gateways that may use a shared identity."""

    gateways = forms.ModelMultipleChoiceField(
        Gateway.objects.none(), required=False, widget=forms.CheckboxSelectMultiple, label="Gateways"
    )

    def __init__(self, *args: Any, identity: Identity, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["gateways"].queryset = Gateway.objects.live().order_by("name")  # type: ignore[attr-defined]
        self.initial = {"gateways": list(identity.gateways.values_list("pk", flat=True))}


class GatewayFilter(ListFilter):
    def narrow(self, rows: GatewayQuerySet) -> GatewayQuerySet:
        return rows.matching(self.values.get("q", ""))


def listed_kind(asked: str) -> FeatureKind | None:
    """Return the kind of features to list, or None to list all kinds.

    `asked` is "all" or the name of a kind. For any other text, return the kind of tools.
    """
    if asked == "all":
        return None
    return FeatureKind(asked) if asked in FeatureKind.values else FeatureKind.TOOL


class FeatureFilter(ListFilter):
    STATES = (("attention", "Needs a decision"), *((state.value, state.label) for state in FeatureState))
    radios = ("enabled", "state")

    kind = forms.ChoiceField(required=False, choices=[("all", "All"), *FeatureKind.choices])
    enabled = forms.ChoiceField(required=False, choices=[("on", "On"), ("off", "Off")])
    state = forms.ChoiceField(required=False, choices=STATES)
    server = forms.MultipleChoiceField(required=False)

    def __init__(self, *args: Any, assignments: list[Assignment], **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["server"].choices = [(str(one.pk), one.server.name) for one in assignments]  # type: ignore[attr-defined]

    @property
    def facets(self) -> list[FilterMenu]:
        """The filter menus without the server menu. The template renders the server menu, with counts."""
        return [facet for facet in super().facets if facet.name != "server"]

    @property
    def is_narrow(self) -> bool:
        """True if a filter other than the kind is set."""
        return any(value for name, value in self.values.items() if name != "kind")

    def narrow(self, rows: FeatureQuerySet) -> FeatureQuerySet:
        values = self.values
        features = rows.matching(values.get("q", ""))
        if kind := listed_kind(values.get("kind", "")):
            features = features.filter(kind=kind)
        if values.get("state") == "attention":
            features = features.needing_attention()
        elif state := values.get("state"):
            features = features.filter(state=state)
        if enabled := values.get("enabled"):
            features = features.filter(enabled=enabled == "on")
        if servers := values.get("server"):
            features = features.filter(assignment__in=servers)
        return features


class CatalogueFilter(ListFilter):
    """The filters of the catalogue of tools; `servers` are the choices of the server filter, as (slug, name)."""

    SHOWS = (("new", "New"), ("changed", "Changed"), ("unused", "Unused"))
    radios = ("show",)

    effect = forms.MultipleChoiceField(
        required=False, choices=[*Effect.choices], help_text=", as an administrator or its server states"
    )
    show = forms.ChoiceField(required=False, choices=[*SHOWS])
    server = forms.MultipleChoiceField(required=False)

    def __init__(self, *args: Any, servers: Sequence[tuple[str, str]], may_read: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        meanings = ("first seen in 7 days", "waits for a decision", f"no call in {TIME_RANGES['30d'].label}")
        shows = [(name, f"{label}, {words}") for (name, label), words in zip(self.SHOWS, meanings, strict=True)]
        self.fields["show"].choices = shows if may_read else shows[:2]  # type: ignore[attr-defined]
        self.fields["server"].choices = servers  # type: ignore[attr-defined]
