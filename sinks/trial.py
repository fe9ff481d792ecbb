"""Send a test line to a sink, and report the outcome."""

from __future__ import annotations

from typing import NamedTuple

from accounts.strangers import released_while_waiting
from auditlog.actions import Action
from auditlog.models import Actor, Event
from sinks.models import Sink
from sinks.receivers import Undelivered, trial


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
