"""Tables of the proxy. Declared here for migrations; the proxy itself reads them by SQL only."""

from uuid import uuid4

from django.db import models


class Session(models.Model):
    """A session of the `initialize` era, bound to one connection; never authority by itself.

    `digest` is SHA-256 of the `gws_` id, which is stored nowhere.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    digest = models.BinaryField(unique=True, max_length=32)
    connection = models.ForeignKey("connections.Connection", models.CASCADE, related_name="mcp_sessions")
    protocol_version = models.CharField(max_length=20)
    client_info = models.JSONField(default=dict)
    client_capabilities = models.JSONField(default=dict)
    log_level = models.CharField(max_length=12, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    last_seen_at = models.DateTimeField(auto_now_add=True, db_index=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"session of {self.connection_id}"


class StreamEvent(models.Model):
    """One message kept for a client that resumes a stream."""

    id = models.BigAutoField(primary_key=True)
    session = models.ForeignKey(Session, models.CASCADE, related_name="events")
    stream_id = models.UUIDField()
    message = models.JSONField()
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)

    class Meta:
        indexes = (models.Index(fields=("session", "stream_id", "id"), name="stream_event_in_order"),)

    def __str__(self) -> str:
        return f"event {self.pk} of {self.stream_id}"


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
