"""The filters of the Logs page: its query string as a form, and the values each filter offers with their counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache, cached_property
from typing import Any, NamedTuple
from urllib.parse import urlencode
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

from django import forms
from django.db import connection
from django.db.models import Q
from django.http import QueryDict
from django.utils import timezone

from auditlog.name_lookups import lookups
from auditlog.ranges import STRETCHES, range_start
from auditlog.search.criteria import (
    RECENT,
    Criterion,
    Known,
    Search,
    criterion,
    either,
    none_of,
    one_of,
    row_test,
    uuid_of,
)
from auditlog.search.fields import FIELDS, FILTERS, Comparison, LogField
from auditlog.search.histogram import stamp
from auditlog.search.keyset import EPOCH
from auditlog.search.look import CHARTS, COLUMNS, USUAL, Look
from auditlog.search.query_language import (
    ANY_ID,
    ANY_NAME,
    CONTAINS,
    IS,
    IS_NOT,
    MAX_LENGTH,
    Condition,
    Either,
    SearchSyntaxError,
    lone_id,
    parse,
)
from ui.pages import YEARS

MOST_VALUES = 20  # Of one filter.
ID_LENGTH = 40
SLOWEST = "slowest"
NOT = "not_"
_WALL = "%Y-%m-%dT%H:%M"
# An index leads to the newest call with each id.
NEWEST_NAMES = """
SELECT t.n, c.name FROM unnest(%s::uuid[]) WITH ORDINALITY AS t (value, n) CROSS JOIN LATERAL (
    SELECT {name} AS name FROM auditlog_call WHERE {id} = t.value AND created_at >= %s ORDER BY created_at DESC LIMIT 1
) c
"""

# The filters that take several values and leave others out, in their order beside the list.
FACETS = ("outcome", "reason", "host", "user", "server", "tool", "gateway", "method", "identity")
RANGES: dict[str, tuple[str, timedelta | None]] = {
    **{name: (STRETCHES[name].words, STRETCHES[name].length) for name in ("15m", "1h", "24h", "7d", "30d")},
    "all": ("All time", None),
}
DEFAULT_RANGE = "24h"

SCOPES = ("host", "gateway", "server", "connection")  # What a tab of the log may be about.


def first_of(values: Sequence[str]) -> str:
    """The first of some values, and how many more."""
    return "" if not values else values[0] if len(values) == 1 else f"{values[0]} +{len(values) - 1}"


class Facet(NamedTuple):
    """One filter of the admin events: with `choices` a list to tick, without a text to type."""

    name: str
    label: str
    value: Any
    summary: str
    choices: Sequence[tuple[str, str]]


class Chip(NamedTuple):
    """One thing the list is narrowed by; `link` is the query string of the same list without it."""

    name: str
    label: str
    sign: str
    value: str
    link: str


class Moment(forms.DateTimeField):
    """A moment as bars and people write it, in `zone` unless it names its own; what is none narrows nothing.

    Nor do those of years in which nothing was called: an hour before the first, or after the last, there is none.
    """

    zone: tzinfo = UTC

    def to_python(self, value: Any) -> datetime | None:
        with timezone.override(self.zone):
            try:
                at = super().to_python(value)
            except forms.ValidationError:
                return None
        return at if at and at.year in YEARS else None


class Texts(forms.Field):
    """Several short texts, each of them once; what is too long or cannot be stored is left out.

    Where they may be ids (`are_ids`), an id is the same however it is written.
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
    """The name of a time zone, as `Europe/Berlin`; what is none is left out."""

    def to_python(self, value: Any) -> str:
        text = super().to_python(value)
        return text if text and zone_of(text) is not None else ""


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def zone_of(name: str) -> tzinfo | None:
    """The time zone of this name; None when this machine knows no such zone."""
    return UTC if name == "UTC" else ZoneInfo(name) if name in _zones() else None


class CallFilter(forms.Form):
    """The filters of the Logs page and how it looks; unknown values are ignored, and a search with a syntax error
    finds nothing.

    Several values of one filter are alternatives; those of `not_host` and its like are left out. Host, gateway, server
    and user are names or ids; ids outlive a rename. `scope` is what a tab is about, and no part of the query string;
    nor is what `look` says anyway.
    """

    range = forms.ChoiceField(required=False, choices=[(key, label) for key, (label, _) in RANGES.items()])
    to = Moment(required=False)
    q = forms.CharField(required=False, max_length=MAX_LENGTH)
    live = forms.BooleanField(required=False)
    order = forms.ChoiceField(required=False, choices=[(SLOWEST, "Slowest first")])
    open = forms.MultipleChoiceField(required=False, choices=[(name, name) for name in FACETS])
    zone = Zone(required=False, max_length=64)
    chart = forms.ChoiceField(required=False, choices=CHARTS)
    columns = forms.MultipleChoiceField(required=False, choices=[(name, name) for name in COLUMNS])

    def __init__(self, data: QueryDict, scope: dict[str, str] | None = None, look: Look = USUAL) -> None:
        super().__init__(data)
        # "from" is no name Python knows.
        self.fields["from"] = Moment(required=False)
        self.fields |= {name: _form_field(field) for name, field in FILTERS.items()}
        self.fields |= {NOT + name: _form_field(FILTERS[name]) for name in FACETS}
        for field in (self.fields["from"], self.fields["to"]):
            assert isinstance(field, Moment)
            field.zone = zone_of(data.get("zone", "")) or zone_of(look.zone) or UTC
        self.is_valid()
        self.values: dict[str, Any] = {name: self.cleaned_data.get(name) or "" for name in self.fields}
        self.values |= {name: list(self.values[name]) for name in (*FACETS, *(NOT + name for name in FACETS), "open")}
        self.values["range"] = self.values["range"] or DEFAULT_RANGE
        self.usual = look
        self.scope = scope or {}
        self.error = ""
        try:
            self.conditions = parse(self.values["q"])
        except SearchSyntaxError as error:
            self.conditions, self.error = [], str(error)

    @property
    def asked(self) -> dict[str, Any]:
        """The values that differ from the defaults."""
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
    def look(self) -> Look:
        """How the page shall look: as it was asked for, else as usual."""
        chosen = self.values["columns"]
        return Look(
            tuple(name for name in COLUMNS if name in chosen) or self.usual.columns,
            self.values["zone"] or self.usual.zone,
            self.values["chart"] or self.usual.chart,
        )

    @property
    def clock(self) -> tzinfo:
        """The zone in which times are shown and read."""
        return zone_of(self.look.zone) or UTC

    @property
    def narrowing(self) -> set[str]:
        """The names of the values that make calls drop out, and do not only change how they are shown."""
        return self.asked.keys() - {"live", "order", "open", "zone", "chart", "columns"}

    def without(self, *names: str, **more: str) -> str:
        """The query string without some filters, and with others."""
        remaining = {name: value for name, value in self.asked.items() if name not in names}
        return urlencode(remaining | more, doseq=True)

    def link_with(self, **more: Any) -> str:
        """The query string of a link to the same list with other values of some filters; an empty one takes it away."""
        return urlencode({name: value for name, value in (self.asked | more).items() if value}, doseq=True)

    def link_elsewhere(self, **more: Any) -> str:
        """Return the query string of a link to another page about the same calls."""
        return urlencode(self.scope | self.asked | more, doseq=True)

    def link_without(self, name: str, value: str) -> str:
        """The query string of the link that takes one of the values of a filter away."""
        return urlencode(self.asked | {name: [one for one in self.values[name] if one != value]}, doseq=True)

    @property
    def query(self) -> str:
        """The query string that asks for the same again."""
        return self.without()

    @property
    def is_between(self) -> bool:
        """Whether two moments were given instead of a range."""
        return bool(self.values["from"] or self.values["to"])

    @property
    def span(self) -> str:
        """The time range in words."""
        if not self.is_between:
            return RANGES[self.values["range"]][0]
        moments = [at.astimezone(self.clock) if at else None for at in (self.values["from"], self.values["to"])]
        since, until = (f"{at:%b} {at.day} {at:%H:%M}" if at else "" for at in moments)
        return f"{since or 'the beginning'} to {until or 'now'}"

    @property
    def fields_of_time(self) -> list[tuple[str, str, str]]:
        """From and To: name, label, and the value as such a field of a browser takes it."""
        moments = [(name, label, self.values[name]) for name, label in (("from", "From"), ("to", "To"))]
        return [(name, label, at.astimezone(self.clock).strftime(_WALL) if at else "") for name, label, at in moments]

    @property
    def pasted_id(self) -> UUID | None:
        """The id that the search consists of."""
        return lone_id(self.values["q"])

    def unknown(self) -> list[str]:
        """What the search names and nothing is called, for a search that found no call: never a silent nothing."""
        asked = [item for item in self.conditions if isinstance(item, Condition)]
        asked += [
            one for item in self.conditions if isinstance(item, Either) for each in item.alternatives for one in each
        ]
        return [sentence for condition in asked if (sentence := _unknown(condition))]

    def has_calls(self) -> bool:
        """Whether there is any call in the time range, of what the list is about, whatever else is asked."""
        of_scope = [one for name in self.scope for one in self._of_filters[name]]
        return bool(Search(of_scope, *self._between, known=self._known).count().number)

    @property
    def is_live(self) -> bool:
        """Whether new calls shall be told of by themselves; the past has none."""
        return bool(self.values["live"]) and not (self.values["to"] or self.values["order"] or self.error)

    def search(self, *, apart_from: str = "") -> Search:
        """The calls that match; `apart_from` leaves one filter out. What one search found, it knows."""
        return self._searched(apart_from) if apart_from else self._whole

    @cached_property
    def _whole(self) -> Search:
        return self._searched("")

    def _searched(self, apart_from: str) -> Search:
        asked = (each for name, each in self._of_filters.items() if name != apart_from or name in self.scope)
        of_filters = (one for each in asked for one in each)
        return Search([*self._of_words, *of_filters], *self._between, known=self._known)

    @cached_property
    def _between(self) -> tuple[datetime | None, datetime | None]:
        # The calls of one request or one trace, and those of an id, are found whenever they were.
        if self.values["correlation"] or self.values["trace"] or self.pasted_id:
            return None, None
        if self.is_between:
            return self.values["from"] or None, self.values["to"] or None
        length = RANGES[self.values["range"]][1]
        return (range_start(timezone.now(), length) if length else None), None

    @cached_property
    def _known(self) -> Known:
        return Known()

    @cached_property
    def _of_words(self) -> list[Criterion]:
        return [criterion(condition) for condition in self.conditions]

    @cached_property
    def _of_filters(self) -> dict[str, list[Criterion]]:
        """What each filter asks of a row."""
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
        """All that narrows the list but the search, which stands in its field; ids under their newest names."""
        chips = []
        if self.is_between:
            chips.append(Chip("time", "Time", "", self.span, self.link_with(**{"from": "", "to": ""})))
        for name, field in FILTERS.items():
            if name in self.scope:
                continue
            if name not in FACETS and self.values[name]:
                shown = self.shown(name, self.values[name])
                chips.append(Chip(name, field.label, "", shown, self.link_with(**{name: ""})))
                continue
            for key, sign in ((name, ""), (NOT + name, "is not")):
                chips += [
                    Chip(name, field.label, sign, self.shown(name, value), self.link_without(key, value))
                    for value in self.values.get(key, ())
                ]
        return chips

    def shown(self, name: str, value: str) -> str:
        """How one of the values of a filter is shown."""
        return self._names[name][value]

    @cached_property
    def _names(self) -> dict[str, dict[str, str]]:
        chosen = {name: [self.values[name]] if self.values[name] else [] for name in FILTERS if name not in FACETS}
        chosen |= {name: [*self.values[name], *self.values[NOT + name]] for name in FACETS}
        return {name: names_of(FILTERS[name], values) for name, values in chosen.items() if values}

    @property
    def tab(self) -> str:
        """The query string of the tab's scope."""
        return urlencode({"tab": name} | self.scope) if (name := next(iter(self.scope), "")) else ""

    def searchable(self) -> dict[str, list[str]]:
        """The words of the search language, for its help: those of texts, and those of numbers."""
        numbers = [name for name, field in FIELDS.items() if field.comparison is Comparison.NUMBER]
        return {"texts": [name for name in FIELDS if name not in numbers], "numbers": numbers}


def _criteria(field: LogField, values: Sequence[str]) -> list[Criterion]:
    if field.choices or not (field.comparison is Comparison.NAME or field.comparison is Comparison.ID):
        return [one_of(field.column, values) if field.is_indexed else row_test(Q(**{f"{field.column}__in": values}))]
    return [_criterion(field, value) for value in values]


def _criterion(field: LogField, value: str) -> Criterion:
    by_id = field.comparison is not Comparison.NAME or uuid_of(value)
    return criterion(Condition(field.name, IS if by_id else CONTAINS, (value,)))


def _unknown(condition: Condition) -> str:
    if condition.field == ANY_ID:
        return "No call has this id, and nothing with this id has made one."
    if condition.field == ANY_NAME or condition.operator == IS_NOT:
        return ""
    field, text = FIELDS[condition.field], str(condition.values[0])
    if field.comparison is not Comparison.NAME or not lookups.knows(field.name) or uuid_of(text):
        return ""
    part = condition.operator == CONTAINS
    if lookups.stands_in_calls(field.name, text, part=part):
        return ""
    if part:
        return f"No {field.name} of any call has “{text}” in its name."
    near = lookups.stands_in_calls(field.name, text, part=True)
    hint = f" Some have it in their name: {field.name} contains {text}." if near else ""
    return f"No {field.name} of any call is called “{text}”.{hint}"


def _form_field(field: LogField) -> forms.Field:
    if field.name not in FACETS:
        return forms.CharField(required=False, max_length=ID_LENGTH)
    if field.choices:
        return forms.MultipleChoiceField(required=False, choices=field.choices)
    return Texts(longest=field.max_length or ID_LENGTH, are_ids=bool(field.id_column))


def names_of(field: LogField, values: Sequence[str]) -> dict[str, str]:
    """How chosen values are shown: of an id, the name in the newest call with it, or its first characters."""
    names, ids = dict[str, str](), dict[str, UUID]()
    for value in values:
        if field.id_column and (pk := uuid_of(value)):
            ids[value] = pk
        else:
            names[value] = value[:8] if field.comparison is Comparison.ID else field.label_of(value)
    # Of most there is one in the last week, and of that the database has few partitions to think about.
    for since in (timezone.now() - RECENT, EPOCH):
        if left := [value for value in ids if value not in names]:
            with connection.cursor() as cursor:
                statement = NEWEST_NAMES.format(id=field.id_column, name=field.column)
                cursor.execute(statement, [[ids[value] for value in left], since])
                names |= {left[n - 1]: name or left[n - 1][:8] for n, name in cursor.fetchall()}
    return {value: names.get(value, value[:8]) for value in values}
