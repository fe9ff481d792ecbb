"""Sends a test line to a sink and reports whether it was acknowledged, or why not."""

from __future__ import annotations

from typing import NamedTuple

from accounts.strangers import released_while_waiting
from auditlog.actions import Action
from auditlog.models import Actor, Event
from sinks.models import Sink
from sinks.receivers import Undelivered, trial


class Outcome(NamedTuple):
    """Whether a test line was acknowledged, and what happened in words."""

    delivered: bool
    detail: str


def send_test_line(sink: Sink, *, by: Actor | None) -> Outcome:
    """Deliver one line that says it is a test, whether the sink is paused or not. No row is sent, nothing moves on."""
    try:
        with released_while_waiting(), sink.receiver() as receiver:
            receiver.deliver([trial()])
    except Undelivered as refusal:
        outcome = Outcome(delivered=False, detail=f"Not delivered: it {refusal}")
    else:
        outcome = Outcome(delivered=True, detail="Delivered: the test line was acknowledged.")
    told = {"delivered": outcome.delivered} | ({} if outcome.delivered else {"detail": outcome.detail})
    Event.objects.record(Action.SINK_TESTED, sink, by=by, changes=told)
    return outcome
