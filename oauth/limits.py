"""How often one address may ask: counted in the shared cache, answered with 429; nothing is ever locked."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from functools import wraps
from typing import Any
from urllib.parse import unquote_plus

# Its public twin counts no GET, and knows no address without a rate for it.
from allauth.core.internal import ratelimit
from django.http import HttpRequest, HttpResponse, JsonResponse
from oauth2_provider.models import Application

MINUTE = "60"


def consume(request: HttpRequest, action: str, *, key: str = "") -> bool:
    """Whether this address may do `action` once more; with a `key`, each key is counted by itself."""
    counted = f"{ratelimit.get_ip(request)} {key}"
    return bool(ratelimit.consume(request, app="allauth.account", action=action, key=counted, limit_get=True))


def too_many(sentence: str) -> HttpResponse:
    """The answer to a program that asks too often."""
    told = {"error": "temporarily_unavailable", "error_description": sentence}
    return JsonResponse(told, status=429, headers={"Cache-Control": "no-store", "Retry-After": MINUTE})


def each_client(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Limit how often one client asks for tokens from one address."""

    @wraps(view)
    def limited(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if consume(request, "oauth_token", key=_client(request)):
            return view(request, *args, **kwargs)
        return too_many("Too many token requests of this client from your address. Wait a minute.")

    return limited


def _client(request: HttpRequest) -> str:
    """The known client a request says it is from; empty for made-up ones, which are counted together."""
    client_id = _said(request)
    if "\x00" in client_id or not Application.objects.filter(client_id=client_id).exists():
        return ""
    return client_id


def _said(request: HttpRequest) -> str:
    """The client_id in the body or in HTTP Basic; it need not be true."""
    scheme, _, words = request.headers.get("Authorization", "").partition(" ")
    if scheme == "Basic":
        try:
            return unquote_plus(base64.b64decode(words).decode().partition(":")[0])
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return str(request.POST.get("client_id", ""))
