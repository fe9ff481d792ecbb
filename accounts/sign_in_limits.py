"""Known browsers, and limits on attempts with passwords and codes (docs/explanation/signing-in.md).

An attempt is counted before anything is checked, and subtracted again after a success.

Wrong passwords never lock an account. Each address has its own limit, so an attacker blocks only the attacker's own
address. A known browser has its own limit, so it is not blocked even if it has the same address.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import wraps
from typing import Any

from django.conf import settings
from django.core.signing import BadSignature, TimestampSigner
from django.http import HttpRequest, HttpResponse

from accounts.models import Attempt, User
from accounts.models.attempts import HOUR, MINUTE, seconds_left
from ui.errors import TryLater
from wire.hosts import address_group

type View = Callable[..., HttpResponse]

COOKIE = "gateway_device"
COOKIE_PATH = "/accounts/"
DEVICE_LIFETIME = timedelta(days=180)

MOST = {
    "password, from one address": (20, MINUTE),
    "password, from one address for one account": (5, MINUTE),
    "password, in a known browser": (10, MINUTE),
    "password again": (10, MINUTE),
    "password change": (5, MINUTE),
    "code, from one address": (20, MINUTE),
    "code, for one account": (5, MINUTE),  # All addresses together, because a code has only six digits.
    "code, in a known browser": (10, MINUTE),
    "code again": (5, MINUTE),
    "reset, from one address": (20, HOUR),
    "reset, for one account": (3, HOUR),
    "link, from one address": (20, MINUTE),
    "organisation, from one address": (120, MINUTE),  # Unfinished sign-ins; an office may share one address.
    "organisation answer, from one address": (60, MINUTE),  # Refused answers; an office may share one address.
    "organisation logout, from one address": (600, MINUTE),  # All requests come from the provider's address.
}


class TooManyTries(TryLater):
    """Too many attempts. The message does not tell how many attempts were made or from where."""

    def __init__(self, window: timedelta) -> None:
        wait = "Wait a minute, then try again." if window == MINUTE else "Try again in an hour."
        super().__init__(f"Too many attempts. {wait}", seconds_left(window))


@dataclass(slots=True)
class Tries:
    """One attempt and the counters that counted it. After a success, `take_back` subtracts the attempt from them."""

    is_known: bool = False
    _keys: list[str] = field(default_factory=list)

    def count(self, action: str, of: str) -> None:
        """Count an attempt of the kind `action` (a key of MOST). `of` identifies the address, account or browser.

        Raises TooManyTries if this attempt exceeds the limit in MOST.
        """
        most, window = MOST[action]
        key = _key(action, of)
        if Attempt.objects.note(key, window=window) > most:
            raise TooManyTries(window)
        self._keys.append(key)

    def take_back(self) -> None:
        for key in self._keys:
            Attempt.objects.take_back(key)


def _key(action: str, of: str) -> str:
    return hashlib.sha256(f"{action} {of}".encode()).hexdigest()


def sender_of(request: HttpRequest) -> str:
    """Return the client's IPv4 address, or the /64 network of its IPv6 address; "" if the address is unknown."""
    return address_group(request.META.get("REMOTE_ADDR", "")) or ""


def try_password(request: HttpRequest, email: str) -> Tries:
    """Count an attempt to sign in with a password. Raises TooManyTries.

    Return the counters that counted this attempt. Their `is_known` is True if the person signed in with this browser
    before.
    """
    tries, account = Tries(), email.strip().lower()
    person = User.objects.filter(email=account).first() if COOKIE in request.COOKIES else None
    if person and (device := _device(request, person)):
        tries.is_known = True
        tries.count("password, in a known browser", device)
    else:
        tries.count("password, from one address for one account", f"{sender_of(request)} {account}")
        tries.count("password, from one address", sender_of(request))
    return tries


def try_code(request: HttpRequest, person: User) -> Tries:
    """Count an attempt to enter a code after a correct password. Raises TooManyTries.

    Return the counters that counted this attempt.
    """
    tries = Tries()
    if device := _device(request, person):
        tries.count("code, in a known browser", device)
    else:
        tries.count("code, from one address", sender_of(request))
        tries.count("code, for one account", str(person.pk))
    return tries


def try_as(person: User, action: str) -> Tries:
    """Count an attempt of the kind `action` by a signed-in person; return the counters. Raises TooManyTries."""
    tries = Tries()
    tries.count(action, str(person.pk))
    return tries


def is_first_this_minute(request: HttpRequest, what: str) -> bool:
    """Count an attempt of the kind `what`; return True if it is the first from this address in this minute."""
    return Attempt.objects.note(_key(what, sender_of(request))) == 1


def posts_from_one_address(action: str) -> Callable[[View], View]:
    """Decorate a view to limit how often its form is sent from one address."""
    return _posts(action, sender_of)


def take_back(request: HttpRequest, action: str) -> None:
    """Subtract a successful attempt of the kind `action` from those counted for this address."""
    Attempt.objects.take_back(_key(action, sender_of(request)))


def posts_of_one_person(action: str) -> Callable[[View], View]:
    """Decorate a view to limit how often a signed-in user submits its form."""
    return _posts(action, lambda request: str(request.user.pk))


def _posts(action: str, sender: Callable[[HttpRequest], str]) -> Callable[[View], View]:
    def limit(view: View) -> View:
        @wraps(view)
        def limited(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            if request.method == "POST":
                Tries().count(action, sender(request))
            return view(request, *args, **kwargs)

        return limited

    return limit


# --- Known browsers ---------------------------------------------------------------------------------------------------


def _signer(person: User) -> TimestampSigner:
    """Return a signer for the ids of this person's browsers.

    The signatures become invalid if the person sets a new password, or signs out everywhere.
    """
    return TimestampSigner(salt=f"accounts.known-browser {person.pk} {person.get_session_auth_hash()}")


def _device(request: HttpRequest, person: User) -> str:
    """Return this browser's random id if `person` signed in with the browser before, otherwise an empty string."""
    try:
        return _signer(person).unsign(request.COOKIES.get(COOKIE, ""), max_age=DEVICE_LIFETIME)
    except BadSignature:
        return ""


def remember_browser(request: HttpRequest, response: HttpResponse, person: User) -> None:
    """Set the cookie that says that `person` signed in with this browser. The cookie gives no access.

    Attempts in a known browser are counted separately.
    """
    device = _device(request, person) or secrets.token_urlsafe(12)
    response.set_cookie(
        COOKIE,
        _signer(person).sign(device),
        max_age=DEVICE_LIFETIME,
        path=COOKIE_PATH,
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",
    )
