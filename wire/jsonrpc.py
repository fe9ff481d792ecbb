"""JSON-RPC 2.0 as MCP uses it: error codes, limits of JSON texts, and functions to parse messages and build answers."""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, Never

import orjson

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603

UNAUTHORIZED = -32001
UNKNOWN_SESSION = -32001  # The session era defines no code for an unknown session; its SDKs use this code.
FORBIDDEN = -32003

RESOURCE_NOT_FOUND = -32002  # In the session era only.
URL_ELICITATION_REQUIRED = -32042  # In MCP 2025-11-25 only.
# Code of the answer to a request that its client cancelled, taken from the Language Server Protocol.
CANCELLED = -32800

HEADER_MISMATCH = -32020
MISSING_CAPABILITY = -32021
UNSUPPORTED_VERSION = -32022

# Message for requests with a wrong path.
NO_GATEWAY_URL = "This is not a gateway URL. A gateway URL ends in /mcp/ and the slug of the gateway."

# Parsing cannot be interrupted. Parsing this many values takes 0.1 s; a text of `LARGE` bytes hardly ever has more
# values.
MOST_VALUES = 500_000
LARGE = 1 << 20

type Id = int | str
type Object = dict[str, Any]


class MalformedMessage(Exception):
    """The body is not a single JSON-RPC message, or contradicts the headers. `code` and `data` are for the error."""

    def __init__(self, code: int, message: str, data: "Object | None" = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


@dataclass(slots=True)
class Message:
    """One message from a client: a request, a notification or a response."""

    method: str  # Empty in a response.
    id: Id | None  # None in a notification.
    params: Object
    meta: Object = field(default_factory=dict, compare=False)  # The `_meta` of the params; empty if they have none.

    @property
    def is_request(self) -> bool:
        return self.id is not None and self.method != ""


NO_MESSAGE = "Invalid Request: the body must be a JSON-RPC 2.0 message, with jsonrpc, id and method"


def parse_message(body: bytes) -> Message:
    """Parse the one message in `body`. Raises MalformedMessage."""
    try:
        document = loads(body)
    except ValueError:
        raise MalformedMessage(PARSE_ERROR, "Parse error: the body is not JSON, or is nested too deeply") from None
    return _message(document)


def _message(document: Any) -> Message:
    # Conditions instead of `match`: mapping patterns take three times as long, and every call is parsed here.
    if isinstance(document, dict) and document.get("jsonrpc") == "2.0":
        method = document.get("method")
        if method is None:
            if "id" in document and ("result" in document or isinstance(document.get("error"), dict)):
                return Message("", _id(document), {})
        elif isinstance(method, str) and method:
            params = document.get("params", _NONE)
            if isinstance(params, dict):
                meta = params.get("_meta")
                return Message(method, _id(document), params, meta if isinstance(meta, dict) else {})
    elif isinstance(document, list):
        raise MalformedMessage(INVALID_REQUEST, "Batches are not supported: send one message at a time")
    raise MalformedMessage(INVALID_REQUEST, NO_MESSAGE)


_NONE: Object = {}


def _id(document: Object) -> Id | None:
    known = document.get("id")
    if type(known) is int or type(known) is str:
        return known
    if "id" not in document:
        return None
    raise MalformedMessage(INVALID_REQUEST, NO_MESSAGE)


def method_in(body: bytes) -> str:
    """Return the method named in an invalid message. Use it only for the log, never for a decision."""
    try:
        document = loads(body)
    except ValueError:
        return ""
    method = document.get("method") if isinstance(document, dict) else ""
    return method if isinstance(method, str) else ""


# Reading and writing JSON without changing values

# Maps digits to 0 and all other bytes to blanks, to find long numbers with one fast search.
_DIGITS = bytes(48 if 48 <= byte < 58 else 32 for byte in range(256))
_LONG_INTEGER = b"0" * 19
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]").search
_HUGE = re.compile(rb"[0-9][eE]\+?[0-9]{3}|[0-9]{300}").search
# Maximum number of digits of a number that has an exponent or a point and is beyond the range of a float. Longer
# numbers are refused: converting them to integers is slow, and a text may contain many of them.
MOST_DIGITS = 1_000


def loads(text: bytes) -> Any:
    """Parse a JSON text; integers are exact, and lone surrogates are accepted. Raises ValueError."""
    # orjson turns integers beyond 64 bits into floats, and refuses lone surrogates and numbers beyond the range of a
    # float. A text that may contain any of these is parsed by the slower standard library.
    try:
        value = orjson.loads(text)
    except ValueError:
        if not _SURROGATE(text) and not _HUGE(text):
            raise
        return _exactly(text)
    # `find` is faster than `in`, which first tries to use its left operand as an integer, and fails internally.
    return value if text.translate(_DIGITS).find(_LONG_INTEGER) < 0 else _exactly(text)


def _exactly(text: bytes) -> Any:
    try:
        return json.loads(text.decode(), parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float | int:
    if math.isfinite(number := float(text)):
        return number
    exact = Decimal(text)  # A number this large is read as an integer: JSON does not limit integers.
    return int(exact) if exact.adjusted() < MOST_DIGITS else _refuse_constant(text)


def dumps(value: Any) -> bytes:
    """Return the JSON text of a value that `loads` returned."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def result(request_id: Id | None, value: Any) -> bytes:
    return dumps({"jsonrpc": "2.0", "id": request_id, "result": value})


def error(request_id: Id | None, code: int, message: str, data: Any = None) -> bytes:
    """Build an error answer. Members are in the documented order (error before id)."""
    details = {"code": code, "message": message} if data is None else {"code": code, "message": message, "data": data}
    return dumps({"jsonrpc": "2.0", "error": details, "id": request_id})


def readdressed(text: bytes, document: Object, request_id: Id | None) -> bytes:
    """Return the message `text`, which was parsed as `document`, with `request_id` as its id."""
    # Serialise the whole message again, unless its old id is a positive integer whose digits occur once in the text.
    text_with_id = with_sole_id(text, document.get("id"), request_id)
    return dumps({**document, "id": request_id}) if text_with_id is None else text_with_id


def with_sole_id(text: bytes, own_id: object, request_id: Id | None) -> bytes | None:
    """Return `text` with its id `own_id` replaced by `request_id`, without parsing.

    Return None if `own_id` is not a positive integer whose digits occur exactly once in `text`.
    """
    if type(own_id) is not int or own_id <= 0:
        return None
    digits = b"%d" % own_id
    return text.replace(digits, dumps(request_id)) if text.count(digits) == 1 else None


def with_members(
    text: bytes, document: Object, request_id: Id | None, drop: Collection[str], add: Mapping[str, Any]
) -> bytes:
    """Return the answer `text` with a new id. Its result loses the members in `drop` and gets those in `add`.

    No other value changes. In a small answer, the JSON text of the other values does not change either.
    """
    changed = {key: value for key, value in document["result"].items() if key not in drop} | dict(add)
    if len(text) > LARGE:  # Parsing it twice is too slow.
        return dumps({**document, "id": request_id, "result": changed})
    try:
        spelled = text.decode()
        outer = {name: spelled[begin:end] for name, begin, end in members(spelled)}
        result = outer["result"]
        own = [f"{json.dumps(name)}:{result[begin:end]}" for name, begin, end in members(result) if name not in drop]
        own += [f"{json.dumps(name)}:{dumps(value).decode()}" for name, value in add.items()]
        outer |= {"id": dumps(request_id).decode(), "result": "{" + ",".join(own) + "}"}
        body = "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in outer.items()) + "}"
        return body.encode()
    except (ValueError, KeyError, RecursionError):
        return dumps({**document, "id": request_id, "result": changed})


# Find the positions of values in a JSON text that was parsed before, and is therefore well formed. Values are not
# converted: converting long numbers is slow, and very long numbers fail.
_scan = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str).scan_once  # type: ignore[attr-defined]
_blank = re.compile(r"[ \t\n\r]*").match


def members(text: str, start: int = 0) -> Iterator[tuple[str, int, int]]:
    """Yield the name of each member of the object that begins at `start`, and the start and end of its value."""
    at = _past_blanks(text, start)
    if text[at : at + 1] != "{":
        return
    at = _past_blanks(text, at + 1)
    while text[at] != "}":
        name, at = scanstring(text, at + 1, True)
        at = _past_blanks(text, _past_blanks(text, at) + 1)
        end = _scan(text, at)[1]
        yield name, at, end
        at = _past_comma(text, end)


def elements(text: str) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each element of a list."""
    at = _past_blanks(text, 0)
    if text[at : at + 1] != "[":
        return
    at = _past_blanks(text, at + 1)
    while text[at] != "]":
        end = _scan(text, at)[1]
        yield at, end
        at = _past_comma(text, end)


def _past_comma(text: str, at: int) -> int:
    at = _past_blanks(text, at)
    return _past_blanks(text, at + 1) if text[at] == "," else at


def _past_blanks(text: str, at: int) -> int:
    found = _blank(text, at)
    assert found is not None
    return found.end()


# Checks of texts

_PIECE = 1 << 16
_STRUCTURE = b",[{"
_NEITHER_THAT_NOR_QUOTES = bytes(byte for byte in range(256) if byte not in b',[{"')


def has_more_values(text: bytes, most: int) -> bool:
    """Return whether a JSON text has more than `most` values, without parsing it."""
    # A value of two bytes in the text can take a hundred bytes of memory, so even a small text is not parsed here.
    if not may_have_more_values(text, most):
        return False
    # Strings may contain commas and brackets too, so count outside of quotes.
    unescaped = text.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in text else text
    marks = unescaped.translate(None, _NEITHER_THAT_NOR_QUOTES)
    found = inside = 0  # `inside` is 1 if a piece begins inside a string.
    for start in range(0, len(marks), _PIECE):  # In pieces: splitting the whole text takes much memory.
        between_quotes = marks[start : start + _PIECE].split(b'"')
        found += _structure(b"".join(between_quotes[inside::2]))
        if found > most:
            return True
        inside ^= (len(between_quotes) - 1) % 2
    return False


def may_have_more_values(text: bytes, most: int) -> bool:
    """Return whether the text may have more than `most` values. True may be wrong because of text in strings."""
    return _structure(text) > most


# Besides answers above LARGE bytes, the reader process gets answers above MEDIUM bytes that may have more than
# MEDIUM_VALUES values: these are slow to rewrite.
MEDIUM, MEDIUM_VALUES = 1 << 16, 5_000


def is_large(text: bytes) -> bool:
    """Return whether this message is so large that the reader process handles it (wire/reader_process.py)."""
    size = len(text)
    return size > LARGE or (size > MEDIUM and may_have_more_values(text, MEDIUM_VALUES))


def _structure(text: bytes) -> int:
    return len(text) - len(text.translate(None, _STRUCTURE))  # Three calls of `count` take three times as long.


_unstorable = re.compile("[\x00\ud800-\udfff]")


def is_storable(text: str) -> bool:
    """Return whether PostgreSQL can store this text: it has neither NUL nor lone surrogates."""
    return not _unstorable.search(text)


def storable(value: Any) -> Any:
    """Return the value with NUL and lone surrogates replaced, because PostgreSQL cannot store these characters."""
    match value:
        case str():
            return _unstorable.sub("\N{REPLACEMENT CHARACTER}", value)
        case Mapping():
            return {storable(name): storable(inner) for name, inner in value.items()}
        case list():
            return [storable(inner) for inner in value]
    return value


DEEPEST = 64  # Levels of nested objects and lists.


def is_shallow(value: Any, room: int = DEEPEST) -> bool:
    """Return whether `value` is nested at most `room` levels deep. Deeper nesting would overflow the stack."""
    if isinstance(value, dict):
        return room > 0 and all(is_shallow(inner, room - 1) for inner in value.values())
    return not isinstance(value, list) or (room > 0 and all(is_shallow(inner, room - 1) for inner in value))
