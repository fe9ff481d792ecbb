"""Redaction: recognise secrets in texts, and replace them in recorded payloads."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import orjson

# Redact texts that have the form of a credential, and the values of keys whose name denotes a secret (`password`).
#
# Every step takes time linear in the length of the text, even for hostile input.

REDACTED = "[redacted]"

MAX_KEY = 200
PEM_MARK = "PRIVATE KEY-----"

_secret_name = re.compile(
    r"passw(?:or)?d|passphrase|passcode|pwd|secret|token|credential|authori[sz]ation|cookie|bearer|"
    r"(?:api|access|private|signing|encryption)[_\- ]?key|session[_\- ]?id|client[_\- ]?assertion",
    re.IGNORECASE,
).search
# These words count only as whole words of a key, not as a part of "author", "compass" or "spinning".
_SECRET_WORDS = frozenset({"auth", "pass", "pin", "otp", "totp", "jwt", "signature", "sig", "creds"})
_MEASURE_WORDS = frozenset(
    {"tokens", "maxtokens", "count", "limit", "length", "len", "size", "max", "min", "total", "used", "usage", "budget"}
    | {"left", "remaining", "progress", "progresstoken", "expires", "expiry", "ttl", "age", "seconds", "days", "at"}
)
_words = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])").findall

_CREDENTIAL_FORMS = re.compile(
    r"(?<![0-9A-Za-z_])(?=[GgBbDdEeSsPpRrXxNnHhAaYy])(?:"
    r"(?i:gw[a-z]_)[0-9A-Za-z]{8,}|"
    r"(?i:bearer|basic|digest)\s+[0-9A-Za-z._~+/=\-]{6,}|"
    r"(?i:eyJ)[0-9A-Za-z_\-]{6,}(?:\.[0-9A-Za-z_\-]*){0,4}|"
    r"(?i:gh[a-z]_|github_pat_|glpat-|sk[\-_]|pk_live_|rk_live_|xox[a-z]-|xapp-|npm_|pypi-|hf_|dop_v1_|shpat_|SG\.)"
    r"[0-9A-Za-z._\-]{8,}|"
    r"(?i:AKIA|ASIA)[0-9A-Z]{12,}|"
    r"(?i:AIza)[0-9A-Za-z_\-]{20,}|"
    r"(?i:ya29)\.[0-9A-Za-z_\-]{10,})"
)
_PEM = re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)")
_URL_CREDENTIALS = re.compile(
    r"(?<=://)(?:[^/\s@\"'<>]{1,300}+|[^/\s:@\"'<>]{0,100}+:[^\s@\"'<>]{1,300}+)(?=@)"  # A password may have a slash.
)

_USER_OPTION = re.compile(r"(?<![\w\-])((?:-u|--user|--proxy-user)[ =][\"']?[^\s:\"']{0,100}+:)[^\s\"']++")

# A key, up to the start of its value: `key: `, `"key": `, `key=`, `key%3D`, `--key `, `<key>`.
_KEY_BEFORE_VALUE = re.compile(
    r"(?<![\w\-])(?:--?(?P<option>\w[\w\-]*+)[ \t]++(?![:=])|"
    r"(?P<key>[\w\-]++)(?P<sign>(?:\\*+[\"'`]|%(?:25)*+2[27]|&(?:quot|#3[49]);)?[ \t]*+"
    r"(?:(?::=?|=>)\s*+|=++>?[ \t]*+|%(?:25)*+3[ADad](?:%(?:25)*+2[027])*+)))|"
    r"<(?P<tag>[\w\-:.]++)[^<>]*+>"
)
_ESCAPED_LETTER = re.compile(r"(?<!\\)\\++u00([2-7][0-9A-Fa-f])")
_SPACED_KEYS = ("api ", "access ", "private ", "signing ", "encryption ", "session ", "client ")
# The name before a member `value`: `name: DB_PASSWORD, value: x`.
_naming_member = re.compile(
    r"(?:name|key|id|label|field|variable|header)\W{1,9}+([\w.\-]{1,80}+)\W{1,20}+$", re.IGNORECASE
).search
_quote = re.compile(r"\\*+[\"'`]|&(?:quot|#3[49]);").match
_adjacent_text = re.compile(r"(?=[\w\"'`$\\])[^\s,;&)}\]>]*+").match  # Adjacent pieces form one value: 'two'"pieces".
_number = re.compile(r"-?\d[\d.,_]*+(?!\w)").match
_empty_value = re.compile(r"(?:true|false|null|none|undefined)[ \t]{0,9}+(?=[,;}\])\r\n]|\Z)", re.IGNORECASE).match
_decoder = json.JSONDecoder()

_TO_LINE_END = re.compile(r"[^\r\n]*+")
_TO_BLOCK_END = re.compile(r"[^\r\n]*+(?:\r?\n[ \t]++[^\r\n]*+)*+")
_TO_SPACE = re.compile(r"[^\s&]*+")
_TO_MEMBER_END = re.compile(r"[^\s,}\]]*+")
_BRACKETS = re.compile(r"[\[\]{}]")


@lru_cache(1024)
def names_a_secret(key: str) -> bool:
    """Return whether the name of this key denotes a secret, such as `password`."""
    key = key[:MAX_KEY].replace("\0", "")
    return _secret_name(key) is not None or any(word.lower() in _SECRET_WORDS for word in _words(key))


def is_measure(key: str) -> bool:
    """Return whether a number under this key (such as `max_tokens`) is a count or a limit, not a secret."""
    words = [word.lower() for word in _words(key[:MAX_KEY])]
    return any(word in _MEASURE_WORDS for word in words)


def without_secrets(text: str) -> str:
    """Replace recognisable secrets in `text`."""
    if "\\u00" in text:
        text = _ESCAPED_LETTER.sub(_letter, text)
    if PEM_MARK in text:
        text = _PEM.sub(REDACTED, text)
    if "://" in text and "@" in text:
        text = _URL_CREDENTIALS.sub(REDACTED, text)
    if "-u" in text:
        text = _USER_OPTION.sub(rf"\1{REDACTED}", text)
    return _without_values(_CREDENTIAL_FORMS.sub(REDACTED, text))


def _letter(match: re.Match[str]) -> str:
    """Return the character that a Unicode escape stands for, if the character is a letter, a digit, `-` or `_`.

    Return any other escape unchanged.
    """
    # An escape could hide a key from redaction. Quotes stay escaped, because they must not end a value.
    letter = chr(int(match[1], 16))
    return letter if letter.isalnum() or letter in "-_" else match[0]


def _without_values(text: str) -> str:
    pieces, kept, at = [], 0, 0
    while begins := _KEY_BEFORE_VALUE.search(text, at):
        kind = str(begins.lastgroup)
        at = begins.end("key" if kind == "sign" else kind)
        key = begins["key"] or begins["option"] or begins["tag"]
        if not _names_secret_at(text, key, at - len(key)):
            continue
        start, end = _value(text, begins, key)
        if end > start:
            pieces += [text[kept:start], REDACTED]
            at = kept = end
    return "".join([*pieces, text[kept:]])


def _names_secret_at(text: str, key: str, start: int) -> bool:
    lower = key[-MAX_KEY:].lower()
    if lower in ("value", "val"):
        named = _naming_member(text[max(0, start - 120) : start])
        return named is not None and names_a_secret(named[1])
    if lower in ("key", "id", "assertion") and text[max(0, start - 12) : start].lower().endswith(_SPACED_KEYS):
        return True
    return names_a_secret(key[-MAX_KEY:])


def _value(text: str, begins: re.Match[str], key: str) -> tuple[int, int]:
    """Return the positions at which the value of `key` starts and ends. They are equal if nothing is to be redacted."""
    start, sign = begins.end(), begins["sign"] or ""
    if begins["tag"]:
        return start, start if begins[0].endswith("/>") else _find_or_end(text, f"</{begins['tag']}", start)
    if quote := _quote(text, start):
        return quote.end(), _closing_quote(text, quote[0], quote.end())
    if _empty_value(text, start) or (is_measure(key) and _number(text, start)):
        return start, start
    if text[start : start + 1] in ("[", "{") and not text.startswith(REDACTED, start):
        return start, _closing_bracket(text, start)
    return start, _unquoted(key, sign, text, start)


def _unquoted(key: str, sign: str, text: str, start: int) -> int:
    if text[start : start + 1] in ("|", ">") or "\n" in sign:
        extent = _TO_BLOCK_END
    elif sign[:1] in "\"'`\\" and sign:
        extent = _TO_MEMBER_END
    elif ":" in sign or " " in sign or key.lower().endswith(("authorization", "cookie")):
        extent = _TO_LINE_END
    else:
        extent = _TO_SPACE
    found = extent.match(text, start)
    return found.end() if found else start


def _find_or_end(text: str, part: str, start: int) -> int:
    end = text.find(part, start)
    return end if end >= 0 else len(text)


def _closing_quote(text: str, quote: str, start: int) -> int:
    """Return the position at which a quoted value ends, or the length of the text if no quote closes it."""
    end = _find_or_end(text, quote, start)
    # A quote is escaped if it has more backslashes before it than the opening quote.
    while start < end < len(text) and text[end - 1] == "\\":
        end = _find_or_end(text, quote, end + 1)
    # As in a shell, text that follows the closing quote without a space belongs to the value too.
    glued = _adjacent_text(text, end + len(quote))
    return glued.end() if glued and glued[0].strip(quote) else end


def _closing_bracket(text: str, start: int) -> int:
    """Return the position at which a list or object ends, or the length of the text if no bracket closes it."""
    try:
        return _decoder.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        depth = 0
    # If this is not JSON, the value extends to the end of the line with its closing bracket.
    for bracket in _BRACKETS.finditer(text, start):
        depth += 1 if bracket[0] in "[{" else -1
        if depth == 0:
            return _TO_LINE_END.match(text, bracket.end()).end()  # type: ignore[union-attr]  # Never None.
    return len(text)


# Redact known secret values from texts, in plain or encoded form.

MIN_LENGTH = 4  # Redacting shorter values would redact ordinary words.
MIN_CORE = 5
BEGINNING = 8  # Characters by which a truncated secret is recognised.
PERCENT_ROUNDS = 3  # A text may be percent-encoded this many times in succession.

_encoded_run = re.compile(r"[0-9A-Za-z+/=_\-]{8,}+")


class KnownSecrets:
    """Redacts given secrets in texts.

    A secret is found in plain text, percent-encoded, in hexadecimal digits, and at any position in base64 data.
    """

    def __init__(self, values: Iterable[str]) -> None:
        self._values = sorted({value for value in values if len(value) >= MIN_LENGTH}, key=len, reverse=True)
        self._min_length = min(map(len, self._values), default=0)

    def __bool__(self) -> bool:
        return bool(self._values)

    def hide(self, text: str) -> str:
        """Replace the known secrets in `text`."""
        if not self._values or len(text) < self._min_length:
            return text
        lower = text.lower()
        if any(value in lower for value in self._lower):
            text = self._plain.sub(REDACTED, text)
        if any(core in text for core in self._cores) or any(digits in lower for digits in self._digits):
            text = _encoded_run.sub(self._without_encoded, text)
        if "%" in text and any(value in _decoded(lower) for value in self._lower):
            text = self._percent.sub(REDACTED, text)
        return text

    def hide_begun(self, text: str) -> str:
        """Replace a secret that is truncated at the end of `text`."""
        lower = text.lower()
        for form in self._lower:
            at = lower.find(form[:BEGINNING], max(len(lower) - len(form), 0))
            while at >= 0:
                if form.startswith(lower[at:]):
                    return text[:at] + REDACTED
                at = lower.find(form[:BEGINNING], at + 1)
        return text

    def _without_encoded(self, run: re.Match[str]) -> str:
        found = any(core in run[0] for core in self._cores) or any(value in run[0].lower() for value in self._digits)
        return REDACTED if found else run[0]

    @cached_property
    def _forms(self) -> list[str]:
        forms = {form for value in self._values for form in (value, quote(value, safe=""), json.dumps(value)[1:-1])}
        return sorted(forms, key=len, reverse=True)

    @cached_property
    def _lower(self) -> list[str]:
        return [form.lower() for form in self._forms]

    @cached_property
    def _plain(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._forms)), re.IGNORECASE)

    @cached_property
    def _percent(self) -> re.Pattern[str]:
        return re.compile("|".join("".join(map(_any_form, value)) for value in self._values), re.IGNORECASE)

    @cached_property
    def _digits(self) -> list[str]:
        return [_bytes(value).hex() for value in self._values]

    @cached_property
    def _cores(self) -> list[str]:
        return [core for value in self._values for core in _cores(_bytes(value))]


def _bytes(value: str) -> bytes:
    return value.encode("utf-8", "replace")


def _decoded(text: str) -> str:
    for _ in range(PERCENT_ROUNDS):
        text = unquote(text)
    return text.lower()


def _any_form(letter: str) -> str:
    encoded = "".join(f"%(?:25)*+{byte:02x}" for byte in _bytes(letter))
    return f"(?:{re.escape(letter)}|{encoded})"


def _cores(value: bytes) -> set[str]:
    """Return texts by which base64 data that contain `value` are recognised.

    The base64 of `value` inside longer data depends on the position of `value`, modulo three bytes. For each of the
    three cases, the result has the part that does not depend on the bytes around `value`.
    """
    cores = set()
    for before, mixed in enumerate((0, 2, 3)):
        encoded = b64encode(b"\0" * before + value).decode()
        core = encoded[mixed : (before + len(value)) * 8 // 6]
        if len(core) >= MIN_CORE:
            cores |= {core, core.replace("+", "-").replace("/", "_")}
    return cores


# Redact messages: replace secrets, then cut to size.
#
# Secrets are the values of keys whose name denotes a secret, texts in the form of a credential, and the values passed
# by the caller. Other secrets look like ordinary words and are not recognised.

CUT_MARK = "[cut]"
ERROR_TEXT = 300  # Characters of an error message.

MAX_MESSAGE = 1024 * 1024  # Larger messages are not parsed; only their size is recorded.
MAX_DEPTH = 40
READ_AHEAD = 4096  # Characters read beyond the cut, so that a secret that crosses the cut is recognised.
CACHED_TEXT = 64  # Texts up to this length are cached: keys and short words repeat.
READ_FACTOR = 2  # At most READ_FACTOR times the limit, plus READ_AHEAD characters, are read of a message.

# `{"name": "DB_PASSWORD", "value": "x"}`: keys of members that hold a name, and of members that hold its value.
_NAMING = frozenset({"name", "key", "id", "label", "field", "variable", "header"})
_NAMED = frozenset({"value", "values", "val", "default", "data", "stringvalue", "string_value"})


class RedactedMessage(NamedTuple):
    """A redacted message as JSON; `cut` is True if parts are missing."""

    json: bytes
    cut: bool


def redact_message(message: bytes, limit: int, secrets: Iterable[str] = ()) -> RedactedMessage | None:
    """Redact a message and cut it to at most `limit` bytes of JSON. Return None if the message is empty."""
    if not message:
        return None
    if len(message) > MAX_MESSAGE:
        return RedactedMessage(orjson.dumps(f"{CUT_MARK} {len(message):,} bytes"), cut=True)
    redactor = _Redactor(limit, KnownSecrets(secrets))
    text = orjson.dumps(redactor.value(_read(message)))
    if len(text) <= limit:
        return RedactedMessage(text, redactor.cut)
    cut = text[:limit].decode(errors="ignore")
    # `cut` is encoded as a JSON string, in which quotes and backslashes are escaped. So it has to be cut further.
    while len(text := orjson.dumps(cut)) > max(limit, 2):
        cut = cut[: min(len(cut) - 1, len(cut) * limit // len(text))]
    return RedactedMessage(text, cut=True)


def redact_text(text: str, limit: int, secrets: Iterable[str] = ()) -> str:
    """Redact a text and cut it to at most `limit` characters."""
    redacted = _Redactor(limit - len(CUT_MARK), KnownSecrets(secrets)).text(text, 0)
    return redacted if len(redacted) <= limit else redacted[: limit - len(CUT_MARK)] + CUT_MARK


def error_text(message: bytes, secrets: Iterable[str]) -> str:
    """Return the redacted error text of a message; empty if the message is not an error."""
    if len(message) > MAX_MESSAGE:
        return ""
    return redact_text(_said(_read(message)), ERROR_TEXT, secrets).strip()


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
    """Run `redact_message` as the work of a ReaderProcess.

    Return a pair: a dictionary with `cut` (True if parts are missing), and the redacted JSON.
    """
    redacted = redact_message(message, limit, secrets)
    assert redacted is not None
    return {"cut": redacted.cut}, redacted.json


def error_for_process(message: bytes, secrets: list[str]) -> tuple[dict[str, object], bytes]:
    """Run `error_text` as the work of a ReaderProcess. Return its result under the key `text`, and empty bytes."""
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
    """Redacts a JSON document, and stops reading soon after the limit is reached."""

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
        """Return the redacted text. A JSON text is redacted as a document if `depth` is below MAX_DEPTH."""
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
        """Redact a text that is a JSON document. Return None if the text is not JSON or has no secrets."""
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
            # An element may be an option whose value is the next element, as in the command line `["--password", "x"]`.
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
