"""Forms of the People pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from email import utils
from email.utils import getaddresses
from functools import reduce
from operator import or_
from typing import Any
from uuid import UUID

from allauth.account.forms import ResetPasswordKeyForm
from django import forms
from django.contrib.auth.hashers import UNUSABLE_PASSWORD_PREFIX
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db.models import Max, OuterRef, Q, QuerySet, Subquery
from django.utils import timezone

from accounts.asking import MOST_OPEN, open_requests
from accounts.capability_groups import ChecksCapabilities
from accounts.models import Role, Team, User
from accounts.models.users import INVITATION
from accounts.rules import RequiredSignIn, why_withheld
from accounts.sign_in import HashedInTime, relabel
from capabilities import Capability
from ui.forms import IDLE_DAYS, ListFilter, holds, unused_for

MOST_INVITED = 50  # Per form.
EMAIL_LENGTH, NAME_LENGTH = 254, 120
# In early releases of Python 3.12, getaddresses() has no argument `strict`.
NOT_STRICT = {"strict": False} if hasattr(utils, "supports_strict_parsing") else {}

STATUSES = ("active", "invited", "expired", "revoked", "deactivated", "provisioned")


def of_status(status: str) -> Q:
    """Return the condition for one of STATUSES, as defined by `User.status`."""
    unset = Q(password__startswith=UNUSABLE_PASSWORD_PREFIX, by_organisation=False)
    invited, provisioned = unset & Q(provisioned_at=None), unset & Q(provisioned_at__isnull=False)
    open_since = timezone.now() - INVITATION
    is_open = Q(invited_at__gte=open_since) | Q(invited_at=None, date_joined__gte=open_since)
    means = {
        "active": Q(is_active=True) & ~unset,
        "invited": Q(is_active=True) & (invited & is_open | provisioned & Q(invited_at__gte=open_since)),
        "expired": Q(is_active=True) & invited & ~is_open,
        "revoked": Q(is_active=False) & invited,
        "deactivated": Q(is_active=False) & ~invited,
        "provisioned": Q(is_active=True) & provisioned & ~Q(invited_at__gte=open_since, invited_at__isnull=False),
    }
    return means[status]


def matching_words(words: str) -> Q:
    """Return the condition that matches people whose e-mail or name contains these words."""
    return holds("email", words) | holds("display_name", words)


def with_last_call(people: QuerySet[User]) -> QuerySet[User]:
    """Annotate people with the time of the last call through any of their connections."""
    last = User.objects.filter(pk=OuterRef("pk")).order_by().annotate(at=Max("connections__last_used_at")).values("at")
    return people.annotate(last_call_at=Subquery(last))


class PeopleFilter(ListFilter):
    """The filters of the list of people. The filtered queryset needs `with_last_call` and `with_second_factor`."""

    role = forms.ModelMultipleChoiceField(Role.objects.all(), required=False)
    asking = forms.BooleanField(required=False)  # Only people with an open request for a capability.
    status = forms.MultipleChoiceField(required=False, choices=[(name, name.capitalize()) for name in STATUSES])
    idle = forms.ChoiceField(
        required=False, label="No call", choices=[(days, f"For {days} days") for days in IDLE_DAYS]
    )
    second_factor = forms.ChoiceField(required=False, choices=[("with", "With"), ("without", "Without")])
    radios = ("idle", "second_factor")

    def narrow(self, rows: QuerySet[User]) -> QuerySet[User]:
        if words := self.values.get("q"):
            rows = rows.filter(matching_words(words))
        if roles := self.values.get("role"):
            rows = rows.filter(role__in=roles)
        if self.values.get("asking"):
            rows = rows.filter(pk__in=[person.pk for person, _, _ in open_requests(MOST_OPEN)])
        if statuses := self.values.get("status"):
            rows = rows.filter(reduce(or_, map(of_status, statuses)))
        if days := self.values.get("idle"):
            rows = rows.filter(unused_for(int(days), "last_call_at", "date_joined"))
        if having := self.values.get("second_factor"):
            rows = rows.filter(Q(second_factor=having == "with"))
        return rows


class RoleRadios(forms.RadioSelect):
    """Radio buttons for roles. Roles in `withheld` are disabled. `withheld` and `notes` hold tooltips by role id."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.withheld: Mapping[str, str] = {}
        self.notes: Mapping[str, str] = {}

    def create_option(self, name: str, value: Any, *args: Any, **options: Any) -> dict[str, Any]:
        option: dict[str, Any] = super().create_option(name, value, *args, **options)
        if reason := self.withheld.get(str(value)):
            option["attrs"] |= {"disabled": True, "title": reason}
        elif note := self.notes.get(str(value)):
            option["attrs"]["title"] = note
        return option


class RoleChoice(forms.Form):
    """Choice of a person's role. Roles that the person `grantor` cannot give are disabled.

    `asked` are the capabilities that the person has requested. The tooltip of a role lists those that it includes.
    """

    role = forms.ModelChoiceField(Role.objects.none(), empty_label=None, widget=RoleRadios)

    def __init__(self, *args: Any, grantor: User, asked: Sequence[Capability] = (), **options: Any) -> None:
        super().__init__(*args, **options)
        roles = list(Role.objects.with_capabilities())
        field = self.fields["role"]
        field.queryset = Role.objects.all()  # type: ignore[attr-defined]
        field.choices = [(role.pk, role.name) for role in roles]  # type: ignore[attr-defined]
        field.widget.withheld = _withheld(roles, grantor)
        field.widget.notes = {
            str(role.pk): f"Includes {', '.join(labels)}"
            for role in roles
            if (labels := [one.label for one in asked if one in role.granted])
        }


def _withheld(roles: list[Role], grantor: User) -> dict[str, str]:
    """Return, by role id, the reason why the person `grantor` cannot give a role. Other roles have no entry."""
    return {
        str(role.pk): reason
        for role in roles
        if (reason := why_withheld(grantor, role.capabilities, uses_gateways=role.uses_gateways))
    }


class AddressesField(forms.CharField):
    """E-mail addresses, one per line or separated by commas, with optional names: `Bo Berg <bo@example.com>`.

    The value is a list of (e-mail, name).
    """

    widget = forms.Textarea(attrs={"rows": 3})

    def clean(self, value: Any) -> list[tuple[str, str]]:
        text = super().clean(value)
        lines = [line for line in text.replace(";", ",").splitlines() if line.strip(" ,")]
        people = {address.strip().lower(): " ".join(name.split()) for name, address in _addresses(lines)}
        if not people:
            raise ValidationError(self.error_messages["required"], code="required")
        if reasons := list(_bad_addresses(people)):
            raise ValidationError(" ".join(reasons))
        if len(people) > MOST_INVITED:
            raise ValidationError(f"Enter at most {MOST_INVITED} addresses at once; you entered {len(people)}.")
        return list(people.items())


def _addresses(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Yield name and address of each entry. For an invalid entry, yield its text as the address, to refuse it later."""
    for line in lines:
        found = getaddresses([line.strip(" ,")], **NOT_STRICT)
        if ("", "") in found:  # An entry is invalid; getaddresses() does not say which.
            found = [entry for text in line.split(",") if text.strip() for entry in _entries(text.split())]
        for name, address in found:
            yield (name, address) if address else ("", name)


def _entries(words: list[str]) -> Iterable[tuple[str, str]]:
    """Return (name, address) pairs: one for each word if all words have an @, otherwise one for the whole text."""
    if len(words) > 1 and all("@" in word[1:-1] for word in words):
        return [entry for word in words for entry in _entries([word])]
    text = " ".join(words)
    found = getaddresses([text], **NOT_STRICT)
    return [("", text)] if ("", "") in found else found


def _bad_addresses(people: Mapping[str, str]) -> Iterable[str]:
    for address, name in people.items():
        try:
            validate_email(address)
        except ValidationError:
            yield f"{address[:80]}: this is not an e-mail address."
            continue
        if len(address) > EMAIL_LENGTH:
            yield f"{address[:80]}: it has more than {EMAIL_LENGTH} characters."
        if len(name) > NAME_LENGTH:
            yield f"{address}: the name has more than {NAME_LENGTH} characters."


class InviteForm(RoleChoice):
    """Invites one or more people, all with the same role and teams."""

    emails = AddressesField(
        label="E-mail addresses",
        help_text="One per line, or separated by commas, with an optional name: Bo Berg <bo@example.com>",
    )
    teams = forms.ModelMultipleChoiceField(
        Team.objects.none(),
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text="The invited people can use the gateways of these teams.",
    )
    field_order = ("emails", "role", "teams")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["teams"].queryset = Team.objects.all()  # type: ignore[attr-defined]
        if not Team.objects.exists():
            del self.fields["teams"]

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Add one error that lists the refused addresses with their reasons; the form shows the entered text again."""
        told = " ".join(f"{email}: {reason}" for email, reason in reasons.items())
        self.add_error("emails", f"Nobody was invited. {told}")


class JoinForm(HashedInTime, ResetPasswordKeyForm):  # type: ignore[misc]
    """The name and the first password of an invited person."""

    display_name = forms.CharField(label="Your name", max_length=NAME_LENGTH)
    field_order = ("display_name", "password1", "password2")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        relabel(self, password1="Password", password2="Password, again")
        self.fields["display_name"].widget.attrs["autocomplete"] = "name"


class PersonForm(forms.Form):
    """Name and e-mail of a person."""

    display_name = forms.CharField(label="Name", max_length=120, required=False)
    email = forms.EmailField(
        label="E-mail", max_length=254, help_text="The person signs in with this address and gets reset mails there."
    )


class ResendInvitationForm(forms.Form):
    """Confirms a new invitation link. `epoch` identifies the link to replace, so that a second submit has no effect."""

    epoch = forms.IntegerField(widget=forms.HiddenInput)


class RoleForm(ChecksCapabilities):
    """The fields of a role. The capabilities in `before` are ticked at first, unless `initial` has capabilities."""

    name = forms.CharField(max_length=80)
    required_sign_in = forms.ChoiceField(
        label="Required of people with this role",
        required=False,
        choices=RequiredSignIn.choices,
        help_text=(
            "These people must sign in like this before a page opens. Their tokens and API keys do not need this "
            "sign-in."
        ),
    )
    only_looks = forms.BooleanField(
        label="People with this role can only look",
        required=False,
        help_text="These people cannot use gateways: every call of their agents and apps is refused.",
    )

    def __init__(self, *args: Any, before: frozenset[Capability] = frozenset(), **options: Any) -> None:
        super().__init__(*args, **options)
        self.at_first = frozenset(self.initial.get("capabilities", before))

    def clean_required_sign_in(self) -> str:
        return self.cleaned_data["required_sign_in"] or RequiredSignIn.NONE

    @property
    def values(self) -> dict[str, Any]:
        """Return the arguments for `RoleManager.add` or `Role.edit`."""
        values = dict(self.cleaned_data)
        values["uses_gateways"] = not values.pop("only_looks")
        return values


def role_from(pk: str) -> Role | None:
    try:
        return Role.objects.filter(pk=UUID(pk)).first()
    except ValueError:
        return None
