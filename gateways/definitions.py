"""Render a definition as readable lines, show how two definitions differ, and list a tool's arguments in a table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from itertools import islice
from typing import Any, Literal, NamedTuple

AROUND = 3  # Unchanged lines shown before and after changed ones.
LONG = 160  # Characters. Longer texts are split into sentences.
LONGEST = 1000  # Characters. Longer sentences are split into pieces.
MOST_COMPARED = 4000  # Lines. In longer definitions, all between the first and last difference counts as changed.
MOST_MARKED = 20_000  # Characters; in longer definitions changed words are not marked, to bound the work.
ROWS = 150  # Lines on a page.

FIRST = ("name", "uri", "uriTemplate", "title", "description", "inputSchema", "arguments", "annotations")
PLAIN = re.compile(r"[A-Za-z_$][A-Za-z0-9_$./-]*")
WORDS = re.compile(r"\w+|\W")

type Mark = Literal["same", "old", "new", "gap"]


class DiffPart(NamedTuple):
    """A piece of a line, and whether it differs."""

    text: str
    differs: bool = False


class DiffLine(NamedTuple):
    """A line of the old version, of the new version or of both.

    A line with the mark `gap` is a note that says how many lines are omitted.
    """

    mark: Mark
    parts: Sequence[DiffPart]

    @classmethod
    def of(cls, mark: Mark, text: str) -> DiffLine:
        return cls(mark, (DiffPart(text),))


class Pairs(list[tuple[str, Any]]):
    """The members of a JSON object in their original order. If a name occurs twice, both members are kept."""


class JsonNumber(str):
    """A number as it is spelled in the JSON text."""

    __slots__ = ()


def lines_of(text: str) -> list[str]:
    """Return the JSON text of a definition as lines. Members of objects are sorted, and each begins a new line."""
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
    """Split a long line into sentences, and long sentences into pieces of LONGEST characters."""
    if len(line) <= LONG:
        yield line
        return
    # By sentence: text that is added to one sentence does not move the breaks in other sentences.
    for sentence in re.split(r"(?<=[.!?;:] )", line):
        yield from (sentence[at : at + LONGEST] for at in range(0, len(sentence), LONGEST))


def difference(old: str, new: str) -> list[DiffLine]:
    """Return the lines that differ between two definitions (JSON text), with a few unchanged lines around each."""
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
    return [DiffLine.of("same", line) for line in lines_of(text)]


def pages(lines: Sequence[DiffLine]) -> list[list[DiffLine]]:
    """Split `lines` into pages of ROWS lines. If there are no lines, return one empty page."""
    return [list(lines[at : at + ROWS]) for at in range(0, len(lines), ROWS)] or [[]]


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
    """Yield the old lines, then the new lines.

    Mark the changed words if `marked` is True and there are as many new lines as old lines.
    """
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


# The arguments named by a tool's input schema.

DEEPEST = 4  # Nesting level; below it only the type is shown.
MOST_ROWS = 80  # The view of the whole definition shows the rest.
MOST_VALUES = 12
LONGEST_TEXT = 400  # Characters of a description.
LIMITS = (
    ("minimum", "at least {}"),
    ("maximum", "at most {}"),
    ("minLength", "at least {} characters"),
    ("maxLength", "at most {} characters"),
    ("minItems", "at least {} items"),
    ("maxItems", "at most {} items"),
    ("pattern", "like {}"),
)


class Argument(NamedTuple):
    """An argument of a tool, or a member of an argument; `depth` is the nesting level."""

    name: str
    type: str
    is_required: bool
    description: str
    depth: int
    values: str
    more: str


def arguments(schema: Any) -> list[Argument]:
    """Return the arguments in a tool's input schema. The members of an argument directly follow the argument.

    At most MOST_ROWS arguments and members are returned. Invalid schemas, which servers may send, are treated as empty.
    """
    return list(islice(_arguments(schema, schema, 0), MOST_ROWS))


def _arguments(schema: Any, whole: Any, depth: int) -> Iterator[Argument]:
    schema = resolved(schema, whole)
    properties = schema.get("properties")
    required = schema.get("required")
    names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    if not isinstance(properties, dict) or depth > DEEPEST:
        return
    for name, member in properties.items():
        said = resolved(member, whole)
        yield Argument(
            name=name,
            type=_type_of(said, whole),
            is_required=name in names,
            description=_text(said.get("description")),
            depth=depth,
            values=_allowed(said),
            more=", ".join(_limits(said)),
        )
        inner = said.get("items") if isinstance(said.get("items"), dict) else said
        yield from _arguments(inner, whole, depth + 1)


def resolved(schema: Any, whole: Any) -> dict[str, Any]:
    """Return `schema` with its `$ref`, if any, replaced by the part of `whole` that the `$ref` names.

    Return {} if the result is not a schema.
    """
    reference = schema.get("$ref") if isinstance(schema, dict) else None
    if isinstance(reference, str) and reference.startswith("#/"):
        found = whole
        for step in reference[2:].split("/"):
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
        return {**found, **{key: value for key, value in schema.items() if key != "$ref"}} if _is_schema(found) else {}
    return schema if _is_schema(schema) else {}


def _is_schema(schema: Any) -> bool:
    return isinstance(schema, dict)


def _type_of(schema: dict[str, Any], whole: Any, depth: int = 0) -> str:
    for several in ("anyOf", "oneOf"):
        if isinstance(schema.get(several), list) and depth < DEEPEST:
            types = [_type_of(resolved(one, whole), whole, depth + 1) for one in schema[several][:MOST_VALUES]]
            return " or ".join(dict.fromkeys(one for one in types if one))
    told = schema.get("type")
    names = [one for one in told if isinstance(one, str)] if isinstance(told, list) else [told]
    words = " or ".join(str(one)[:40] for one in names[:MOST_VALUES] if isinstance(one, str))
    if words == "array" and depth < DEEPEST:
        of = _type_of(resolved(schema.get("items"), whole), whole, depth + 1)
        return f"array of {of}" if of else words
    return words


def _allowed(schema: dict[str, Any]) -> str:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list) or not values:
        return ""
    more = ", …" if len(values) > MOST_VALUES else ""
    return ", ".join(_plain(value) for value in values[:MOST_VALUES]) + more


def _limits(schema: dict[str, Any]) -> Iterator[str]:
    for name, words in LIMITS:
        if isinstance(schema.get(name), str | int | float):
            yield words.format(_plain(schema[name]))
    if "default" in schema:
        yield f"by default {_plain(schema['default'])}"


def _plain(value: Any) -> str:
    return _text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 80)


def _text(value: Any, longest: int = LONGEST_TEXT) -> str:
    text = value if isinstance(value, str) else ""
    text = text.encode(errors="backslashreplace").decode()  # Lone surrogates cannot be encoded.
    return text if len(text) <= longest else f"{text[:longest]}…"
