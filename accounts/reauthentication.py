"""Password confirmation before sensitive operations: a form on pages, a refusal in the API."""

import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from allauth.account.internal.flows.reauthentication import is_reauthentication_required
from allauth.core.exceptions import ReauthenticationRequired
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from accounts.adapter import SIGNED_IN_AT, confirms_there
from ui.operations import operation_of

type View = Callable[..., HttpResponse]


def ask_again(view: View) -> View:
    """Looking is free. A form that is sent is held until it is confirmed, and sent again then (accounts.held_forms)."""
    return _asking(view, free=("GET",))


def ask_first(view: View) -> View:
    """For forms with much to fill in, and nothing to look at: the password is asked for before they open.

    Who took longer to fill one in than a confirmation lasts is asked again, as by `ask_again`, and loses nothing.
    """
    return _asking(view, free=())


def _asking(view: View, *, free: Sequence[str]) -> View:
    @wraps(view)
    def asking(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.method not in free and must_ask_again(request):
            raise ReauthenticationRequired
        return view(request, *args, **kwargs)

    return asking


def must_ask_again(request: Any) -> bool:
    """Whether the password was not typed just now, nor, by who has none here, at the organisation."""
    if is_reauthentication_required(request, app=""):
        return True
    age = time.time() - request.session.get(SIGNED_IN_AT, 0)
    return not 0 <= age < settings.ACCOUNT_REAUTHENTICATION_TIMEOUT and confirms_there(request.user)


def confirm_first(request: Request) -> None:
    """Raise PermissionDenied unless the password was typed just now, or an API key acts, which has none."""
    if not getattr(request.auth, "is_api_key", False) and must_ask_again(request):
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
