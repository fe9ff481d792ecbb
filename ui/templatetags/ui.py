"""Template tags for small pieces of markup that every page uses."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import Any, NamedTuple
from urllib.parse import parse_qsl
from uuid import UUID
from zlib import crc32

from django import template
from django.contrib.messages.storage.base import Message
from django.forms import BoundField, CheckboxInput, CheckboxSelectMultiple, RadioSelect, Select
from django.http import HttpRequest
from django.template.context import Context, RequestContext
from django.template.defaultfilters import stringfilter
from django.templatetags.static import static
from django.urls import reverse
from django.utils import timezone
from django.utils.html import conditional_escape, escape, format_html, format_html_join
from django.utils.safestring import SafeString

from capabilities import Capability
from ui.addresses import parts
from ui.pages import Undo
from ui.states import state_label
from ui.tables import Column, TableView, table_view
from wire.definitions import hidden_places

register = template.Library()
_SOME_ID = UUID(int=0)
_INLINE = re.compile(r"`([^`]+)`|\*(\S(?:[^*]*\S)?)\*")


@register.simple_tag
def icon(name: str, label: str = "") -> SafeString:
    """Render an icon of icons.svg; hidden from screen readers unless it has a label."""
    if not label:
        return _silent(name)
    sprite = f"{static('gateway/icons.svg')}#{name}"
    return format_html('<svg class="icon" role="img" aria-label="{}"><use href="{}"/></svg>', label, sprite)


@lru_cache(256)  # Pages repeat the same few icons.
def _silent(name: str) -> SafeString:
    sprite = f"{static('gateway/icons.svg')}#{name}"
    return format_html("<svg class=icon aria-hidden=true><use href={} /></svg>", sprite)


@register.simple_tag
def logo(name: str, size: str = "") -> SafeString:
    """Render a tile with one or two letters of the name, in a hue derived from the name."""
    words = [word for word in name.replace("-", " ").split() if word[:1].isalnum()] or ["?"]
    letters = "".join(word[0].upper() for word in words[:2]) if len(words) > 1 else words[0][:2].capitalize()
    large = SafeString(f' data-size="{size}"') if size else ""
    hue = crc32(name.encode()) % 8 + 1
    return format_html('<span class="logo" data-hue="{}"{} aria-hidden="true">{}</span>', hue, large, letters)


UNITS = ((86400, "d"), (3600, "h"), (60, "m"))
MOST_MARKS = 500  # Maximum per text, because a mark is much longer than the character it replaces.


class TextPiece(NamedTuple):
    """A piece of a text: plain text, or a mark for invisible characters."""

    # "" for plain text, "char" for a mark that replaces one invisible character. At the end, "more" for the number of
    # further invisible characters, which are removed without a mark.
    kind: str
    said: tuple[str, ...]


_MARKS = {
    "": "{}",
    "char": '<mark class="unseen" title="{}">{}</mark>',
    "more": '<mark class="unseen">{}</mark>',
}


def _pieces(text: str) -> Iterator[TextPiece]:
    at = left_out = 0
    for count, place in enumerate(hidden_places(text)):
        yield TextPiece("", (text[at:place],))
        code = f"U+{ord(text[place]):04X}"
        if count < MOST_MARKS:
            yield TextPiece("char", (unicodedata.name(text[place], code), code))
        else:
            left_out += 1
        at = place + 1
    yield TextPiece("", (text[at:],))
    if left_out:
        yield TextPiece("more", (f"and {left_out:,} more",))


@register.filter
def grouped(number: Any) -> Any:
    """Render a count with commas, such as "12,345"; anything else, such as "10,000+", is returned unchanged."""
    return f"{number:,}" if isinstance(number, int) else number


@register.filter
def visible(text: str) -> SafeString:
    """Replace invisible and direction-changing characters by marks with their code points.

    After MOST_MARKS, such characters are removed, and a mark at the end shows their number.
    """
    if next(hidden_places(text), None) is None:
        return escape(text)
    return SafeString("".join(format_html(_MARKS[piece.kind], *piece.said) for piece in _pieces(text)))


SHORTEST_MID = 24  # Characters; shorter names are seldom cut.


@register.filter
def mid(name: str) -> SafeString:
    """Render a name that is shortened in its middle if there is no room; its title is the whole name."""
    if len(name) < SHORTEST_MID:
        return visible(name)
    first, last = visible(name[:-8]), visible(name[-8:])
    return format_html('<span class="mid" title="{}"><span>{}</span><span>{}</span></span>', name, first, last)


@register.filter
@stringfilter
def short(name: str, most: int = 48) -> SafeString:
    """Render a name, cut to `most` characters if it is longer. If it is cut, the title is the whole name."""
    if len(name) <= most:
        return visible(name)
    return format_html('<span title="{}">{}…</span>', name, visible(name[: most - 1]))


@register.filter
def marked(text: str) -> str:
    """Replace invisible characters by their code points in brackets.

    The result is plain text, for elements that cannot contain other elements, such as `<option>`.
    """
    return "".join(f"[{piece.said[-1]}]" if piece.kind else piece.said[0] for piece in _pieces(text))


@register.filter
def inline(text: str) -> SafeString:
    """Render `*words*` as names of controls (italic) and backquoted text as code; escape the rest."""

    def tagged(found: re.Match[str]) -> str:
        return f"<code>{found[1]}</code>" if found[1] else f"<i>{found[2]}</i>"

    return SafeString(_INLINE.sub(tagged, escape(text)))


@register.filter
def state_words(state: str, kind: str) -> str:
    """Return the text for a state of this kind of object."""
    return state_label(state, kind)


@register.simple_tag
def badge(state: str, text: str = "", why: str = "") -> SafeString:
    """Render a state as a word, a shape and a colour.

    The word is `text`; if `text` is empty, the word is `state`. If `why` is not empty, it follows after a colon.
    """
    words = f"{text or state}: {why}" if why else text or state
    return format_html('<span class="badge" data-state="{}">{}</span>', state, words)


@register.simple_tag
def address(uri: str, longest: int = 60) -> SafeString:
    """Render a web address with its full host name, and emphasise the domain.

    The part after host name and port is cut at `longest` characters.
    """
    address_parts = parts(uri, longest=longest)
    return format_html(
        '<code class="address" title="{}">{}<b>{}</b>{}{}</code>',
        address_parts.whole,
        address_parts.before,
        address_parts.domain,
        address_parts.after,
        address_parts.rest,
    )


@register.inclusion_tag("accounts/ask_for.html", takes_context=True)
def ask_for(context: RequestContext, name: str, primary: bool = False) -> dict[str, Any]:
    """Render a button that asks for the capability `name`; the button is small unless `primary` is set.

    There is no button for a day after the user asked. A text says that the user asked, or that the newest request was
    declined.
    """
    request, capability = context["request"], Capability[name]
    asked, declined_at = request.user.request_state(capability)
    return {
        "request": request,
        "csrf_token": context["csrf_token"],
        "capability": capability,
        "asked": asked,
        "declined_at": declined_at,
        "primary": primary,
    }


@register.simple_tag(takes_context=True)
def how_many(context: RequestContext, number: int) -> str:
    """Render a number of connections, such as "3"; "3 of yours" for users who see only their own connections."""
    if context["can"].mcp_connections_read:
        return f"{number:,}"
    return f"{number:,} of yours" if number else "none of yours"


def _date(moment: datetime) -> str:
    return f"{moment:%b} {moment.day}, {moment.year}"


def _time(moment: datetime, text: str) -> SafeString:
    """Return a time element. Nothing is escaped, so `text` must be made of numbers and our own words."""
    exact = moment.astimezone(UTC)
    date, time = exact.isoformat(timespec="seconds")[:19].split("T")
    return SafeString(f'<time datetime="{date}T{time}Z" title="{_date(exact)} {time} UTC">{text}</time>')


@register.simple_tag
def day(moment: datetime | None, never: str = "Never") -> str:
    """Render a date such as "Jan 15, 2026", with the exact time in its title; `never` if there is no date."""
    return _time(moment, _date(moment.astimezone(UTC))) if moment else never


@register.simple_tag
def minute(moment: datetime, year: bool = False) -> SafeString:
    """Render a time to the minute, such as "Nov 21, 14:02 UTC", or with `year` "Nov 21, 2026, 14:02 UTC"."""
    exact = moment.astimezone(UTC)
    date = _date(exact) if year else f"{exact:%b} {exact.day}"
    return _time(moment, f"{date}, {exact:%H:%M} UTC")


@register.simple_tag
def until(moment: datetime) -> SafeString:
    """Render a future time briefly: "14:02 UTC" today, otherwise "Nov 21"; the exact time is in the title."""
    exact = moment.astimezone(UTC)
    is_today = exact.date() == datetime.now(UTC).date()
    return _time(moment, f"{exact:%H:%M} UTC" if is_today else f"{exact:%b} {exact.day}")


@register.simple_tag
def ago(moment: datetime | None, never: str = "Never") -> str:
    """Render the age of `moment`, such as "5m ago". After a week, render its date. For None, return `never`."""
    if not moment:
        return never
    age = timezone.now() - moment
    if age < timedelta(minutes=1):
        return _time(moment, "just now")
    if age < timedelta(days=7):
        return _time(moment, f"{_rounded(age)} ago")
    return _time(moment, _date(moment.astimezone(UTC)))


@register.simple_tag
def left(moment: datetime) -> SafeString:
    """Render the time left until `moment`, such as "2d"."""
    return _time(moment, _rounded(max(moment - timezone.now(), timedelta())))


def _rounded(length: timedelta) -> str:
    seconds = int(length.total_seconds())
    unit, suffix = next(((unit, suffix) for unit, suffix in UNITS if seconds >= unit), UNITS[-1])
    return f"{seconds // unit}{suffix}"


@register.simple_tag(takes_context=True)
def rail_link(
    context: RequestContext,
    url_name: str,
    icon_name: str,
    text: str,
    also: str = "",
    apart: str = "",
    waiting: int = 0,
    words: str = "",
) -> SafeString:
    """Render a link of the rail.

    The link is current on its own page. The link is also current on pages below its own page and below the path `also`,
    except pages below the path `apart`. If a page sets `rail_entry` to a URL name, the link with this name is current.
    `words` describe the objects that `waiting` counts.
    """
    request: HttpRequest = context["request"]
    url = reverse(url_name)
    here = request.path == url
    if entry := context.get("rail_entry"):
        below = entry == url_name
    else:
        below = url != "/" and request.path.startswith((url, also or url))
        below = below and not (apart and request.path.startswith(apart))
    current = SafeString(' aria-current="page"') if here else SafeString(' aria-current="true"') if below else ""
    return format_html(
        '<a href="{}"{}>{}{}{}</a>', url, current, icon(icon_name), text, _waiting(icon_name, waiting, words)
    )


def _waiting(key: str, number: int, words: str) -> SafeString:
    if not number:
        return SafeString("")
    count = '<span class="count" data-count="rail.{}"><span class="dot" data-state="warn"></span>{}{}</span>'
    return format_html(count, key, number, format_html('<span class="visually-hidden"> {}</span>', words))


@register.simple_tag
def row_url(name: str, key: UUID | str) -> str:
    """Return the URL with this name for the id or slug of a row, ten times as fast as `{% url %}`."""
    return _url_of_row(name).replace(str(_SOME_ID), str(key))


@cache
def _url_of_row(name: str) -> str:
    return reverse(name, args=[_SOME_ID])


@register.simple_tag
def opens(
    url: str,
    text: str,
    icon: str = "",
    kind: str = "",
    alone: bool = False,
    small: bool = False,
    of: str = "",
    key: UUID | None = None,
    **fields: str,
) -> SafeString:
    """Render a button that opens `url` as a dialog or, without JavaScript, as a page.

    If `key` is given, `url` is the name of a URL, and `key` is the id of the row in this URL. `alone` shows only the
    icon. `of` names the object for screen readers. Other arguments become the query string.
    """
    # No template, because a template takes several times as long, and rows have several buttons.
    url = conditional_escape(url) if key is None else row_url(url, key)
    text, of, said = escape(text), escape(of), f' data-kind="{kind}"' if kind else ""
    hidden = format_html_join("", '<input type="hidden" name="{}" value="{}">', fields.items()) if fields else ""
    symbol = _silent(icon) if icon else ""
    if alone:
        whole = f"{text}: {of}" if of else text
        face = f'<button class="icon-button"{said} aria-label="{whole}" data-tip="{text}">{symbol}'
    else:
        size = ' data-size="small"' if small else ""
        which = f'<span class="visually-hidden"> {of}</span>' if of else ""
        face = f'<button class="button"{said}{size}>{symbol}{text}{which}'
    # The line break is the space before the next element.
    return SafeString(f'<form class="opens" action="{url}">{hidden}{face}</button></form>\n')


@register.inclusion_tag("ui/switch.html", takes_context=True)
def switch(  # noqa: PLR0913  (attributes of an element, by name)
    context: RequestContext,
    row: Any,
    urls: str,
    key: UUID | str,
    *,
    may: bool,
    name: str = "",
    target: str = "closest tr",
    words: bool = False,
    blocked: str = "",
) -> dict[str, Any]:
    """Render the switch of `row`, or its state for viewers who may not use it.

    `urls` is a URL name with a placeholder for `enable` and `disable`, such as "hosts:{}". Enabling replaces the
    element `target`. `name` distinguishes the switches of a list. With `words`, the state is also shown as text.
    `blocked` says why an enabled row is not used.
    """
    url = row_url(urls.format("disable" if row.enabled else "enable"), key) if may else ""
    return {
        "on": row.enabled,
        "may": may,
        "enable_url": url,
        "disable_url": f"{url}?on=page" if target.startswith("#") else url,
        "name": name,
        "target": target,
        "words": words,
        "blocked": blocked if row.enabled else "",
        # Lists with checkboxes have no links and buttons for browsers without JavaScript.
        "lean": not words and getattr(context.get("table"), "picks", False),
    }


GROUPS = (RadioSelect, CheckboxSelectMultiple)


@register.inclusion_tag("ui/field.html")
def field(bound: BoundField, optional: bool = False, **attrs: Any) -> dict[str, Any]:
    """Render a form field with label, control, help and error.

    Other keyword arguments become attributes of the control: `placeholder="Feedback bot" mono=True autofocus=True`.
    If fields of the form are invalid, the first of these fields has the focus. Groups of choices never have the focus.
    """
    widget = bound.field.widget
    many = isinstance(widget, GROUPS)
    check = isinstance(widget, CheckboxInput)
    names = {"mono": "data-mono"}
    attributes = {names.get(name, name.replace("_", "-")): value for name, value in attrs.items()}
    if not many and not check:
        attributes["class"] = "input"
    if invalid := next((one for one in bound.form if one.errors and not isinstance(one.field.widget, GROUPS)), None):
        attributes["autofocus"] = bound.name == invalid.name
    return {
        "field": bound,
        "control": "" if many else bound.as_widget(attrs=attributes),  # `choices` are rendered one by one.
        "kind": "choices" if many else "check" if check else "select" if isinstance(widget, Select) else "input",
        "optional": optional,
    }


class TableCell(template.Node):
    """A cell of one column; its content is rendered only if the column is shown."""

    def __init__(self, name: str, nodelist: template.NodeList) -> None:
        self._name, self.nodelist = name, nodelist

    def render(self, context: Context) -> SafeString:
        view: TableView = context["table"]
        column = view.column(self._name)
        if column is None or not view.shows(self._name):
            return SafeString("")
        tag, attributes = _of_cell(column)
        return SafeString(f"<{tag}{attributes}>{self.nodelist.render(context).strip()}</{tag}>")


@register.tag
def cell(parser: template.base.Parser, token: template.base.Token) -> TableCell:
    """Render a cell of a column of the list `table`, as in {% cell "name" %}; empty if the column is not shown."""
    _, name = token.split_contents()
    content = parser.parse(("endcell",))
    parser.delete_first_token()
    return TableCell(name.strip('"'), content)


@register.filter
def shows(view: TableView, name: str) -> bool:
    """Return whether the list shows this column, to skip queries for hidden columns."""
    return view.shows(name)


@register.filter
def undo(message: Message) -> Undo | None:
    """Return the Undo that is stored with a toast; None if the toast has none."""
    fields = parse_qsl(message.extra_tags or "", keep_blank_values=True)
    return Undo(fields[0][1], fields[1:]) if fields and fields[0][0] == "to" else None


@register.simple_tag(takes_context=True)
def list_of(context: RequestContext, key: str, kind: str = "") -> TableView:
    """Return the TableView of the table whose key is `key` followed by `kind`.

    Templates must store the result `as table`, because the tags for cells and heads read `table`.
    """
    return table_view(context["request"], key + kind)


@cache
def _of_cell(column: Column) -> tuple[str, str]:
    """Return tag and attributes for the cells of this column."""
    said = {
        "data-cell": column.kind if column.kind in ("acts", "switch") else "",
        "data-priority": column.priority or "",
        "data-label": column.label if column.on_phone and column.kind in ("number", "moment") else "",
        "class": column.kind if column.kind in ("number", "pick") else "",
    }
    attributes: Iterable[str] = (format_html(' {}="{}"', name, value) for name, value in said.items() if value)
    if column.on_phone:
        attributes = (" data-meta", *attributes)
    return ("td", "".join(attributes)) if column.width else ("th", ' scope="row"')
