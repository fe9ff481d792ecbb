"""The page of grouped calls, and its export."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl, urlencode

from django.http import HttpResponse, HttpResponseBadRequest, QueryDict
from django.utils import timezone
from django.views.decorators.http import require_GET

from auditlog import replica
from auditlog.actions import Action
from auditlog.export import TYPES, as_csv
from auditlog.groups import BY, LISTED, SORTS, CallGroup, as_rows, group_calls
from auditlog.models import Event
from auditlog.search.filters import RANGES, CallFilter
from auditlog.search.query_language import Either
from capabilities import Capability, requires
from ui.pages import AppRequest, show

FILES = {"csv": TYPES["csv"], "json": "application/json"}
COLUMNS = (
    ("name", "", ""),
    ("calls", "Calls", "-"),
    ("error_rate", "Error rate", "-"),
    ("denied", "Denied", "-"),
    ("p50", "p50", "-"),
    ("p95", "p95", "-"),
    ("p99", "p99", "-"),
)


@require_GET
@requires(Capability.LOGS_READ)
@replica.from_replica
def grouped(request: AppRequest) -> HttpResponse:
    """Group the filtered calls."""
    call_filter, by, sort = _asked(request.GET)
    found = None if call_filter.error else group_calls(call_filter.search(), BY[by], LISTED)
    rows = found.sorted(sort) if found else []
    highest = max((row.calls for row in rows), default=1)
    context: dict[str, Any] = {
        "filters": call_filter,
        "by": by,
        "label": BY[by].label,
        "sort": sort,
        "found": found,
        "most": LISTED,
        "rows": [(row, _query(call_filter, by, row), round(100 * row.calls / highest, 1)) for row in rows],
        "query": call_filter.query,
        "chips": call_filter.chips(),
        "own_query": urlencode({"by": by, "sort": sort}),
        "choices": [(name, one.label, _with(call_filter, by=name)) for name, one in BY.items()],
        "ranges": [
            (key, label, _with(call_filter, "from", "to", by=by, range=key)) for key, (label, _) in RANGES.items()
        ],
        "columns": [_column(call_filter, by, sort, *one) for one in COLUMNS],
        "kept": [(name, value) for name, value in parse_qsl(_with(call_filter, "q", by=by, sort=sort))],
        "files": list(FILES),
        "files_query": _with(call_filter, by=by, sort=sort),
    }
    return show(request, "auditlog/groups.html", context)


@require_GET
@requires(Capability.LOGS_READ)
def export_groups(request: AppRequest) -> HttpResponse:
    """Export the groups as a file, and record the export."""
    call_filter, by, sort = _asked(request.GET)
    kind = request.GET.get("format", "")
    if kind not in FILES or call_filter.error:
        return HttpResponseBadRequest(call_filter.error or "format must be csv or json.", content_type="text/plain")
    found = replica.read_from_replica(request, lambda: group_calls(call_filter.search(), BY[by]))
    rows = list(as_rows(found, sort))
    told = {name: [None, value] for name, value in call_filter.asked.items()} | {"group_by": [None, by]}
    Event.objects.record(Action.LOGS_EXPORTED, request.user, by=request.user, changes=told)
    text = as_csv(rows) if kind == "csv" else json.dumps({"by": by, "complete": found.since is None, "groups": rows})
    name = f"calls-by-{by}-{timezone.now():%Y-%m-%d-%H%M%S}.{kind}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return HttpResponse(text, content_type=FILES[kind], headers=headers)


def _asked(query: QueryDict) -> tuple[CallFilter, str, str]:
    by, sort = query.get("by", ""), query.get("sort", "")
    return CallFilter(query), by if by in BY else "host", sort if sort.removeprefix("-") in SORTS else "-calls"


def _with(call_filter: CallFilter, *left_out: str, **more: str) -> str:
    return call_filter.without("live", *left_out, **more)


def _query(call_filter: CallFilter, by: str, row: CallGroup) -> str:
    """Return the query string of one group's calls, or an empty string if the search cannot be narrowed in words."""
    if by != "reason":
        return call_filter.link_with(**{by: row.value, "live": ""})
    if any(isinstance(one, Either) for one in call_filter.conditions):
        return ""
    text = call_filter.values["q"]
    return call_filter.link_with(live="", q=f"{text} and reason is {row.value}" if text else f"reason is {row.value}")


def _column(call_filter: CallFilter, by: str, sort: str, name: str, label: str, first: str) -> dict[str, str]:
    """Return the heading of a column; its link sorts by the column or reverses the order."""
    other = name if first else f"-{name}"
    wanted = other if sort == f"{first}{name}" else f"{first}{name}"
    told = {name: "ascending", f"-{name}": "descending"}.get(sort, "")
    return {
        "label": label or BY[by].label,
        "to": _with(call_filter, by=by, sort=wanted),
        "sorted": told,
        "kind": "number" if label else "",
    }
