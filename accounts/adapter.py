"""How sign-in behaves: nobody signs up, and a refusal never tells why."""

from typing import Any, ClassVar

from allauth.account.adapter import DefaultAccountAdapter
from django.core.cache import cache
from django.core.exceptions import ValidationError
from django.http import HttpRequest

from accounts.links import link_at
from accounts.models import User, WorkspaceSettings
from auditlog.actions import Action
from auditlog.models import Event

BURST_S = 60


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]
    """People are invited; wrong e-mail, wrong password and deactivated read the same."""

    error_messages: ClassVar[dict[str, Any]] = {
        **DefaultAccountAdapter.error_messages,
        "email_password_mismatch": "The e-mail or the password is not right.",
        "account_inactive": "The e-mail or the password is not right.",
        "too_many_login_attempts": "Too many failed attempts. Wait a few minutes, then try again.",
    }

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def set_password(self, user: User, password: str) -> None:
        user.set_password(password)
        # Not the whole row: an administrator may be deactivating this person right now.
        user.save(update_fields=["password", "password_changed_at"])

    def get_reset_password_from_key_url(self, key: str) -> str:
        return link_at(key)

    def pre_authenticate(self, request: HttpRequest, **credentials: Any) -> None:
        try:
            super().pre_authenticate(request, **credentials)
        except ValidationError:
            _note_burst(self.get_client_ip(request), str(credentials.get("email", "")))
            raise


def _note_burst(ip: str, email: str) -> None:
    """Record that somebody guesses passwords, once a minute for each address they do it from."""
    if cache.add(f"sign-in-refused:{ip}", "noted", timeout=BURST_S):
        person = User.objects.filter(email=email.lower()).first()
        told = {"email": email[:254]}
        Event.objects.record(Action.SIGN_IN_REFUSED, person or WorkspaceSettings.load(), by=None, changes=told)
