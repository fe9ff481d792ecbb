"""Tables of the proxy. Declared here for migrations; the proxy itself reads them by SQL only."""

import uuid

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


class PendingRequest(models.Model):
    """What a server asked of a client and waits for, until `expires_at`; `asked` and `answer` are sealed.

    It is answered by `session_id` of the connection, or by the retry of the suspended call `call_id`.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    connection_id = models.UUIDField()
    session_id = models.UUIDField(null=True)
    call_id = models.UUIDField(null=True, db_index=True)
    method = models.CharField(max_length=64)
    asked = models.BinaryField(null=True)
    answer = models.BinaryField(null=True)
    expires_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return f"{self.method} until {self.expires_at:%H:%M:%S}"


class SuspendedCall(models.Model):
    """A call whose server waits for answers while its client is away to collect them; `outcome` is sealed.

    `turn` counts the times the client was asked; each requestState is good for one of them. The worker that holds the
    call says so in `beat_at` until it is over.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    connection_id = models.UUIDField()
    turn = models.PositiveIntegerField(default=0)
    outcome = models.BinaryField(null=True)
    beat_at = models.DateTimeField()
    expires_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return f"turn {self.turn} until {self.expires_at:%H:%M:%S}"
