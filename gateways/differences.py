"""Render a definition as readable lines, and the difference of two. Nothing in it is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any, Literal, NamedTuple

from django.utils.html import escape

AROUND = 3  # Unchanged lines shown before and after changed ones.
LONG = 160  # Characters; longer texts are split into sentences,
LONGEST = 1000  # and longer sentences into pieces.
MOST_COMPARED = 4000  # Lines; of longer definitions only the common beginning and end are left out, to bound the work.
MOST_MARKED = 20_000  # Characters; in longer definitions changed words are not marked, to bound the work.
ROOM = 14_000  # Characters of markup per page,
ROWS = 150  # and lines.

FIRST = ("name", "uri", "uriTemplate", "title", "description", "inputSchema", "arguments", "annotations")
PLAIN = re.compile(r"[A-Za-z_$][A-Za-z0-9_$./-]*")
WORDS = re.compile(r"\w+|\W")

type Mark = Literal["same", "old", "new", "gap"]


class DiffPart(NamedTuple):
    """A piece of a line, and whether it differs."""

    text: str
    differs: bool = False


class DiffLine(NamedTuple):
    """One line: in both versions, in the old one, in the new one, or the number of lines left out."""

    mark: Mark
    parts: Sequence[DiffPart]

    @classmethod
    def of(cls, mark: Mark, text: str) -> DiffLine:
        return cls(mark, (DiffPart(text),))


class Pairs(list[tuple[str, Any]]):
    """The members of an object in their original order, duplicates included."""


class JsonNumber(str):
    """A number as it is spelled in the JSON text."""

    __slots__ = ()


def lines_of(text: str) -> list[str]:
    """Return the JSON text of a definition as lines, one per value, with the members of objects in a fixed order."""
    value = json.loads(text, object_pairs_hook=Pairs, parse_float=JsonNumber, parse_int=JsonNumber)
    lines = _members(value, "", FIRST) if isinstance(value, Pairs) else _value("", value, "")
    # Lone surrogates cannot be encoded: show them as escapes.
    return [line.encode(errors="backslashreplace").decode() for line in lines]


def _members(pairs: Pairs, indent: str, first: Sequence[str] = ()) -> Iterator[str]:
    def place(pair: tuple[str, Any]) -> tuple[int, str]:
        return first.index(pair[0]) if pair[0] in first else len(first), pair[0]

    for key, value in sorted(pairs, key=place):
        yield from _value(f"{indent}{key if PLAIN.fullmatch(key) else _quoted(key)}:", value, indent)


def _value(label: str, value: Any, indent: str) -> Iterator[str]:
    deeper = f"{indent}  "
    match value:
        case JsonNumber():
            yield f"{label} {value}"
        case str() if "\n" in value or len(value) > LONG:
            yield f"{label} |"
            for line in value.split("\n"):
                yield from (f"{deeper}{piece}" for piece in _pieces(line))
        case Pairs() if value:
            yield label
            yield from _members(value, deeper)
        case [_, *_] if not isinstance(value, Pairs):
            yield from _items(label, value, deeper)
        case Pairs():
            yield f"{label} {{}}"
        case _:
            yield f"{label} {_quoted(value)}"


def _items(label: str, values: list[Any], deeper: str) -> Iterator[str]:
    if all(isinstance(one, str | bool) or one is None for one in values) and len(_listed(values)) <= LONG:
        yield f"{label} {_listed(values)}"
        return
    yield label
    for one in values:
        yield from _value(f"{deeper}-", one, deeper)


def _listed(values: Iterable[Any]) -> str:
    return f"[{', '.join(str(one) if isinstance(one, JsonNumber) else _quoted(one) for one in values)}]"


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _pieces(line: str) -> Iterator[str]:
    """Split a long line into sentences, and these at fixed lengths, so that growing text keeps its breaks."""
    if len(line) <= LONG:
        yield line
        return
    for sentence in re.split(r"(?<=[.!?;:] )", line):
        yield from (sentence[at : at + LONGEST] for at in range(0, len(sentence), LONGEST))


def difference(old: str, new: str) -> list[DiffLine]:
    """Return the lines that differ between two definitions (JSON text), with a few unchanged ones around each."""
    before, after = lines_of(old), lines_of(new)
    found: list[DiffLine] = []
    blocks = [*_blocks(before, after)]
    marked = sum(map(len, before)) + sum(map(len, after)) <= MOST_MARKED
    for number, (tag, a, b, c, d) in enumerate(blocks):
        if tag == "equal":
            found += _shortened(before[a:b], is_first=number == 0, is_last=number == len(blocks) - 1)
        else:
            found += _replaced(before[a:b], after[c:d], marked=marked)
    return found


def whole(text: str) -> list[DiffLine]:
    """Return all lines of a definition (JSON text)."""
    return [DiffLine.of("same", line) for line in lines_of(text)]


def pages(lines: Iterable[DiffLine]) -> list[list[DiffLine]]:
    """Split `lines` into pages of bounded size; at least one page."""
    found: list[list[DiffLine]] = [[]]
    room = ROOM
    for line in lines:
        weight = 40 + sum(len(escape(part.text)) + 20 for part in line.parts)
        if found[-1] and (weight > room or len(found[-1]) >= ROWS):
            found.append([])
            room = ROOM
        found[-1].append(line)
        room -= weight
    return found


def _blocks(before: list[str], after: list[str]) -> Iterator[tuple[str, int, int, int, int]]:
    if max(len(before), len(after)) <= MOST_COMPARED:
        yield from SequenceMatcher(None, before, after).get_opcodes()
        return
    shorter = min(len(before), len(after))
    head = next((at for at in range(shorter) if before[at] != after[at]), shorter)
    tail = next((at for at in range(shorter - head) if before[-1 - at] != after[-1 - at]), shorter - head)
    yield "equal", 0, head, 0, head
    yield "replace", head, len(before) - tail, head, len(after) - tail
    yield "equal", len(before) - tail, len(before), len(after) - tail, len(after)


def _shortened(lines: list[str], *, is_first: bool, is_last: bool) -> Iterator[DiffLine]:
    before, after = (0 if is_first else AROUND), (0 if is_last else AROUND)
    left_out = len(lines) - before - after
    if left_out <= 1:
        yield from (DiffLine.of("same", line) for line in lines)
        return
    yield from (DiffLine.of("same", line) for line in lines[:before])
    yield DiffLine.of("gap", f"{left_out:,} lines as before")
    yield from (DiffLine.of("same", line) for line in lines[len(lines) - after :])


def _replaced(old: list[str], new: list[str], *, marked: bool) -> Iterator[DiffLine]:
    """Yield the old lines, then the new ones. If they pair up, the words that differ are marked."""
    if not marked or len(old) != len(new):
        yield from (DiffLine.of("old", line) for line in old)
        yield from (DiffLine.of("new", line) for line in new)
        return
    compared = [_compared(*pair) for pair in zip(old, new, strict=True)]
    yield from (DiffLine("old", gone) for gone, _ in compared)
    yield from (DiffLine("new", come) for _, come in compared)


def _compared(old: str, new: str) -> tuple[list[DiffPart], list[DiffPart]]:
    before, after = WORDS.findall(old), WORDS.findall(new)
    gone, come = list[DiffPart](), list[DiffPart]()
    for tag, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        gone += [DiffPart("".join(before[a:b]), tag != "equal")] if b > a else []
        come += [DiffPart("".join(after[c:d]), tag != "equal")] if d > c else []
    return gone, come
