"""The API keys a person may see, and their filters; shared by page and REST."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from django import forms

from accounts.capability_groups import ChecksCapabilities
from accounts.models import ApiKey, ApiKeyQuerySet, User
from capabilities import Capability
from tokens.api_keys import DEFAULT_DAYS, LONGEST_DAYS, NoCapability

STATUSES = ("active", "expired", "revoked", "all")


def keys_known_to(viewer: User) -> ApiKeyQuerySet:
    """Return the viewer's own API keys, or all for viewers with `people:manage`."""
    keys = ApiKey.objects.select_related("user")
    return keys if viewer.has_perm(Capability.PEOPLE_MANAGE) else keys.filter(user=viewer)


class KeyFilter(forms.Form):
    """The filters of the list of API keys; unknown values are ignored."""

    q = forms.CharField(required=False)
    owner = forms.ChoiceField(required=False, choices=[("all", "Everyone")])
    status = forms.ChoiceField(required=False, choices=[(name, name) for name in STATUSES])

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.is_valid()
        self.values: dict[str, str] = {"status": "active"} | {k: v for k, v in self.cleaned_data.items() if v}

    def listed(self, viewer: User) -> ApiKeyQuerySet:
        """Return the viewer's own keys, or everyone's if the filter asks for it. Raises CapabilityRequired."""
        return ApiKey.objects.within_reach(viewer, of_all="owner" in self.values)

    def narrow(self, keys: ApiKeyQuerySet) -> ApiKeyQuerySet:
        """Return the matching keys, the first to expire at the top."""
        keys = keys.of_status(self.values["status"])
        keys = keys.matching(self.values.get("q", ""), of_many="owner" in self.values)
        return keys.order_by("-revoked_at" if self.values["status"] == "revoked" else "expires_at", "pk")


class ApiKeyForm(ChecksCapabilities):
    """Form for a new API key. It contains the id, so that submitting it twice does not create a second key."""

    id = forms.UUIDField(widget=forms.HiddenInput, initial=uuid4)
    name = forms.CharField(max_length=100)
    days = forms.IntegerField(
        label="Expires in days",
        min_value=1,
        max_value=LONGEST_DAYS,
        initial=DEFAULT_DAYS,
        help_text=f"1 to {LONGEST_DAYS} days. An API key cannot be extended; create a new one in time.",
    )

    def clean_capabilities(self) -> frozenset[Capability]:
        if chosen := super().clean_capabilities():
            return chosen
        raise forms.ValidationError(NoCapability.__doc__ or "")
