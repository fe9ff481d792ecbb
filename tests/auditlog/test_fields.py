"""The table of log fields matches the columns and indexes of the log, and the documentation."""

from pathlib import Path

import pytest
from django.http import QueryDict

from auditlog.api import CallFilters
from auditlog.fields import EXPORT_COLUMNS, FIELDS, FILTERS, PARAMETERS, UNLISTED, Comparison, LogField
from auditlog.filters import FACETS, CallFilter
from auditlog.models import Call
from auditlog.query_language import ALLOWED, Condition, parse_search
from proxy.store.call_log import COLUMNS

GUIDE = Path(__file__).parents[2] / "docs/how-to/read-the-log.md"


@pytest.mark.full
@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_a_field_names_columns_that_are_exported(field: LogField) -> None:
    columns = {field.column, *([field.id_column] if field.id_column else [])}

    assert columns <= set(EXPORT_COLUMNS.values())
    assert (field.comparison is Comparison.NAME) == bool(field.id_column)


@pytest.mark.full
@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_a_field_can_be_asked_for_with_each_of_its_operators_and_is_in_the_guide(field: LogField) -> None:
    value = "ok" if field.comparison is Comparison.ENUM else "1"

    for operator in ALLOWED[field.comparison]:
        (condition,) = parse_search(f"{field.name} {operator} {value}")
        assert isinstance(condition, Condition)
        assert (condition.field, condition.operator) == (field.name, operator)
    assert f"`{field.name}" in GUIDE.read_text()


def test_the_page_and_the_api_take_the_parameters_of_the_table() -> None:
    look = {"columns", "zone", "chart", "order", "open"}
    left_out = {f"not_{name}" for name in FACETS}
    assert set(FILTERS) | left_out | look | {"range", "from", "to", "q", "live"} == set(CallFilter(QueryDict()).fields)
    assert set(FACETS) <= set(FILTERS)
    assert set(PARAMETERS) | {"from", "to", "q"} == set(CallFilters().fields)


def test_payloads_are_the_only_columns_besides_the_commit_time_that_no_file_holds() -> None:
    columns = {column.attname for column in Call._meta.concrete_fields}

    assert columns - set(EXPORT_COLUMNS.values()) == {"id", *UNLISTED}
    assert UNLISTED == ("recorded_at", "request_payload", "response_payload")


def test_every_column_is_written_but_those_the_database_sets() -> None:
    written = COLUMNS.decode().split(", ")

    assert set(written) == {column.column for column in Call._meta.concrete_fields} - {"id", "recorded_at"}
    assert len(written) == len(set(written))
