"""The words one searches the log with: `error and duration > 500 and host is ci-bot`, taken apart.

Each condition is a word on its own, or a field, an operator and a value; `and` or a comma joins them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from auditlog.models import ENDINGS, Outcome

LONGEST = 500

TEXT, CHOICE, ID, NUMBER = "text", "choice", "id", "number"

# What may be asked about, and of what kind it is.
FIELDS = {
    "outcome": CHOICE,
    "method": TEXT,
    "tool": TEXT,
    "host": TEXT,
    "gateway": TEXT,
    "server": TEXT,
    "user": TEXT,
    "token": TEXT,
    "identity": TEXT,
    "client": TEXT,
    "reason": TEXT,
    "ip": TEXT,
    "connection": ID,
    "correlation": ID,
    "duration": NUMBER,
    "upstream": NUMBER,
    "status": NUMBER,
    "code": NUMBER,
    "request": NUMBER,
    "response": NUMBER,
}
MILLISECONDS = ("duration", "upstream")
BYTES = ("request", "response")
UNITS = {
    **{field: {"": 1.0, "ms": 1.0, "s": 1000.0} for field in MILLISECONDS},
    **{field: {"": 1.0, "b": 1.0, "kb": 1000.0, "mb": 1_000_000.0} for field in BYTES},
}

# A word that is a condition by itself, and the outcomes it means.
WORDS = {**ENDINGS, "timeout": (Outcome.TIMEOUT,)}

IS, IS_NOT, CONTAINS = "is", "is not", "contains"
OPERATORS = {"is": IS, "=": IS, ":": IS, "!=": IS_NOT, "contains": CONTAINS, "~": CONTAINS}
COMPARISONS = ("<", "<=", ">", ">=")
ALLOWED = {
    TEXT: (IS, IS_NOT, CONTAINS),
    CHOICE: (IS, IS_NOT),
    ID: (IS, IS_NOT),
    NUMBER: (IS, IS_NOT, *COMPARISONS),
}


class SearchSyntaxError(ValueError):
    """What is wrong with a search, and where: the first character has position 1."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(f"Position {position}: {message}")
        self.position = position


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition; several values are alternatives."""

    field: str
    operator: str
    values: tuple[str | float, ...]


class Token(NamedTuple):
    text: str
    position: int
    quoted: bool = False

    @property
    def word(self) -> str:
        """The text as a word of the language; a quoted text is none."""
        return "" if self.quoted else self.text.lower()


_TOKEN = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|(<=|>=|!=|[<>=~,])|([^\s<>=~,"!]+)|(\S))')


def parse(text: str) -> list[Condition]:
    """The conditions of a search, all of which must hold. Raises DoesNotParse."""
    if len(text) > LONGEST:
        raise SearchSyntaxError(LONGEST + 1, f"A search has at most {LONGEST} characters.")
    reader = _Reader(list(_tokens(text)), len(text.rstrip()) + 1)
    return list(reader.conditions())


def _tokens(text: str) -> Iterator[Token]:
    end = len(text.rstrip())
    at = 0
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:  # Cannot be: the last alternative takes anything.
            return
        quoted, operator, word, stray = match.groups()
        position = match.start(match.lastindex or 0) + 1
        if stray is not None:
            raise SearchSyntaxError(
                position, "This quote is never closed." if stray == '"' else f"“{stray}” is not expected."
            )
        if quoted is not None:
            yield Token(re.sub(r"\\(.)", r"\1", quoted), position - 1, quoted=True)
        elif word is not None and word.count(":") == 1 and word.partition(":")[0].lower() in FIELDS:
            field, _, value = word.partition(":")
            yield Token(field, position)
            yield Token(":", position + len(field))
            if value:
                yield Token(value, position + len(field) + 1)
        else:
            yield Token(operator or word or "", position)
        at = match.end()


class _Reader:
    """Reads conditions off a list of tokens."""

    def __init__(self, tokens: list[Token], end: int) -> None:
        self._tokens = tokens
        self._end = end
        self._at = 0

    def conditions(self) -> Iterator[Condition]:
        while self._at < len(self._tokens):
            yield self._condition()
            if self._at == len(self._tokens):
                return
            joint = self._next("")
            if joint.word not in ("and", ","):
                raise SearchSyntaxError(joint.position, f"Join conditions by “and”: “{joint.text}” is not expected.")
            if self._at == len(self._tokens):
                raise SearchSyntaxError(self._end, f"A condition is missing after “{joint.text}”.")

    def _next(self, missing: str) -> Token:
        if self._at == len(self._tokens):
            raise SearchSyntaxError(self._end, missing)
        self._at += 1
        return self._tokens[self._at - 1]

    def _peek(self) -> str:
        return self._tokens[self._at].word if self._at < len(self._tokens) else ""

    def _condition(self) -> Condition:
        first = self._next("")
        if first.word in FIELDS:
            return self._about(first)
        if first.word in WORDS:
            return Condition("outcome", IS, WORDS[first.word])
        fields = ", ".join(FIELDS)
        raise SearchSyntaxError(
            first.position, f"“{first.text}” is no field. There are {fields}; and {', '.join(WORDS)}."
        )

    def _about(self, field: Token) -> Condition:
        kind = FIELDS[field.word]
        named = self._next(f"An operator is missing after “{field.text}”: {', '.join(ALLOWED[kind])}.")
        operator = named.word if named.word in COMPARISONS else OPERATORS.get(named.word, "")
        if operator == IS and self._peek() == "not":
            self._at += 1
            operator = IS_NOT
        if operator not in ALLOWED[kind]:
            expected = ", ".join(ALLOWED[kind])
            raise SearchSyntaxError(
                named.position, f"“{named.text}” does not go with {field.word}. Expected: {expected}."
            )
        value = self._next(f"A value is missing after “{named.text}”.")
        return Condition(field.word, operator, tuple(self._values(field.word, kind, value)))

    def _values(self, field: str, kind: str, first: Token) -> Iterator[str | float]:
        if kind == NUMBER:
            yield self._number(field, first)
        elif kind == CHOICE:
            yield from self._outcomes(first)
        else:
            yield " ".join(self._phrase(first))

    def _phrase(self, first: Token) -> Iterator[str]:
        """A text without quotes may have several words, up to the next `and`."""
        yield first.text
        while not first.quoted and self._at < len(self._tokens) and self._peek() not in ("and", ","):
            if (token := self._next("")).quoted or token.text in OPERATORS or token.text in COMPARISONS:
                raise SearchSyntaxError(
                    token.position, f"“{token.text}” is not expected. Put a text with such characters in quotes."
                )
            yield token.text

    def _number(self, field: str, token: Token) -> float:
        match = re.fullmatch(r"(-?\d{1,12}(?:\.\d{1,6})?)([a-z]*)", token.word)
        units = UNITS.get(field, {"": 1.0})
        unit = match[2] if match else ""
        if match and not unit and len(units) > 1 and self._peek() in units and self._peek():
            unit = self._next("").word
        if match is None or unit not in units:
            example = "500, 500 ms or 2 s" if field in MILLISECONDS else "2 kB" if field in BYTES else "403"
            raise SearchSyntaxError(
                token.position, f"“{token.text}” is no number for {field}. Write for example {example}."
            )
        return float(match[1]) * units[unit]

    def _outcomes(self, first: Token) -> tuple[str, ...]:
        said = "_".join(self._phrase(first)).lower().replace(" ", "_")
        if said == "protocol_error":
            said = "rpc_error"
        if said in Outcome.values:
            return (said,)
        if said in WORDS:
            return WORDS[said]
        told = ", ".join(outcome.replace("_", " ") for outcome in Outcome.values)
        raise SearchSyntaxError(first.position, f"“{first.text}” is no outcome. There are error, {told}.")
