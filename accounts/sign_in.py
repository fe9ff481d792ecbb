"""The forms of sign-in and password reset, in this product's words."""

from typing import Any

from allauth.account.forms import (
    ChangePasswordForm,
    LoginForm,
    ReauthenticateForm,
    ResetPasswordForm,
    ResetPasswordKeyForm,
)
from django.forms import BooleanField, Form


def _relabel(form: Form, **labels: str) -> None:
    """Give fields our labels, and take allauth's placeholders and help away."""
    for name, label in labels.items():
        if name in form.fields:
            form.fields[name].label = label
            form.fields[name].widget.attrs.pop("placeholder", None)


class SignInForm(LoginForm):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _relabel(self, login="E-mail", password="Password", remember="Keep me signed in on this device")  # noqa: S106  (a label)
        self.fields["login"].widget.attrs["autocomplete"] = "username"
        self.fields["password"].help_text = ""


class ForgottenForm(ResetPasswordForm):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _relabel(self, email="E-mail")


class NewPasswordForm(ResetPasswordKeyForm):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _relabel(self, password1="New password", password2="New password, again")


class AgainForm(ReauthenticateForm):  # type: ignore[misc]
    """The password asked for again before something grave."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _relabel(self, password="Password")  # noqa: S106  (a label)
        self.fields["password"].help_text = ""


class OtherPasswordForm(ChangePasswordForm):  # type: ignore[misc]
    revoke = BooleanField(
        label="Also revoke my API tokens and connections",
        required=False,
        help_text="Your API keys are revoked with them.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _relabel(self, oldpassword="Current password", password1="New password", password2="New password, again")
