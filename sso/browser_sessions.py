"""Browsers' sessions: which were signed in to at the organisation, and ending those of people who have to be."""

from __future__ import annotations

from typing import Any

from allauth.usersessions.models import UserSession
from django.apps import apps
from django.db.models import Model, Q

from accounts.rules import Grantor
from auditlog.actions import Action
from auditlog.models import Event

BROWSER = "organisation"  # In a session, and in its row: as whom it was signed in to at the organisation.


def end_password_sessions(of: Q, *, by: Grantor | None) -> int:
    """End those of these sessions that began with a password; returns how many.

    Run it in the transaction of the change.
    """
    sessions = list(UserSession.objects.select_related("user").filter(of).exclude(data__has_key=BROWSER))
    for session in sessions:
        session.end()
        changes = {"ip": [session.ip, None], "reason": "enforced"}
        Event.objects.record(Action.USER_SESSION_ENDED, session.user, by=by, changes=changes)
    return len(sessions)


def end_where_enforced(person: Model, *, by: Grantor | None) -> None:
    """The same of one person, whose address or right to a password has just changed, where that is enforced for them.

    People are below whoever enforces it, so the model is looked up (docs/explanation/architecture.md).
    """
    model: Any = apps.get_model("sso", "Provider")
    provider = model.offered()
    if provider is not None:
        end_password_sessions(provider.sessions_enforced & Q(user=person.pk), by=by)
