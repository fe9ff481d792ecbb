"""The filters of the Logs page: its query string as a form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache, cached_property
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

from django import forms
from django.db.models import Q
from django.http import QueryDict
from django.utils import timezone

from auditlog.fields import FIELDS, FILTERS, Comparison, LogField
from auditlog.names import NAMED_MODELS, ids_named, newest_names
from auditlog.query_language import (
    ANY_ID,
    ANY_NAME,
    CONTAINS,
    IS,
    IS_NOT,
    Condition,
    Either,
    SearchSyntaxError,
    lone_id,
    parse_search,
)
from auditlog.rollups.schema import TIME_RANGES, range_start
from auditlog.search import EXACT, Criterion, Search, criterion, either, equal, none_of
from ui.pages import YEARS, uuid_of

MOST_VALUES = 20  # Per filter.
ID_LENGTH = 40
SLOWEST = "slowest"
NOT = "not_"
_WALL = "%Y-%m-%dT%H:%M"
# Filters that take several values and can also exclude values, in the order in which the page lists them.
FACETS = ("outcome", "reason", "host", "user", "server", "tool", "gateway", "method", "identity")
RANGES: dict[str, tuple[str, timedelta | None]] = {
    **{name: (TIME_RANGES[name].words, TIME_RANGES[name].length) for name in ("15m", "1h", "24h", "7d", "30d")},
    "all": ("All time", None),
}
DEFAULT_RANGE = "24h"

SCOPES = ("host", "gateway", "server", "connection")  # Kinds of objects that can have a tab with their calls.

# The selectable columns of the list, in order. Time and tool are always shown.
COLUMN_NAMES = (
    *("host", "user", "gateway", "server", "method", "outcome", "status", "duration"),
    *("identity", "token", "client", "ip", "error", "size"),
)
DEFAULT_COLUMNS = COLUMN_NAMES[:8]
CALLS, LATENCY, TABLE, NONE = "calls", "latency", "table", "none"
CHARTS = ((CALLS, "Calls"), (LATENCY, "Latency"), (TABLE, "Table"), (NONE, "None"))


@dataclass(frozen=True)
class ListOptions:
    """Display options of a list of calls: columns, time zone, chart."""

    columns: tuple[str, ...] = DEFAULT_COLUMNS
    zone: str = "UTC"
    chart: str = CALLS

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Self:
        """Return the stored options; unknown values are replaced by defaults."""
        columns = tuple(name for name in COLUMN_NAMES if name in stored.get("columns", ()))
        chart = stored.get("chart", "")
        return cls(
            columns or DEFAULT_COLUMNS, str(stored.get("zone", "")) or "UTC", chart if chart in dict(CHARTS) else CALLS
        )

    def as_query(self) -> dict[str, Any]:
        return {"columns": list(self.columns), "zone": self.zone, "chart": self.chart}


DEFAULT_OPTIONS = ListOptions()


def stamp(at: datetime) -> str:
    """Format a time for a query string, without seconds if they are zero."""
    at = at.astimezone(UTC)
    return f"{at:%Y-%m-%dT%H:%M:%SZ}" if at.second else f"{at:%Y-%m-%dT%H:%MZ}"


class Chip(NamedTuple):
    """One active filter. `link` is the query string of the list without this filter."""

    name: str
    label: str
    sign: str
    value: str
    link: str


class TimeField(forms.DateTimeField):
    """Form field for a time. If the text names no time zone, the time is in `zone`.

    Invalid times and times outside YEARS are ignored.
    """

    zone: tzinfo = UTC

    def to_python(self, value: Any) -> datetime | None:
        with timezone.override(self.zone):
            try:
                at = super().to_python(value)
            except forms.ValidationError:
                return None
        # Near the first and last year, adding an hour would overflow.
        return at if at and at.year in YEARS else None


class Texts(forms.Field):
    """Form field for up to MOST_VALUES short texts without duplicates; further texts are left out.

    Texts that are too long or contain NUL are left out, too. With `are_ids`, UUIDs are converted to their usual form.
    """

    widget = forms.SelectMultiple

    def __init__(self, *, longest: int, are_ids: bool) -> None:
        super().__init__(required=False)
        self.longest = longest
        self.are_ids = are_ids

    def to_python(self, value: Any) -> list[str]:
        texts = dict.fromkeys(self._written(str(text).strip()) for text in value or [])
        return [text for text in texts if text and len(text) <= self.longest and "\0" not in text][:MOST_VALUES]

    def _written(self, text: str) -> str:
        return str((self.are_ids and uuid_of(text)) or text)


class Zone(forms.CharField):
    """Form field for the name of a time zone such as `Europe/Berlin`; unknown names are ignored."""

    def to_python(self, value: Any) -> str:
        text = super().to_python(value)
        return text if text and zone_of(text) is not None else ""


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def zone_of(name: str) -> tzinfo | None:
    """Return the time zone of this name, or None if it is unknown on this machine."""
    return UTC if name == "UTC" else ZoneInfo(name) if name in _zones() else None


class CallFilter(forms.Form):
    """The filters and display options of the Logs page. Unknown values are ignored.

    Several values of one filter are alternatives. Filters such as `not_host` exclude calls. Host, gateway, server and
    user are ids or parts of names. If the search text has a syntax error, `error` describes it, and pages show no
    calls.
    """

    range = forms.ChoiceField(required=False, choices=[(key, label) for key, (label, _) in RANGES.items()])
    to = TimeField(required=False)
    q = forms.CharField(required=False)  # `parse_search` limits its length, and says so.
    live = forms.BooleanField(required=False)
    order = forms.ChoiceField(required=False, choices=[(SLOWEST, "Slowest first")])
    open = forms.MultipleChoiceField(required=False, choices=[(name, name) for name in FACETS])
    zone = Zone(required=False, max_length=64)
    chart = forms.ChoiceField(required=False, choices=CHARTS)
    columns = forms.MultipleChoiceField(required=False, choices=[(name, name) for name in COLUMN_NAMES])

    def __init__(
        self, data: QueryDict, scope: dict[str, str] | None = None, usual: ListOptions = DEFAULT_OPTIONS
    ) -> None:
        super().__init__(data)
        # "from" is a keyword in Python, so it cannot be a class attribute.
        self.fields["from"] = TimeField(required=False)
        self.fields |= {name: _form_field(field) for name, field in FILTERS.items()}
        self.fields |= {NOT + name: _form_field(FILTERS[name]) for name in FACETS}
        for field in (self.fields["from"], self.fields["to"]):
            assert isinstance(field, TimeField)
            field.zone = zone_of(data.get("zone", "")) or zone_of(usual.zone) or UTC
        self.is_valid()
        self.values: dict[str, Any] = {name: self.cleaned_data.get(name) or "" for name in self.fields}
        self.values |= {name: list(self.values[name]) for name in (*FACETS, *(NOT + name for name in FACETS), "open")}
        self.values["range"] = self.values["range"] or DEFAULT_RANGE
        # Query strings contain neither `scope` nor display options equal to `usual`.
        self.usual = usual  # The user's saved display options.
        self.scope = scope or {}  # A tab's own filter.
        self.error = ""
        try:
            self.conditions = parse_search(self.values["q"])
        except SearchSyntaxError as error:
            self.conditions, self.error = [], str(error)

    @property
    def asked(self) -> dict[str, Any]:
        """Return the values that differ from the defaults."""
        texts = {name: stamp(value) if isinstance(value, datetime) else value for name, value in self.values.items()}
        texts["live"] = "1" if texts["live"] else ""
        if self.is_between:
            del texts["range"]
        usual = {"range": DEFAULT_RANGE, **self.usual.as_query()}
        return {
            name: value
            for name, value in sorted(texts.items())
            if value and usual.get(name) != value and name not in self.scope
        }

    @property
    def options(self) -> ListOptions:
        """Return the requested display options, with the user's saved options as default."""
        chosen = self.values["columns"]
        return ListOptions(
            tuple(name for name in COLUMN_NAMES if name in chosen) or self.usual.columns,
            self.values["zone"] or self.usual.zone,
            self.values["chart"] or self.usual.chart,
        )

    @property
    def clock(self) -> tzinfo:
        """Return the zone for displaying and parsing times."""
        return zone_of(self.options.zone) or UTC

    @property
    def narrowing(self) -> set[str]:
        """Return the names of the filters in use that narrow the list.

        Display options, such as the order or the columns, are left out.
        """
        return self.asked.keys() - {"live", "order", "open", "zone", "chart", "columns"}

    def link(self, **changes: Any) -> str:
        """Return the query string of this list with changed values of some filters; an empty value removes a filter."""
        return urlencode({name: value for name, value in (self.asked | changes).items() if value}, doseq=True)

    def link_elsewhere(self, **more: Any) -> str:
        """Return the query string of a link to another page about the same calls."""
        return urlencode(self.scope | self.asked | more, doseq=True)

    @property
    def query(self) -> str:
        return self.link()

    @property
    def followed(self) -> str:
        """Return the query string with which a live list polls for new calls. The page's script adds `open` to it."""
        return self.link(open="")

    @property
    def is_between(self) -> bool:
        """True if a start or an end time was given instead of a range."""
        return bool(self.values["from"] or self.values["to"])

    @property
    def is_of_all_time(self) -> bool:
        """True if the search is for one request, trace, session or id. The filter `range` is then ignored."""
        return any(self.values[name] for name in ("correlation", "trace", "session")) or bool(self.pasted_id)

    @property
    def span(self) -> str:
        if not self.is_between:
            return RANGES["all" if self.is_of_all_time else self.values["range"]][0]
        moments = [at.astimezone(self.clock) if at else None for at in (self.values["from"], self.values["to"])]
        since, until = (f"{at:%b} {at.day} {at:%H:%M}" if at else "" for at in moments)
        return f"{since or 'the beginning'} to {until or 'now'}"

    @property
    def fields_of_time(self) -> list[tuple[str, str, str]]:
        """Return the fields “From” and “To”: name, label, and value for a browser's date-time input."""
        moments = [(name, label, self.values[name]) for name, label in (("from", "From"), ("to", "To"))]
        return [(name, label, at.astimezone(self.clock).strftime(_WALL) if at else "") for name, label, at in moments]

    @property
    def pasted_id(self) -> UUID | None:
        """Return the id if the search is just an id, otherwise None."""
        return lone_id(self.values["q"])

    def unknown(self) -> list[str]:
        """Return a sentence for each searched name that matches no object; shown when there are no results."""
        asked = [item for item in self.conditions if isinstance(item, Condition)]
        asked += [
            one for item in self.conditions if isinstance(item, Either) for each in item.alternatives for one in each
        ]
        return [sentence for condition in asked if (sentence := _unknown(condition))]

    def has_calls(self) -> bool:
        """True if any call matches the time range and the tab's own filter (`scope`). Other filters are ignored."""
        of_scope = [one for name in self.scope for one in self._of_filters[name]]
        return bool(Search(of_scope, *self._between).count().number)

    @property
    def is_live(self) -> bool:
        """True if the list follows new calls; always False with an end time, another order or a syntax error."""
        return bool(self.values["live"]) and not (self.values["to"] or self.values["order"] or self.error)

    def search(self, *, apart_from: str = "") -> Search:
        """Return the search for these filters, without the filter `apart_from`."""
        return self._searched(apart_from) if apart_from else self._whole

    @cached_property
    def _whole(self) -> Search:
        return self._searched("")

    def _searched(self, apart_from: str) -> Search:
        asked = (each for name, each in self._of_filters.items() if name != apart_from or name in self.scope)
        of_filters = (one for each in asked for one in each)
        return Search([*self._of_words, *of_filters], *self._between)

    @cached_property
    def _between(self) -> tuple[datetime | None, datetime | None]:
        if self.is_between:
            return self.values["from"] or None, self.values["to"] or None
        if self.is_of_all_time:
            return None, None
        length = RANGES[self.values["range"]][1]
        return (range_start(timezone.now(), length) if length else None), None

    @cached_property
    def _of_words(self) -> list[Criterion]:
        return [criterion(condition) for condition in self.conditions]

    @cached_property
    def _of_filters(self) -> dict[str, list[Criterion]]:
        return {name: list(self._of_filter(name)) for name in FILTERS}

    def _of_filter(self, name: str) -> Iterator[Criterion]:
        field = FILTERS[name]
        if name in self.scope:
            yield _criterion(field, self.scope[name])
            return
        if values := self.values[name]:
            yield either(_criteria(field, values if name in FACETS else [values]))
        if name in FACETS and self.values[NOT + name]:
            yield none_of(_criteria(field, self.values[NOT + name]))

    def chips(self) -> list[Chip]:
        """Return all active filters except the search text. An id is shown as the newest name of its object."""
        chips = []
        if self.is_between:
            chips.append(Chip("time", "Time", "", self.span, self.link(**{"from": "", "to": ""})))
        for name, field in FILTERS.items():
            if name in self.scope:
                continue
            if name not in FACETS and self.values[name]:
                shown = self.shown(name, self.values[name])
                chips.append(Chip(name, field.label, "", shown, self.link(**{name: ""})))
                continue
            for key, sign in ((name, ""), (NOT + name, "is not")):
                chips += [
                    Chip(name, field.label, sign, self.shown(name, value), self._link_without(key, value))
                    for value in self.values.get(key, ())
                ]
        return chips

    def _link_without(self, name: str, value: str) -> str:
        return self.link(**{name: [one for one in self.values[name] if one != value]})

    def shown(self, name: str, value: str) -> str:
        return self._names[name][value]

    @cached_property
    def _names(self) -> dict[str, dict[str, str]]:
        chosen = {name: [self.values[name]] if self.values[name] else [] for name in FILTERS if name not in FACETS}
        chosen |= {name: [*self.values[name], *self.values[NOT + name]] for name in FACETS}
        return {name: display_names(FILTERS[name], values) for name, values in chosen.items() if values}

    @property
    def tab(self) -> str:
        """Return the tab's own filter (`scope`), such as `tab=host&host=<id>`; empty if the list is not on a tab."""
        return urlencode({"tab": name} | self.scope) if (name := next(iter(self.scope), "")) else ""

    def searchable(self) -> dict[str, list[str]]:
        """Return the fields of the search language for its help, in two lists: text fields and number fields."""
        numbers = [name for name, field in FIELDS.items() if field.comparison is Comparison.NUMBER]
        return {"texts": [name for name in FIELDS if name not in numbers], "numbers": numbers}


def _criteria(field: LogField, values: Sequence[str]) -> list[Criterion]:
    if field.choices or not (field.comparison is Comparison.NAME or field.comparison is Comparison.ID):
        if field.column in EXACT:
            return [equal(field.column, values)]
        return [Criterion(Q(**{f"{field.column}__in": values}))]
    return [_criterion(field, value) for value in values]


def _criterion(field: LogField, value: str) -> Criterion:
    by_id = field.comparison is not Comparison.NAME or uuid_of(value)
    return criterion(Condition(field.name, IS if by_id else CONTAINS, (value,)))


def _unknown(condition: Condition) -> str:
    if condition.field == ANY_ID:
        return "No call has this id, and no call refers to an object with this id."
    if condition.field == ANY_NAME or condition.operator == IS_NOT:
        return ""
    field, text = FIELDS[condition.field], str(condition.values[0])
    if field.comparison is not Comparison.NAME or field.name not in NAMED_MODELS or uuid_of(text):
        return ""
    part = condition.operator == CONTAINS
    if ids_named(field.name, text, part=part, called=True):
        return ""
    if part:
        return f"No call has “{text}” in the name of its {field.name}."
    near = ids_named(field.name, text, part=True, called=True)
    hint = f" Some names contain it; search for: {field.name} contains {text}." if near else ""
    return f"No call has the {field.name} “{text}”.{hint}"


def _form_field(field: LogField) -> forms.Field:
    if field.name not in FACETS:
        return forms.CharField(required=False, max_length=ID_LENGTH)
    if field.choices:
        return forms.MultipleChoiceField(required=False, choices=field.choices)
    return Texts(longest=field.max_length or ID_LENGTH, are_ids=bool(field.id_column))


def display_names(field: LogField, values: Sequence[str]) -> dict[str, str]:
    """Return a display text for each value.

    For the id of an object, the text is the name that the object had in its newest call. If the object occurs in no
    call, or if its kind has no names, the text is the beginning of the id.
    """
    ids = {value: uuid_of(value) for value in values} if field.id_column else {}
    named = newest_names(field, [pk for pk in ids.values() if pk])
    if field.comparison is Comparison.ID:
        return {value: value[:8] for value in values}
    return {value: named.get(pk) or value[:8] if (pk := ids.get(value)) else field.label_of(value) for value in values}
