"""Rules on tool calls in configuration files. They apply in the order of the list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from accounts.models import Team
from capabilities import Capability
from configuration.fields import Field, choice, flag, names, number, text
from configuration.kinds.base import Change, Entry, Key, Kind, World
from proxy.access.expressions import MOST_CHARACTERS
from proxy.access.rules import reads_arguments
from rules.forms import MOST_PATTERNS, marked
from rules.models import (
    LONGEST_HOLD,
    LONGEST_TEXT,
    USUAL_HOLD,
    Approvers,
    BadCondition,
    Rule,
    RuleEffect,
    RuleError,
    RuleMode,
    ToolEffect,
)
from rules.order import arranged, moved
from rules.replay import NO_LONGER_REFUSES, cuts

if TYPE_CHECKING:
    from accounts.models import User

# Fields that only some rules have, with the setting that they require.
HOLDING = dict.fromkeys(("approvers", "somebody_else", "hold_minutes"), "effect: hold") | {
    "approver_team": "approvers: team"
}
FOR_HOLD = "for `effect` `hold`"
WHEN = Field(
    "when",
    "Condition in CEL. If empty, there is no condition.",
    {"type": "string", "maxLength": MOST_CHARACTERS, "pattern": r"^[^\x00]*$"},
    f"Write a condition of at most {MOST_CHARACTERS:,} characters, such as 'args.amount > 500'.",
    "",
    is_trimmed=True,
)


class RuleKind(Kind):
    name, noun = "rules", "rule"
    about = (
        "Rules on tool calls, in the order in which they apply. A rule that is not in the file keeps its "
        "position: the third of all rules stays the third."
    )
    sees = frozenset({Capability.RULES_READ})
    manages = Capability.RULES_MANAGE
    keeps_order = cuts_when_new = True
    fields = (
        text("name", "Name of the rule, as the log shows it.", 80),
        text("gateway", "Slug of the rule's gateway; empty for a rule of all gateways.", 40, "", refers_to="gateways"),
        names("servers", "Only tools of these servers, by slug. If empty, all servers.", 16, refers_to="servers"),
        names(
            "tools",
            "Only tools whose names match one of these patterns (wildcards `*` and `?`). If empty, all tools.",
            200,
            items=MOST_PATTERNS,
        ),
        choice("tool_effect", "Only tools with this effect. If empty, any effect.", ToolEffect, ToolEffect.ANY),
        WHEN,
        choice("effect", "What the rule does with a call.", RuleEffect),
        text(
            "text",
            "For the effect `refuse`, the sentence for the agent. For the effect `label`, the label.",
            LONGEST_TEXT,
            "",
        ),
        choice("mode", "With `watch`, the rule only labels calls with what it would do.", RuleMode, RuleMode.WATCH),
        flag("enabled", "Whether it is enabled.", True),
        text("note", "Note for administrators.", 500, ""),
        choice(
            "approvers",
            f"Who decides first, {FOR_HOLD}. After half of `hold_minutes`, everybody with `approvals:decide` can.",
            Approvers,
            Approvers.ANYBODY,
        ),
        text("approver_team", "Team that decides, if the field `approvers` is `team`.", 80, "", refers_to="teams"),
        flag("somebody_else", "If true, people cannot decide on calls that agents make for them.", False),
        number("hold_minutes", f"Minutes for which a call waits, {FOR_HOLD}.", 1, LONGEST_HOLD, USUAL_HOLD),
    )

    def read(self, world: World) -> Iterator[tuple[Key, Any, dict[str, Any]]]:
        rows = Rule.objects.select_related("gateway", "approver_team").prefetch_related("servers")
        for rule in world.narrowed(rows, self):
            yield (rule.name,), rule, _written(rule)

    def places(self, entries: Iterable[Entry], world: World) -> dict[Key, tuple[int, int]]:
        chosen = [entry.was or entry.key for entry in entries]
        now = [*world.of(self.id)]
        added = [key for key in chosen if key not in world.of(self.id)]
        return moved([*now, *added], arranged(now, chosen))

    def check(self, change: Change, world: World) -> Iterator[tuple[str, str]]:
        if change.row and not world.of(self.id)[change.was or change.key].values:
            yield (
                "name",
                "Another rule has this name. That rule is not in files, because its gateway or all its servers are "
                "archived. Choose another name.",
            )
            return
        team = change.values["approver_team"]
        rule = Rule(**{name: change.values[name] for name in _OWN}, approver_team=Team(name=team) if team else None)
        try:
            rule.tidy()
        except RuleError as refusal:
            place = f" {marked(rule.when, refusal.at)[1]}" if isinstance(refusal, BadCondition) else ""
            yield refusal.field, f"{refusal}{place}"
            return
        kept, given = rule.editable(), world.entries[self.id, change.key].given
        for name in (name for name in HOLDING if given.get(name, kept[name]) != kept[name]):
            yield name, f"Only rules with “{HOLDING[name]}” have “{name}”. Remove it."

    def needs(self, change: Change) -> set[Capability]:
        needed = super().needs(change)
        if reads_arguments(change.after().get("when", "")):
            needed.add(Capability.LOGS_PAYLOADS)
        return needed

    def add(self, change: Change, world: World, by: User) -> Any:
        return Rule.objects.add(**_related(change.settings, world), by=by)

    def edit(self, change: Change, world: World, by: User) -> None:
        if fields := {name: value for name, value in change.after().items() if name != "place"}:
            change.row.edit(**_related(fields, world), by=by)

    def finish(self, world: World, by: User) -> None:
        Rule.objects.arrange([world.row(self.id, *entry.key) for entry in world.listed(self.id)], by=by)

    def cuts(self, change: Change, world: World, viewer: User) -> str:
        before = world.of(self.id)[change.was or change.key].values if change.row else {}
        if not _stops(change.values):
            return NO_LONGER_REFUSES if _stops(before) else ""
        is_same = change.row and not change.after("gateway", "servers", "tools", "tool_effect", "when")
        if is_same and _stops(before):
            return ""
        values = _related(change.settings, world)
        if None in values["servers"] or (change.values["gateway"] and values["gateway"] is None):
            return ""  # The server or gateway is new and has no calls.
        servers = values.pop("servers")
        return cuts(Rule(**values), viewer, servers, labels_from=change.row.updated_at if is_same else None)


_OWN = [one.name for one in RuleKind.fields if not one.refers_to and one.name != "enabled"]


def _stops(values: dict[str, Any]) -> bool:
    """Return whether a rule with these values keeps calls from running."""
    is_on = bool(values.get("enabled")) and values.get("mode") == RuleMode.ON
    return is_on and values["effect"] != RuleEffect.LABEL


def _written(rule: Rule) -> dict[str, Any]:
    """Return the values of a rule; {} if the rule cannot apply because its gateway or all its servers are archived."""
    servers = [server.slug for server in rule.servers.all() if server.archived_at is None]
    if (rule.gateway and rule.gateway.archived_at) or (rule.servers.all() and not servers):
        return {}
    values = rule.editable() | {"enabled": rule.enabled, "servers": sorted(servers), "tools": sorted(rule.tools)}
    return {one.name: values[one.name] for one in RuleKind.fields}


def _related(values: dict[str, Any], world: World) -> dict[str, Any]:
    """Return the values; the names of servers, gateway and approver team are replaced by their database rows."""
    found = dict(values)
    if "servers" in found:
        found["servers"] = [world.row("servers", slug) for slug in found["servers"]]
    for name, kind in (("gateway", "gateways"), ("approver_team", "teams")):
        if name in found:
            found[name] = world.row(kind, found[name]) if found[name] else None
    return found
