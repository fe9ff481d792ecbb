"""Template filters for times and sizes in the log."""

from __future__ import annotations

from datetime import UTC, date, datetime, tzinfo
from typing import Any
from uuid import UUID

from django import template
from django.template.context import RequestContext
from django.urls import reverse
from django.utils import timezone
from django.utils.html import conditional_escape, format_html
from django.utils.safestring import SafeString

from auditlog import replica
from auditlog.groups import BY
from auditlog.search.filters import CallFilter
from auditlog.week import Week, weeks

register = template.Library()


@register.simple_tag
def moment(at: datetime, full: bool = False, zone: tzinfo = UTC, today: date | None = None) -> SafeString:
    """A time of day to the millisecond, with its date unless that is today."""
    exact = f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z"
    at = at.astimezone(zone)
    text = f"{at:%H:%M:%S}.{at.microsecond // 1000:03}"
    if today is not None and at.date() == today:
        return format_html("<time>{}</time>", text)  # A time of day says itself what it is (HTML, the time element).
    if full or today is not None or at.date() != timezone.now().astimezone(zone).date():
        text = f"{at:%b} {at.day}{f', {at.year}' if full else ''} {text}"
    return format_html("<time datetime={}>{}</time>", exact, text)  # Without quotes: there is one in each row.


@register.simple_tag
def group_links(call_filter: CallFilter) -> list[tuple[str, str]]:
    """What the calls of a list may be grouped by: what people call it, and the query string of the page that does."""
    return [(one.label, call_filter.link_elsewhere(by=name)) for name, one in BY.items()]


@register.simple_tag(takes_context=True)
def week(context: RequestContext, kind: str, pk: UUID) -> SafeString:
    """The calls of the last seven days of a host, gateway, server or connection, leading to them.

    For the rows of a list they are counted together, once a request. For who reads the log: its column says so.
    """
    known: dict[str, dict[Any, Week]] = context["request"].__dict__.setdefault("weeks", {})
    if pk not in known.get(kind, {}):
        keys = [row.pk for row in context.get("page") or ()]
        asked = keys if pk in keys else [pk]
        counted = replica.read(context["request"], lambda: weeks(f"{kind}_id", asked))
        known[kind] = dict.fromkeys([*keys, pk], Week(0)) | counted
    return format_html('<a href="{}?range=7d&amp;{}={}">{}</a>', reverse("auditlog:calls"), kind, pk, known[kind][pk])


@register.filter
def bare(query: str) -> SafeString:
    """A query string as the value of an attribute that is there fifty times: its ampersands are not written out.

    HTML leaves them as they are, but where a name begins like that of a character.
    """
    return SafeString(conditional_escape(query).replace("&amp;", "&").replace("&not_", "&amp;not_"))


@register.filter
def ms(value: float | None) -> str:
    """A duration: "212 ms", "0.4 ms"."""
    if value is None:
        return ""
    return f"{value:.1f} ms" if value < 10 else f"{value:,.0f} ms"


@register.filter
def size(value: int) -> str:
    """A number of bytes: "812 B", "14.2 KB"."""
    return f"{value:,} B" if value < 1000 else f"{value / 1000:,.1f} KB"


@register.filter
def cut_at(value: int, most: int) -> str:
    """A number, or that there are more than `most`."""
    return f"{most}+" if value > most else str(value)
