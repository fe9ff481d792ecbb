"""Functions that OpenID Connect and SAML share: they store the sign-ins that a browser starts, and parse claims."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from django.http import HttpRequest, HttpResponse

from sso.errors import ResponseRefused
from sso.models import Provider
from ui.pages import lead_on
from wire.oauth_client import printable

LONGEST_EMAIL = 254  # Longer addresses are refused: a truncated address might be somebody else's.
SESSION_KEY = "organisation_sign_ins"
MOST_OPEN = 5  # Unfinished sign-ins per browser; older ones are dropped.
LIVES_S = 10 * 60
LOGIN, LINK, CONFIRM = "login", "link", "confirm"


def email_of(value: object) -> str:
    """Return the e-mail address in `value`, or "" if it is not text, is too long, or is not printable ASCII."""
    email = value.strip() if isinstance(value, str) else ""
    # Addresses are lower-cased later, which could turn letters outside ASCII into another person's address.
    return email if len(email) <= LONGEST_EMAIL and email.isascii() and email.isprintable() else ""


def groups_of(values: Iterable[object]) -> frozenset[str]:
    """Return the printable names in `values`.

    A name with a hidden character is left out, because it might look like another group's name.
    """
    return frozenset(group for group in values if isinstance(group, str) and group.isprintable())


def is_true(value: object) -> bool | None:
    """Return `value` if it is a boolean. Convert the texts "true" and "false". Return None for any other value.

    Texts are converted because some providers send text.
    """
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def line_of(value: object) -> str:
    """Return the text without line breaks and other non-printable characters; "" if `value` is not text."""
    return printable(value).strip() if isinstance(value, str) else ""


class PendingSignIn(NamedTuple):
    """A sign-in started in this browser, with the values expected in the answer."""

    act: str  # Its purpose: LOGIN, LINK or CONFIRM.
    onward: str  # The page to return to.
    nonce: str
    verifier: str
    issuer: str
    at: float
    # True if the person started at the provider. Then nothing proves that the answer is for this browser.
    is_unasked: bool = False


def leads_on(request: HttpRequest, provider: Provider, url: str, template: str = "sso/leads_on.html") -> HttpResponse:
    """Return a page that forwards to this URL of the provider."""
    return lead_on(request, template, {"provider": provider, "url": url}, url)


def start_sign_in(
    request: HttpRequest, provider: Provider, state: str, *, act: str, onward: str, nonce: str = "", verifier: str = ""
) -> None:
    """Store a started sign-in in the session under `state`."""
    others = list(request.session.get(SESSION_KEY, {}).items())[1 - MOST_OPEN :]
    begun = PendingSignIn(act, onward, nonce, verifier, provider.known_as, time.time())
    request.session[SESSION_KEY] = dict(others) | {state: [*begun]}


def take_pending_sign_in(request: HttpRequest, state: str) -> PendingSignIn:
    """Remove and return the sign-in started in this browser with this state. Raises ResponseRefused."""
    still_open: dict[str, list[Any]] = request.session.get(SESSION_KEY, {})
    found = still_open.pop(state, None)
    if found is None:
        raise ResponseRefused(
            "not_begun_here", "The sign-in was not started in this browser, or its answer was used before."
        )
    request.session[SESSION_KEY] = still_open
    begun = PendingSignIn(*found)
    if time.time() - begun.at > LIVES_S:
        raise ResponseRefused("took_too_long", "The sign-in took longer than ten minutes.")
    return begun
