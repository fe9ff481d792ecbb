"""The rules of a grant, applied to one call: by the proxy before a call is sent, and by a dry run."""

from typing import Any

from proxy.access.decision import AccessRow
from proxy.access.features import Named, Refusal, Resolved
from proxy.access.rules import RuledCall, RuleDecision, facts_of, moment_of
from wire.mcp import TOOL

KINDS = {"token": "agent", "headed": "app"}  # Kinds of hosts, as conditions name them.


class RuleRefused(Refusal):
    """A rule refuses this call. The sentence is the rule's own, if it has one."""

    def __init__(self, decision: RuleDecision, resolved: Resolved, tool: str) -> None:
        super().__init__("rule_refused", resolved.assigned, Named(TOOL, tool), sentence_of(decision))
        self.decision = decision


def sentence_of(decision: RuleDecision) -> str:
    """Return the sentence of a refusal; empty for the general one."""
    rule = decision.rule
    if rule is None:
        return ""
    if decision.error:
        return f"The rule “{rule.name}” has no result for this call ({decision.error}), so the call is refused."
    return rule.text


def ruled_call(
    grant: AccessRow, resolved: Resolved, tool: str, arguments: Any, *, client: str = "", address: str, at: float
) -> RuledCall:
    """Return a call of `tool`, its name for clients, at the time `at`, as the rules of `grant` see it."""
    rules = grant.rules
    assert rules is not None  # A grant without rules needs no call.
    fields = {
        "tool.name": tool,
        "tool.server": resolved.assigned.server_name,
        **facts_of(resolved.claims),
        "agent.name": grant.host_name,
        "agent.kind": KINDS.get(rules.host_kind, ""),
        "person.email": grant.user_email,
        "person.teams": rules.teams,
        "person.role": rules.role,
        "gateway.name": grant.gateway_name,
        "gateway.slug": rules.gateway_slug,
        "client.name": client,
        "client.address": address,
        **moment_of(at, rules.zone),
    }
    return RuledCall(resolved.assigned.server_id, fields, arguments)
