"""The Logs page, the page of one call, grouped calls, live updates and exports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

from django.conf import settings
from django.http import Http404, HttpResponse, HttpResponseBadRequest, QueryDict
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST
from django_htmx.http import HttpResponseClientRedirect

from accounts.models import User, WorkspaceSettings
from approvals.models import hold_of
from auditlog import columns, facets, filters, replica, saved_views
from auditlog.actions import Action
from auditlog.charts import histogram
from auditlog.events import page_urls
from auditlog.export import LogExport
from auditlog.fields import EXPORT_COLUMNS
from auditlog.filters import RANGES, CallFilter, ListOptions
from auditlog.following import MOST_NEW, LiveList, NewCalls, answer, newest_id, newest_page
from auditlog.groups import BY, LISTED, SORTS, CachedAnswer, CallGroup, Groups, as_rows, cached_answer, group_calls
from auditlog.models import ENDINGS, Call, Event, span_of_uid
from auditlog.paging import NEWER, OLDER, Cursor, Page
from auditlog.query_language import Either
from auditlog.remedies import cause, is_a_switch, of_call
from auditlog.search import SEARCH_LIMIT, SearchPage
from auditlog.what_if import trail_of, what_if_url
from auditlog.why import Detail, curl, current_decision, near_tools, payloads, question_of
from capabilities import Capability, requires
from connections.models import Connection
from ui.export import TYPES, TooManyExports, as_csv, file_response, too_many_response
from ui.pages import PAGE_SIZE, AppRequest, is_for, leave, own_path, show, wants_fragment, with_query

ROWS_BESIDE = 25  # Rows of the list beside an open call.


@require_GET
@requires(Capability.LOGS_READ)
def calls(request: AppRequest) -> HttpResponse:
    if is_for(request, "drawer"):
        return render(request, "auditlog/log.html#closed")
    call_filter = _filter(request)
    if (uid := call_filter.pasted_id) and (row := _only_call(call_filter, uid)):
        page = reverse("auditlog:call", args=[row.uid])
        return HttpResponseClientRedirect(page) if wants_fragment(request) else redirect(page)
    return listing(request, "auditlog/calls.html", {}, call_filter)


def _filter(request: AppRequest, scope: dict[str, str] | None = None) -> CallFilter:
    """Return the filters in the request; `scope` is the fixed filter of the log tab of a host, gateway or server."""
    return CallFilter(request.GET, scope, ListOptions.of(request.user.log_look))


def _address(request: AppRequest, call_filter: CallFilter) -> str:
    return with_query(request.path, call_filter.query)


def _only_call(call_filter: CallFilter, uid: UUID) -> Call | None:
    """Return the call found by searching for the pasted id `uid`; None if no call or more than one is found."""
    search = call_filter.search()
    # Usually `uid` is the id of a call: the time in the id finds the call. For any other id, all matches are counted.
    if not Call.objects.filter(uid=uid, created_at__range=span_of_uid(uid)).exists() and search.count().number != 1:
        return None
    rows = search.page(None, 2).page.rows
    return rows[0] if len(rows) == 1 else None


def listing(request: AppRequest, template: str, context: dict[str, Any], call_filter: CallFilter) -> HttpResponse:
    """Render `template`, a page that includes auditlog/log.html. For htmx, render only the rows of the log."""
    if wants_fragment(request) and call_filter.is_live and (new := NewCalls.asked(request.GET, call_filter.search())):

        def with_rows() -> HttpResponse:
            return show(request, "auditlog/log.html#entries", context | _listed(request, call_filter, new=new))

        return answer(request, _live_list(request, call_filter), new, with_rows)
    context |= {"views": saved_views.listed(request.user, call_filter)}
    if call_filter.is_live and not request.GET.get("cursor"):  # A live list is read from the primary.
        return _listing(request, template, context, call_filter)
    return replica.read_from_replica(request, lambda: _listing(request, template, context, call_filter))


def _listing(request: AppRequest, template: str, context: dict[str, Any], call_filter: CallFilter) -> HttpResponse:
    context |= _listed(request, call_filter)
    if not wants_fragment(request):
        return show(request, template, context)
    response = show(request, "auditlog/log.html#entries", context)
    # Without this header, htmx would push a URL that has every empty field of the form.
    response["HX-Push-Url"] = _address(request, call_filter)
    return response


def _live_list(request: AppRequest, call_filter: CallFilter) -> LiveList:
    url = _list_url(request, call_filter)
    return LiveList(url, call_filter.followed, with_query(url, call_filter.query))


def log_tab(request: AppRequest, kind: str, target: Any) -> HttpResponse:
    """Render the calls of one host, gateway or server (`kind`) as a tab of its page."""
    call_filter = _filter(request, {kind: str(target.pk)})
    return listing(request, f"auditlog/of_{kind}.html", {kind: target, "tab": "logs"}, call_filter)


def log_alone(kind: str, pk: UUID) -> HttpResponse:
    """Redirect to the Logs page with the calls of one object, for people who may not open the object's own page."""
    return redirect(f"{reverse('auditlog:calls')}?{urlencode({kind: pk})}")


@require_GET
@requires(Capability.LOGS_READ)
def call(request: AppRequest, uid: UUID) -> HttpResponse:
    """Show one call in a drawer beside the list it was opened from."""
    return _call(request, uid, asks=False)


@require_GET
@requires(Capability.LOGS_READ)
def now(request: AppRequest, uid: UUID) -> HttpResponse:
    """Show a call, and whether it would be allowed now."""
    return _call(request, uid, asks=True)


def _call(request: AppRequest, uid: UUID, *, asks: bool) -> HttpResponse:
    call_filter = _filter(request)
    address, is_alone = _address(request, call_filter), is_for(request, "drawer")
    try:
        row = Call.objects.find(uid)
    except Call.DoesNotExist as missing:
        raise Http404 from missing
    sees_payload = request.user.has_perm(Capability.LOGS_PAYLOADS)
    ids = {name: getattr(row, f"{name}_id") for name in ("host", "gateway", "server", "connection")}
    urls = page_urls({name: {pk} for name, pk in ids.items() if pk}, request.user)
    context = {
        "call": row,
        "address": address,
        "link": settings.PUBLIC_URL + reverse("auditlog:call", args=[uid]),
        "newer": _neighbour(row, call_filter, NEWER),
        "older": _neighbour(row, call_filter, OLDER),
        "detail": Detail(row),
        **explanation(row, request.user, asks=asks),
        "curl": curl(row, payload=sees_payload),
        "payloads": payloads(row) if sees_payload else [],
        "same_request": _same_request(row),
        "hold": hold_of(row, request.user),
        "recording": _is_recording,
        "is_connected": Connection.objects.live()
        .filter(pk__in=[row.connection_id] if row.connection_id else [])
        .exists(),
        "urls": {name: urls.of(name, str(pk)) for name, pk in ids.items()},
    }
    if is_alone:
        response = render(request, "auditlog/drawer.html", {**context, "query": call_filter.query})
        response["HX-Push-Url"] = address
        return response
    listed = _listed(request, call_filter, ROWS_BESIDE, open_facets=()) | {
        "views": saved_views.listed(request.user, call_filter)
    }
    return render(request, "auditlog/calls.html", listed | context)


@require_GET
@requires(Capability.LOGS_READ)
@replica.from_replica
def facet(request: AppRequest, name: str) -> HttpResponse:
    """Render the values of one filter, each value with its number of calls.

    Only calls that match all other filters are counted.
    """
    tab = request.GET.get("tab", "")
    scope = {tab: request.GET.get(tab, "").replace("\0", "")} if tab in filters.SCOPES else None
    call_filter = _filter(request, scope)
    if name not in filters.FACETS or call_filter.error:
        raise Http404
    context = {"facet": facets.facet(call_filter, name), "filters": call_filter, "newest": f"{SEARCH_LIMIT:,}"}
    return render(request, "auditlog/facet.html", context)


@require_POST
@requires(Capability.LOGS_READ)
def keep_look(request: AppRequest) -> HttpResponse:
    """Save the current display options of the list of calls as this person's default."""
    usual = ListOptions.of(request.user.log_look)
    call_filter = CallFilter(QueryDict(request.POST.get("query", "")), usual=usual)
    request.user.keep_log_look(call_filter.options.as_query())
    back = own_path(request.POST.get("back", ""), reverse("auditlog:calls"))
    to = with_query(back, call_filter.link(columns="", zone="", chart=""))
    return leave(request, to, "Saved: your list of calls will look like this")


@require_GET
@requires(Capability.LOGS_READ)
def export_calls(request: AppRequest) -> HttpResponse:
    """Export the filtered calls as a file without payloads, and record the export."""
    kind = request.GET.get("format", "")
    call_filter = CallFilter(request.GET)
    if kind not in TYPES or call_filter.error:
        return HttpResponseBadRequest(call_filter.error or "format must be csv or jsonl.", content_type="text/plain")
    narrowed_by = {name: [None, value] for name, value in call_filter.asked.items()}
    try:
        pieces = replica.read_from_replica(
            request, lambda: LogExport(call_filter.search(), kind, EXPORT_COLUMNS, by=request.user)
        )
    except TooManyExports as refused:
        return too_many_response(refused)
    Event.objects.record(Action.LOGS_EXPORTED, request.user, by=request.user, changes=narrowed_by)
    return file_response(request, "logs", kind, pieces)  # type: ignore[return-value]  # A stream is a response.


def _listed(
    request: AppRequest,
    call_filter: CallFilter,
    size: int = PAGE_SIZE,
    open_facets: Sequence[str] = facets.FIRST,
    new: NewCalls | None = None,
) -> dict[str, Any]:
    cursor, search, options = Cursor.named(request.GET.get("cursor", "")), call_filter.search(), call_filter.options
    is_live = call_filter.is_live and cursor is None
    # Read the newest id before anything is counted, so that no call is missed.
    seen = new.to if new else newest_id() if is_live else 0
    count = None if call_filter.error else search.count()
    if count is None or count.is_none:
        result = SearchPage(Page([], None, None))
    elif seen:
        result = newest_page(search, seen, size)
    else:
        result = search.slowest(size) if call_filter.values["order"] else search.page(cursor, size)
    if is_live and not seen:  # A writer took too long, so use the newest id on the page.
        seen = max((call.pk for call in result.page.rows), default=0)
    has_chart = options.chart != filters.NONE and result.page.rows
    shown = columns.shown_columns(options)
    return {
        "page": result.page,
        "rows": columns.log_rows(
            result.page.rows,
            options,
            call_filter.clock,
            with_arguments=request.user.has_perm(Capability.LOGS_PAYLOADS),
        ),
        "columns": shown,
        "are_usual": columns.are_usual(shown),
        "choices": [
            (column.name, column.label, column.name in options.columns)
            for column in columns.COLUMNS
            if column is not columns.TOOL
        ],
        "options": options,
        "looked_to": result.looked_to,
        "count": count,
        "unknown": call_filter.unknown() if count and not count.number else [],
        "histogram": histogram(search, timed=options.chart != filters.CALLS) if has_chart else None,
        "charts": [(name, label, call_filter.link(chart=name)) for name, label in filters.CHARTS],
        "order_query": call_filter.link(order="" if call_filter.values["order"] else filters.SLOWEST),
        "live": _live_list(request, call_filter),
        "new": new,
        "most_new": MOST_NEW,
        "filters": call_filter,
        "ranges": filters.RANGES,
        "oldest_call": Call.objects.oldest,  # Queried only if the list is empty.
        "none_matches": bool(count and count.is_none and call_filter.narrowing and call_filter.has_calls()),
        "whole_time": call_filter.link(**{"range": "all", "from": "", "to": ""}),
        "whole_range": call_filter.link(**dict.fromkeys(call_filter.asked.keys() - {"range", "from", "to"}, "")),
        "span": call_filter.span,
        "query": call_filter.query,
        "bar_query": call_filter.link(**dict.fromkeys(("from", "to", "range", "live"), "")),
        "row_query": call_filter.link_elsewhere(),
        "chips": call_filter.chips(),
        "facets": facets.facets(call_filter, search, open_facets, any_call=count is None or not count.is_none),
        "newest": f"{SEARCH_LIMIT:,}",
        "searchable": call_filter.searchable(),
        "is_live": is_live,
        "current_view": call_filter.link(live=""),
        "seen": seen,
        "list_url": _list_url(request, call_filter),
    }


def _list_url(request: AppRequest, call_filter: CallFilter) -> str:
    return request.path if call_filter.scope else reverse("auditlog:calls")


def explanation(row: Call, reader: User, *, asks: bool) -> dict[str, Any]:
    """Return template context that explains the outcome of the call `row` to `reader`.

    The context has a cause only if the call was denied or its tool is unknown. With `asks`, the context also has the
    decision that would be made about the call now.
    """
    reason, question = row.deny_reason, question_of(row)
    is_judged = row.outcome in ENDINGS["denied"] or reason == "unknown_tool"
    answer = current_decision(question) if question and (asks or is_judged) else None
    context: dict[str, Any] = {"can_ask": question is not None}
    if is_judged and reason:
        still = answer is not None and reason in [each.reason for each in answer.verdict.obstacles]
        context["cause"] = cause(reason, of_call(row), reader, before=row.created_at, still=still)
        context["is_over"] = answer is not None and not still and is_a_switch(reason) and not answer.is_unknown
    if reason == "unknown_tool" and question and question.feature:
        context["near"] = near_tools(reader, question.gateway, question.feature.name)
    if asks and answer is not None:
        context["trail"] = trail = trail_of(answer, reader)
        context["near"] = [(name, "") for name in trail.near]
        context["what_if"] = what_if_url(answer.question)
    return context


def _is_recording() -> bool:
    return WorkspaceSettings.load().record_payloads


def _neighbour(row: Call, call_filter: CallFilter, way: str) -> Call | None:
    """Return the call next to `row` in the direction `way` (OLDER or NEWER), or None."""
    if call_filter.error:
        return None
    rows = call_filter.search().page(Cursor(way, row.created_at, row.pk), 1).page.rows
    return next(iter(rows), None)


def _same_request(row: Call) -> int:
    """Return the number of calls that have the correlation id of `row` and started within a day of `row`."""
    time_range = (row.created_at - timedelta(days=1), row.created_at + timedelta(days=1))
    return Call.objects.filter(correlation_id=row.correlation_id, created_at__range=time_range).count()


# The page of grouped calls, and its export.

FILES = {"csv": TYPES["csv"], "json": "application/json"}
GROUP_COLUMNS = (
    ("name", "", ""),
    ("calls", "Calls", "-"),
    ("error_rate", "Error rate", "-"),
    ("denied", "Refused", "-"),
    ("p50", "p50", "-"),
    ("p95", "p95", "-"),
    ("p99", "p99", "-"),
)


@require_GET
@requires(Capability.LOGS_READ)
def grouped(request: AppRequest) -> HttpResponse:
    call_filter, by, sort = _asked(request.GET)
    found, read_at = (None, None) if call_filter.error else _groups(request, call_filter, by)
    rows = found.sorted(sort) if found else []
    highest = max((row.calls for row in rows), default=1)
    context: dict[str, Any] = {
        "filters": call_filter,
        "by": by,
        "label": BY[by].label,
        "sort": sort,
        "found": found,
        "read_at": read_at,
        "most": LISTED,
        "rows": [(row, _query(call_filter, by, row), round(100 * row.calls / highest, 1)) for row in rows],
        "query": call_filter.query,
        "chips": call_filter.chips(),
        "own_query": urlencode({"by": by, "sort": sort}),
        "choices": [(name, one.label, _with(call_filter, by=name)) for name, one in BY.items()],
        "ranges": [
            (key, label, _with(call_filter, "from", "to", by=by, range=key)) for key, (label, _) in RANGES.items()
        ],
        "columns": [_column(call_filter, by, sort, *one) for one in GROUP_COLUMNS],
        "kept": [(name, value) for name, value in parse_qsl(_with(call_filter, "q", by=by, sort=sort))],
        "files": list(FILES),
        "files_query": _with(call_filter, by=by, sort=sort),
    }
    return show(request, "auditlog/groups.html", context)


def _groups(request: AppRequest, call_filter: CallFilter, by: str) -> CachedAnswer[Groups]:
    length = None if call_filter.is_between else RANGES[call_filter.values["range"]][1]
    return cached_answer(
        f"{by} {call_filter.query}",
        length,
        lambda: replica.read_from_replica(request, lambda: group_calls(call_filter.search(), BY[by], LISTED)),
    )


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
    return call_filter.link(live="", **dict.fromkeys(left_out, ""), **more)


def _query(call_filter: CallFilter, by: str, row: CallGroup) -> str:
    """Return the query string that shows the calls of one group.

    It is empty if the calls are grouped by reason and the search text has `or`.
    """
    if by != "reason":
        return call_filter.link(**{by: row.value, "live": ""})
    if any(isinstance(one, Either) for one in call_filter.conditions):
        return ""  # No condition can be added to a text with `or`.
    text = call_filter.values["q"]
    return call_filter.link(live="", q=f"{text} and reason is {row.value}" if text else f"reason is {row.value}")


def _column(call_filter: CallFilter, by: str, sort: str, name: str, label: str, first: str) -> dict[str, str]:
    """Return the heading of a column, with a link that sorts by the column or reverses the order."""
    other = name if first else f"-{name}"
    wanted = other if sort == f"{first}{name}" else f"{first}{name}"
    told = {name: "ascending", f"-{name}": "descending"}.get(sort, "")
    return {
        "label": label or BY[by].label,
        "to": _with(call_filter, by=by, sort=wanted),
        "sorted": told,
        "kind": "number" if label else "",
    }
