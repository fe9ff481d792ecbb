"""What may be kept of a message: its secrets taken out first, then cut to size. Needs no Django.

Known as secrets are the values of telling keys, texts in the form of credentials, and the very values
that the caller names. What is none of these cannot be told from any other word.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote

import orjson

HIDDEN = "[redacted]"
CUT = "[cut]"

LARGEST = 1024 * 1024  # A larger message is not even read for its record.
DEEPEST = 40
SPARE = 8192  # Read beyond the cut, so that a secret that straddles it is seen whole.
SHORTEST = 4  # A shorter value would blot out ordinary words.

_TELLING = (
    r"authori[sz]ation|cookie|passw(?:or)?d|passwd|passphrase|pwd|secret|token|api[_\- ]?key|access[_\- ]?key|"
    r"private[_\- ]?key|signing[_\- ]?key|encryption[_\- ]?key|credential|bearer|session[_\- ]?id|otp|"
    r"client[_\- ]?assertion"
)
_telling = re.compile(_TELLING, re.IGNORECASE).search
# Keys that tell of tokens as a measure.
_measure = re.compile(r"tokens?$|token_?(?:count|limit)|progress_?token", re.IGNORECASE).search

_SHAPES = (
    r"\bgw[a-z]_[0-9A-Za-z]{8,}",
    r"\b(?:Bearer|Basic|Digest)\s+[0-9A-Za-z._~+/=\-]{6,}",
    r"\beyJ[0-9A-Za-z_\-]{6,}(?:\.[0-9A-Za-z_\-]*){0,4}",
    r"\b(?:gh[a-z]_|github_pat_|glpat-|sk-|sk_|pk_live_|rk_live_|xox[a-z]-|xapp-|npm_|pypi-|hf_|dop_v1_|shpat_|SG\.)"
    r"[0-9A-Za-z._\-]{8,}",
    r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}",
    r"\bAIza[0-9A-Za-z_\-]{20,}",
    r"\bya29\.[0-9A-Za-z_\-]{10,}",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    r"(?<=://)[^/\s:@\"']*:[^/\s@\"']+(?=@)",
)
_FORMS = re.compile("|".join(_SHAPES), re.IGNORECASE)
# A telling key inside a text: a header line, a query string, JSON within JSON.
_LINE = re.compile(r"\b((?:proxy-)?authorization|(?:set-)?cookie)\b(\\*[\"']?\s*[:=]\s*)([^\r\n]+)", re.IGNORECASE)
_PAIR = re.compile(
    rf"((?:{_TELLING})[\w\-]{{0,40}})(\\*[\"']?\s*[:=]\s*)"
    r"(?:(\\*\")((?:(?!\3)[\s\S])*)(?:\3|\Z)|(')([^']*)(?:'|\Z)|([^\s,;&\"'{}\[\]<>\\]+))",
    re.IGNORECASE,
)


class Kept(NamedTuple):
    """What is kept of a message, as JSON; `cut` when not all of it."""

    json: bytes
    cut: bool


def keep(message: bytes, limit: int, secrets: Iterable[str] = ()) -> Kept | None:
    """The message without its secrets, `limit` bytes of JSON at most. None when there is no message."""
    if not message:
        return None
    if len(message) > LARGEST:
        return Kept(orjson.dumps(f"{CUT} {len(message):,} bytes"), cut=True)
    taken = _Taken(limit, _variants(secrets))
    text = orjson.dumps(taken.value(_read(message)))
    if len(text) <= limit:
        return Kept(text, taken.cut)
    cut = text[:limit].decode(errors="ignore")
    # Quotes and backslashes take more room inside a string than outside.
    while len(text := orjson.dumps(cut)) > max(limit, 2):
        cut = cut[: min(len(cut) - 1, len(cut) * limit // len(text))]
    return Kept(text, cut=True)


def _read(message: bytes) -> object:
    """What the message says, or itself as a text when that is no JSON."""
    for read in (orjson.loads, json.loads):  # The second one knows lone surrogates.
        try:
            return read(message)
        except (ValueError, RecursionError):
            continue
    return message.decode(errors="replace")


def _variants(secrets: Iterable[str]) -> list[str]:
    """The ways in which each value may stand in a text, the longest first."""
    found = set()
    for secret in secrets:
        if len(secret) >= SHORTEST:
            encoded = base64.b64encode(secret.encode()).decode()
            found |= {secret, quote(secret, safe=""), encoded, encoded.rstrip("=")}
    return sorted(found, key=len, reverse=True)


class _Taken:
    """Takes secrets out of a document, and no more of it than fits."""

    def __init__(self, limit: int, secrets: Sequence[str]) -> None:
        self._left = limit
        self._limit = limit
        self._secret = re.compile("|".join(map(re.escape, secrets)), re.IGNORECASE) if secrets else None
        self.cut = False

    def value(self, value: object, depth: int = 0) -> object:
        """The value as it may be kept."""
        if isinstance(value, str):
            return self.text(value)
        if not isinstance(value, dict | list):
            return self._scalar(value)
        if depth == DEEPEST or self._left <= 0:
            self.cut = True
            return CUT
        if isinstance(value, dict):
            return dict(self._members(value, depth))
        return list(self._elements(value, depth))

    def text(self, text: str) -> str:
        """The text without what has the form of a secret."""
        part = text[: self._limit + SPARE]
        if self._secret is not None:
            part = self._secret.sub(HIDDEN, part)
        part = _LINE.sub(rf"\1\2{HIDDEN}", _FORMS.sub(HIDDEN, part))
        part = _PAIR.sub(_without_value, part)
        if len(part) > self._limit or len(text) > self._limit + SPARE:
            self.cut = True
            part = part[: self._limit] + CUT
        self._left -= len(part) + 3
        return part.encode("utf-8", "replace").decode().replace("\0", "")

    def _scalar(self, value: object) -> object:
        self._left -= 6
        if self._secret is not None and not isinstance(value, bool | None) and self._secret.search(str(value)):
            return HIDDEN
        return str(value) if isinstance(value, int) and abs(value) >= 1 << 63 else value

    def _members(self, members: dict[str, object], depth: int) -> Iterator[tuple[str, object]]:
        for key, value in members.items():
            if self._left <= 0:
                self.cut = True
                return
            yield self.text(key), HIDDEN if _is_secret(key, value) else self.value(value, depth + 1)

    def _elements(self, elements: list[object], depth: int) -> Iterator[object]:
        for element in elements:
            if self._left <= 0:
                self.cut = True
                return
            yield self.value(element, depth + 1)


def _is_secret(key: str, value: object) -> bool:
    if value is None or isinstance(value, bool) or value in ("", [], {}):
        return False
    if isinstance(value, int | float) and _measure(key):
        return False
    return _telling(key) is not None


def _without_value(match: re.Match[str]) -> str:
    quotes = match[3] or match[5] or ""
    return f"{match[1]}{match[2]}{quotes}{HIDDEN}{quotes}"
