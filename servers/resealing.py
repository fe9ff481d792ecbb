"""Re-encrypts stored credentials with the newest key, so that an older one can be removed."""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

from django.db import transaction

from auditlog.models import CheckpointKey
from proxy.models import UpstreamSession
from servers.models import Identity
from servers.oauth_client.models import ClientRegistration, Grant
from sinks.models import Sink
from sso.models import DecryptionKey, Provider
from ui.sealing import cipher
from wire.cipher import Unreadable


class Resealed(NamedTuple):
    """How many identities were moved, and how many no configured key opens."""

    moved: int
    unreadable: int


def reseal() -> Resealed:
    """Seal with the newest key what an older one holds.

    Row by row, each in a transaction of its own: calls, replacements and revocations go on meanwhile, and running it
    again does what is left. Sessions with upstream servers stay, for the secrets do not change and their ids are moved
    too; one that no key opens is gone, and is opened anew when it is needed.
    """
    _reseal_sessions()
    _reseal_rows(ClientRegistration, "secret_ciphertext")
    _reseal_rows(Grant, "refresh_ciphertext")
    _reseal_rows(Sink, "secret_ciphertext")
    _reseal_rows(Provider, "secret_ciphertext")
    _reseal_rows(DecryptionKey, "sealed")
    _reseal_rows(CheckpointKey, "sealed")
    older = Identity.objects.filter(secret_ciphertext__isnull=False).exclude(key_id=cipher().key_id).order_by("pk")
    results = [_moved(pk) for pk in older.values_list("pk", flat=True)]
    return Resealed(moved=results.count(True), unreadable=results.count(False))


def _reseal_sessions() -> None:
    sealed = UpstreamSession.objects.exclude(sealed_id=b"").values_list("pk", "sealed_id")
    for pk, sealed_id in sealed.iterator():
        unchanged = UpstreamSession.objects.filter(pk=pk, sealed_id=sealed_id)
        try:
            unchanged.update(sealed_id=cipher().reseal(bytes(sealed_id)))
        except Unreadable:
            unchanged.delete()


def _reseal_rows(model: type[Any], field: str) -> None:
    """Move what these rows hold; what no key opens stays, and cannot be used."""
    older = model.objects.exclude(**{field: None}).exclude(key_id=cipher().key_id)
    for pk in list(older.values_list("pk", flat=True)):
        with transaction.atomic():
            row = model.objects.select_for_update(of=("self",)).get(pk=pk)
            sealed = getattr(row, field)
            if sealed is None or row.key_id == cipher().key_id:
                continue
            try:
                secret = cipher().reseal(bytes(sealed))
            except Unreadable:
                continue
            model.objects.filter(pk=pk).update(**{field: secret, "key_id": cipher().key_id})


def _moved(pk: UUID) -> bool | None:
    """Whether this identity could be moved; None when that was no longer needed."""
    with transaction.atomic():
        row = Identity.objects.select_for_update(of=("self",)).get(pk=pk)
        if row.secret_ciphertext is None or row.key_id == cipher().key_id:
            return None  # Replaced or revoked since we looked.
        try:
            secret = cipher().reseal(bytes(row.secret_ciphertext))
        except Unreadable:
            return False
        Identity.objects.filter(pk=pk).update(secret_ciphertext=secret, key_id=cipher().key_id)
    return True
