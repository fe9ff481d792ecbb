"""Store a submitted form while the person is asked for a confirmation, and resubmit the form afterwards.

There are two kinds of confirmation: re-authentication, and *Change by hand* (configuration.by_hand). The session stores
the form, encrypted, for one person and one URL. Each stored form has a random key, which is not the encryption key. A
re-authentication gets this key as the fragment of the URL in its parameter `next`.

After the confirmation, the browser posts the key instead of the form. So no secret of the form appears in a page, a URL
or a log. The view checks the resubmitted form like any other form.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urldefrag, urlencode

from allauth.account.adapter import get_adapter
from allauth.core.exceptions import ReauthenticationRequired
from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render, resolve_url
from django.utils.cache import add_never_cache_headers

from ui.pages import own_path, referring_page
from ui.sealing import open_value, seal_value

SESSION_KEY = "held_forms"
FIELD = "held_form"  # Field of a resubmitted form: the key of the stored form.
PAGE = "held_on"  # Field of a resubmitted form: the URL of the page with the original form.
HELD_S = 30 * 60.0  # Seconds that a form is stored.
MOST_HELD = 3  # Forms per session; a new form replaces the oldest.
MOST_CHARACTERS = 56 * 1024  # Per form, compressed and encrypted. Every request of the session reads all stored forms.


def hold_forms(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Return a middleware that stores the posted form when a view raises ReauthenticationRequired.

    When the browser posts the key of a stored form, the middleware replaces `request.POST` with the stored data. Place
    this middleware after AccountMiddleware. Otherwise AccountMiddleware stores the data unencrypted.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if request.session.accessed:
            _forget(request)
        return response

    # At this position among the middleware, this runs after the checks of CSRF and sign-in.
    def process_view(request: HttpRequest, view: object, *_: object) -> HttpResponse | None:
        if not _is_sent_again(request, view):
            return None
        sent, page = _taken(request, request.POST[FIELD]), own_path(request.POST.get(PAGE, ""), request.get_full_path())
        if sent is None:
            # For example expired: the browser opens the page with the form, or a page that links to it.
            return _answer(request, {"page": page}, status=410)
        request.POST = sent  # type: ignore[assignment]  # Immutable, like the data of every request.
        request.held_on = page  # type: ignore[attr-defined]
        return None

    def process_exception(request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if not isinstance(exception, ReauthenticationRequired):
            return None
        methods = get_adapter().get_reauthentication_methods(request.user)
        asking = methods[0]["url"] if methods else resolve_url(settings.LOGIN_URL)
        return redirect(f"{asking}?{urlencode({'next': held(request)})}")

    middleware.process_view = process_view  # type: ignore[attr-defined]
    middleware.process_exception = process_exception  # type: ignore[attr-defined]
    return middleware


def send_again(request: HttpRequest, onward: str) -> HttpResponse | None:
    """Return a page that resubmits a stored form; None if there is no such form.

    `onward` is a URL. The part after its `#` is the key of the form.
    """
    page, key = urldefrag(own_path(onward))
    sent = _sent(request, key)
    return _answer(request, {"address": sent["address"], "fields": {FIELD: key, PAGE: page}}) if sent else None


def _answer(request: HttpRequest, context: dict[str, Any], status: int = 200) -> HttpResponse:
    response = render(request, "account/send_again.html", context, status=status)
    add_never_cache_headers(response)
    return response


def held(request: HttpRequest) -> str:
    """Store the posted form, and return the URL to open after the confirmation.

    The URL's fragment is the form's key. If no form was posted, or if the form is too large, there is no fragment.
    """
    if request.method != "POST" or not request.user.is_authenticated:
        return request.get_full_path()
    page, address = getattr(request, "held_on", "") or referring_page(request), request.get_full_path()
    sent = {"person": str(request.user.pk), "address": address, "sent": request.POST.urlencode()}
    sealed = seal_value(SESSION_KEY, sent)
    if len(sealed) > MOST_CHARACTERS:
        messages.warning(request, "The form is too large to be saved during the confirmation. Fill it in again.")
        return page
    key = secrets.token_urlsafe(9)  # One for each form, so that two tabs do not mix up their forms.
    others = list(_held(request).items())[1 - MOST_HELD :]
    request.session[SESSION_KEY] = dict(others) | {key: [time.time(), sealed]}
    return f"{page}#{key}"


def _held(request: HttpRequest) -> dict[str, Any]:
    """Return the session's held forms that have not expired."""
    held: dict[str, Any] = request.session.get(SESSION_KEY, {})
    return {key: [at, sealed] for key, (at, sealed) in held.items() if 0 <= time.time() - at < HELD_S}


def _is_sent_again(request: HttpRequest, view: object) -> bool:
    """True if a signed-in person posts a key instead of a form. The stored form may have expired."""
    # Views without a CSRF check are called by programs, not by forms on pages.
    if request.method != "POST" or getattr(view, "csrf_exempt", False):
        return False
    return request.user.is_authenticated and FIELD in request.POST


def _forget(request: HttpRequest) -> None:
    """Remove expired forms."""
    if len(held := _held(request)) < len(request.session.get(SESSION_KEY, {})):
        request.session[SESSION_KEY] = held


def _taken(request: HttpRequest, key: str) -> QueryDict | None:
    """Remove the form stored under `key`, and return its data.

    Return None if there is no such form, if it belongs to another person or URL, or if it cannot be decrypted.
    """
    sent = _sent(request, key)
    if key in (held := _held(request)):
        del held[key]
        request.session[SESSION_KEY] = held
    if sent is None or sent["address"] != request.get_full_path():
        return None
    return QueryDict(sent["sent"])


def _sent(request: HttpRequest, key: str) -> dict[str, str] | None:
    """Return the form that this person stored under `key`; None if there is none that can be decrypted."""
    if key not in (held := _held(request)):
        return None
    try:
        sent: dict[str, str] = open_value(SESSION_KEY, held[key][1])
    except ValueError:  # The encryption key was removed from the settings.
        return None
    return sent if sent["person"] == str(request.user.pk) else None
