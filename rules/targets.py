"""The tools that a rule selects, and the arguments that their schemas have."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple
from uuid import UUID

from gateways.models import Feature
from proxy.access.expressions import compiled, did_you_mean
from proxy.access.rules import ON, DecidingRule, RuledCall, ToolClaims, facts_of, is_target
from rules.models import BadCondition, Rule

MOST_TOOLS = 2_000  # Tools whose schemas are read.


class TargetTool(NamedTuple):
    """The fields of a tool that selectors and conditions of rules use."""

    exposed_name: str
    title: str
    said_title: str
    said_effect: str
    annotations: Any
    input_schema: Any
    server_id: UUID
    gateway_id: UUID

    @property
    def title_for_clients(self) -> str:
        return self.said_title or self.title


def deciding(rule: Rule, servers: Iterable[Any] | None = None) -> DecidingRule:
    """Return the rule as a DecidingRule, the form that proxy/access/query.sql returns for a call.

    The rule is treated as enabled and in the mode `on`. If the rule is not saved yet, `servers` are its servers.
    """
    chosen = rule.servers.all() if servers is None else servers
    return DecidingRule(
        id=str(rule.pk),
        name=rule.name,
        version=rule.revision,
        mode=ON,
        effect=rule.effect,
        text=rule.text,
        when=rule.when,
        tools=rule.tools,
        tool_effect=rule.tool_effect,
        servers=[str(server.pk) for server in chosen],
    )


def target_tools(rule: Rule, servers: Iterable[Any] | None = None) -> list[TargetTool]:
    """Return the tools that the rule selects now.

    If the rule is not saved yet, `servers` are the servers of the rule.
    """
    selector = deciding(rule, servers)
    rows = Feature.objects.tools().offered().placed().order_by("exposed_name")
    rows = rows.filter(assignment__gateway=rule.gateway) if rule.gateway else rows
    of_assignment = {"server_id": "assignment__server", "gateway_id": "assignment__gateway"}
    found = rows.values_list(*(of_assignment.get(name, name) for name in TargetTool._fields))
    tools = map(TargetTool._make, found[:MOST_TOOLS])
    return [tool for tool in tools if is_target(selector, _as_call(tool))]


def _as_call(tool: TargetTool) -> RuledCall:
    return RuledCall(str(tool.server_id), {"tool.name": tool.exposed_name, **facts_of(claims_of(tool))}, None)


def claims_of(tool: Feature | TargetTool) -> ToolClaims:
    """Return a tool's title, stated effect and annotations. These must equal the claims in proxy/access/query.sql."""
    return ToolClaims(tool.title_for_clients, tool.said_effect, tool.annotations)


def arguments_of_tools(tools: Iterable[TargetTool]) -> dict[str, str]:
    """Return the arguments in the schemas of these tools, each with its type, or with "" if the type is unknown."""
    known: dict[str, str] = {}
    for tool in tools:
        properties = tool.input_schema.get("properties") if isinstance(tool.input_schema, dict) else None
        for name, schema in (properties if isinstance(properties, dict) else {}).items():
            kind = schema.get("type") if isinstance(schema, dict) else ""
            known.setdefault(name, kind if isinstance(kind, str) else "")
    return dict(sorted(known.items()))


def check_arguments(when: str, tools: Collection[TargetTool]) -> None:
    """Raise BadCondition if the condition names an argument that none of these tools has.

    Any argument is accepted if there are no tools, or if a tool's schema allows arguments that it does not list.
    """
    names = compiled(when).arguments if when else None
    if not names or not tools or any(_is_open(tool.input_schema) for tool in tools):
        return
    known = arguments_of_tools(tools)
    for name in sorted(names):
        if name not in known:
            problem = f"None of the selected tools has an argument {name}.{did_you_mean(name, known)}"
            raise BadCondition(problem, names[name])


def _is_open(schema: Any) -> bool:
    """Return whether a schema allows arguments that it does not list."""
    if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict):
        return True
    return bool(schema.get("patternProperties")) or isinstance(schema.get("additionalProperties"), dict)
