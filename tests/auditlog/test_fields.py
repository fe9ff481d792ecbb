"""The table of log fields matches the columns and indexes of the log, and the documentation."""

from pathlib import Path

import pytest
from django.http import QueryDict

from auditlog.api import CallFilters
from auditlog.fields import EXPORT_COLUMNS, FIELDS, FILTERS, PARAMETERS, UNLISTED, Comparison
from auditlog.filters import FACETS, CallFilter
from auditlog.models import Call
from auditlog.query_language import ALLOWED, Condition, parse_search
from proxy.store.call_log import COLUMNS

GUIDE = Path(__file__).parents[2] / "docs/how-to/read-the-log.md"


def test_a_field_names_exported_columns_takes_its_operators_and_is_in_the_guide(subtests: pytest.Subtests) -> None:
    guide = GUIDE.read_text()
    for field in FIELDS.values():
        with subtests.test(field.name):
            assert {field.column, field.id_column or field.column} <= set(EXPORT_COLUMNS.values())
            assert (field.comparison is Comparison.NAME) == bool(field.id_column)
            assert f"`{field.name}" in guide
            value = "ok" if field.comparison is Comparison.ENUM else "1"
            for operator in ALLOWED[field.comparison]:
                (condition,) = parse_search(f"{field.name} {operator} {value}")
                assert isinstance(condition, Condition)
                assert (condition.field, condition.operator) == (field.name, operator)


def test_the_page_and_the_api_take_the_parameters_of_the_table() -> None:
    look = {"columns", "zone", "chart", "order", "open"}
    left_out = {f"not_{name}" for name in FACETS}
    assert set(FILTERS) | left_out | look | {"range", "from", "to", "q", "live"} == set(CallFilter(QueryDict()).fields)
    assert set(FACETS) <= set(FILTERS)
    assert set(PARAMETERS) | {"from", "to", "q"} == set(CallFilters().fields)


def test_every_column_is_written_but_those_the_database_sets_and_exported_but_payloads_and_the_commit_time() -> None:
    columns = {column.attname for column in Call._meta.concrete_fields}
    written = COLUMNS.decode().split(", ")

    assert sorted(written) == sorted(columns - {"id", "recorded_at"})
    assert columns - set(EXPORT_COLUMNS.values()) == {"id", *UNLISTED}
    assert UNLISTED == ("recorded_at", "request_payload", "response_payload")
