"""Forms of API access tokens: creating, rotating and editing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils import timezone

from accounts.models import WorkspaceSettings
from capabilities import Capability
from connections.models import Connection
from gateways.models import Assignment, Gateway
from hosts.models import Host
from tokens.models import (
    DEFAULT_LIFETIME,
    LIFETIMES,
    OVERLAP_HOURS,
    BadAllowlistEntry,
    Token,
    TokenNameTaken,
    canonical_allowlist,
)
from ui.forms import LimitField

NEVER = "never"
OVERLAPS = {0: "Not at all", 1: "1 hour", 24: "24 hours", 168: "7 days"}
MOST_UNTIL_USED = 24  # Hours after which the old secret ends, even if the new one was not used.
LIMIT = (
    "If empty, only the limits of the workspace and the gateway apply. Raising or removing a limit later needs "
    f"“{Capability.API_TOKENS_MANAGE.label}”."
)


@dataclass(frozen=True)
class Preset:
    """An option for how long something lasts: its value, label, end, and whether it is selected."""

    value: str
    words: str
    ends: datetime | None
    checked: bool

    @classmethod
    def after(cls, value: object, words: str, length: timedelta | None, selected: object) -> Preset:
        """Return the option that ends `length` from now. If `length` is None or zero, `ends` is None."""
        return cls(str(value), words, timezone.now() + length if length else None, str(selected) == str(value))


class ServersField(forms.ModelMultipleChoiceField):  # type: ignore[type-arg]
    """A choice of assignments, labelled with the names of their servers."""

    def label_from_instance(self, assignment: Any) -> str:
        return str(assignment.server)


class AllowlistField(forms.CharField):
    """An IP allowlist, one entry per line; its value is the list that a token stores."""

    def __init__(self) -> None:
        super().__init__(
            label="IP allowlist",
            required=False,
            widget=forms.Textarea(attrs={"rows": 3, "placeholder": "198.51.100.7\n2001:db8::/32"}),
            help_text="One address or CIDR range per line. If empty, any address is allowed.",
        )

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, list) else value

    def clean(self, value: Any) -> list[str] | None:
        try:
            return canonical_allowlist(super().clean(value).replace(",", "\n").splitlines())
        except BadAllowlistEntry as error:
            raise ValidationError(str(error)) from error


class TokenForm(forms.Form):
    """Form for a new token: name, servers, expiration, IP allowlist and limit of calls. Initial values are valid."""

    name = forms.CharField(max_length=100)
    scope = forms.ChoiceField(
        choices=[("all", "All servers of this gateway, including ones added later"), ("some", "Only these servers")],
        initial="all",
    )
    servers = ServersField(
        queryset=Assignment.objects.none(),
        required=False,
        widget=forms.CheckboxSelectMultiple(attrs={"autocomplete": "off"}),
    )
    expires_in_days = forms.ChoiceField(label="Expiration", initial=str(DEFAULT_LIFETIME), required=False)
    allowed_ips = AllowlistField()
    calls_per_minute = LimitField(help_text=LIMIT)

    def __init__(self, *args: Any, host: Host, gateway: Gateway, connection: Connection | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connection = connection
        assignments = Assignment.objects.live().filter(gateway=gateway).select_related("server", "gateway")
        self.fields["servers"].queryset = assignments  # type: ignore[attr-defined]
        self.fields["expires_in_days"].choices = _lifetimes()  # type: ignore[attr-defined]
        self.initial = {
            "name": self._free_name(f"{host.name}-{gateway.slug}"),
            "servers": list(assignments),
            **self.initial,
        }
        self.assignments = list(assignments)

    def _free_name(self, base: str) -> str:
        """Return a name that no live token of the connection has: `base`, otherwise `base-2`, `base-3` and so on."""
        names = self._taken()
        free = (name for number in range(1, 1000) if (name := _numbered(base, number)).lower() not in names)
        return next(free)

    def _taken(self) -> set[str]:
        if self.connection is None:
            return set()
        live = self.connection.tokens.filter(revoked_at=None)
        return {name.lower() for name in live.values_list("name", flat=True)}

    @property
    def lifetimes(self) -> list[Preset]:
        selected = self["expires_in_days"].value() or str(DEFAULT_LIFETIME)
        return _offered(selected)

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"].strip()
        if name.lower() in self._taken():
            raise ValidationError("This connection already has an unrevoked token of that name.")
        return name

    def clean_expires_in_days(self) -> int | None:
        """Return a number of days, or None for no expiry. For an empty value, return the default lifetime."""
        value: str = self.cleaned_data["expires_in_days"] or str(DEFAULT_LIFETIME)
        return None if value == NEVER else int(value)

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if cleaned.get("scope") == "some" and not cleaned.get("servers") and "servers" not in self.errors:
            self.add_error("servers", "Choose at least one server.")
        return cleaned

    def terms(self) -> dict[str, Any]:
        """Return the keyword arguments for `Token.objects.issue`."""
        data = self.cleaned_data
        return {
            "name": data["name"],
            "expires_in_days": data["expires_in_days"],
            "allowed_ips": data["allowed_ips"],
            "calls_per_minute": data["calls_per_minute"],
            "servers": None if data["scope"] == "all" else list(data["servers"]),
        }


def _numbered(name: str, number: int) -> str:
    suffix = "" if number == 1 else f"-{number}"
    return name[: 100 - len(suffix)] + suffix


class OverlapForm(forms.Form):
    """Form for how long the old secret stays valid after a new one is made; by default the old secret ends at once."""

    overlap_hours = forms.TypedChoiceField(
        choices=[(hours, OVERLAPS[hours]) for hours in OVERLAP_HOURS],
        coerce=int,
        required=False,
    )

    def clean_overlap_hours(self) -> int:
        """Return a number of hours; an empty value is 0."""
        return self.cleaned_data["overlap_hours"] or 0

    @property
    def overlaps(self) -> list[Preset]:
        selected = self["overlap_hours"].value() or 0
        return [Preset.after(hours, OVERLAPS[hours], timedelta(hours=hours), selected) for hours in OVERLAP_HOURS]


UNTIL_USED = "used"


class TokenOverlapForm(OverlapForm):
    """Form for how long the old secret of `token` stays valid."""

    overlap_hours = forms.ChoiceField(required=False)  # type: ignore[assignment]

    def __init__(self, *args: Any, token: Token, **options: Any) -> None:
        super().__init__(*args, **options)
        self.addresses = token.recent_addresses()
        # The first choice is preselected. UNTIL_USED is offered if all recent calls of the token came from one address.
        hours = [(str(hours), OVERLAPS[hours]) for hours in (24, 168, 1, 0)]
        choices = [(UNTIL_USED, "Until the new one is used"), *hours] if len(self.addresses) == 1 else hours
        self.fields["overlap_hours"].choices = choices  # type: ignore[attr-defined]
        self.initial = {"overlap_hours": choices[0][0]}

    def clean_overlap_hours(self) -> Any:
        """Return the choice; an empty choice is 0."""
        return self.cleaned_data["overlap_hours"] or "0"

    def terms(self) -> dict[str, Any]:
        """Return the keyword arguments for `Token.rotate` and `Token.ask_for_new`."""
        chosen = self.cleaned_data["overlap_hours"]
        is_until_used = chosen == UNTIL_USED
        return {"overlap_hours": MOST_UNTIL_USED if is_until_used else int(chosen), "until_used": is_until_used}

    @property
    def overlaps(self) -> list[Preset]:
        selected = self["overlap_hours"].value()
        return [
            Preset.after(
                value, words, timedelta(hours=MOST_UNTIL_USED if value == UNTIL_USED else int(value)), selected
            )
            for value, words in self.fields["overlap_hours"].choices  # type: ignore[attr-defined]
        ]


class EditForm(forms.Form):
    """Form to edit a token: its name, lifetime (from today), IP allowlist and limit of calls."""

    name = forms.CharField(max_length=100)
    expires_in_days = forms.ChoiceField(label="Expiration", required=False)
    allowed_ips = AllowlistField()
    calls_per_minute = LimitField(help_text=LIMIT)

    def __init__(self, *args: Any, token: Token, **options: Any) -> None:
        super().__init__(*args, **options)
        self.token = token
        self.fields["expires_in_days"].choices = _lifetimes()  # type: ignore[attr-defined]
        self.initial = {name: getattr(token, name) for name in ("name", "allowed_ips", "calls_per_minute")}

    @property
    def lifetimes(self) -> list[Preset]:
        """The choices for the end of the token: keep the current end, or one of the offered lifetimes from today."""
        selected = self["expires_in_days"].value() or ""
        return [Preset("", "Keep", self.token.expires_at, not selected), *_offered(selected)]

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"].strip()
        try:
            self.token.must_be_free(name)
        except TokenNameTaken as error:
            raise ValidationError(str(error)) from error
        return name

    def changes(self) -> dict[str, Any]:
        """Return the keyword arguments for `Token.edit`. An unchanged expiration is left out."""
        data = dict(self.cleaned_data)
        days = data.pop("expires_in_days")
        return data | ({"expires_in_days": None if days == NEVER else int(days)} if days else {})


def _offered(selected: str) -> list[Preset]:
    return [
        Preset.after(value, words, None if value == NEVER else timedelta(days=int(value)), selected)
        for value, words in _lifetimes()
    ]


def _lifetimes() -> list[tuple[str, str]]:
    lifetimes = [(str(days), f"{days} days") for days in LIFETIMES]
    if WorkspaceSettings.load().allow_non_expiring_tokens:
        lifetimes.append((NEVER, "No expiry"))
    return lifetimes
