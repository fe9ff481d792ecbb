"""Redact known secret values from texts, in plain or encoded form."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable
from functools import cached_property
from urllib.parse import quote, unquote

from proxy.store.redaction.secret_texts import REDACTED

MIN_LENGTH = 4  # A shorter value would redact ordinary words.
MIN_CORE = 5
BEGINNING = 8  # Characters by which a truncated secret is recognised.
PERCENT_ROUNDS = 3  # Times a text may be percent-encoded.

_encoded_run = re.compile(r"[0-9A-Za-z+/=_\-]{8,}+")


class KnownSecrets:
    """Redacts values from texts: plain, percent-encoded, in hex, and anywhere inside base64."""

    def __init__(self, values: Iterable[str]) -> None:
        self._values = sorted({value for value in values if len(value) >= MIN_LENGTH}, key=len, reverse=True)
        self._min_length = min(map(len, self._values), default=0)

    def __bool__(self) -> bool:
        return bool(self._values)

    def hide(self, text: str) -> str:
        """Replace the values in `text`."""
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
    """Return the base64 texts, one per alignment, of which any encoding that contains `value` contains one."""
    cores = set()
    for before, mixed in enumerate((0, 2, 3)):
        encoded = b64encode(b"\0" * before + value).decode()
        core = encoded[mixed : (before + len(value)) * 8 // 6]
        if len(core) >= MIN_CORE:
            cores |= {core, core.replace("+", "-").replace("/", "_")}
    return cores
