"""Django middleware: context of events, and events for refused attempts."""

from collections.abc import Callable
from typing import cast
from uuid import uuid4

from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse

from accounts.models import User
from auditlog.actions import Action
from auditlog.event_context import EventContext, Via, use_context
from auditlog.models import Event
from gatewayadmin.serving.fair_shares import PERSON

SAFE = {"GET", "HEAD", "OPTIONS"}


def note_origin(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Add interface, sender address and request id to events."""

    def middleware(request: HttpRequest) -> HttpResponse:
        scope = getattr(request, "scope", {})
        origin = EventContext(
            _door(request.path), request.META.get("REMOTE_ADDR") or None, scope.get("request_id") or uuid4()
        )
        with use_context(origin):
            return get_response(request)

    return middleware


def _door(path: str) -> Via:
    if path.startswith("/api/"):
        return Via.API
    if path.startswith("/scim/"):
        return Via.SCIM
    return Via.DJANGO_ADMIN if path.startswith("/admin/") else Via.WEB


def note_person(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Report the person of the request to `FairShares`. Place it after the authentication middleware."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if isinstance(request, ASGIRequest) and isinstance(request.user, User):
            cast(dict[str, object], request.scope)[PERSON] = request.user.pk
        return response

    return middleware


def note_refusals(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Record attempts to change something without the required capability. Place it after note_origin."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        missing = getattr(response, "missing", None)
        if missing is not None and request.method not in SAFE and isinstance(request.user, User):
            changes = {"capability": missing.slug, "method": request.method, "path": request.path[:200]}
            Event.objects.record(Action.ATTEMPT_REFUSED, request.user, by=request.user, changes=changes)
        return response

    return middleware
