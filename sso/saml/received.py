"""The assertions that the gateway accepted from the identity provider.

The claims of an assertion are stored until the browser's next request. A digest of the assertion's ID is stored longer,
so that the gateway can refuse an assertion that is sent again.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from typing import ClassVar

import orjson
from django.db import models
from django.utils import timezone

from ui.sealing import cipher
from wire.cipher import Undecryptable

# To detect replays, digests are stored longer than assertions are accepted (responses.OLDEST_S plus clock difference).
KEPT = timedelta(minutes=15)


class ReceivedAssertion(models.Model):
    """A received assertion: the digest of its ID, and its claims (encrypted).

    `take` removes the claims. The digest stays until the row expires, 15 minutes (KEPT) after the assertion arrived.
    """

    digest = models.CharField(max_length=64, primary_key=True)
    ticket = models.CharField(max_length=64, unique=True)
    sealed = models.BinaryField(null=True)
    until = models.DateTimeField(db_index=True)

    objects: ClassVar[models.Manager[ReceivedAssertion]] = models.Manager()

    class Meta:
        app_label = "sso"
        default_permissions = ()

    def __str__(self) -> str:
        return self.digest[:12]

    @classmethod
    def keep(cls, issuer: str, assertion_id: str, what: dict[str, object]) -> str:
        """Store the claims of an assertion and return a ticket; return "" if the assertion was used before."""
        ticket = secrets.token_urlsafe(32)
        row = cls(
            digest=_digest(f"{issuer}\0{assertion_id}"),
            ticket=_digest(ticket),
            sealed=cipher().seal(orjson.dumps(what).decode()),
            until=timezone.now() + KEPT,
        )
        made = cls.objects.bulk_create([row], ignore_conflicts=True)
        return ticket if made and cls.objects.filter(ticket=row.ticket).exists() else ""

    @classmethod
    def _kept(cls, ticket: str) -> models.QuerySet[ReceivedAssertion]:
        return cls.objects.filter(ticket=_digest(ticket), sealed__isnull=False, until__gt=timezone.now())

    @classmethod
    def look(cls, ticket: str) -> dict[str, object] | None:
        """Return the claims that are stored under this ticket, but do not remove the claims.

        Return None if no claims are stored, or if the claims cannot be decrypted.
        """
        found = cls._kept(ticket).first()
        try:
            return orjson.loads(cipher().open(bytes(found.sealed or b""))) if found else None
        except Undecryptable:
            return None

    @classmethod
    def take(cls, ticket: str) -> dict[str, object] | None:
        """Remove and return the claims stored under this ticket. Return None if no claims can be read."""
        what = cls.look(ticket)
        # Only one of several concurrent requests updates the row.
        return what if cls._kept(ticket).update(sealed=None) else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
