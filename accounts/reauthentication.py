"""Password confirmation before sensitive operations: a form on pages, a refusal in the API."""

from collections.abc import Callable
from typing import Any

from allauth.account.decorators import reauthentication_required
from allauth.account.internal.flows.reauthentication import is_reauthentication_required
from django.http import HttpRequest, HttpResponse
from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from ui.operations import operation_of

type View = Callable[..., HttpResponse]

# Looking is free. A form that is sent waits in the session for the password, and is acted on once that is right.
ask_again: Callable[[View], View] = reauthentication_required(allow_get=True)


def must_ask_again(request: HttpRequest) -> bool:
    """Whether the password was not typed just now."""
    return bool(is_reauthentication_required(request, app=""))


def confirm_first(request: Request) -> None:
    """Raise PermissionDenied unless the password was typed just now, or an API key acts, which has none."""
    if not getattr(request.auth, "is_api_key", False) and is_reauthentication_required(request, app=""):
        raise PermissionDenied("Confirm your password first: POST /api/me/confirm.", code="password_required")


class RecentPassword(BasePermission):
    """Refuses the operations declared with `reauth=True` unless the password was typed again just now.

    An API key has no password to type: what it may do was chosen, and confirmed, when it was made.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        declared = operation_of(view, view.action)
        if declared and declared.reauth:
            confirm_first(request)
        return True
