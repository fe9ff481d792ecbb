"""Web sessions: the list of a person's browsers, signing out of one, and time limits."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from allauth.usersessions.models import UserSession
from django.contrib.auth import HASH_SESSION_KEY, SESSION_KEY, logout
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.models import Session
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.crypto import constant_time_compare

from auditlog.actions import Action
from auditlog.models import Event

if TYPE_CHECKING:
    from accounts.models import User  # It imports this module.

# The first match is used: the user agents of Edge and Opera also contain Chrome, those of Chrome also contain Safari,
# and those of Android also contain Linux.
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
    """Return the person's open sessions, the most recently used first; `this` is the key of the current session."""
    rows = UserSession.objects.select_related("user").filter(user=person).order_by("-last_seen_at")
    return [
        WebSession(
            session.pk,
            browser_of(session.user_agent),
            session.ip,
            session.created_at,
            session.last_seen_at,
            session.session_key == this,
        )
        for session in still_open(rows)
    ]


def still_open(rows: Iterable[UserSession]) -> list[UserSession]:
    """Return the sessions in `rows` that have not ended."""
    rows = list(rows)
    keys = [row.session_key for row in rows]
    stored = Session.objects.filter(session_key__in=keys, expire_date__gt=timezone.now())
    data = {session.session_key: session.get_decoded() for session in stored}
    return [row for row in rows if row.session_key in data and _is_good(row.user, data[row.session_key])]


def _is_good(person: User, data: dict[str, Any]) -> bool:
    """True if a session with this data still signs `person` in."""
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
    """Return a name such as "Firefox on Windows"; for an unknown browser and system, the start of the user agent."""
    name = next((name for mark, name in BROWSERS.items() if re.search(rf"{mark}\w*/", user_agent)), "")
    system = next((name for mark, name in SYSTEMS.items() if mark in user_agent), "")
    return " on ".join(filter(None, (name, system))) or user_agent[:60] or "Unknown browser"


IDLE_S = timedelta(hours=12).total_seconds()
LONGEST_S = timedelta(days=7).total_seconds()
SEEN_INTERVAL_S = timedelta(minutes=5).total_seconds()  # Avoids writing the session on each request.

BEGAN, SEEN = "began_at", "seen_at"


def session_limits(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware that ends an expired session, and otherwise stores when the session was last used.

    This middleware must come between AuthenticationMiddleware and SignInFirst.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        if SESSION_KEY in request.session and is_over(request.session):
            logout(request)
        response = get_response(request)
        if SESSION_KEY in request.session:
            _note(request)
            if _was_ended(request.session):  # Saving a deleted session would raise an error.
                logout(request)
        return response

    return middleware


def _was_ended(session: SessionBase) -> bool:
    """True if this session has changes to save, but was deleted in the meantime."""
    return session.modified and bool(session.session_key) and not session.exists(str(session.session_key))


def is_over(session: Mapping[str, Any]) -> bool:
    """True if a session has not been used for IDLE_S, or began more than LONGEST_S ago."""
    now = time.time()
    seen, began = float(session.get(SEEN, now)), float(session.get(BEGAN, now))
    return now - seen > IDLE_S or now - began > LONGEST_S


def _note(request: HttpRequest) -> None:
    session, now = request.session, int(time.time())
    if BEGAN not in session:
        if session.modified:  # The session is saved in any case, for example at sign-in.
            session[BEGAN] = session[SEEN] = now
    elif now - session[SEEN] > SEEN_INTERVAL_S:
        session[SEEN] = now
        UserSession.objects.filter(session_key=session.session_key).update(last_seen_at=timezone.now())
