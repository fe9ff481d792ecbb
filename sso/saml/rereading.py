"""Metadata that have an address are read again from time to time, so that a provider can change its certificates."""

from __future__ import annotations

import logging
from datetime import timedelta

from django.core.cache import cache
from django.utils import timezone

from accounts.rules import Grantor
from sso.errors import ProviderError
from sso.models import Provider
from sso.saml.setting_up import fetch

logger = logging.getLogger(__name__)

READ_AGAIN = timedelta(hours=1)
# For a signature that none of the certificates made, at most so often, whoever sends such.
UNKNOWN_SIGNATURE = timedelta(minutes=1)
ASKED_AGAIN_S = 30


def reread(provider: Provider, *, by: Grantor | None) -> None:
    """Go by what the metadata say now. Raises ProviderError, after which it is gone by what was read before."""
    provider.take_over(fetch(provider.metadata_url, private=provider.private), by=by)


def not_older(provider: Provider, age: timedelta) -> Provider:
    """The provider with metadata of this age at most, if they have an address that answers; else with those there are.

    One that does not answer keeps nobody out: people sign in elsewhere.
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
