"""Calls with hostile arguments under costly rules are refused, and another agent's calls are answered meanwhile."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from accounts.models import User
from rules.models import Rule
from tests import make, upstreams
from tests.conftest import Run
from tests.proxy.conftest import Agent, Proxy
from tests.rules.test_hostile_arguments import HOSTILE

pytestmark = pytest.mark.full

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


def post(agent: Agent, arguments: Any) -> httpx.Response:
    """Call the tool; lone surrogates are sent as JSON escapes."""
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "docs__echo", "arguments": arguments}}
    return agent.post(json.dumps(call).encode(), content_type="application/json")


def test_hostile_calls_are_refused_while_calls_of_others_are_answered(proxy: Proxy, run: Run, ana: User) -> None:
    docs = make.server(slug="docs", url=run(upstreams.docs()).url)
    plain, attacked = (make.gateway(docs, slug=slug) for slug in ("plain", "attacked"))
    agents = [proxy.agent(make.connection(make.agent(by=ana), gateway, ana)) for gateway in (plain, attacked)]
    assert all("docs__echo" in agent.tools() for agent in agents)
    for number, when in enumerate(COSTLY):
        Rule.objects.add(name=f"Rule {number}", effect="refuse", when=when, mode="on", gateway=attacked, by=None)
    arguments = [{"text": value} for value in (*HOSTILE.values(), *LARGE.values())]

    with ThreadPoolExecutor(2) as threads:
        hostile = threads.submit(lambda: [post(agents[1], each) for each in arguments])
        answered = 0
        while answered < 2 or not hostile.done():
            assert "result" in agents[0].call("docs__echo", {"text": "plain"}).json()
            answered += 1

    answers: list[httpx.Response] = hostile.result()
    assert all(answer.json()["error"]["data"]["reason"] == "rule_refused" for answer in answers)
