"""The cells of a row of the log. Names in cells come from clients and servers, so they are escaped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, tzinfo
from math import log10
from typing import Any, NamedTuple

from django.db.models import F, TextField
from django.db.models.fields.json import KeyTransform
from django.db.models.functions import Cast, Substr
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from auditlog.filters import DEFAULT_COLUMNS, ListOptions
from auditlog.models import Call
from auditlog.templatetags.calls import moment, ms, size
from ui.templatetags.ui import mid

LONGEST_ARGUMENTS = 160  # Characters of arguments shown in a row.
LONGEST_ARGUMENT = 48
READ_ARGUMENTS = 2000  # Characters of arguments fetched from the database.
SLOW_MS = 2000
LONGEST_MS = 30_000  # The duration shown as a full bar.
LEAST = 4  # The priority of the columns that are hidden first.
NOTHING = mark_safe('<span class="muted">none</span>')


class LogColumn(NamedTuple):
    """A column of the list of calls; the width is in rem."""

    name: str
    label: str
    width: str
    priority: int  # On narrow screens, columns with the highest number are hidden first.
    cell: Callable[[Call, str], SafeString | str]
    is_number: bool = False


def _server(call: Call, _: str) -> SafeString | str:
    if call.server_name:
        return mid(call.server_name)
    if call.deny_reason:
        return mark_safe('<span class="muted" title="Refused before a server was known">—</span>')
    return mark_safe('<span class="muted">gateway</span>')


def _tool(call: Call, arguments: str) -> SafeString | str:
    if not call.feature_name:
        if call.deny_reason:
            return format_html(
                '<span class="muted" title="Refused before a tool was known">{}</span>', call.method or "—"
            )
        return format_html('<span class="muted">{}</span>', call.method) if call.method else NOTHING
    name = call.feature_name[:64]
    return format_html("<code><b>{}</b>{}</code>", name, _in_words(arguments) if arguments else "")


def _in_words(arguments: str) -> SafeString:
    """Format a tool's arguments for reading, cut to the width of a row."""
    try:
        members = json.loads(arguments)
    except ValueError:  # Truncated JSON.
        return format_html("<i>({}…</i>", arguments[:LONGEST_ARGUMENTS].lstrip("{"))
    if not isinstance(members, dict):
        return format_html("<i>({})</i>", arguments[:LONGEST_ARGUMENTS])
    return format_html("({})", format_html_join(", ", "{}: <i>{}</i>", _few(members)))


def _few(members: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    left = LONGEST_ARGUMENTS
    for name, value in members.items():
        if left <= 0:
            return
        text = json.dumps(value, ensure_ascii=False)
        text = text if len(text) <= LONGEST_ARGUMENT else f"{text[:LONGEST_ARGUMENT]}…"
        left -= len(name) + len(text) + 4
        yield name[:LONGEST_ARGUMENT], text


def _outcome(call: Call, _: str) -> SafeString:
    label = call.get_outcome_display()
    if call.deny_reason:
        return format_html("<span class=badge data-state={}><span>{}: {}</span></span>", call.outcome, label, call.why)
    return format_html("<span class=badge data-state={}>{}</span>", call.outcome, label)


def _tenths(call: Call) -> int:
    """Return the length of the duration bar on a logarithmic scale from 0 to 10; 10 means LONGEST_MS or more."""
    return min(round(10 * log10(1 + call.duration_ms) / log10(1 + LONGEST_MS)), 10)


TOOL = LogColumn("tool", "Tool", "16", 0, _tool)
COLUMNS = (
    LogColumn("host", "Host", "6.5", 2, lambda call, _: mid(call.host_name)),
    LogColumn("user", "User email", "11", 3, lambda call, _: call.user_email),
    LogColumn("gateway", "Gateway", "7", 4, lambda call, _: mid(call.gateway_name)),
    LogColumn("server", "Server", "7", 4, _server),
    LogColumn("method", "Method", "6.5", 4, lambda call, _: call.method),
    TOOL,
    LogColumn("outcome", "Outcome", "16", 0, _outcome),
    LogColumn("status", "Status", "4", 4, lambda call, _: str(call.http_status), is_number=True),
    LogColumn("duration", "Duration", "6.5", 2, lambda call, _: ms(call.duration_ms), is_number=True),
    LogColumn("identity", "Identity", "7", 3, lambda call, _: call.identity_label),
    LogColumn("token", "Token", "7", 3, lambda call, _: call.token_name or call.token_prefix),
    LogColumn("client", "Client", "7", 3, lambda call, _: call.client_name),
    LogColumn("ip", "IP address", "8", 3, lambda call, _: call.client_ip or ""),
    LogColumn("error", "Message", "14", 3, lambda call, _: call.error_text),
    LogColumn("size", "Size", "9", 3, lambda call, _: f"{size(call.request_bytes)}, {size(call.response_bytes)}"),
)


def shown_columns(options: ListOptions) -> list[LogColumn]:
    return [column for column in COLUMNS if column is TOOL or column.name in options.columns]


class LogRow(NamedTuple):
    """One row of the list of calls."""

    call: Call
    at: SafeString
    cells: SafeString


def log_rows(calls: Sequence[Call], options: ListOptions, zone: tzinfo = UTC, *, with_arguments: bool) -> list[LogRow]:
    """Return the rows of a page. With `with_arguments`, the column Tool also shows the arguments of each call.

    Set `with_arguments` only if the viewer may see payloads.
    """
    columns, arguments = shown_columns(options), _arguments(calls) if with_arguments else {}
    usual = are_usual(columns)
    return [
        LogRow(
            call,
            moment(call.created_at, zone=zone),
            format_html_join(
                "",
                "<td{}>{}",
                (
                    (_attributes(column, call, usual=usual), column.cell(call, arguments.get(call.pk, "")))
                    for column in columns
                ),
            ),
        )
        for call in calls
    ]


def are_usual(columns: Sequence[LogColumn]) -> bool:
    """True if these are the default columns, with or without TOOL.

    Only then can the style sheet hide columns by their position.
    """
    return [column.name for column in columns if column is not TOOL] == list(DEFAULT_COLUMNS)


def _attributes(column: LogColumn, call: Call, *, usual: bool) -> SafeString:
    # The attributes are short, because a page has five hundred cells. The style sheet hides the default columns by
    # their position, and columns with `data-p` only on phones.
    text = f" data-p={LEAST}" if column.priority == LEAST and not usual else ""
    if column.is_number:
        text += " class=number"
    if column.name == "duration":
        text += f" data-took={_tenths(call)}{' data-slow' if call.duration_ms >= SLOW_MS else ''}"
    return mark_safe(text)  # noqa: S308  (constants and numbers)


def _arguments(calls: Sequence[Call]) -> dict[int, str]:
    """Return the start of each call's arguments, by the call's primary key.

    Include only tool calls and prompt calls, and only if the call has a payload.
    """
    named = {call.pk: call.created_at for call in calls if call.feature_name}
    if not named:
        return {}
    arguments = Cast(KeyTransform("arguments", KeyTransform("params", F("request_payload"))), TextField())
    # Filter by created_at, the first column of the primary key; by id alone the whole log would be searched.
    rows = Call.objects.filter(created_at__in={*named.values()}, request_payload__isnull=False)
    found = rows.order_by().values_list("pk", Substr(arguments, 1, READ_ARGUMENTS))
    return {pk: text for pk, text in found if text and pk in named}
