"""Exposed names of tools and prompts, and fingerprints of definitions. Needs no Django.

Used by the proxy and the pages, which must agree.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from wire.jsonrpc import is_storable

MAX_NAME = 64
LONGEST_NAME = 200  # Characters of a tool or prompt name at its server.
LONGEST_URI = 2048  # Bytes of a resource URI or template, in UTF-8.
DEEPEST = 64
SEPARATOR = "__"

_foreign = re.compile(r"[^A-Za-z0-9_-]")


def exposed_name(alias: str, tool: str) -> str:
    """Return the name agents use for `tool`: `<alias>__<tool>`, at most 64 of [A-Za-z0-9_-].

    Model providers accept nothing else. A name that has to be shortened or cleaned ends in six hex digits of its
    digest, to be unique. Without an alias a valid name is unchanged.
    """
    name = f"{alias}{SEPARATOR}{tool}" if alias else tool
    cleaned = _foreign.sub("_", name)
    if name and cleaned == name and len(name) <= MAX_NAME:
        return name
    mark = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:6]
    return f"{cleaned[: MAX_NAME - 7]}_{mark}"


# Since 2025-11-25 names may have dots (MCP, Tools, Tool Names).
_dotted = re.compile(r"[A-Za-z0-9_.-]+").fullmatch


def dotted_name(alias: str, tool: str) -> str:
    """Return the exposed name for clients that allow dots in names; empty if it is not valid even so."""
    name = f"{alias}{SEPARATOR}{tool}" if alias else tool
    return name if len(name) <= MAX_NAME and _dotted(name) else ""


def fingerprint(definition: Mapping[str, Any]) -> str:
    """Return a digest of a definition without `_meta`, which may differ from one answer to the next."""
    told = {name: value for name, value in definition.items() if name != "_meta"}
    return hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def is_tool_name(value: Any) -> TypeGuard[str]:
    """Return whether this is a usable tool name: a storable string of at most LONGEST_NAME characters."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and is_storable(value)


def is_shallow(value: Any, room: int = DEEPEST) -> bool:
    """Return whether `value` is nested at most `room` levels deep. Deeper ones would overflow the stack."""
    if isinstance(value, dict):
        return room > 0 and all(is_shallow(inner, room - 1) for inner in value.values())
    return not isinstance(value, list) or (room > 0 and all(is_shallow(inner, room - 1) for inner in value))
