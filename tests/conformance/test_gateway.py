"""Every fixture server passes the conformance suite through nginx and two replicas with two workers each.

`python -m tests.conformance --gateway --why` prints the results and the messages of the checks.
"""

import contextlib
from collections.abc import Iterator

import pytest

from tests.conformance import fixtures, suite
from tests.conformance.fixtures import FIXTURES, MODERN, NO_SUBSCRIPTIONS, SCORED, SESSION_ERA
from tests.conformance.through_gateway import gateway_before

pytestmark = pytest.mark.full

# Scenarios in which a server asks under keys of its own, or for several inputs at once: impossible in the session era.
ASKED_BY_MODERN_SERVERS = {
    "input-required-result-basic-elicitation",
    "input-required-result-ignore-extra-params",
    "input-required-result-multiple-input-requests",
}


def beyond(name: str, revision: str) -> set[str]:
    """Return the scenarios of a version that no gateway can pass with this fixture server."""
    asks = revision != MODERN or MODERN in FIXTURES[name].revisions
    return (set() if asks else ASKED_BY_MODERN_SERVERS) | (FIXTURES[name].lacks & NO_SUBSCRIPTIONS)


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The address of each fixture server behind two replicas, which share the requests."""
    fixtures.install()
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(fixtures.running(name)) for name in FIXTURES}
        yield stack.enter_context(gateway_before(servers, tmp_path_factory.mktemp("conformance"), replicas=2))


@pytest.mark.parametrize("revision", [SESSION_ERA, MODERN])
@pytest.mark.parametrize("name", FIXTURES)
def test_every_scenario_passes_that_the_server_makes_possible(
    addresses: dict[str, str], name: str, revision: str
) -> None:
    outcomes = suite.run(addresses[name], revision)

    failed = {scenario: found for scenario, found in outcomes.items() if not found.holds}
    assert failed.keys() <= beyond(name, revision), failed
    assert len(outcomes) == SCORED[revision]
