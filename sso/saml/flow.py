"""Sign-in at the organisation with SAML: the request (HTTP-Redirect binding), the answer, and our own metadata.

A page of the provider posts the answer to us as a cross-site form, so the browser sends no session cookie
(SameSite=Lax). We therefore store the claims under a ticket, and forward the browser to another page of ours. There the
browser sends the cookie, and the page checks that the session started the request.
"""

from __future__ import annotations

import base64
import secrets
import time
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import escape

from sso.errors import CHANGED, NeedsExtra, ProviderError, ResponseRefused
from sso.flow import (
    CONFIRM,
    LOGIN,
    PendingSignIn,
    email_of,
    groups_of,
    is_true,
    leads_on,
    line_of,
    start_sign_in,
    take_pending_sign_in,
)
from sso.models import METADATA_AGE, Claims, DecryptionKey, Provider, ReceivedAssertion
from sso.saml.keys import ALGORITHM, sign_request
from sso.saml.settings import NAME_ID_FORMATS, NameIdFormat, consumer_url, entity_id, is_installed, must_be_installed
from ui.pages import own_path
from wire.cipher import Undecryptable

POST = "urn:oasis:names:tc:SAML:2.0:bindings:HTTP-POST"
# Our metadata offer these methods of encryption: two ciphers, of which the first is stronger, and two methods of key
# wrapping, of which the first is more widely supported. The module `responses` lists all methods that are accepted.
ENCRYPTED_WITH = (
    "http://www.w3.org/2009/xmlenc11#aes256-gcm",
    "http://www.w3.org/2009/xmlenc11#aes128-gcm",
    "http://www.w3.org/2001/04/xmlenc#rsa-oaep-mgf1p",
    "http://www.w3.org/2009/xmlenc11#rsa-oaep",
)
UNKNOWN_SIGNATURE = timedelta(minutes=1)  # If no certificate fits a signature, older metadata are read again.
VERIFIED = "email_verified"  # An attribute with the name of the OpenID Connect claim: SAML has no standard attribute.
NEW_KEY = "Disable and enable “Sign our requests” to make a new one."
# Microsoft Entra sends this attribute instead of the groups of people who are in more than 150 groups.
TOO_MANY = "http://schemas.microsoft.com/claims/groups.link"


# --- Our requests and metadata ----------------------------------------------------------------------------------------


def begin_saml(request: HttpRequest, provider: Provider, *, act: str, onward: str) -> HttpResponse:
    """Start a sign-in and return a page that forwards to the provider. Raises ProviderError."""
    must_be_installed()
    provider = provider.with_metadata_of(METADATA_AGE)
    request_id = f"_{secrets.token_hex(20)}"
    try:
        url = sign_in_url(provider, request_id, anew=act == CONFIRM)
    except Undecryptable:
        raise ProviderError(f"The key that signs requests cannot be decrypted. {NEW_KEY}") from None
    except (TypeError, ValueError):
        raise ProviderError(f"There is no usable key to sign requests with. {NEW_KEY}") from None
    start_sign_in(request, provider, request_id, act=act, onward=onward)
    return leads_on(request, provider, url)


def sign_in_url(provider: Provider, request_id: str, *, anew: bool) -> str:
    """Return the provider's sign-in URL with our request.

    With `anew`, the provider must ask for a credential even if the person has an open session there.

    Raises wire.cipher.Undecryptable if the signing key cannot be decrypted. Raises ValueError or TypeError if the
    signing key is unusable.
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
    packed = zlib.compress(request.encode(), wbits=-zlib.MAX_WBITS)
    query = urlencode({"SAMLRequest": base64.b64encode(packed).decode()})
    if provider.signs_requests:
        query += "&" + urlencode({"SigAlg": ALGORITHM})
        query += "&" + urlencode({"Signature": sign_request(provider.secret, query)})
    return f"{provider.sso_url}{'&' if '?' in provider.sso_url else '?'}{query}"


def own_metadata(provider: Provider) -> str:
    """Return our metadata as XML, for setting up the provider."""
    signing = encryption = wanted = ""
    if provider.own_certificate:
        signing = _key("signing", provider.own_certificate)
    if provider.takes_encrypted and (newest := DecryptionKey.newest()):
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


# --- The provider's answers -------------------------------------------------------------------------------------------


def receive(provider: Provider, encoded: str, relay_state: str) -> str:
    """Verify an answer, store its claims, and return the ticket for them. Raises ResponseRefused."""
    if not is_installed():
        raise ResponseRefused("not_installed", str(NeedsExtra.__doc__))
    said, provider = _read(provider, encoded)
    if not said.in_response_to and not provider.takes_unsolicited:
        raise ResponseRefused("not_asked_for", "The sign-in began at the provider. The settings do not allow this.")
    who = _claims(provider, said)
    kept = {
        "answers": said.in_response_to,
        "onward": relay_state[:2000],
        "claims": who._asdict() | {"groups": None if who.groups is None else sorted(who.groups)},
        "terms": provider.terms_digest,
    }
    ticket = ReceivedAssertion.keep(provider.issuer, said.assertion_id, kept)
    if not ticket:
        raise ResponseRefused("used_before", "The same assertion was used before.")
    return ticket


def _read(provider: Provider, encoded: str) -> tuple[Any, Provider]:
    """Return the verified content of an answer, and the provider with its current metadata.

    Raises ResponseRefused.
    """
    from sso.saml.responses import Expected, verify_response  # noqa: PLC0415  (the optional packages)

    def verify(by: Provider) -> Any:
        keys = DecryptionKey.opening if by.takes_encrypted else None
        return verify_response(encoded, Expected(by.issuer, entity_id(), consumer_url(), by.certificates.split(), keys))

    said = refusal = None
    try:
        said = verify(provider)
    except ResponseRefused as fault:
        if fault.reason != "wrong_signature":
            raise
        refusal = fault
    # `begin_saml` re-reads old metadata too, but does not run if the person started at the provider. If no certificate
    # fits the signature, the provider may have a new certificate.
    fresh = provider.with_metadata_of(UNKNOWN_SIGNATURE if refusal else METADATA_AGE)
    if fresh.certificates != provider.certificates:
        return verify(fresh), fresh
    if refusal is not None:
        raise refusal
    return said, fresh


def unasked(provider: Provider, ticket: str) -> Claims | None:
    """Return the claims of the unsolicited answer with this ticket, or None.

    An answer is unsolicited if the person started at the provider, so that no request was sent. Return None if there
    is no unsolicited answer with this ticket, or if the settings do not allow unsolicited answers.
    """
    kept: Any = ReceivedAssertion.look(ticket) if provider.takes_unsolicited else None
    return None if kept is None or kept["answers"] else _claims_of(kept)


def _claims_of(kept: Any) -> Claims:
    groups = kept["claims"]["groups"]
    return Claims(**kept["claims"] | {"groups": None if groups is None else frozenset(groups)})


def finish_saml(request: HttpRequest, provider: Provider, ticket: str) -> tuple[PendingSignIn, Claims]:
    """Return the started sign-in and the claims. Raises ResponseRefused."""
    kept: Any = ReceivedAssertion.take(ticket)
    if kept is None:
        raise ResponseRefused("used_before", "The answer was used before, or was not used within 15 minutes.")
    who = _claims_of(kept)
    if kept["answers"]:
        begun = take_pending_sign_in(request, kept["answers"])
    elif provider.takes_unsolicited and request.method == "POST":  # POST only, so that a link cannot replace a session.
        onward = own_path(kept["onward"], reverse("overview"))
        begun = PendingSignIn(LOGIN, onward, "", "", provider.known_as, time.time(), is_unasked=True)
    else:
        raise ResponseRefused("not_asked_for", "The sign-in began at the provider. The settings no longer allow this.")
    if not begun.issuer == who.issuer == provider.known_as or kept["terms"] != provider.terms_digest:
        raise ResponseRefused("provider_changed", CHANGED)
    # Providers may report the current time although they only continued an open session. So the time counts only for
    # sign-ins that confirm an action, because for these the provider must ask for a credential.
    return begun, who if begun.act == CONFIRM else who._replace(authenticated_at=None)


def _claims(provider: Provider, said: Any) -> Claims:
    """Return the claims of an assertion, without the attributes that are not used. Raises ResponseRefused."""
    wanted = NAME_ID_FORMATS.get(NameIdFormat(provider.name_id_format))
    if wanted and said.name_format != wanted:
        raise ResponseRefused(
            "no_name", f"The settings ask for a NameID in the format {wanted}, but this NameID has another format."
        )
    attributes: Mapping[str, list[str]] = said.attributes

    def first(name: str) -> str:
        return next(iter(attributes.get(name, [])), "")

    is_address = said.name_format == NAME_ID_FORMATS[NameIdFormat.EMAIL]
    groups = attributes.get(provider.groups_claim)
    return Claims(
        issuer=provider.known_as,
        subject=said.name,
        email=email_of(first(provider.email_attribute) or (said.name if is_address else "")),
        email_verified=is_true(first(VERIFIED)),
        name=line_of(first(provider.name_attribute)),
        groups=None if groups is None and TOO_MANY in attributes else groups_of(groups or []),
        says_groups=groups is not None,
        session=said.session,
        authenticated_at=said.authenticated_at,
    )
