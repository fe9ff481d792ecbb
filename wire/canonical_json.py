"""The canonical text of a JSON value (RFC 8785): equal values have equal texts, and so equal digests.

Numbers beyond 2^53, which RFC 8785 does not cover, are written exactly.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import orjson

from wire.jsonrpc import is_storable


class Ambiguous(ValueError):
    """An object in this JSON text has a duplicate or unstorable key, or is nested too deeply to check."""


def digest(value: Any) -> bytes:
    """Return the SHA-256 digest of the canonical text of `value`."""
    return hashlib.sha256(canonical(value)).digest()


def canonical(value: Any) -> bytes:
    """Return the canonical text of a value that `wire.jsonrpc.loads` returned."""
    pieces: list[bytes] = []
    # A stack instead of recursion, because a message may be nested deeply. Items that are bytes are finished text.
    pending: list[Any] = [value]
    while pending:
        match pending.pop():
            case bytes() as text:
                pieces.append(text)
            case dict() as members:
                pending.extend(reversed([*_members(members)]))
            case list() as items:
                pending.extend(reversed([*_items(items)]))
            case other:
                pieces.append(_scalar(other))
    return b"".join(pieces)


def _members(members: dict[str, Any]) -> Iterator[Any]:
    yield b"{"
    for number, name in enumerate(sorted(members, key=_utf16)):
        yield b",%b:" % _string(name) if number else b"%b:" % _string(name)
        yield members[name]
    yield b"}"


def _items(items: list[Any]) -> Iterator[Any]:
    yield b"["
    for number, item in enumerate(items):
        if number:
            yield b","
        yield item
    yield b"]"


def _utf16(name: str) -> bytes:
    """Return the sort key of a name: its UTF-16 code units (RFC 8785)."""
    return name.encode("utf-16-be", "surrogatepass")


def _scalar(value: Any) -> bytes:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, bool) or value is None:
        return orjson.dumps(value)
    return _number(value).encode()


def _string(text: str) -> bytes:
    try:
        return orjson.dumps(text)
    except TypeError:  # A lone surrogate.
        return json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _number(value: float) -> str:
    """Return the text of a number: an integer with all its digits, any other number as ECMAScript writes it."""
    if isinstance(value, int) or value == int(value):
        return str(int(value))
    sign, digits, point = _decimal(value)
    if -6 <= point - 1 < 0:
        return f"{sign}0.{'0' * -point}{digits}"
    if point - 1 < 0:
        mantissa = digits[0] + (f".{digits[1:]}" if len(digits) > 1 else "")
        return f"{sign}{mantissa}e{point - 1}"
    return f"{sign}{digits[:point]}.{digits[point:]}"


def _decimal(value: float) -> tuple[str, str, int]:
    """Return the sign, the shortest significant digits, and the position of the point among these digits.

    The position is 1 for 5.2, and -1 for 0.05.
    """
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    leading = len(whole + fraction) - len(digits)
    return "-" if value < 0 else "", digits.rstrip("0"), len(whole) - leading + int(exponent or 0)


def check_unambiguous(text: bytes) -> None:
    """Raise Ambiguous if an object in this JSON text has a duplicate key: parsers differ in the value they pick.

    Also raise Ambiguous if a key has NUL or a lone surrogate, or if the text is nested too deeply.
    """
    try:
        json.loads(text, object_pairs_hook=_refuse_twice)
    except RecursionError:
        raise Ambiguous("it is nested too deeply") from None


def _refuse_twice(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) < len(pairs):
        raise Ambiguous("an object has a name twice")
    if not all(is_storable(name) for name, _ in pairs):  # An approver could not be shown this name.
        raise Ambiguous("a name has characters that cannot be stored")
