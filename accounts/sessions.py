"""The web sessions of one person that are still good, and how they end."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from allauth.usersessions.models import UserSession
from django.contrib.auth import HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.models import Session
from django.db import transaction
from django.utils import timezone
from django.utils.crypto import constant_time_compare

from accounts.models import User
from accounts.session_limits import is_over
from auditlog.actions import Action
from auditlog.models import Event

# The first that fits: Edge and Opera also say Chrome, Chrome also says Safari, Android also says Linux.
BROWSERS = {
    "Edg": "Edge",
    "OPR": "Opera",
    "Firefox": "Firefox",
    "FxiOS": "Firefox",
    "Chrome": "Chrome",
    "CriOS": "Chrome",
    "Safari": "Safari",
}
SYSTEMS = {
    "iPhone": "iPhone",
    "iPad": "iPad",
    "Android": "Android",
    "Windows": "Windows",
    "Mac OS X": "macOS",
    "CrOS": "ChromeOS",
    "Linux": "Linux",
}


@dataclass(frozen=True, slots=True)
class WebSession:
    """One browser in which a person is signed in."""

    pk: int
    browser: str
    address: str
    began_at: datetime
    seen_at: datetime
    is_this: bool


def open_sessions(person: User, this: str | None = None) -> list[WebSession]:
    """The browsers in which `person` is signed in, the latest used first; `this` is the key of the asker's own."""
    known = list(UserSession.objects.filter(user=person).order_by("-last_seen_at"))
    good = _good_keys(person, [session.session_key for session in known])
    return [
        WebSession(
            session.pk,
            browser_of(session.user_agent),
            session.ip,
            session.created_at,
            session.last_seen_at,
            session.session_key == this,
        )
        for session in known
        if session.session_key in good
    ]


def _good_keys(person: User, keys: list[str]) -> set[str]:
    stored = Session.objects.filter(session_key__in=keys, expire_date__gt=timezone.now())
    return {session.session_key for session in stored if _is_good(person, session.get_decoded())}


def _is_good(person: User, data: dict[str, Any]) -> bool:
    """Whether what a session holds still signs `person` in."""
    same = constant_time_compare(data.get(HASH_SESSION_KEY, ""), person.get_session_auth_hash())
    return same and data.get(SESSION_KEY) == str(person.pk) and not is_over(data)


def end(person: User, pk: int, *, by: User) -> None:
    """Sign `person` out of one browser. Raises UserSession.DoesNotExist."""
    with transaction.atomic():
        session = UserSession.objects.get(pk=pk, user=person)
        session.end()
        changes = {"browser": [browser_of(session.user_agent), None], "ip": [session.ip, None]}
        Event.objects.record(Action.USER_SESSION_ENDED, person, by=by, changes=changes)


def browser_of(user_agent: str) -> str:
    """A browser in words: "Firefox on Windows"; what it says itself when that is nothing we know."""
    name = next((name for mark, name in BROWSERS.items() if re.search(rf"{mark}\w*/", user_agent)), "")
    system = next((name for mark, name in SYSTEMS.items() if mark in user_agent), "")
    return " on ".join(filter(None, (name, system))) or user_agent[:60] or "Unknown browser"
