"""A replay finds the recorded calls that a rule would have affected, and counts calls that it cannot judge."""

from datetime import timedelta
from typing import Any

import pytest

from auditlog.models import Call
from rules.models import Rule
from rules.replay import replay
from rules.targets import deciding
from servers.models import Server
from tests import make
from tests.calls import call

pytestmark = pytest.mark.django_db


@pytest.fixture
def docs() -> Server:
    return make.server(slug="docs")


def recorded(server: Server, tool: str = "docs__echo", *, cut: bool = False, **arguments: Any) -> Call:
    """Return a logged call with these recorded arguments."""
    payload = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
    return call(
        method="tools/call",
        feature_type="tool",
        feature_name=tool,
        server_id=server.pk,
        server_name=server.name,
        request_payload=payload,
        payload_truncated=cut,
    )


def rule(**fields: Any) -> Rule:
    return Rule.objects.add(**{"name": make.unique("rule"), "effect": "refuse", "by": None} | fields)


def test_a_replay_counts_calls_agents_and_what_nobody_can_tell(docs: Server) -> None:
    for amount in (100, 600, 700, "many"):
        recorded(docs, amount=amount)
    recorded(docs, cut=True, amount=600)
    call(method="tools/call", feature_type="tool", feature_name="docs__echo", server_id=docs.pk)
    recorded(docs, tool="docs__other", amount=600)
    large = rule(when="args.amount > 500", tools=["docs__echo"])

    found = replay(deciding(large), None)

    assert (found.looked, found.count, found.failed, found.unknown) == (7, 3, 1, 2)
    assert found.is_complete
    assert len(found.examples) == 3


def test_a_call_without_recorded_arguments_counts_if_it_has_the_label_of_the_unchanged_rule(docs: Server) -> None:
    tried = rule(name="Trial", when="args.amount > 500")
    unrecorded: dict[str, Any] = {"feature_type": "tool", "feature_name": "docs__echo", "server_id": docs.pk}
    for labels in ("would refuse: Trial", "seen, refused by: Trial", "would refuse: Trial 2", ""):
        call(labels=labels, **unrecorded)
    call(at=tried.updated_at - timedelta(minutes=1), labels="would refuse: Trial", **unrecorded)

    found = replay(deciding(tried), None, labels_from=tried.updated_at)
    changed = replay(deciding(tried), None)

    assert (found.count, found.unknown, found.is_blind) == (2, 3, False)
    assert (changed.count, changed.unknown, changed.is_blind) == (0, 5, True)


def test_a_condition_without_arguments_needs_no_recorded_ones_and_refused_calls_are_left_out(docs: Server) -> None:
    call(method="tools/call", feature_type="tool", feature_name="docs__echo", server_id=docs.pk)
    refused: dict[str, Any] = {"deny_reason": "tool_disabled", "outcome": "denied"}
    call(feature_type="tool", feature_name="docs__echo", server_id=docs.pk, **refused)

    found = replay(deciding(rule(when="tool.server == 'x' || now.hour >= 0")), None)

    assert (found.looked, found.count, found.unknown) == (1, 1, 0)


def test_a_replay_that_has_no_time_says_how_far_it_came(docs: Server) -> None:
    for _ in range(3):
        recorded(docs)

    found = replay(deciding(rule()), None, seconds=0)

    assert not found.is_complete
    assert found.since == Call.objects.order_by("created_at").first().created_at  # type: ignore[union-attr]
