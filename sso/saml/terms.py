"""What the settings of the sign-in hold for SAML, beside what OpenID Connect has as well."""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime
from importlib.util import find_spec
from typing import Any, NamedTuple

from cryptography import x509
from django.db import models
from django.utils import timezone

from sso.errors import NeedsExtra

LONGEST_ATTRIBUTE = 200


class Protocol(models.TextChoices):
    """How the identity provider and we speak."""

    OIDC = "oidc", "OpenID Connect"
    SAML = "saml", "SAML 2.0"


class NameIdFormat(models.TextChoices):
    """What the provider calls a person by. What changes from one sign-in to the next (transient) is never taken."""

    PERSISTENT = "persistent", "Persistent: a name of its own, for us alone"
    EMAIL = "emailAddress", "E-mail address: whoever gets an address after somebody is taken for them"
    UNSPECIFIED = "unspecified", "What the provider chooses"


class Certificate(NamedTuple):
    """A certificate that the provider signs with."""

    fingerprint: str
    subject: str
    until: datetime


class SamlTerms(models.Model):
    """The columns of it. What the provider says of itself, in its metadata, is in `issuer` (its entity ID), `sso_url`
    and `certificates`; nothing else of the metadata is kept."""

    protocol = models.CharField(max_length=4, choices=Protocol, default=Protocol.OIDC, db_default=Protocol.OIDC)
    metadata_url = models.CharField(max_length=500, blank=True, default="", db_default="")
    metadata_read_at = models.DateTimeField(null=True, editable=False)
    metadata_end_at = models.DateTimeField(null=True, editable=False)  # Their validUntil.
    sso_url = models.CharField(max_length=1000, blank=True, default="", db_default="", editable=False)
    certificates = models.TextField(blank=True, default="", db_default="", editable=False)  # Base64 of DER, one a line.
    name_id_format = models.CharField(
        max_length=12, choices=NameIdFormat, default=NameIdFormat.PERSISTENT, db_default=NameIdFormat.PERSISTENT
    )
    email_attribute = models.CharField(max_length=LONGEST_ATTRIBUTE, blank=True, default="email", db_default="email")
    name_attribute = models.CharField(
        max_length=LONGEST_ATTRIBUTE, blank=True, default="displayName", db_default="displayName"
    )
    # Whether somebody may come from the provider's own page, without having begun here.
    takes_unsolicited = models.BooleanField(default=False, db_default=False)
    # The private key is sealed where the client secret of OpenID Connect is.
    signs_requests = models.BooleanField(default=False, db_default=False)
    own_certificate = models.TextField(blank=True, default="", db_default="", editable=False)
    # Whether assertions may be encrypted, for one of our DecryptionKeys.
    takes_encrypted = models.BooleanField(default=False, db_default=False)

    class Meta:
        abstract = True

    @property
    def speaks_saml(self) -> bool:
        return self.protocol == Protocol.SAML

    @property
    def signing(self) -> list[Certificate]:
        """The certificates that the provider signs with, for people to compare."""
        return [
            shown(x509.load_der_x509_certificate(der), der) for der in map(base64.b64decode, self.certificates.split())
        ]

    @property
    def metadata_ended(self) -> bool:
        """Whether what was read was said to be valid until a moment that has passed."""
        return self.metadata_end_at is not None and self.metadata_end_at < timezone.now()

    @property
    def proves_presence(self) -> bool:
        """Whether the provider can be had ask for a credential. Whoever sits at the browser takes that out of a request
        of SAML that nobody signed, and providers name the present as the time of a sign-in all the same."""
        return not self.speaks_saml or self.signs_requests

    @property
    def own_fingerprint(self) -> str:
        """Of the certificate that our requests are signed with; empty when they are not."""
        return fingerprint(base64.b64decode(self.own_certificate)) if self.own_certificate else ""

    def saml_terms(self) -> dict[str, Any]:
        """What of it can be edited, as versions and events have it."""
        names = ["protocol", "metadata_url", "sso_url", "name_id_format", "email_attribute", "name_attribute"]
        names += ["takes_unsolicited", "signs_requests", "takes_encrypted"]
        fingerprints = [each.fingerprint for each in self.signing]
        return {name: getattr(self, name) for name in names} | {"certificates": fingerprints}


def fingerprint(der: bytes) -> str:
    """SHA-256, as browsers and openssl print it."""
    return hashlib.sha256(der).digest().hex(":").upper()


def shown(certificate: x509.Certificate, der: bytes) -> Certificate:
    """What is shown of this one."""
    return Certificate(fingerprint(der), certificate.subject.rfc4514_string(), certificate.not_valid_after_utc)


def is_installed() -> bool:
    """Whether the packages of the extra `saml` are here."""
    return find_spec("signxml") is not None and find_spec("lxml") is not None


def must_be_installed() -> None:
    """Raise NeedsExtra unless they are."""
    if not is_installed():
        raise NeedsExtra(NeedsExtra.__doc__)
