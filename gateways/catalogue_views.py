"""The page Tools: what all servers offer on the gateways one may see, and the page of one tool."""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_GET

from auditlog.instruments import Instruments
from capabilities import Capability, own_resource
from capabilities.catalogue import SEES_GATEWAYS
from gateways.arguments import arguments
from gateways.assignment_views import sees_servers
from gateways.catalogue import Catalogue, Entry, is_offered, servers_seen_by
from gateways.differences import difference, pages, whole
from gateways.forms import CatalogueFilter
from gateways.models import Effect, Feature, FeatureVersion
from gateways.use_of_tool import Use
from gateways.views import WITHIN_REACH
from ui.pages import AppRequest, is_for, show

SHOWN = 40  # Tools a page; more would make it too heavy.
VERSIONS = 20


class Column(NamedTuple):
    """The head of a column: the link that sorts by it, and how it is sorted now."""

    label: str
    to: str
    sorted: str
    width: str = ""
    priority: str = ""
    kind: str = ""


@require_GET
@own_resource(WITHIN_REACH)
def listing(request: AppRequest) -> HttpResponse:
    servers = list(servers_seen_by(request.user))
    filters = CatalogueFilter(request.GET, servers=servers)
    start = (_page(request) - 1) * SHOWN
    expected = slice(start, start + SHOWN)
    tools = Catalogue(request.user, filters.cleaned_data, request.GET.get("sort", ""), expected=expected)
    rows: Any = tools  # A sequence will do.
    context: dict[str, Any] = {
        "page": Paginator(rows, SHOWN).get_page(request.GET.get("page")),
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
    """The page that is asked for, as far as that is a number."""
    asked = request.GET.get("page", "")
    return max(int(asked), 1) if asked.isascii() and asked.isdecimal() and len(asked) < 6 else 1


def _columns(tools: Catalogue) -> list[Column]:
    label = tools.period.label if tools.period else ""
    told: list[dict[str, Any]] = [
        {"name": "tool", "label": "Tool"},
        {"name": "server", "label": "Server", "width": "9", "priority": "2"},
        {"name": "effect", "label": "Effect", "width": "7", "priority": "2"},
        {"name": "", "label": "State", "width": "8.5"},
        {"name": "gateways", "label": "Gateways", "width": "12", "priority": "3"},
    ]
    if tools.period:
        told += [
            {"name": "calls", "label": f"Calls {label}", "width": "7", "kind": "number", "most_first": True},
            {"name": "last", "label": "Last use", "width": "7", "priority": "2", "most_first": True},
        ]
    return [_column(tools.sort, **one) for one in told]


def _column(sort: str, *, name: str, most_first: bool = False, **told: Any) -> Column:
    """A column that is sorted by already is sorted the other way round by the next click."""
    first, other = (f"-{name}", name) if most_first else (name, f"-{name}")
    to = other if sort == first else first
    by = {name: "ascending", f"-{name}": "descending"}.get(sort, "") if name else ""
    return Column(to=to if name else "", sorted=by, **told)


@require_GET
@own_resource(WITHIN_REACH, others=SEES_GATEWAYS)
def detail(request: AppRequest, pk: UUID) -> HttpResponse:
    """One tool, by the id of any of its features."""
    asked = get_object_or_404(Feature.objects.tools_seen_by(request.user).select_related("assignment"), pk=pk)
    tool = Catalogue(request.user, {}).find(asked)
    context: dict[str, Any] = {
        "tool": tool,
        "feature": tool.feature,
        "arguments": arguments(tool.feature.input_schema),
        "offered": [place for place in tool.places if is_offered(place)],
        "use": Use.of(tool.places) if request.user.has_perm(Capability.LOGS_READ) else None,
        **_history(tool, request.GET.get("version", "")),
    }
    names = {place.exposed_name[:300] for place in tool.places}
    if request.user.has_perm(Capability.LOGS_READ) and len(names) == 1:  # The page of calls filters by one name.
        name, server = names.pop(), tool.server.pk
        where: dict[str, list[Any]] = {"server_id": [server], "feature_name": [name]}
        filters = {"server": str(server), "tool": name}
        context["instruments"] = Instruments.of(request, where, filters, tops=("gateway",))
    return show(request, "gateways/tool.html", context)


def _history(tool: Entry, asked: str) -> dict[str, Any]:
    """Its newest definitions, and what the one that was asked for says otherwise than the one before it there."""
    rows = FeatureVersion.objects.filter(feature__in=tool.places).select_related("feature__assignment__gateway")
    versions = list(rows.order_by("-first_seen_at", "pk")[:VERSIONS])
    version = next((one for one in versions if str(one.pk) == asked), None)
    if version is None:
        return {"versions": versions}
    earlier = rows.filter(feature=version.feature, first_seen_at__lt=version.first_seen_at)
    before = earlier.order_by("-first_seen_at").first()
    lines = difference(before.definition, version.definition) if before else whole(version.definition)
    parts = pages(lines)
    told = {"version": version, "before": before, "lines": parts[0], "is_cut": len(parts) > 1}
    return {"versions": versions, **told}
