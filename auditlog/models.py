"""The two logs: calls and admin events.

Log rows are insert-only. They store ids and names as plain columns, so that history stays readable after changes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Protocol, Self
from uuid import UUID, uuid4

from django.db import models, transaction
from django.db.models.fields.json import KeyTransform
from django.http import Http404
from django.shortcuts import get_object_or_404

from auditlog.actions import Action
from auditlog.partitions import Partitions
from auditlog.rollups.schema import CLASS_COLUMNS, DIMENSIONS, ENDS, Grain

LAST_MOMENT = datetime(9999, 1, 1, tzinfo=UTC)


class Outcome(models.TextChoices):
    """Result of a call."""

    OK = "ok", "ok"
    TOOL_ERROR = "tool_error", "tool error"
    RPC_ERROR = "rpc_error", "protocol error"
    UNAUTHORIZED = "unauthorized", "unauthorized"
    DENIED = "denied", "denied"
    RATE_LIMITED = "rate_limited", "rate limited"
    UPSTREAM_ERROR = "upstream_error", "upstream error"
    TIMEOUT = "timeout", "timeout"
    BAD_REQUEST = "bad_request", "bad request"
    CANCELLED = "cancelled", "cancelled"
    NOT_OFFERED = "not_offered", "not offered"


# Groups of outcomes, for the search, charts and counts.
# A cancelled call is no error, because the client disconnected. A request for a method or stream that is not offered is
# no error either, because clients probe for these.
ENDINGS: dict[str, tuple[str, ...]] = {
    "ok": (Outcome.OK, Outcome.NOT_OFFERED),
    "error": (Outcome.TOOL_ERROR, Outcome.RPC_ERROR, Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT, Outcome.BAD_REQUEST),
    "denied": (Outcome.DENIED, Outcome.UNAUTHORIZED, Outcome.RATE_LIMITED),
    "cancelled": (Outcome.CANCELLED,),
}


# By column, the value that most calls have. Indexes leave out rows with this value, because almost every row has it and
# an entry for each would be expensive. A search for the value scans the rows (docs/decisions/0024).
COMMON = {"method": "tools/call", "outcome": Outcome.OK.value}


class FeatureType(models.TextChoices):
    NONE = "", "none"
    TOOL = "tool", "tool"
    PROMPT = "prompt", "prompt"
    RESOURCE = "resource", "resource"
    TEMPLATE = "template", "resource template"


class CallManager(models.Manager["Call"]):
    def find(self, uid: UUID) -> "Call":
        """Return the call with this uid; the time in the UUIDv7 selects the partition. Raises Call.DoesNotExist."""
        return self.get(uid=uid, created_at__range=span_of_uid(uid))

    def oldest(self) -> datetime | None:
        """Return the arrival time of the oldest recorded call, or None if there is none."""
        moments = self.order_by("created_at").values_list("created_at", flat=True)
        # The first partition usually has rows, and reading only that is faster than planning over all partitions.
        if first := Call.partitions.starts()[:1]:
            near = datetime.combine(first[0], datetime.min.time(), UTC) + timedelta(days=2)
            if (found := moments.filter(created_at__lt=near).first()) is not None:
                return found
        return moments.first()


def span_of_uid(uid: UUID) -> tuple[datetime, datetime]:
    """Return a period of a few milliseconds around the time in this call's UUIDv7.

    For any other id, the period is arbitrary, but valid for a query.
    """
    at = LAST_MOMENT
    with suppress(ValueError, OverflowError):  # Ids of other objects may contain any number.
        at = min(datetime.fromtimestamp((uid.int >> 80) / 1000, tz=UTC), LAST_MOMENT)
    return at - timedelta(milliseconds=1), at + timedelta(milliseconds=2)


class Call(models.Model):
    """One MCP message that arrived with a known token, answered or refused.

    The table is partitioned by ranges of `created_at`, the time of arrival. proxy.store.call_log writes the rows with
    COPY.
    """

    id = models.BigAutoField(primary_key=True)
    uid = models.UUIDField()
    created_at = models.DateTimeField()
    correlation_id = models.UUIDField()

    method = models.CharField(max_length=64)
    feature_type = models.CharField(max_length=10, choices=FeatureType, blank=True)
    feature_name = models.CharField(max_length=300, blank=True)
    outcome = models.CharField(max_length=16, choices=Outcome)
    deny_reason = models.CharField(max_length=40, blank=True)
    http_status = models.PositiveSmallIntegerField()
    rpc_error_code = models.IntegerField(null=True)

    host_id = models.UUIDField(null=True)
    gateway_id = models.UUIDField(null=True)
    connection_id = models.UUIDField(null=True)
    user_id = models.UUIDField(null=True)
    token_id = models.UUIDField(null=True)
    server_id = models.UUIDField(null=True)
    identity_id = models.UUIDField(null=True)
    # The MCP session: the uid of the `initialize` call that opened it, not the Mcp-Session-Id. NULL without a session.
    session_id = models.UUIDField(null=True)
    host_name = models.CharField(max_length=120, blank=True)
    gateway_name = models.CharField(max_length=120, blank=True)
    server_name = models.CharField(max_length=120, blank=True)
    user_email = models.CharField(max_length=254, blank=True)
    identity_label = models.CharField(max_length=120, blank=True)
    token_name = models.CharField(max_length=100, blank=True)
    token_prefix = models.CharField(max_length=12, blank=True)

    duration_ms = models.FloatField()
    authorise_ms = models.FloatField(null=True)
    upstream_ms = models.FloatField(null=True)
    request_bytes = models.PositiveIntegerField(default=0)
    response_bytes = models.PositiveIntegerField(default=0)

    client_ip = models.GenericIPAddressField(null=True)
    user_agent = models.CharField(max_length=300, blank=True)
    client_name = models.CharField(max_length=120, blank=True)
    client_version = models.CharField(max_length=60, blank=True)
    protocol_version = models.CharField(max_length=20, blank=True)

    # The error message, truncated and without secrets. It is stored even if payloads are not recorded.
    error_text = models.CharField(max_length=300, blank=True, default="", db_default="")

    # The W3C Trace Context trace id, 32 hexadecimal digits.
    trace_id = models.CharField(max_length=32, blank=True, default="", db_default="")

    # Labels of the rules on tool calls, joined by ", "; a label has no comma.
    labels = models.CharField(max_length=600, blank=True, default="", db_default="")
    # The rule that refused or held the call. If no rule did, the first rule whose condition had no result.
    rule_id = models.UUIDField(null=True)
    # The hold that stopped the call, or the hold whose approval let the call run.
    hold_id = models.UUIDField(null=True)

    request_payload = models.JSONField(null=True)
    response_payload = models.JSONField(null=True)
    payload_truncated = models.BooleanField(default=False)
    # Set by the database when the row is inserted; NULL in rows of earlier versions.
    recorded_at = models.DateTimeField(
        null=True,
        editable=False,
        db_default=models.Func(function="clock_timestamp", output_field=models.DateTimeField()),
    )

    objects: ClassVar[CallManager] = CallManager()
    partitions: ClassVar[Partitions] = Partitions("auditlog_call", "auditlog_make_partition")

    class Meta:
        ordering = ("-created_at", "-id")
        default_permissions = ("view",)
        permissions = (("view_payload", "See recorded payloads"),)
        indexes = (
            # The order is ascending. A new row is then appended after the rows with the same value, so that index pages
            # become full. PostgreSQL can scan such an index backwards.
            *(
                models.Index(fields=(name, "created_at"), name=f"call_by_{name.removesuffix('_id')}")
                for name in ("host_id", "gateway_id", "connection_id", "user_id", "server_id")
            ),
            *(
                models.Index(fields=(name, "created_at"), name=f"call_by_{name}", condition=~models.Q((name, value)))
                for name, value in COMMON.items()
            ),
            models.Index(fields=("correlation_id",), name="call_by_correlation"),
            models.Index(
                fields=("feature_name", "created_at"), name="call_by_tool", condition=~models.Q(feature_name="")
            ),
            models.Index(fields=("trace_id", "created_at"), name="call_by_trace", condition=~models.Q(trace_id="")),
            models.Index(fields=("created_at",), name="call_with_labels", condition=~models.Q(labels="")),
            models.Index(
                fields=("hold_id", "created_at"), name="call_by_hold", condition=models.Q(hold_id__isnull=False)
            ),
        )

    def __str__(self) -> str:
        return f"{self.method} {self.feature_name}".strip()

    @property
    def why(self) -> str:
        """Return the call's `deny_reason` in words. If it is empty, return the label of the outcome."""
        return self.deny_reason.replace("_", " ") or self.get_outcome_display()

    @property
    def is_recorded(self) -> bool:
        """True if part of the payload was recorded."""
        return self.request_payload is not None or self.response_payload is not None


class Rollup(models.Model):
    """Numbers of calls that began in one period and have equal values in some columns, the dimensions.

    The row has the number of all these calls, and the number of the calls in each class of durations.
    """

    seconds = models.IntegerField()
    # Bit mask of the dimensions that are set (auditlog.rollups.schema); other dimensions are NULL.
    cube = models.SmallIntegerField()
    at = models.DateTimeField()
    outcome = models.CharField(max_length=16)
    deny_reason = models.CharField(max_length=40, blank=True)
    host_id = models.UUIDField(null=True)
    user_id = models.UUIDField(null=True)
    gateway_id = models.UUIDField(null=True)
    server_id = models.UUIDField(null=True)
    method = models.CharField(max_length=64, null=True)  # noqa: DJ001  (NULL: not counted by method)
    feature_name = models.CharField(max_length=300, null=True)  # noqa: DJ001
    calls = models.BigIntegerField()
    duration_ms = models.FloatField()  # Total of the calls.
    last_at = models.DateTimeField()  # Start of the newest call.

    class Meta:
        default_permissions = ()
        constraints = (
            models.UniqueConstraint(
                fields=("cube", "seconds", "at", *ENDS, *DIMENSIONS), name="rollup_counts_once", nulls_distinct=False
            ),
        )

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M} {self.calls}"


for _name in CLASS_COLUMNS:
    Rollup.add_to_class(_name, models.IntegerField(null=True))


class RollupState(models.Model):
    """The state of the roll-ups: the calls that have been counted so far.

    The table has a single row. The process that counts calls locks it. Three groups of calls are counted separately:

    - A call with an id up to `began_at_id` has been counted if its date is `counted_from` or later.
    - A call with a higher id and the date `near_from` or later has been counted if its id is at most `counted_to`.
    - A call with a higher id and a date before `near_from` has been counted if its id is at most `late_counted_to`.
    """

    id = models.SmallIntegerField(primary_key=True, default=1)
    counted_to = models.BigIntegerField()
    near_from = models.DateTimeField()
    late_counted_to = models.BigIntegerField()
    began_at_id = models.BigIntegerField()
    counted_from = models.DateTimeField()
    minutes_from = models.DateTimeField()
    recent_hours_from = models.DateTimeField()
    hours_from = models.DateTimeField()
    days_from = models.DateTimeField()
    counted_at = models.DateTimeField()

    class Meta:
        default_permissions = ()
        db_table = "auditlog_rollupprogress"
        constraints = (models.CheckConstraint(condition=models.Q(id=1), name="rollups_have_one_progress"),)

    def __str__(self) -> str:
        return f"from {self.counted_from} to {self.counted_to}"

    def floor(self, grain: Grain) -> datetime:
        """Return the time before which roll-ups of this grain are neither counted nor retained."""
        moment: datetime = getattr(self, grain.floor)
        return moment


class Checkpoint(models.Model):
    """A signed list of rows of the logs, with the digest of each row (auditlog.checkpoints)."""

    number = models.BigIntegerField(primary_key=True)
    body = models.TextField()  # Canonical JSON. Only this is signed.
    signature = models.BinaryField()
    public_key = models.BinaryField()
    leaves = models.BinaryField(null=True)  # The digests; deleted when retention drops the rows.
    newest_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ("number",)
        default_permissions = ()

    def __str__(self) -> str:
        return str(self.number)


class CheckpointKey(models.Model):
    """The encrypted key that signs checkpoints; the only row of its table."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    sealed = models.BinaryField()
    key_id = models.CharField(max_length=8)

    class Meta:
        default_permissions = ()
        constraints = (models.CheckConstraint(condition=models.Q(id=1), name="checkpoints_have_one_key"),)

    def __str__(self) -> str:
        return self.key_id


# The context of a change: set once per request, read by `Event.objects.record`.


class Via(models.TextChoices):
    """The interface through which a change was made."""

    WEB = "web", "Web"
    API = "api", "API"
    BEARER = "bearer", "Bearer token"
    DJANGO_ADMIN = "django_admin", "Django admin"
    SYSTEM = "system", "System"
    OAUTH = "oauth", "OAuth"
    SCIM = "scim", "SCIM"


@dataclass(frozen=True, slots=True)
class EventContext:
    """The origin of the changes that the current request makes."""

    via: Via = Via.SYSTEM
    ip: str | None = None
    correlation_id: UUID = field(default_factory=uuid4)
    through: str = ""  # The name of the request's API key, if any.
    reason: str = ""  # The reason that the person gave for the changes.
    file: str = ""  # The configuration file that made the changes, with its commit.
    # Called before each event is recorded; may raise to refuse the change.
    check: Callable[[Action, Sequence[models.Model], Mapping[str, Any]], None] | None = None


_context: ContextVar[EventContext | None] = ContextVar("event_context", default=None)


def current_context() -> EventContext:
    """Return the context in use, such as that of the current request.

    If no context is in use, return a new one, whose changes are recorded as made by the system (`Via.SYSTEM`).
    """
    return _context.get() or EventContext()


@contextmanager
def use_context(context: EventContext) -> Iterator[None]:
    """Use `context` for all changes recorded inside the block."""
    token = _context.set(context)
    try:
        yield
    finally:
        _context.reset(token)


def note_api_key(name: str) -> None:
    """Attribute the remaining changes of the request to this API key."""
    _context.set(replace(current_context(), through=name))


LONGEST_REASON = 300


@contextmanager
def giving_reason(text: str) -> Iterator[None]:
    """Record changes inside the block with this reason, which may be empty."""
    reason = text.replace("\0", "").strip()[:LONGEST_REASON]
    with use_context(replace(current_context(), reason=reason)):
        yield


class Actor(Protocol):
    """An actor who makes changes, such as a person or a directory (SCIM)."""

    pk: Any
    email: str


# Callers should not pass secrets. If one is passed by mistake, masking these fields keeps it out of the database.
SECRET_FIELDS = frozenset({"secret", "password", "token", "refresh", "authorization", "cookie", "api_key"})
MASK = "***"


def masked(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes of an event with stars for the values of secret fields."""
    return {name: _mask(value) if name.lower() in SECRET_FIELDS else value for name, value in changes.items()}


def _mask(value: Any) -> Any:
    return [_mask(one) for one in value] if isinstance(value, list) else value and MASK


class EventManager(models.Manager["Event"]):
    def record(
        self,
        action: Action,
        target: models.Model,
        *,
        by: Actor | None,
        changes: dict[str, Any] | None = None,
        actor: str = "",
    ) -> "Event":
        """Record that `by` did `action` to `target`. If `by` is None, the system did it.

        Call this inside the transaction of the change. `changes` maps each changed field to [before, after]; values of
        SECRET_FIELDS are masked. `actor` is recorded instead of the e-mail address of `by`, for an actor that is not a
        person, such as a token. If the target has an `owner_email`, it is added to the recorded changes as `owner`.
        """
        self.check_allowed(action, [target], changes or {})
        event = self._unsaved(action, target, by, changes or {}, actor)
        event.save(using=self._db, force_insert=True)
        return event

    def record_all(
        self, action: Action, targets: Sequence[models.Model], *, by: Actor | None, changes: dict[str, Any]
    ) -> None:
        """Record that the actor `by` did `action` to each of `targets`, in one statement. See `record`."""
        self.check_allowed(action, targets, changes)
        self.bulk_create(self._unsaved(action, target, by, changes) for target in targets)

    def check_allowed(self, action: Action, targets: Sequence[models.Model], changes: Mapping[str, Any]) -> None:
        """Run the `check` of the current EventContext. The check raises an error to refuse the action.

        `record` runs the check, too. Call this method only before an action that cannot be undone if `record` raises.
        """
        if check := current_context().check:
            check(action, targets, changes)

    def _unsaved(
        self, action: Action, target: models.Model, by: Actor | None, changes: dict[str, Any], actor: str = ""
    ) -> "Event":
        context = current_context()
        owner = getattr(target, "owner_email", "")
        aside = {"owner": owner, "through": context.through, "because": context.reason, "file": context.file}
        return Event(
            actor_id=by.pk if by else None,
            actor_email=actor or (by.email if by else "system"),
            via=context.via,
            ip=context.ip,
            correlation_id=context.correlation_id,
            action=action,
            target_type=target._meta.model_name or "",
            target_id=str(target.pk),
            target_label=str(target)[:200],
            changes=masked(changes) | {name: text for name, text in aside.items() if text},
        )


class Event(models.Model):
    """One administrative action, written in the transaction of the change it describes."""

    id = models.BigAutoField(primary_key=True)
    uid = models.UUIDField(unique=True, default=uuid4, editable=False)
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)
    actor_id = models.UUIDField(null=True, db_index=True)
    actor_email = models.CharField(max_length=254)
    via = models.CharField(max_length=12, choices=Via)
    ip = models.GenericIPAddressField(null=True)
    action = models.CharField(max_length=60)
    target_type = models.CharField(max_length=40)
    target_id = models.CharField(max_length=40)
    target_label = models.CharField(max_length=200)
    changes = models.JSONField(default=dict)
    correlation_id = models.UUIDField()

    objects: ClassVar[EventManager] = EventManager()

    class Meta:
        ordering = ("-created_at", "-id")
        default_permissions = ("view",)
        indexes = (
            models.Index(fields=("target_type", "target_id"), name="event_by_target"),
            models.Index(fields=("action", "created_at"), name="event_by_action"),  # For `accounts.asking`.
            models.Index(KeyTransform("owner", "changes"), name="event_by_owner"),
        )

    def __str__(self) -> str:
        return f"{self.action} {self.target_label}"


class Switchable(models.Model):
    """Base of models that can be disabled and enabled; the proxy reads `enabled` on every request."""

    enabled = models.BooleanField(default=True)

    class Meta:
        abstract = True

    @property
    def may_be_archived(self) -> bool:
        """True if the row may be archived now; a row in use must be disabled first."""
        return not self.enabled

    def disable(self, *, by: Actor | None) -> bool:
        """Disable the row, so that the proxy refuses requests that need it. Return False if it was disabled already."""
        return bool(self._switch_all([self], on=False, by=by))

    def enable(self, *, by: Actor | None) -> bool:
        """Enable the row again. Returns False if the row was enabled already."""
        return bool(self._switch_all([self], on=True, by=by))

    @classmethod
    def _switch_all(cls, rows: Sequence[Self], *, on: bool, by: Actor | None) -> list[Self]:
        """Enable or disable `rows` in one statement. Record an event for each row that changed, and return these rows.

        Raises Http404 if somebody has removed a row. Also raises the errors of `_check_switch`.
        """
        if not rows:
            return []
        with transaction.atomic():
            current = cls.lock_all(rows)
            was = {row.pk: row.enabled for row in current}
            if was.keys() != {row.pk for row in rows}:
                raise Http404
            for row in current:
                row._check_switch(on, by)  # noqa: SLF001 - of this class
            if changed := [row for row in rows if was[row.pk] != on]:
                columns = [row._further_columns(on, by) for row in changed][-1]  # noqa: SLF001 - of this class
                cls._default_manager.filter(pk__in=[row.pk for row in changed]).update(enabled=on, **columns)
                action = Action(f"{cls._meta.model_name}.{'enabled' if on else 'disabled'}")
                Event.objects.record_all(action, changed, by=by, changes={"enabled": [not on, on]})
        for row in rows:
            row.enabled = on
        return changed

    def _check_switch(self, on: bool, by: Actor | None) -> None:
        """Raise an error if `by` may not enable or disable this row, which is current and locked."""

    def _further_columns(self, on: bool, by: Actor | None) -> dict[str, Any]:
        return {}

    def lock(self) -> Self:
        """Return the current row, locked until the transaction ends. Raises Http404 if somebody has removed the row."""
        return get_object_or_404(type(self)._base_manager.select_for_update(of=("self",)), pk=self.pk)

    @classmethod
    def lock_all(cls, rows: Iterable[Self]) -> list[Self]:
        """Return the current rows, locked until the transaction ends."""
        keys = {row.pk for row in rows}
        return list(cls._base_manager.select_for_update(of=("self",)).filter(pk__in=keys).order_by("pk"))
