"""Two things for API tests: a client that is signed in as the owner, and a count of the generated requests."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.api.browser import signed_in
from tests.workspace import OWNER, Serve


@pytest.fixture
def owner(live: Serve) -> Iterator[httpx.Client]:
    with signed_in(live, OWNER) as browser:
        yield browser


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many requests were generated from the API description."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    cases = [count for report in reports for name, count in report.user_properties if name == "cases"]
    if cases:
        terminalreporter.write_line(f"{sum(cases)} requests kept to the description of the API")
