"""Prepares a held call's arguments for display, as a list of paths and values.

Each value can be compared with the value in the last approved call.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from accounts.models import User
from approvals.models import Hold
from proxy.store.redaction import redact_message
from wire import canonical_json, jsonrpc

MOST_BYTES = 64 * 1024  # Longer arguments are cut.
MOST_LINES = 100  # Further arguments are not shown.
LONGEST_VALUE = 2_000
KINDS = {
    str: "text",
    bool: "yes or no",
    int: "number",
    float: "number",
    list: "list",
    dict: "object",
    type(None): "null",
}
ABSENT = object()


class ArgumentLine(NamedTuple):
    """One argument of a held call: its path, kind and value.

    `before` is the argument's different value in the last approved call, or the text "none" if that call lacked the
    argument. `before` is None if the values are the same or were not compared.
    """

    path: str
    kind: str
    value: str
    before: str | None = None

    @property
    def is_changed(self) -> bool:
        return self.before is not None


class ShownArguments(NamedTuple):
    """The arguments of a call, for one viewer. `text` is the JSON of the arguments.

    If the viewer may not read values, `text` is empty. If the viewer may not even see the names, `is_withheld` is True.
    """

    lines: list[ArgumentLine]
    text: str = ""
    is_cut: bool = False
    is_unreadable: bool = False
    is_withheld: bool = False
    compared: bool = False

    @property
    def changes(self) -> int:
        return sum(line.is_changed for line in self.lines)


def shown_to(viewer: User, hold: Hold, earlier: Hold | None = None) -> ShownArguments:
    """Return the arguments of a hold as `viewer` may see them, compared with the arguments of `earlier`.

    Recognisable secrets are replaced. If the hold does not concern the viewer, no arguments are returned. If the viewer
    may not read values, only names, kinds and sizes are returned.
    """
    if not hold.concerns_viewer:
        return ShownArguments([], is_withheld=True)
    arguments = hold.arguments
    if arguments is None:
        return ShownArguments([], is_unreadable=True)
    if not hold.shows_arguments_to(viewer):
        first, is_cut = _first(arguments)
        return ShownArguments([ArgumentLine(path, *_outline(value)) for path, value in first], is_cut=is_cut)
    return _compared(arguments, earlier.arguments if earlier is not None else None)


def _compared(arguments: dict[str, Any], before: dict[str, Any] | None) -> ShownArguments:
    redacted, cut = _redacted(arguments)
    old, _ = _redacted(before or {})
    raw, raw_old = dict(_leaves(arguments)), dict(_leaves(before or {}))
    shown_old = dict(_leaves(old))
    lines = []
    first, has_more = _first(redacted)
    for path, value in first:
        differs = before is not None and not _is_same(raw.get(path, ABSENT), raw_old.get(path, ABSENT))
        earlier = _text(shown_old[path]) if path in shown_old else "none"
        lines.append(ArgumentLine(path, KINDS.get(type(value), ""), _text(value), earlier if differs else None))
    gone = [path for path in shown_old if path not in raw]
    lines += [ArgumentLine(path, "", "none", _text(shown_old[path])) for path in gone[:MOST_LINES]]
    text = json.dumps(redacted, indent=2, ensure_ascii=False)
    return ShownArguments(lines, text, cut or has_more or len(gone) > MOST_LINES, compared=before is not None)


def _is_same(value: Any, other: Any) -> bool:
    """True if two values are the same for the digest of a call: 1 and 1.0 are the same, but 1 and true are not."""
    return value is other or (value == other and canonical_json.canonical(value) == canonical_json.canonical(other))


def _redacted(arguments: dict[str, Any]) -> tuple[Any, bool]:
    """Return a pair: the arguments without recognisable secrets, and whether a part was left out."""
    found = redact_message(jsonrpc.dumps(arguments), MOST_BYTES)
    assert found is not None  # None only for an empty message; this message is never empty.
    value = json.loads(found.json)
    return (value if isinstance(value, dict) else {"arguments": value}), found.cut


def _first(value: Any) -> tuple[list[tuple[str, Any]], bool]:
    """Return a pair: the first MOST_LINES values with their paths, and whether there are more values."""
    leaves = list(islice(_leaves(value), MOST_LINES + 1))
    return leaves[:MOST_LINES], len(leaves) > MOST_LINES


def _leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield each value with its path, such as `metadata.ticket`. A list or an empty object counts as one value."""
    pending = _members(value) if isinstance(value, dict) else []
    while pending:
        path, each = pending.pop()
        if isinstance(each, dict) and each:
            pending += _members(each, f"{path}.")
        else:
            yield path, each


def _members(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return an object's members with their paths, the last member first, because `_leaves` pops from the end."""
    return [(f"{prefix}{name}", each) for name, each in reversed(value.items())]


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]} …"


def _outline(value: Any) -> tuple[str, str]:
    """Return the kind of a value, and a text to show instead: the size of a string or list, otherwise "hidden"."""
    if isinstance(value, str | list):
        return KINDS[type(value)], f"{len(value):,} {'characters' if isinstance(value, str) else 'items'}"
    return KINDS.get(type(value), ""), "hidden"
