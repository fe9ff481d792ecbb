"""A software security key, which responds as the browser would."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, field
from hashlib import sha256
from html import unescape
from typing import Any

from allauth.mfa.models import Authenticator
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from django.conf import settings
from fido2.cose import ES256
from fido2.utils import websafe_encode
from fido2.webauthn import AttestationObject, AttestedCredentialData, AuthenticatorData

from accounts.models import User

FLAG = AuthenticatorData.FLAG


def options_of(page: str) -> dict[str, Any]:
    """Return the WebAuthn options in the form of this page."""
    found = re.search(r'data-options="([^"]*)"', page)
    assert found, page
    public: dict[str, Any] = json.loads(unescape(found[1]))["publicKey"]
    return public


@dataclass
class SoftKey:
    """One WebAuthn credential. Each response increases the signature counter by `counts`; 0 means no counter."""

    counts: int = 1
    origin: str = field(default_factory=lambda: settings.PUBLIC_URL)
    host: str = "localhost"
    count: int = 0
    identifier: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    private: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def create(self, page: str, **changed: Any) -> str:
        """Return the browser's response to a page that adds a key."""
        data, told = self._said(page, "webauthn.create", changed), self._count()
        public = ES256.from_cryptography_key(self.private.public_key())  # type: ignore[no-untyped-call]
        credential = AttestedCredentialData.create(bytes(16), self.identifier, public)
        authenticator = AuthenticatorData.create(self._rp(), FLAG.UP | FLAG.AT, told, credential)
        attestation = AttestationObject.create("none", authenticator, {})
        return self._answer({"attestationObject": websafe_encode(attestation)}, data)

    def get(self, page: str, **changed: Any) -> str:
        """Return the browser's response to a page that asks for a key."""
        data = self._said(page, "webauthn.get", changed)
        authenticator = AuthenticatorData.create(self._rp(), FLAG.UP, self._count())
        signature = self.private.sign(authenticator + sha256(data).digest(), ec.ECDSA(hashes.SHA256()))
        said = {"authenticatorData": websafe_encode(authenticator), "signature": websafe_encode(signature)}
        return self._answer(said, data)

    def _said(self, page: str, kind: str, changed: dict[str, Any]) -> bytes:
        said = {"type": kind, "challenge": options_of(page)["challenge"], "origin": self.origin, "crossOrigin": False}
        return json.dumps(said | changed).encode()

    def _count(self) -> int:
        self.count += self.counts
        return self.count

    def _rp(self) -> bytes:
        return sha256(self.host.encode()).digest()

    def _answer(self, response: dict[str, str], data: bytes) -> str:
        identifier = websafe_encode(self.identifier)
        return json.dumps(
            {
                "id": identifier,
                "rawId": identifier,
                "type": "public-key",
                "authenticatorAttachment": "cross-platform",
                "clientExtensionResults": {},
                "response": response | {"clientDataJSON": websafe_encode(data)},
            }
        )


def added(person: User, name: str = "Blue key") -> Any:
    """Create a security key of this person directly in the database, and return its row."""
    page = 'data-options="{&quot;publicKey&quot;: {&quot;challenge&quot;: &quot;AA&quot;}}"'
    data = {"name": name, "credential": json.loads(SoftKey().create(page))}
    return Authenticator.objects.create(user=person, type=Authenticator.Type.WEBAUTHN, data=data)
