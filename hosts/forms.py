"""Forms of the Apps & Agents pages."""

from __future__ import annotations

from typing import Any

from django import forms
from django.db.models import Q

from accounts.models import User
from hosts.models import PLAYGROUND, AgentNameTaken, Host, HostKind, HostQuerySet

TYPES = {"app": HostKind.HEADED, "agent": HostKind.TOKEN}
PENDING = Q(needs_approval=True, approved_at=None)
# The app that runs tools from the pages, unless it is pending. It is recognised by its key, which no other app can
# have: an app that only has a name like ours, such as that of the OAuth doctor, counts as any other app.
OURS = Q(dedupe_key=PLAYGROUND) & ~PENDING
STATUSES = {"enabled": Q(enabled=True) & ~PENDING, "disabled": Q(enabled=False) & ~PENDING, "pending": PENDING}


class AgentForm(forms.Form):
    """Name and description of a token-based host."""

    name = forms.CharField(max_length=120, help_text="Shown in logs and on every connection.")
    description = forms.CharField(max_length=500, required=False, widget=forms.Textarea(attrs={"rows": 3}))

    def refuse_name(self) -> None:
        """Add the error that the name is taken."""
        self.add_error("name", "An agent with this name already exists.")


class NewAgentForm(AgentForm):
    """Form for a new token-based host."""

    allow_enrolment = forms.BooleanField(
        required=False,
        label="Allow enrolment",
        help_text="Everybody who can use a gateway may make a token of their own for this agent, by a link.",
    )

    def add(self, *, by: User) -> Host | None:
        """Create and return the host, or return None with the reason as a form error."""
        if not self.is_valid():
            return None
        try:
            return Host.objects.add_agent(**self.cleaned_data, by=by)
        except AgentNameTaken:
            self.refuse_name()
            return None


class NameAgentForm(NewAgentForm):
    """Form for a new token-based host with only a name, before its first token is created."""

    description = None  # type: ignore[assignment]
    allow_enrolment = None  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["name"].label = "Name your agent"


class HostFilter(forms.Form):
    """The filters of the list of hosts; unknown values are ignored."""

    q = forms.CharField(required=False)
    type = forms.ChoiceField(required=False, choices=[(name, name) for name in (*TYPES, "built-in")])
    status = forms.MultipleChoiceField(required=False, choices=[(name, name.capitalize()) for name in STATUSES])

    def narrow(self, hosts: HostQuerySet) -> HostQuerySet:
        """Return the matching hosts; the playground only if searched for, or with the type `built-in`."""
        self.is_valid()
        hosts = hosts.matching(words := self.cleaned_data.get("q", ""))
        if self.cleaned_data.get("type") == "built-in":
            hosts = hosts.filter(OURS)
        elif not words:
            hosts = hosts.exclude(OURS)
        if kind := TYPES.get(self.cleaned_data.get("type", "")):
            hosts = hosts.filter(kind=kind)
        if statuses := self.cleaned_data.get("status"):
            condition = Q(pk=None)
            for status in statuses:
                condition |= STATUSES[status]
            hosts = hosts.filter(condition)
        return hosts
