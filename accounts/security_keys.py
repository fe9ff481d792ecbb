"""Security keys and passkeys as a second factor (WebAuthn), besides the authenticator app.

allauth stores the rows and requests signatures from browsers. The responses are verified here: only the exact origin of
the public URL is accepted, and a copied key is detected by its signature count (WebAuthn section 6.1.1).
"""

from __future__ import annotations

import struct
from typing import Any
from urllib.parse import urlsplit

import orjson
from allauth.core import context
from allauth.mfa.models import Authenticator
from allauth.mfa.webauthn.forms import AuthenticateWebAuthnForm
from allauth.mfa.webauthn.internal.auth import STATE_SESSION_KEY, get_credentials
from cryptography.exceptions import UnsupportedAlgorithm
from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from fido2.cose import CoseKey
from fido2.server import Fido2Server
from fido2.utils import websafe_encode
from fido2.webauthn import AuthenticationResponse, PublicKeyCredentialRpEntity, RegistrationResponse

from accounts.models import User
from accounts.sign_in_limits import Tries, try_as, try_code
from auditlog.actions import Action
from auditlog.models import Event
from wire.hosts import is_address

MOST_KEYS = 10  # Per person.
LONGEST_CREDENTIAL = 16 * 1024
NOT_READ = "Nothing was read from a security key. It takes a browser with script."
REFUSED = "This security key is not known here, or it took too long. Try again."
# What fido2 raises on malformed input, which it does not validate first.
MALFORMED = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError),
    *(NotImplementedError, RecursionError, ArithmeticError, UnsupportedAlgorithm, struct.error),
)


def is_offered() -> bool:
    """True if browsers offer WebAuthn here: under a host name, over TLS or on localhost."""
    url = urlsplit(settings.PUBLIC_URL)
    host = url.hostname or ""
    return (url.scheme == "https" and not is_address(host)) or host == "localhost"


def relying_party(name: str) -> dict[str, str]:
    """Return the relying party: the host of the public URL, whatever the request's host."""
    return {"id": urlsplit(settings.PUBLIC_URL).hostname or "", "name": name}


def _server() -> Fido2Server:
    url = urlsplit(settings.PUBLIC_URL)
    port = "" if url.port in (None, {"http": 80, "https": 443}.get(url.scheme)) else f":{url.port}"
    origin = f"{url.scheme}://{url.hostname}{port}"  # As formatted by browsers.
    # By default fido2 also accepts subdomains.
    return Fido2Server(PublicKeyCredentialRpEntity(**relying_party("")), verify_origin=lambda said: said == origin)


def keys_of(person: User) -> list[Any]:
    """Return this person's keys, oldest first."""
    return list(Authenticator.objects.filter(user=person, type=Authenticator.Type.WEBAUTHN).order_by("pk"))


def new_key_data(credential: dict[str, Any]) -> dict[str, Any]:
    """Return a new key's data to store if it answers the session's challenge. Raises ValidationError."""
    state = context.request.session.pop(STATE_SESSION_KEY, None)
    try:
        response = RegistrationResponse.from_dict(credential)
        made = _server().register_complete(state, response).credential_data
        if made is None or made.credential_id != response.raw_id:
            raise ValueError("It goes by another name than it was made with.")
        if made.public_key.ALGORITHM not in CoseKey.supported_algorithms():
            raise ValueError("Nobody asked for this algorithm.")
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
    except MALFORMED:
        raise ValidationError(REFUSED) from None


def is_taken(credential: dict[str, Any]) -> bool:
    """True if anybody has added this key already."""
    rows = Authenticator.objects.filter(type=Authenticator.Type.WEBAUTHN)
    return bool(rows.filter(data__credential__rawId=credential["rawId"]).exists())


def verified_key(person: User, credential: dict[str, Any]) -> Authenticator:
    """Return the person's key that signed the session's challenge. Raises ValidationError.

    A key whose signature count did not grow is refused too: it was copied, and either copy may be the thief's.
    """
    state = context.request.session.pop(STATE_SESSION_KEY, None)
    try:
        response = AuthenticationResponse.from_dict(credential)
        _server().authenticate_complete(state, get_credentials(person), response)
    except MALFORMED:
        raise ValidationError(REFUSED) from None
    with transaction.atomic():
        rows = Authenticator.objects.select_for_update().filter(user=person, type=Authenticator.Type.WEBAUTHN)
        key = rows.filter(data__credential__rawId=websafe_encode(response.raw_id)).first()
        is_one = key is not None and _takes(key, response.response.authenticator_data.counter)
        if key and not is_one:
            Event.objects.record(Action.SIGN_IN_REFUSED, person, by=None, changes={"security_key": str(key)})
    if not is_one:
        raise ValidationError(REFUSED)
    return key


def _takes(key: Any, count: int) -> bool:
    """Store the new signature count; return False if it did not grow. Keys without a counter always send 0."""
    before = key.data.get("sign_count", key.wrap().authenticator_data.counter)
    if (before or count) and count <= before:
        return False
    key.data["sign_count"] = count
    key.save(update_fields=["data"])
    return True


# --- Forms ------------------------------------------------------------------------------------------------------------


class CredentialField(forms.CharField):
    """The browser's WebAuthn response as JSON, in a field filled by script."""

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
    """The name of a key."""

    name = forms.CharField(max_length=60, help_text="To tell it from others, as “Blue key” or “Laptop”.")


class AddKeyForm(KeyNameForm):
    """The name of a new key, and its WebAuthn response."""

    credential = CredentialField()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.user = kwargs.pop("user")
        super().__init__(*args, **kwargs)

    def clean_credential(self) -> dict[str, Any]:
        return new_key_data(self.cleaned_data["credential"])


class SecurityKeyForm(AuthenticateWebAuthnForm):  # type: ignore[misc]
    """The key at sign-in."""

    credential = CredentialField()

    def count(self) -> Tries:
        """Count this attempt. Raises TooManyTries."""
        return try_code(context.request, self.user)

    def clean_credential(self) -> Authenticator:
        tries = self.count()
        key = verified_key(self.user, self.cleaned_data["credential"])
        tries.take_back()
        return key


class KeyAgainForm(SecurityKeyForm):
    """The key as confirmation before a sensitive change."""

    reauthenticated = True

    def count(self) -> Tries:
        return try_as(self.user, "code again")
