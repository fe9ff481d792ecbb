"""A replay gives recorded calls the labels that the live calls got, for random arguments and conditions."""

import os
from collections.abc import Iterator
from itertools import batched
from random import Random
from typing import Any

import pytest

from accounts.models import Team, User, WorkspaceSettings
from auditlog.models import Call
from proxy.access.rules import decide_by_rules
from rules.models import Rule
from rules.replay import CallFacts, arguments_of
from rules.targets import deciding
from tests import make, upstreams
from tests.conftest import Run
from tests.proxy.conftest import Proxy

pytestmark = pytest.mark.full

CALLS = int(os.environ.get("REPLAYED_CALLS", "60"))
VALUES = (1, 0, -1, 2.5, "main", "production", "e\u0301", "", None, True, [1, "a"], {"b": 1}, 2**70, "x" * 3000)
CONDITIONS = (
    "",
    "args.a > 1",
    "args.a == 'main' || args.b.contains('prod')",
    "!has(args.a)",
    "args.a.b == 1",
    "args.list.exists(x, x == 'a')",
    "size(args) > 1",
    "tool.destructive && now.weekday < 8",
    "'Operations' in person.teams && args.b.matches('(?i)PROD')",
    "client.address == '127.0.0.1' && agent.kind == 'agent' && person.role != ''",
)
AT_ONCE = 3  # Rules whose labels fit into the row together.


def drawn(chance: Random) -> Iterator[tuple[str, Any]]:
    for name in ("a", "b", "list"):
        if chance.random() < 0.7:
            yield name, chance.choice(VALUES)


def test_a_replay_decides_recorded_calls_as_they_were_decided(proxy: Proxy, run: Run, ana: User) -> None:
    WorkspaceSettings.edit(record_payloads=True, zone="Asia/Tokyo", by=None)
    Team.objects.create(name="Operations").users.add(ana)
    work = make.gateway(make.server(slug="docs", url=run(upstreams.docs()).url), slug="work")
    agent = proxy.agent(make.connection(make.agent(by=ana), work, ana))
    assert "docs__echo" in agent.tools()
    chance, facts, compared = Random(7), CallFacts(), set()

    groups = list(batched(CONDITIONS, AT_ONCE))
    for conditions in groups:
        Rule.objects.all().delete()
        for number, when in enumerate(conditions):
            effect = "tool_effect" if chance.random() < 0.2 else ""
            kind: dict[str, Any] = {"tool_effect": "destructive"} if effect else {}
            Rule.objects.add(name=f"r{number}", effect="refuse", when=when, by=None, **kind)
        rules = [deciding(rule)._replace(mode="watch") for rule in Rule.objects.all()]
        first = Call.objects.order_by("-id").values_list("id", flat=True)[0]
        for _ in range(CALLS // len(groups)):
            agent.call("docs__echo", dict(drawn(chance)))
        for call in Call.objects.filter(id__gt=first, method="tools/call"):
            arguments = arguments_of(call)
            assert arguments is not None
            again = decide_by_rules(rules, facts.ruled(call, arguments))
            assert again.label_text == call.labels, (conditions, arguments)
            compared.add(call.labels)

    assert len(compared) > 5
