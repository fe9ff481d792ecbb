"""The query string of the Logs page: a time range, facets, and a search in words; and what it leads to."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import urlencode

from django import forms
from django.utils import timezone

from auditlog.models import Call, Outcome
from auditlog.search.criteria import SUBJECTS, Search, uuid_of
from auditlog.search.histogram import stamp
from auditlog.search.query_language import CONTAINS, IS, LONGEST, Condition, SearchSyntaxError, parse

PAGE_SIZE = 50

RANGES = {
    "1h": ("Last hour", timedelta(hours=1)),
    "24h": ("Last 24 hours", timedelta(hours=24)),
    "7d": ("Last 7 days", timedelta(days=7)),
    "30d": ("Last 30 days", timedelta(days=30)),
    "all": ("All time", None),
}
DEFAULT_RANGE = "24h"

METHODS = (
    "initialize",
    "server/discover",
    "ping",
    "tools/list",
    "tools/call",
    "prompts/list",
    "prompts/get",
    "resources/list",
    "resources/templates/list",
    "resources/read",
    "completion/complete",
)
LABELS = {"host": "Host", "gateway": "Gateway", "server": "Server", "tool": "Tool", "user": "User"}
IDS = ("connection", "correlation")
SCOPES = ("host", "gateway", "server", "connection")  # What a tab may be about.


def first_of(values: Sequence[str]) -> str:
    """The first of some values, and how many more."""
    return "" if not values else values[0] if len(values) == 1 else f"{values[0]} +{len(values) - 1}"


class Facet(NamedTuple):
    """One filter: with `choices` a list to tick, without a text to type."""

    name: str
    label: str
    value: Any
    told: str
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
    """What the page is narrowed to; a value nobody offers narrows nothing, a search that does not parse finds nothing.

    Host, gateway, server and user are names or ids; ids outlive a rename. `scope` is what a tab is about,
    and no part of the query string.
    """

    range = forms.ChoiceField(required=False, choices=[(key, label) for key, (label, _) in RANGES.items()])
    to = Moment(required=False)
    q = forms.CharField(required=False, max_length=LONGEST)
    method = forms.MultipleChoiceField(required=False, choices=[(method, method) for method in METHODS])
    outcome = forms.MultipleChoiceField(required=False, choices=Outcome.choices)
    host = forms.CharField(required=False, max_length=120)
    gateway = forms.CharField(required=False, max_length=120)
    server = forms.CharField(required=False, max_length=120)
    tool = forms.CharField(required=False, max_length=300)
    user = forms.CharField(required=False, max_length=254)
    connection = forms.CharField(required=False, max_length=40)
    correlation = forms.CharField(required=False, max_length=40)
    live = forms.BooleanField(required=False)

    def __init__(self, data: Any, scope: dict[str, str] | None = None) -> None:
        super().__init__(data)
        # "from" is no name Python knows.
        self.fields["from"] = Moment(required=False)
        self.is_valid()
        self.chosen: dict[str, Any] = {name: self.cleaned_data.get(name) or "" for name in self.fields}
        self.chosen["range"] = self.chosen["range"] or DEFAULT_RANGE
        self.scope = scope or {}
        self.error = ""
        try:
            self.searched = parse(self.chosen["q"])
        except SearchSyntaxError as wrong:
            self.searched, self.error = [], str(wrong)

    @property
    def asked(self) -> dict[str, Any]:
        """What was asked for beyond the default."""
        told = {name: stamp(value) if isinstance(value, datetime) else value for name, value in self.chosen.items()}
        told["live"] = "1" if told["live"] else ""
        if self.is_between:
            del told["range"]
        return {
            name: value
            for name, value in sorted(told.items())
            if value and (name, value) != ("range", DEFAULT_RANGE) and name not in self.scope
        }

    def without(self, *names: str, **more: str) -> str:
        """The query string without some filters, and with others."""
        left = {name: value for name, value in self.asked.items() if name not in names}
        return urlencode(left | more, doseq=True)

    @property
    def query(self) -> str:
        """The query string that asks for the same again."""
        return self.without()

    @property
    def is_between(self) -> bool:
        """Whether two moments were given instead of a range."""
        return bool(self.chosen["from"] or self.chosen["to"])

    @property
    def span(self) -> str:
        """The time range in words."""
        if not self.is_between:
            return RANGES[self.chosen["range"]][0]
        since, until = (f"{at:%b} {at.day} {at:%H:%M}" if at else "" for at in (self.chosen["from"], self.chosen["to"]))
        return f"{since or 'the beginning'} to {until or 'now'}"

    @property
    def is_live(self) -> bool:
        """Whether new calls shall appear by themselves; the past has none."""
        return bool(self.chosen["live"]) and not self.chosen["to"] and not self.error

    def search(self, *, apart_from: str = "") -> Search:
        """The calls that match; `apart_from` leaves one filter out."""
        conditions = [*self.searched, *self._ticked(apart_from)]
        return Search(conditions, *self._between)

    @cached_property
    def _between(self) -> tuple[datetime | None, datetime | None]:
        # One request's calls are found whenever it was.
        if self.chosen["correlation"]:
            return None, None
        if self.is_between:
            return self.chosen["from"] or None, self.chosen["to"] or None
        length = RANGES[self.chosen["range"]][1]
        return (timezone.now() - length if length else None), None

    def _ticked(self, apart_from: str) -> list[Condition]:
        chosen = {name: value for name, value in (self.chosen | self.scope).items() if value and name != apart_from}
        ticked = [Condition(name, IS, tuple(chosen[name])) for name in ("method", "outcome") if name in chosen]
        named = [(name, chosen[name]) for name in SUBJECTS if name in chosen]
        ticked += [Condition(name, IS if uuid_of(text) else CONTAINS, (text,)) for name, text in named]
        ticked += [Condition(name, IS, (chosen[name],)) for name in ("tool", *IDS) if name in chosen]
        return ticked

    def chips(self) -> list[Chip]:
        """The chosen ids, under the names their newest calls give them, and the moments."""
        chips = []
        if self.is_between:
            fields = [(name, stamp(self.chosen[name])) for name in ("from", "to") if self.chosen[name]]
            chips.append(Chip("time", self.span, fields, self.without("from", "to")))
        for name in (*SUBJECTS, *IDS):
            text = self.chosen[name]
            if name not in self.scope and text and (name in IDS or uuid_of(text)):
                chips.append(Chip(name, self._named(name, text), [(name, text)], self.without(name)))
        return chips

    def _named(self, name: str, text: str) -> str:
        if name not in SUBJECTS:
            return text[:8]
        label = "user_email" if name == "user" else f"{name}_name"
        names = Call.objects.filter(**{f"{name}_id": text}).order_by("-created_at").values_list(label, flat=True)
        return next(iter(names[:1]), "") or text[:8]

    @property
    def tab(self) -> str:
        """The query string that says what the tab is about."""
        return urlencode({"tab": name} | self.scope) if (name := next(iter(self.scope), "")) else ""

    @property
    def all_of_it(self) -> str:
        """The query string that asks for the same on a page that is about nothing in particular."""
        return urlencode(self.scope | self.asked, doseq=True)

    def facet(self, name: str) -> Facet:
        """One of the filters that open on demand."""
        return next((one for one in self.facets() if one.name == name), Facet(name, LABELS.get(name, ""), "", "", []))

    def facets(self) -> list[Facet]:
        """The filters that open on demand, each with what is chosen in it."""
        chosen = self.chosen
        ranges = [(key, label) for key, (label, _) in RANGES.items()]
        facets = [] if self.is_between else [Facet("range", "Time range", chosen["range"], self.span, ranges)]
        facets.append(
            Facet("method", "Method", chosen["method"], first_of(chosen["method"]), [(m, m) for m in METHODS])
        )
        outcomes = [str(Outcome(value).label) for value in chosen["outcome"]]
        facets.append(Facet("outcome", "Outcome", chosen["outcome"], first_of(outcomes), Outcome.choices))
        for name, label in LABELS.items():
            if name not in self.scope and not (name in SUBJECTS and uuid_of(chosen[name])):
                facets.append(Facet(name, label, chosen[name], chosen[name][:24], []))
        if not chosen["correlation"]:
            facets.append(Facet("correlation", "Correlation id", "", "", []))
        return facets
