"""Definitions of tools, prompts, resources and templates: parse, validate, compare and store them.

A definition is stored as the JSON text that the server sent. So clients get numbers and duplicate keys unchanged.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard

from wire import jsonrpc, mcp
from wire.jsonrpc import Object, is_shallow, is_storable, storable
from wire.mcp import PROMPT, RESOURCE, TEMPLATE, TOOL


class ListMethod(NamedTuple):
    """The method that lists a kind of feature.

    `member` says which field of the method's result has the list, for example `tools`. `key` says which field of each
    item has the item's name or URI.
    """

    method: str
    member: str
    key: str


CATALOGUES = {
    TOOL: ListMethod("tools/list", "tools", "name"),
    PROMPT: ListMethod("prompts/list", "prompts", "name"),
    RESOURCE: ListMethod("resources/list", "resources", "uri"),
    TEMPLATE: ListMethod("resources/templates/list", "resourceTemplates", "uriTemplate"),
}


class Definition(NamedTuple):
    """One item of a list: its parsed value and its original JSON text."""

    value: Object
    text: str

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "Definition":
        """Make a definition from a value without original JSON text. The text is made from the value."""
        return cls({**value}, json.dumps(value, separators=(",", ":")))


def read_items(text: bytes, member: str, items: list[Any]) -> list[Definition]:
    """Return a Definition for each object in the list `items`, which was parsed from `member` of the answer `text`."""
    texts = _item_texts(text.decode(), member)
    if len(texts) != len(items):  # A member is duplicated; the parser has used the last one.
        texts = [json.dumps(item, separators=(",", ":")) for item in items]
    return [Definition(item, own) for item, own in zip(items, texts, strict=True) if isinstance(item, dict)]


def usable(kind: str, definitions: Iterable[Definition], *, annotated: bool = True) -> list[Definition]:
    """Return the valid definitions, and only the first for each name. Clients and pages get these definitions.

    Pass `annotated=False` if the definitions have no `x-mcp-header` annotations, or only annotations that were checked
    before.
    """
    named: dict[str, Definition] = {}
    for definition in definitions:
        if _is_usable(kind, definition.value, annotated=annotated):  # Nobody could disable or call the others.
            named.setdefault(name_of(kind, definition), definition)
    return list(named.values())


def name_of(kind: str, definition: Definition) -> str:
    """Return the name or URI that the server uses for this feature."""
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
    return kind != TOOL or not annotated or mcp.has_sound_annotations(value.get("inputSchema"))


def rows(kind: str, alias: str, definitions: Iterable[Definition]) -> list[Object]:
    """Return the usable definitions of a complete list as rows for the database function `gateways_learn`."""
    return [
        {"name": name_of(kind, each), "position": place, **row(kind, alias, each)}
        for place, each in enumerate(usable(kind, definitions))
    ]


def row(kind: str, alias: str, definition: Definition) -> Object:
    """Return the database columns of a definition. The definition is untrusted: its members may have any type."""
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
    """Return the name that clients use for a tool or prompt. Return a URI unchanged: the proxy rewrites it later."""
    return exposed_name(alias, name) if kind in (TOOL, PROMPT) else name


def digest(definition: Definition) -> str:
    """Return a digest of the definition without `_meta`.

    If the definition has duplicate keys, return a digest of its whole text.
    """
    if _has_twins(definition.text):  # Parsers read duplicate keys differently.
        return hashlib.sha256(definition.text.encode()).hexdigest()
    return fingerprint(definition.value)


def hidden_characters(definition: Definition) -> list[str]:
    """Return the definition's invisible and direction-changing characters, as in "U+202E RIGHT-TO-LEFT OVERRIDE"."""
    found = {text[at] for text in _texts(definition.value) for at in hidden_places(text)}
    return [f"U+{ord(char):04X} {unicodedata.name(char, '')}".strip() for char in sorted(found)]


# Control and format characters (including bidirectional, zero-width and tag characters), and other invisible
# characters: line and paragraph separators, fillers, and the variation selectors that can encode hidden bytes.
_hidden = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5"
    "\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_JOINERS = "\u200c\u200d"


def hidden_places(text: str) -> Iterator[int]:
    """Yield the positions of hidden characters. Joiners between non-ASCII characters, as in emoji, are not hidden."""
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
    """Return the definition as clients see it: with the exposed name and without `x-mcp-header` annotations."""
    value, text = definition
    if kind not in (TOOL, PROMPT):
        return text
    changed = False
    if kind == TOOL and mcp.ANNOTATION in text and "inputSchema" in value:
        value = {**value, "inputSchema": mcp.without_annotations(value["inputSchema"])}
        changed = True
    name = value["name"]
    shown = exposed_name(alias, name)
    if changed:
        return json.dumps({**value, "name": shown}, separators=(",", ":"))
    return text if shown == name else restated(text, {"name": shown})


def restated(text: str, members: Mapping[str, str]) -> str:
    """Return the JSON object `text` with `members` set to new values. The rest of the text does not change."""
    for name, value in members.items():
        spelled = json.dumps(value)
        spans = [(begin, end) for key, begin, end in jsonrpc.members(text) if key == name]
        for start, end in reversed(spans):
            text = text[:start] + spelled + text[end:]
        if not spans:  # Insert the member. The object has others, such as its name, so a comma follows.
            start = text.index("{") + 1
            text = f"{text[:start]}{json.dumps(name)}:{spelled},{text[start:]}"
    return text


def _item_texts(text: str, member: str) -> list[str]:
    for path in ("result", member):
        spans = [(begin, end) for key, begin, end in jsonrpc.members(text) if key == path]
        if not spans:
            return []
        text = text[slice(*spans[-1])]
    return [text[begin:end] for begin, end in jsonrpc.elements(text)]


class _Twins(Exception):
    """An object has a duplicate key."""


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
    """Parse the stored text of a definition."""
    return Definition(jsonrpc.loads(text.encode()), text)


# Exposed names of tools and prompts, and fingerprints of definitions. Needs no Django.
#
# The proxy and the pages use the same functions, so that both show the same names.

MAX_NAME = 64  # Model providers do not accept longer names.
LONGEST_NAME = 200  # Characters of a tool or prompt name at its server.
LONGEST_URI = 2048  # Bytes of a resource URI or template, in UTF-8.
SEPARATOR = "__"

_foreign = re.compile(r"[^A-Za-z0-9_-]")


def exposed_name(alias: str, tool: str) -> str:
    """Return the name agents use for `tool`: `<alias>__<tool>`, or the tool's name if `alias` is empty.

    The result has at most MAX_NAME characters of [A-Za-z0-9_-]. If the name has to be shortened or cleaned, the result
    ends in six hex digits of a digest of the original name.
    """
    name = f"{alias}{SEPARATOR}{tool}" if alias else tool
    cleaned = _foreign.sub("_", name)
    if name and cleaned == name and len(name) <= MAX_NAME:
        return name
    mark = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:6]
    return f"{cleaned[: MAX_NAME - 7]}_{mark}"


# Since MCP 2025-11-25, names may have dots (specification, Tools, Tool Names).
_dotted = re.compile(r"[A-Za-z0-9_.-]+").fullmatch


def dotted_name(alias: str, tool: str) -> str:
    """Return the exposed name for clients that allow dots in names; empty if it is too long or otherwise invalid."""
    name = f"{alias}{SEPARATOR}{tool}" if alias else tool
    return name if len(name) <= MAX_NAME and _dotted(name) else ""


def fingerprint(definition: Mapping[str, Any]) -> str:
    """Return a digest of a definition. `_meta` is left out, because it may differ from one answer to the next."""
    told = {name: value for name, value in definition.items() if name != "_meta"}
    return hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def is_tool_name(value: Any) -> TypeGuard[str]:
    """Return whether this is a usable tool name: a storable string of at most LONGEST_NAME characters."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and is_storable(value)


# Check whether a call still fits a tool whose changed definition has not been approved yet.
#
# Schemas come from servers and are untrusted: a validation takes a bounded number of steps, fetches nothing and runs no
# regular expression. If the validation cannot decide within these bounds, the arguments are not accepted.

MOST_STEPS = 20_000
LONGEST_UNIQUE = 1_000

type Rule = Callable[[Any, Any, Any, Any], Any]


class _CannotTell(Exception):
    """The validation needs too many steps, or a check that is too costly, such as `pattern`."""


def still_accepts(approved: str, offered: str, arguments: object) -> bool:
    """Return whether these arguments fit the schema in `offered`; always True if `approved` has the same schema.

    `approved` and `offered` are JSON texts of definitions.
    """
    before, now = (jsonrpc.loads(text.encode()).get("inputSchema") for text in (approved, offered))
    if before == now:
        return True  # Only the description or annotations changed.
    if not isinstance(now, dict):
        return False
    try:
        return bool(_validator(now).is_valid({} if arguments is None else arguments))
    except Exception:  # noqa: BLE001 - a broken schema accepts nothing
        return False


def _validator(schema: Any) -> Any:
    # Imported here, because the import takes 60 ms and is rarely needed.
    from jsonschema import Draft202012Validator, validators  # type: ignore[import-untyped]  # noqa: PLC0415
    from referencing import Registry  # noqa: PLC0415

    steps = 0

    def counted(rule: Rule) -> Rule:
        def count(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > MOST_STEPS:
                raise _CannotTell
            return rule(validator, value, instance, schema)

        return count

    def refuse(validator: Any, value: Any, instance: Any, schema: Any) -> None:
        raise _CannotTell

    def bounded_unique(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        if isinstance(instance, list) and len(instance) > LONGEST_UNIQUE:
            raise _CannotTell
        return Draft202012Validator.VALIDATORS["uniqueItems"](validator, value, instance, schema)

    bounded = {name: counted(rule) for name, rule in Draft202012Validator.VALIDATORS.items()}
    bounded |= dict.fromkeys(("pattern", "patternProperties"), refuse)
    bounded["uniqueItems"] = counted(bounded_unique)
    # An empty registry: nothing is fetched.
    kind: Any = validators.extend(Draft202012Validator, bounded)
    return kind(schema, registry=Registry())
