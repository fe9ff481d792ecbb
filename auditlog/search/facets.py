"""What the values of a filter are among the newest calls, and how many calls each would leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from django.db.models import Count, F, Max

from auditlog.models import Outcome
from auditlog.search.criteria import COUNTED, Search

SHOWN = 15

# What calls are counted by, and the name each value has.
COUNTED_BY = {
    "method": ("method", "method"),
    "outcome": ("outcome", "outcome"),
    "host": ("host_id", "host_name"),
    "gateway": ("gateway_id", "gateway_name"),
    "server": ("server_id", "server_name"),
    "tool": ("feature_name", "feature_name"),
    "user": ("user_id", "user_email"),
}


class Value(NamedTuple):
    """One value of a filter."""

    value: str
    label: str
    calls: int


class Values(NamedTuple):
    """The most frequent values; `partial` when only the newest calls were counted."""

    values: Sequence[Value]
    partial: bool


def values(search: Search, name: str) -> Values:
    """The values of the filter `name` among the newest calls of a search."""
    column, label = COUNTED_BY[name]
    rows, floor = search.recent(COUNTED)
    counted = (
        rows.order_by()
        .exclude(**{column: None} if column.endswith("_id") else {column: ""})
        .values(value=F(column))
        .annotate(label=Max(label), number=Count("*"))
        .order_by("-number", "value")
    )
    found = [Value(str(one["value"]), _label(name, one["label"]), one["number"]) for one in counted[:SHOWN]]
    return Values(found, floor is not None)


def _label(name: str, text: str) -> str:
    return str(Outcome(text).label) if name == "outcome" and text in Outcome.values else text
