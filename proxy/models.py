"""Tables of the proxy, declared for migrations; the proxy itself uses SQL only."""

from uuid import uuid4

from django.db import models


class RateCounter(models.Model):
    """The calls of one minute that count against the rate limit of a token, a gateway or the workspace.

    A worker leases calls in batches, before it lets them through. Leased calls count even if they are not made.
    """

    id = models.BigAutoField(primary_key=True)
    subject_type = models.CharField(max_length=12)
    subject_id = models.UUIDField(null=True)
    window = models.DateTimeField(db_index=True)  # Start of the minute.
    most = models.PositiveIntegerField()  # The limit at the time of the last lease.
    calls = models.PositiveIntegerField(default=0)  # Leased since `window`.
    taken = models.PositiveIntegerField(default=0)  # The number of calls in the last lease.

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

    The row of an ended session is deleted.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)  # Of the call that opened the session.
    # SHA-256 of the session id that the client sends, which is a secret.
    digest = models.BinaryField(max_length=32, unique=True)
    connection = models.ForeignKey("connections.Connection", models.CASCADE, related_name="+", db_index=False)
    version = models.CharField(max_length=20)
    capabilities = models.JSONField(default=dict)
    declared = models.CharField(max_length=200, blank=True)  # The client capabilities that are sent to servers.
    client_name = models.CharField(max_length=200, blank=True)
    client_version = models.CharField(max_length=200, blank=True)
    log_level = models.CharField(max_length=12, blank=True)
    # URIs, as the client sees them, of the resources the client has subscribed to.
    subscriptions = models.JSONField(default=list, db_default=[])
    # When a server lost its session with the gateway. Running calls continue; every further request gets 404.
    lost_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(auto_now_add=True, db_index=True)

    class Meta:
        indexes = (models.Index(fields=("connection", "last_used_at"), name="sessions_of_a_connection"),)

    def __str__(self) -> str:
        return f"{self.client_name or 'a client'}, {self.version}"


class UpstreamSession(models.Model):
    """A session at a server.

    Its owner is a client's session, a connection (for clients without a session), or an assignment (for lists).
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    owner_id = models.UUIDField()  # The client's session, the connection or, for lists, the assignment.
    connection_id = models.UUIDField()
    server_id = models.UUIDField()
    # Made by query.sql: the identity, address and capabilities for which the session may be used.
    key = models.CharField(max_length=600)
    # The server's id of the session, encrypted. Empty for a stateless server, and in the row of a
    # `subscriptions/listen`, which is only a lease.
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
    """A server's last answer to `initialize` or `server/discover`, for one identity."""

    id = models.BigAutoField(primary_key=True)
    server_id = models.UUIDField()
    # The identity, or the server if it was asked without one. Instructions may be meant for one user only.
    told_to = models.UUIDField()
    version = models.CharField(max_length=40, blank=True)
    # In session-based versions of MCP, and in MCP 2026-07-28; null until the server has sent them.
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
    """A server's request to a client, waiting for an answer until `expires_at`."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    connection_id = models.UUIDField()
    session_id = models.UUIDField(null=True)  # The session that may answer.
    call_id = models.UUIDField(null=True, db_index=True)  # The suspended call whose retry may answer.
    method = models.CharField(max_length=64)  # Empty if the row is a text from one worker for another.
    asked = models.BinaryField(null=True)  # Encrypted, like `answer`.
    answer = models.BinaryField(null=True)
    expires_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return f"{self.method} until {self.expires_at:%H:%M:%S}"


class SuspendedCall(models.Model):
    """A running call whose server waits for input. The client collects the input, and sends it in a retry."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    connection_id = models.UUIDField()
    turn = models.PositiveIntegerField(default=0)  # Counts the requests for input; a requestState is for one turn.
    outcome = models.BinaryField(null=True)  # Encrypted.
    beat_at = models.DateTimeField()  # Updated by the worker that runs the call, until the call is over.
    expires_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return f"turn {self.turn} until {self.expires_at:%H:%M:%S}"


class StreamEvent(models.Model):
    """An event of a session's stream that the client may not have received."""

    id = models.BigAutoField(primary_key=True)
    session_id = models.UUIDField(db_index=True)
    stream_id = models.UUIDField()
    number = models.PositiveIntegerField()
    data = models.BinaryField()  # Encrypted. Empty if the event only marks the position of the stream.
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
