"""The rules of a grant, applied to one call: by the proxy before a call is sent, and by a dry run."""

from typing import Any

from proxy.access.features import Named, Refusal, Resolved
from proxy.access.rules import RuledCall, RuleDecision, Rules, ToolClaims, facts_of, moment_of
from wire.mcp import TOOL

KINDS = {"token": "agent", "headed": "app"}  # Kinds of hosts, as conditions name them.


class RuleRefused(Refusal):
    """A rule refuses this call. If `sentence_of` returns no message, the message is a general one."""

    def __init__(self, decision: RuleDecision, resolved: Resolved, tool: str) -> None:
        super().__init__("rule_refused", resolved.assigned, Named(TOOL, tool), sentence_of(decision))
        self.decision = decision


def sentence_of(decision: RuleDecision) -> str:
    """Return the message for a call that a rule refuses.

    If the rule has no message, return ""; the caller then uses a general one.
    """
    rule = decision.rule
    if rule is None:
        return ""
    if decision.error:
        return f"The rule “{rule.name}” has no result for this call ({decision.error}), so the call is refused."
    return rule.text


def ruled_call(
    caller: Any,
    rules: Rules,
    server: Any,
    claims: ToolClaims | None,
    tool: str,
    arguments: Any,
    *,
    client: tuple[str, str],
    at: float,
) -> RuledCall:
    """Return a tool call as conditions see it; `tool` is the tool's name for clients.

    For a live call, `caller` is the grant and `server` the assigned server. For a logged call, both are the row of the
    call. `client` has the name and the address of the client.
    """
    fields = {
        "tool.name": tool,
        "tool.server": server.server_name,
        **facts_of(claims),
        "agent.name": caller.host_name,
        "agent.kind": KINDS.get(rules.host_kind, ""),
        "person.email": caller.user_email,
        "person.teams": rules.teams,
        "person.role": rules.role,
        "gateway.name": caller.gateway_name,
        "gateway.slug": rules.gateway_slug,
        "client.name": client[0],
        "client.address": client[1],
        **moment_of(at, rules.zone),
    }
    return RuledCall(str(server.server_id), fields, arguments)
