"""Counts, for each token key and each encryption key, the stored rows that need it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from django.conf import settings
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.core.signing import BadSignature, TimestampSigner
from django.db.models import Count, QuerySet
from django.utils import timezone

from accounts import second_factor
from accounts.models import ApiKey
from scim.models import ProvisioningKey
from servers.resealing import SEALED
from tokens.models import Token, TokenKind
from wire import cipher, token_text


class KeyUses(NamedTuple):
    """The keys in one variable, and the number of rows that use each key."""

    variable: str
    present: Sequence[str]  # Ids, newest first.
    uses: Counter[str]  # By id, also of keys that are missing in the variable.

    @property
    def missing(self) -> list[str]:
        return sorted(self.uses.keys() - set(self.present))


def key_uses() -> list[KeyUses]:
    """Return how many rows use each token key and each encryption key."""
    # Nobody has the secret of an app's key: apps send OAuth tokens, which no token key digests.
    access = Token.objects.live().filter(kind=TokenKind.ACCESS).exclude(digest=None)
    tokens = _uses(access) + _uses(Token.objects.overlapping(), "previous_key_id")
    tokens += _uses(ApiKey.objects.filter(revoked_at=None)) + _uses(ProvisioningKey.objects.live())
    tokens += _uses(ProvisioningKey.objects.overlapping(), "previous_key_id")
    sealed = second_factor.second_factor_key_uses()
    for model, field in SEALED.values():
        sealed += _uses(model.objects.exclude(**{field: None}))
    return [
        KeyUses("GATEWAY_TOKEN_KEYS", [token_text.token_key_id(key) for key in settings.TOKEN_KEYS], tokens),
        KeyUses("GATEWAY_ENCRYPTION_KEYS", [cipher.encryption_key_id(key) for key in settings.ENCRYPTION_KEYS], sealed),
    ]


def is_another_secret_key() -> bool:
    """Return whether the newest web session was signed with a GATEWAY_SECRET_KEY that is not the current key."""
    newest = Session.objects.filter(expire_date__gt=timezone.now()).order_by("-expire_date").first()
    if newest is None:
        return False
    try:
        TimestampSigner(salt=SessionStore().key_salt).unsign(newest.session_data)
    except BadSignature:
        return True
    return False


def _uses(rows: QuerySet[Any], key_id: str = "key_id") -> Counter[str]:
    return Counter(dict(rows.values_list(key_id).annotate(Count("pk")).order_by()))
