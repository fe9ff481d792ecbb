"""Forms of the Teams pages."""

from __future__ import annotations

import re
from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from accounts.models import Team, User
from gateways.models import Gateway, Reach

MOST = 500


class TeamForm(forms.Form):
    name = forms.CharField(max_length=80)


class PeopleForm(forms.Form):
    """People to add to a team, by e-mail."""

    emails = forms.CharField(
        label="E-mails", max_length=MOST * 255, widget=forms.Textarea(attrs={"rows": 6}), help_text="One per line."
    )

    def clean_emails(self) -> list[User]:
        """Return the people with these addresses. The error names an unknown address."""
        emails = list(dict.fromkeys(re.findall(r"[^\s,;]+", str(self.cleaned_data["emails"]).lower())))
        if not emails:
            raise ValidationError("Type at least one e-mail.")
        if len(emails) > MOST:
            raise ValidationError(f"Add at most {MOST} people at a time.")
        people = {person.email: person for person in User.objects.filter(email__in=emails)}
        if missing := [email for email in emails if email not in people]:
            raise ValidationError(f"Nobody here has the e-mail {missing[0][:100]}.")
        return list(people.values())


class TeamGatewaysForm(forms.Form):
    """The gateways open to `team`, of those whose reach is teams."""

    gateways = forms.ModelMultipleChoiceField(
        Gateway.objects.none(), required=False, widget=forms.CheckboxSelectMultiple, label="Gateways for teams"
    )

    def __init__(self, *args: Any, team: Team, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["gateways"].queryset = Gateway.objects.live().filter(reach=Reach.TEAMS).order_by("name")  # type: ignore[attr-defined]
        self.initial = {"gateways": list(team.gateways.values_list("pk", flat=True))}
