"""The list of changed definitions of all gateways, each with its difference and the two decisions."""

from __future__ import annotations

from dataclasses import dataclass

from django.http import HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_GET

from capabilities import own_resource
from gateways.differences import DiffLine, difference, pages, whole
from gateways.models import Feature, FeatureState
from gateways.views import WITHIN_REACH
from ui.pages import AppRequest, page_of, show

SHOWN = 8  # Definitions a page; each is shown with what differs.
MOST_LINES = 40
MOST_QUARANTINED = 30


@dataclass(frozen=True)
class Waiting:
    """A definition that waits for a decision, and how it differs from the approved one."""

    feature: Feature

    @property
    def all_lines(self) -> list[DiffLine]:
        offered, approved = self.feature.offered or "", self.feature.approved
        return pages(difference(approved, offered) if approved else whole(offered))[0]

    @property
    def lines(self) -> list[DiffLine]:
        return self.all_lines[:MOST_LINES]

    @property
    def is_cut(self) -> bool:
        """True if there are more lines than the list shows; the feature's page shows them all."""
        return len(self.all_lines) > MOST_LINES


@require_GET
@own_resource(WITHIN_REACH)
def inbox(request: AppRequest) -> HttpResponse:
    page = page_of(
        request,
        Feature.objects.waiting_for(request.user),
        SHOWN,
        detail=lambda rows: rows.select_related("assignment__gateway", "assignment__server"),
    )
    quarantined = Feature.objects.seen_by(request.user).filter(state=FeatureState.QUARANTINED)
    placed = quarantined.select_related("assignment__gateway", "assignment__server").order_by("exposed_name", "pk")
    context = {
        "page": page,
        "rows": [Waiting(feature) for feature in page.object_list],
        "quarantined": list(placed[:MOST_QUARANTINED]),
        "here": reverse("gateways:changed"),
    }
    return show(request, "gateways/changed.html", context)
