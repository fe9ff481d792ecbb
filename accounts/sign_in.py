"""Sign-in with a password: allauth's adapter and forms, and the confirmation of sensitive changes."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import wraps
from typing import Any, ClassVar

from allauth.account.adapter import DefaultAccountAdapter
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
from django.contrib import messages
from django.contrib.auth import logout
from django.contrib.auth.hashers import make_password
from django.forms import BooleanField, Form
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone
from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from accounts.models import User, WorkspaceSettings
from accounts.password_links import mail_reset_soon
from accounts.queues import for_a_stranger
from accounts.second_factor import has_second_factor
from accounts.sign_in_limits import TooManyTries, Tries, is_first_this_minute, remember_browser, try_password
from auditlog.actions import Action
from auditlog.models import Event
from sso.enforcement import (
    SIGN_IN_THERE,
    came_too_late,
    forget_organisation,
    note_sign_in,
    sign_in_there,
)
from ui.operations import operation_of

# --- Adapter ----------------------------------------------------------------------------------------------------------


# Session key: the time when the person last signed in here, or last authenticated at the identity provider.
SIGNED_IN_AT = "signed_in_at"


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]
    """allauth adapter without sign-up. Wrong e-mails, wrong passwords and deactivated accounts give the same error."""

    error_messages: ClassVar[dict[str, Any]] = {
        **DefaultAccountAdapter.error_messages,
        "email_password_mismatch": "The e-mail or the password is wrong.",
        "account_inactive": "The e-mail or the password is wrong.",
        "sign_in_there": SIGN_IN_THERE,
    }

    def is_safe_url(self, url: Any) -> bool:
        try:
            return bool(super().is_safe_url(url))
        except ValueError:  # Raised for invalid URLs such as `//[`.
            return False

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def set_password(self, user: User, password: str) -> None:
        store_password(user, make_password(password))

    def authenticate(self, request: HttpRequest, **credentials: Any) -> User | None:
        """Return the person with this e-mail and password, or None.

        Raises TooManyTries or HashingBusy. Raises ValidationError if the person must sign in at the organisation.
        """
        email = str(credentials.get("email", ""))
        tries = _try(request, email)
        with nullcontext() if tries.is_known else for_a_stranger():
            person: User | None = super().authenticate(request, **credentials)
        # The password is checked first, and all refusals are the same. Otherwise anybody could find out who the
        # break-glass owners are.
        if sign_in_there(email) and not (person and person.break_glass and has_second_factor(person)):
            raise self.validation_error("sign_in_there")
        if person:
            tries.take_back()
            forget_organisation(request)
        return person

    def reauthenticate(self, user: User, password: str) -> bool:
        """True if this is the signed-in user's password. Unlike `authenticate`, this method counts no attempt."""
        return user.check_password(password)

    def get_reauthentication_methods(self, user: User) -> list[dict[str, Any]]:
        """Return the methods by which the user can confirm a change.

        If the user has neither a password nor a second factor here, but signs in at the identity provider, the only
        method is a confirmation at the provider.
        """
        methods: list[dict[str, Any]] = super().get_reauthentication_methods(user)
        return methods or ([{"id": "organisation", "url": reverse("sso:confirm")}] if confirms_there(user) else [])

    def post_login(self, request: HttpRequest, user: User, **kwargs: Any) -> HttpResponse:
        response: HttpResponse = super().post_login(request, user, **kwargs)
        if came_too_late(request, user):
            logout(request)
            messages.error(request, SIGN_IN_THERE)
            return redirect("account_login")
        remember_browser(request, response, user)
        request.session[SIGNED_IN_AT] = time.time()
        note_sign_in(request, user)
        return response

    def respond_user_inactive(self, request: HttpRequest, user: User) -> HttpResponse:
        """Redirect a deactivated user to the sign-in page, which does not reveal that the user is deactivated."""
        return redirect("account_login")

    def is_reauthentication_required(self, *, app: str, **kwargs: Any) -> bool:
        """True if the person must re-authenticate. A recent sign-in (SIGNED_IN_AT) counts as re-authentication."""
        age = time.time() - self.request.session.get(SIGNED_IN_AT, 0)
        required: bool = super().is_reauthentication_required(app=app, **kwargs)
        return required and not 0 <= age < settings.ACCOUNT_REAUTHENTICATION_TIMEOUT


def confirms_there(user: User) -> bool:
    """True if the person signs in at the identity provider and has neither a password nor a second factor here."""
    return user.by_organisation and not user.has_usable_password() and not has_second_factor(user)


def store_password(user: User, encoded: str) -> None:
    """Save `encoded`, a password hash, as the user's password."""
    user.password, user.password_changed_at = encoded, timezone.now()
    # Save only these columns, because an administrator may be deactivating this person at the same time.
    user.save(update_fields=["password", "password_changed_at"])


def _try(request: HttpRequest, email: str) -> Tries:
    try:
        return try_password(request, email)
    except TooManyTries:
        _note_burst(request, email)
        raise


def _note_burst(request: HttpRequest, email: str) -> None:
    """Record, at most once a minute per client address, that attempts to sign in were refused."""
    if is_first_this_minute(request, "sign-in refused"):
        person = User.objects.filter(email=email.lower()).first()
        changes = {"email": email[:254]}
        Event.objects.record(Action.SIGN_IN_REFUSED, person or WorkspaceSettings.load(), by=None, changes=changes)


# --- Forms ------------------------------------------------------------------------------------------------------------


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

    def save(self, request: HttpRequest, **kwargs: Any) -> str:
        for person in self.users:
            mail_reset_soon(person)
        return str(self.cleaned_data["email"])


class HashedInTime(Form):
    """Form that hashes the new password during validation, so that no transaction waits for the hash."""

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if not self.errors:
            self.encoded = make_password(cleaned["password1"])
        return cleaned

    def save(self) -> None:
        store_password(self.user, self.encoded)  # type: ignore[attr-defined]  # The forms that use this class have a user.


class NewPasswordForm(HashedInTime, ResetPasswordKeyForm):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        relabel(self, password1="New password", password2="New password, again")


class ConfirmPasswordForm(ReauthenticateForm):  # type: ignore[misc]
    """The form for the password that confirms a sensitive change."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        relabel(self, password="Password")  # noqa: S106  (a label)
        self.fields["password"].help_text = ""


class OtherPasswordForm(HashedInTime, ChangePasswordForm):  # type: ignore[misc]
    revoke = BooleanField(
        label="Also revoke my API tokens and connections",
        required=False,
        help_text="This also revokes your API keys.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        relabel(self, oldpassword="Current password", password1="New password", password2="New password, again")


# --- Confirmation before sensitive changes: a form on pages, a refusal in the API -------------------------------------

type View = Callable[..., HttpResponse]


def ask_again(view: View) -> View:
    """Require confirmation when a form is submitted; accounts.held_forms stores the form, then resubmits it."""
    return _asking(view, free=("GET",))


def ask_first(view: View) -> View:
    """Require confirmation as soon as the page is opened, not only when its form is submitted.

    Meant for pages with a long form and nothing else to read.
    """
    # A form submitted after the confirmation expired is stored as with `ask_again`.
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
    """Raise PermissionDenied if the person has not re-authenticated recently. API keys are exempt."""
    if not getattr(request.auth, "is_api_key", False) and must_ask_again(request):
        raise PermissionDenied("Confirm your password first: POST /api/me/confirm.", code="password_required")


class RecentPassword(BasePermission):
    """Refuses operations declared with `reauth=True` if the person has not re-authenticated recently.

    API keys are exempt, because their creators re-authenticated and chose the capabilities.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        declared = operation_of(view, view.action)
        if declared and declared.reauth:
            confirm_first(request)
        return True
