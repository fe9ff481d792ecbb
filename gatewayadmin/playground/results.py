"""Renders the result of a run. The result is untrusted: nothing in it is interpreted as markup.

Invisible characters are marked, and links lead only to our own pages. A picture is shown only if it has one of four
types and its first bytes match the type. All texts share one size limit, so that a server cannot make the page
expensive.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from gatewayadmin.playground.run import AgentResponse
from ui.templatetags.ui import visible
from wire.jsonrpc import Object

MOST_CHARACTERS = 100_000  # Total markup of one answer.
LONGEST_TEXT = 20_000  # Characters of one text; the raw answer shows more.
LARGEST_PICTURE = 1 << 20
MOST_PARTS = 50
PICTURES = {
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/jpeg": b"\xff\xd8\xff",
    "image/gif": b"GIF8",
    "image/webp": b"RIFF",
}


class ResultPart(NamedTuple):
    """One part of a result. `kind` is text, picture, link or other; `text` is its content or description."""

    kind: str
    text: str
    title: str = ""
    uri: str = ""
    picture: str = ""
    is_cut: bool = False


@dataclass
class Result:
    """An answer, prepared for the page within its size limit."""

    answer: AgentResponse

    def __post_init__(self) -> None:
        self._left, self.is_cut = MOST_CHARACTERS, self.answer.is_cut
        value, error = (self.answer.message or {}).get("result"), (self.answer.message or {}).get("error")
        result: Object = value if isinstance(value, dict) else {}
        structured = result.get("structuredContent")
        self.error = self._take(_text(error.get("message"))) if isinstance(error, dict) else ""
        self.parts = list(self._parts_of(result))
        self.structured = ""
        if isinstance(structured, dict | list):
            self.structured = self._take(_indented(structured, LONGEST_TEXT))
        if self.answer.message is not None:
            raw = _indented(self.answer.message, self._left)
        else:  # Each character takes at most four bytes.
            raw = self.answer.body[: 4 * self._left + 4].decode(errors="replace")
        self.is_raw_cut = len(raw) > self._left or self.answer.is_cut
        self.raw = self._take(raw, MOST_CHARACTERS)

    @property
    def is_empty(self) -> bool:
        return not (self.parts or self.structured or self.error)

    def _parts_of(self, result: Object) -> Iterator[ResultPart]:
        for count, part in enumerate(_parts(result)):
            if count == MOST_PARTS or not self._left:
                self.is_cut = True
                return
            title, uri, text = self._take(part.title), self._take(part.uri), self._take(part.text)
            yield part._replace(title=title, uri=uri, text=text, is_cut=len(text) < len(part.text))

    def _take(self, text: str, longest: int = LONGEST_TEXT) -> str:
        """Return the part of `text` to show.

        The HTML length of the returned part counts towards the size limit that all texts of the answer share.
        """
        longest = min(longest, self._left)
        self.is_cut = self.is_cut or len(text) > longest
        self._left = max(self._left - len(visible(text[:longest])), 0)
        return text[:longest]


def _parts(result: Object) -> Iterator[ResultPart]:
    """Yield the parts of the result of a tool, a prompt or a resource."""
    for block in _objects(result.get("content")):
        yield _block(block)
    for message in _objects(result.get("messages")):
        content = message.get("content")
        for block in _objects(content if isinstance(content, list) else [content]):
            yield _block(block)._replace(title=f"from {_short(message.get('role'))}")
    for contents in _objects(result.get("contents")):
        yield _contents(contents)


def _objects(values: Any) -> Iterator[Object]:
    if isinstance(values, list):
        yield from (value for value in values if isinstance(value, dict))


def _block(block: Object) -> ResultPart:
    match block.get("type"):
        case "text":
            return ResultPart("text", _text(block.get("text")))
        case "image":
            return _picture(block.get("mimeType"), block.get("data"))
        case "resource_link":
            title = _short(block.get("title") or block.get("name"))
            return ResultPart("link", _text(block.get("description")), title, _short(block.get("uri"), 2000))
        case "resource":
            resource = block.get("resource")
            return _contents(resource if isinstance(resource, dict) else {})
        case "audio":
            return ResultPart("other", f"Sound of type {_short(block.get('mimeType'))}, {_bytes(block.get('data'))}")
        case other:
            return ResultPart("other", f"Content of a type that is not shown here: {_short(other)}")


def _contents(contents: Object) -> ResultPart:
    """Return the contents of a resource."""
    uri, kind = _short(contents.get("uri"), 2000), _short(contents.get("mimeType"))
    if isinstance(contents.get("text"), str):
        return ResultPart("text", _text(contents["text"]), uri=uri)
    if kind in PICTURES:
        return _picture(kind, contents.get("blob"))._replace(uri=uri)
    return ResultPart("other", f"Data of type {kind}, {_bytes(contents.get('blob'))}", uri=uri)


def _picture(mime_type: Any, data: Any) -> ResultPart:
    """Return the picture if it is safe to show and not too large, otherwise a description."""
    kind = _short(mime_type)
    about = f"Picture of type {kind}, {_bytes(data)}"
    if kind not in PICTURES or not isinstance(data, str) or len(data) > LARGEST_PICTURE * 4 // 3 + 4:
        return ResultPart("other", f"{about}; it is not shown")
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return ResultPart("other", f"{about}; it cannot be read")
    if not content.startswith(PICTURES[kind]):
        return ResultPart("other", f"{about}; it is not of that type")
    return ResultPart("picture", about, picture=f"data:{kind};base64,{base64.b64encode(content).decode()}")


def _bytes(data: Any) -> str:
    return f"{len(data) * 3 // 4:,} bytes" if isinstance(data, str) else "empty"


def _text(value: Any) -> str:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else ""


def _short(value: Any, longest: int = 100) -> str:
    text = _text(value)
    return text if len(text) <= longest else f"{text[:longest]}…"


def _indented(value: Any, longest: int) -> str:
    """Return indented JSON, cut soon after `longest` characters; one uncut line if it is nested too deeply."""
    written, length = [], 0
    try:
        for piece in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(value):
            written.append(piece)
            length += len(piece)
            if length > longest:
                break
    except RecursionError:
        return _text(json.dumps(value, ensure_ascii=False))
    return _text("".join(written))
