"""Forms and filters of the catalogue and of access requests, and the form for a gateway's request settings."""

from __future__ import annotations

from typing import Any, ClassVar

from django import forms
from django.core.exceptions import ValidationError
from django.db.models import Q
from django.db.models.functions import Lower

from accounts.models import User
from connections.tool_sets import sets_at
from gateways.models import (
    AccessRequest,
    AccessRequestQuerySet,
    FeatureQuerySet,
    Gateway,
    GatewayQuerySet,
    RequestState,
    ToolSet,
    ToolsGiven,
)
from ui.forms import ListFilter, holds

MOST_APPROVERS = 20
MOST_DAYS = 3650


class CatalogueAccessFilter(ListFilter):
    """Filter the catalogue by words, and by whether the person may use the gateway."""

    radios: ClassVar[tuple[str, ...]] = ("access",)
    access = forms.ChoiceField(
        required=False, label="Your access", choices=[("yes", "You may use it"), ("no", "You may not use it")]
    )

    def __init__(self, *args: Any, viewer: User, **options: Any) -> None:
        super().__init__(*args, **options)
        self._viewer = viewer

    def narrow(self, rows: GatewayQuerySet) -> GatewayQuerySet:
        words = self.values.get("q", "")
        if words:
            rows = rows.filter(holds("name", words) | holds("slug", words) | holds("description", words))
        usable = Q(pk__in=Gateway.objects.reachable_by(self._viewer).order_by().values("pk"))
        match self.values.get("access"):
            case "yes":
                return rows.filter(usable)
            case "no":
                return rows.exclude(usable)
        return rows


class RequestFilter(ListFilter):
    """Filter requests by words, and by one of four choices.

    The choices are: requests that wait for the viewer's decision, all waiting requests, the viewer's own requests, and
    requests that no longer wait.
    """

    radios: ClassVar[tuple[str, ...]] = ("show",)
    SHOWS = (("decide", "Waiting for you"), ("open", "Waiting"), ("own", "Yours"), ("decided", "Decided"))
    show = forms.ChoiceField(required=False, label="Show", choices=SHOWS)

    def __init__(self, *args: Any, viewer: User, **options: Any) -> None:
        super().__init__(*args, **options)
        self._viewer = viewer

    def narrow(self, rows: AccessRequestQuerySet) -> AccessRequestQuerySet:
        if words := self.values.get("q", ""):
            rows = rows.filter(holds("user__email", words) | holds("gateway__name", words))
        match self.values.get("show"):
            case "decide":
                return rows.filter(pk__in=AccessRequest.objects.to_decide(self._viewer).order_by().values("pk"))
            case "open":
                return rows.open()
            case "own":
                return rows.filter(user=self._viewer)
            case "decided":
                return rows.exclude(state=RequestState.OPEN)
        return rows


class ToolFilter(ListFilter):
    def narrow(self, rows: FeatureQuerySet) -> FeatureQuerySet:
        return rows.matching(self.values.get("q", ""))


class SetChoice(forms.ModelChoiceField):  # type: ignore[type-arg]  # Not generic at run time.
    def label_from_instance(self, obj: ToolSet) -> str:
        return obj.name


class RequestForm(forms.Form):
    """Form in which a person requests access to `gateway` or to a set of its tools."""

    tool_set = SetChoice(
        ToolSet.objects.none(), required=False, label="Tools", empty_label="The gateway only, no tool set"
    )
    reason = forms.CharField(
        max_length=500,
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text="What you need the access for. The people who decide see this text.",
    )
    days = forms.IntegerField(label="For how many days", min_value=1)

    def __init__(self, *args: Any, gateway: Gateway, only_sets: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        days = self.fields["days"]
        days.max_value = gateway.most_request_days  # type: ignore[attr-defined]
        days.widget.attrs["max"] = gateway.most_request_days
        days.help_text = f"Counted from the approval; at most {gateway.most_request_days}."
        self.fields["tool_set"].queryset = sets_at(gateway)  # type: ignore[attr-defined]
        if only_sets:
            self.fields["tool_set"].empty_label = "Choose a tool set"  # type: ignore[attr-defined]
            self.fields["tool_set"].required = True
        if gateway.tools_given == ToolsGiven.ALL:
            del self.fields["tool_set"]


class DeclineForm(forms.Form):
    answer = forms.CharField(
        label="Note",
        required=False,
        max_length=500,
        widget=forms.Textarea(attrs={"rows": 2}),
        help_text="The person who asked sees this note.",
    )


class ApproveForm(DeclineForm):
    days = forms.IntegerField(label="For how many days", min_value=1)
    field_order = ("days", "answer")


class TakesRequestsForm(forms.Form):
    """Form for the request settings of a gateway: whether it takes requests, for which periods, and who approves."""

    takes_requests = forms.BooleanField(
        required=False,
        label="People may request access",
        help_text="If ticked, everybody who signs in sees the gateway under Access, with its tools and tool sets.",
    )
    request_days = forms.IntegerField(label="Usual period, in days", min_value=1, max_value=MOST_DAYS)
    most_request_days = forms.IntegerField(label="Longest period, in days", min_value=1, max_value=MOST_DAYS)
    approvers = forms.CharField(
        required=False,
        max_length=MOST_APPROVERS * 255,
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text="E-mail addresses, one per line. Approvers are notified of requests, and can decide on them. People "
        "with Basic gateway management can decide, too. They are notified if no approver can decide, or after 3 days "
        "without a decision.",
    )

    def clean_approvers(self) -> list[User]:
        return people_named(self.cleaned_data["approvers"].split(), "approvers")

    def clean(self) -> dict[str, Any]:
        values = super().clean() or self.cleaned_data
        if (values.get("request_days") or 0) > (values.get("most_request_days") or MOST_DAYS):
            self.add_error("request_days", "The usual period must not be longer than the longest period.")
        return values


def people_named(emails: list[str], noun: str) -> list[User]:
    """Return the active people with these e-mail addresses.

    Raises ValidationError if an address belongs to no active person, or if there are more than MOST_APPROVERS
    addresses. The error about too many addresses calls the people `noun`, for example "approvers".
    """
    wanted = {email.lower() for email in emails}
    if len(wanted) > MOST_APPROVERS:
        raise ValidationError(f"Name at most {MOST_APPROVERS} {noun}.")
    found: list[Any] = list(User.objects.annotate(lower=Lower("email")).filter(lower__in=wanted, is_active=True))
    if missing := wanted - {user.email.lower() for user in found}:
        raise ValidationError(f"There is no active person {min(missing)}.")
    return found
