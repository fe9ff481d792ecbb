"""Rules on tool calls: which rules match a call, and what they decide (row 16 of the decision order).

Rules are read with the decision about each request. The first rule that refuses wins over rules that hold, and these
over labels, which add up. A condition without a result counts as true for a rule that refuses or holds.
"""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import translate
from functools import cached_property, lru_cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from proxy.access.expression_text import ARGUMENTS, BadExpression
from proxy.access.expressions import NotEvaluated, Program, activation, check_size, compiled

REFUSE, HOLD, LABEL = "refuse", "hold", "label"
ON, WATCH = "on", "watch"
PAST = {REFUSE: "refused by", HOLD: "held by"}
READ_ONLY, DESTRUCTIVE = "read_only", "destructive"
MOST_SECONDS = 0.02  # Of processor time, for all conditions of a call.
LONGEST_LABELS = 600  # Length of the column of the log.
TOO_SLOW = "the conditions of this call take too long"
NOT_VALID = "the condition is not valid"


class ToolClaims(NamedTuple):
    """The title of a tool, the effect that an administrator stated, and the approved annotations."""

    title: str
    said_effect: str
    annotations: Any


class DecidingRule(NamedTuple):
    """An enabled rule as the statement returns it. Empty `servers`, `tools` and `tool_effect` match every tool.

    `tools` are names for clients with `*` and `?`. `text` is the sentence of a refusal, or the label.
    """

    id: str
    name: str
    version: int
    mode: str
    effect: str
    text: str
    when: str
    tools: Sequence[str]
    tool_effect: str
    servers: Sequence[str]


class Rules(NamedTuple):
    """The enabled rules for a call, in order, and the facts that only rules need."""

    rules: Sequence[DecidingRule]
    teams: Sequence[str]
    role: str
    zone: str
    host_kind: str
    gateway_slug: str


class RuledCall(NamedTuple):
    """A tool call as conditions see it: `fields` are the values of expressions.FIELDS."""

    server_id: str
    fields: Mapping[str, Any]
    arguments: Any


class RuleDecision(NamedTuple):
    """The decision of all rules: `effect` is REFUSE, HOLD or empty, by `rule`, whose id and version are of now.

    `rule` is otherwise the first rule without a result, if any; `error` is the reason. `labels` are for the log.
    """

    effect: str = ""
    rule: DecidingRule | None = None
    labels: tuple[str, ...] = ()
    error: str = ""

    @property
    def label_text(self) -> str:
        """The labels as the log has them, without those that do not fit."""
        text = ""
        for label in dict.fromkeys(self.labels):
            longer = f"{text}, {label}" if text else label
            text = longer if len(longer) <= LONGEST_LABELS else text
        return text


NO_RULES = RuleDecision()


class Match(NamedTuple):
    """A rule that matches a call; `error` says why its condition has no result."""

    rule: DecidingRule
    error: str = ""


def decide_by_rules(rules: Iterable[DecidingRule], call: RuledCall) -> RuleDecision:
    """Return what these rules, in order, decide about a call."""
    matches = matching(rules, call)
    deciding = _first(matches, REFUSE) or _first(matches, HOLD)
    failed = next((each for each in matches if each.error), None)
    found = deciding or failed
    labels = tuple(_label(each) for each in matches if _labels(each))
    if deciding:
        labels = (f"{PAST[deciding.rule.effect]}: {deciding.rule.name}", *labels)
    errors = tuple(f"rule failed: {each.rule.name} ({each.error})" for each in matches if each.error)
    if found is None:
        return RuleDecision(labels=labels)
    return RuleDecision(deciding.rule.effect if deciding else "", found.rule, (*labels, *errors), found.error)


def _first(matches: Sequence[Match], effect: str) -> Match | None:
    return next((each for each in matches if each.rule.effect == effect and each.rule.mode == ON), None)


def _labels(match: Match) -> bool:
    """Return whether a match adds a label: a label needs a result, and a rule that is on acts instead."""
    return not match.error if match.rule.effect == LABEL else match.rule.mode == WATCH


def _label(match: Match) -> str:
    rule = match.rule
    if rule.effect == LABEL:
        return f"would label: {rule.text}" if rule.mode == WATCH else rule.text
    return f"would {rule.effect}: {rule.name}"


def matching(rules: Iterable[DecidingRule], call: RuledCall) -> list[Match]:
    """Return the rules that match a call, and those whose condition has no result."""
    targets = [rule for rule in rules if is_target(rule, call)]
    conditions = _Conditions((rule.when for rule in targets), call)
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
    """Return a function that tests whether a name fits one of these patterns, compiled once for each text."""
    return re.compile("|".join(translate(pattern.replace("[", "[[]")) for pattern in patterns)).match


def reads_arguments(when: str) -> bool:
    """Return whether a condition reads the arguments of the call."""
    program = _program_of(when) if when else None
    return program is not None and program.reads_arguments


class _Conditions:
    """Evaluates these conditions for one call, within MOST_SECONDS of processor time.

    The values of the call are converted once, with no other arguments than the conditions name: of a large call that is
    a fraction of the time.
    """

    def __init__(self, whens: Iterable[str], call: RuledCall) -> None:
        self._fields = call.fields
        self._arguments: dict[str, Any] = call.arguments if isinstance(call.arguments, dict) else {}
        self._programs = {when: _program_of(when) for when in whens if when}
        self._began, self._ends = time.monotonic(), time.thread_time() + MOST_SECONDS

    def meet(self, when: str) -> bool:
        """Return whether the call meets the condition. Raises NotEvaluated."""
        if not when:
            return True
        program = self._programs[when]
        if program is None:
            raise NotEvaluated(NOT_VALID)
        # The clock of the processor costs half as much as a condition, so the other one is asked first.
        if time.monotonic() - self._began > MOST_SECONDS and time.thread_time() > self._ends:
            raise NotEvaluated(TOO_SLOW)
        return program.matches(self._for_all or self._values(program.arguments))

    @cached_property
    def _for_all(self) -> Any:
        """The values for all conditions; None if an argument is too large, because then each gets its own."""
        programs = [program for program in self._programs.values() if program]
        names = [program.arguments for program in programs if program.arguments is not None]
        try:
            return self._values(frozenset[str]().union(*names) if len(names) == len(programs) else None)
        except NotEvaluated:
            return None

    def _values(self, names: frozenset[str] | None) -> Any:
        """Return the values for conditions that name these arguments. Raises NotEvaluated if one is too large."""
        given = self._arguments
        named = given if names is None else {name: given[name] for name in names if name in given}
        check_size(named)
        return activation({**self._fields, ARGUMENTS: named})


def _program_of(when: str) -> Program | None:
    """Return the compiled condition; None if it is not valid."""
    try:
        return compiled(when)
    except BadExpression:
        return None


def facts_of(claims: ToolClaims | None) -> dict[str, Any]:
    """Return the fields of a tool. What is left unsaid has MCP's default: destructive, open world, not read-only."""
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
    """Return the fields of a time in this zone; an unknown zone counts as UTC."""
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
