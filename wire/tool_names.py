"""How a tool or prompt is called at a gateway, and how definitions differ. Needs no Django.

The proxy and the pages both name tools; they must never differ.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from wire.jsonrpc import is_storable

MAX_NAME = 64
LONGEST_NAME = 200  # Of a tool or prompt, as its server calls it.
LONGEST_URI = 2048  # Of a resource or a template, in UTF-8.
DEEPEST = 64
SEPARATOR = "__"

_foreign = re.compile(r"[^A-Za-z0-9_-]")


def exposed_name(alias: str, tool: str) -> str:
    """The name agents call `tool` by: `<alias>__<tool>`, at most 64 of [A-Za-z0-9_-].

    Model providers accept nothing else. A name that has to be shortened or cleaned ends in six hex
    digits of its own digest, so two of them stay apart. Without an alias a fitting name passes unchanged.
    """
    name = f"{alias}{SEPARATOR}{tool}" if alias else tool
    cleaned = _foreign.sub("_", name)
    if name and cleaned == name and len(name) <= MAX_NAME:
        return name
    mark = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:6]
    return f"{cleaned[: MAX_NAME - 7]}_{mark}"


# From 2025-11-25 on a name may have dots (MCP, Tools, Tool Names).
_dotted = re.compile(r"[A-Za-z0-9_.-]+").fullmatch


def dotted_name(alias: str, tool: str) -> str:
    """Return the name for clients that know dots in names; empty where it would be no valid one either."""
    name = f"{alias}{SEPARATOR}{tool}" if alias else tool
    return name if len(name) <= MAX_NAME and _dotted(name) else ""


def fingerprint(definition: Mapping[str, Any]) -> str:
    """A digest of what a tool is and takes; `_meta` may differ from one answer to the next and is left out."""
    told = {name: value for name, value in definition.items() if name != "_meta"}
    return hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def is_tool_name(value: Any) -> TypeGuard[str]:
    """Whether a server's name for a tool is one that can be kept and called."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and is_storable(value)


def is_shallow(value: Any, room: int = DEEPEST) -> bool:
    """Whether nothing in it lies deeper than any honest schema; walking what does would end the walker."""
    if isinstance(value, dict):
        return room > 0 and all(is_shallow(inner, room - 1) for inner in value.values())
    return not isinstance(value, list) or (room > 0 and all(is_shallow(inner, room - 1) for inner in value))
