"""Redact messages: replace secrets, then cut to size.

Secrets are the values of keys that name one, texts in the form of a credential, and the values passed by the caller.
Other secrets look like any other word and are not recognised.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import orjson

from proxy.store.redaction.known_secrets import KnownSecrets
from proxy.store.redaction.secret_texts import REDACTED, is_measure, names_a_secret, without_secrets

CUT_MARK = "[cut]"
ERROR_TEXT = 300  # Characters of what an error says.

MAX_MESSAGE = 1024 * 1024  # Larger messages are not parsed; only their size is recorded.
MAX_DEPTH = 40
READ_AHEAD = 4096  # Characters read beyond the cut, so that a secret across it is recognised.
CACHED_TEXT = 64  # Texts up to this length are cached: keys and short words repeat.
READ_FACTOR = 2  # At most this many times the limit is read.

# `{"name": "DB_PASSWORD", "value": "x"}`: members that name another one, and members that are named.
_NAMING = frozenset({"name", "key", "id", "label", "field", "variable", "header"})
_NAMED = frozenset({"value", "values", "val", "default", "data", "stringvalue", "string_value"})


class RedactedMessage(NamedTuple):
    """A redacted message as JSON; `cut` if parts are missing."""

    json: bytes
    cut: bool


def redact_message(message: bytes, limit: int, secrets: Iterable[str] = ()) -> RedactedMessage | None:
    """Redact a message, to at most `limit` bytes of JSON. Return None if it is empty."""
    if not message:
        return None
    if len(message) > MAX_MESSAGE:
        return RedactedMessage(orjson.dumps(f"{CUT_MARK} {len(message):,} bytes"), cut=True)
    redactor = _Redactor(limit, KnownSecrets(secrets))
    text = orjson.dumps(redactor.value(_read(message)))
    if len(text) <= limit:
        return RedactedMessage(text, redactor.cut)
    cut = text[:limit].decode(errors="ignore")
    # Quotes and backslashes take more room inside a string than outside.
    while len(text := orjson.dumps(cut)) > max(limit, 2):
        cut = cut[: min(len(cut) - 1, len(cut) * limit // len(text))]
    return RedactedMessage(text, cut=True)


def redact_text(text: str, limit: int, secrets: Iterable[str] = ()) -> str:
    """Redact a text, to at most `limit` characters."""
    redacted = _Redactor(limit - len(CUT_MARK), KnownSecrets(secrets)).text(text, 0)
    return redacted if len(redacted) <= limit else redacted[: limit - len(CUT_MARK)] + CUT_MARK


def error_text(message: bytes, secrets: Iterable[str]) -> str:
    """Return the redacted error text of a message; empty if the message is not an error."""
    if len(message) > MAX_MESSAGE:
        return ""
    try:
        document = orjson.loads(message)
    except ValueError:
        return ""
    return redact_text(_said(document), ERROR_TEXT, secrets).strip()


def _said(document: Any) -> str:
    match document:
        case {"error": {"message": str(message)}}:
            return message
        case {"result": {"isError": True, "content": [*blocks]}}:
            return "\n".join(
                one["text"] for one in blocks if isinstance(one, dict) and isinstance(one.get("text"), str)
            )
    return ""


def redact_for_process(message: bytes, limit: int, secrets: list[str]) -> tuple[dict[str, object], bytes]:
    """Run `redact_message` in a ReaderProcess."""
    redacted = redact_message(message, limit, secrets)
    assert redacted is not None
    return {"cut": redacted.cut}, redacted.json


def error_for_process(message: bytes, secrets: list[str]) -> tuple[dict[str, object], bytes]:
    """Run `error_text` in a ReaderProcess."""
    return {"text": error_text(message, secrets)}, b""


def _read(message: bytes) -> object:
    """Parse the message as JSON, or return it as text if it is not JSON."""
    for read in (orjson.loads, json.loads):  # Only the second accepts lone surrogates.
        try:
            return read(message)
        except (ValueError, RecursionError):
            continue
    return message.decode(errors="replace")


class _Redactor:
    """Redacts a JSON document, reading not much more than fits."""

    def __init__(self, limit: int, known: KnownSecrets) -> None:
        self._left = limit
        self._unread = READ_FACTOR * limit + READ_AHEAD
        self._limit = limit
        self._known = known
        self._short_texts: dict[str, str] = {}
        self.cut = False

    def value(self, value: object, depth: int = 0) -> object:
        """Return the redacted value."""
        if isinstance(value, str):
            return self.text(value, depth)
        if not isinstance(value, dict | list):
            return self._scalar(value)
        if depth >= MAX_DEPTH or self._is_full:
            self.cut = True
            return CUT_MARK
        if isinstance(value, dict):
            return dict(self._members(value, depth))
        return list(self._elements(value, depth))

    def text(self, text: str, depth: int = MAX_DEPTH) -> str:
        """Return the redacted text; if it is JSON, redact it as a document."""
        text = text.replace("\0", "")
        part = self._document(text, depth) if depth < MAX_DEPTH and text.lstrip()[:1] in ("{", "[", '"') else None
        if part is None:
            ahead = self._limit + READ_AHEAD
            read = text if len(text) <= ahead else self._known.hide_begun(text[:ahead])
            self.cut = self.cut or len(text) > ahead
            self._unread -= len(read)
            part = self._without_secrets(read)
            self._left -= min(len(part), self._limit) + 3
        if len(part) > self._limit:
            self.cut = True
            part = part[: self._limit] + CUT_MARK
        return part.encode("utf-8", "replace").decode()

    def _without_secrets(self, text: str) -> str:
        if len(text) > CACHED_TEXT:
            return without_secrets(self._known.hide(text))
        if text not in self._short_texts:
            self._short_texts[text] = without_secrets(self._known.hide(text))
        return self._short_texts[text]

    def _document(self, text: str, depth: int) -> str | None:
        """Redact a text that is JSON. Return None if it is not JSON or has no secrets."""
        try:
            inner = json.loads(text)
        except (ValueError, RecursionError):
            return None
        left, unread, cut = self._left, self._unread, self.cut
        redacted = self.value(inner, depth + 1)
        if redacted != inner:
            return orjson.dumps(redacted).decode()
        self._left, self._unread, self.cut = left, unread, cut
        return None

    def _scalar(self, value: object) -> object:
        self._left -= 6
        if not isinstance(value, bool | None) and self._known and self._known.hide(text := str(value)) != text:
            return REDACTED
        return str(value) if isinstance(value, int) and abs(value) >= 1 << 63 else value

    def _members(self, members: dict[str, object], depth: int) -> Iterator[tuple[str, object]]:
        names_secret = any(
            key.lower() in _NAMING and isinstance(name, str) and names_a_secret(name) for key, name in members.items()
        )
        for key, value in members.items():
            if self._is_full:
                self.cut = True
                return
            is_secret = _is_secret(key, value) or (names_secret and key.lower() in _NAMED and _is_something(value))
            yield self.text(key), REDACTED if is_secret else self.value(value, depth + 1)

    def _elements(self, elements: list[object], depth: int) -> Iterator[object]:
        option = False
        for element in elements:
            if self._is_full:
                self.cut = True
                return
            yield REDACTED if option else self.value(element, depth + 1)
            # `["--password", "x"]`: a command line in pieces.
            option = isinstance(element, str) and element[:1] == "-" and "=" not in element and names_a_secret(element)

    @property
    def _is_full(self) -> bool:
        return self._left <= 0 or self._unread <= 0


def _is_secret(key: str, value: object) -> bool:
    if not _is_something(value) or (isinstance(value, int | float) and is_measure(key)):
        return False
    return names_a_secret(key)


def _is_something(value: object) -> bool:
    return not (value is None or isinstance(value, bool) or value in ("", [], {}))
