"""Test of the identity provider: the button *Test* and its REST operation."""

from __future__ import annotations

from typing import Any, NamedTuple

from django.utils import timezone

from accounts.rules import Grantor
from auditlog.actions import Action
from auditlog.models import Event
from sso.errors import BadSamlMetadata, ProviderError
from sso.models import Provider
from sso.oidc import forget_metadata, read_provider_keys, read_provider_metadata
from sso.saml.settings import must_be_installed


class ProviderTestResult(NamedTuple):
    """The result of a test of the provider, with an explanation."""

    works: bool
    detail: str


def test_provider(provider: Provider, *, by: Grantor | None) -> ProviderTestResult:
    """Test the provider, record the test, and return the result with an explanation of anything wrong or missing."""
    try:
        outcome = ProviderTestResult(True, _saml_found(provider, by) if provider.speaks_saml else _oidc_found(provider))
    except ProviderError as fault:
        outcome = ProviderTestResult(False, str(fault))
    told = {"works": outcome.works} | ({} if outcome.works else {"detail": outcome.detail})
    Event.objects.record(Action.ORGANISATION_TESTED, provider, by=by, changes=told)
    return outcome


def _oidc_found(provider: Provider) -> str:
    """Read metadata and keys, and describe them. Raises ProviderDown."""
    said = read_provider_metadata(provider)
    keys = read_provider_keys(provider, said)
    forget_metadata(provider)
    needs = "" if provider.has_secret else " No client secret is saved, so the provider must allow clients without one."
    tells = not provider.signs_out_there or said.end_session_endpoint
    out = "" if tells else " It publishes no sign-out endpoint (end_session_endpoint)."
    return (
        f"{said.issuer} has valid metadata, signs people in at {said.authorization_endpoint} and publishes "
        f"{_count(keys, 'key')}.{needs}{out} Only a sign-in shows whether the provider knows the client."
    )


def _saml_found(provider: Provider, by: Grantor | None) -> str:
    """Read the metadata again if they have a URL, and return a description of them. Raises ProviderError."""
    must_be_installed()
    if not provider.certificates:
        raise BadSamlMetadata("Enter the provider's metadata first.")
    if provider.metadata_url:
        provider.read_metadata_again(by=by)
        provider = Provider.load()
    ended = sum(each.until < timezone.now() for each in provider.signing)
    past = f" {ended} of them expired. Expired ones are accepted while the metadata contain them." if ended else ""
    if provider.metadata_ended:
        past += f" The metadata were valid until {provider.metadata_end_at:%Y-%m-%d %H:%M} UTC: enter new ones."
    source = f"{provider.metadata_url} was read." if provider.metadata_url else "The metadata were pasted."
    return (
        f"{provider.issuer} signs people in at {provider.sso_url} "
        f"and signs answers with {_count(provider.signing, 'certificate')}."
        f"{past} {source} Only a sign-in shows whether the provider knows this workspace."
    )


def _count(found: list[Any], noun: str) -> str:
    return f"1 {noun}" if len(found) == 1 else f"{len(found)} {noun}s"
