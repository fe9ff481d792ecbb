"""Tables of the proxy. Declared here for migrations; the proxy itself reads them by SQL only."""

from django.db import models


class RateCounter(models.Model):
    """How many calls all workers took in the present minute of a workspace, gateway or token that has a limit.

    `window` is when that minute began, `most` the limit as it was told last, `taken` what was taken last.
    """

    id = models.BigAutoField(primary_key=True)
    subject_type = models.CharField(max_length=12)
    subject_id = models.UUIDField(null=True)
    window = models.DateTimeField(db_index=True)
    most = models.PositiveIntegerField()
    calls = models.PositiveIntegerField(default=0)
    taken = models.PositiveIntegerField(default=0)

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=("subject_type", "subject_id"), nulls_distinct=False, name="one_counter_per_subject"
            ),
        )

    def __str__(self) -> str:
        return f"{self.subject_type} since {self.window:%H:%M:%S}: {self.calls}"


class Cancellation(models.Model):
    """A call that its client cancelled at another worker; `key` is a digest of whose call it is and of its id."""

    key = models.CharField(max_length=64, primary_key=True)
    at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return f"{self.key[:8]} at {self.at:%H:%M:%S}"
