"""Error pages."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponsePermanentRedirect
from django.shortcuts import render
from django.urls import is_valid_path
from django.utils.cache import add_never_cache_headers
from django.utils.http import urlencode
from django.views.decorators.csrf import requires_csrf_token

from ui.pages import wants_fragment
from wire import jsonrpc


class TryLater(Exception):
    """The request is refused for now and changed nothing. People see the message; `seconds` is for Retry-After."""

    def __init__(self, sentence: str, seconds: int) -> None:
        super().__init__(sentence)
        self.seconds = seconds


@requires_csrf_token
def permission_denied(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Return 403, naming the missing capability if the exception has one."""
    capability = getattr(exception, "capability", None)
    response = _denied(request, {"capability": capability, "reason": str(exception or "")})
    response.missing = capability  # type: ignore[attr-defined]  # Recorded by gatewayadmin.middleware.
    return response


@requires_csrf_token
def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Return 404 to an MCP client, otherwise 403.

    The 403 page gives the reason: the form was sent from an http page but needs https, or it was open for too long.
    """
    if _is_mcp_client(request):
        return _no_gateway()
    if settings.CSRF_COOKIE_SECURE and request.headers.get("Origin", "").startswith("http://"):
        # Browsers do not send our cookies over http.
        return _denied(request, {"reason": f"This page works only over https. Open {settings.PUBLIC_URL}"})
    return _denied(request, {"reason": "This page was open for too long. Reload it and try again."})


def _denied(request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
    if not wants_fragment(request):
        return render(request, "403.html", context, status=403)
    response = render(request, "403.html#notice", context, status=403)
    response["HX-Push-Url"] = "false"
    return response


@requires_csrf_token
def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Return 404. If a page has the URL without the last slash, redirect GET requests to this page instead."""
    if _is_mcp_client(request):
        return _no_gateway()
    if request.method == "GET" and (shorter := _without_last_slash(request)):
        return HttpResponsePermanentRedirect(shorter)
    return render(request, "404.html", status=404)


def _without_last_slash(request: HttpRequest) -> str:
    """Return the URL without its last slash if that is the URL of a page.

    Return "" if it is not, or if the URL with the slash belongs to a page, too.
    """
    if request.resolver_match or not request.path.endswith("/") or not is_valid_path(request.path_info[:-1]):
        return ""
    path, mark, query = request.get_full_path().partition("?")
    return f"{path[:-1]}{mark}{query}"


def _is_mcp_client(request: HttpRequest) -> bool:
    """Return whether the request seems to come from an MCP client, which may have a wrong gateway URL."""
    # A browser never submits a form as JSON.
    return request.content_type == "application/json" or request.headers.get("Accept") == "text/event-stream"


def _no_gateway() -> HttpResponse:
    body = jsonrpc.error(None, jsonrpc.INVALID_REQUEST, jsonrpc.NO_GATEWAY_URL)
    return HttpResponse(body, content_type="application/json", status=404)


@requires_csrf_token
def forms_only(request: HttpRequest, refusal: HttpResponseNotAllowed) -> HttpResponse:
    """Return the 405 page for a browser that opens a URL which accepts only forms."""
    response = render(request, "405.html", status=405)
    response["Allow"] = refusal["Allow"]
    add_never_cache_headers(response)
    return response


@requires_csrf_token
def too_many(request: HttpRequest, refusal: TryLater) -> HttpResponse:
    """Return the 429 page with Retry-After and a link back to the form."""
    asked_for = request.POST.get("next", "")
    back = f"{request.path}?{urlencode({'next': asked_for})}" if asked_for else request.get_full_path()
    template = "429.html#notice" if wants_fragment(request) else "429.html"
    response = render(request, template, {"reason": str(refusal), "back": back}, status=429)
    response["Retry-After"] = str(refusal.seconds)
    add_never_cache_headers(response)
    return response
