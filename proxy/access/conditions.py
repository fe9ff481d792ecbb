"""The conditions of rules, evaluated for one call within a time limit."""

import time
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from proxy.access.expression_cost import MOST_SECONDS
from proxy.access.expression_text import ARGUMENTS, BadExpression
from proxy.access.expressions import (
    MOST_COMPILED,
    TOO_LARGE,
    NotEvaluated,
    Program,
    Size,
    activation,
    compiled,
    size_of,
    together,
)

FEWEST_TOGETHER = 3  # With fewer conditions, each is evaluated by itself.
TOO_SLOW = "the conditions of this call take too long"
NOT_VALID = "the condition is not valid"


class _Programs(NamedTuple):
    """Compiled conditions."""

    programs: Mapping[str, Program | None]  # By text; None for a condition that is not valid.
    names: frozenset[str] | None  # Arguments that the conditions name; None if one of them may use any argument.


@lru_cache(maxsize=MOST_COMPILED)
def _programs_of(whens: tuple[str, ...]) -> _Programs:
    programs = {when: program_of(when) for when in whens if when}
    named = [program.arguments for program in programs.values() if program]
    return _Programs(programs, None if None in named else frozenset(name for each in named for name in each or ()))


class Conditions:
    """Evaluates conditions for one call, within MOST_SECONDS of processor time."""

    def __init__(self, whens: tuple[str, ...], fields: Mapping[str, Any], arguments: Any) -> None:
        self._fields = fields
        self._arguments: dict[str, Any] = arguments if isinstance(arguments, dict) else {}
        # Only the arguments in `_names` are converted, which saves most of the time for a large call.
        self._programs, self._names = _programs_of(whens)
        self._began, self._left = time.thread_time(), MOST_SECONDS
        self._unmet = frozenset(self._unmet_together())

    def meet(self, when: str) -> bool:
        """Return whether the call meets the condition. Raises NotEvaluated."""
        if not when:
            return True
        if when in self._unmet:
            return False
        program = self._programs[when]
        if program is None:
            raise NotEvaluated(NOT_VALID)
        if not program.needed <= self._arguments.keys():
            return False
        self._spend(self._seconds(program))
        values, _ = self._for_all or self._values(program.arguments)
        return program.matches(values)

    def _unmet_together(self) -> Collection[str]:
        """Return the conditions that are false, if one evaluation can show this for all of them together.

        A program combines the conditions that `_with_arguments` returns. If all of them are false, return them. If one
        is true or has no result, or if they are not evaluated together, return an empty collection.
        """
        chosen = self._with_arguments()
        if len(chosen) < FEWEST_TOGETHER or self._for_all is None:
            return ()
        (values, size), all_of_them = self._for_all, together(chosen)
        if all_of_them is None or (seconds := all_of_them.cost.seconds(*size)) > MOST_SECONDS / 2:
            return ()
        self._left -= seconds
        return chosen if all_of_them.is_false(values) else ()

    def _with_arguments(self) -> tuple[str, ...]:
        """Return the valid conditions that name only arguments present in the call.

        Other conditions are left out: an absent argument may leave the combined program without a result.
        """
        programs, given = self._programs, self._arguments.keys()
        if self._names is not None and given >= self._names and None not in programs.values():
            return tuple(programs)
        return tuple(when for when, each in programs.items() if each and given >= (each.arguments or {}).keys())

    def _seconds(self, program: Program) -> float:
        """Return the most seconds that a condition can take. Raises NotEvaluated if an argument is too large."""
        seconds = program.cost.seconds(*self._for_all[1]) if self._for_all else MOST_SECONDS
        return seconds if seconds < self._left else program.cost.seconds(*size_of(self._named(program.arguments)))

    def _spend(self, seconds: float) -> None:
        """Subtract the estimated `seconds` from the time left. Raises NotEvaluated if too little is left."""
        if seconds > MOST_SECONDS:
            raise NotEvaluated(TOO_LARGE)
        self._left -= seconds
        # Estimates are usually too high. So if they exceed the limit together, the time that was really taken is
        # counted in place of the earlier ones.
        if self._left < 0:
            self._left = MOST_SECONDS - (time.thread_time() - self._began) - seconds
        if self._left < 0:
            raise NotEvaluated(TOO_SLOW)

    @cached_property
    def _for_all(self) -> tuple[Any, Size] | None:
        """The values that any of the conditions can read, and the size of their arguments.

        None if the arguments are too large, or if CEL cannot represent one of them.
        """
        try:
            return self._values(self._names)
        except NotEvaluated:
            return None  # Each condition then gets only the values of the arguments that it names.

    def _values(self, names: Iterable[str] | None) -> tuple[Any, Size]:
        """Return the values that conditions can read, and the size of the arguments. Raises NotEvaluated.

        `names` are the arguments to include; None means all.
        """
        named = self._named(names)
        size = size_of(named)
        return activation({**self._fields, ARGUMENTS: named}), size

    def _named(self, names: Iterable[str] | None) -> dict[str, Any]:
        given = self._arguments
        return given if names is None else {name: given[name] for name in names if name in given}


def program_of(when: str) -> Program | None:
    """Return the compiled condition; None if it is not valid."""
    try:
        return compiled(when)
    except BadExpression:
        return None
