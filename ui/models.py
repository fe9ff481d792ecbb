"""The answers kept for requests that are sent again with the same Idempotency-Key."""

from datetime import timedelta

from django.db import models
from django.db.models.functions import Now

KEPT = timedelta(hours=1)


class KeptAnswerQuerySet(models.QuerySet["KeptAnswer"]):
    def expired(self) -> "KeptAnswerQuerySet":
        """Return the answers that are too old to be given again, by the database's clock."""
        return self.filter(created_at__lte=Now() - KEPT)


class KeptAnswer(models.Model):
    """The answer to a request with an Idempotency-Key. It may hold a secret, so all of it is sealed."""

    key = models.CharField(max_length=64, primary_key=True)  # The digest of the credential and its key.
    request = models.CharField(max_length=64)  # The digest of what was asked.
    sealed = models.BinaryField()
    created_at = models.DateTimeField(db_default=Now(), db_index=True)

    objects = KeptAnswerQuerySet.as_manager()

    def __str__(self) -> str:
        return f"answer {self.key[:8]}"
