"""The filters beside the list of calls: their values, and the number of calls with each value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

from django.db import connection

from auditlog.fields import FILTERS, LogField
from auditlog.filters import FACETS, NOT, CallFilter
from auditlog.models import Call
from auditlog.search import Search

AT_FIRST = 4  # Values shown at first.
AT_MOST = 20  # Values shown after “more”.
# The facets that are open by default.
FIRST = ("outcome", "host", "user")


class FacetValue(NamedTuple):
    """One value of a filter, and the number of calls with this value."""

    value: str
    label: str
    calls: int


class FacetValues(NamedTuple):
    """The most frequent values. `distinct` counts all values; `partial` means only the newest calls were counted."""

    values: Sequence[FacetValue]
    distinct: int
    partial: bool


def facet_values(search: Search, fields: Sequence[LogField], most: int = AT_MOST) -> dict[str, FacetValues]:
    """Return a dictionary from the name of each field to the field's most frequent values.

    One SQL statement counts these values in the newest calls of `search`.
    """
    if not fields:
        return {}
    columns = {column for field in fields for column in (field.group_column, field.column)}
    inner, parameters = search.newest().order_by().values(*sorted(columns)).query.sql_with_params()
    counts = " UNION ALL ".join(f"({_counted(number, field)})" for number, field in enumerate(fields))
    with connection.cursor() as cursor:
        cursor.execute(f"WITH r AS MATERIALIZED ({inner}) {counts}", [*parameters, *[most] * len(fields)])
        found = cursor.fetchall()
    return {
        field.name: FacetValues(
            [FacetValue(value, field.label_of(label), calls) for n, value, label, calls, _ in found if n == number],
            next((distinct for n, *_, distinct in found if n == number), 0),
            search.floor is not None,
        )
        for number, field in enumerate(fields)
    }


def _counted(number: int, field: LogField) -> str:
    # The names of columns come from the table of fields; values from a request are passed as parameters.
    value = f"{field.group_column}::text"
    known = f"{field.group_column} IS NOT NULL" if field.id_column else f"{field.column} <> ''"
    return (
        f"SELECT {number}, {value}, max({field.column}), count(*), count(*) OVER () FROM r WHERE {known} "  # noqa: S608
        f"GROUP BY {value} ORDER BY 4 DESC, 2 LIMIT %s"
    )


class FacetLine(NamedTuple):
    """One value in a filter beside the list."""

    key: str
    value: str
    label: str
    calls: str  # Empty for a selected value that does not occur in the counted calls.
    share: int  # 0 to 20, relative to the most frequent value.
    is_chosen: bool
    is_left_out: bool


class Facet(NamedTuple):
    """One filter beside the list. `lines` is None until the values are requested; `why_none` explains an empty list.

    `opens` is the query string that shows more values.
    """

    name: str
    label: str
    lines: Sequence[FacetLine] | None
    more: int
    partial: bool
    is_asked: bool
    takes_text: bool
    opens: str
    why_none: str = ""


def facets(
    call_filter: CallFilter, search: Search, first: Sequence[str] = FIRST, *, any_call: bool = True
) -> list[Facet]:
    """Return the filters beside the list, some of them with their values and the number of calls of each value.

    Values are included for filters that are set, for filters that the person opened, and for filters in `first`.
    The values of a filter that is set are counted as if this filter were not set. `any_call=False` means that the
    search has no results. Then the filters that are not set have no values, and no query is made for them.
    """
    names = [name for name in FACETS if name not in call_filter.scope]
    shown = [] if call_filter.error else [name for name in names if name in first or _is_open(call_filter, name)]
    apart = [name for name in shown if call_filter.values[name] or call_filter.values[NOT + name]]
    together = [FILTERS[name] for name in shown if name not in apart]
    nothing = {field.name: FacetValues([], 0, False) for field in together}
    found = facet_values(search, together) if any_call else nothing
    for name in apart:  # The values as if this filter were not set.
        found |= facet_values(call_filter.search(apart_from=name), [FILTERS[name]])
    given = [_facet(call_filter, name, found.get(name)) for name in names]
    if all(one.lines is None or one.lines for one in given):
        return given
    why = _why_none(call_filter, any_call=any_call)
    return [one._replace(why_none=why) for one in given]


def facet(call_filter: CallFilter, name: str) -> Facet:
    call_filter.values["open"] = [*call_filter.values["open"], name]
    given = _facet(call_filter, name, facet_values(call_filter.search(apart_from=name), [FILTERS[name]])[name])
    if given.lines:
        return given
    return given._replace(why_none=_why_none(call_filter, any_call=call_filter.search().newest().exists()))


def _why_none(call_filter: CallFilter, *, any_call: bool) -> str:
    if any_call:
        return "These calls have no value for this filter."
    if call_filter.narrowing - {"range", "from", "to"}:
        return "No call matches."
    return "No call in this time range." if Call.objects.exists() else "No call was logged yet."


def _is_open(call_filter: CallFilter, name: str) -> bool:
    values = call_filter.values
    return name in values["open"] or bool(values[name] or values[NOT + name])


CLOSED = ("method", "reason")  # Filters with few, known values, which have no text field.


def _facet(call_filter: CallFilter, name: str, found: FacetValues | None) -> Facet:
    field, is_asked = FILTERS[name], name in call_filter.values["open"]
    takes_text = not field.choices and name not in CLOSED
    opens = call_filter.link(open=[*call_filter.values["open"], name])
    if found is None:
        return Facet(name, field.label, None, 0, False, is_asked, takes_text, opens)
    chosen, left_out = (call_filter.values[key] for key in (name, NOT + name))
    listed = found.values[: AT_MOST if is_asked else AT_FIRST]
    known = {one.value: one for one in found.values}
    missing = [value for value in dict.fromkeys([*chosen, *left_out]) if value not in {one.value for one in listed}]
    added = [known.get(value) or FacetValue(value, call_filter.shown(name, value), -1) for value in missing]
    most = max((one.calls for one in found.values), default=1)
    lines = [
        FacetLine(
            f"{crc32(f'{name}:{one.value}'.encode()):x}",
            one.value,
            one.label or "unnamed",
            f"{one.calls:,}" if one.calls >= 0 else "",
            round(20 * one.calls / most) if one.calls > 0 else 0,
            one.value in chosen,
            one.value in left_out,
        )
        for one in [*listed, *added]
    ]
    more = max(found.distinct - len(listed), 0)
    return Facet(name, field.label, lines, more, found.partial, is_asked, takes_text, opens)
