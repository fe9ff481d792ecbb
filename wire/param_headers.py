"""The headers of 2026-07-28 that repeat parts of the body (MCP 2026-07-28, Streamable HTTP, Custom Headers)."""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any

from wire import jsonrpc
from wire.credential import is_header_name

ANNOTATION = "x-mcp-header"
PREFIX = "Mcp-Param-"

_SAFE = re.compile(r"[\x20-\x7E]*").fullmatch
_SENTINEL = re.compile(r"=\?base64\?(.*)\?=").fullmatch
_TYPES = frozenset({"string", "integer", "boolean"})


def encoded(value: str) -> str:
    """`value` as a header may carry it: verbatim where that is safe, else wrapped in base64."""
    if _SAFE(value) and value == value.strip() and not _SENTINEL(value):
        return value
    return f"=?base64?{base64.b64encode(value.encode(errors='replace')).decode()}?="


def decoded(value: str) -> str | None:
    """What `encoded` was given; None when the wrapping is broken."""
    wrapped = _SENTINEL(value)
    if wrapped is None:
        return value
    try:
        content = base64.b64decode(wrapped[1], validate=True)
        text = content.decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    # Only the canonical form counts, or two readers could disagree.
    return text if base64.b64encode(content).decode() == wrapped[1] else None


def for_arguments(schema: Any, arguments: Any) -> dict[str, str]:
    """The Mcp-Param headers of a call with these arguments to a tool of this schema."""
    headers = {}
    for path, annotated in _annotated(schema):
        value = _at(arguments, path)
        name = annotated[ANNOTATION]
        if isinstance(value, bool):
            headers[PREFIX + name] = "true" if value else "false"
        elif isinstance(value, int | str):
            headers[PREFIX + name] = encoded(str(value))
    return headers


def is_sound(schema: Any) -> bool:
    """Whether every annotation in the schema is one a client may follow; a tool with another is not shown."""
    names = [annotated for _, annotated in _annotated(schema)]
    spelled = [each[ANNOTATION] for each in names]
    if len(names) != _count(schema) or not all(isinstance(name, str) and is_header_name(name) for name in spelled):
        return False
    if len({name.lower() for name in spelled}) != len(spelled):
        return False
    return all(isinstance(each.get("type"), str) and each["type"] in _TYPES for each in names)


def without_annotations(value: Any) -> Any:
    """The schema as clients see it: the gateway computes the headers anew from the arguments."""
    if isinstance(value, dict):
        return {key: without_annotations(inner) for key, inner in value.items() if key != ANNOTATION}
    return [without_annotations(inner) for inner in value] if isinstance(value, list) else value


def _annotated(schema: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], jsonrpc.Object]]:
    """The annotated properties that a chain of `properties` leads to, with that chain."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict):
        return
    for name, inner in properties.items():
        if isinstance(inner, dict):
            if ANNOTATION in inner:
                yield (*path, name), inner
            yield from _annotated(inner, (*path, name))


def _count(value: Any) -> int:
    if isinstance(value, dict):
        return (ANNOTATION in value) + sum(_count(inner) for inner in value.values())
    return sum(_count(inner) for inner in value) if isinstance(value, list) else 0


def _at(arguments: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        arguments = arguments.get(key) if isinstance(arguments, Mapping) else None
    return arguments
