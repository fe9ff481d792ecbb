"""What came of a run, for a page. All of it was chosen by somebody else: nothing of it is taken for markup.

Text stays text, shown whole with what nobody would see marked; of pictures only those of four kinds whose first bytes
say the same are drawn; links lead nowhere but to pages of ours.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from gatewayadmin.playground.endpoint_call import Answer
from wire.jsonrpc import Object

LONGEST_TEXT = 20_000  # Characters of one text; the raw answer has more.
LONGEST_RAW = 100_000
LONGEST_CELL = 200
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


class Part(NamedTuple):
    """One part of a result: `kind` is text, picture, link or other; `text` says it, or what it is."""

    kind: str
    text: str
    title: str = ""
    uri: str = ""
    picture: str = ""
    is_cut: bool = False


class Table(NamedTuple):
    """Rows of alike objects, each cell with the name of its column; `left_out` are more than are shown."""

    columns: list[str]
    rows: list[list[tuple[str, str]]]
    left_out: int


@dataclass(frozen=True)
class Result:
    """An answer, as it is shown."""

    answer: Answer
    parts: list[Part]
    table: Table | None
    structured: str
    error: str
    raw: str
    is_raw_cut: bool

    @property
    def is_tool_error(self) -> bool:
        """Whether the tool ran and said that it failed."""
        return _result(self.answer).get("isError") is True

    @property
    def is_empty(self) -> bool:
        return not (self.parts or self.table or self.structured or self.error)


def result_of(answer: Answer) -> Result:
    """What is shown of an answer."""
    said = _result(answer)
    structured = said.get("structuredContent")
    table = _table(structured)
    text = _pretty(structured) if isinstance(structured, dict | list) else ""
    raw = _raw(answer)
    return Result(
        answer=answer,
        parts=list(islice(_parts(said), MOST_PARTS)),
        table=table,
        structured=text[:LONGEST_TEXT],
        error=_error(answer),
        raw=raw[:LONGEST_RAW],
        is_raw_cut=len(raw) > LONGEST_RAW or answer.is_cut,
    )


def _result(answer: Answer) -> Object:
    said = (answer.message or {}).get("result")
    return said if isinstance(said, dict) else {}


def _error(answer: Answer) -> str:
    """The message of a JSON-RPC error; empty where it is none."""
    error = (answer.message or {}).get("error")
    text = error.get("message") if isinstance(error, dict) else None
    return _text(text)[:LONGEST_TEXT] if isinstance(text, str) else ""


def _raw(answer: Answer) -> str:
    if answer.message is None:
        return answer.body[:LONGEST_RAW].decode(errors="replace")
    return _pretty(answer.message)


def _parts(said: Object) -> Iterator[Part]:
    """The parts of what a tool, a prompt or a resource gave."""
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


def _block(block: Object) -> Part:
    match block.get("type"):
        case "text":
            return _of_text(block.get("text"))
        case "image":
            return _picture(block)
        case "resource_link":
            uri = _short(block.get("uri"), 2000)
            return Part("link", _text(block.get("description")), _short(block.get("title") or block.get("name")), uri)
        case "resource":
            resource = block.get("resource")
            return _contents(resource if isinstance(resource, dict) else {})
        case "audio":
            return Part("other", f"Sound of type {_short(block.get('mimeType'))}, {_bytes(block.get('data'))}")
        case other:
            return Part("other", f"Content of a kind that is not shown here: {_short(other)}")


def _contents(contents: Object) -> Part:
    """The contents of a resource."""
    uri = _short(contents.get("uri"), 2000)
    if isinstance(contents.get("text"), str):
        return _of_text(contents["text"])._replace(uri=uri)
    kind = _short(contents.get("mimeType"))
    if kind in PICTURES:
        return _picture({"mimeType": kind, "data": contents.get("blob")})._replace(uri=uri)
    return Part("other", f"Data of type {kind}, {_bytes(contents.get('blob'))}", uri=uri)


def _of_text(value: Any) -> Part:
    text = _text(value)
    return Part("text", text[:LONGEST_TEXT], is_cut=len(text) > LONGEST_TEXT)


def _picture(block: Object) -> Part:
    """A picture to draw, if it is one of a kind that holds nothing but a picture."""
    kind, data = _short(block.get("mimeType")), block.get("data")
    told = f"Picture of type {kind}, {_bytes(data)}"
    if kind not in PICTURES or not isinstance(data, str) or len(data) > LARGEST_PICTURE * 4 // 3 + 4:
        return Part("other", f"{told}; it is not shown")
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return Part("other", f"{told}; it cannot be read")
    if not content.startswith(PICTURES[kind]):
        return Part("other", f"{told}; it is none of that type")
    return Part("picture", told, picture=f"data:{kind};base64,{base64.b64encode(content).decode()}")


def _table(value: Any) -> Table | None:
    """The list of alike objects that a structured result is, or holds as its only list."""
    rows = value
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        rows = lists[0] if len(lists) == 1 else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return None
    columns = list(dict.fromkeys(name for row in rows[:MOST_ROWS] for name in row))
    if not 0 < len(columns) <= MOST_COLUMNS:
        return None
    shown = [[(_short(name), _cell(row.get(name))) for name in columns] for row in rows[:MOST_ROWS]]
    return Table([_short(name) for name in columns], shown, max(len(rows) - MOST_ROWS, 0))


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


def _pretty(value: Any) -> str:
    return _text(json.dumps(value, indent=2, ensure_ascii=False))
