"""Stored answers to requests with an Idempotency-Key."""

from datetime import timedelta

from django.db import models
from django.db.models.functions import Now

KEPT = timedelta(hours=1)


class KeptAnswerQuerySet(models.QuerySet["KeptAnswer"]):
    def expired(self) -> "KeptAnswerQuerySet":
        """Return expired answers, by the database's clock."""
        return self.filter(created_at__lte=Now() - KEPT)


class KeptAnswer(models.Model):
    """The answer to a request with an Idempotency-Key, encrypted because it may contain a secret."""

    key = models.CharField(max_length=64, primary_key=True)  # Digest of the credential and the Idempotency-Key.
    request = models.CharField(max_length=64)  # Digest of the request.
    sealed = models.BinaryField()
    created_at = models.DateTimeField(db_default=Now(), db_index=True)

    objects = KeptAnswerQuerySet.as_manager()

    def __str__(self) -> str:
        return f"answer {self.key[:8]}"
