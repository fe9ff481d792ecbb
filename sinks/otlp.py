"""Encode rows as OpenTelemetry log records (opentelemetry.proto.logs.v1), for OTLP/HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import orjson

from wire import versions
from wire.otlp import Attributes, Value, any_value, field, key_value, request, varint

if TYPE_CHECKING:
    from sinks.receivers import LogLine

SCOPE = "gateway_admin", versions.VERSION
PATH = "/v1/logs"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# SeverityNumber and text, by syslog severity.
SEVERITIES = {3: (17, b"error"), 4: (13, b"warning"), 5: (10, b"notice"), 6: (9, b"info")}
OURS = {
    *("content-type", "content-encoding", "content-length", "transfer-encoding", "connection", "host", "user-agent"),
    *("accept-encoding", "expect", "te", "trailer", "upgrade"),
}

# Possessive quantifiers: no backtracking in texts of megabytes.
_TEXT = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_text = re.compile(_TEXT).match
_parts = re.compile(_TEXT + rb"|[{}\[\],]").finditer
_trace_id = re.compile(r"[0-9a-f]{32}").fullmatch
_header_name = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_header_value = re.compile(r"[\t -~]*").fullmatch


def url_of(address: str) -> str:
    """Return the URL for logs: the address, with the default path added if it has no path."""
    parts = urlsplit(address)
    return address if parts.path.strip("/") else parts._replace(path=PATH).geturl()


def headers_of(secret: str) -> dict[str, str]:
    """Parse headers in the format of OTEL_EXPORTER_OTLP_HEADERS: `name=value` pairs, comma-separated, percent-encoded.

    Raises ValueError with a message for people.
    """
    headers: dict[str, str] = {}
    for pair in filter(None, map(str.strip, secret.split(","))):
        name, equals, value = pair.partition("=")
        name, value = name.strip().lower(), unquote(value.strip())
        if not equals or not _header_name(name) or not _header_value(value) or name in OURS:
            raise ValueError(
                "Write headers like Authorization=Bearer%20..., separated by commas. Leave out headers that "
                "the gateway sets."
            )
        headers[name] = value
    return headers


def of_lines(lines: Sequence[LogLine], resource: Attributes) -> bytes:
    """Return an `ExportLogsServiceRequest` with a record for each line."""
    return request(resource, SCOPE, [record(line) for line in lines])


def record(line: LogLine) -> bytes:
    """Encode the line as a `LogRecord` for `ScopeLogs`.

    A valid trace id becomes the record's trace id. All other fields that are not null become attributes.
    """
    told = dict(fields_of(line.text))
    trace_id = str(told.pop("trace_id", None) or "")
    number, text = SEVERITIES[line.severity]
    at = max((line.at - EPOCH) // timedelta(microseconds=1), 0) * 1000
    moment = at.to_bytes(8, "little")
    attributes = [field(0x32, key_value(name, value)) for name, value in told.items() if value is not None]
    if trace_id and not _trace_id(trace_id):
        attributes.append(field(0x32, key_value("trace_id", trace_id)))
    message = b"".join(
        (
            b"\x09%b" % moment,
            b"\x10%b" % varint(number),
            field(0x1A, text),
            field(0x2A, any_value(_sentence(line, told))),
            *attributes,
            field(0x4A, bytes.fromhex(trace_id)) if _trace_id(trace_id) else b"",
            b"\x59%b" % moment,
            field(0x62, f"gateway_admin.{line.log}".encode()),
        )
    )
    return field(0x12, message)


def fields_of(text: bytes) -> Iterator[tuple[str, Value | None]]:
    """Yield name and value of each field of a line. Nested values are yielded as JSON text, null as None."""
    at = 1
    while name := _text(text, at):
        begin = name.end() + 1
        end = _end_of(text, begin)
        raw = text[begin:end]
        yield orjson.loads(name[0]), raw.decode() if raw[:1] in (b"{", b"[") else orjson.loads(raw)
        at = end + 1


def _end_of(text: bytes, begin: int) -> int:
    """Return the end index of the JSON value that begins at index `begin` of `text`."""
    depth = 0
    for part in _parts(text, begin):
        sign = part[0][:1]
        depth += (sign in b"{[") - (sign in b"}]")
        if depth <= 0:
            return part.end() if sign in b'"}]' and depth == 0 else part.start()
    raise ValueError("a value without an end")


def _sentence(line: LogLine, told: Mapping[str, Any]) -> str:
    """Return the sentence that log viewers show for this line. The sentence is the body of the OTLP record."""
    match line.log:
        case "call":
            said = (told.get("method"), told.get("feature_name"), told.get("outcome"))
        case "event":
            said = (told.get("action"), told.get("target"), None)
        case "checkpoint":
            said = ("checkpoint", told.get("number"), None)
        case _:
            said = (told.get("message"), None, None)
    return " ".join(str(each) for each in said if each not in (None, ""))


def rejected(media_type: str, body: bytes) -> int:
    """Return the number of records that the receiver rejected although it acknowledged the request.

    The number is read from `ExportLogsPartialSuccess` in the response. It is 0 if the response does not state it.
    """
    try:
        if media_type == "application/json":
            partial = (orjson.loads(body) or {}).get("partialSuccess") or {}
            return int(partial.get("rejectedLogRecords") or 0)
        partial = _fields(body).get(1, b"")
        number = _fields(partial).get(1, 0) if isinstance(partial, bytes) else 0
        return number if isinstance(number, int) else 0
    except (ValueError, IndexError, AttributeError, TypeError):
        return 0  # The body is unreadable, but the status acknowledges the records.


def _fields(message: bytes) -> dict[int, int | bytes]:
    """Return the last value of each field of a protobuf message, by field number.

    Raises IndexError or ValueError if the message is malformed.
    """
    found: dict[int, int | bytes] = {}
    at = 0
    while at < len(message):
        tag, at = _varint_at(message, at)
        value: int | bytes
        match tag & 7:
            case 0:
                value, at = _varint_at(message, at)
            case 2:
                length, at = _varint_at(message, at)
                value, at = message[at : at + length], at + length
            case _:
                raise ValueError(tag)
        found[tag >> 3] = value
    return found


def _varint_at(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, at
        if shift > 63:
            raise ValueError("a varint of more than 64 bits")
