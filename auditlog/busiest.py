"""The dashboard's panels of the busiest tools, people and apps, loaded after the page."""

from __future__ import annotations

from django.http import HttpResponse
from django.utils import timezone
from django.views.decorators.http import require_GET

from auditlog import replica
from auditlog.instruments import RANGES, Top, chosen_range
from auditlog.ranges import range_start
from auditlog.rollups.reading import book
from capabilities import Capability, requires
from ui.pages import AppRequest, show, wants_fragment

TOLD = ("tool", "user", "host")


def to_come(chosen: str) -> list[Top]:
    """Return the panels of this range, without data."""
    return [Top.to_come(by, chosen) for by in TOLD]


def busiest_panels(chosen: str) -> list[Top]:
    """Return the panels the roll-ups can answer."""
    until = timezone.now()
    since = range_start(until, RANGES[chosen].length)
    with book() as opened:
        tops = [Top.read(opened, {}, {}, by, chosen, since, until) for by in TOLD]
    return [one for one in tops if one]


@require_GET
@requires(Capability.LOGS_READ)
def busiest(request: AppRequest) -> HttpResponse:
    """Render the panels, or without script a page of them."""
    chosen = chosen_range(request.GET.get("range"))
    tops = replica.read_from_replica(request, lambda: busiest_panels(chosen))
    part = "#panels" if wants_fragment(request) else ""
    return show(request, f"auditlog/busiest.html{part}", {"tops": tops, "range": RANGES[chosen]})
