"""Sign-in at the organisation with SAML: the request, the answer, and the return to the session.

The provider's page posts the answer as a cross-site form, so the session cookie (SameSite=Lax) is missing, and no
cookie is set in return, as it would replace the session. Instead the claims are stored under a ticket, and the browser
is forwarded to a page of ours, now with its cookie. There the answered request must be one that this session started.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from sso.errors import ProviderError
from sso.flow import (
    CONFIRM,
    LIVES_S,
    LOGIN,
    PendingSignIn,
    email_of,
    groups_of,
    is_true,
    leads_on,
    line_of,
    store_pending_sign_in,
    taken,
)
from sso.models import Claims, DecryptionKey, Provider, ReceivedAssertion
from sso.saml.refusals import ResponseRefused
from sso.saml.requests import NAME_ID_FORMATS, consumer_url, entity_id, sign_in_url
from sso.saml.rereading import READ_AGAIN, UNKNOWN_SIGNATURE, not_older
from sso.saml.terms import NameIdFormat, is_installed, must_be_installed
from ui.pages import own_path
from wire.cipher import Undecryptable

logger = logging.getLogger(__name__)

VERIFIED = "email_verified"  # An attribute named like the OpenID Connect claim; SAML has no standard one.
TOO_MANY = "http://schemas.microsoft.com/claims/groups.link"  # Microsoft Entra, for people in more than 150 groups.


def begin_saml(request: HttpRequest, provider: Provider, *, act: str, onward: str) -> HttpResponse:
    """Start a sign-in and return a page that forwards to the provider. Raises ProviderError."""
    must_be_installed()
    provider = not_older(provider, READ_AGAIN)
    request_id = f"_{secrets.token_hex(20)}"
    try:
        url = sign_in_url(provider, request_id, anew=act == CONFIRM)
    except Undecryptable:
        raise ProviderError("No configured encryption key opens the key that requests are signed with.") from None
    except (TypeError, ValueError):
        raise ProviderError("There is no usable key that requests are signed with. Save the settings anew.") from None
    store_pending_sign_in(request, request_id, PendingSignIn(act, onward, "", "", provider.known_as, time.time()))
    return leads_on(request, provider, url)


def receive(provider: Provider, encoded: str, relay_state: str) -> str:
    """Verify an answer, and return a ticket for its claims. Raises ResponseRefused."""
    if not is_installed():
        raise ResponseRefused("not_installed", "The extra “saml” is not installed any more.")
    said, provider = _read(provider, encoded)
    if not said.in_response_to and not provider.takes_unsolicited:
        raise ResponseRefused("not_asked_for", "Nobody began it here, which is not taken.")
    what = _claims(provider, said)._asdict()
    what |= {"groups": None if what["groups"] is None else sorted(what["groups"])}
    kept: dict[str, Any] = {"answers": said.in_response_to, "onward": relay_state[:2000], "claims": what}
    kept["terms"] = provider.terms_digest
    ticket = ReceivedAssertion.keep(provider.issuer, said.assertion_id, kept)
    if not ticket:
        raise ResponseRefused("used_before", "The assertion was brought before.")
    return ticket


def _read(provider: Provider, encoded: str) -> tuple[Any, Provider]:
    """Verify an answer, with metadata at most an hour old, and return it with the provider.

    Metadata are read again here, because nobody has read them if the person started at the provider.
    """
    from sso.saml.responses import Expected, verify_response  # noqa: PLC0415  (the optional packages)

    def expected(by: Provider) -> Expected:
        keys = DecryptionKey.opening if by.takes_encrypted else None
        return Expected(by.issuer, entity_id(), consumer_url(), by.certificates.split(), keys)

    try:
        said = verify_response(encoded, expected(provider))
    except ResponseRefused as fault:
        if fault.reason != "wrong_signature":
            raise
        fresh = not_older(provider, UNKNOWN_SIGNATURE)
        if fresh.certificates == provider.certificates:
            raise
        return verify_response(encoded, expected(fresh)), fresh
    fresh = not_older(provider, READ_AGAIN)
    if fresh.certificates != provider.certificates:
        said = verify_response(encoded, expected(fresh))
    return said, fresh


def unasked(provider: Provider, ticket: str) -> Claims | None:
    """Return the claims of a ticket that was not requested here, or None."""
    kept: Any = ReceivedAssertion.look(ticket) if provider.takes_unsolicited else None
    return None if kept is None or kept["answers"] else _claims_of(kept)


def _claims_of(kept: Any) -> Claims:
    groups = kept["claims"]["groups"]
    return Claims(**kept["claims"] | {"groups": None if groups is None else frozenset(groups)})


def finish_saml(request: HttpRequest, provider: Provider, ticket: str) -> tuple[PendingSignIn, Claims]:
    """Return the started sign-in and the claims. Raises ResponseRefused."""
    kept: Any = ReceivedAssertion.take(ticket)
    if kept is None:
        raise ResponseRefused("used_before", "The answer was used before, or not within a quarter of an hour.")
    who = _claims_of(kept)
    if kept["answers"]:
        begun = taken(request, kept["answers"])
        if begun is None:
            raise ResponseRefused("not_begun_here", "It was not begun in this browser, or was used before.")
        if time.time() - begun.at > LIVES_S:
            raise ResponseRefused("took_too_long", "It took longer than ten minutes.")
    elif provider.takes_unsolicited and request.method == "POST":  # A link must not be able to replace a session.
        onward = own_path(kept["onward"], reverse("overview"))
        begun = PendingSignIn(LOGIN, onward, "", "", provider.known_as, time.time(), is_unasked=True)
    else:
        raise ResponseRefused("not_asked_for", "Nobody began it here, which is not taken any more.")
    if not begun.issuer == who.issuer == provider.known_as or kept.get("terms") != provider.terms_digest:
        raise ResponseRefused("provider_changed", "The provider was changed meanwhile.")
    # Providers also report the time of sign-in if they only continued an open session. So it only counts as a
    # confirmation if one was requested.
    return begun, who if begun.act == CONFIRM else who._replace(authenticated_at=None)


def _claims(provider: Provider, said: Any) -> Claims:
    """Extract the attributes in use; the others are not stored."""
    wanted = NAME_ID_FORMATS.get(NameIdFormat(provider.name_id_format))
    if wanted and said.name_format != wanted:
        raise ResponseRefused("no_name", f"The name of the person (NameID) is not of the format {wanted}.")
    attributes: Mapping[str, list[str]] = said.attributes
    is_address = said.name_format == NAME_ID_FORMATS[NameIdFormat.EMAIL]
    groups = attributes.get(provider.groups_claim)
    return Claims(
        issuer=provider.known_as,
        subject=said.name,
        email=email_of(_first(attributes, provider.email_attribute) or (said.name if is_address else "")),
        email_verified=is_true(_first(attributes, VERIFIED)),
        name=line_of(_first(attributes, provider.name_attribute)),
        groups=None if groups is None and TOO_MANY in attributes else groups_of(groups or []),
        says_groups=groups is not None,
        session=said.session,
        authenticated_at=said.authenticated_at,
    )


def _first(attributes: Mapping[str, list[str]], name: str) -> str:
    return next(iter(attributes.get(name, [])), "")
