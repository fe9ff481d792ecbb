"""CORS for the OAuth endpoints: preflight, and response headers for web pages of other origins."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.decorators import method_decorator

ALLOWED_METHODS = "GET, POST, DELETE, OPTIONS"
HEADERS = "Authorization, Content-Type, Accept, MCP-Protocol-Version"


def allow(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    """Let web pages of an allowed origin read `response`; credentials are never allowed."""
    origin = request.headers.get("Origin")
    response.headers.setdefault("Vary", "Origin")
    if origin and origin in settings.ALLOWED_ORIGINS:
        response["Access-Control-Allow-Origin"] = origin
        response["Access-Control-Expose-Headers"] = "WWW-Authenticate"
    return response


def cors(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """Answer preflights without authentication, and add CORS headers to every response."""

    @wraps(view)
    def answered(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if request.method != "OPTIONS":
            return allow(request, view(request, *args, **kwargs))
        preflight = HttpResponse(status=204)
        preflight["Access-Control-Allow-Methods"] = ALLOWED_METHODS
        preflight["Access-Control-Allow-Headers"] = HEADERS
        preflight["Access-Control-Max-Age"] = "600"
        return allow(request, preflight)

    return answered


cross_origin = method_decorator(cors, name="dispatch")
