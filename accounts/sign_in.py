"""The forms of sign-in and password reset."""

from typing import Any

from allauth.account.forms import (
    ChangePasswordForm,
    LoginForm,
    ReauthenticateForm,
    ResetPasswordForm,
    ResetPasswordKeyForm,
)
from django.contrib.auth.hashers import make_password
from django.forms import BooleanField, Form

from accounts.adapter import store_password
from accounts.sign_in_limits import Tries


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
