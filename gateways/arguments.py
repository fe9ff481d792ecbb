"""Render the arguments of a tool as table rows, from the JSON Schema of its definition."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

DEEPEST = 4  # Nesting level; below it only the type is shown.
MOST_ROWS = 80  # The page of the definition shows the rest.
MOST_VALUES = 12
LONGEST = 400  # Characters of a description.
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
    """One argument, or a member of one; `depth` is its nesting level."""

    name: str
    type: str
    is_required: bool
    description: str
    depth: int
    values: str
    more: str


def arguments(schema: Any) -> list[Argument]:
    """Return the arguments named by a tool's input schema, each followed by its members.

    Schemas come from servers: invalid ones are treated as empty, and recursion ends at DEEPEST.
    """
    return list(islice(_members(schema, schema, 0), MOST_ROWS))


def _members(schema: Any, whole: Any, depth: int) -> Iterator[Argument]:
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
            type=_type(said, whole),
            is_required=name in names,
            description=_text(said.get("description")),
            depth=depth,
            values=_values(said),
            more=", ".join(_limits(said)),
        )
        inner = said.get("items") if isinstance(said.get("items"), dict) else said
        yield from _members(inner, whole, depth + 1)


def resolved(schema: Any, whole: Any) -> dict[str, Any]:
    """Return the schema, following a reference into `whole`; {} if it is not a schema."""
    reference = schema.get("$ref") if isinstance(schema, dict) else None
    if isinstance(reference, str) and reference.startswith("#/"):
        found = whole
        for step in reference[2:].split("/"):
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
        return {**found, **{key: value for key, value in schema.items() if key != "$ref"}} if _is(found) else {}
    return schema if _is(schema) else {}


def _is(schema: Any) -> bool:
    return isinstance(schema, dict)


def _type(schema: dict[str, Any], whole: Any, depth: int = 0) -> str:
    for several in ("anyOf", "oneOf"):
        if isinstance(schema.get(several), list) and depth < DEEPEST:
            types = [_type(resolved(one, whole), whole, depth + 1) for one in schema[several][:MOST_VALUES]]
            return " or ".join(dict.fromkeys(one for one in types if one))
    told = schema.get("type")
    names = [one for one in told if isinstance(one, str)] if isinstance(told, list) else [told]
    words = " or ".join(str(one)[:40] for one in names[:MOST_VALUES] if isinstance(one, str))
    if words == "array" and depth < DEEPEST:
        of = _type(resolved(schema.get("items"), whole), whole, depth + 1)
        return f"array of {of}" if of else words
    return words


def _values(schema: dict[str, Any]) -> str:
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
        yield f"usually {_plain(schema['default'])}"


def _plain(value: Any) -> str:
    return _text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 80)


def _text(value: Any, longest: int = LONGEST) -> str:
    text = value if isinstance(value, str) else ""
    text = text.encode(errors="backslashreplace").decode()  # Lone surrogates cannot be encoded.
    return text if len(text) <= longest else f"{text[:longest]}…"
