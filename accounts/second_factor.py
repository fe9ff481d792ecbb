"""The second factor: an authenticator app, security keys and recovery codes; secrets are stored encrypted."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import qrcode
from allauth.core import context
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.base.forms import AuthenticateForm, BaseAuthenticateForm, ReauthenticateForm
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.forms import ActivateTOTPForm
from allauth.mfa.totp.internal.auth import SECRET_SESSION_KEY, generate_totp_secret
from allauth.mfa.utils import decrypt, encrypt
from django import forms
from django.core.cache import cache
from django.db import transaction
from django.utils.html import format_html

from accounts import security_keys
from accounts.models import User, WorkspaceSettings
from accounts.rules import SECOND_FACTORS, Grantor
from accounts.sign_in_limits import Tries, try_as, try_code
from auditlog.actions import Action
from auditlog.models import Event
from ui.sealing import Resealed, cipher

SEALED = ("secret", "seed")  # The secrets that allauth stores for an app and for recovery codes.
CODE_LIVES_S = 90  # A code's own 30 seconds, and one interval before and after.


class Adapter(DefaultMFAAdapter):  # type: ignore[misc]
    """Encrypts the second-factor data that allauth stores, together with the id of the encryption key."""

    error_messages: ClassVar[dict[str, Any]] = {
        **DefaultMFAAdapter.error_messages,
        "incorrect_code": "This code is not right, or was used before.",
        "unreadable": "Your second factor cannot be checked: its encryption key is gone. Ask an administrator.",
    }

    def encrypt(self, text: str) -> str:
        return f"{cipher().key_id}:{cipher().seal(text).decode()}"

    def decrypt(self, encrypted_text: str) -> str:
        try:
            return cipher().open(encrypted_text.partition(":")[2].encode())
        except ValueError:
            raise self.validation_error("unreadable") from None

    def get_totp_issuer(self) -> str:
        return WorkspaceSettings.load().name

    def get_public_key_credential_rp_entity(self) -> dict[str, str]:
        return security_keys.relying_party(WorkspaceSettings.load().name)

    def build_totp_svg(self, url: str) -> str:
        """Return the QR code as inline markup: the CSP forbids data: images."""
        code = qrcode.QRCode(border=4)
        code.add_data(url)
        rows = code.get_matrix()
        dark = "".join(f"M{x} {y}h1v1h-1z" for y, row in enumerate(rows) for x, on in enumerate(row) if on)
        return format_html(
            '<svg class="qr" viewBox="0 0 {0} {0}" role="img" aria-label="QR code"><path d="{1}"/></svg>',
            len(rows),
            dark,
        )


class ActivateForm(ActivateTOTPForm):  # type: ignore[misc]
    """Takes the first code of a new authenticator app, whose encrypted secret is in the session until then."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.user = kwargs.pop("user")
        forms.Form.__init__(self, *args, **kwargs)
        _style_code_field(self)
        self.secret = _waiting(fresh=not self.is_bound)


def _waiting(*, fresh: bool) -> str:
    session = context.request.session
    if fresh or SECRET_SESSION_KEY not in session:
        session[SECRET_SESSION_KEY] = encrypt(generate_totp_secret())
    return str(decrypt(session[SECRET_SESSION_KEY]))


def _style_code_field(form: forms.Form) -> None:
    """Set label and input attributes of the code field."""
    form.fields["code"].label = "Code"
    form.fields["code"].widget.attrs = {"autocomplete": "one-time-code", "inputmode": "numeric", "maxlength": 20}


class OnceForm(BaseAuthenticateForm):  # type: ignore[misc]
    """Takes a code of the app or a recovery code; a code is accepted only once while it is valid."""

    def count(self) -> Tries:
        """Count this attempt. Raises TooManyTries."""
        raise NotImplementedError

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _style_code_field(self)

    def clean_code(self) -> str:
        tries = self.count()
        code = str(super().clean_code())
        if not cache.add(f"second-factor:{self.user.pk}:{code}", "used", timeout=CODE_LIVES_S):
            raise Adapter().validation_error("incorrect_code")
        tries.take_back()
        return code


class CodeForm(OnceForm, AuthenticateForm):  # type: ignore[misc]
    """The code at sign-in."""

    def count(self) -> Tries:
        return try_code(context.request, self.user)


class CodeAgainForm(OnceForm, ReauthenticateForm):  # type: ignore[misc]
    """The code as confirmation before a sensitive change."""

    def count(self) -> Tries:
        return try_as(self.user, "code again")


def has_second_factor(person: User) -> bool:
    """True if this person has a second factor: an app or a security key."""
    on: bool = Authenticator.objects.filter(user=person, type__in=SECOND_FACTORS).exists()
    return on


def remove(person: User, *, by: Grantor | None) -> None:
    """Remove the second factor of a person who lost their app or keys, and recovery codes.

    Raises Outranked: it weakens the protection of their account.
    """
    with person.changed_by(by):
        removed, _ = Authenticator.objects.filter(user=person).delete()
        if removed:
            Event.objects.record(Action.SECOND_FACTOR_REMOVED, person, by=by)


def remove_key(person: User, pk: int, *, by: User) -> None:
    """Remove a security key of this person; recovery codes are removed with the last factor.

    Raises Authenticator.DoesNotExist, or LastBreakGlass.
    """
    with person.changed_by(by):
        key = Authenticator.objects.get(user=person, type=Authenticator.Type.WEBAUTHN, pk=pk)
        key.delete()
        rest = Authenticator.objects.filter(user=person)
        if not rest.exclude(type=Authenticator.Type.RECOVERY_CODES).exists():
            rest.delete()
        Event.objects.record(Action.SECOND_FACTOR_REMOVED, person, by=by, changes={"security_key": str(key)})


def rename_key(person: User, pk: int, name: str, *, by: User) -> None:
    """Rename a security key of this person. Raises Authenticator.DoesNotExist."""
    with person.changed_by(by):
        # Locked, because sign-in updates the signature count in the same column.
        key = Authenticator.objects.select_for_update().get(user=person, type=Authenticator.Type.WEBAUTHN, pk=pk)
        before = str(key)
        if name == before:
            return
        key.data["name"] = name
        key.save(update_fields=["data"])
        Event.objects.record(Action.SECURITY_KEY_RENAMED, person, by=by, changes={"security_key": [before, name]})


def second_factor_key_uses() -> Counter[str]:
    """Return the number of secrets by encryption key id."""
    rows = Authenticator.objects.values_list("data", flat=True)
    return Counter(data[name].partition(":")[0] for data in rows for name in SEALED if name in data)


def reseal_second_factors() -> Resealed:
    """Re-encrypt secrets of older keys with the newest, one authenticator at a time."""
    pks = list(Authenticator.objects.order_by("pk").values_list("pk", flat=True))
    results = [result for pk in pks for result in _moved(pk)]
    return Resealed(moved=results.count(True), unreadable=results.count(False))


def _moved(pk: int) -> list[bool]:
    """Re-encrypt this authenticator's secrets with the newest key; return for each if it was readable."""
    newest = f"{cipher().key_id}:"
    results: list[bool] = []
    with transaction.atomic():
        authenticator = Authenticator.objects.select_for_update().filter(pk=pk).first()
        if authenticator is None:
            return results  # Removed in the meantime.
        data = authenticator.data
        for name in (name for name in SEALED if name in data and not data[name].startswith(newest)):
            try:
                data[name] = encrypt(decrypt(data[name]))
            except forms.ValidationError:
                results.append(False)
            else:
                results.append(True)
        if any(results):
            authenticator.save(update_fields=["data"])
    return results
