"""Re-encrypt stored credentials with the newest key, so that an older key can be removed."""

from __future__ import annotations

from typing import Any

from django.db import transaction

from approvals.models import Hold
from attention.models import Channel
from auditlog.models import CheckpointKey
from proxy.models import UpstreamSession
from servers.models import Identity
from servers.oauth_client.models import ClientRegistration, Grant
from sinks.models import Sink
from sso.models import DecryptionKey, Provider
from ui.sealing import Resealed, cipher
from wire.cipher import Undecryptable

# The encrypted columns, by name.
SEALED: dict[str, tuple[type[Any], str]] = {
    "identities": (Identity, "secret_ciphertext"),
    "upstream clients": (ClientRegistration, "secret_ciphertext"),
    "upstream sign-ins": (Grant, "refresh_ciphertext"),
    "log sinks": (Sink, "secret_ciphertext"),
    "notification channels": (Channel, "sealed"),
    "identity providers": (Provider, "secret_ciphertext"),
    "SAML decryption keys": (DecryptionKey, "sealed"),
    "checkpoint keys": (CheckpointKey, "sealed"),
    "held calls": (Hold, "sealed_arguments"),
}


def reseal_servers() -> dict[str, Resealed]:
    """Re-encrypt each value that an older key encrypted, in all columns of SEALED.

    Return a result for each name in SEALED. The ids of sessions at servers are re-encrypted too, so the sessions
    continue. An interrupted run can be repeated.
    """
    _reseal_sessions()
    return {name: _reseal_rows(model, field) for name, (model, field) in SEALED.items()}


def _reseal_sessions() -> None:
    sealed = UpstreamSession.objects.exclude(sealed_id=b"").values_list("pk", "sealed_id")
    for pk, sealed_id in sealed.iterator():
        unchanged = UpstreamSession.objects.filter(pk=pk, sealed_id=sealed_id)
        try:
            unchanged.update(sealed_id=cipher().reseal(bytes(sealed_id)))
        except Undecryptable:
            unchanged.delete()  # The session is opened again when needed.


def _reseal_rows(model: type[Any], field: str) -> Resealed:
    older = model.objects.exclude(**{field: None}).exclude(key_id=cipher().key_id).order_by("pk")
    results = [_moved(model, field, pk) for pk in older.values_list("pk", flat=True)]
    return Resealed(moved=results.count(True), unreadable=results.count(False))


def _moved(model: type[Any], field: str, pk: object) -> bool | None:
    """Re-encrypt the value of `field` in one row, and return True.

    Return False if no key decrypts the value. Return None if nothing has to be re-encrypted any more.
    """
    with transaction.atomic():  # For one row only, so that calls and changes of credentials continue meanwhile.
        row = model.objects.select_for_update(of=("self",)).filter(pk=pk).first()
        if row is None:
            return None  # The row was deleted meanwhile.
        sealed = getattr(row, field)
        if sealed is None or row.key_id == cipher().key_id:
            return None  # The secret was replaced or revoked meanwhile.
        try:
            secret = cipher().reseal(bytes(sealed))
        except Undecryptable:
            return False
        model.objects.filter(pk=pk).update(**{field: secret, "key_id": cipher().key_id})
    return True
