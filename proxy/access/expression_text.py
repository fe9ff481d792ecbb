"""The text of conditions: their fields, the arguments that they name, and a check that their cost is bounded."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

# The fields of an expression besides `args`, each with its CEL type and what it contains.
FIELDS: dict[str, tuple[str, str]] = {
    "tool.name": ("string", "Name of the tool for clients, such as `github__create_issue`."),
    "tool.server": ("string", "Name of the server."),
    "tool.title": ("string", "Title of the tool; empty if it has none."),
    "tool.read_only": ("bool", "Whether the tool changes nothing."),
    "tool.destructive": ("bool", "Whether the tool may delete or overwrite."),
    "tool.open_world": ("bool", "Whether the tool reaches the outside world, such as the web."),
    "agent.name": ("string", "Name of the app or agent."),
    "agent.kind": ("string", "`agent` or `app`."),
    "person.email": ("string", "E-mail address of the person."),
    "person.teams": ("list<string>", "Names of the person's teams."),
    "person.role": ("string", "Name of the person's role; empty without one."),
    "gateway.name": ("string", "Name of the gateway."),
    "gateway.slug": ("string", "Last part of the gateway's URL."),
    "client.name": ("string", "Name that the client gives itself; it can be anything."),
    "client.address": ("string", "IP address of the client."),
    "now.hour": ("int", "Hour of the call in the workspace's time zone, 0 to 23."),
    "now.minute": ("int", "Minute of the call, 0 to 59."),
    "now.weekday": ("int", "Day of the week: 1 is Monday, 7 is Sunday."),
    "now.date": ("string", "Date of the call, such as `2026-11-25`."),
}
ARGUMENTS = "args"


class BadExpression(Exception):
    """The condition cannot be used. `at` is the position of the first character that is wrong, from 0."""

    def __init__(self, problem: str, at: int = 0) -> None:
        super().__init__(problem)
        self.problem, self.at = problem, at


class ExpressionToken(NamedTuple):
    text: str
    at: int
    is_name: bool  # An identifier that is no member (`args`, not the `amount` of `args.amount`).
    is_text: bool


is_identifier = re.compile(r"(?!(?:in|true|false|null)$)[A-Za-z_]\w*", re.ASCII).fullmatch
_TOKEN = re.compile(
    r"""(?P<text>(?:[rR][bB]?|[bB][rR])(?:'{3}.*?'{3}|"{3}.*?"{3}|'[^'\n]*'|"[^"\n]*")"""
    r"""|[bB]?(?:'{3}(?:\\.|[^\\])*?'{3}|"{3}(?:\\.|[^\\])*?"{3}|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"))"""
    r"|(?P<name>[A-Za-z_]\w*)|(?P<other>[^\s])",
    re.DOTALL,
)
MACROS = frozenset({"all", "exists", "exists_one", "map", "filter"})
LONGEST_PATTERN = 200
MOST_ELEMENTS = 40
_COSTLY_IN_PATTERNS = re.compile(r"\\[pP]|\)\{\d")  # They make a pattern of thousands of states: 0.4 s for a long text.


def tokens_of(text: str) -> Iterator[ExpressionToken]:
    before = ""
    for found in _TOKEN.finditer(text):
        is_name = found.lastgroup == "name" and before != "."
        yield ExpressionToken(found[0], found.start(), is_name, found.lastgroup == "text")
        before = found[0]


def check_cost(tokens: Sequence[ExpressionToken]) -> None:
    """Raise BadExpression unless the cost is proportional to the size of the arguments.

    The body of a macro may use only its own variable: comparing each element with all arguments would be quadratic.
    A macro over a list in the expression may use all arguments, but no other macro, and the list has MOST_ELEMENTS.
    Patterns of `matches` are texts in the expression, because an argument could be a pattern that takes seconds to
    compile; and they are compiled for each text, so not inside a macro.
    """
    for index, token in enumerate(tokens):
        if token.text == "/" and index + 1 < len(tokens) and tokens[index + 1].text == "/":
            raise BadExpression("Comments are not supported: use the note of the rule.", token.at)
        if not _is_call(tokens, index):
            continue
        end = _closing(tokens, index + 1)
        if token.text == "matches":
            _check_pattern(tokens[index + 2 : end], token)
        elif token.text in MACROS and tokens[index - 1].text == ".":
            _check_body(tokens[index + 2 : end], token.text, over_literal=_is_literal(tokens, index - 2))


def _is_call(tokens: Sequence[ExpressionToken], index: int) -> bool:
    return index + 1 < len(tokens) and tokens[index + 1].text == "("


def _closing(tokens: Sequence[ExpressionToken], opening: int) -> int:
    depth = 0
    for index in range(opening, len(tokens)):
        depth += (tokens[index].text in "([{") - (tokens[index].text in ")]}") if not tokens[index].is_text else 0
        if depth == 0:
            return index
    return len(tokens)


def _check_pattern(inner: Sequence[ExpressionToken], call: ExpressionToken) -> None:
    last = inner[-1] if inner else call
    if not last.is_text or (len(inner) > 1 and inner[-2].text != ","):
        raise BadExpression("The pattern of matches() must be a text in quotation marks.", last.at)
    if len(last.text) > LONGEST_PATTERN:
        raise BadExpression(f"A pattern has at most {LONGEST_PATTERN} characters.", last.at)
    if found := _COSTLY_IN_PATTERNS.search(last.text):
        what = "repeat a group a number of times" if found[0].startswith(")") else "use classes of Unicode"
        raise BadExpression(f"A pattern cannot {what}.", last.at + found.start())


def _is_literal(tokens: Sequence[ExpressionToken], index: int) -> bool:
    """Return whether the token at `index` ends a list that is written in the expression. Raises BadExpression."""
    if index < 0 or tokens[index].text != "]":
        return False
    depth = commas = 0
    for at in range(index, -1, -1):
        depth += (tokens[at].text == "]") - (tokens[at].text == "[") if not tokens[at].is_text else 0
        commas += tokens[at].text == ","
        if depth == 0:
            before = tokens[at - 1] if at else None
            is_index = before is not None and (before.text in ")]" or before.text[-1].isalnum() or before.is_text)
            if commas >= MOST_ELEMENTS and not is_index:
                raise BadExpression(f"A list has at most {MOST_ELEMENTS} elements here.", tokens[at].at)
            return not is_index
    return False


def _check_body(inner: Sequence[ExpressionToken], macro: str, *, over_literal: bool) -> None:
    own = inner[0].text if inner else ""
    for index, token in enumerate(inner[1:], 1):
        nested = token.text in MACROS and inner[index - 1].text == "."
        if (nested and over_literal) or (token.text == "matches" and _is_call(inner, index)):
            raise BadExpression(f"{token.text}() cannot be used inside {macro}().", token.at)
        is_foreign = (
            token.is_name and token.text != own and token.text not in _SMALL and not _is_macro_variable(inner, index)
        )
        if is_foreign and not over_literal:
            raise BadExpression(f"Inside {macro}(), only {own} can be used, not {token.text}.", token.at)


def _is_macro_variable(tokens: Sequence[ExpressionToken], index: int) -> bool:
    """Return whether this name is the variable of an enclosing macro; the check of that macro covers the name."""
    depth = 0
    for at in range(index, -1, -1):
        depth += (tokens[at].text == ")") - (tokens[at].text == "(")
        if depth < 0 and at >= 1 and tokens[at - 1].text in MACROS and tokens[at + 1].text == tokens[index].text:
            return True
    return False


# Names whose values are small: fields of the call, words and functions of CEL.
_SMALL = frozenset(
    {*(name.partition(".")[0] for name in FIELDS), "true", "false", "null", "in", "has", "size", "matches"}
    | {"int", "uint", "double", "string", "bool", "bytes", "duration", "timestamp", "type", "dyn"}
)


def arguments_in(tokens: Sequence[ExpressionToken]) -> frozenset[str] | None:
    """Return the arguments that an expression names (`args.name`, `args['name']`); None if it may use any."""
    names = set()
    for index, token in enumerate(tokens):
        if not token.is_name or token.text != ARGUMENTS:
            continue
        dot, name = (*(each.text for each in tokens[index + 1 : index + 3]), "", "")[:2]
        if dot == "." and is_identifier(name) and not _is_call(tokens, index + 2):
            names.add(name)
        elif dot == "[" and _PLAIN_TEXT.fullmatch(name) and tokens[index + 3].text == "]":
            names.add(name[1:-1])
        else:
            return None
    return frozenset(names)


_PLAIN_TEXT = re.compile(r"""'[^'\\]*'|"[^"\\]*\"""")
