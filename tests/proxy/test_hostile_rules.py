"""Costly rules and hostile arguments over the wire: these calls are refused, and those of others answered meanwhile."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import quantiles
from typing import Any

import httpx
import pytest

from accounts.models import User
from proxy.access.rules import RuledCall, decide_by_rules
from rules.models import Rule
from rules.targets import deciding
from tests import make, upstreams
from tests.conftest import Run
from tests.proxy.conftest import Agent, Proxy
from tests.rules.test_expressions import CALL
from tests.rules.test_hostile_arguments import HOSTILE

COSTLY = (
    "args.text.contains('secret')",
    f"args.text.contains('{'a' * 1900}b')",
    "args.text.matches('(?i)(^|[^a-z])(prod|production|live)([^a-z]|$)')",
    "args.text.matches('[ab]*a[ab]{60}c')",
    "args.text.exists(x, x.exists(y, y == 1))",
    "args.text.filter(x, x != [1, 2]).exists(y, y == [1, 2])",
    f"[{', '.join(['1'] * 40)}].exists(length, size(args.text) == length)",
    "args == {'text': args.text, 'more': 1}",
)
LARGE = {
    "as long as texts may be": "a" * 262_000 + "secret",
    "letters of many bytes": "ä" * 131_000 + "secret",
    "many lists": [[0] * 30] * 30,
}
PLAIN_CALLS = 60


def post(agent: Agent, arguments: Any) -> httpx.Response:
    """Call the tool; lone surrogates are sent as JSON writes them."""
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "docs__echo", "arguments": arguments}}
    return agent.post(json.dumps(call).encode(), content_type="application/json")


def latencies(agent: Agent, more: Callable[[int], bool]) -> list[float]:
    """Make plain calls while `more` is true of their number, and return how long each took."""
    took: list[float] = []
    while more(len(took)):
        begun = time.perf_counter()
        assert "result" in agent.call("docs__echo", {"text": "plain"}).json()
        took.append(time.perf_counter() - begun)
    return took


@pytest.mark.full
def test_hostile_calls_are_refused_while_calls_of_others_are_answered(
    proxy: Proxy, run: Run, ana: User, record_property: Callable[[str, object], None]
) -> None:
    docs = make.server(slug="docs", url=run(upstreams.docs()).url)
    plain, attacked = (make.gateway(docs, slug=slug) for slug in ("plain", "attacked"))
    agents = [proxy.agent(make.connection(make.agent(by=ana), gateway, ana)) for gateway in (plain, attacked)]
    assert all("docs__echo" in agent.tools() for agent in agents)
    for number, when in enumerate(COSTLY):
        Rule.objects.add(name=f"Rule {number}", effect="refuse", when=when, mode="on", gateway=attacked, by=None)
    arguments = [{"text": value} for value in (*HOSTILE.values(), *LARGE.values())]
    alone = latencies(agents[0], lambda number: number < PLAIN_CALLS)

    with ThreadPoolExecutor(2) as threads:
        hostile = threads.submit(lambda: [post(agents[1], each) for each in arguments * 3])
        beside = latencies(agents[0], lambda number: number < 2 or not hostile.done())

    answers: list[httpx.Response] = hostile.result()
    assert all(answer.json()["error"]["data"]["reason"] == "rule_refused" for answer in answers)
    record_property(
        "p99 beside hostile calls, in p99 alone", quantiles(beside, n=100)[98] / quantiles(alone, n=100)[98]
    )
    record_property("slowest decision in ms", 1000 * max(map(decision_time, arguments)))


def decision_time(arguments: dict[str, Any]) -> float:
    """Return the processor time of the decision about a call with these arguments."""
    rules, call = [deciding(rule) for rule in Rule.objects.all()], RuledCall("", CALL, arguments)
    begun = time.thread_time()
    assert decide_by_rules(rules, call).effect == "refuse"
    return time.thread_time() - begun
