"""Template tags and filters of the log: times, sizes and counts."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from typing import Any
from uuid import UUID

from django import template
from django.template.context import RequestContext
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from auditlog import replica
from auditlog.filters import CallFilter
from auditlog.groups import BY, calls_of_week
from auditlog.search import RowCount

register = template.Library()


@register.simple_tag
def moment(at: datetime, full: bool = False, zone: tzinfo = UTC) -> SafeString:
    """Format date and time with milliseconds; `full` adds year and zone."""
    exact = f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z"
    at = at.astimezone(zone)
    time = f"{at:%H:%M:%S}.{at.microsecond // 1000:03}"
    text = f"{at:%b} {at.day}, {at.year} {time} {at:%Z}" if full else f"{at:%b} {at.day} {time}"
    return format_html("<time datetime={}>{}</time>", exact, text)  # Unquoted to save bytes in each row.


@register.simple_tag
def group_links(call_filter: CallFilter) -> list[tuple[str, str]]:
    return [(one.label, call_filter.link_elsewhere(by=name)) for name, one in BY.items()]


@register.simple_tag(takes_context=True)
def week(context: RequestContext, kind: str, pk: UUID) -> SafeString:
    """Return a link to the calls of a host, gateway, server or connection in the last seven days.

    The text of the link is the number of calls. Use only in lists for people who may read logs.
    """
    known: dict[str, dict[Any, RowCount]] = context["request"].__dict__.setdefault("weeks", {})
    if pk not in known.get(kind, {}):
        # All rows of the list are counted together, once per request.
        keys = [row.pk for row in context.get("page") or ()]
        asked = keys if pk in keys else [pk]
        counted = replica.read_from_replica(context["request"], lambda: calls_of_week(f"{kind}_id", asked))
        known[kind] = dict.fromkeys([*keys, pk], RowCount(0, is_all=True)) | counted
    return format_html('<a href="{}?range=7d&amp;{}={}">{}</a>', reverse("auditlog:calls"), kind, pk, known[kind][pk])


@register.filter
def ms(value: float | None) -> str:
    """Format a duration in milliseconds, such as "212 ms" or "0.4 ms"; empty for None."""
    if value is None:
        return ""
    return f"{value:.1f} ms" if value < 10 else f"{value:,.0f} ms"


@register.filter
def size(value: int) -> str:
    """Format a number of bytes, such as "812 B" or "14.2 KB"."""
    return f"{value:,} B" if value < 1000 else f"{value / 1000:,.1f} KB"


@register.filter
def cut_at(value: int, most: int) -> str:
    """Format a number. A number above `most` becomes `most` with a plus sign, such as "999+"."""
    return f"{most}+" if value > most else str(value)
