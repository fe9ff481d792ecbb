"""Forms that were sent when the password had to be asked for again: held until it is confirmed, and sent once more.

The session keeps what was sent, sealed, for the one person and the one address it was sent to. `next` is the page that
it stood on, and its fragment names which form it is, so that of two tabs each finds its own. After the confirmation the
browser sends the form again, to its own address and through every check, and names what is held instead of repeating
it: no secret stands in a page, an address, a log or, in plain text, in the database. When nothing is held any more, the
page is opened, or linked to.
"""

from __future__ import annotations

import secrets
import time
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any
from urllib.parse import urldefrag, urlencode

import orjson
from allauth.account.adapter import get_adapter
from allauth.core.exceptions import ReauthenticationRequired
from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render, resolve_url
from django.utils.cache import add_never_cache_headers

from ui.pages import own_path, referring_page
from ui.sealing import cipher

SESSION_KEY = "held_forms"
FIELD = "held_form"  # In a form that is sent again: which one it is.
PAGE = "held_on"  # And on which page it stood.
HELD_S = 30 * 60.0  # How long one is held.
MOST_HELD = 3  # In one session; the oldest is given up for another.
MOST_BYTES = 32 * 1024  # Of one, compressed: every request of the session reads them.


def hold_forms(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Hold what is sent when a view raises ReauthenticationRequired, and put it back in place when it is sent again.

    Place it after AccountMiddleware, which would keep it in the session as it is; its process_view then comes after the
    check of the form's CSRF token, and after sign-in.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if request.session.accessed:
            _forget(request)
        return response

    def process_view(request: HttpRequest, view: object, *_: object) -> HttpResponse | None:
        if not _is_sent_again(request, view):
            return None
        sent, page = _taken(request, request.POST[FIELD]), own_path(request.POST.get(PAGE, ""), request.get_full_path())
        if sent is None:
            return _answer(request, {"page": page}, status=410)
        request.POST = sent  # type: ignore[assignment]  # As the browser sent it, unchangeable.
        request.held_on = page  # type: ignore[attr-defined]
        return None

    def process_exception(request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if not isinstance(exception, ReauthenticationRequired):
            return None
        methods = get_adapter().get_reauthentication_methods(request.user)
        asking = methods[0]["url"] if methods else resolve_url(settings.LOGIN_URL)
        return redirect(f"{asking}?{urlencode({'next': _onward(request)})}")

    middleware.process_view = process_view  # type: ignore[attr-defined]
    middleware.process_exception = process_exception  # type: ignore[attr-defined]
    return middleware


def send_again(request: HttpRequest, onward: str) -> HttpResponse | None:
    """A page that sends the form again for which the password was asked; None when there was only a page to open."""
    page, key = urldefrag(own_path(onward))
    sent = _sent(request, key)
    return _answer(request, {"address": sent["address"], "fields": {FIELD: key, PAGE: page}}) if sent else None


def _answer(request: HttpRequest, context: dict[str, Any], status: int = 200) -> HttpResponse:
    response = render(request, "account/send_again.html", context, status=status)
    add_never_cache_headers(response)
    return response


def _onward(request: HttpRequest) -> str:
    """Where to go on after the confirmation, with the key of what was sent, which is held from now on."""
    if request.method != "POST" or not request.user.is_authenticated:
        return request.get_full_path()
    page, address = getattr(request, "held_on", "") or referring_page(request), request.get_full_path()
    sent = {"person": str(request.user.pk), "address": address, "sent": request.POST.urlencode()}
    packed = zlib.compress(orjson.dumps(sent))
    if len(packed) > MOST_BYTES:
        messages.warning(request, "What you filled in is too large to be kept meanwhile. Please fill it in again.")
        return page
    key = secrets.token_urlsafe(9)
    sealed = cipher().seal(b64encode(packed).decode()).decode()
    others = list(_held(request).items())[1 - MOST_HELD :]
    request.session[SESSION_KEY] = dict(others) | {key: [time.time(), sealed]}
    return f"{page}#{key}"


def _held(request: HttpRequest) -> dict[str, Any]:
    """What this session holds and may still be sent."""
    held: dict[str, Any] = request.session.get(SESSION_KEY, {})
    return {key: [at, sealed] for key, (at, sealed) in held.items() if 0 <= time.time() - at < HELD_S}


def _is_sent_again(request: HttpRequest, view: object) -> bool:
    """Whether this names a held form. What programs post, without a CSRF token, is read where it is used, and what
    strangers send by the view that counts it: they hold nothing.
    """
    if request.method != "POST" or getattr(view, "csrf_exempt", False):
        return False
    return request.user.is_authenticated and FIELD in request.POST


def _forget(request: HttpRequest) -> None:
    """Give up what was held for as long as it may be."""
    if len(held := _held(request)) < len(request.session.get(SESSION_KEY, {})):
        request.session[SESSION_KEY] = held


def _taken(request: HttpRequest, key: str) -> QueryDict | None:
    """What is held under `key`, once; None unless this person sent it to this address a short while ago."""
    sent = _sent(request, key)
    if key in (held := _held(request)):
        del held[key]
        request.session[SESSION_KEY] = held
    if sent is None or sent["address"] != request.get_full_path():
        return None
    return QueryDict(sent["sent"])


def _sent(request: HttpRequest, key: str) -> dict[str, str] | None:
    """What is held under `key` for this person."""
    if key not in (held := _held(request)):
        return None
    try:
        sent: dict[str, str] = orjson.loads(zlib.decompress(b64decode(cipher().open(held[key][1].encode()))))
    except ValueError:  # The key that sealed it is gone.
        return None
    return sent if sent["person"] == str(request.user.pk) else None
