"""Rules on tool calls: which rules match a call, and what they decide (row 16 of the decision order).

The first rule that refuses the call decides. If no rule refuses, the first rule that holds the call decides. In a rule
that refuses or holds, a condition without a result counts as true.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import translate
from functools import lru_cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from proxy.access.conditions import Conditions, program_of
from proxy.access.expressions import NotEvaluated

REFUSE, HOLD, LABEL = "refuse", "hold", "label"
ON, WATCH = "on", "watch"
PAST = {REFUSE: "refused by", HOLD: "held by"}
READ_ONLY, DESTRUCTIVE = "read_only", "destructive"
LONGEST_LABELS = 600  # Length of the column of the log.


class ToolClaims(NamedTuple):
    """The title of a tool, the effect that an administrator stated, and the approved annotations."""

    title: str
    said_effect: str
    annotations: Any


class DecidingRule(NamedTuple):
    """An enabled rule as the access query returns it."""

    id: str
    name: str
    version: int
    mode: str
    effect: str
    text: str  # The message of a refusal, or the label.
    when: str
    # Empty `tools`, `tool_effect` and `servers` match every tool.
    tools: Sequence[str]  # Patterns, with `*` and `?`, for the names of tools as clients see them.
    tool_effect: str
    servers: Sequence[str]


class Rules(NamedTuple):
    """The enabled rules for a call, in order, and the values that only their conditions need."""

    rules: Sequence[DecidingRule]
    teams: Sequence[str]
    role: str
    zone: str
    host_kind: str
    gateway_slug: str


class RuledCall(NamedTuple):
    """The values of a tool call that conditions can read. `fields` has a value for each name in expressions.FIELDS."""

    server_id: str
    fields: Mapping[str, Any]
    arguments: Any


class RuleDecision(NamedTuple):
    """The decision of all rules about a call."""

    effect: str = ""  # REFUSE, HOLD or empty.
    # The rule that refuses or holds the call or, if there is none, the first rule whose condition has no result.
    rule: DecidingRule | None = None
    labels: tuple[str, ...] = ()
    error: str = ""  # The reason why the condition of `rule` has no result; empty if it has one.

    @property
    def label_text(self) -> str:
        """The labels as one text for the log, without the labels that do not fit into the column."""
        text = ""
        for label in dict.fromkeys(self.labels):
            longer = f"{text}, {label}" if text else label
            text = longer if len(longer) <= LONGEST_LABELS else text
        return text


NO_RULES = RuleDecision()


class Match(NamedTuple):
    """A rule that matches a call, or whose condition has no result.

    `error` says why the condition has no result; it is empty if the rule matches.
    """

    rule: DecidingRule
    error: str = ""


def decide_by_rules(rules: Iterable[DecidingRule], call: RuledCall) -> RuleDecision:
    """Return the decision of these rules about a call. Rules that refuse have precedence over rules that hold."""
    matches = matching(rules, call)
    deciding = _first(matches, REFUSE) or _first(matches, HOLD)
    failed = next((each for each in matches if each.error), None)
    found = deciding or failed
    labels = tuple(_label(each) for each in matches if _labels(each))
    if deciding:
        labels = (_decided(deciding.rule), *labels)
    errors = tuple(f"{failure_mark(each.rule.name)}{each.error})" for each in matches if each.error)
    if found is None:
        return RuleDecision(labels=labels)
    return RuleDecision(deciding.rule.effect if deciding else "", found.rule, (*labels, *errors), found.error)


def _first(matches: Sequence[Match], effect: str) -> Match | None:
    return next((each for each in matches if each.rule.effect == effect and each.rule.mode == ON), None)


def _labels(match: Match) -> bool:
    """Return whether the call gets the label that `_label` returns for this match.

    For a rule that only labels, True if its condition has a result. For any other rule, True in watch mode. For the
    rule that refuses or holds the call, `decide_by_rules` adds another label.
    """
    return not match.error if match.rule.effect == LABEL else match.rule.mode == WATCH


def _label(match: Match) -> str:
    rule = match.rule
    if rule.effect == LABEL:
        return f"would label: {rule.text}" if rule.mode == WATCH else rule.text
    return _watched(rule)


def _decided(rule: DecidingRule) -> str:
    return f"{PAST[rule.effect]}: {rule.name}"


def _watched(rule: DecidingRule) -> str:
    return f"would {rule.effect}: {rule.name}"


def failure_mark(name: str) -> str:
    """Return the beginning of a label about the rule with this name.

    The label says that the condition of the rule had no result.
    """
    return f"rule failed: {name} ("


def is_marked(rule: DecidingRule, labels: str) -> bool:
    """Return whether the labels of a logged call say that the rule refused or held the call.

    Also True if the labels say that the rule would have refused or held the call. Always False for rules that only
    label, because several rules can have the same label.
    """
    if rule.effect == LABEL:
        return False
    return any(f", {mark}, " in f", {labels}, " for mark in (_decided(rule), _watched(rule)))


def matching(rules: Iterable[DecidingRule], call: RuledCall) -> list[Match]:
    """Return the rules that match a call.

    A rule for the call's tool is also returned if the rule's condition has no result.
    """
    targets = [rule for rule in rules if is_target(rule, call)]
    conditions = Conditions(tuple(rule.when for rule in targets), call.fields, call.arguments)
    matches = []
    for rule in targets:
        try:
            if conditions.meet(rule.when):
                matches.append(Match(rule))
        except NotEvaluated as error:
            matches.append(Match(rule, str(error)))
    return matches


def is_target(rule: DecidingRule, call: RuledCall) -> bool:
    """Return whether the call's tool is a target of the rule."""
    if rule.servers and call.server_id not in rule.servers:
        return False
    if rule.tools and not _pattern(tuple(rule.tools))(call.fields["tool.name"]):
        return False
    return not rule.tool_effect or bool(call.fields[f"tool.{rule.tool_effect}"])


@lru_cache(maxsize=500)
def _pattern(patterns: tuple[str, ...]) -> Any:
    """Return a function that tests whether a name fits one of these patterns. Equal patterns are compiled once."""
    return re.compile("|".join(translate(pattern.replace("[", "[[]")) for pattern in patterns)).match


def reads_arguments(when: str) -> bool:
    """Return whether a condition reads the arguments of the call."""
    program = program_of(when) if when else None
    return program is not None and program.reads_arguments


def facts_of(claims: ToolClaims | None) -> dict[str, Any]:
    """Return the `tool.` fields for the tool's title and effect.

    Hints that are not set have MCP's defaults: destructive, open world, not read-only.
    """
    title, said, annotations = claims or ToolClaims("", "", None)
    hints = annotations if isinstance(annotations, dict) else {}
    read_only = said == READ_ONLY if said else hints.get("readOnlyHint") is True
    destructive = said == DESTRUCTIVE if said else not read_only and hints.get("destructiveHint") is not False
    return {
        "tool.title": title,
        "tool.read_only": read_only,
        "tool.destructive": destructive,
        "tool.open_world": hints.get("openWorldHint") is not False,
    }


def moment_of(at: float, zone: str) -> dict[str, Any]:
    """Return the `now.` fields of conditions for a time in this time zone. An unknown zone counts as UTC."""
    moment = datetime.fromtimestamp(at, _zone(zone))
    return {
        "now.hour": moment.hour,
        "now.minute": moment.minute,
        "now.weekday": moment.isoweekday(),
        "now.date": moment.date().isoformat(),
    }


@lru_cache(maxsize=50)
def _zone(name: str) -> Any:
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC
