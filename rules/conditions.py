"""Conditions that people choose in a form instead of writing CEL. They are stored as an expression in CEL."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from proxy.access.expression_text import is_identifier


class Builder(NamedTuple):
    """A kind of condition that the form offers."""

    name: str
    label: str
    help: str


ALWAYS, ARGUMENT, HOURS, PRODUCTION, EXPRESSION = "always", "argument", "hours", "production", "expression"
BUILDERS = (
    Builder(ALWAYS, "Every call", "Every call of the chosen tools."),
    Builder(ARGUMENT, "An argument", "One argument equals, contains, matches or exceeds a value."),
    Builder(
        HOURS,
        "Outside office hours",
        "Outside the hours you choose, in the workspace's time zone. If you tick “Also at weekends”, the whole weekend "
        "counts as outside.",
    ),
    Builder(PRODUCTION, "Production names", "One argument contains the word prod, production or live."),
    Builder(EXPRESSION, "Expression", "A condition in CEL."),
)
# Comparisons by name: the label, and the CEL text that compares `{0}` with the literal `{1}`.
COMPARISONS = {
    "equals": ("equals", "{0} == {1}"),
    "differs": ("is not", "{0} != {1}"),
    "contains": ("contains", "{0}.contains({1})"),
    "starts": ("starts with", "{0}.startsWith({1})"),
    "ends": ("ends with", "{0}.endsWith({1})"),
    "matches": ("matches the pattern", "{0}.matches({1})"),
    "greater": ("is greater than", "{0} > {1}"),
    "less": ("is less than", "{0} < {1}"),
    "present": ("is given", "has({0})"),
}
OF_NUMBERS = {"greater", "less"}
# A number is also compared as a text: the operator that joins the two comparisons.
JOINED = {"equals": " || ", "differs": " && "}
PRODUCTION_NAMES = "(?i)(^|[^a-z])(prod|production|live)([^a-z]|$)"
_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,9})?").fullmatch


class BadChoice(Exception):
    """The form's values do not make a condition; `field` is the form field with the wrong value."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field


def expression_of(choice: str, values: dict[str, Any]) -> str:
    """Return the condition of the kind `choice` in CEL, made from the form's `values`. Raises BadChoice."""
    match choice:
        case "argument":
            return _compared(values)
        case "hours":
            return _outside(values)
        case "production":
            return f"{_argument(values)}.matches({literal(PRODUCTION_NAMES)})"
        case "expression":
            return str(values.get("when") or "")
    return ""


def literal(text: str) -> str:
    """Return `text` as a string literal of CEL, in quotes."""
    return json.dumps(text, ensure_ascii=False)


def _argument(values: dict[str, Any]) -> str:
    name = str(values.get("argument") or "").strip()
    if not name:
        raise BadChoice("argument", "Enter the name of the argument.")
    return f"args.{name}" if all(map(is_identifier, name.split("."))) else path_of(name)


def path_of(argument: str) -> str:
    """Return the CEL for an argument of a call: `args.name`, or `args["name"]` if `name` is not an identifier."""
    return f"args.{argument}" if is_identifier(argument) else f"args[{literal(argument)}]"


def _compared(values: dict[str, Any]) -> str:
    comparison, value = str(values.get("comparison")), str(values.get("value") or "")
    argument = _argument(values)
    if comparison == "present" and argument.endswith("]"):  # has() takes args.name, but not args["name"].
        return f"{argument[len('args[') : -1]} in args"
    if comparison in OF_NUMBERS and not _NUMBER(value):
        raise BadChoice("value", "Enter a number.")
    if comparison != "present" and not value:
        raise BadChoice("value", "Enter a value.")
    compared = COMPARISONS[comparison][1]
    if comparison in JOINED and _NUMBER(value):  # Agents write numbers as texts, too.
        return JOINED[comparison].join(compared.format(argument, each) for each in (value, literal(value)))
    is_plain = comparison in OF_NUMBERS or (comparison in JOINED and value in WORDS)
    return compared.format(argument, value if is_plain else literal(value))


WORDS = ("true", "false", "null")


def _outside(values: dict[str, Any]) -> str:
    begin, end = values.get("opens"), values.get("closes")
    if begin is None or end is None or not 0 <= begin < end <= 24:
        raise BadChoice("closes", "Enter hours from 0 to 24. Office hours must end after they begin.")
    outside = f"now.hour < {begin} || now.hour >= {end}"
    return f"{outside} || now.weekday > 5" if values.get("weekends") else outside
