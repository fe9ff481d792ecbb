"""Moving stored credentials to the newest encryption key, so that an older one may go."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from django.db import transaction
from django.db.models import Q

from servers.models import Identity, cipher
from wire.cipher import Unreadable


class Resealed(NamedTuple):
    """How many identities were moved, and how many no configured key opens."""

    moved: int
    unreadable: int


def reseal() -> Resealed:
    """Seal with the newest key what an older one holds.

    Row by row, each in a transaction of its own: calls, replacements and revocations go on meanwhile, and running it
    again does what is left. Sessions with upstream servers stay, for the secrets do not change.
    """
    sealed = Q(secret_ciphertext__isnull=False) | Q(refresh_ciphertext__isnull=False)
    older = Identity.objects.filter(sealed).exclude(key_id=cipher().key_id).order_by("pk")
    done = [_moved(pk) for pk in older.values_list("pk", flat=True)]
    return Resealed(moved=done.count(True), unreadable=done.count(False))


def _moved(pk: UUID) -> bool | None:
    """Whether this identity could be moved; None when that was no longer needed."""
    with transaction.atomic():
        row = Identity.objects.select_for_update(of=("self",)).get(pk=pk)
        if row.key_id == cipher().key_id or row.revoked_at:
            return None  # Replaced or revoked since we looked.
        try:
            secret, refresh = _resealed(row.secret_ciphertext), _resealed(row.refresh_ciphertext)
        except Unreadable:
            return False
        values = {"secret_ciphertext": secret, "refresh_ciphertext": refresh, "key_id": cipher().key_id}
        Identity.objects.filter(pk=pk).update(**values)
    return True


def _resealed(ciphertext: bytes | memoryview | None) -> bytes | None:
    return None if ciphertext is None else cipher().reseal(bytes(ciphertext))
