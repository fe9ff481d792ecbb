"""Each fixture server passes the conformance suite whole by itself: what fails through the gateway is the gateway's."""

import pytest

from tests.conformance import fixtures, suite
from tests.conformance.fixtures import FIXTURES

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("conformance")]

SCORED = {"2025-11-25": 30, "2026-07-28": 37}
RUNS = [(name, revision) for name, fixture in FIXTURES.items() for revision in fixture.revisions]


@pytest.mark.parametrize(("name", "revision"), RUNS)
def test_fixture_passes_the_suite_whole(name: str, revision: str) -> None:
    fixtures.install()
    with fixtures.running(name) as url:
        outcomes = suite.run(url, revision)

    assert {scenario: found for scenario, found in outcomes.items() if not found.holds} == {}
    assert len(outcomes) == SCORED[revision]
