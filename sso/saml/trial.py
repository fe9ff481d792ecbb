"""The *Test* of a SAML provider."""

from __future__ import annotations

from django.utils import timezone

from accounts.rules import Grantor
from sso.errors import BadSamlMetadata
from sso.models import Provider
from sso.saml.rereading import reread
from sso.saml.terms import must_be_installed


def metadata_summary(provider: Provider, *, by: Grantor | None) -> str:
    """Describe the provider's metadata, re-read if they have a URL. Raises ProviderError."""
    must_be_installed()
    if not provider.certificates:
        raise BadSamlMetadata("No metadata of the provider are known yet.")
    if provider.metadata_url:
        reread(provider, by=by)
        provider = Provider.load()
    count = len(provider.signing)
    certificates = "1 certificate" if count == 1 else f"{count} certificates"
    ended = sum(each.until < timezone.now() for each in provider.signing)
    past = f" {ended} of them past its end, which is accepted while the metadata name it." if ended else ""
    if provider.metadata_ended:
        past += f" The metadata were valid until {provider.metadata_end_at:%Y-%m-%d %H:%M} UTC: bring in new ones."
    source = f"{provider.metadata_url} was read." if provider.metadata_url else "The metadata were pasted here."
    return (
        f"{provider.issuer} asks people at {provider.sso_url} and signs with {certificates}.{past} {source} "
        "Whether it knows this workspace shows when somebody signs in."
    )
