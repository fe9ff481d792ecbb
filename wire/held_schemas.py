"""Checks whether a call still fits a tool whose changed definition has not been approved yet.

Schemas come from servers and are untrusted: a validation takes a bounded number of steps, fetches nothing and runs no
regular expression. If that is not enough to decide, the arguments are not accepted.
"""

from collections.abc import Callable, Iterator
from typing import Any

from jsonschema import Draft202012Validator, ValidationError, validators  # type: ignore[import-untyped]
from referencing import Registry

from wire import jsonrpc

MOST_STEPS = 20_000
LONGEST_UNIQUE = 1_000

type Rule = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


class _CannotTell(Exception):
    """The schema would take too long to evaluate, or uses a keyword that is not evaluated."""


def still_accepts(approved: str, offered: str, arguments: object) -> bool:
    """Return whether these arguments fit the offered definition. Both definitions are JSON texts."""
    before, now = (jsonrpc.loads(text.encode()).get("inputSchema") for text in (approved, offered))
    if before == now:
        return True  # Only the description or annotations changed.
    if not isinstance(now, dict):
        return False
    try:
        return bool(_validator(now).is_valid({} if arguments is None else arguments))
    except Exception:  # noqa: BLE001 - a broken schema accepts nothing
        return False


def _validator(schema: Any) -> Any:
    steps = 0

    def counted(rule: Rule) -> Rule:
        def count(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError] | None:
            nonlocal steps
            steps += 1
            if steps > MOST_STEPS:
                raise _CannotTell
            return rule(validator, value, instance, schema)

        return count

    bounded = {name: counted(rule) for name, rule in Draft202012Validator.VALIDATORS.items()}
    bounded |= dict.fromkeys(("pattern", "patternProperties"), _refuse)
    bounded["uniqueItems"] = counted(_bounded_unique)
    # An empty registry: nothing is fetched.
    kind: Any = validators.extend(Draft202012Validator, bounded)
    return kind(schema, registry=Registry())


def _refuse(validator: Any, value: Any, instance: Any, schema: Any) -> None:
    raise _CannotTell


def _bounded_unique(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError] | None:
    if isinstance(instance, list) and len(instance) > LONGEST_UNIQUE:
        raise _CannotTell
    rule: Rule = Draft202012Validator.VALIDATORS["uniqueItems"]
    return rule(validator, value, instance, schema)
