"""Sends the logs: the process that does the chores looks every few seconds which sinks are due, and one of all such
serves each.

Off the path of calls: the proxy knows nothing of it. A sink that is slow or down keeps few others waiting, and those
for as long as a delivery may take, since each is served by a thread of its own. Who waits for a receiver holds no
connection to the database, and one delivery in memory: what the sink lacks stays in the log.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from django.db import connection, transaction
from django.db.models import F, Q
from django.utils import timezone

from auditlog.models import Call
from auditlog.partitions import midnight
from sinks import reading, receivers
from sinks.models import LONGEST_ERROR, Sink
from sinks.reading import Batch, Reader, held, oldest
from sinks.receivers import OBJECTS, Receiver, Undelivered, backoff, trial
from ui import databases

logger = logging.getLogger(__name__)

PASS_S = 20.0  # For so long at most a process serves a sink before others may.
AGAIN_AFTER = timedelta(seconds=2)  # What was looked at a moment ago is not looked at again.
OBJECTS_EVERY = timedelta(minutes=1)  # So that objects are few, and not too small.
MOST_THREADS = 4
MOST_REFUSED = 20  # Rows that are left out in one go; who refuses more refuses something else than rows.

# What became of a delivery, to be noted under the lock; whether the sink is served on.
type Note = Callable[[Sink, Reader], bool]

_threads: dict[UUID, threading.Thread] = {}


def start_due() -> None:
    """Begin to serve the sinks that are due and that this process does not serve already."""
    for pk in [pk for pk, thread in _threads.items() if not thread.is_alive()]:
        del _threads[pk]
    for pk in due():
        if pk not in _threads and len(_threads) < MOST_THREADS:
            # Not waited for when the process ends: what was not acknowledged is sent again.
            _threads[pk] = threading.Thread(target=_serve_logged, args=(pk,), name=f"sink {pk}", daemon=True)
            _threads[pk].start()


def due() -> list[UUID]:
    """The sinks to look after now, those that wait longest first."""
    now = timezone.now()
    rested = Q(looked_at=None) | Q(looked_at__lt=now - OBJECTS_EVERY)
    rested |= Q(looked_at__lt=now - AGAIN_AFTER) & ~Q(kind__in=OBJECTS)
    may = Q(retry_at=None) | Q(retry_at__lte=now)
    free = Q(claimed_until=None) | Q(claimed_until__lte=now)
    rows = Sink.objects.filter(rested, may, free, enabled=True).order_by(F("looked_at").asc(nulls_first=True))
    return list(rows.values_list("pk", flat=True))


def _serve_logged(pk: UUID) -> None:
    try:
        with databases.direct():
            serve(pk)
    except Exception:
        logger.exception("serving a sink failed", extra={"sink": str(pk)})
    finally:
        connection.close()


def serve(pk: UUID, seconds: float = PASS_S) -> int:
    """Send what this sink lacks, for about so long; how many rows it acknowledged.

    Nothing when another process is at it. What it refuses is tried again later, and its row says why.
    """
    service = _Service(pk, time.monotonic() + seconds)
    try:
        service.run()
    except Exception:  # Whatever it is, the sink says so and waits, and others are served.
        logger.exception("a sink could not be served", extra={"sink": str(pk)})
        service.note_broken()
    finally:
        service.close()
    return service.sent


class _Service:
    """One sink, served for a while: what is next is read over a connection, and delivered without one."""

    def __init__(self, pk: UUID, until: float) -> None:
        self.sent = 0
        self._pk, self._until, self._claim = pk, until, uuid4()
        self._most = self._all = reading.MOST_ROWS
        self._refused = 0
        self._set_up: datetime | None = None
        self._receiver: Receiver | None = None

    def close(self) -> None:
        if self._receiver is not None:
            self._receiver.__exit__(None, None, None)

    def run(self) -> None:
        """Until there is nothing more, the sink refuses, was changed or paused, or the time is over."""
        note: Note | None = lambda sink, reader: True  # noqa: E731  (nothing was delivered yet)
        sink: Sink | None = None
        while note is not None:
            with held(self._pk, self._claim) as reader:
                if reader is None or (sink is not None and not note(sink, reader)):
                    return
                sink, batch = self._next(reader)
                if sink is None or batch is None:
                    return
                reader.lend()
            note = self._deliver(sink, batch)

    def note_broken(self) -> None:
        with held(self._pk, self._claim) as reader:
            sink = _loaded(self._pk) if reader else None
            if reader and sink:
                said = "could not be served: the log of this process says why."
                _note_failure(sink, reader, Undelivered(said), None)

    def _next(self, reader: Reader) -> tuple[Sink | None, Batch | None]:
        """The sink as it is now, and what to deliver to it."""
        sink = _loaded(self._pk)
        while sink is not None and not self._is_over(sink):
            try:
                self._open(sink)
            except Undelivered as refusal:  # It could not even be set up.
                _note_failure(sink, reader, refusal, None)
                return None, None
            reader.most = self._most
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
            self._most = self._all = receivers.MOST_LINES.get(sink.kind, reading.MOST_ROWS)
            _note_gap(sink)
            databases.give_back()  # Who waits for a receiver holds none.
            self._receiver = sink.receiver().__enter__()

    def _deliver(self, sink: Sink, batch: Batch) -> Note:
        """Deliver, and say what is to be noted of it."""
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
        """Whether it is the row that is refused: an address that is wrong refuses a line that says it is a test too."""
        assert self._receiver is not None
        try:
            self._receiver.deliver([trial()])
        except Undelivered:
            return False
        return True

    def _note_delivered(self, batch: Batch, sink: Sink, reader: Reader) -> bool:
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


def _note_refused(batch: Batch, refusal: Undelivered, sink: Sink, reader: Reader) -> bool:
    """Leave out a row that the sink refuses for good, and say so."""
    [line] = batch.lines
    sink.note_refused(line, f"It {refusal}")
    now, said = timezone.now(), f"It {refusal.args[0].removesuffix('.')} to {line.log} {line.uid}, which was left out."
    noted = {"looked_at": now, "refused": sink.refused + 1, "last_error": said[:LONGEST_ERROR], "last_error_at": now}
    return reader.move(sink, batch.then, **noted, **_HEALTHY)


def _note_delivery_failed(batch: Batch, refusal: Undelivered, sink: Sink, reader: Reader) -> bool:
    _note_failure(sink, reader, refusal, oldest(batch.lines))
    return False


def _note_failure(sink: Sink, reader: Reader, refusal: Undelivered, since: datetime | None) -> None:
    failures, now = sink.failures + 1, timezone.now()
    wait = max(refusal.wait or 0.0, backoff(failures, random.random()))  # noqa: S311  no secret
    if failures == 1:
        logger.warning("a sink did not take the log", extra={"sink": sink.name, "error": str(refusal)})
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
    """The sink as it is now, unless it is paused or gone; no connection of the pages is kept for it."""
    try:
        return Sink.objects.filter(pk=pk, enabled=True).first()
    finally:
        databases.give_back()


# What retention takes


def drop_before(limit: date) -> int:
    """Say of each sink which of its calls are lost when partitions before `limit` are dropped: how many calls.

    To be called before they are dropped. A sink goes on after what it has lost.
    """
    begin = Call.partitions.kept_from(limit)
    lost = 0
    for sink in Sink.objects.filter(sends_calls=True, near_from__lt=begin):
        number = _lacking(sink, begin)
        lost += number
        _skip(sink, begin, number)
    return lost


def _note_gap(sink: Sink) -> None:
    """Say so when partitions that held what it lacks were dropped by somebody else."""
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
    """How many calls dated before this it has not acknowledged."""
    rows = Call.objects.filter(created_at__gte=sink.near_from, created_at__lt=before, pk__gt=sink.calls_to).order_by()
    if sink.round_to is not None and sink.round_at is not None:
        after = Q(created_at__gt=sink.round_at) | Q(created_at=sink.round_at, pk__gt=sink.round_id)
        rows = rows.filter(after | Q(pk__gt=sink.round_to))
    return rows.count()
