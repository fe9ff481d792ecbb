"""What the conformance suite passes through the gateway stays passed.

`HOLDING` grows with the gateway; `python -m tests.conformance --gateway --why` prints what holds and what checks said.
"""

import contextlib
from collections.abc import Iterator

import httpx
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
FEATURES = {
    "completion-complete",
    "prompts-get-embedded-resource",
    "prompts-get-simple",
    "prompts-get-with-args",
    "prompts-get-with-image",
    "prompts-list",
    "resources-list",
    "resources-read-binary",
    "resources-read-text",
    "resources-templates-read",
}
ASKING = {
    "tools-call-sampling",
    "tools-call-elicitation",
    "elicitation-sep1034-defaults",
    "elicitation-sep1330-enums",
}
OF_BOTH_ERAS = TOOLS | FEATURES | {"server-sse-multiple-streams", "dns-rebinding-protection"}
HOLDING = {
    SESSION_ERA: OF_BOTH_ERAS
    | ASKING
    | {
        "logging-set-level",
        "ping",
        "resources-subscribe",
        "resources-unsubscribe",
        "server-initialize",
        "tools-call-with-logging",
    },
    MODERN: OF_BOTH_ERAS
    | {
        "caching",
        "input-required-result-basic-list-roots",
        "input-required-result-basic-sampling",
        "input-required-result-capability-check",
        "input-required-result-missing-input-response",
        "input-required-result-multi-round",
        "input-required-result-non-tool-request",
        "input-required-result-request-state",
        "input-required-result-result-type",
        "input-required-result-tampered-state",
        "input-required-result-unsupported-methods",
        "input-required-result-validate-input",
        "sep-2164-resource-not-found",
        "server-stateless",
    },
}
# What a server of the session era cannot ask for: under keys of its own, several things at once.
ASKED_BY_MODERN_SERVERS = {
    "input-required-result-basic-elicitation",
    "input-required-result-ignore-extra-params",
    "input-required-result-multiple-input-requests",
}


def holding(name: str, revision: str) -> set[str]:
    """The scenarios of a revision that hold before this fixture server."""
    more = ASKED_BY_MODERN_SERVERS if revision == MODERN and MODERN in FIXTURES[name].revisions else set()
    return HOLDING[revision] | more


@pytest.fixture(scope="module", params=[1, 2], ids=["one gateway", "two behind nginx"])
def addresses(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where the suite reaches each fixture server through one gateway, or two that share the requests."""
    fixtures.install()
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(fixtures.running(name)) for name in FIXTURES}
        proxied = stack.enter_context(
            gateway_before(servers, tmp_path_factory.mktemp("conformance"), replicas=request.param)
        )
        # What a server offers is announced once it has said so: each is asked something before the suite begins.
        for url in proxied.values():
            httpx.post(url, json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, trust_env=False, timeout=30)
        yield proxied


@pytest.mark.parametrize("revision", HOLDING)
@pytest.mark.parametrize("name", FIXTURES)
def test_what_passed_through_the_gateway_still_does(addresses: dict[str, str], name: str, revision: str) -> None:
    outcomes = suite.run(addresses[name], revision)

    assert {scenario: outcomes[scenario] for scenario in holding(name, revision) if not outcomes[scenario].holds} == {}
