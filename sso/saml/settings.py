"""The settings that only SAML has, and their validation. `sso.models` has the settings for both protocols.

Metadata are fetched, and keys are created, before `Provider.edit` locks the row of the settings.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from cryptography import x509
from django.conf import settings
from django.db import models
from django.urls import reverse
from django.utils import timezone

from servers.oauth_client.discovery import Http
from servers.upstream_guard import upstream_guard
from sso.errors import BadPasted, BadProviderUrl, BadSamlMetadata, NeedsExtra, SamlHasNoSecret
from sso.saml.keys import Certificate, DecryptionKey, certificate_fingerprint, certificate_properties, make_key
from wire.guard import UrlRefused
from wire.oauth_client import MOST_BYTES, is_https
from wire.outbound import NoAnswer

if TYPE_CHECKING:
    from sso.models import Provider

LONGEST_ATTRIBUTE = 200
ACCEPT = {"Accept": "application/samlmetadata+xml, application/xml, text/xml"}
# The SAML settings that decide which person a sign-in belongs to. They are part of sso.models.TERMS.
SAML_TERMS = (
    *("protocol", "metadata_url", "sso_url", "name_id_format", "email_attribute", "name_attribute"),
    *("takes_unsolicited", "signs_requests", "takes_encrypted"),
)
NOTHING_READ: dict[str, Any] = {"sso_url": "", "certificates": "", "metadata_read_at": None, "metadata_end_at": None}
# Values of the SAML columns while OpenID Connect is used.
NO_SAML = NOTHING_READ | {"metadata_url": "", "signs_requests": False, "own_certificate": "", "takes_encrypted": False}


class Protocol(models.TextChoices):
    """The protocol of the identity provider."""

    OIDC = "oidc", "OpenID Connect"
    SAML = "saml", "SAML 2.0"


class NameIdFormat(models.TextChoices):
    """The format of the provider's name for a person. Transient names, which change with each sign-in, are refused."""

    PERSISTENT = "persistent", "Persistent: an id for this workspace only"
    EMAIL = "emailAddress", "E-mail address: a reused address takes over the account"
    UNSPECIFIED = "unspecified", "What the provider chooses"


NAME_ID_FORMATS = {
    NameIdFormat.PERSISTENT: "urn:oasis:names:tc:SAML:2.0:nameid-format:persistent",
    NameIdFormat.EMAIL: "urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress",
}


def _attribute(label: str, usual: str) -> models.CharField[str, str]:
    """Return a model field for the name of a SAML attribute that the provider sends."""
    return models.CharField(
        label,
        max_length=LONGEST_ATTRIBUTE,
        blank=True,
        default=usual,
        db_default=usual,
        help_text="Name or friendly name of the attribute (SAML).",
    )


class SamlSettings(models.Model):
    """Columns for SAML. The provider's metadata give `issuer` (the entity ID), `sso_url` and `certificates`."""

    protocol = models.CharField(
        max_length=4,
        choices=Protocol,
        default=Protocol.OIDC,
        db_default=Protocol.OIDC,
        help_text="Protocol of the provider.",
    )
    metadata_url = models.CharField(
        "address of its metadata",
        max_length=500,
        blank=True,
        default="",
        db_default="",
        help_text=(
            "The gateway reads the metadata when you save a new address. If the metadata are older than an hour at a "
            "sign-in, the gateway reads them again, to pick up new certificates."
        ),
    )
    metadata_read_at = models.DateTimeField(null=True, editable=False, help_text="When the metadata were last read.")
    metadata_end_at = models.DateTimeField(null=True, editable=False)  # The validUntil of the metadata.
    sso_url = models.CharField(
        max_length=1000,
        blank=True,
        default="",
        db_default="",
        editable=False,
        help_text="Sign-in address from the metadata (SAML).",
    )
    certificates = models.TextField(blank=True, default="", db_default="", editable=False)  # Base64 of DER, one a line.
    name_id_format = models.CharField(
        "name format of people (NameID)",
        max_length=12,
        choices=NameIdFormat,
        default=NameIdFormat.PERSISTENT,
        db_default=NameIdFormat.PERSISTENT,
        help_text="Format of the provider's name for a person (SAML).",
    )
    email_attribute = _attribute("attribute with the e-mail", "email")
    name_attribute = _attribute("attribute with the name", "displayName")
    takes_unsolicited = models.BooleanField(
        "let people start at the provider",
        default=False,
        db_default=False,
        help_text="People press a tile on the provider's page, and confirm the sign-in at this gateway.",
    )
    # The private key is stored in the column of the OpenID Connect client secret.
    signs_requests = models.BooleanField(
        "sign our requests",
        default=False,
        db_default=False,
        help_text=(
            "The certificate is in our metadata. People can confirm sensitive changes at the provider only if our "
            "requests are signed. If you enable this, set the provider to refuse unsigned requests. If you disable "
            "this and later enable it again, a new key is created."
        ),
    )
    own_certificate = models.TextField(blank=True, default="", db_default="", editable=False)
    takes_encrypted = models.BooleanField(
        "take encrypted assertions",
        default=False,
        db_default=False,
        help_text="Our metadata contain the certificate. The provider must sign assertions before encrypting them.",
    )

    class Meta:
        abstract = True

    @property
    def speaks_saml(self) -> bool:
        return self.protocol == Protocol.SAML

    @property
    def signing(self) -> list[Certificate]:
        """The properties of the provider's signing certificates, such as the fingerprints."""
        ders = map(base64.b64decode, self.certificates.split())
        return [certificate_properties(x509.load_der_x509_certificate(der), der) for der in ders]

    @property
    def metadata_ended(self) -> bool:
        """True if the validUntil of the metadata has passed."""
        return self.metadata_end_at is not None and self.metadata_end_at < timezone.now()

    @property
    def proves_presence(self) -> bool:
        """True if a sign-in can prove that the provider has just asked the person for a credential."""
        # In their browser, people can remove the requirement of a credential from an unsigned SAML request. The
        # provider then continues an open session, but may still report the current time as the time of sign-in.
        return not self.speaks_saml or self.signs_requests

    @property
    def own_fingerprint(self) -> str:
        """The fingerprint of the certificate of the key that signs our requests; empty if requests are not signed."""
        return certificate_fingerprint(base64.b64decode(self.own_certificate)) if self.own_certificate else ""

    @property
    def decryption_key(self) -> str:
        """The fingerprint of the key for encrypted assertions; empty if there is none."""
        newest = DecryptionKey.newest() if self.speaks_saml else None
        return newest.fingerprint if newest else ""


def entity_id() -> str:
    """Return our entity ID: the URL of our metadata."""
    return f"{settings.PUBLIC_URL}{reverse('sso:saml_metadata')}"


def consumer_url() -> str:
    """Return the URL where browsers post the provider's answers (Assertion Consumer Service)."""
    return f"{settings.PUBLIC_URL}{reverse('sso:saml_consumer')}"


def is_installed() -> bool:
    """True if the packages of the extra `saml` are installed."""
    return find_spec("signxml") is not None and find_spec("lxml") is not None


def must_be_installed() -> None:
    """Raise NeedsExtra unless the extra `saml` is installed."""
    if not is_installed():
        raise NeedsExtra(NeedsExtra.__doc__)


# --- Settings that somebody entered -----------------------------------------------------------------------------------


def changes_metadata(present: Provider, fields: Mapping[str, Any]) -> bool:
    """True if these fields change the source of the metadata."""
    return bool(fields.get("metadata_xml")) or fields.get("metadata_url", present.metadata_url) != present.metadata_url


def with_dependent_settings(
    present: Provider, fields: dict[str, Any], secret: str
) -> tuple[dict[str, Any], str, tuple[str, str] | None]:
    """Complete `fields` with the settings that depend on these fields. Raises ProviderError.

    Returns three values: the completed fields, the secret to encrypt, and a pair of a new decryption key and its
    certificate. The pair is None if no key was created. The dictionary `fields` is changed too.
    """
    pasted = str(fields.pop("metadata_xml", "") or "").strip()
    wants_new_key = fields.pop("new_decryption_key", False)
    if fields.get("protocol", present.protocol) == Protocol.SAML:
        fields = _for_saml(present, fields, secret, pasted)
        return *_with_signing_key(present, fields), _decryption_key(present, fields, is_asked=wants_new_key)
    if pasted or fields.get("metadata_url"):
        raise BadSamlMetadata("Metadata are for SAML only. Choose SAML as the protocol.")
    if present.speaks_saml:
        fields = {"issuer": "", "client_id": ""} | fields | NO_SAML
    if issuer := str(fields.get("issuer", "")).strip():
        fields |= {"private": is_private(issuer, BadProviderUrl)}
        if "?" in issuer or "#" in issuer:
            raise BadProviderUrl("An issuer must not have a query or a fragment.")
    return fields, secret, None


def _for_saml(present: Provider, fields: dict[str, Any], secret: str, pasted: str) -> dict[str, Any]:
    if secret:
        raise SamlHasNoSecret(SamlHasNoSecret.__doc__)
    if fields.get("issuer", present.issuer) != present.issuer:
        raise BadProviderUrl("With SAML the issuer is the entity ID in the metadata.")
    if not present.speaks_saml:
        must_be_installed()
        fields |= NOTHING_READ | {"issuer": "", "signs_out_there": False}
    url = str(fields.get("metadata_url", present.metadata_url)).strip()
    if pasted and url:
        raise BadSamlMetadata("Enter the URL of the metadata or paste the metadata, but not both.")
    if pasted:
        try:
            fields |= read_metadata(pasted.encode())
        except BadSamlMetadata as fault:
            raise BadPasted(str(fault)) from None
    elif url and (url != present.metadata_url or not (present.speaks_saml and present.certificates)):
        private = is_private(url, BadSamlMetadata)
        fields |= {"private": private} | fetch_metadata(url, private=private)
    return fields | {"client_id": entity_id()}


def _with_signing_key(present: Provider, fields: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return a pair: the fields, and a new signing key.

    The key is "" if requests are not signed, or if a signing key exists already.
    """
    if not fields.get("signs_requests", present.signs_requests):
        return fields | {"own_certificate": ""}, ""
    if present.speaks_saml and present.signs_requests and present.has_secret and present.own_certificate:
        return fields, ""
    key, certificate = make_key()
    return fields | {"own_certificate": certificate}, key


def _decryption_key(present: Provider, fields: dict[str, Any], *, is_asked: bool) -> tuple[str, str] | None:
    """Return a new key for encrypted assertions, or None.

    A key is created if encrypted assertions are enabled, and if either `is_asked` is True or no key exists yet.
    """
    if not fields.get("takes_encrypted", present.takes_encrypted):
        return None
    return make_key() if is_asked or not present.decryption_key else None


def is_private(url: str, error: type[BadProviderUrl | BadSamlMetadata]) -> bool:
    """True if this URL of the provider resolves to a private address. Raises `error` if the URL may not be called."""
    try:
        return upstream_guard().check_now(url)
    except UrlRefused as refusal:
        raise error(str(refusal)) from None


def fetch_metadata(url: str, *, private: bool) -> dict[str, Any]:
    """Fetch metadata, and return them as fields of the row. Raises BadSamlMetadata."""
    try:
        answered = Http(private=private, entered=[url]).get(url, ACCEPT)
    except NoAnswer as error:
        raise BadSamlMetadata(f"{url} {error}.") from None
    if answered.status != 200:
        raise BadSamlMetadata(f"{url} answered {answered.status}.")
    return read_metadata(answered.body)


def read_metadata(document: bytes) -> dict[str, Any]:
    """Parse metadata, and return them as fields of the row. Raises BadSamlMetadata."""
    must_be_installed()
    if len(document) > MOST_BYTES:
        raise BadSamlMetadata(f"The metadata are larger than {MOST_BYTES >> 10} KiB.")
    from sso.saml.documents import parse_saml_metadata  # noqa: PLC0415  (the optional packages)

    said = parse_saml_metadata(document)
    # Browsers, not the gateway, have to reach the sign-in URL. A URL without TLS must be at a private address.
    url, plain = said.sso_url, said.sso_url.startswith("http://")
    if len(url) > 1000 or "#" in url or not is_https(url, like="http://" if plain else ""):
        raise BadSamlMetadata("The metadata have no usable sign-in URL (SingleSignOnService).")
    if plain and not is_private(url, BadSamlMetadata):
        raise BadSamlMetadata(f"The provider's sign-in URL has no TLS: {url}. It must begin with https.")
    return {
        "issuer": said.entity_id,
        "sso_url": url,
        "certificates": "\n".join(said.certificates),
        "metadata_read_at": timezone.now(),
        "metadata_end_at": said.valid_until,
    }
