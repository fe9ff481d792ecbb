"""The most processor time that a condition can take, estimated from its syntax tree.

Evaluation cannot be interrupted. So a condition that could take too long is neither saved nor evaluated. The constants
were measured with arguments that an attacker would choose.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from proxy.access.expression_text import ARGUMENTS, BadExpression
from proxy.access.expression_tree import CALL, CONSTANT, LIST, MAP, NAME, Node

MOST_SECONDS = 0.02  # Of processor time, for all conditions of a call.
LONGEST_PATTERN = 200
SMALL_VALUES, SMALL_TEXT = 20, 4_000  # Every condition must be fast for arguments of this size.
MOST_AMBIGUOUS = 8
RESULT = "@result"  # The variable in which CEL collects the result of a macro.

# Costs in nanoseconds.
PER_NODE, PER_VALUE, PER_CHARACTER, PER_COPIED = 150, 400, 12, 40
OF_FIELD = 256  # The assumed length of a field of the call, in characters.
COMPARISONS = frozenset({"_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_", "@in", "startsWith", "endsWith", "contains"})
LOGIC = frozenset({"_&&_", "_||_", "!_", "@not_strictly_false"})
WITHOUT_COPY = frozenset({"_[_]", "_?_:_"})
# Functions whose last parameter must be small: `contains` takes quadratic time, and functions such as `getHours` take
# the name of a time zone, which CEL keeps in memory afterwards.
_OF_TIME = "FullYear Month Date DayOfMonth DayOfWeek DayOfYear Hours Minutes Seconds Milliseconds"
NEEDS_SMALL = frozenset({"contains", *(f"get{part}" for part in _OF_TIME.split())})


class Cost(NamedTuple):
    """The nanoseconds that a condition takes, as a function of the size of the arguments."""

    once: float = 0
    value: float = 0  # Times the number of values.
    square: float = 0  # Times the square of this number.
    text: float = 0  # Times the bytes of text.

    def times(self, number: float) -> "Cost":
        return Cost(*(each * number for each in self))

    def seconds(self, values: int, text: int) -> float:
        """Return the most seconds that the condition takes for arguments of this size."""
        return (self.once + self.value * values + self.square * values * values + self.text * text) / 1e9


class Estimate(NamedTuple):
    """The cost of an expression, and the size of its result as a multiple of the arguments' size.

    A size of 0 means that the result is small, however large the arguments are.
    """

    size: float
    cost: Cost


def cost_of(tree: Node, text: str) -> Cost:
    """Return the cost of a condition with this text. Raises BadExpression if even small arguments take too long."""
    cost = _Estimator(text).visit(tree, _Scope({})).cost
    if _is_slow(cost):
        raise BadExpression("The condition could take too long: use fewer or shorter comparisons.")
    return cost


def _is_slow(cost: Cost) -> bool:
    return cost.seconds(SMALL_VALUES, SMALL_TEXT) > MOST_SECONDS


class _Scope(NamedTuple):
    """The sizes of the macro variables that are visible in one part of a condition."""

    sizes: Mapping[str, float]
    large: frozenset[str] | None = None  # The names whose values may be large in this part; None means all names.

    def size_of(self, name: Node) -> float:
        size = self.sizes.get(str(name.value), 1 if name.value == ARGUMENTS else 0)
        if size and self.large is not None and name.value not in self.large:
            raise BadExpression(f"Inside this macro, use the macro's own variable, not {name.value}.", name.at)
        return size

    def inside(self, variable: str, size: float, *, over_arguments: bool) -> "_Scope":
        """Return the scope of a macro's body, in which `variable` has `size`.

        With `over_arguments`, `size` is the total size of all elements over which the macro iterates.
        """
        # With `over_arguments`, the cost of the body is the cost of all iterations together. So all other names in the
        # body have to be small: comparing each element with all arguments would be quadratic.
        names = frozenset((variable, RESULT))
        large = names if over_arguments else None if self.large is None else self.large | names
        return _Scope({**self.sizes, variable: size, RESULT: 0}, large)


class _Estimator:
    def __init__(self, text: str) -> None:
        self._text = text

    def visit(self, node: Node, scope: _Scope) -> Estimate:
        match node.kind:
            case "name":
                return Estimate(scope.size_of(node), Cost(PER_NODE))
            case "constant":
                return Estimate(0, Cost(PER_NODE + PER_CHARACTER * len(node.value or "")))
            case "loop":
                return self._loop(node, scope)
        parts = [self.visit(part, scope) for part in node.parts]
        before = Estimate(sum(part.size for part in parts), _sum(Cost(PER_NODE), *(part.cost for part in parts)))
        return self._call(node, parts, before) if node.kind == CALL else before

    def _loop(self, loop: Node, scope: _Scope) -> Estimate:
        over, *_ = loop.parts
        elements = self.visit(over, scope)
        is_written = over.kind in (LIST, MAP)
        inner = scope.inside(str(loop.value), elements.size, over_arguments=bool(elements.size) and not is_written)
        body = _sum(*(self.visit(part, inner).cost for part in loop.parts[1:]))
        collects = _collects(loop)
        if inner.large is not None and elements.size and not is_written:
            body = Cost(0, body.once * elements.size + body.value, body.square, body.text)
            body = _sum(body, Cost(square=PER_COPIED * collects * elements.size**2))
        else:
            count = len(over.parts) if is_written else OF_FIELD
            body = _sum(body.times(count), Cost(PER_COPIED * collects * count**2))
        return Estimate(elements.size * collects, _sum(elements.cost, body))

    def _call(self, call: Node, parts: Sequence[Estimate], before: Estimate) -> Estimate:
        size, cost = before
        if call.value in WITHOUT_COPY:
            return Estimate(size, cost)
        if call.value in LOGIC:
            return Estimate(0, cost)
        if call.value in NEEDS_SMALL and len(parts) > 1 and parts[-1].size:
            raise BadExpression(
                f"{call.value}() needs a text in quotation marks or a field, not an argument.", call.parts[-1].at
            )
        if call.value == "matches":
            return Estimate(0, _sum(cost, self._pattern(call.parts[-1], size)))
        character = 1.0 if call.value in COMPARISONS else PER_CHARACTER
        if call.value == "contains":  # At each position, almost all of the text to find may be compared.
            character = 10 + len(self._text) / 50
        walk = Cost(0, PER_VALUE * size, 0, character * size)
        return Estimate(0 if call.value in COMPARISONS else size, _sum(cost, walk))

    def _pattern(self, pattern: Node, size: float) -> Cost:
        """Return the cost of a pattern. Raises BadExpression if the pattern is not allowed or too costly."""
        if pattern.kind != CONSTANT or pattern.value is None:
            raise BadExpression("The pattern of matches() must be a text in quotation marks.", pattern.at)
        if len(pattern.value) > LONGEST_PATTERN:
            raise BadExpression(f"A pattern has at most {LONGEST_PATTERN} characters.", pattern.at)
        if found := _COSTLY_IN_PATTERNS.search(pattern.value):
            what = "repeat a group by a count, as in (ab){3}" if found[0].startswith(")") else "use classes of Unicode"
            raise BadExpression(f"A pattern cannot {what}.", pattern.at)
        cost = _cost_of_pattern(pattern.value)  # Including compilation: CEL compiles the pattern each time.
        cost = Cost(cost.once + cost.text * OF_FIELD, 0, 0, cost.text * size)
        if _is_slow(cost):
            raise BadExpression("The pattern could take too long: make it shorter, with fewer repetitions.", pattern.at)
        return cost


def _sum(*costs: Cost) -> Cost:
    return Cost(*map(sum, zip(*costs, strict=True)))


def _collects(loop: Node) -> bool:
    """Return whether a loop collects its elements in a list, as `filter` does. Raises BadExpression for `map`."""
    collected = [
        step.parts[1].parts[0]
        for step in (loop.parts[3], *loop.parts[3].parts)
        if step.value == "_+_" and step.parts[0].value == RESULT and step.parts[1].kind == LIST
    ]
    if any((each.kind, each.value) != (NAME, loop.value) for each in collected):
        raise BadExpression("map() cannot be used: use exists() or all().", loop.at)
    return bool(collected)


def _cost_of_pattern(pattern: str) -> Cost:
    """Return the highest cost of a pattern: `once` for compiling, `text` for matching one character of a text."""
    places = ambiguous = 0
    for atom, least, most, often in _ATOM.findall(pattern):
        number = max(int(least or 1), int(most or 1), 1)
        places += number
        ambiguous += number if atom in (".", "|") or atom[0] in "[\\" or least or often else 0
    compiling = 10_000 + 1_000 * places + 7_000 * ambiguous
    # RE2 makes an automaton. A state is the set of the places in the pattern that a text may have reached, so a pattern
    # with few ambiguous parts needs few states. For others, each character of an attacker's text may need a new state.
    if ambiguous <= MOST_AMBIGUOUS:
        return Cost(compiling + 2_000 * 2**ambiguous, text=8)
    return Cost(compiling, text=60 * places)


_COSTLY_IN_PATTERNS = re.compile(r"\\[pP]|\)\{\d")  # RE2 makes thousands of states for these.
_ATOM = re.compile(r"(\\.|\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]|.)(?:\{(\d+)(?:,(\d*))?\})?([?*+]*)", re.DOTALL)
