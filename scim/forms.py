"""The form of a provisioning key."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from django import forms

from accounts.capability_groups import ChecksCapabilities
from accounts.models import Role
from capabilities.catalogue import MEMBER, SUPER_ADMIN
from scim.models import ProvisioningError


class ProvisioningKeyForm(ChecksCapabilities):
    """A new provisioning key. The form contains its id, so that submitting it again creates no second key."""

    id = forms.UUIDField(widget=forms.HiddenInput, initial=uuid4)
    name = forms.CharField(max_length=80, help_text="What provisions people, as admin events name it.")
    role = forms.ModelChoiceField(
        Role.objects.none(),
        label="Role of new people",
        empty_label=None,
        help_text="What a directory says of roles is not heard.",
    )

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        roles = Role.objects.exclude(locked=True, name=SUPER_ADMIN.name)
        self.fields["role"].queryset = roles  # type: ignore[attr-defined]
        usual = roles.filter(name=MEMBER.name).first() or roles.first()
        if usual:
            self.fields["role"].initial, self.at_first = usual.pk, usual.capabilities

    def refuse(self, error: ProvisioningError) -> None:
        """Show the error next to its field."""
        self.add_error(error.field or None, str(error))
