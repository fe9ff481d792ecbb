"""Rate limits per address and per person at the OAuth endpoints."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from functools import wraps
from typing import Any
from urllib.parse import unquote_plus

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from oauth2_provider.models import Application

from accounts.models import Attempt, User
from wire.hosts import address_group

A_MINUTE = {"register": 60, "document": 10, "token": 30, "tokens": 300, "directory": 600}
OF_ONE_PERSON = {"document": 5}


def allows(request: HttpRequest, action: str, *, of: str = "") -> bool:
    """Count an `action` of the request's IP address, and return whether it is within the limit of this minute.

    `of` is a client id, for example. There is a separate count for each `of`.
    """
    sender = address_group(request.META.get("REMOTE_ADDR", "")) or ""
    return _count(f"{action} {sender} {of}") <= A_MINUTE[action]


def allows_person(user: User, action: str) -> bool:
    """Count an `action` of this person, from any address, and return True if it is within the limit of this minute."""
    return _count(f"{action} of {user.pk}") <= OF_ONE_PERSON[action]


def _count(name: str) -> int:
    return Attempt.objects.note(hashlib.sha256(name.encode()).hexdigest())


def limit_exceeded(sentence: str) -> HttpResponse:
    """Return a 429 response with `sentence`. Its Retry-After ends at the next full minute, when limits reset."""
    body = {"error": "temporarily_unavailable", "error_description": f"{sentence} Wait a minute."}
    wait = str(60 - timezone.now().second)
    return JsonResponse(body, status=429, headers={"Cache-Control": "no-store", "Retry-After": wait})


def each_client(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Limit the token requests that one address may send for one client, and for all clients together.

    A limit per client alone would have no effect, because anybody may register more clients.
    """

    @wraps(view)
    def limited(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not allows(request, "tokens"):
            return limit_exceeded("Too many token requests from your address.")
        if not allows(request, "token", of=_client(request)):
            return limit_exceeded("Too many token requests of this client from your address.")
        return view(request, *args, **kwargs)

    return limited


def _client(request: HttpRequest) -> str:
    """Return the client_id that the request claims, or "" if no app has this id.

    All unknown clients are counted together under "".
    """
    client_id = _claimed_client_id(request)
    if "\x00" in client_id or not Application.objects.filter(client_id=client_id).exists():
        return ""
    return client_id


def _claimed_client_id(request: HttpRequest) -> str:
    """Return the client_id from the body or HTTP Basic, without verifying it."""
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    if scheme == "Basic":
        try:
            return unquote_plus(base64.b64decode(credentials).decode().partition(":")[0])
        except ValueError:  # Not base64, or not UTF-8.
            return ""
    return str(request.POST.get("client_id", ""))
