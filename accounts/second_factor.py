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

SEALED = ("secret", "seed")  # What allauth stores of an app, and of recovery codes.
CODE_LIVES_S = 90  # Its own half minute, and one before and after it.


class Adapter(DefaultMFAAdapter):  # type: ignore[misc]
    """Encrypts the second-factor data that allauth stores, and stores the id of the key with it."""

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
        """The QR code as markup for the page itself: the CSP lets no data: image in."""
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
    """Takes the first code of a new authenticator app; until then its secret is in the session, encrypted."""

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
    """Takes a code of the app, or a recovery code, once for as long as it is right."""

    def count(self) -> Tries:
        """Count this try. Raises TooManyTries."""
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
    """The code asked for when signing in."""

    def count(self) -> Tries:
        return try_code(context.request, self.user)


class CodeAgainForm(OnceForm, ReauthenticateForm):  # type: ignore[misc]
    """The code as confirmation before a sensitive change."""

    def count(self) -> Tries:
        return try_as(self.user, "code again")


def is_on(person: User) -> bool:
    """Whether this person signs in with a code or a key too."""
    on: bool = Authenticator.objects.filter(user=person, type__in=SECOND_FACTORS).exists()
    return on


def remove(person: User, *, by: Grantor | None) -> None:
    """Remove the second factor of a person who lost app or keys, and recovery codes.

    Raises Outranked: it weakens the protection of their account.
    """
    with person.changed_by(by):
        removed, _ = Authenticator.objects.filter(user=person).delete()
        if removed:
            Event.objects.record(Action.SECOND_FACTOR_REMOVED, person, by=by)


def remove_key(person: User, pk: int, *, by: User) -> None:
    """Remove a security key of this person; recovery codes go with the last thing they stand in for.

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
    """Give a security key of this person another name. Raises Authenticator.DoesNotExist."""
    with person.changed_by(by):
        # Signing in with it counts in the same column.
        key = Authenticator.objects.select_for_update().get(user=person, type=Authenticator.Type.WEBAUTHN, pk=pk)
        before = str(key)
        if name == before:
            return
        key.data["name"] = name
        key.save(update_fields=["data"])
        Event.objects.record(Action.SECURITY_KEY_RENAMED, person, by=by, changes={"security_key": [before, name]})


def key_uses() -> Counter[str]:
    """How many secrets each encryption key holds, by the key's id."""
    rows = Authenticator.objects.values_list("data", flat=True)
    return Counter(data[name].partition(":")[0] for data in rows for name in SEALED if name in data)


def reseal() -> Resealed:
    """Seal with the newest key what an older one holds, one authenticator after the other."""
    pks = list(Authenticator.objects.order_by("pk").values_list("pk", flat=True))
    results = [result for pk in pks for result in _moved(pk)]
    return Resealed(moved=results.count(True), unreadable=results.count(False))


def _moved(pk: int) -> list[bool]:
    """Whether each secret of this authenticator that an older key holds could be moved."""
    newest = f"{cipher().key_id}:"
    results: list[bool] = []
    with transaction.atomic():
        authenticator = Authenticator.objects.select_for_update().filter(pk=pk).first()
        if authenticator is None:
            return results  # Taken off since we looked.
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
