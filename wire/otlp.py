"""OTLP in the binary form of Protocol Buffers: what an export of spans and one of log records have in common.

By hand, since both are made of few kinds of fields (docs/decisions/0036-spans-by-hand.md). Needs no Django, and nothing
of OpenTelemetry's.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

type Value = str | bool | int | float
type Attributes = Mapping[str, Value]

LONG = 1 << 64


def request(resource: Attributes, scope: tuple[str, str], records: Sequence[bytes]) -> bytes:
    """An export of these spans or log records, each a field of its scope; `scope` is name and version of their maker.

    `ExportTraceServiceRequest` and `ExportLogsServiceRequest` have the same numbers for the same things.
    """
    name, version = (text.encode() for text in scope)
    scoped = field(0x0A, field(0x0A, name) + field(0x12, version)) + b"".join(records)
    told = b"".join(field(0x0A, key_value(key, value)) for key, value in resource.items())
    return field(0x0A, field(0x0A, told) + field(0x12, scoped))


def key_value(key: str, value: Value) -> bytes:
    """A `KeyValue`, without its tag."""
    return field(0x0A, key.encode(errors="replace")) + field(0x12, any_value(value))


def any_value(value: Value) -> bytes:
    """An `AnyValue`, without its tag; a whole number that no field holds is a text."""
    if isinstance(value, str):
        # Half a character in a text would make the whole message none that can be read.
        return field(0x0A, value.encode(errors="replace"))
    if isinstance(value, bool):
        return b"\x10%c" % value
    if isinstance(value, float):
        return b"\x21" + struct.pack("<d", value)
    return b"\x18" + varint(value % LONG) if -LONG // 2 <= value < LONG // 2 else field(0x0A, b"%d" % value)


def field(tag: int, data: bytes) -> bytes:
    """A field of bytes: its tag, its length, itself."""
    return b"%c%b%b" % (tag, varint(len(data)), data)


def varint(number: int) -> bytes:
    """A whole number that is not negative."""
    if number < 0x80:
        return b"%c" % number
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)
