"""The form of an API access token: what is fixed when it is made."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils import timezone

from accounts.models import WorkspaceSettings
from connections.models import Connection
from gateways.models import Assignment, Gateway
from hosts.models import Host
from tokens.models import DEFAULT_LIFETIME, LIFETIMES, BadAddress, canonical

NEVER = "never"


class ServersField(forms.ModelMultipleChoiceField):  # type: ignore[type-arg]
    """Assignments, each under the name of its server."""

    def label_from_instance(self, assignment: Any) -> str:
        return str(assignment.server)


class TokenForm(forms.Form):
    """Name, servers, expiration and IP allowlist; every field has a default, so an untouched form is a good one."""

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
    allowed_ips = forms.CharField(
        label="IP allowlist",
        required=False,
        widget=forms.Textarea(attrs={"rows": 3, "placeholder": "198.51.100.7\n2001:db8::/32"}),
        help_text="One address or CIDR range per line. Empty means anywhere.",
    )

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

    def _free_name(self, wanted: str) -> str:
        """`wanted`, or `wanted-2` and so on when the connection has a live token of that name."""
        taken = self._taken()
        free = (name for number in range(1, 1000) if (name := _numbered(wanted, number)).lower() not in taken)
        return next(free)

    def _taken(self) -> set[str]:
        if self.connection is None:
            return set()
        live = self.connection.tokens.filter(revoked_at=None)
        return {name.lower() for name in live.values_list("name", flat=True)}

    @property
    def lifetimes(self) -> list[dict[str, Any]]:
        """The lifetimes on offer: value, words, the date it comes to, and whether it is chosen."""
        chosen = self["expires_in_days"].value() or str(DEFAULT_LIFETIME)
        return [
            {
                "value": value,
                "words": words,
                "ends": None if value == NEVER else timezone.now() + timedelta(days=int(value)),
                "checked": str(chosen) == value,
            }
            for value, words in _lifetimes()
        ]

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"].strip()
        if name.lower() in self._taken():
            raise ValidationError("This connection has an active token of that name already.")
        return name

    def clean_expires_in_days(self) -> int | None:
        """A number of days, None for no expiry; nothing chosen means the default."""
        value: str = self.cleaned_data["expires_in_days"] or str(DEFAULT_LIFETIME)
        return None if value == NEVER else int(value)

    def clean_allowed_ips(self) -> list[str] | None:
        try:
            return canonical(self.cleaned_data["allowed_ips"].replace(",", "\n").splitlines())
        except BadAddress as error:
            raise ValidationError(str(error)) from error

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if cleaned.get("scope") == "some" and not cleaned.get("servers") and "servers" not in self.errors:
            self.add_error("servers", "Choose at least one server.")
        return cleaned

    def terms(self) -> dict[str, Any]:
        """What `Token.objects.issue` takes."""
        chosen = self.cleaned_data
        return {
            "name": chosen["name"],
            "expires_in_days": chosen["expires_in_days"],
            "allowed_ips": chosen["allowed_ips"],
            "servers": None if chosen["scope"] == "all" else list(chosen["servers"]),
        }


def _numbered(name: str, number: int) -> str:
    suffix = "" if number == 1 else f"-{number}"
    return name[: 100 - len(suffix)] + suffix


def _lifetimes() -> list[tuple[str, str]]:
    lifetimes = [(str(days), f"{days} days") for days in LIFETIMES]
    if WorkspaceSettings.load().allow_non_expiring_tokens:
        lifetimes.append((NEVER, "No expiry"))
    return lifetimes
