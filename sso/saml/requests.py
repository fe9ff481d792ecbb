"""Messages we send: the sign-in request (HTTP-Redirect binding), and our own metadata."""

from __future__ import annotations

import base64
import zlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from django.conf import settings
from django.urls import reverse
from django.utils.html import escape

from sso.saml import own_key
from sso.saml.terms import NameIdFormat

if TYPE_CHECKING:
    from sso.models import Provider

POST = "urn:oasis:names:tc:SAML:2.0:bindings:HTTP-POST"
# The strongest supported ciphers (decryption.CIPHERS); for key wrapping, the most widely supported first.
ENCRYPTED_WITH = (
    "http://www.w3.org/2009/xmlenc11#aes256-gcm",
    "http://www.w3.org/2009/xmlenc11#aes128-gcm",
    "http://www.w3.org/2001/04/xmlenc#rsa-oaep-mgf1p",
    "http://www.w3.org/2009/xmlenc11#rsa-oaep",
)
NAME_ID_FORMATS = {
    NameIdFormat.PERSISTENT: "urn:oasis:names:tc:SAML:2.0:nameid-format:persistent",
    NameIdFormat.EMAIL: "urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress",
}


def entity_id() -> str:
    """Return our entity ID: the URL of our metadata."""
    return f"{settings.PUBLIC_URL}{reverse('sso:saml_metadata')}"


def consumer_url() -> str:
    """Return the URL where browsers post the provider's answers (Assertion Consumer Service)."""
    return f"{settings.PUBLIC_URL}{reverse('sso:saml_consumer')}"


def own_metadata(provider: Provider) -> str:
    """Return our metadata, which the provider needs."""
    signing = encryption = wanted = ""
    if provider.own_certificate:
        signing = _key("signing", provider.own_certificate)
    if provider.takes_encrypted and (newest := own_key.DecryptionKey.newest()):
        methods = "".join(f'<md:EncryptionMethod Algorithm="{each}"/>' for each in ENCRYPTED_WITH)
        encryption = _key("encryption", newest.certificate, methods)
    if provider.name_id_format in NAME_ID_FORMATS:
        wanted = f"<md:NameIDFormat>{NAME_ID_FORMATS[NameIdFormat(provider.name_id_format)]}</md:NameIDFormat>"
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<md:EntityDescriptor xmlns:md="urn:oasis:names:tc:SAML:2.0:metadata" entityID="{escape(entity_id())}">'
        f'<md:SPSSODescriptor AuthnRequestsSigned="{str(bool(signing)).lower()}" WantAssertionsSigned="true"'
        ' protocolSupportEnumeration="urn:oasis:names:tc:SAML:2.0:protocol">'
        f"{signing}{encryption}{wanted}"
        f'<md:AssertionConsumerService Binding="{POST}" Location="{escape(consumer_url())}" index="0"'
        ' isDefault="true"/>'
        "</md:SPSSODescriptor></md:EntityDescriptor>\n"
    )


def _key(use: str, certificate: str, methods: str = "") -> str:
    return (
        f'<md:KeyDescriptor use="{use}"><ds:KeyInfo xmlns:ds="http://www.w3.org/2000/09/xmldsig#"><ds:X509Data>'
        f"<ds:X509Certificate>{certificate}</ds:X509Certificate></ds:X509Data></ds:KeyInfo>{methods}</md:KeyDescriptor>"
    )


def sign_in_url(provider: Provider, request_id: str, *, anew: bool) -> str:
    """Return the URL at the provider that signs somebody in and answers this request.

    `anew` requires a credential, even if a session is open there. Raises wire.cipher.Undecryptable.
    """
    wanted = NAME_ID_FORMATS.get(NameIdFormat(provider.name_id_format))
    request = (
        '<samlp:AuthnRequest xmlns:samlp="urn:oasis:names:tc:SAML:2.0:protocol"'
        ' xmlns:saml="urn:oasis:names:tc:SAML:2.0:assertion"'
        f' ID="{request_id}" Version="2.0" IssueInstant="{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"'
        f' Destination="{escape(provider.sso_url)}" ProtocolBinding="{POST}"'
        f' AssertionConsumerServiceURL="{escape(consumer_url())}"{" ForceAuthn='true'" if anew else ""}>'
        f"<saml:Issuer>{escape(entity_id())}</saml:Issuer>"
        f'<samlp:NameIDPolicy AllowCreate="true"{f" Format='{wanted}'" if wanted else ""}/>'
        "</samlp:AuthnRequest>"
    )
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = deflater.compress(request.encode()) + deflater.flush()
    query = urlencode({"SAMLRequest": base64.b64encode(packed).decode()})
    if provider.signs_requests:
        query += "&" + urlencode({"SigAlg": own_key.ALGORITHM})
        query += "&" + urlencode({"Signature": own_key.sign_request(provider.secret, query)})
    return f"{provider.sso_url}{'&' if '?' in provider.sso_url else '?'}{query}"
