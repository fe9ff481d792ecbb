"""What our own middleware adds to every page."""

from collections.abc import Callable
from uuid import uuid4

from django.http import HttpRequest, HttpResponse

from auditlog.origin import Origin, Via, coming_from


def note_origin(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Let events know the door, the sender's address and the id of the request they come from."""

    def middleware(request: HttpRequest) -> HttpResponse:
        scope = getattr(request, "scope", {})
        origin = Origin(
            _door(request.path), request.META.get("REMOTE_ADDR") or None, scope.get("request_id") or uuid4()
        )
        with coming_from(origin):
            return get_response(request)

    return middleware


def _door(path: str) -> Via:
    if path.startswith("/api/"):
        return Via.API
    return Via.DJANGO_ADMIN if path.startswith("/admin/") else Via.WEB
