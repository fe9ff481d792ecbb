"""Send the logs: the chores process checks every few seconds which sinks are due.

One process at a time serves a sink, and each sink has its own thread. While the thread waits for a receiver, it holds
no database connection.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from django.db import connection, transaction
from django.db.models import F, Q
from django.utils import timezone

from accounts.queues import released_while_waiting
from auditlog.actions import Action
from auditlog.models import Actor, Call, Event
from auditlog.partitions import midnight
from sinks import reading
from sinks.models import LONGEST_ERROR, Sink
from sinks.reading import Batch, SinkReader, leased_reader, oldest
from sinks.receivers import KINDS, Receiver, Undelivered, backoff, trial
from ui import databases

logger = logging.getLogger(__name__)

PASS_S = 20.0  # Maximum time to serve a sink; then other processes may serve it.
MINUTE = timedelta(minutes=1)
MOST_THREADS = 4  # Sinks that a process serves at once.
MOST_REFUSED = 20  # Rows skipped in one pass. If a receiver refuses more, the cause is not the rows.

# A function that records the outcome of a delivery under the lease, and returns whether to continue with the sink.
type Note = Callable[[Sink, SinkReader], bool]

_threads: dict[UUID, threading.Thread] = {}


def start_due() -> None:
    """Start to serve the due sinks that this process does not serve yet."""
    for pk in [pk for pk, thread in _threads.items() if not thread.is_alive()]:
        del _threads[pk]
    for pk in due():
        if pk not in _threads and len(_threads) < MOST_THREADS:
            # Daemon threads: rows that are unacknowledged when the process ends are sent again.
            _threads[pk] = threading.Thread(target=_serve_logged, args=(pk,), name=f"sink {pk}", daemon=True)
            _threads[pk].start()


def due() -> list[UUID]:
    """Return the ids of the sinks to serve now. The sink that was served longest ago is the first."""
    now = timezone.now()
    rested = Q(looked_at=None)
    for kind in KINDS.values():
        rested |= Q(kind=kind.name, looked_at__lt=now - kind.every)
    may = Q(retry_at=None) | Q(retry_at__lte=now)
    free = Q(claimed_until=None) | Q(claimed_until__lte=now)
    rows = Sink.objects.filter(rested, may, free, enabled=True).order_by(F("looked_at").asc(nulls_first=True))
    return list(rows.values_list("pk", flat=True))


def _serve_logged(pk: UUID) -> None:
    try:
        with databases.direct():
            send_undelivered(pk)
    except Exception:
        logger.exception("serving a sink failed", extra={"sink": str(pk)})
    finally:
        connection.close()


def send_undelivered(pk: UUID, seconds: float = PASS_S) -> int:
    """Send undelivered rows of this sink for about `seconds`, and return how many were acknowledged.

    Does nothing if another process serves the sink. Errors are stored on the sink.
    """
    service = _Service(pk, time.monotonic() + seconds)
    try:
        service.run()
    except Exception:  # The error is stored on the sink, and other sinks are served.
        logger.exception("a sink could not be served", extra={"sink": str(pk)})
        service.note_broken()
    finally:
        service.close()
    return service.sent


class _Service:
    """Serves one sink for a while: batches are read with a database connection, and delivered without one."""

    def __init__(self, pk: UUID, until: float) -> None:
        self.sent = 0
        self._pk, self._until, self._claim = pk, until, uuid4()
        self._most = self._all = reading.MOST_ROWS
        self._refused = 0
        self._last_ids: dict[str, int | None] = {}
        self._set_up: datetime | None = None
        self._receiver: Receiver | None = None

    def close(self) -> None:
        if self._receiver is not None:
            self._receiver.close()

    def run(self) -> None:
        """Deliver batches until no rows are left, a delivery fails, the sink is changed or paused, or time is up."""
        note: Note | None = lambda sink, reader: True  # noqa: E731  (nothing was delivered yet)
        sink: Sink | None = None
        while note is not None:
            with leased_reader(self._pk, self._claim) as reader:
                if reader is None or (sink is not None and not note(sink, reader)):
                    return
                sink, batch = self._next(reader)
                if sink is None or batch is None:
                    return
                if not reader.take():  # Reading took so long that another process has the lease.
                    return
            note = self._deliver(sink, batch)

    def note_broken(self) -> None:
        with leased_reader(self._pk, self._claim) as reader:
            sink = _loaded(self._pk) if reader else None
            if reader and sink:
                said = "could not be served: see the log of this process."
                _note_failure(sink, reader, Undelivered(said), None)

    def _next(self, reader: SinkReader) -> tuple[Sink | None, Batch | None]:
        """Return a pair: the current sink and the batch to deliver; both are None if nothing can be delivered."""
        sink = _loaded(self._pk)
        while sink is not None and not self._is_over(sink):
            try:
                self._open(sink)
            except Undelivered as refusal:  # The receiver could not be set up.
                _note_failure(sink, reader, refusal, None)
                return None, None
            reader.most = self._most
            # Rows that arrive during a pass wait for the next pass, so that a bucket gets few objects.
            reader.last_ids = self._last_ids if sink.receiver_kind.every >= MINUTE else {}
            batch = reader.next(sink)
            if batch is None:
                reader.move(sink, {}, looked_at=timezone.now(), waiting_since=None, **_HEALTHY, **_FREE)
                return None, None
            if batch.lines:
                return sink, batch
            if not reader.move(sink, batch.then, looked_at=timezone.now()):
                break
            sink = _loaded(self._pk)
        reader.release()
        return None, None

    def _is_over(self, sink: Sink) -> bool:
        return self._set_up is not None and (sink.updated_at != self._set_up or time.monotonic() > self._until)

    def _open(self, sink: Sink) -> None:
        if self._receiver is None:
            self._set_up = sink.updated_at
            self._most = self._all = sink.receiver_kind.most_lines or reading.MOST_ROWS
            _note_gap(sink)
            databases.give_back()  # Do not hold a connection while waiting for the receiver.
            self._receiver = sink.receiver()

    def _deliver(self, sink: Sink, batch: Batch) -> Note:
        """Deliver the batch. Return the function that stores the result in the sink's row."""
        assert self._receiver is not None
        try:
            self._receiver.deliver(batch.lines)
        except Undelivered as refusal:
            return self._refusal(batch, refusal)
        return partial(self._note_delivered, batch)

    def _refusal(self, batch: Batch, refusal: Undelivered) -> Note:
        if (refusal.too_large or refusal.for_good) and len(batch.lines) > 1 and self._most > 1:
            self._most = max(len(batch.lines) // 2, 1)
            return lambda sink, reader: True
        if refusal.for_good and len(batch.lines) == 1 and self._refused < MOST_REFUSED and self._takes_others():
            self._most = self._all if not refusal.too_large else self._most
            self._refused += 1
            return partial(_note_refused, batch, refusal)
        return partial(_note_delivery_failed, batch, refusal)

    def _takes_others(self) -> bool:
        """Send a test line, and return whether the receiver accepts it.

        If the receiver accepts the line, the fault is in the row that the receiver refused just before.
        """
        assert self._receiver is not None
        try:
            self._receiver.deliver([trial()])
        except Undelivered:
            return False
        return True

    def _note_delivered(self, batch: Batch, sink: Sink, reader: SinkReader) -> bool:
        noted: dict[str, Any] = {
            "looked_at": timezone.now(),
            "last_delivered_at": timezone.now(),
            "delivered": sink.delivered + len(batch.lines),
            "waiting_since": max(line.at for line in batch.lines),
        }
        moved = reader.move(sink, batch.then, **noted, **_HEALTHY)
        self.sent += len(batch.lines) if moved else 0
        return moved


_HEALTHY: dict[str, Any] = {"failures": 0, "retry_at": None}
_FREE: dict[str, Any] = {"claim": None, "claimed_until": None}


def _note_refused(batch: Batch, refusal: Undelivered, sink: Sink, reader: SinkReader) -> bool:
    """Skip the only row of this batch, because the receiver refuses the row permanently. Record the refusal.

    Return whether to continue with this sink.
    """
    [line] = batch.lines
    sink.note_refused(line, f"It {refusal}")
    now, said = timezone.now(), f"It {refusal.args[0].removesuffix('.')} to {line.log} {line.uid}, which was skipped."
    noted = {"looked_at": now, "refused": sink.refused + 1, "last_error": said[:LONGEST_ERROR], "last_error_at": now}
    return reader.move(sink, batch.then, **noted, **_HEALTHY)


def _note_delivery_failed(batch: Batch, refusal: Undelivered, sink: Sink, reader: SinkReader) -> bool:
    _note_failure(sink, reader, refusal, oldest(batch.lines))
    return False


def _note_failure(sink: Sink, reader: SinkReader, refusal: Undelivered, since: datetime | None) -> None:
    failures, now = sink.failures + 1, timezone.now()
    wait = max(refusal.wait or 0.0, backoff(failures, random.random()))  # noqa: S311  no secret
    if failures == 1:
        logger.warning("a sink did not accept the log", extra={"sink": sink.name, "error": str(refusal)})
    reader.move(
        sink,
        {},
        looked_at=now,
        failures=failures,
        retry_at=now + timedelta(seconds=wait),
        last_error=f"It {refusal}"[:LONGEST_ERROR],
        last_error_at=now,
        waiting_since=since or sink.waiting_since,
        **_FREE,
    )


def _loaded(pk: UUID) -> Sink | None:
    """Return the current sink, or None if it is paused or deleted. Gives the database connection back to the pool."""
    try:
        return Sink.objects.filter(pk=pk, enabled=True).first()
    finally:
        databases.give_back()


# Rows dropped by retention


def drop_before(limit: date) -> int:
    """Let sinks skip undelivered calls in partitions before `limit`, and return the number of skipped calls.

    For each sink that skips calls, an event records the number. Call this before the partitions are dropped.
    """
    begin = Call.partitions.kept_from(limit)
    lost = 0
    for sink in Sink.objects.filter(sends_calls=True, near_from__lt=begin):
        number = _lacking(sink, begin)
        lost += number
        _skip(sink, begin, number)
    return lost


def _note_gap(sink: Sink) -> None:
    """Record that the sink lost an unknown number of calls, if partitions were dropped without `drop_before`."""
    starts = Call.partitions.starts()
    if sink.sends_calls and starts and sink.near_from < (begin := midnight(starts[0])):
        _skip(sink, begin, None)


def _skip(sink: Sink, begin: datetime, number: int | None) -> None:
    with transaction.atomic():
        if number != 0:
            sink.note_dropped(begin, number)
        Sink.objects.filter(pk=sink.pk, near_from__lt=begin).update(near_from=begin)
    sink.near_from = begin


def _lacking(sink: Sink, before: datetime) -> int:
    """Return the number of calls from `sink.near_from` up to `before` that the sink has not acknowledged."""
    rows = Call.objects.filter(created_at__gte=sink.near_from, created_at__lt=before, pk__gt=sink.calls_to).order_by()
    if sink.round_to is not None and sink.round_at is not None:
        after = Q(created_at__gt=sink.round_at) | Q(created_at=sink.round_at, pk__gt=sink.round_id)
        rows = rows.filter(after | Q(pk__gt=sink.round_to))
    return rows.count()


# Send a test line to a sink, and report the outcome.


class SinkTestResult(NamedTuple):
    """The outcome of a test line, with an explanation."""

    delivered: bool
    detail: str


def send_test_line(sink: Sink, *, by: Actor | None) -> SinkTestResult:
    """Deliver a test line, even if the sink is paused. No row is sent, and the position does not change."""
    try:
        with released_while_waiting(), sink.receiver() as receiver:
            receiver.deliver([trial()])
    except Undelivered as refusal:
        outcome = SinkTestResult(delivered=False, detail=f"Not delivered: it {refusal}")
    else:
        outcome = SinkTestResult(delivered=True, detail="Delivered: the test line was acknowledged.")
    told = {"delivered": outcome.delivered} | ({} if outcome.delivered else {"detail": outcome.detail})
    Event.objects.record(Action.SINK_TESTED, sink, by=by, changes=told)
    return outcome
