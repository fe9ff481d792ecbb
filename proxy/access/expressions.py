"""Conditions of rules, in CEL (Common Expression Language): compiled once per text, evaluated within bounds.

Evaluation cannot be interrupted, so its cost is bounded beforehand by `cost_of` and `size_of`.
"""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, NamedTuple

from proxy.access.expression_cost import Cost, cost_of
from proxy.access.expression_text import ARGUMENTS, FIELDS, BadExpression
from proxy.access.expression_tree import arguments_in, needed_by, tree_of
from wire.jsonrpc import is_storable

MOST_CHARACTERS = 2_000  # Of an expression.
MOST_COMPILED = 500
MOST_VALUES = 1_000  # Of the arguments of a call: members, elements and other values.
MOST_TEXT = 1 << 18  # Bytes of text in the arguments of a call.
DEEPEST = 60
LARGEST_INT = 1 << 63  # Integers of CEL have 64 bits.


class NotEvaluated(Exception):
    """The condition has no result for these arguments. The message says why, without quoting an argument."""


class Program(NamedTuple):
    """A compiled condition."""

    compiled: Any
    # The arguments that the condition names, with their positions; None if it may use any argument.
    arguments: dict[str, int] | None
    needed: frozenset[str]  # A call that lacks one of these arguments does not meet the condition.
    cost: Cost

    @property
    def reads_arguments(self) -> bool:
        return self.arguments is None or bool(self.arguments)

    def matches(self, activation: Any) -> bool:
        """Return whether the condition is true; False if it needs an argument that is absent. Raises NotEvaluated."""
        try:
            result = self.compiled.eval(activation).value()
        except RuntimeError as error:
            raise NotEvaluated(_problem_of(str(error))) from None
        if isinstance(result, bool):
            return result
        if str(result).startswith(_ABSENT):  # The type is bool, so any other value is the text of an error.
            return False
        raise NotEvaluated(_problem_of(str(result)))


TOO_LARGE = "an argument is too large"
_ABSENT = ("NOT_FOUND: Key not found", "UNKNOWN: Index error", "INVALID_ARGUMENT: Index error")
# Maps a part of CEL's message to our own text. CEL's message is not shown, because it may quote an argument.
_PROBLEMS = {
    "budget": "it needs too many iterations",
    "out of range": TOO_LARGE,
    "overload": "an argument has a type that the condition does not expect",
    "regular expression": "its regular expression is not valid",
    "divide by zero": "it divides by zero",
    "modulus by zero": "it divides by zero",
}


def _problem_of(message: str) -> str:
    return next((text for part, text in _PROBLEMS.items() if part in message), "an argument cannot be read")


@lru_cache(maxsize=1)
def _environment() -> Any:
    """Return the CEL environment. Import the library here, so that processes that use no conditions do not load it."""
    from cel_expr_python import cel  # noqa: PLC0415

    types = {
        "string": cel.Type.STRING,
        "bool": cel.Type.BOOL,
        "int": cel.Type.INT,
        "list<string>": cel.Type.List(cel.Type.STRING),
    }
    variables = {name: types[kind] for name, (kind, _) in FIELDS.items()}
    return cel.NewEnv(variables=variables | {ARGUMENTS: cel.Type.Map(cel.Type.STRING, cel.Type.DYN)})


def activation(values: Mapping[str, Any]) -> Any:
    """Convert the values of FIELDS and ARGUMENTS, so that any number of conditions can be evaluated with them."""
    return _environment().Activation(values)


@lru_cache(maxsize=MOST_COMPILED)
def compiled(text: str) -> Program:
    """Compile a condition. The cache is by text, so a changed rule is never evaluated with an old program.

    Raises BadExpression.
    """
    if len(text) > MOST_CHARACTERS:
        raise BadExpression(f"A condition has at most {MOST_CHARACTERS:,} characters.", MOST_CHARACTERS)
    try:
        program = _environment().compile(text)
        kind = str(program.return_type())
        tree = tree_of(program.serialize())
        cost, arguments = cost_of(tree, text), arguments_in(tree)
    except RecursionError:
        raise BadExpression(TOO_DEEP) from None
    except RuntimeError as error:
        raise _bad(text, str(error)) from None
    if kind != "BOOL":
        raise BadExpression("A condition must be true or false: compare the value with something, such as `== true`.")
    return Program(program, arguments, needed_by(tree), cost)


class Together(NamedTuple):
    """A program compiled from several conditions joined by `||`, and the cost of the program."""

    compiled: Any
    cost: Cost

    def is_false(self, activation: Any) -> bool:
        """Return True if all conditions are false, and False if one of them is true or has no result."""
        try:
            return self.compiled.eval(activation).value() is False
        except RuntimeError:
            return False


@lru_cache(maxsize=MOST_COMPILED)
def together(texts: tuple[str, ...]) -> Together | None:
    """Compile valid conditions into one program. Return None if this program is nested too deeply for CEL."""
    costs = zip(*(compiled(text).cost for text in texts), strict=True)
    try:
        return Together(_environment().compile(" || ".join(f"({text}\n)" for text in texts)), Cost(*map(sum, costs)))
    except RuntimeError:
        return None


TOO_DEEP = "The condition is nested too deeply."
_PLACE = re.compile(r"<input>:(\d+):(\d+): (.+)")
_REFERENCE = re.compile(r"undeclared reference to '([^']+)'")


def _bad(text: str, message: str) -> BadExpression:
    """Return CEL's compile error in plain words, with the position of the first wrong character."""
    found = _PLACE.search(message)
    if found is None:
        return BadExpression(TOO_DEEP if "recursion" in message else "Not a condition.")
    line, column, problem = int(found[1]), int(found[2]), found[3].replace(" (in container '')", "").strip()
    start = sum(len(each) + 1 for each in text.split("\n")[: max(line - 1, 0)])
    at = min(start + max(column - 1, 0), len(text))
    if named := _REFERENCE.search(problem):
        problem = f"There is no field or function {named[1]}.{did_you_mean(named[1], FIELDS)}"
        # CEL points to the last dot of the name, or to the parenthesis after it.
        begin = text.rfind(named[1], 0, at + 1 + len(named[1]))
        at = begin if begin >= 0 else at
    elif "found no matching overload" in problem:
        problem = problem.replace("found no matching overload for", "These types do not go together:")
    elif problem.startswith("Syntax error"):
        problem = problem.partition(" expecting")[0].replace("'<EOF>'", "the end")
    return BadExpression(problem, at)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence with the most similar known name; empty if no name is similar."""
    near = get_close_matches(name, known, 1, 0.8)
    return f" Did you mean {near[0]}?" if near else ""


# Arguments


class Size(NamedTuple):
    """The size of arguments.

    `values` is the number of values at all levels. `text` is the number of UTF-8 bytes of names and texts.
    """

    values: int
    text: int


def size_of(arguments: Mapping[str, Any]) -> Size:
    """Return the size of these arguments.

    Raises NotEvaluated if they are too large or too deep, or have a number or text that CEL cannot represent.
    """
    counter = _Counter()
    counter.add(arguments, 0)
    return Size(counter.values, counter.text)


class _Counter:
    def __init__(self) -> None:
        self.values, self.text = 0, 0

    def add(self, value: Any, depth: int) -> None:
        self.values += 1
        if isinstance(value, str):
            self._add_text(value)
        elif isinstance(value, dict | list):
            self._add_container(value, depth)
        elif isinstance(value, int) and not -LARGEST_INT <= value < LARGEST_INT:
            raise NotEvaluated(TOO_LARGE)

    def _add_container(self, value: Any, depth: int) -> None:
        if self.values + len(value) > MOST_VALUES or depth >= DEEPEST:
            raise NotEvaluated(TOO_LARGE)
        for each in value:
            if isinstance(value, dict):
                self._add_text(each)
                self.add(value[each], depth + 1)
            else:
                self.add(each, depth + 1)

    def _add_text(self, text: str) -> None:
        is_plain = text.isascii()
        self.text += len(text) if is_plain else len(text.encode(errors="surrogatepass"))
        if self.text > MOST_TEXT:
            raise NotEvaluated(TOO_LARGE)
        if not is_plain and not is_storable(text):
            raise NotEvaluated("an argument has a character that is not valid")
