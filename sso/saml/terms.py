"""The SAML settings of the organisation's sign-in, in addition to those shared with OpenID Connect."""

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
    """The protocol of the identity provider."""

    OIDC = "oidc", "OpenID Connect"
    SAML = "saml", "SAML 2.0"


class NameIdFormat(models.TextChoices):
    """The format of the provider's name for a person. Transient names, which change with each sign-in, are refused."""

    PERSISTENT = "persistent", "Persistent: a name of its own, for us alone"
    EMAIL = "emailAddress", "E-mail address: whoever gets an address after somebody is taken for them"
    UNSPECIFIED = "unspecified", "What the provider chooses"


class Certificate(NamedTuple):
    """A signing certificate of the provider."""

    fingerprint: str
    subject: str
    until: datetime


class SamlTerms(models.Model):
    """Columns for SAML. The metadata in use are `issuer` (the entity ID), `sso_url` and `certificates`."""

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
    # Whether people may start at the provider's own page.
    takes_unsolicited = models.BooleanField(default=False, db_default=False)
    # The private key is stored in the column of the OpenID Connect client secret.
    signs_requests = models.BooleanField(default=False, db_default=False)
    own_certificate = models.TextField(blank=True, default="", db_default="", editable=False)
    # Whether assertions may be encrypted with one of our DecryptionKeys.
    takes_encrypted = models.BooleanField(default=False, db_default=False)

    class Meta:
        abstract = True

    @property
    def speaks_saml(self) -> bool:
        return self.protocol == Protocol.SAML

    @property
    def signing(self) -> list[Certificate]:
        """The provider's signing certificates, for people to compare."""
        return [
            certificate_properties(x509.load_der_x509_certificate(der), der)
            for der in map(base64.b64decode, self.certificates.split())
        ]

    @property
    def metadata_ended(self) -> bool:
        """True if the validUntil of the metadata has passed."""
        return self.metadata_end_at is not None and self.metadata_end_at < timezone.now()

    @property
    def proves_presence(self) -> bool:
        """True if the provider can be made to require a credential.

        In an unsigned SAML request people can remove that requirement in their browser, and providers report the
        current time as the time of sign-in nevertheless.
        """
        return not self.speaks_saml or self.signs_requests

    @property
    def own_fingerprint(self) -> str:
        """The fingerprint of the certificate that signs our requests; empty if they are not signed."""
        return certificate_fingerprint(base64.b64decode(self.own_certificate)) if self.own_certificate else ""

    def saml_terms(self) -> dict[str, Any]:
        """Return the editable settings, for versions and events."""
        names = ["protocol", "metadata_url", "sso_url", "name_id_format", "email_attribute", "name_attribute"]
        names += ["takes_unsolicited", "signs_requests", "takes_encrypted"]
        fingerprints = [each.fingerprint for each in self.signing]
        return {name: getattr(self, name) for name in names} | {"certificates": fingerprints}


def certificate_fingerprint(der: bytes) -> str:
    """Return the SHA-256 fingerprint, as browsers and openssl print it."""
    return hashlib.sha256(der).digest().hex(":").upper()


def certificate_properties(certificate: x509.Certificate, der: bytes) -> Certificate:
    """Return the displayed properties of a certificate."""
    return Certificate(
        certificate_fingerprint(der), certificate.subject.rfc4514_string(), certificate.not_valid_after_utc
    )


def is_installed() -> bool:
    """True if the packages of the extra `saml` are installed."""
    return find_spec("signxml") is not None and find_spec("lxml") is not None


def must_be_installed() -> None:
    """Raise NeedsExtra unless the extra `saml` is installed."""
    if not is_installed():
        raise NeedsExtra(NeedsExtra.__doc__)
