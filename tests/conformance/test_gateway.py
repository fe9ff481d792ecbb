"""What the conformance suite counts passes through the gateway, before every fixture server.

`python -m tests.conformance --gateway --why` prints what holds and what checks said.
"""

import contextlib
from collections.abc import Iterator

import pytest

from tests.conformance import fixtures, suite
from tests.conformance.fixtures import FIXTURES, MODERN, SESSION_ERA
from tests.conformance.through_gateway import gateway_before

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("conformance")]

# What a server of the session era cannot ask for: under keys of its own, several things at once.
ASKED_BY_MODERN_SERVERS = {
    "input-required-result-basic-elicitation",
    "input-required-result-ignore-extra-params",
    "input-required-result-multiple-input-requests",
}


def holding(name: str, revision: str) -> set[str]:
    """The scenarios of a revision that hold before this fixture server: all that the suite counts, if it can ask."""
    asks = revision != MODERN or MODERN in FIXTURES[name].revisions
    return set(suite.scored(revision)) - (set() if asks else ASKED_BY_MODERN_SERVERS)


@pytest.fixture(scope="module", params=[1, 2], ids=["one gateway", "two behind nginx"])
def addresses(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where the suite reaches each fixture server through one gateway, or two that share the requests."""
    fixtures.install()
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(fixtures.running(name)) for name in FIXTURES}
        proxied = stack.enter_context(
            gateway_before(servers, tmp_path_factory.mktemp("conformance"), replicas=request.param)
        )
        yield proxied


@pytest.mark.parametrize("revision", [SESSION_ERA, MODERN])
@pytest.mark.parametrize("name", FIXTURES)
def test_all_that_the_suite_counts_passes_through_the_gateway(
    addresses: dict[str, str], name: str, revision: str
) -> None:
    outcomes = suite.run(addresses[name], revision)

    assert {scenario: outcomes[scenario] for scenario in holding(name, revision) if not outcomes[scenario].holds} == {}
