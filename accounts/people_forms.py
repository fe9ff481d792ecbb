"""Forms of the People pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django import forms
from django.contrib.auth.hashers import UNUSABLE_PASSWORD_PREFIX
from django.db.models import Q, QuerySet

from accounts.models import Role, User
from accounts.rules import lacking
from capabilities import Capability

_invited = Q(password__startswith=UNUSABLE_PASSWORD_PREFIX)
STATUSES = {
    "active": Q(is_active=True) & ~_invited,
    "invited": Q(is_active=True) & _invited,
    "deactivated": Q(is_active=False),
}


def matching_words(words: str) -> Q:
    """People whose e-mail or name contains these words."""
    return Q(email__icontains=words) | Q(display_name__icontains=words)


class PeopleFilter(forms.Form):
    """The filters of the list of people; unknown values are ignored."""

    q = forms.CharField(required=False)
    role = forms.ModelMultipleChoiceField(Role.objects.none(), required=False)
    status = forms.MultipleChoiceField(required=False, choices=[(name, name) for name in STATUSES])

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        self.fields["role"].queryset = Role.objects.all()  # type: ignore[attr-defined]
        self.is_valid()

    def narrow(self, people: QuerySet[User]) -> QuerySet[User]:
        """The people who match."""
        if words := self.cleaned_data.get("q"):
            people = people.filter(matching_words(words))
        if roles := self.cleaned_data.get("role"):
            people = people.filter(role__in=roles)
        if statuses := self.cleaned_data.get("status"):
            condition = Q(pk=None)
            for status in statuses:
                condition |= STATUSES[status]
            people = people.filter(condition)
        return people


class RoleRadios(forms.RadioSelect):
    """Role choices; roles with capabilities the grantor lacks are disabled, with the reason."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.withheld: Mapping[str, str] = {}

    def create_option(self, name: str, value: Any, *args: Any, **options: Any) -> dict[str, Any]:
        option: dict[str, Any] = super().create_option(name, value, *args, **options)
        if reason := self.withheld.get(str(value)):
            option["attrs"] |= {"disabled": True, "title": reason}
        return option


class RoleChoice(forms.Form):
    """Which role a person holds. `grantor` hands out no more than they hold."""

    role = forms.ModelChoiceField(Role.objects.none(), empty_label=None, widget=RoleRadios)

    def __init__(self, *args: Any, grantor: User, **options: Any) -> None:
        super().__init__(*args, **options)
        roles = list(Role.objects.with_capabilities())
        field = self.fields["role"]
        field.queryset = Role.objects.all()  # type: ignore[attr-defined]
        field.choices = [(role.pk, role.name) for role in roles]  # type: ignore[attr-defined]
        field.widget.withheld = _withheld(roles, grantor)


def _withheld(roles: list[Role], grantor: User) -> dict[str, str]:
    """Why a role cannot be given, by its id."""
    return {
        str(role.pk): f"You lack: {', '.join(beyond)}."
        for role in roles
        if (beyond := lacking(grantor, role.capabilities))
    }


class InviteForm(RoleChoice):
    """Invites a person."""

    email = forms.EmailField(label="E-mail", max_length=254)
    display_name = forms.CharField(label="Name", max_length=120)
    field_order = ("display_name", "email", "role")


class PersonForm(forms.Form):
    """Name and e-mail of a person."""

    display_name = forms.CharField(label="Name", max_length=120, required=False)
    email = forms.EmailField(
        label="E-mail", max_length=254, help_text="They sign in with it, and reset mails go there from now on."
    )


class AgainForm(forms.Form):
    """Asks for a new invitation link; `epoch` says which one it replaces, so that a repeated form makes no second."""

    epoch = forms.IntegerField(widget=forms.HiddenInput)


class RoleForm(forms.Form):
    """Name and capabilities of a role; `before` are those it holds already."""

    name = forms.CharField(max_length=80)
    capabilities = forms.MultipleChoiceField(
        required=False, choices=[(capability.slug, capability.label) for capability in Capability]
    )

    def __init__(self, *args: Any, before: frozenset[Capability] = frozenset(), **options: Any) -> None:
        super().__init__(*args, **options)
        self.before = before

    def clean_capabilities(self) -> frozenset[Capability]:
        return frozenset(
            capability for capability in Capability if capability.slug in self.cleaned_data["capabilities"]
        )

    @property
    def ticked(self) -> frozenset[Capability]:
        """What the check-list shows as ticked."""
        if not self.is_bound:
            return frozenset(self.initial.get("capabilities", self.before))
        posted = self["capabilities"].data or ()
        return frozenset(capability for capability in Capability if capability.slug in posted)


def role_from(pk: str) -> Role | None:
    """The role a query string names, if there is one."""
    try:
        return Role.objects.filter(pk=UUID(pk)).first()
    except ValueError:
        return None
