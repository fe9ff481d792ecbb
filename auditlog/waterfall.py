"""The calls of one MCP session as a waterfall: oldest first, each with a bar that shows where the time was spent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import NamedTuple
from uuid import UUID

from django.db.models import F
from django.http import Http404, HttpResponse
from django.views.decorators.http import require_GET

from auditlog.models import Call, span_of_uid
from auditlog.paging import EPOCH, NEWER, Cursor
from auditlog.search import Search, equal, in_sessions
from auditlog.why import Detail, TimingPart
from capabilities import Capability, own_resource
from proxy.models import Session
from proxy.server_requests import CAPABILITIES
from ui.pages import PAGE_SIZE, AppRequest, show

SKEW = timedelta(minutes=1)  # The clocks of other workers may be behind by this much.
MOST_WAITS = 1000  # Maximum number of server requests to read for the bars of one page.
WIDTH = 1000.0
NARROWEST = 8.0  # The narrowest bar that is visible on a phone.
PARTS = (
    ("auth", "authorise"),
    ("rules", "rules"),
    ("upstream", "upstream, with its queue"),
    ("client", "waiting for the client"),
    ("record", "record"),
    ("stream", "open stream"),
)


class Period(NamedTuple):
    """A period in milliseconds since the first call of the page."""

    begin: float
    end: float


class Timeline:
    """The horizontal axis, which maps times to 0 .. WIDTH. Pauses without calls take up at most half of the axis."""

    def __init__(self, calls: Iterable[Period]) -> None:
        self._busy = union(calls)
        pauses = [after.begin - before.end for before, after in pairwise(self._busy)]
        busy = sum(each.end - each.begin for each in self._busy)
        longest = busy / len(pauses) if pauses else 0.0
        self._pauses = [min(pause, longest) for pause in pauses]
        self._whole = (busy + sum(self._pauses)) or 1.0
        self.is_shortened = self._pauses != pauses

    def x(self, at: float) -> float:
        """Return the position (0 to WIDTH) of a time. A time in a pause has the position at which the pause begins."""
        x = 0.0
        for number, period in enumerate(self._busy):
            if at <= period.end:
                x += max(at - period.begin, 0.0)
                break
            x += period.end - period.begin
            if number < len(self._pauses) and at >= self._busy[number + 1].begin:
                x += self._pauses[number]
        return WIDTH * x / self._whole


def union(periods: Iterable[Period]) -> list[Period]:
    """Return the periods in order, with overlapping periods merged."""
    joined: list[Period] = []
    for period in sorted(periods):
        if joined and period.begin <= joined[-1].end:
            joined[-1] = Period(joined[-1].begin, max(joined[-1].end, period.end))
        else:
            joined.append(period)
    return joined


class WaterfallRow(NamedTuple):
    """A call, and the parts of its bar; `waited_ms` is the time that the call waited for answers of the client."""

    call: Call
    parts: Sequence[TimingPart]
    waited_ms: float = 0.0

    @property
    def bars(self) -> Sequence[TimingPart]:
        """Return the parts of the bar to draw.

        If the bar is narrower than NARROWEST, return only its longest part, widened to NARROWEST.
        """
        if not self.parts or max(part.start + part.width for part in self.parts) - self.parts[0].start >= NARROWEST:
            return self.parts
        longest = max(self.parts, key=lambda part: part.ms)
        return [longest._replace(start=min(self.parts[0].start, WIDTH - NARROWEST), width=NARROWEST)]

    @property
    def is_asked(self) -> bool:
        """True if this row is a request of a server to the client during a call."""
        return is_asked(self.call)

    @property
    def is_stream(self) -> bool:
        return is_end_of_stream(self.call)


def is_asked(call: Call) -> bool:
    return call.correlation_id != call.uid and call.method in CAPABILITIES


def is_end_of_stream(call: Call) -> bool:
    """True for the second row of a stream. This row is written when the stream ends, and has the stream's duration."""
    return call.correlation_id != call.uid and call.method == "GET"


def waterfall(calls: Sequence[Call]) -> tuple[list[WaterfallRow], bool]:
    """Return a pair: a row for each call, oldest first, and whether the pauses between the calls are shortened."""
    if not calls:
        return [], False
    first = calls[0].created_at
    waits = _waits(calls, first)
    line = Timeline([_period(call, first) for call in calls if not is_end_of_stream(call)] or [Period(0.0, 1.0)])
    return [_row(call, first, waits.get(call.uid, ()), line) for call in calls], line.is_shortened


def _row(call: Call, first: datetime, waits: Sequence[Period], line: Timeline) -> WaterfallRow:
    period = _period(call, first)
    if is_asked(call) or is_end_of_stream(call):
        name = "client" if is_asked(call) else "stream"
        return WaterfallRow(call, [_part(name, period, line)])
    parts, at = [], period.begin
    for part in Detail(call).timing:
        parts.append(_part(part.name, Period(at, at + part.ms), line))
        at += part.ms
    waited = union(waits)
    parts += [_part("client", each, line) for each in waited]
    return WaterfallRow(call, parts, sum(each.end - each.begin for each in waited))


def _part(name: str, period: Period, line: Timeline) -> TimingPart:
    start, end = line.x(period.begin), line.x(period.end)
    return TimingPart(name, dict(PARTS)[name], period.end - period.begin, round(start, 1), round(end - start, 1))


def _period(call: Call, first: datetime) -> Period:
    at = (call.created_at - first) / timedelta(milliseconds=1)
    if is_end_of_stream(call):
        return Period(at - call.duration_ms, at)
    return Period(at, at + call.duration_ms + (0.0 if is_asked(call) else Detail(call).record_ms or 0.0))


def _waits(calls: Sequence[Call], first: datetime) -> Mapping[UUID, list[Period]]:
    """Map each call's uid to the periods in which the call waited for the client to answer a server's request."""
    until = max(call.created_at + timedelta(milliseconds=call.duration_ms) for call in calls)
    rows = Call.objects.filter(
        correlation_id__in=[call.uid for call in calls], method__in=CAPABILITIES, created_at__range=(first, until)
    ).exclude(uid=F("correlation_id"))
    found: defaultdict[UUID, list[Period]] = defaultdict(list)
    for row in rows.order_by().only("uid", "correlation_id", "method", "created_at", "duration_ms")[:MOST_WAITS]:
        found[row.correlation_id].append(_period(row, first))
    return found


@require_GET
@own_resource("one's own calls", others=Capability.LOGS_READ)
def session(request: AppRequest, pk: UUID) -> HttpResponse:
    """Show the calls of one MCP session, open or ended. People who may not read logs see only their own calls."""
    criteria = [in_sessions([pk])]
    if not request.user.has_perm(Capability.LOGS_READ):
        criteria.append(equal("user_id", [request.user.pk]))
    opened = max(span_of_uid(pk)[0] - SKEW, EPOCH)
    cursor = Cursor.named(request.GET.get("cursor", ""))
    found = Search(criteria, opened).page(cursor or Cursor(NEWER, opened, 0), PAGE_SIZE)
    calls = [*reversed(found.page.rows)]
    if not (calls or cursor or found.looked_to):
        raise Http404
    rows, is_shortened = waterfall(calls)
    context = {
        "pk": pk,
        "first": calls[0] if calls else None,
        "rows": rows,
        "is_shortened": is_shortened,
        "parts": [
            (name, label) for name, label in PARTS if any(part.name == name for row in rows for part in row.parts)
        ],
        "open": Session.objects.filter(pk=pk, lost_at=None).first(),
        "earlier": found.page.older if cursor else None,
        "later": found.page.newer,
        "looked_to": found.looked_to,
    }
    return show(request, "auditlog/session.html", context)
