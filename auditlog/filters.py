"""What the log is narrowed to, and one page of it: shared by the page and, later, by REST."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from django import forms
from django.db.models import Q, QuerySet
from django.utils import timezone

from auditlog.models import Call, Outcome

PAGE_SIZE = 50
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
COUNTED = 10_000  # More are "10,000+": nobody waits for an exact large number.

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


def is_uuid(text: str) -> bool:
    """Whether `text` is an id rather than a name."""
    try:
        UUID(text)
    except ValueError:
        return False
    return True


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
    """One filter by id; `without` is the query string that leaves it out."""

    name: str
    value: str
    label: str
    without: str


class CallFilter(forms.Form):
    """The query string of the Logs page; a value nobody offers narrows nothing.

    Host, gateway and server are names as they were at the time, or ids, which outlive a rename.
    """

    range = forms.ChoiceField(required=False, choices=[(key, label) for key, (label, _) in RANGES.items()])
    method = forms.MultipleChoiceField(required=False, choices=[(method, method) for method in METHODS])
    outcome = forms.MultipleChoiceField(required=False, choices=Outcome.choices)
    host = forms.CharField(required=False, max_length=120)
    gateway = forms.CharField(required=False, max_length=120)
    server = forms.CharField(required=False, max_length=120)
    tool = forms.CharField(required=False, max_length=300)
    user = forms.CharField(required=False, max_length=254)
    correlation = forms.CharField(required=False, max_length=40)

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        self.is_valid()
        self.chosen: dict[str, Any] = {name: self.cleaned_data.get(name) or "" for name in self.fields}
        self.chosen["range"] = self.chosen["range"] or DEFAULT_RANGE

    @property
    def asked(self) -> dict[str, Any]:
        """What was asked for beyond the default."""
        return {
            name: value for name, value in self.chosen.items() if value and (name, value) != ("range", DEFAULT_RANGE)
        }

    @property
    def span(self) -> str:
        """The time range in words."""
        return RANGES[self.chosen["range"]][0]

    @property
    def query(self) -> str:
        """The query string that asks for the same again."""
        return urlencode(self.asked, doseq=True)

    def narrow(self) -> QuerySet[Call]:
        """The calls that match, newest first."""
        calls = Call.objects.all()
        length = RANGES[self.chosen["range"]][1]
        # One request's calls are found whenever it was.
        if length and not self.chosen["correlation"]:
            calls = calls.filter(created_at__gte=timezone.now() - length)
        for name in ("method", "outcome"):
            if self.chosen[name]:
                calls = calls.filter(**{f"{name}__in": self.chosen[name]})
        return calls.filter(self._subjects())

    def _subjects(self) -> Q:
        wanted = Q()
        for name in ("host", "gateway", "server"):
            if text := self.chosen[name]:
                wanted &= Q(**{f"{name}_id": text}) if is_uuid(text) else Q(**{f"{name}_name__icontains": text})
        if text := self.chosen["tool"]:
            wanted &= Q(feature_name__icontains=text)
        if text := self.chosen["user"]:
            wanted &= Q(user_email__icontains=text)
        if text := self.chosen["correlation"]:
            wanted &= Q(correlation_id=text) if is_uuid(text) else Q(pk=None)
        return wanted

    def chips(self) -> list[Chip]:
        """The chosen ids, under the names their newest calls give them."""
        chips = []
        for name in ("host", "gateway", "server"):
            if is_uuid(text := self.chosen[name]):
                names = Call.objects.filter(**{f"{name}_id": text}).values_list(f"{name}_name", flat=True)
                without = {key: value for key, value in self.asked.items() if key != name}
                chips.append(Chip(name, text, names[:1].first() or text[:8], urlencode(without, doseq=True)))
        return chips

    def facets(self) -> list[Facet]:
        """The filters that open on demand, each with what is chosen in it."""
        chosen = self.chosen
        facets = [
            Facet("range", "Time range", chosen["range"], self.span, [(k, label) for k, (label, _) in RANGES.items()])
        ]
        facets.append(
            Facet("method", "Method", chosen["method"], first_of(chosen["method"]), [(m, m) for m in METHODS])
        )
        outcomes = [str(Outcome(value).label) for value in chosen["outcome"]]
        facets.append(Facet("outcome", "Outcome", chosen["outcome"], first_of(outcomes), Outcome.choices))
        texts = {"host": "Host", "gateway": "Gateway", "server": "Server", "tool": "Tool", "user": "User"}
        for name, label in (texts | {"correlation": "Correlation id"}).items():
            if not (name in ("host", "gateway", "server") and is_uuid(chosen[name])):
                facets.append(Facet(name, label, chosen[name], chosen[name][:24], []))
        return facets


@dataclass(frozen=True)
class CallPage:
    """One page of the log; `older` and `newer` are the cursors of its neighbours, empty at the ends."""

    calls: Sequence[Call]
    older: str
    newer: str


def page(calls: QuerySet[Call], *, before: str = "", after: str = "", size: int = PAGE_SIZE) -> CallPage:
    """The page older than `before`, or newer than `after`, else the newest one; new rows shift nothing."""
    if (mark := _read(after)) is not None:
        at, pk = mark
        later = Q(created_at__gt=at) | Q(created_at=at, pk__gt=pk)
        rows = list(calls.filter(later, created_at__gte=at).order_by("created_at", "pk")[: size + 1])
        more_newer, rows = len(rows) > size, rows[:size][::-1]
        return CallPage(rows, _mark(rows[-1]) if rows else after, _mark(rows[0]) if more_newer else "")
    mark = _read(before)
    if mark is not None:
        at, pk = mark
        calls = calls.filter(Q(created_at__lt=at) | Q(created_at=at, pk__lt=pk), created_at__lte=at)
    rows = list(calls[: size + 1])
    more_older, rows = len(rows) > size, rows[:size]
    newer = (_mark(rows[0]) if rows else before) if mark is not None else ""
    return CallPage(rows, _mark(rows[-1]) if more_older else "", newer)


def _mark(call: Call) -> str:
    """Where `call` stands in the log: microseconds and id."""
    return f"{(call.created_at - EPOCH) // timedelta(microseconds=1)}-{call.pk}"


def _read(mark: str) -> tuple[datetime, int] | None:
    micros, _, pk = mark.partition("-")
    if not (micros.isdecimal() and pk.isdecimal() and mark.isascii() and len(mark) < 40):
        return None
    try:
        return EPOCH + timedelta(microseconds=int(micros)), min(int(pk), 2**63 - 1)
    except OverflowError:
        return None


def count[M: Any](rows: QuerySet[M]) -> str:
    """How many rows match, at most "10,000+"."""
    number = rows.order_by()[: COUNTED + 1].count()
    return f"{COUNTED:,}+" if number > COUNTED else f"{number:,}"
