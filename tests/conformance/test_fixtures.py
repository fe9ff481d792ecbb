"""Each fixture server passes the conformance suite without a gateway, except for what its library lacks."""

import pytest

from tests.conformance import fixtures, suite
from tests.conformance.fixtures import FIXTURES, SCORED

pytestmark = pytest.mark.full

RUNS = [(name, revision) for name, fixture in FIXTURES.items() for revision in fixture.revisions]


@pytest.mark.parametrize(("name", "revision"), RUNS)
def test_fixture_passes_the_suite_but_for_what_its_library_lacks(name: str, revision: str) -> None:
    fixtures.install()
    with fixtures.running(name) as url:
        outcomes = suite.run(url, revision)

    failed = {scenario: found for scenario, found in outcomes.items() if not found.holds}
    assert failed.keys() == FIXTURES[name].lacks & outcomes.keys(), failed
    assert len(outcomes) == SCORED[revision]
