"""Browsers' sessions: which were signed in to at the organisation, and ending those of people who have to be."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

from allauth.usersessions.models import UserSession
from django.apps import apps
from django.db.models import Model, Q

from accounts.rules import Grantor
from auditlog.actions import Action
from auditlog.models import Event

ALL = Q()
BROWSER = "organisation"  # In a session, and in its row: as whom it was signed in to at the organisation.


def end_password_sessions(domains: Sequence[str], *, by: Grantor | None, whose: Q = ALL) -> int:
    """End the sessions that began with a password of people with an address in these domains; returns how many.

    Not those of break-glass owners, whose passwords go on. Run it in the transaction of the change.
    """
    addresses = reduce(or_, (Q(user__email__endswith=f"@{domain}") for domain in domains))
    rows = UserSession.objects.select_related("user").filter(whose, addresses, user__break_glass=False)
    sessions = list(rows.exclude(data__has_key=BROWSER))
    for session in sessions:
        session.end()
        changes = {"ip": [session.ip, None], "reason": "enforced"}
        Event.objects.record(Action.USER_SESSION_ENDED, session.user, by=by, changes=changes)
    return len(sessions)


def end_where_enforced(person: Model, *, by: Grantor | None) -> None:
    """The same of one person, whose address or right to a password has just changed, while it is enforced."""
    provider: Any = apps.get_model("sso", "Provider")
    for enforcing in provider.objects.filter(mode="enforced"):
        end_password_sessions(enforcing.domains, by=by, whose=Q(user=person.pk))
