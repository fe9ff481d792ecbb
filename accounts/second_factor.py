"""The second factor: an authenticator app, security keys and recovery codes; secrets are stored encrypted."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar
from urllib.parse import urlsplit

import orjson
import qrcode
from allauth.core import context
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.base.forms import AuthenticateForm, BaseAuthenticateForm, ReauthenticateForm
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.forms import ActivateTOTPForm
from allauth.mfa.totp.internal.auth import SECRET_SESSION_KEY, generate_totp_secret
from allauth.mfa.utils import decrypt, encrypt
from allauth.mfa.webauthn.forms import AuthenticateWebAuthnForm
from allauth.mfa.webauthn.internal.auth import STATE_SESSION_KEY, get_credentials
from django import forms
from django.conf import settings
from django.core.cache import cache
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils.html import format_html
from fido2.cose import CoseKey
from fido2.server import Fido2Server
from fido2.utils import websafe_encode
from fido2.webauthn import AuthenticationResponse, PublicKeyCredentialRpEntity, RegistrationResponse

from accounts.models import User, WorkspaceSettings
from accounts.rules import SECOND_FACTORS, Grantor
from accounts.sign_in_limits import Tries, try_as, try_code
from auditlog.actions import Action
from auditlog.models import Event
from ui.sealing import Resealed, cipher
from wire.hosts import is_address

SEALED = ("secret", "seed")  # The secrets that allauth stores for an app and for recovery codes.
CODE_LIVES_S = 90  # A code is valid in its own interval of 30 seconds, in the one before and in the one after.


class Adapter(DefaultMFAAdapter):  # type: ignore[misc]
    """Encrypts the secrets that allauth stores. Each stored secret begins with the id of its encryption key."""

    error_messages: ClassVar[dict[str, Any]] = {
        **DefaultMFAAdapter.error_messages,
        "incorrect_code": "This code is wrong, or was used before.",
        "unreadable": "Your second factor cannot be checked: its encryption key is missing. Ask an administrator.",
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
        return relying_party(WorkspaceSettings.load().name)

    def build_totp_svg(self, url: str) -> str:
        """Return the QR code as inline SVG, because the CSP forbids images with `data:` URLs."""
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
    """Checks the first code of a new authenticator app.

    Until a code is correct, only the session keeps the app's encrypted secret.
    """

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
    """Base of forms that take a code of the authenticator app or a recovery code; each code is accepted only once."""

    def count(self) -> Tries:
        """Count this attempt, and return the counters that counted it. Raises TooManyTries."""
        raise NotImplementedError

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _style_code_field(self)

    def clean_code(self) -> str:
        tries = self.count()
        code = str(super().clean_code())
        spelled = "".join(filter(str.isalnum, code)).upper()  # allauth accepts blanks and punctuation in a code.
        if not cache.add(f"second-factor:{self.user.pk}:{spelled}", "used", timeout=CODE_LIVES_S):
            raise Adapter().validation_error("incorrect_code")
        tries.take_back()
        return code


class CodeForm(OnceForm, AuthenticateForm):  # type: ignore[misc]
    """The form for the code at sign-in."""

    def count(self) -> Tries:
        return try_code(context.request, self.user)


class CodeAgainForm(OnceForm, ReauthenticateForm):  # type: ignore[misc]
    """The form for the code that confirms a sensitive change."""

    def count(self) -> Tries:
        return try_as(self.user, "code again")


def has_second_factor(person: User) -> bool:
    """True if this person has a second factor: an authenticator app or a security key."""
    on: bool = Authenticator.objects.filter(user=person, type__in=SECOND_FACTORS).exists()
    return on


def with_second_factor(people: QuerySet[User]) -> QuerySet[User]:
    """Annotate each person with `second_factor`, the result of `has_second_factor`. One query serves all people."""
    factors = Authenticator.objects.filter(user=OuterRef("pk"), type__in=SECOND_FACTORS)
    return people.annotate(second_factor=Exists(factors))


def remove(person: User, *, by: Grantor | None) -> None:
    """Remove the authenticator app, security keys and recovery codes of a person who lost their second factor.

    Raises Outranked or LastBreakGlass (see `User.changed_by`).
    """
    # `gives_access`, because the account is less protected afterwards.
    with person.changed_by(by, gives_access=True):
        removed, _ = Authenticator.objects.filter(user=person).delete()
        if removed:
            Event.objects.record(Action.SECOND_FACTOR_REMOVED, person, by=by)


def remove_key(person: User, pk: int, *, by: User) -> None:
    """Remove a security key of this person. If no app or key is left, the recovery codes are removed too.

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
        # Lock the row, because sign-in updates the signature count in the same column.
        key = Authenticator.objects.select_for_update().get(user=person, type=Authenticator.Type.WEBAUTHN, pk=pk)
        before = str(key)
        if name == before:
            return
        key.data["name"] = name
        key.save(update_fields=["data"])
        Event.objects.record(Action.SECURITY_KEY_RENAMED, person, by=by, changes={"security_key": [before, name]})


def second_factor_key_uses() -> Counter[str]:
    """Return the number of second-factor secrets encrypted with each encryption key, by the key's id."""
    rows = Authenticator.objects.values_list("data", flat=True)
    return Counter(data[name].partition(":")[0] for data in rows for name in SEALED if name in data)


def reseal_second_factors() -> Resealed:
    """Find all second-factor secrets that use older encryption keys, and re-encrypt these secrets with the newest key.

    Each authenticator is re-encrypted in a transaction of its own.
    """
    pks = list(Authenticator.objects.order_by("pk").values_list("pk", flat=True))
    results = [result for pk in pks for result in _moved(pk)]
    return Resealed(moved=results.count(True), unreadable=results.count(False))


def _moved(pk: int) -> list[bool]:
    """Re-encrypt this authenticator's secrets with the newest encryption key.

    For each secret that used an older key, the returned list has one value: True if the secret was re-encrypted, or
    False if it could not be decrypted.
    """
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


# --- Security keys and passkeys (WebAuthn) ----------------------------------------------------------------------------
#
# allauth stores the rows, and asks browsers for signatures. The responses are verified here: only the exact origin of
# the public URL is accepted, and a copied key is detected by its signature count (WebAuthn section 6.1.1).

MOST_KEYS = 10  # Per person.
LONGEST_CREDENTIAL = 16 * 1024
NOT_READ = "The browser did not read a security key. JavaScript is required."
REFUSED = "The security key could not be verified. It may be unknown, or the request may have expired. Try again."


def is_offered() -> bool:
    """True if browsers support WebAuthn at the public URL: with https and a host name, or at localhost."""
    url = urlsplit(settings.PUBLIC_URL)
    host = url.hostname or ""
    return (url.scheme == "https" and not is_address(host)) or host == "localhost"


def relying_party(name: str) -> dict[str, str]:
    """Return the WebAuthn relying party. Its id is the host name of the public URL, not of the request."""
    return {"id": urlsplit(settings.PUBLIC_URL).hostname or "", "name": name}


def _server() -> Fido2Server:
    url = urlsplit(settings.PUBLIC_URL)
    port = "" if url.port in (None, {"http": 80, "https": 443}.get(url.scheme)) else f":{url.port}"
    origin = f"{url.scheme}://{url.hostname}{port}"  # In the format that browsers send.
    # By default fido2 also accepts subdomains.
    return Fido2Server(PublicKeyCredentialRpEntity(**relying_party("")), verify_origin=lambda said: said == origin)


def keys_of(person: User) -> list[Any]:
    """Return this person's security keys, oldest first."""
    return list(Authenticator.objects.filter(user=person, type=Authenticator.Type.WEBAUTHN).order_by("pk"))


def new_key_data(credential: dict[str, Any]) -> dict[str, Any]:
    """Return the data to store for a new key.

    Raises ValidationError if `credential` is not a valid answer to the challenge stored in the session.
    """
    state = context.request.session.pop(STATE_SESSION_KEY, None)
    try:
        response = RegistrationResponse.from_dict(credential)
        made = _server().register_complete(state, response).credential_data
        if made is None or made.credential_id != response.raw_id:
            raise ValueError("The key was registered under another id.")
        if made.public_key.ALGORITHM not in CoseKey.supported_algorithms():
            raise ValueError("This algorithm was not requested.")
        kept = response.response
        identifier = websafe_encode(response.raw_id)
        return {
            "type": "public-key",
            "id": identifier,
            "rawId": identifier,
            "response": {
                "clientDataJSON": websafe_encode(kept.client_data),
                "attestationObject": websafe_encode(kept.attestation_object),
            },
            "clientExtensionResults": {},
        }
    except Exception:  # noqa: BLE001  (fido2 does not validate its input first)
        raise ValidationError(REFUSED) from None


def is_taken(credential: dict[str, Any]) -> bool:
    """True if anybody has added this security key already. `credential` is the data that is stored for the key."""
    rows = Authenticator.objects.filter(type=Authenticator.Type.WEBAUTHN)
    return bool(rows.filter(data__credential__rawId=credential["rawId"]).exists())


def verified_key(person: User, credential: dict[str, Any]) -> Authenticator:
    """Return the person's key that signed the session's challenge. Raises ValidationError."""
    state, own = context.request.session.pop(STATE_SESSION_KEY, None), get_credentials(person)
    try:
        response = AuthenticationResponse.from_dict(credential)
        _server().authenticate_complete(state, own, response)
    except Exception:  # noqa: BLE001  (fido2 does not validate its input first)
        raise ValidationError(REFUSED) from None
    with transaction.atomic():
        rows = Authenticator.objects.select_for_update().filter(user=person, type=Authenticator.Type.WEBAUTHN)
        key = rows.filter(data__credential__rawId=websafe_encode(response.raw_id)).first()
        # A key whose signature count did not grow is refused: it may be a copy that a thief uses.
        is_one = key is not None and _takes(key, response.response.authenticator_data.counter)
        if key and not is_one:
            Event.objects.record(Action.SIGN_IN_REFUSED, person, by=None, changes={"security_key": str(key)})
    if not is_one:
        raise ValidationError(REFUSED)
    return key


def _takes(key: Any, count: int) -> bool:
    """Store the key's new signature count, and return True. Return False if the count did not grow."""
    before = key.data.get("sign_count", key.wrap().authenticator_data.counter)
    if (before or count) and count <= before:  # A key without a counter always sends 0.
        return False
    key.data["sign_count"] = count
    key.save(update_fields=["data"])
    return True


# --- Forms ------------------------------------------------------------------------------------------------------------


class CredentialField(forms.CharField):
    """Hidden field that a script fills with the browser's WebAuthn response as JSON."""

    widget = forms.HiddenInput

    def __init__(self) -> None:
        super().__init__(max_length=LONGEST_CREDENTIAL, error_messages={"required": NOT_READ, "max_length": REFUSED})

    def clean(self, value: Any) -> dict[str, Any]:
        try:
            found = orjson.loads(super().clean(value))
        except orjson.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            raise ValidationError(REFUSED)
        return found


class KeyNameForm(forms.Form):
    """The form for the name of a security key."""

    name = forms.CharField(max_length=60, help_text="Such as “Blue key” or “Laptop”, so that you recognise the key.")


class AddKeyForm(KeyNameForm):
    """The form for a new key: its name, and the browser's WebAuthn response."""

    credential = CredentialField()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.user = kwargs.pop("user")
        super().__init__(*args, **kwargs)

    def clean_credential(self) -> dict[str, Any]:
        return new_key_data(self.cleaned_data["credential"])


class SecurityKeyForm(AuthenticateWebAuthnForm):  # type: ignore[misc]
    """The form for the security key at sign-in."""

    credential = CredentialField()

    def count(self) -> Tries:
        """Count this attempt, and return the counters that counted it. Raises TooManyTries."""
        return try_code(context.request, self.user)

    def clean_credential(self) -> Authenticator:
        tries = self.count()
        key = verified_key(self.user, self.cleaned_data["credential"])
        tries.take_back()
        return key


class KeyAgainForm(SecurityKeyForm):
    """The form for the security key that confirms a sensitive change."""

    reauthenticated = True

    def count(self) -> Tries:
        return try_as(self.user, "code again")
