"""How sign-in behaves: nobody signs up, and a refusal never tells why."""

from typing import Any, ClassVar

from allauth.account.adapter import DefaultAccountAdapter
from django.http import HttpRequest


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
