"""How long a web session lives: 12 hours without a request, 7 days at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from allauth.usersessions.models import UserSession
from django.contrib.auth import SESSION_KEY, logout
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

IDLE_S = timedelta(hours=12).total_seconds()
LONGEST_S = timedelta(days=7).total_seconds()
NOTED_EVERY_S = timedelta(minutes=5).total_seconds()  # Not on each request: that would be a write each.

BEGAN, SEEN = "began_at", "seen_at"


def session_limits(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """End sessions that are over, and note when the others were last used.

    Place it between AuthenticationMiddleware and LoginRequiredMiddleware.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        if SESSION_KEY in request.session and is_over(request.session):
            logout(request)
        response = get_response(request)
        if SESSION_KEY in request.session:
            _note(request)
        return response

    return middleware


def is_over(session: Mapping[str, Any]) -> bool:
    """Whether a session has been idle, or has lived, for too long."""
    now = time.time()
    seen, began = float(session.get(SEEN, now)), float(session.get(BEGAN, now))
    return now - seen > IDLE_S or now - began > LONGEST_S


def _note(request: HttpRequest) -> None:
    session, now = request.session, int(time.time())
    if BEGAN not in session:
        if session.modified:  # As it is by signing in; then this costs no write of its own.
            session[BEGAN] = session[SEEN] = now
    elif now - session[SEEN] > NOTED_EVERY_S:
        session[SEEN] = now
        UserSession.objects.filter(session_key=session.session_key).update(last_seen_at=timezone.now())
