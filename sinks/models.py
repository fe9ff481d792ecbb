"""Sinks: receivers of the call log and the admin events, each with its position in both logs.

Rows are sent at least once (docs/decisions/0032-sinks-read-the-log.md).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, ClassVar
from uuid import uuid4

import orjson
from django.db import IntegrityError, connection, models, transaction
from django.db.models import Max, Q
from django.db.models.functions import Lower
from django.utils import timezone

from accounts.models import User
from auditlog import replica
from auditlog.actions import Action
from auditlog.models import Actor, Call, Checkpoint, Event, Switchable
from auditlog.replica import NEAR
from auditlog.versions import Seen, Versioned
from capabilities import Capability, CapabilityRequired
from sinks.receivers import KINDS, LogLine, Receiver, Undelivered, notice, send_notice, shown_origin
from ui.forms import named
from ui.sealing import cipher
from ui.states import state_label

LONGEST_ERROR = 300
NOTICE_S = 3.0  # Timeout for the notice sent before a sink is changed, paused or removed.
TONES = {"current": "ok", "behind": "attention", "failing": "down", "paused": "disabled", "waiting": "unknown"}
# The fields of the position in the call log.
CALLS_POSITION = {
    *("calls_to", "calls_at", "near_from", "late_calls_to"),
    *("round_to", "round_began_at", "round_at", "round_id"),
}
CONTENT = {
    "sends_calls": Capability.LOGS_READ,
    "sends_events": Capability.AUDIT_READ,
    "sends_payloads": Capability.LOGS_PAYLOADS,
}


class SinkError(Exception):
    """The settings of a sink were refused; the message says why. `field` is the form field, if any."""

    field = ""


class SinkNameTaken(SinkError):
    """A sink with this name already exists."""

    field = "name"


class BadSinkAddress(SinkError):
    """The sink's address is not allowed."""

    field = "address"


class BadSinkSecret(SinkError):
    """The secret does not fit this kind of sink."""

    field = "secret"


class SendsNothing(SinkError):
    """Choose what is sent: calls, admin events or both. Payloads can be sent only with calls."""

    field = "sends_calls"


KIND_CHOICES = [(kind.name, kind.label) for kind in KINDS.values()]


LATE = timedelta(minutes=1)


class SinkManager(models.Manager["Sink"]):
    def late(self) -> models.QuerySet[Sink]:
        """Return the sinks that are failing or behind."""
        behind = Q(failures__gt=0) | Q(waiting_since__lt=timezone.now() - LATE)
        return self.filter(behind, enabled=True)

    def add(  # noqa: PLR0913  (the fields of a sink, keyword-only)
        self,
        *,
        by: User | None,
        name: str,
        kind: str,
        address: str = "",
        secret: str = "",
        sends_calls: bool = True,
        sends_events: bool = True,
        sends_payloads: bool = False,
        from_beginning: bool = False,
    ) -> Sink:
        """Add a sink that gets new rows only. With `from_beginning`, it gets all rows.

        Raises SinkError. Raises CapabilityRequired if the person `by` may not see all the logs that the sink gets.
        """
        sink = Sink(name=name.strip(), kind=kind, created_by=by)
        fields = {"sends_calls": sends_calls, "sends_events": sends_events, "sends_payloads": sends_payloads}
        sink.set_up(fields | {"address": address, "secret": secret}, by)
        sink.begin(from_beginning=from_beginning)
        try:
            with transaction.atomic():
                sink.save(force_insert=True)
                told = {name: [None, value] for name, value in sink.told().items() if value not in ("", False)}
                Event.objects.record(Action.SINK_CREATED, sink, by=by, changes=told)
        except IntegrityError:
            raise SinkNameTaken(SinkNameTaken.__doc__) from None
        return sink


class Sink(Versioned, Switchable):
    """A receiver of the logs. Its position says which rows the receiver has acknowledged."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    name = models.CharField(max_length=80)
    kind = models.CharField(max_length=10, choices=KIND_CHOICES)
    address = models.CharField(max_length=500, blank=True)
    # True if the host had a private address when the sink was set up; otherwise the guard refuses private addresses.
    private = models.BooleanField(default=False)
    secret_ciphertext = models.BinaryField(null=True)
    key_id = models.CharField(max_length=8, blank=True)
    sends_calls = models.BooleanField("calls", default=True)
    sends_events = models.BooleanField("admin events", default=True)
    sends_payloads = models.BooleanField("payloads", default=False)

    # The position: the rows that the receiver has acknowledged. Calls dated before `near_from` are late calls.
    calls_to = models.BigIntegerField(default=0)  # Calls dated `near_from` or later: ids up to this one.
    calls_at = models.DateTimeField()  # The time at which `calls_to` was the newest id.
    near_from = models.DateTimeField()
    late_calls_to = models.BigIntegerField(default=0)  # Late calls: ids up to this one.
    # While a round of batches is sent (see sinks.reading), also the calls of this round, in the log's order, up to and
    # including (`round_at`, `round_id`). `round_to` is the highest id of the round, null in a round of late calls.
    round_to = models.BigIntegerField(null=True)
    round_began_at = models.DateTimeField(null=True)
    round_at = models.DateTimeField(null=True)
    round_id = models.BigIntegerField(null=True)
    events_to = models.BigIntegerField(default=0)  # Ids up to this one.
    checkpoints_to = models.BigIntegerField(default=0)  # Numbers up to this one; every sink gets checkpoints.

    # The lease: the process that delivers rows, and the time until which no other process may deliver.
    claim = models.UUIDField(null=True, editable=False)
    claimed_until = models.DateTimeField(null=True, editable=False)
    looked_at = models.DateTimeField(null=True)  # Time of the last check for rows to send.
    retry_at = models.DateTimeField(null=True)
    failures = models.PositiveIntegerField(default=0)  # Consecutive failures.
    last_error = models.CharField(max_length=LONGEST_ERROR, blank=True)
    last_error_at = models.DateTimeField(null=True)
    delivered = models.BigIntegerField(default=0)  # Rows; a row that is sent twice counts twice.
    # Number of rows that were skipped because the receiver refuses them permanently.
    refused = models.BigIntegerField(default=0, db_default=0)
    last_delivered_at = models.DateTimeField(null=True)
    waiting_since = models.DateTimeField(null=True)  # Date of the oldest row known to be undelivered.
    dropped_before = models.DateTimeField(null=True)  # Retention dropped undelivered rows before this date.
    created_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects: ClassVar[SinkManager] = SinkManager()

    class Meta:
        ordering = ("name",)
        default_permissions = ()
        permissions = (("view_sink", "View log sinks"), ("manage_sink", "Send the logs elsewhere"))
        constraints = (
            models.UniqueConstraint(Lower("name"), name="sink_name_is_unique"),
            models.CheckConstraint(
                condition=Q(sends_calls=True) | Q(sends_events=True, sends_payloads=False), name="sink_sends_something"
            ),
        )

    def __str__(self) -> str:
        return self.name

    @property
    def status(self) -> str:
        """`paused`, `failing`, `behind`, `current`, or `waiting` before the first check for rows to send."""
        if not self.enabled:
            return "paused"
        if self.failures:
            return "failing"
        if self.lag and self.lag > LATE:
            return "behind"
        return "current" if self.looked_at else "waiting"

    @property
    def words(self) -> str:
        """The status as text for pages."""
        return state_label(self.status, "sink").capitalize()

    @property
    def tone(self) -> str:
        """The style of the status badge on pages, such as `attention`."""
        return TONES[self.status]

    @property
    def lag(self) -> timedelta | None:
        """The age of the oldest undelivered row. None if all rows are delivered, or if the sink is paused."""
        if self.waiting_since is None or not self.enabled:
            return None
        return max(timezone.now() - self.waiting_since, timedelta())

    @property
    def seconds_to_next_try(self) -> int:
        """The seconds until the next retry; 0 if the retry is due, or if no retry is pending."""
        return max(round((self.retry_at - timezone.now()).total_seconds()), 0) if self.retry_at else 0

    @property
    def is_settled(self) -> bool:
        """True if the sink is current or paused, so that the page about it does not have to refresh itself."""
        return self.status in ("current", "paused")

    @property
    def sends(self) -> str:
        """The kinds of log rows that the sink gets, as text, such as "calls and admin events"."""
        calls = "calls with payloads" if self.sends_payloads else "calls"
        return " and ".join([calls] * self.sends_calls + ["admin events"] * self.sends_events)

    @property
    def has_secret(self) -> bool:
        return self.secret_ciphertext is not None

    def editable(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("name", "kind", "address", *CONTENT, "enabled")}

    def told(self) -> dict[str, Any]:
        """Return the sink's editable values for an event, with the address reduced to its origin."""
        return self.editable() | {"address": shown_origin(self.address)}

    @property
    def place(self) -> str:
        """The address for lists and the API. A path is replaced by `...`, because it may contain a token."""
        origin = shown_origin(self.address)
        return origin if self.address.rstrip("/") == origin or not origin else f"{origin}/..."

    def place_for(self, person: User) -> str:
        """Return the full address if this person may edit the sink, otherwise `place`."""
        if not person.has_perm(Capability.SINKS_MANAGE):
            return self.place
        try:
            self.must_be_open_to(person)
        except CapabilityRequired:
            return self.place
        return self.address

    def secret(self) -> str:
        """Return the decrypted secret, empty if there is none. Raises wire.cipher.Undecryptable."""
        return cipher().open(bytes(self.secret_ciphertext)) if self.secret_ciphertext else ""

    @property
    def receiver_kind(self) -> type[Receiver]:
        return KINDS[self.kind]

    def receiver(self) -> Receiver:
        """Return the receiver that delivers to this sink. Raises Undelivered if the secret cannot be read."""
        return self.receiver_kind(self)

    def must_be_open_to(self, by: User | None) -> None:
        """Raise CapabilityRequired unless the person `by` may see all the logs that this sink gets."""
        # Without this check, people could use a sink to read logs that they may not see on the pages.
        for name, capability in CONTENT.items():
            if by is not None and getattr(self, name) and not by.has_perm(capability):
                raise CapabilityRequired(capability)

    def set_up(self, fields: dict[str, Any], by: User | None) -> None:
        """Validate and set these values, and encrypt the secret. Raises SinkError and CapabilityRequired."""
        secret, address = fields.pop("secret", ""), self.address
        for name, value in fields.items():
            setattr(self, name, value.strip() if isinstance(value, str) else value)
        if not (self.sends_calls or self.sends_events) or (self.sends_payloads and not self.sends_calls):
            raise SendsNothing(SendsNothing.__doc__)
        self.must_be_open_to(by)
        if not self.receiver_kind.example:
            self.address, self.private = "", False
        elif self.address != address or not address:
            self._must_be_an_address()
        self._take_secret(secret, moved=shown_origin(address) != shown_origin(self.address))

    def _take_secret(self, secret: str, *, moved: bool) -> None:
        """Encrypt a new secret, or keep the current one if `secret` is empty. Raises BadSinkSecret."""
        kind = self.receiver_kind
        if not kind.key_label or (kind.shows_secret and not secret and not self.has_secret):
            self.secret_ciphertext, self.key_id = None, ""
        elif secret or not self.has_secret:
            try:
                kind.check_secret(secret)
            except ValueError as refusal:
                raise BadSinkSecret(str(refusal)) from None
            self.secret_ciphertext, self.key_id = cipher().seal(secret), cipher().key_id
        elif kind.shows_secret and moved:
            raise BadSinkSecret(
                "Enter the secret again: the saved one belongs to the old address and must not be sent to the new one."
            )

    def _must_be_an_address(self) -> None:
        try:
            self.private = self.receiver_kind.checked_address(self.address)
        except ValueError as refusal:
            raise BadSinkAddress(str(refusal)) from None

    def begin(self, *, from_beginning: bool = False) -> None:
        """Set the position to now or, with `from_beginning`, to the oldest row."""
        oldest = Call.objects.oldest() if from_beginning else None
        self.calls_at = oldest or timezone.now()
        self.near_from = oldest or self.calls_at - NEAR
        self.round_to = self.round_began_at = self.round_at = self.round_id = None
        self.calls_to = self.late_calls_to = 0 if from_beginning else _newest(Call)
        self.events_to = 0 if from_beginning else _newest(Event)
        newest = None if from_beginning else Checkpoint.objects.aggregate(newest=Max("number"))["newest"]
        self.checkpoints_to = newest or 0

    def edit(self, *, by: User | None, seen: Seen | None = None, secret: str = "", **fields: Any) -> None:
        """Change the sink, and record what changed. Raises SinkError, CapabilityRequired and ChangedMeanwhile.

        If the change adds a log, only new rows of this log are sent. If the current receiver will get less
        data or no data, this receiver is notified before the change.
        """
        if fields.get("address") == self.place:  # The shortened address that people see: the address stays as it is.
            del fields["address"]
        self._announce_edit(seen, dict(fields), secret, by)
        try:
            with transaction.atomic():
                row: Sink = self.lock()
                before = row.editable()
                changes: dict[str, Any] = {
                    name: [before[name], value] for name, value in fields.items() if before[name] != value
                }
                row.must_be(seen, changes)
                row.set_up({**fields, "secret": secret}, by)
                columns = {*fields, "private", "secret_ciphertext", "key_id", "updated_at"} - {"kind"}
                if row.sends_calls and not before["sends_calls"]:
                    row._skip_calls()
                    columns |= CALLS_POSITION
                if row.sends_events and not before["sends_events"]:
                    row.events_to = _newest(Event)
                    columns |= {"events_to"}
                row.retry_at = None  # Retry immediately.
                row.save(update_fields=[*columns, "retry_at"])
                if secret:
                    changes["secret_replaced"] = True
                if "address" in changes:
                    changes["address"] = [shown_origin(before["address"]), shown_origin(row.address)]
                if changes:
                    Event.objects.record(Action.SINK_UPDATED, row, by=by, changes=changes)
        except IntegrityError:
            raise SinkNameTaken(SinkNameTaken.__doc__) from None
        self.refresh_from_db()

    def _announce_edit(self, seen: Seen | None, fields: dict[str, Any], secret: str, by: User | None) -> None:
        """Notify the current receiver before an edit that reduces or ends what this receiver gets.

        An edit that will be refused is not announced.
        """
        row: Sink = type(self).objects.get(pk=self.pk)
        Event.objects.check_allowed(Action.SINK_UPDATED, [row], fields)
        was, line = (
            row.told(),
            row._notice(Action.SINK_UPDATED, by, "Changed by {}. From now on, this receiver gets less data, or none."),
        )
        address, receiver = row.address, row._receiver_if_any()
        row.must_be(seen, [name for name, value in fields.items() if was.get(name) != value])
        row.set_up({**fields, "secret": secret}, by)
        if type(self).objects.filter(named(row.name)).exclude(pk=row.pk).exists():
            raise SinkNameTaken(SinkNameTaken.__doc__)
        if receiver and (row.address != address or any(was[name] and not getattr(row, name) for name in CONTENT)):
            send_notice(receiver, line, NOTICE_S)

    def _announce(self, action: Action, words: str, by: Actor | None, seen: Seen | None) -> None:
        """Notify the receiver before a change. The change is made even if the receiver cannot be reached.

        The row is not locked while the receiver is notified.
        """
        row: Sink = type(self).objects.get(pk=self.pk)
        Event.objects.check_allowed(action, [row], {})
        row.must_be(seen)
        if receiver := row._receiver_if_any():
            send_notice(receiver, row._notice(action, by, words), NOTICE_S)

    def _notice(self, action: Action, by: Actor | None, words: str) -> LogLine:
        actor = by.email if by else "the system"
        return notice(self, action, actor, words.format(actor))

    def _receiver_if_any(self) -> Receiver | None:
        try:
            return self.receiver()
        except Undelivered:
            return None

    def _skip_calls(self) -> None:
        events = self.events_to
        self.begin()
        self.events_to = events

    def enable(self, *, by: Any) -> bool:
        """Resume at the last position. Return False if the sink was enabled already. Raises CapabilityRequired."""
        self.must_be_open_to(by)
        return super().enable(by=by)

    def disable(self, *, by: Actor | None, seen: Seen | None = None) -> bool:
        """Pause the sink and notify the receiver. Return False if it was paused already. Raises ChangedMeanwhile."""
        if self.enabled:
            self._announce(
                Action.SINK_DISABLED, "Paused by {}: nothing will be sent until the sink is enabled again.", by, seen
            )
        with transaction.atomic():
            row: Sink = self.lock()
            row.must_be(seen)
            return super().disable(by=by)

    def send_now(self, *, by: Actor | None, seen: Seen | None = None) -> bool:
        """Retry without waiting for `retry_at`. Returns False if no retry was pending. Raises ChangedMeanwhile."""
        with transaction.atomic():
            row: Sink = self.lock()
            row.must_be(seen)
            if row.retry_at is None or not row.enabled:
                return False
            row.retry_at = row.looked_at = None
            row.save(update_fields=["retry_at", "looked_at"])
            Event.objects.record(Action.SINK_SENT_NOW, row, by=by)
        return True

    def _further_columns(self, on: bool, by: Actor | None) -> dict[str, Any]:
        return {"retry_at": None, "failures": 0} if on else {}

    def remove(self, *, by: Actor | None, seen: Seen | None = None) -> None:
        """Notify the receiver and delete the sink with its position. Raises ChangedMeanwhile."""
        self._announce(Action.SINK_REMOVED, "Removed by {}: nothing more will be sent.", by, seen)
        with transaction.atomic():
            row: Sink = self.lock()
            row.must_be(seen)
            Event.objects.record(
                Action.SINK_REMOVED, self, by=by, changes={"address": [shown_origin(row.address), None]}
            )
            self.delete()

    def note_refused(self, line: LogLine, answer: str) -> None:
        """Record that this row was skipped, because the receiver refuses it permanently."""
        said = orjson.loads(line.text)
        # No event if the row is itself such an event about this sink: the receiver would refuse the new event too.
        if said.get("action") != Action.SINK_ROW_REFUSED or said.get("target_id") != str(self.pk):
            told = {"log": line.log, "row": line.uid, "answer": answer}
            Event.objects.record(Action.SINK_ROW_REFUSED, self, by=None, changes=told)

    def note_dropped(self, before: datetime, calls: int | None) -> None:
        """Record that undelivered calls older than `before` were dropped, unless this is recorded already.

        `calls` is the number of these calls, or None if they were not counted.
        """
        with transaction.atomic():
            row: Sink = self.lock()
            if row.dropped_before and row.dropped_before >= before:
                return
            type(self).objects.filter(pk=self.pk).update(dropped_before=before)
            told = {"before": before.isoformat(), "calls": "unknown" if calls is None else calls}
            Event.objects.record(Action.SINK_ROWS_DROPPED, self, by=None, changes=told)


class ArchivedPartition(models.Model):
    """A partition of the call log that was archived or could not be archived (sinks.archive).

    The row of this table stays when the partition is dropped. Database roles that only serve requests cannot write to
    this table.
    """

    name = models.CharField(max_length=63, primary_key=True)
    begin = models.DateField()
    end = models.DateField()  # Exclusive.
    rows = models.BigIntegerField(default=0)
    digest = models.CharField(max_length=64, blank=True)
    archived_at = models.DateTimeField(null=True)
    last_error = models.CharField(max_length=LONGEST_ERROR, blank=True)
    failed_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ("begin",)
        default_permissions = ()

    def __str__(self) -> str:
        return self.name


def _newest(model: type[Call] | type[Event]) -> int:
    with connection.cursor() as cursor:
        return replica.newest_id(cursor, model._meta.db_table)
