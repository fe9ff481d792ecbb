"""allauth's adapter: no public sign-up, and error messages that do not reveal why a sign-in was refused."""

import time
from contextlib import nullcontext
from typing import Any, ClassVar

from allauth.account.adapter import DefaultAccountAdapter
from django.conf import settings
from django.contrib import messages
from django.contrib.auth import logout
from django.contrib.auth.hashers import make_password
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone

from accounts.hashing import for_a_stranger
from accounts.models import User, WorkspaceSettings
from accounts.password_links import invitation_link, link_at
from accounts.second_factor import is_on
from accounts.sign_in_limits import TooManyTries, Tries, is_first_this_minute, remember_browser, try_password
from accounts.strangers import released_while_waiting
from auditlog.actions import Action
from auditlog.models import Event
from sso.enforcement import (
    SIGN_IN_THERE,
    came_too_late,
    forget,
    must_sign_in_there,
    note_sign_in,
    sign_in_there,
)

SIGNED_IN_AT = "signed_in_at"  # In the session: when the password was typed to sign in.


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]
    """People are invited; wrong e-mail, wrong password and deactivated read the same."""

    error_messages: ClassVar[dict[str, Any]] = {
        **DefaultAccountAdapter.error_messages,
        "email_password_mismatch": "The e-mail or the password is not right.",
        "account_inactive": "The e-mail or the password is not right.",
        "sign_in_there": SIGN_IN_THERE,
    }

    def is_safe_url(self, url: Any) -> bool:
        try:
            return bool(super().is_safe_url(url))
        except ValueError:  # As of `//[`, which is no address.
            return False

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        person = context.get("user")
        if isinstance(person, User) and must_sign_in_there(person):
            return  # There is no password for them to choose.
        if isinstance(person, User) and not person.has_usable_password():
            if person.status != "invited":
                return  # Their invitation expired; whoever invited them sends a new one.
            template_prefix = "account/email/invitation"
            context = {"person": person, "link": invitation_link(person), "by": None}
        with released_while_waiting():
            super().send_mail(template_prefix, email, context)

    def set_password(self, user: User, password: str) -> None:
        store_password(user, make_password(password))

    def get_reset_password_from_key_url(self, key: str) -> str:
        return link_at(key)

    def authenticate(self, request: HttpRequest, **credentials: Any) -> User | None:
        """Who signs in with this e-mail and password, if they are right. Raises TooManyTries, or HashingBusy."""
        email = str(credentials.get("email", ""))
        tries = _try(request, email)
        with nullcontext() if tries.is_known else for_a_stranger():
            person: User | None = super().authenticate(request, **credentials)
        # The password is checked all the same, and every refusal reads alike: nobody learns who breaks the glass.
        if sign_in_there(email) and not (person and person.break_glass and is_on(person)):
            raise self.validation_error("sign_in_there")
        if person:
            tries.take_back()
            forget(request)
        return person

    def reauthenticate(self, user: User, password: str) -> bool:
        """Whether this is the password of the signed-in user; counted apart from attempts at sign-in."""
        return user.check_password(password)

    def get_reauthentication_methods(self, user: User) -> list[dict[str, Any]]:
        """Who has neither a password nor a code here confirms at the organisation that it is still them."""
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
        """As everybody else who is refused: to the sign-in page, which does not say why."""
        return redirect("account_login")

    def is_reauthentication_required(self, *, app: str, **kwargs: Any) -> bool:
        """Not within the first minutes after signing in: that was a confirmation too."""
        age = time.time() - self.request.session.get(SIGNED_IN_AT, 0)
        required: bool = super().is_reauthentication_required(app=app, **kwargs)
        return required and not 0 <= age < settings.ACCOUNT_REAUTHENTICATION_TIMEOUT


def confirms_there(user: User) -> bool:
    """Whether only the organisation can be asked who this is: there is neither a password nor a code here."""
    return user.by_organisation and not user.has_usable_password() and not is_on(user)


def store_password(user: User, encoded: str) -> None:
    """Give `user` the password of this hash."""
    user.password, user.password_changed_at = encoded, timezone.now()
    # Not the whole row: an administrator may be deactivating this person right now.
    user.save(update_fields=["password", "password_changed_at"])


def _try(request: HttpRequest, email: str) -> Tries:
    try:
        return try_password(request, email)
    except TooManyTries:
        _note_burst(request, email)
        raise


def _note_burst(request: HttpRequest, email: str) -> None:
    """Record password guessing, once a minute for each sender's address."""
    if is_first_this_minute(request, "sign-in refused"):
        person = User.objects.filter(email=email.lower()).first()
        changes = {"email": email[:254]}
        Event.objects.record(Action.SIGN_IN_REFUSED, person or WorkspaceSettings.load(), by=None, changes=changes)
