"""Forms of the Apps & Agents pages."""

from __future__ import annotations

from functools import reduce
from operator import or_

from django import forms
from django.db.models import Q

from hosts.models import PLAYGROUND, HostKind, HostQuerySet
from ui.forms import IDLE_DAYS, ListFilter, unused_for

TYPES = {"app": HostKind.HEADED, "agent": HostKind.TOKEN}
PENDING = Q(needs_approval=True, approved_at=None)
# Matches the playground (the app that runs tools from the pages), unless it is pending. The playground is recognised by
# its key, because other apps can have the same name.
OURS = Q(dedupe_key=PLAYGROUND) & ~PENDING
STATUSES = {"enabled": Q(enabled=True) & ~PENDING, "disabled": Q(enabled=False) & ~PENDING, "pending": PENDING}


class AgentForm(forms.Form):
    """Name and description of a token-based host."""

    name = forms.CharField(max_length=120, help_text="Shown in logs and on every connection.")
    description = forms.CharField(max_length=500, required=False, widget=forms.Textarea(attrs={"rows": 3}))


class NewAgentForm(AgentForm):
    """Form for a new token-based host."""

    allow_enrolment = forms.BooleanField(
        required=False,
        label="Allow enrolment",
        help_text="Anyone who can use a gateway can open the enrolment link and create their own token for this agent.",
    )


class NameAgentForm(forms.Form):
    """Form that asks only for the name of a new token-based host. The host's first token is created next."""

    name = forms.CharField(label="Name your agent", max_length=120, help_text="Shown in logs and on every connection.")


class HostFilter(ListFilter):
    type = forms.ChoiceField(required=False, choices=[(name, name) for name in (*TYPES, "built-in")])
    status = forms.MultipleChoiceField(required=False, choices=[(name, name.capitalize()) for name in STATUSES])
    idle = forms.ChoiceField(required=False, label="Idle", choices=[(days, f"{days} days") for days in IDLE_DAYS])
    radios = ("idle",)

    def narrow(self, rows: HostQuerySet) -> HostQuerySet:
        """Return the matching hosts.

        The built-in app of the playground is included only in three cases: it is pending, a name is searched for, or
        the type `built-in` is selected.
        """
        hosts = rows.matching(words := self.values.get("q", ""))
        if self.values.get("type") == "built-in":
            hosts = hosts.filter(OURS)
        elif not words:
            hosts = hosts.exclude(OURS)
        if kind := TYPES.get(self.values.get("type", "")):
            hosts = hosts.filter(kind=kind)
        if statuses := self.values.get("status"):
            hosts = hosts.filter(reduce(or_, (STATUSES[status] for status in statuses)))
        if days := self.values.get("idle"):
            hosts = hosts.filter(unused_for(int(days), "last_seen_at", "created_at"))
        return hosts
