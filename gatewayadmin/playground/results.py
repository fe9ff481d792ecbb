"""Renders the result of a run. It is untrusted: nothing in it is interpreted as markup.

Text is escaped, with invisible characters marked. Only pictures of four types with matching first bytes are shown.
Links lead only to our own pages. All texts of an answer share one size limit, and no more is serialised than is shown,
so that a server cannot make the page expensive.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from gatewayadmin.playground.endpoint_call import AgentResponse
from ui.templatetags.ui import visible
from wire.jsonrpc import Object

MOST_CHARACTERS = 100_000  # Total markup of one answer.
LONGEST_TEXT = 20_000  # Characters of one text; the raw answer shows more.
LONGEST_CELL = 200
DEEPEST_INDENTED = 40  # Deeper lines would be mostly blanks.
LARGEST_PICTURE = 1 << 20
MOST_PARTS = 50
MOST_ROWS = 100
MOST_COLUMNS = 12
PICTURES = {
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/jpeg": b"\xff\xd8\xff",
    "image/gif": b"GIF8",
    "image/webp": b"RIFF",
}


class _Room:
    """The remaining size limit of one answer, in rendered characters."""

    def __init__(self) -> None:
        self.left = MOST_CHARACTERS
        self.is_short = False

    def take(self, text: str, longest: int = LONGEST_TEXT) -> str:
        """Return the part of the text to show, and subtract it from the limit."""
        longest = min(longest, self.left)
        self.is_short = self.is_short or len(text) > longest
        self.left = max(self.left - len(visible(text[:longest])), 0)
        return text[:longest]


class ResultPart(NamedTuple):
    """One part of a result. `kind` is text, picture, link or other; `text` is its content or description."""

    kind: str
    text: str
    title: str = ""
    uri: str = ""
    picture: str = ""
    is_cut: bool = False


class ResultTable(NamedTuple):
    """A table of similar objects. Cells have the name of their column; `left_out` rows are not shown."""

    columns: list[str]
    rows: list[list[tuple[str, str]]]
    left_out: int


@dataclass(frozen=True)
class Result:
    """An answer, prepared for the page."""

    answer: AgentResponse
    parts: list[ResultPart]
    table: ResultTable | None
    structured: str
    error: str
    raw: str
    is_raw_cut: bool
    is_cut: bool

    @property
    def is_tool_error(self) -> bool:
        """True if the tool ran and reported an error."""
        return _result(self.answer).get("isError") is True

    @property
    def is_empty(self) -> bool:
        return not (self.parts or self.table or self.structured or self.error)


def result_of(answer: AgentResponse) -> Result:
    """Prepare an answer for the page."""
    said = _result(answer)
    room = _Room()
    error = room.take(_error(answer))
    structured = said.get("structuredContent")
    table = _table(structured, room)
    parts = list(_shown_parts(said, room))
    is_text = table is None and isinstance(structured, dict | list)
    text = room.take(_written(structured, LONGEST_TEXT)) if is_text else ""
    raw = _raw(answer, room.left)
    is_raw_cut = len(raw) > room.left or answer.is_cut
    return Result(
        answer=answer,
        parts=parts,
        table=table,
        structured=text,
        error=error,
        raw=room.take(raw, MOST_CHARACTERS),
        is_raw_cut=is_raw_cut,
        is_cut=room.is_short or answer.is_cut,
    )


def _result(answer: AgentResponse) -> Object:
    said = (answer.message or {}).get("result")
    return said if isinstance(said, dict) else {}


def _error(answer: AgentResponse) -> str:
    """Return the message of a JSON-RPC error; empty if there is none."""
    error = (answer.message or {}).get("error")
    text = error.get("message") if isinstance(error, dict) else None
    return _text(text) if isinstance(text, str) else ""


def _raw(answer: AgentResponse, longest: int) -> str:
    """Return the raw answer, up to slightly more than `longest` characters."""
    if answer.message is not None and _is_shallow(answer.message):
        return _written(answer.message, longest)
    # Each character takes at most four bytes.
    return answer.body[: 4 * longest + 4].decode(errors="replace")


def _shown_parts(said: Object, room: _Room) -> Iterator[ResultPart]:
    """Yield the parts within the size limit."""
    for count, part in enumerate(_parts(said)):
        if count == MOST_PARTS or not room.left:
            room.is_short = True
            return
        title, uri, text = room.take(part.title), room.take(part.uri), room.take(part.text)
        yield part._replace(title=title, uri=uri, text=text, is_cut=len(text) < len(part.text))


def _parts(said: Object) -> Iterator[ResultPart]:
    """Yield the parts of the result of a tool, a prompt or a resource."""
    for block in _objects(said.get("content")):
        yield _block(block)
    for message in _objects(said.get("messages")):
        content = message.get("content")
        for block in _objects(content if isinstance(content, list) else [content]):
            yield _block(block)._replace(title=f"from {_short(message.get('role'))}")
    for contents in _objects(said.get("contents")):
        yield _contents(contents)


def _objects(values: Any) -> Iterator[Object]:
    if isinstance(values, list):
        yield from (value for value in values if isinstance(value, dict))


def _block(block: Object) -> ResultPart:
    match block.get("type"):
        case "text":
            return _of_text(block.get("text"))
        case "image":
            return _picture(block)
        case "resource_link":
            uri = _short(block.get("uri"), 2000)
            return ResultPart(
                "link", _text(block.get("description")), _short(block.get("title") or block.get("name")), uri
            )
        case "resource":
            resource = block.get("resource")
            return _contents(resource if isinstance(resource, dict) else {})
        case "audio":
            return ResultPart("other", f"Sound of type {_short(block.get('mimeType'))}, {_bytes(block.get('data'))}")
        case other:
            return ResultPart("other", f"Content of a kind that is not shown here: {_short(other)}")


def _contents(contents: Object) -> ResultPart:
    """The contents of a resource."""
    uri = _short(contents.get("uri"), 2000)
    if isinstance(contents.get("text"), str):
        return _of_text(contents["text"])._replace(uri=uri)
    kind = _short(contents.get("mimeType"))
    if kind in PICTURES:
        return _picture({"mimeType": kind, "data": contents.get("blob")})._replace(uri=uri)
    return ResultPart("other", f"Data of type {kind}, {_bytes(contents.get('blob'))}", uri=uri)


def _of_text(value: Any) -> ResultPart:
    return ResultPart("text", _text(value))


def _picture(block: Object) -> ResultPart:
    """Return a picture if its type is safe to show, otherwise a description."""
    kind, data = _short(block.get("mimeType")), block.get("data")
    told = f"Picture of type {kind}, {_bytes(data)}"
    if kind not in PICTURES or not isinstance(data, str) or len(data) > LARGEST_PICTURE * 4 // 3 + 4:
        return ResultPart("other", f"{told}; it is not shown")
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return ResultPart("other", f"{told}; it cannot be read")
    if not content.startswith(PICTURES[kind]):
        return ResultPart("other", f"{told}; it is none of that type")
    return ResultPart("picture", told, picture=f"data:{kind};base64,{base64.b64encode(content).decode()}")


def _table(value: Any, room: _Room) -> ResultTable | None:
    """Return a table if a structured result is a list of similar objects, or has one as its only list."""
    rows = value
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        rows = lists[0] if len(lists) == 1 else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return None
    columns = list(dict.fromkeys(name for row in rows[:MOST_ROWS] for name in row))
    if not 0 < len(columns) <= MOST_COLUMNS:
        return None
    names = [room.take(_short(name)) for name in columns]
    shown: list[list[tuple[str, str]]] = []
    for row in rows[:MOST_ROWS]:
        if not room.left:
            break
        # Each cell carries the name of its column, for narrow screens.
        shown.append(
            [(room.take(name), room.take(_cell(row.get(key)))) for key, name in zip(columns, names, strict=True)]
        )
    room.is_short = room.is_short or len(shown) < len(rows)
    return ResultTable(names, shown, len(rows) - len(shown))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return _short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), LONGEST_CELL)


def _bytes(data: Any) -> str:
    return f"{len(data) * 3 // 4:,} bytes" if isinstance(data, str) else "empty"


def _text(value: Any) -> str:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else ""


def _short(value: Any, longest: int = 100) -> str:
    text = _text(value)
    return text if len(text) <= longest else f"{text[:longest]}…"


def _written(value: Any, longest: int) -> str:
    """Return indented JSON, up to slightly more than `longest` characters; one line if nested too deeply."""
    if not _is_shallow(value):
        return _text(json.dumps(value, ensure_ascii=False))
    written, length = [], 0
    for piece in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(value):
        written.append(piece)
        length += len(piece)
        if length > longest:
            break
    return _text("".join(written))


def _is_shallow(value: Any) -> bool:
    """Return whether the value can be indented. Iterative, since it may be nested to any depth."""
    level = [value]
    for _ in range(DEEPEST_INDENTED):
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [each for members in inner for each in members if isinstance(each, dict | list)]
        if not level:
            return True
    return False
