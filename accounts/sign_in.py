"""The forms of sign-in and password reset."""

import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from allauth.account.forms import (
    ChangePasswordForm,
    LoginForm,
    ReauthenticateForm,
    ResetPasswordForm,
    ResetPasswordKeyForm,
)
from allauth.account.internal.flows.reauthentication import is_reauthentication_required
from allauth.core.exceptions import ReauthenticationRequired
from django.conf import settings
from django.contrib.auth.hashers import make_password
from django.forms import BooleanField, Form
from django.http import HttpRequest, HttpResponse
from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from accounts.adapter import SIGNED_IN_AT, confirms_there, store_password
from accounts.sign_in_limits import Tries
from ui.operations import operation_of


def relabel(form: Form, **labels: str) -> None:
    """Set field labels, and remove allauth's placeholders."""
    for name, label in labels.items():
        if name in form.fields:
            form.fields[name].label = label
            form.fields[name].widget.attrs.pop("placeholder", None)


class SignInForm(LoginForm):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        relabel(self, login="E-mail", password="Password", remember="Keep me signed in on this device")  # noqa: S106  (a label)
        self.fields["login"].widget.attrs["autocomplete"] = "username"
        self.fields["password"].help_text = ""


class ForgottenForm(ResetPasswordForm):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        relabel(self, email="E-mail")

    def clean_email(self) -> str:
        Tries().count("reset, for one account", self.cleaned_data["email"].strip().lower())
        return str(super().clean_email())


class HashedInTime(Form):
    """A new password, hashed during validation: saving may run in a transaction, which must not wait for a hash."""

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if not self.errors:
            self.encoded = make_password(cleaned["password1"])
        return cleaned

    def save(self) -> None:
        store_password(self.user, self.encoded)  # type: ignore[attr-defined]  # Both forms below have one.


class NewPasswordForm(HashedInTime, ResetPasswordKeyForm):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        relabel(self, password1="New password", password2="New password, again")


class ConfirmPasswordForm(ReauthenticateForm):  # type: ignore[misc]
    """The password as confirmation before a sensitive change."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        relabel(self, password="Password")  # noqa: S106  (a label)
        self.fields["password"].help_text = ""


class OtherPasswordForm(HashedInTime, ChangePasswordForm):  # type: ignore[misc]
    revoke = BooleanField(
        label="Also revoke my API tokens and connections",
        required=False,
        help_text="Your API keys are revoked with them.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        relabel(self, oldpassword="Current password", password1="New password", password2="New password, again")


# Password confirmation before sensitive operations: a form on pages, a refusal in the API.

type View = Callable[..., HttpResponse]


def ask_again(view: View) -> View:
    """Require confirmation for submitted forms, which are held and resubmitted afterwards (accounts.held_forms)."""
    return _asking(view, free=("GET",))


def ask_first(view: View) -> View:
    """Require confirmation before a form opens; for long forms that show nothing to read.

    A person who takes longer to fill one in than a confirmation lasts is asked again, as in `ask_again`, and loses
    nothing.
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
    """True if the person has not re-authenticated recently, here or at the identity provider."""
    if is_reauthentication_required(request, app=""):
        return True
    age = time.time() - request.session.get(SIGNED_IN_AT, 0)
    return not 0 <= age < settings.ACCOUNT_REAUTHENTICATION_TIMEOUT and confirms_there(request.user)


def confirm_first(request: Request) -> None:
    """Raise PermissionDenied unless the person confirmed recently, or an API key acts, which has no password."""
    if not getattr(request.auth, "is_api_key", False) and must_ask_again(request):
        raise PermissionDenied("Confirm your password first: POST /api/me/confirm.", code="password_required")


class RecentPassword(BasePermission):
    """Refuses operations declared with `reauth=True` unless the person confirmed recently.

    API keys are exempt: their capabilities were chosen, and confirmed, when the key was created.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        declared = operation_of(view, view.action)
        if declared and declared.reauth:
            confirm_first(request)
        return True
