"""Re-read the provider's metadata regularly if they have a URL, so that it can change its certificates."""

from __future__ import annotations

import logging
from datetime import timedelta

from django.core.cache import cache
from django.utils import timezone

from accounts.rules import Grantor
from sso.errors import ProviderError
from sso.models import Provider
from sso.saml.setting_up import fetch_provider

logger = logging.getLogger(__name__)

READ_AGAIN = timedelta(hours=1)
# Minimum interval for re-reading after signatures that no certificate matches.
UNKNOWN_SIGNATURE = timedelta(minutes=1)
ASKED_AGAIN_S = 30


def reread(provider: Provider, *, by: Grantor | None) -> None:
    """Apply the provider's current metadata. Raises ProviderError, and changes nothing then."""
    provider.take_over(fetch_provider(provider.metadata_url, private=provider.private), by=by)


def not_older(provider: Provider, age: timedelta) -> Provider:
    """Return the provider with metadata at most this old, if they have a URL that can be read.

    If it cannot be read the known metadata are used, so that people can still sign in.
    """
    read_at = provider.metadata_read_at
    if not provider.metadata_url or (read_at and timezone.now() - read_at < age):
        return provider
    if not cache.add("organisation-metadata-asked", "asked", ASKED_AGAIN_S):
        return provider
    try:
        reread(provider, by=None)
    except ProviderError as fault:
        logger.warning("the metadata of the identity provider cannot be read", extra={"error": str(fault)})
        return provider
    return Provider.offered() or provider
