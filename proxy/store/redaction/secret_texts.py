"""Redact texts in the form of a credential, and the values of keys that name a secret.

Every step takes time linear in the length of the text, even for hostile input.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache

REDACTED = "[redacted]"

MAX_KEY = 200
PEM_MARK = "PRIVATE KEY-----"

_secret_name = re.compile(
    r"passw(?:or)?d|passphrase|passcode|pwd|secret|token|credential|authori[sz]ation|cookie|bearer|"
    r"(?:api|access|private|signing|encryption)[_\- ]?key|session[_\- ]?id|client[_\- ]?assertion",
    re.IGNORECASE,
).search
# Only as whole words: not in author, compass, spinning.
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
    r"(?<=://)(?:[^/\s@\"'<>]{1,300}+|[^/\s:@\"'<>]{0,100}+:[^\s@\"'<>]{1,300}+)(?=@)"  # A password may hold a slash.
)

_USER_OPTION = re.compile(r"(?<![\w\-])((?:-u|--user|--proxy-user)[ =][\"']?[^\s:\"']{0,100}+:)[^\s\"']++")

# The start of a value: `key: `, `"key": `, `key=`, `key%3D`, `--key `, `<key>`.
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
_adjacent_text = re.compile(r"(?=[\w\"'`$\\])[^\s,;&)}\]>]*+").match  # 'two'"pieces" are one value.
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
    """Return whether this key names a secret."""
    key = key[:MAX_KEY].replace("\0", "")
    return _secret_name(key) is not None or any(word.lower() in _SECRET_WORDS for word in _words(key))


def is_measure(key: str) -> bool:
    """Return whether a number under this key is a count or a limit, although the key names a secret."""
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
    """Unescape a letter, so that escapes cannot hide a key; quotes stay escaped."""
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
    """Return start and end of the value; equal if it need not be redacted."""
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
    """Return the end of a quoted value; a quote after a further backslash is part of it."""
    end = _find_or_end(text, quote, start)
    while start < end < len(text) and text[end - 1] == "\\":
        end = _find_or_end(text, quote, end + 1)
    glued = _adjacent_text(text, end + len(quote))
    return glued.end() if glued and glued[0].strip(quote) else end


def _closing_bracket(text: str, start: int) -> int:
    """Return the end of a list or object: exact for JSON, otherwise the end of the line of its last bracket."""
    try:
        return _decoder.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        depth = 0
    for bracket in _BRACKETS.finditer(text, start):
        depth += 1 if bracket[0] in "[{" else -1
        if depth == 0:
            return _TO_LINE_END.match(text, bracket.end()).end()  # type: ignore[union-attr]  # It matches nothing too.
    return len(text)
