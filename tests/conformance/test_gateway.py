"""What the conformance suite passes through the gateway stays passed.

`HOLDING` grows with the gateway; `python -m tests.conformance --gateway --why` prints what holds and what checks said.
"""

import contextlib
from collections.abc import Iterator

import pytest

from tests.conformance import fixtures, suite
from tests.conformance.fixtures import FIXTURES, MODERN, SESSION_ERA
from tests.conformance.through_gateway import gateway_before

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("conformance")]

TOOLS = {
    "tools-list",
    "tools-call-simple-text",
    "tools-call-image",
    "tools-call-audio",
    "tools-call-embedded-resource",
    "tools-call-mixed-content",
    "tools-call-error",
    "tools-call-with-progress",
}
ASKING = {
    "tools-call-sampling",
    "tools-call-elicitation",
    "elicitation-sep1034-defaults",
    "elicitation-sep1330-enums",
}
HOLDING = {
    SESSION_ERA: TOOLS | ASKING | {"server-initialize", "ping", "dns-rebinding-protection"},
    MODERN: TOOLS
    | {"server-sse-multiple-streams", "dns-rebinding-protection", "input-required-result-unsupported-methods"},
}
# What a server that speaks 2026-07-28 itself passes in it besides.
INPUT_REQUIRED = {
    f"input-required-result-{scenario}"
    for scenario in (
        "basic-elicitation",
        "basic-sampling",
        "basic-list-roots",
        "request-state",
        "multiple-input-requests",
        "multi-round",
        "missing-input-response",
        "non-tool-request",
        "result-type",
        "tampered-state",
        "capability-check",
        "ignore-extra-params",
        "validate-input",
    )
}


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where the suite reaches each fixture server through one gateway."""
    fixtures.install()
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(fixtures.running(name)) for name in FIXTURES}
        yield stack.enter_context(gateway_before(servers, tmp_path_factory.mktemp("conformance")))


@pytest.mark.parametrize("revision", HOLDING)
@pytest.mark.parametrize("name", FIXTURES)
def test_what_passed_through_the_gateway_still_does(addresses: dict[str, str], name: str, revision: str) -> None:
    outcomes = suite.run(addresses[name], revision)
    speaks_it = revision == MODERN and MODERN in FIXTURES[name].revisions
    holding = HOLDING[revision] | (INPUT_REQUIRED if speaks_it else set())

    assert {scenario: outcomes[scenario] for scenario in holding if not outcomes[scenario].holds} == {}
