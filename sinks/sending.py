"""Sends the logs: every worker process looks every few seconds which sinks are due, and one of all serves each.

Off the path of calls: the proxy knows nothing of it. A sink that is slow or down keeps no other waiting, since each is
served by a thread of its own, and nothing is held in memory for it: what it lacks stays in the log.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.models import F, Q
from django.utils import timezone

from auditlog.models import Call
from sinks.models import LONGEST_ERROR, Sink
from sinks.reading import Batch, Reader, held, oldest
from sinks.receivers import Receiver, Undelivered, backoff

logger = logging.getLogger(__name__)

PASS_S = 20.0  # For so long at most a process serves a sink before others may.
AGAIN_AFTER = timedelta(seconds=2)  # What was looked at a moment ago is not looked at again.
MOST_THREADS = 16

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
    rested = Q(looked_at=None) | Q(looked_at__lt=now - AGAIN_AFTER)
    may = Q(retry_at=None) | Q(retry_at__lte=now)
    rows = Sink.objects.filter(rested, may, enabled=True).order_by(F("looked_at").asc(nulls_first=True))
    return list(rows.values_list("pk", flat=True))


def _serve_logged(pk: UUID) -> None:
    try:
        serve(pk)
    except Exception:
        logger.exception("serving a sink failed", extra={"sink": str(pk)})
    finally:
        connection.close()


def serve(pk: UUID, seconds: float = PASS_S) -> int:
    """Send what this sink lacks, for about so long; how many rows it acknowledged.

    Nothing when another process is at it. What it refuses is tried again later, and its row says why.
    """
    with held(pk) as reader:
        sink = _loaded(pk) if reader else None
        if reader is None or sink is None:
            return 0
        _note_gap(sink)
        try:
            with sink.receiver() as receiver:
                return _send(sink, reader, receiver, time.monotonic() + seconds)
        except Undelivered as refusal:  # It could not even be set up.
            _note_failure(sink, reader, refusal, None)
            return 0
        except Exception:  # Whatever it is, the sink says so and waits, and others are served.
            logger.exception("a sink could not be served", extra={"sink": str(pk)})
            _note_failure(sink, reader, Undelivered("could not be served: the log of this process says why."), None)
            return 0


def _send(sink: Sink, reader: Reader, receiver: Receiver, until: float) -> int:
    sent, set_up = 0, sink.updated_at
    while True:
        batch = reader.next(sink)
        if batch is None:
            reader.move(sink, {}, looked_at=timezone.now(), waiting_since=None, **_HEALTHY)
            return sent
        number = _delivered(sink, reader, receiver, batch)
        if number is None:
            return sent
        sent += number
        now: Sink | None = _loaded(sink.pk)
        if now is None or now.updated_at != set_up or time.monotonic() > until:
            return sent
        sink = now


def _delivered(sink: Sink, reader: Reader, receiver: Receiver, batch: Batch) -> int | None:
    """How many lines were acknowledged, with which the sink moved on; None when it goes on another time."""
    if not batch.lines:
        return 0 if reader.move(sink, batch.then, looked_at=timezone.now()) else None
    try:
        receiver.deliver(batch.lines)
    except Undelivered as refusal:
        if refusal.too_large and reader.most > 1 and len(batch.lines) > 1:
            reader.most = max(len(batch.lines) // 2, 1)
            return 0
        _note_failure(sink, reader, refusal, oldest(batch.lines))
        return None
    noted: dict[str, Any] = {
        "looked_at": timezone.now(),
        "last_delivered_at": timezone.now(),
        "delivered": sink.delivered + len(batch.lines),
        "waiting_since": max(line.at for line in batch.lines),
    }
    return len(batch.lines) if reader.move(sink, batch.then, **noted, **_HEALTHY) else None


_HEALTHY: dict[str, Any] = {"failures": 0, "retry_at": None}


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
    )


def _loaded(pk: UUID) -> Sink | None:
    """The sink as it is now, unless it is paused or gone; no connection of the pages is kept for it."""
    try:
        return Sink.objects.filter(pk=pk, enabled=True).first()
    finally:
        if not connection.in_atomic_block:
            connection.close()


# What retention takes


def drop_before(limit: date) -> int:
    """Say of each sink which of its calls are lost when partitions before `limit` are dropped: how many calls.

    To be called before they are dropped. A sink goes on after what it has lost.
    """
    kept = [span.start for span in Call.partitions.spans() if span.end > limit]
    begin = _midnight(min(kept, default=limit))
    lost = 0
    for sink in Sink.objects.filter(sends_calls=True, near_from__lt=begin):
        number = _lacking(sink, begin)
        lost += number
        _skip(sink, begin, number)
    return lost


def _note_gap(sink: Sink) -> None:
    """Say so when partitions that held what it lacks were dropped by somebody else."""
    starts = Call.partitions.starts()
    if sink.sends_calls and starts and sink.near_from < (begin := _midnight(starts[0])):
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


def _midnight(day: date) -> datetime:
    return datetime.combine(day, datetime.min.time(), UTC)
