"""What servers say of their tools, prompts, resources and templates: read, judged, compared and kept as text.

A definition is kept as the JSON text its server sent, so that nothing in it changes its value on the way to a client:
neither the spelling of a number nor a key that is there twice. The proxy and the pages both read definitions here.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, NamedTuple

from wire import jsonrpc, stateless
from wire.jsonrpc import Object, is_storable, storable
from wire.tool_names import (
    LONGEST_URI,
    exposed_name,
    fingerprint,
    is_shallow,
    is_tool_name,
)

TOOL, PROMPT, RESOURCE, TEMPLATE = "tool", "prompt", "resource", "template"


class Catalogue(NamedTuple):
    """How a kind of feature is listed: the method, the member of its result, and what names one of them."""

    method: str
    member: str
    key: str


CATALOGUES = {
    TOOL: Catalogue("tools/list", "tools", "name"),
    PROMPT: Catalogue("prompts/list", "prompts", "name"),
    RESOURCE: Catalogue("resources/list", "resources", "uri"),
    TEMPLATE: Catalogue("resources/templates/list", "resourceTemplates", "uriTemplate"),
}


class Definition(NamedTuple):
    """One item of a list: its value, and the text it came in."""

    value: Object
    text: str

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "Definition":
        """The definition of a value that came in no text."""
        return cls({**value}, json.dumps(value, separators=(",", ":")))


def read_items(text: bytes, member: str, items: list[Any]) -> list[Definition]:
    """The items of a list's answer, which were read as `items`, each with its own text; the objects among them."""
    texts = _item_texts(text.decode(), member)
    if len(texts) != len(items):  # Two members of the same name, of which readers take the last; so do we.
        texts = [json.dumps(item, separators=(",", ":")) for item in items]
    return [Definition(item, own) for item, own in zip(items, texts, strict=True) if isinstance(item, dict)]


def usable(kind: str, definitions: Iterable[Definition], *, annotated: bool = True) -> list[Definition]:
    """Those that can be used: clients are offered them, pages show them, requests reach them. The first of a name.

    No other may be, since nobody could switch it off or ask for it. `annotated` is False when no tool says which
    arguments are repeated in headers.
    """
    named: dict[str, Definition] = {}
    for definition in definitions:
        if _is_usable(kind, definition.value, annotated=annotated):
            named.setdefault(name_of(kind, definition), definition)
    return list(named.values())


def name_of(kind: str, definition: Definition) -> str:
    """What its server calls it."""
    name: str = definition.value[CATALOGUES[kind].key]
    return name


def _is_usable(kind: str, value: Object, *, annotated: bool) -> bool:
    name = value.get(CATALOGUES[kind].key)
    if kind in (TOOL, PROMPT):
        if not is_tool_name(name):
            return False
    elif not isinstance(name, str) or not name or not is_storable(name) or len(name.encode()) > LONGEST_URI:
        return False
    if not is_shallow(value):
        return False
    return kind != TOOL or not annotated or stateless.has_sound_annotations(value.get("inputSchema"))


def rows(kind: str, alias: str, definitions: Iterable[Definition]) -> list[Object]:
    """What the database is told of a complete list: the argument of its function `gateways_learn`."""
    return [
        {"name": name_of(kind, each), "position": place, **row(kind, alias, each)}
        for place, each in enumerate(usable(kind, definitions))
    ]


def row(kind: str, alias: str, definition: Definition) -> Object:
    """What a row holds of a definition, which may hold anything anywhere."""
    value = definition.value
    annotations, schema, description = (value.get(key) for key in ("annotations", "inputSchema", "description"))
    annotations = annotations if isinstance(annotations, dict) else {}
    titles = (value.get("title"), annotations.get("title"), value.get("name") if kind in (RESOURCE, TEMPLATE) else None)
    shown = shown_text(kind, alias, definition)
    return {
        "exposed_name": exposed(kind, alias, name_of(kind, definition)),
        "title": next((storable(title)[:200] for title in titles if isinstance(title, str)), ""),
        "description": storable(description) if isinstance(description, str) else "",
        "input_schema": storable(schema) if isinstance(schema, dict) else {},
        "annotations": storable(annotations),
        "hash": digest(definition),
        "text": definition.text,
        "shown": None if shown == definition.text else shown,
        "hidden": " ".join(hidden_characters(definition)),
    }


def exposed(kind: str, alias: str, name: str) -> str:
    """What clients call it; the address of a resource is mapped when it is given out, by what else the gateway has."""
    return exposed_name(alias, name) if kind in (TOOL, PROMPT) else name


def digest(definition: Definition) -> str:
    """A digest of what it is and takes; `_meta` may differ from one answer to the next and is left out.

    A text with the same key twice means one thing to one reader and another to the next: then all of it counts.
    """
    if _has_twins(definition.text):
        return hashlib.sha256(definition.text.encode()).hexdigest()
    return fingerprint(definition.value)


def hidden_characters(definition: Definition) -> list[str]:
    """The invisible and direction-changing characters in any text of it, as U+202E RIGHT-TO-LEFT OVERRIDE."""
    found = {text[at] for text in _texts(definition.value) for at in hidden_places(text)}
    return [f"U+{ord(char):04X} {unicodedata.name(char, '')}".strip() for char in sorted(found)]


# Control and format characters (the bidirectional, zero-width and tag characters are among these), and what else no
# reader sees: line and paragraph separators, fillers, and the variation selectors that can carry bytes.
_hidden = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5"
    "\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_JOINERS = "\u200c\u200d"


def hidden_places(text: str) -> Iterator[int]:
    """Where such characters stand. A joiner between two characters beyond ASCII makes one emoji or letter of them."""
    for match in _hidden.finditer(text):
        at = match.start()
        around = text[max(at - 1, 0) : at], text[at + 1 : at + 2]
        if match[0] not in _JOINERS or any(not char or char.isascii() or _hidden.match(char) for char in around):
            yield at


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def shown_text(kind: str, alias: str, definition: Definition) -> str:
    """The definition as clients see it: everything the server said, less what the gateway does or lacks itself."""
    value, text = definition
    if kind not in (TOOL, PROMPT):
        return text
    changed = False
    if kind == TOOL and stateless.ANNOTATION in text and "inputSchema" in value:
        value = {**value, "inputSchema": stateless.without_annotations(value["inputSchema"])}
        changed = True
    name = value["name"]
    shown = exposed_name(alias, name)
    if changed:
        return json.dumps({**value, "name": shown}, separators=(",", ":"))
    return text if shown == name else renamed(text, shown)


def renamed(text: str, name: str) -> str:
    """Return the text of an object with another `name`; every other byte stays."""
    spelled = json.dumps(name)
    for start, end in reversed([span for key, span in _members(text, 0) if key == "name"]):
        text = text[:start] + spelled + text[end:]
    return text


# Where values stand in a JSON text. It was read before, so it is well formed.

_scan = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str).scan_once  # type: ignore[attr-defined]
_BLANK = " \t\n\r"


def _item_texts(text: str, member: str) -> list[str]:
    for path in ("result", member):
        spans = [span for key, span in _members(text, 0) if key == path]
        if not spans:
            return []
        text = text[slice(*spans[-1])]
    return [text[start:end] for start, end in _elements(text)]


def _members(text: str, start: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """The members of the object that begins at `start`, with where their values stand."""
    at = _past(text, start)
    if text[at : at + 1] != "{":
        return
    at = _past(text, at + 1)
    while text[at] != "}":
        key, at = scanstring(text, at + 1, True)
        at = _past(text, _past(text, at) + 1)
        _, end = _scan(text, at)
        yield key, (at, end)
        at = _past(text, end)
        if text[at] == ",":
            at = _past(text, at + 1)


def _elements(text: str) -> Iterator[tuple[int, int]]:
    at = _past(text, 0)
    if text[at : at + 1] != "[":
        return
    at = _past(text, at + 1)
    while text[at] != "]":
        _, end = _scan(text, at)
        yield at, end
        at = _past(text, end)
        if text[at] == ",":
            at = _past(text, at + 1)


def _past(text: str, at: int) -> int:
    while text[at : at + 1] in _BLANK and at < len(text):
        at += 1
    return at


class _Twins(Exception):
    """The same key is there twice."""


def _has_twins(text: str) -> bool:
    try:
        json.loads(text, object_pairs_hook=_unique, parse_float=str, parse_int=str)
    except _Twins:
        return True
    return False


def _unique(pairs: list[tuple[str, Any]]) -> Object:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Twins
    return found


def definition_in(text: str) -> Definition:
    """The definition that is kept as this text."""
    return Definition(jsonrpc.loads(text.encode()), text)
