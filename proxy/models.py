"""Tables of the proxy, declared for migrations; the proxy itself uses SQL only."""

from uuid import uuid4

from django.db import models


class RateCounter(models.Model):
    """The calls that workers have leased in the current minute for a workspace, gateway or token with a rate limit.

    `window` is the start of that minute, and `calls` the number of calls leased since then. `most` is the limit at the
    time of the last lease, and `taken` the number of calls in the last lease.
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
    """A request to cancel a call, for the worker that runs it; `key` is a digest of the call's owner and id."""

    key = models.CharField(max_length=64, primary_key=True)
    at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return f"{self.key[:8]} at {self.at:%H:%M:%S}"


class Session(models.Model):
    """A client's MCP session, opened by `initialize`. The client can use it with any token of its connection.

    `id` is the id of the call that opened the session. The session id that the client sends is a secret; `digest` is
    the SHA-256 of this secret. `declared` are the client capabilities that are sent to servers. The row of an ended
    session is deleted. `lost_at` is the time when a server lost its session with the gateway. From then on, running
    calls continue, and every further request gets 404.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    digest = models.BinaryField(max_length=32, unique=True)
    connection = models.ForeignKey("connections.Connection", models.CASCADE, related_name="+", db_index=False)
    version = models.CharField(max_length=20)
    capabilities = models.JSONField(default=dict)
    declared = models.CharField(max_length=200, blank=True)
    client_name = models.CharField(max_length=200, blank=True)
    client_version = models.CharField(max_length=200, blank=True)
    log_level = models.CharField(max_length=12, blank=True)
    # URIs, as the client sees them, of the resources the client has subscribed to.
    subscriptions = models.JSONField(default=list, db_default=[])
    lost_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(auto_now_add=True, db_index=True)

    class Meta:
        indexes = (models.Index(fields=("connection", "last_used_at"), name="sessions_of_a_connection"),)

    def __str__(self) -> str:
        return f"{self.client_name or 'a client'}, {self.version}"


class UpstreamSession(models.Model):
    """A session at a server, for one client's session, or for a connection whose client has no session.

    `key`, made by query.sql, has the identity, address and capabilities for which the session may be used. `sealed_id`
    is the server's id of the session, encrypted; empty for a stateless server. It is also empty in the row of a
    `subscriptions/listen`, which is not a session: such a row is only a lease.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    owner_id = models.UUIDField()
    connection_id = models.UUIDField()
    server_id = models.UUIDField()
    key = models.CharField(max_length=600)
    sealed_id = models.BinaryField()
    version = models.CharField(max_length=40)
    log_level = models.CharField(max_length=12, blank=True, db_default="")
    opened_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(auto_now_add=True, db_index=True)
    # The worker that reads the server's standing stream.
    leased_by = models.UUIDField(null=True)
    leased_until = models.DateTimeField(null=True)

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=("owner_id", "server_id", "key"), name="one_upstream_session_per_owner_and_key"
            ),
        )

    def __str__(self) -> str:
        return f"{self.server_id} for {self.owner_id}"


class ServerInfo(models.Model):
    """A server's last answer to `initialize` or `server/discover`.

    Instructions may be meant for one user only, so each identity has a row; `told_to` is the id of the identity, or of
    the server if it was asked without an identity. `capabilities` are those in session-based versions of MCP,
    `modern_capabilities` those in MCP 2026-07-28; each of the two is null until the server has sent it.
    """

    id = models.BigAutoField(primary_key=True)
    server_id = models.UUIDField()
    told_to = models.UUIDField()
    version = models.CharField(max_length=40, blank=True)
    capabilities = models.JSONField(null=True)
    modern_capabilities = models.JSONField(null=True)
    instructions = models.TextField(blank=True)
    changed_at = models.DateTimeField()

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=("server_id", "told_to"), name="one_info_per_server_and_identity"),
        )

    def __str__(self) -> str:
        return f"{self.server_id}: {', '.join(self.capabilities or self.modern_capabilities or ())}"


class PendingRequest(models.Model):
    """A server's request to a client, waiting for an answer until `expires_at`; `asked` and `answer` are sealed.

    The answer comes from the session `session_id` of the connection, or with the retry of the suspended call `call_id`.
    A row without a `method` is not a request, but a text from one worker for another.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
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
    """A call whose server waits for input that the client collects; `outcome` is encrypted.

    `turn` counts how often the client was asked for input; each requestState is valid for one turn. The worker that
    runs the call updates `beat_at` until the call is over.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    connection_id = models.UUIDField()
    turn = models.PositiveIntegerField(default=0)
    outcome = models.BinaryField(null=True)
    beat_at = models.DateTimeField()
    expires_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return f"turn {self.turn} until {self.expires_at:%H:%M:%S}"


class StreamEvent(models.Model):
    """An event of a session's stream that the client may not have received; `data` is encrypted.

    The row is deleted after `expires_at`. An event without data only marks the position of the stream; `is_last` marks
    the end of the stream.
    """

    id = models.BigAutoField(primary_key=True)
    session_id = models.UUIDField(db_index=True)
    stream_id = models.UUIDField()
    number = models.PositiveIntegerField()
    data = models.BinaryField()
    is_last = models.BooleanField()
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=("session_id", "stream_id", "number"), name="one_event_per_session_stream_and_number"
            ),
        )

    def __str__(self) -> str:
        return f"{self.stream_id} {self.number}"
