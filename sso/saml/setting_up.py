"""Validate SAML settings: fetch the metadata and create the signing key before the row is locked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.utils import timezone

from servers.oauth_client.discovery import Http, NoAnswer
from servers.upstream_guard import upstream_guard
from sso.errors import BadPasted, BadProviderUrl, BadSamlMetadata, SamlHasNoSecret
from sso.saml import own_key
from sso.saml.requests import entity_id
from sso.saml.terms import Protocol, must_be_installed
from wire.guard import UrlRefused
from wire.oauth_client import MOST_BYTES, is_https

if TYPE_CHECKING:
    from sso.models import Provider
    from sso.saml.metadata import SamlMetadata

NOTHING_READ: dict[str, Any] = {"sso_url": "", "certificates": "", "metadata_read_at": None, "metadata_end_at": None}
ACCEPT = {"Accept": "application/samlmetadata+xml, application/xml, text/xml"}


def names_metadata(present: Provider, fields: Mapping[str, Any]) -> bool:
    """True if these fields change the source of the metadata."""
    return bool(fields.get("metadata_xml")) or fields.get("metadata_url", present.metadata_url) != present.metadata_url


def prepared(present: Provider, fields: dict[str, Any], secret: str) -> tuple[dict[str, Any], str]:
    """Return the fields with all dependent values, and the secret to encrypt. Raises ProviderError."""
    pasted = str(fields.pop("metadata_xml", "") or "").strip()
    fields = {"new_decryption_key": False} | fields
    if fields.get("protocol", present.protocol) == Protocol.SAML:
        return _for_saml(present, fields, secret, pasted)
    if pasted or fields.get("metadata_url"):
        raise BadSamlMetadata("Metadata belong to SAML. Choose it as the protocol.")
    del fields["new_decryption_key"]
    if present.speaks_saml:
        ends = NOTHING_READ | {"metadata_url": "", "signs_requests": False, "own_certificate": ""}
        ends |= {"takes_encrypted": False}
        fields = {"issuer": "", "client_id": ""} | fields | ends
    issuer = str(fields.get("issuer", "")).strip()
    return (fields | {"private": _issuer_is_private(issuer)} if issuer else fields), secret


def _issuer_is_private(issuer: str) -> bool:
    """True if the issuer's host resolves to a private address. Raises BadProviderUrl."""
    try:
        private = upstream_guard().check_now(issuer)
    except UrlRefused as refusal:
        raise BadProviderUrl(str(refusal)) from None
    if "?" in issuer or "#" in issuer:
        raise BadProviderUrl("An issuer has no query and no fragment.")
    return private


def _for_saml(present: Provider, fields: dict[str, Any], secret: str, pasted: str) -> tuple[dict[str, Any], str]:
    if secret:
        raise SamlHasNoSecret(SamlHasNoSecret.__doc__)
    if fields.get("issuer", present.issuer) != present.issuer:
        raise BadProviderUrl("With SAML the issuer is the entity ID that the metadata name.")
    if not present.speaks_saml:
        must_be_installed()
        fields |= NOTHING_READ | {"issuer": "", "signs_out_there": False}
    url = str(fields.get("metadata_url", present.metadata_url)).strip()
    is_new = not (present.speaks_saml and present.certificates)
    if pasted and url:
        raise BadSamlMetadata("Enter the address of the metadata or paste them, not both.")
    if pasted:
        fields |= _pasted(pasted)
    elif url and (is_new or url != present.metadata_url):
        private = may_be_at(url)
        fields |= {"private": private} | fetch_provider(url, private=private)
    fields |= {"decryption_pair": _decryption_pair(present, fields)}
    return _with_key(present, fields | {"client_id": entity_id()})


def _decryption_pair(present: Provider, fields: dict[str, Any]) -> tuple[str, str] | None:
    """Return a new key for encrypted assertions if they were just enabled, or if one was requested; otherwise None."""
    is_asked = fields.pop("new_decryption_key", False)
    if not fields.get("takes_encrypted", present.takes_encrypted):
        return None
    return own_key.make() if is_asked or not present.speaks_saml or own_key.DecryptionKey.newest() is None else None


def _pasted(text: str) -> dict[str, Any]:
    try:
        return parse_provider(text.encode())
    except BadSamlMetadata as fault:
        raise BadPasted(str(fault)) from None


def _with_key(present: Provider, fields: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Add a signing key if requests are to be signed and there is none; remove it if not."""
    if not fields.get("signs_requests", present.signs_requests):
        return fields | {"own_certificate": ""}, ""
    if present.speaks_saml and present.signs_requests and present.has_secret and present.own_certificate:
        return fields, ""
    key, certificate = own_key.make()
    return fields | {"own_certificate": certificate}, key


def may_be_at(url: str) -> bool:
    """True if this metadata URL resolves to a private address. Raises BadSamlMetadata."""
    try:
        return upstream_guard().check_now(url)
    except UrlRefused as refusal:
        raise BadSamlMetadata(str(refusal)) from None


def fetch_provider(url: str, *, private: bool) -> dict[str, Any]:
    """Fetch metadata, and return them as fields of the row. Raises BadSamlMetadata."""
    try:
        answered = Http(private=private, entered=[url]).get(url, ACCEPT)
    except NoAnswer as error:
        raise BadSamlMetadata(f"{url} {error}.") from None
    if answered.status != 200:
        raise BadSamlMetadata(f"{url} answered {answered.status}.")
    return parse_provider(answered.body)


def parse_provider(document: bytes) -> dict[str, Any]:
    """Parse metadata, and return them as fields of the row. Raises BadSamlMetadata."""
    must_be_installed()
    if len(document) > MOST_BYTES:
        raise BadSamlMetadata(f"The metadata are larger than {MOST_BYTES >> 10} KiB.")
    from sso.saml import metadata  # noqa: PLC0415  (the optional packages)

    said: SamlMetadata = metadata.parse_saml_metadata(document)
    _must_lead_somewhere(said.sso_url)
    return {
        "issuer": said.entity_id,
        "sso_url": said.sso_url,
        "certificates": "\n".join(said.certificates),
        "metadata_read_at": timezone.now(),
        "metadata_end_at": said.valid_until,
    }


def _must_lead_somewhere(url: str) -> None:
    """Check the sign-in URL. It need not be reachable from here, only from browsers; without TLS it must be private."""
    plain = url.startswith("http://")
    if len(url) > 1000 or "#" in url or not is_https(url, like="http://" if plain else ""):
        raise BadSamlMetadata("The metadata name no usable address where people sign in (SingleSignOnService).")
    if plain and not may_be_at(url):
        raise BadSamlMetadata(f"People would sign in without TLS at {url}.")
