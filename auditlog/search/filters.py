"""The filters of the Logs page: its query string as a form, and the values each filter offers with their counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from django import forms
from django.db.models import Count, F, Max
from django.utils import timezone

from auditlog.models import Call
from auditlog.name_lookups import lookups
from auditlog.search.criteria import COUNT_LIMIT, Criterion, Search, one_of, uuid_of
from auditlog.search.fields import FIELDS, FILTERS, Comparison, LogField
from auditlog.search.histogram import stamp
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

PAGE_SIZE = 50
FACET_VALUES = 15  # Values of a facet that are shown.
ID_LENGTH = 40

RANGES = {
    "1h": ("Last hour", timedelta(hours=1)),
    "24h": ("Last 24 hours", timedelta(hours=24)),
    "7d": ("Last 7 days", timedelta(days=7)),
    "30d": ("Last 30 days", timedelta(days=30)),
    "all": ("All time", None),
}
DEFAULT_RANGE = "24h"

SCOPES = ("host", "gateway", "server", "connection")  # What a tab of the log may be about.


def first_of(values: Sequence[str]) -> str:
    """The first of some values, and how many more."""
    return "" if not values else values[0] if len(values) == 1 else f"{values[0]} +{len(values) - 1}"


class Facet(NamedTuple):
    """One filter: with `choices` a list to tick, without a text to type."""

    name: str
    label: str
    value: Any
    summary: str
    choices: Sequence[tuple[str, str]]


class Chip(NamedTuple):
    """One filter by id or by moment; `fields` keep it in the form, `without` is the query string that leaves it out."""

    name: str
    label: str
    fields: Sequence[tuple[str, str]]
    without: str


class Moment(forms.DateTimeField):
    """A moment in UTC, as bars and people write it; what is none narrows nothing."""

    def to_python(self, value: Any) -> datetime | None:
        try:
            return super().to_python(value)
        except forms.ValidationError:
            return None


class CallFilter(forms.Form):
    """The filters of the Logs page; unknown values are ignored, and a search with a syntax error finds nothing.

    Host, gateway, server and user are names or ids; ids outlive a rename. `scope` is what a tab is about,
    and no part of the query string.
    """

    range = forms.ChoiceField(required=False, choices=[(key, label) for key, (label, _) in RANGES.items()])
    to = Moment(required=False)
    q = forms.CharField(required=False, max_length=MAX_LENGTH)
    live = forms.BooleanField(required=False)

    def __init__(self, data: Any, scope: dict[str, str] | None = None) -> None:
        super().__init__(data)
        # "from" is no name Python knows.
        self.fields["from"] = Moment(required=False)
        self.fields |= {name: _form_field(field) for name, field in FILTERS.items()}
        self.is_valid()
        self.values: dict[str, Any] = {name: self.cleaned_data.get(name) or "" for name in self.fields}
        self.values["range"] = self.values["range"] or DEFAULT_RANGE
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
        return {
            name: value
            for name, value in sorted(texts.items())
            if value and (name, value) != ("range", DEFAULT_RANGE) and name not in self.scope
        }

    def without(self, *names: str, **more: str) -> str:
        """The query string without some filters, and with others."""
        remaining = {name: value for name, value in self.asked.items() if name not in names}
        return urlencode(remaining | more, doseq=True)

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
        since, until = (f"{at:%b} {at.day} {at:%H:%M}" if at else "" for at in (self.values["from"], self.values["to"]))
        return f"{since or 'the beginning'} to {until or 'now'}"

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

    @property
    def is_live(self) -> bool:
        """Whether new calls shall appear by themselves; the past has none."""
        return bool(self.values["live"]) and not self.values["to"] and not self.error

    def search(self, *, apart_from: str = "") -> Search:
        """The calls that match; `apart_from` leaves one filter out."""
        conditions = [*self.conditions, *self._filter_conditions(apart_from)]
        return Search(conditions, *self._between)

    @cached_property
    def _between(self) -> tuple[datetime | None, datetime | None]:
        # One request's calls, and those of an id, are found whenever they were.
        if self.values["correlation"] or self.pasted_id:
            return None, None
        if self.is_between:
            return self.values["from"] or None, self.values["to"] or None
        length = RANGES[self.values["range"]][1]
        return (timezone.now() - length if length else None), None

    def _filter_conditions(self, apart_from: str) -> Iterator[Condition | Criterion]:
        values = self.values | self.scope
        for name, field in FILTERS.items():
            value = values[name]
            if not value or name == apart_from:
                continue
            if field.choices:
                yield Condition(name, IS, tuple(value))
            elif name == "tool":
                yield one_of(field.column, (value,))
            elif field.comparison is Comparison.NAME and not uuid_of(value):
                yield Condition(name, CONTAINS, (value,))
            else:
                yield Condition(name, IS, (value,))

    def chips(self) -> list[Chip]:
        """The chosen ids, under the names their newest calls give them, and the moments."""
        chips = []
        if self.is_between:
            fields = [(name, stamp(self.values[name])) for name in ("from", "to") if self.values[name]]
            chips.append(Chip("time", self.span, fields, self.without("from", "to")))
        for name, field in FILTERS.items():
            text = self.values[name]
            if text and name not in self.scope and _is_by_id(field, text):
                chips.append(Chip(name, _newest_name(field, text) or text[:8], [(name, text)], self.without(name)))
        return chips

    @property
    def tab(self) -> str:
        """The query string of the tab's scope."""
        return urlencode({"tab": name} | self.scope) if (name := next(iter(self.scope), "")) else ""

    @property
    def all_of_it(self) -> str:
        """The query string that asks for the same on a page that is about nothing in particular."""
        return urlencode(self.scope | self.asked, doseq=True)

    def facet(self, name: str) -> Facet:
        """One of the filters that open on demand."""
        match = next((facet for facet in self.facets() if facet.name == name), None)
        return match or Facet(name, FILTERS[name].label, "", "", [])

    def facets(self) -> list[Facet]:
        """The filters that open on demand, each with what is chosen in it."""
        values = self.values
        ranges = [(key, label) for key, (label, _) in RANGES.items()]
        facets = [] if self.is_between else [Facet("range", "Time range", values["range"], self.span, ranges)]
        for name, field in FILTERS.items():
            value = values[name]
            if field.choices:
                summary = first_of([field.label_of(item) for item in value])
                facets.append(Facet(name, field.label, value, summary, field.choices))
            elif field.has_facet and name not in self.scope and not _is_by_id(field, value):
                facets.append(Facet(name, field.label, value, value[:24], []))
        if not values["correlation"]:
            facets.append(Facet("correlation", FILTERS["correlation"].label, "", "", []))
        return facets

    def searchable(self) -> dict[str, list[str]]:
        """The words of the search language, for its help: those of texts, and those of numbers."""
        numbers = [name for name, field in FIELDS.items() if field.comparison is Comparison.NUMBER]
        return {"texts": [name for name in FIELDS if name not in numbers], "numbers": numbers}


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
    if field.choices:
        return forms.MultipleChoiceField(required=False, choices=field.choices)
    is_id = field.comparison is Comparison.ID
    return forms.CharField(required=False, max_length=ID_LENGTH if is_id else field.max_length)


def _is_by_id(field: LogField, value: str) -> bool:
    """Whether the filter's value is an id; a chip then shows the name."""
    return field.comparison is Comparison.ID or (field.comparison is Comparison.NAME and uuid_of(value) is not None)


def _newest_name(field: LogField, pk: str) -> str:
    """The name in the newest call with this id; empty when there is none."""
    if not field.id_column:
        return ""
    names = Call.objects.filter(**{field.id_column: pk}).order_by("-created_at").values_list(field.column, flat=True)
    return next(iter(names[:1]), "")


class FacetValue(NamedTuple):
    """One value of a filter, and how many calls it would leave."""

    value: str
    label: str
    calls: int


class FacetValues(NamedTuple):
    """The most frequent values; `partial` when only the newest calls were counted."""

    values: Sequence[FacetValue]
    partial: bool


def facet_values(search: Search, field: LogField) -> FacetValues:
    """The values of a filter among the newest calls of a search."""
    rows, floor = search.recent(COUNT_LIMIT)
    groups = (
        rows.order_by()
        .exclude(**{field.group_column: None if field.id_column else ""})
        .values(value=F(field.group_column))
        .annotate(label=Max(field.column), number=Count("*"))
        .order_by("-number", "value")
    )
    values = [
        FacetValue(str(group["value"]), field.label_of(group["label"]), group["number"])
        for group in groups[:FACET_VALUES]
    ]
    return FacetValues(values, floor is not None)
