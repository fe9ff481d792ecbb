"""End browser sessions that began with a password, if the person has to sign in at the organisation."""

from __future__ import annotations

from typing import Any

from allauth.usersessions.models import UserSession
from django.apps import apps
from django.db.models import Model, Q

from accounts.rules import Grantor
from accounts.sessions import still_open
from auditlog.actions import Action
from auditlog.models import Event

BROWSER = "organisation"  # Key of the account at the organisation, in the session's data and its UserSession row.


def end_password_sessions(of: Q, *, by: Grantor | None) -> int:
    """End the sessions that match `of` and began with a password. Return how many of these sessions were open.

    Call this function in the transaction of the change that requires people to sign in at the organisation.
    """
    sessions = list(UserSession.objects.select_related("user").filter(of).exclude(data__has_key=BROWSER))
    were_open = still_open(sessions)
    for session in sessions:
        session.end()
    for session in were_open:
        changes = {"ip": [session.ip, None], "reason": "enforced"}
        Event.objects.record(Action.USER_SESSION_ENDED, session.user, by=by, changes=changes)
    return len(were_open)


def end_where_enforced(person: Model, *, by: Grantor | None) -> None:
    """End a person's password sessions if sign-in by the organisation is now enforced for the person."""
    # By name, because accounts.models imports this module (docs/explanation/architecture.md).
    model: Any = apps.get_model("sso", "Provider")
    provider = model.offered()
    if provider is not None:
        end_password_sessions(provider.sessions_enforced & Q(user=person.pk), by=by)
