"""Parser of the log's search language: `error and duration > 500 and host is ci-bot`.

A condition has one of three forms:

- a single word such as `error`
- a field of auditlog.fields with an operator and a value
- any other text: an id is compared with all ids, and all names are searched for a text that is not an id

A comma between two conditions means the same as `and`. The word `or` binds less tightly than `and` and the comma.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from auditlog.fields import FIELDS, Comparison, LogField
from auditlog.models import ENDINGS, Outcome

MOST_CONDITIONS = 20  # Each condition is tested on up to ten thousand rows at a time.
MAX_LENGTH = 500

# Words that are conditions by themselves, with the outcomes they match. `denied` is one of the outcomes of `refused`.
SUMS = {name: outcomes for name, outcomes in ENDINGS.items() if name != "denied"} | {"refused": ENDINGS["denied"]}
WORDS = {**SUMS, **{outcome.value: (outcome,) for outcome in Outcome if outcome not in SUMS}}

IS, IS_NOT, CONTAINS = "is", "is not", "contains"
# Values of `Condition.field` if no field is named: ANY_NAME searches a text in all names, ANY_ID an id in all ids.
ANY_NAME, ANY_ID = "", "id"
JOINTS = ("and", ",", "or")
OPERATORS = {"is": IS, "=": IS, ":": IS, "!=": IS_NOT, "contains": CONTAINS, "~": CONTAINS}
COMPARISONS = ("<", "<=", ">", ">=")
SIGNS = (*OPERATORS, *COMPARISONS)
_TEXT_OPERATORS = (IS, IS_NOT, CONTAINS)
ALLOWED = {
    Comparison.ENUM: (IS, IS_NOT),
    Comparison.TEXT: _TEXT_OPERATORS,
    Comparison.LIST: _TEXT_OPERATORS,
    Comparison.NAME: _TEXT_OPERATORS,
    Comparison.ADDRESS: _TEXT_OPERATORS,
    Comparison.ID: (IS, IS_NOT),
    Comparison.NUMBER: (IS, IS_NOT, *COMPARISONS),
}


class SearchSyntaxError(ValueError):
    """A syntax error in a search, with its position; the first character has position 1."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(f"Position {position}: {message}")
        self.position = position


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition. If it has several values, one of them must match.

    If `field` is ANY_NAME, the value is searched for in all fields of fields.FREE_TEXT.
    """

    field: str
    operator: str
    values: tuple[str | float, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """Several alternatives. One of them must be met, and an alternative is met if all of its conditions are met."""

    alternatives: tuple[tuple[Condition, ...], ...]


class QueryToken(NamedTuple):
    text: str
    position: int
    quoted: bool = False

    @property
    def word(self) -> str:
        """Return the text in lower case, to compare it with keywords such as `and`; empty for a quoted text."""
        return "" if self.quoted else self.text.lower()


NO_GROUPS = "Parentheses do not group: “and” always binds more tightly than “or”. Put text with parentheses in quotes."
_TOKEN = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|(<=|>=|!=|[<>=~,])|([^\s<>=~,"!]+)|(\S))')


def parse_search(text: str) -> list[Condition | Either]:
    """Return the conditions of a search, all of which must be met. Raises SearchSyntaxError."""
    if len(text) > MAX_LENGTH:
        raise SearchSyntaxError(MAX_LENGTH + 1, f"A search has at most {MAX_LENGTH} characters.")
    reader = _Reader(list(_tokens(text)), len(text.rstrip()) + 1)
    alternatives = reader.alternatives()
    return list(alternatives[0]) if len(alternatives) == 1 else [Either(tuple(alternatives))]


def lone_id(text: str) -> UUID | None:
    """Return the id if the text is just an id, bare or in quotes, otherwise None."""
    try:
        return UUID(text.strip().strip('"'))
    except ValueError:
        return None


def _tokens(text: str) -> Iterator[QueryToken]:
    end = len(text.rstrip())
    at = 0
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:  # Never happens, because the last alternative of the pattern matches anything.
            return
        quoted, operator, word, stray = match.groups()
        position = match.start(match.lastindex or 0) + 1
        if stray is not None:
            raise SearchSyntaxError(
                position, "This quote is never closed." if stray == '"' else f"“{stray}” is not expected."
            )
        if quoted is not None:
            yield QueryToken(re.sub(r"\\(.)", r"\1", quoted), position - 1, quoted=True)
        elif word is not None and word.count(":") == 1 and word.partition(":")[0].lower() in FIELDS:
            field, _, value = word.partition(":")
            yield QueryToken(field, position)
            yield QueryToken(":", position + len(field))
            if value:
                yield QueryToken(value, position + len(field) + 1)
        else:
            yield QueryToken(operator or word or "", position)
        at = match.end()


def _begins(word: str) -> bool:
    """Return True for a field's name and for a word that is a condition by itself, also in parentheses."""
    word = word.strip("()")
    return word in WORDS or word in FIELDS


class _Reader:
    """Reads conditions from a list of tokens."""

    def __init__(self, tokens: list[QueryToken], end: int) -> None:
        self._tokens = tokens
        self._end = end
        self._at = 0

    def alternatives(self) -> list[tuple[Condition, ...]]:
        """Return the conditions of each alternative. In the search, `or` separates the alternatives."""
        found: list[list[Condition]] = [[]]
        while self._at < len(self._tokens):
            if sum(map(len, found)) == MOST_CONDITIONS:
                position = self._tokens[self._at].position
                raise SearchSyntaxError(position, f"A search has at most {MOST_CONDITIONS} conditions.")
            found[-1].append(self._condition())
            if self._at == len(self._tokens):
                break
            joint = self._next("")
            if joint.word not in JOINTS:
                raise SearchSyntaxError(
                    joint.position, f"Join conditions by “and” or “or”: “{joint.text}” is not expected."
                )
            if self._at == len(self._tokens):
                raise SearchSyntaxError(self._end, f"A condition is missing after “{joint.text}”.")
            if joint.word == "or":
                found.append([])
        return [tuple(conditions) for conditions in found]

    def _next(self, missing: str) -> QueryToken:
        if self._at == len(self._tokens):
            raise SearchSyntaxError(self._end, missing)
        self._at += 1
        return self._tokens[self._at - 1]

    def _peek(self) -> str:
        return self._tokens[self._at].word if self._at < len(self._tokens) else ""

    def _condition(self) -> Condition:
        first = self._next("")
        if first.word in FIELDS:
            return self._field_condition(first)
        if first.word in WORDS:
            return Condition("outcome", IS, WORDS[first.word])
        if first.word.startswith("(") and _begins(first.word):
            raise SearchSyntaxError(first.position, NO_GROUPS)
        if first.word in JOINTS or self._peek() in SIGNS or first.text in SIGNS:
            fields = ", ".join(FIELDS)
            raise SearchSyntaxError(
                first.position,
                f"“{first.text}” is not a field. Fields are {fields}. Words that need no field are {', '.join(WORDS)}.",
            )
        if first.word == "not" and _begins(self._peek()):
            raise SearchSyntaxError(first.position, "Write “not” after “is”, as in “outcome is not ok”.")
        text = self._text(first)
        if (pk := lone_id(text)) is not None:
            return Condition(ANY_ID, IS, (str(pk),))
        return Condition(ANY_NAME, CONTAINS, (text,))

    def _field_condition(self, name: QueryToken) -> Condition:
        field = FIELDS[name.word]
        allowed = ALLOWED[field.comparison]
        sign = self._next(f"An operator is missing after “{name.text}”: {', '.join(allowed)}.")
        operator = sign.word if sign.word in COMPARISONS else OPERATORS.get(sign.word, "")
        if operator == IS and self._peek() == "not":
            self._at += 1
            operator = IS_NOT
        if operator not in allowed:
            raise SearchSyntaxError(
                sign.position, f"“{sign.text}” does not work with {field.name}. Expected: {', '.join(allowed)}."
            )
        value = self._next(f"A value is missing after “{sign.text}”.")
        return Condition(field.name, operator, tuple(self._values(field, value)))

    def _values(self, field: LogField, first: QueryToken) -> Iterator[str | float]:
        if field.comparison is Comparison.NUMBER:
            yield self._number(field, first)
        elif field.comparison is Comparison.ENUM:
            yield from self._outcomes(first)
        else:
            yield self._text(first)

    def _text(self, first: QueryToken) -> str:
        text = " ".join(self._phrase(first))
        if not first.quoted and text.count("(") != text.count(")") and any(one.word in JOINTS for one in self._tokens):
            raise SearchSyntaxError(first.position, NO_GROUPS)
        return text

    def _phrase(self, first: QueryToken) -> Iterator[str]:
        """Yield the words of a value. Without quotes, the value extends to the next `and`, `or` or comma."""
        yield first.text
        while not first.quoted and self._at < len(self._tokens) and self._peek() not in JOINTS:
            if (token := self._next("")).quoted or token.text in OPERATORS or token.text in COMPARISONS:
                raise SearchSyntaxError(
                    token.position, f"“{token.text}” is not expected. Put a text with such characters in quotes."
                )
            yield token.text

    def _number(self, field: LogField, token: QueryToken) -> float:
        match = re.fullmatch(r"(-?\d{1,12}(?:\.\d{1,6})?)([a-z]*)", token.word)
        units = field.unit.factors
        unit = match[2] if match else ""
        if match and not unit and len(units) > 1 and self._peek() in units and self._peek():
            unit = self._next("").word
        if match is None or unit not in units:
            raise SearchSyntaxError(
                token.position,
                f"“{token.text}” is not a number for {field.name}. Write for example {field.unit.example}.",
            )
        return float(match[1]) * units[unit]

    def _outcomes(self, first: QueryToken) -> tuple[str, ...]:
        word = "_".join(self._phrase(first)).lower().replace(" ", "_")
        if word == "protocol_error":
            word = "rpc_error"
        if word in Outcome.values:
            return (word,)
        if word in WORDS:
            return WORDS[word]
        known = ", ".join(outcome.replace("_", " ") for outcome in Outcome.values)
        raise SearchSyntaxError(first.position, f"“{first.text}” is not an outcome. Outcomes are error, {known}.")
