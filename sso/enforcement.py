"""Decide who must sign in through the organisation, and record which browser sessions began at its provider."""

from __future__ import annotations

import logging
from typing import Any

from allauth.usersessions.models import UserSession
from django.db import transaction
from django.http import HttpRequest

from accounts.models import User
from accounts.rules import one_at_a_time
from auditlog.actions import Action
from auditlog.models import Event
from sso.browser_sessions import BROWSER
from sso.models import Claims, Provider

logger = logging.getLogger(__name__)

SIGN_IN_THERE = "People with this address sign in at their organisation. Use the button below."


def sign_in_there(email: str) -> bool:
    """True if people with this address have to sign in at the organisation and may not use a password."""
    provider = Provider.offered()
    return provider is not None and provider.enforces(email)


def must_sign_in_there(person: User) -> bool:
    """True if sign-in at the organisation is enforced for this person's address. False for break-glass owners.

    The person's role or the workspace can also require this sign-in. This function does not check these requirements,
    but `must_sign_in_at_organisation` does.
    """
    return not person.break_glass and sign_in_there(person.email)


def remember(request: HttpRequest, who: Claims) -> None:
    """Store in the browser session which account the person has at the provider.

    The caller must then sign the person in.
    """
    request.session[BROWSER] = {"issuer": who.issuer, "sub": who.subject, "sid": who.session}


def forget_organisation(request: HttpRequest) -> None:
    """Remove the account that `remember` stored in the browser session. Call this after a sign-in with a password."""
    request.session.pop(BROWSER, None)


def is_signed_in_there(request: HttpRequest, provider: Provider) -> bool:
    """True if this browser session began with a sign-in at this provider."""
    known = request.session.get(BROWSER) or {}
    return bool(known.get("issuer") == provider.known_as)


def came_too_late(request: HttpRequest, person: User) -> bool:
    """True if the person just signed in with a password, and enforcement began before the sign-in finished."""
    if request.session.get(BROWSER) or not Provider.objects.exclude(issuer="").exists():
        return False
    with transaction.atomic():
        one_at_a_time()  # Changes that enforce sign-in take this lock too. A later change ends this session.
        return must_sign_in_there(User.objects.get(pk=person.pk))


def keep(request: HttpRequest) -> bool:
    """Copy the identity-provider account of this sign-in, if any, to the `UserSession` row of the browser session.

    Return True if this sign-in has such an account.
    """
    known = request.session.get(BROWSER)
    if known:
        UserSession.objects.filter(session_key=request.session.session_key).update(data={BROWSER: known})
    return bool(known)


def note_sign_in(request: HttpRequest, person: User) -> None:
    """Store the identity-provider account of this sign-in, if any.

    If sign-in at the organisation is enforced for the person's address, only break-glass owners may use a password.
    Record an event when they do.
    """
    if keep(request):
        return
    if person.break_glass and sign_in_there(person.email):
        Event.objects.record(Action.USER_BREAK_GLASS_USED, person, by=person)
        logger.warning("a break-glass owner signed in with a password", extra={"user": person.email})


def end_sessions(issuer: str, claims: dict[str, Any]) -> int:
    """End the browser sessions identified by these claims of a logout token; return how many.

    Connections and API tokens are not changed.
    """
    spoken_of = {"issuer": issuer} | {name: claims[name] for name in ("sub", "sid") if claims.get(name)}
    ended = 0
    with transaction.atomic():
        for session in UserSession.objects.select_related("user").filter(data__contains={BROWSER: spoken_of}):
            session.end()
            changes = {"ip": [session.ip, None], "through": "the organisation"}
            Event.objects.record(Action.USER_SESSION_ENDED, session.user, by=None, changes=changes)
            ended += 1
    return ended
