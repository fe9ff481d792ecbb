"""The Tools page: all tools on the gateways the viewer may see."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.http import require_GET

from capabilities import own_resource
from capabilities.catalogue import SEES_GATEWAYS
from gateways.assignment_views import sees_servers
from gateways.catalogue import Catalogue, servers_seen_by
from gateways.forms import CatalogueFilter
from gateways.models import Effect, Feature
from gateways.views import WITHIN_REACH
from ui.pages import PAGE_SIZE, AppRequest, is_for, show


class SortHeader(NamedTuple):
    """The head of a column: its sort link and current sort order."""

    label: str
    to: str
    sorted: str
    width: str = ""
    priority: str = ""
    kind: str = ""


@require_GET
@own_resource(WITHIN_REACH)
def listing(request: AppRequest) -> HttpResponse:
    servers: Any = list(servers_seen_by(request.user).values_list("slug", "name", named=True))
    filters = CatalogueFilter(request.GET, servers=servers)
    start = (_page(request) - 1) * PAGE_SIZE
    expected = slice(start, start + PAGE_SIZE)
    tools = Catalogue(request.user, filters.cleaned_data, request.GET.get("sort", ""), expected=expected)
    rows: Any = tools  # A sequence will do.
    context: dict[str, Any] = {
        "page": Paginator(rows, PAGE_SIZE).get_page(request.GET.get("page")),
        "columns": _columns(tools),
        "period": tools.period,
        "looked_up": tools.looked_up or tools.period,
        "sort": tools.sort,
        "filters": filters.cleaned_data,
        "effects": Effect.choices,
        "servers": servers,
        "shows": [one for one in CatalogueFilter.SHOWS if tools.period or one[0] != "unused"],
        "narrowed": any(filters.cleaned_data.values()),
        "sees_servers": sees_servers(request.user),
        "waiting": None if is_for(request, "catalogue") else Feature.objects.waiting_for(request.user).count(),
    }
    return show(request, "gateways/catalogue.html#results", context)


def _page(request: AppRequest) -> int:
    """Return the requested page number, or 1 if it is not a number."""
    asked = request.GET.get("page", "")
    return max(int(asked), 1) if asked.isascii() and asked.isdecimal() and len(asked) < 6 else 1


def _columns(tools: Catalogue) -> list[SortHeader]:
    label = tools.period.label if tools.period else ""
    told: list[dict[str, Any]] = [
        {"name": "tool", "label": "Tool"},
        {"name": "server", "label": "Server", "width": "9", "priority": "2"},
        {"name": "effect", "label": "Effect", "width": "7", "priority": "2"},
        {"name": "", "label": "State", "width": "9"},
        {"name": "gateways", "label": "Gateways", "width": "12", "priority": "3"},
    ]
    if tools.period:
        told += [
            {"name": "calls", "label": f"Calls {label}", "width": "7", "kind": "number", "most_first": True},
            {"name": "last", "label": "Last use", "width": "7", "priority": "2", "most_first": True},
        ]
    return [_column(tools.sort, **one) for one in told]


def _column(sort: str, *, name: str, most_first: bool = False, **told: Any) -> SortHeader:
    """Build a column head. Clicking the sorted column reverses its order."""
    first, other = (f"-{name}", name) if most_first else (name, f"-{name}")
    to = other if sort == first else first
    by = {name: "ascending", f"-{name}": "descending"}.get(sort, "") if name else ""
    return SortHeader(to=to if name else "", sorted=by, **told)


@require_GET
@own_resource(WITHIN_REACH, others=SEES_GATEWAYS)
def moved(request: AppRequest, pk: UUID) -> HttpResponse:
    """Redirect the former URL of a tool's page, because links to it exist."""
    target = reverse("gateways:feature", args=[pk])
    if version := request.GET.get("version", ""):
        target = f"{target}?{urlencode({'show': version})}"
    return redirect(target, permanent=True)
