"""The busiest tools, people and apps over a range of time: panels that a page asks for once it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlencode

from django.http import HttpResponse
from django.utils import timezone
from django.views.decorators.http import require_GET

from auditlog import replica
from auditlog.groups import BY, Group, top
from auditlog.instruments import DEFAULT, RANGES
from auditlog.rollups.reading import book
from capabilities import Capability, requires
from ui.pages import AppRequest, show, wants_fragment

LISTED = 5
TOLD = ("tool", "user", "host")


@dataclass(frozen=True)
class Top:
    """The groups with the most calls, each with the query string of its calls, and how it is beside the first in
    per cent.

    Without rows before they are read: `is_read` tells that from no call.
    """

    by: str
    chosen: str
    rows: Sequence[tuple[Group, str, float]] = ()
    is_read: bool = False

    @property
    def label(self) -> str:
        return BY[self.by].label

    @property
    def link(self) -> str:
        """What leads to all groups."""
        return urlencode({"range": self.chosen, "by": self.by})


def to_come(chosen: str) -> list[Top]:
    """The panels over this range before they are read."""
    return [Top(by, chosen) for by in TOLD]


def read(chosen: str, length: timedelta) -> list[Top]:
    """The panels of which the roll-ups can tell."""
    until = timezone.now()
    with book() as opened:
        found = [(by, top(opened, {}, BY[by], until - length, until, LISTED)) for by in TOLD]
    return [
        Top(by, chosen, [_told(by, chosen, row, rows[0].calls) for row in rows], is_read=True)
        for by, rows in found
        if rows is not None
    ]


def _told(by: str, chosen: str, row: Group, highest: int) -> tuple[Group, str, float]:
    return row, urlencode({"range": chosen, by: row.value}), round(100 * row.calls / highest, 1)


@require_GET
@requires(Capability.LOGS_READ)
def busiest(request: AppRequest) -> HttpResponse:
    """The panels, or without script a page of them."""
    asked = request.GET.get("range", "")
    chosen = asked if asked in RANGES else DEFAULT
    tops = replica.read(request, lambda: read(chosen, RANGES[chosen].length))
    part = "#panels" if wants_fragment(request) else ""
    return show(request, f"auditlog/busiest.html{part}", {"tops": tops, "range": RANGES[chosen]})
