"""Outcomes of scenarios, read from the suite's files, and their table."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.suite import Outcome, cell, outcome, table

OWN: dict[str, Any] = {"id": "tools-list", "status": "SUCCESS"}
WIRE: dict[str, Any] = {"id": "wire-schema-valid", "status": "SUCCESS"}
INFO: dict[str, Any] = {"id": "stream-closed", "status": "INFO"}
WARNING: dict[str, Any] = {"id": "session", "status": "WARNING", "details": {"message": "no session id"}}
FAILURE: dict[str, Any] = {"id": "tools-list", "status": "FAILURE", "errorMessage": "no tools"}


@pytest.mark.parametrize(
    ("checks", "holds"),
    [
        ([OWN, WIRE, INFO], True),
        ([OWN, FAILURE], False),
        ([OWN, WARNING], False),
        ([WARNING], False),  # server-sse-multiple-streams without a session id
        ([WIRE, INFO], False),
        ([], False),
    ],
)
def test_scenario_holds_when_a_check_of_its_own_passed_and_none_failed(
    tmp_path: Path, checks: list[dict[str, Any]], holds: bool
) -> None:
    left_by_suite(tmp_path, "tools-list", checks)

    assert outcome(tmp_path, "tools-list").holds is holds


def test_scenario_is_told_from_one_whose_name_begins_alike(tmp_path: Path) -> None:
    left_by_suite(tmp_path, "tools-list-changed", [OWN])

    assert outcome(tmp_path, "tools-list") == Outcome(failures=("did not run",))


def test_failure_says_what_the_suite_said(tmp_path: Path) -> None:
    left_by_suite(tmp_path, "tools-list", [OWN, FAILURE])

    assert outcome(tmp_path, "tools-list").failures == ("tools-list: no tools",)


def test_table_says_how_many_scenarios_hold() -> None:
    outcomes = {"ping": Outcome(2, 0, 1), "tools-list": Outcome(1, 2, 1)}

    printed = table({"python-v2": outcomes}).splitlines()

    assert printed[1].split() == ["ping", "+", "2", "ok", "0", "bad"]
    assert cell(outcomes["tools-list"]).startswith("-")
    assert printed[-1].split()[-1] == "1/2"


def left_by_suite(results: Path, scenario: str, checks: list[dict[str, Any]]) -> None:
    folder = results / f"server-{scenario}-2026-11-21T00-00-00-000Z"
    folder.mkdir()
    (folder / "checks.json").write_text(json.dumps(checks))
