"""Protocol Buffers encoding of OTLP, shared by exports of spans and of log records.

Written by hand (docs/decisions/0036-spans-by-hand.md). Needs neither Django nor OpenTelemetry.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

type Value = str | bool | int | float
type Attributes = Mapping[str, Value]

LONG = 1 << 64


def request(resource: Attributes, scope: tuple[str, str], records: Sequence[bytes]) -> bytes:
    """Encode an export request. `scope` is the scope's name and version.

    `records` are spans or log records, each encoded as a field of `ScopeSpans` or `ScopeLogs`.
    """
    # `ExportTraceServiceRequest` and `ExportLogsServiceRequest` use the same field numbers.
    name, version = (text.encode() for text in scope)
    scoped = field(0x0A, field(0x0A, name) + field(0x12, version)) + b"".join(records)
    told = b"".join(field(0x0A, key_value(key, value)) for key, value in resource.items())
    return field(0x0A, field(0x0A, told) + field(0x12, scoped))


def key_value(key: str, value: Value) -> bytes:
    """Encode a `KeyValue`, without its tag."""
    return field(0x0A, key.encode(errors="replace")) + field(0x12, any_value(value))


def any_value(value: Value) -> bytes:
    """Encode an `AnyValue`, without its tag. Integers beyond 64 bits are encoded as text."""
    if isinstance(value, str):
        # A lone surrogate would make the whole message invalid.
        return field(0x0A, value.encode(errors="replace"))
    if isinstance(value, bool):
        return b"\x10%c" % value
    if isinstance(value, float):
        return b"\x21" + struct.pack("<d", value)
    return b"\x18" + varint(value % LONG) if -LONG // 2 <= value < LONG // 2 else field(0x0A, b"%d" % value)


def field(tag: int, data: bytes) -> bytes:
    """Encode a length-delimited field."""
    return b"%c%b%b" % (tag, varint(len(data)), data)


def varint(number: int) -> bytes:
    """Encode a non-negative integer."""
    if number < 0x80:
        return b"%c" % number
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)
