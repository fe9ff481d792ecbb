"""Creating people's keys for the REST API, and finding the key of a request."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from accounts.models import ApiKey, User
from accounts.rules import must_hold
from auditlog.actions import Action
from auditlog.models import Event
from capabilities import Capability
from ui.forms import named
from wire import token_text

LONGEST_DAYS = 90
DEFAULT_DAYS = 30
MOST_PER_PERSON = 20


class KeyRefused(Exception):
    """An API key cannot be created; the message says why."""


class KeyNameTaken(KeyRefused):
    """You have an API key of that name already."""


class TooManyApiKeys(KeyRefused):
    """A person can have at most 20 active API keys. Revoke one first."""


class BadDays(KeyRefused):
    """Must be between 1 and 90 days."""


class NoCapability(KeyRefused):
    """Choose at least one capability."""


class AccessEnded(KeyRefused):
    """Your access ended meanwhile. Sign in again."""


class IssuedApiKey(NamedTuple):
    """A new API key and its secret, which can be shown only now, because it is not stored."""

    key: ApiKey
    secret: str


def issue(
    *, name: str, capabilities: Collection[Capability], days: int, by: User, pk: UUID | None = None
) -> IssuedApiKey:
    """Create an API key that acts as the person `by` with at most `capabilities`, for `days` days from now.

    Raises KeyNameTaken, TooManyApiKeys, BadDays or NoCapability. Raises AccessEnded if the person was signed out since
    `by` was loaded, and BeyondYours if `by` lacks one of `capabilities`.
    """
    if not 1 <= days <= LONGEST_DAYS:
        raise BadDays(BadDays.__doc__)
    if not capabilities:
        raise NoCapability(NoCapability.__doc__)
    must_hold(by, capabilities)
    secret = token_text.mint(token_text.PERSONAL)
    with transaction.atomic():
        _must_have_room(by, name)
        key = ApiKey(
            user=by,
            name=name.strip(),
            capabilities=[capability.slug for capability in Capability if capability in capabilities],
            expires_at=timezone.now() + timedelta(days=days),
            **({"pk": pk} if pk else {}),
        )
        key.set_secret(secret)
        key.save(force_insert=True)
        changes = {"prefix": [None, key.prefix], "capabilities": [[], key.capabilities]}
        Event.objects.record(Action.API_KEY_CREATED, key, by=by, changes=changes)
    return IssuedApiKey(key, secret)


def _must_have_room(owner: User, name: str) -> None:
    if owner.lock().signed_out_since(owner):
        raise AccessEnded(AccessEnded.__doc__)
    if ApiKey.objects.filter(user=owner).active().count() >= MOST_PER_PERSON:
        raise TooManyApiKeys(TooManyApiKeys.__doc__)
    if ApiKey.objects.filter(user=owner).live().filter(named(name)).exists():
        raise KeyNameTaken(KeyNameTaken.__doc__)


def find_api_key(secret: str) -> ApiKey | None:
    """Return the API key with this secret if both key and owner are active, otherwise None."""
    if not token_text.well_formed(secret, {token_text.PERSONAL}):
        return None
    digests = token_text.candidates(secret, settings.TOKEN_KEYS)
    return ApiKey.objects.active().filter(digest__in=digests, user__is_active=True).select_related("user__role").first()
