"""Types for versions of editable rows and for conflicts between writers; auditlog.versions compares the versions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple, Protocol

DIGITS = 12  # Digits of a digest: two values have the same digest by chance once in 10^14.


class ConflictingChange(NamedTuple):
    """A field that somebody changed after the writer read the object, with the author and time of the change."""

    field: str
    now: Any  # The current value.
    by: str  # Empty if the change is unknown.
    at: datetime | None  # None if the change is unknown.

    @property
    def name(self) -> str:
        return self.field.replace("_", " ")


class ChangedMeanwhile(Exception):
    """Somebody changed this after you opened it."""

    def __init__(self, changes: list[ConflictingChange], version: str) -> None:
        super().__init__(ChangedMeanwhile.__doc__)
        self.changes, self.version = changes, version


class Seen(Protocol):
    """The version on which a writer bases a change."""

    def stale(self, now: str) -> bool | list[int]:
        """Return the indexes of the values that differ from the version `now`.

        If no value differs, return False or an empty list. If the differing values are unknown, return True.
        """


class FormSeen(NamedTuple):
    """The version that a row had when a form was opened.

    A later change of the row conflicts with the form only if both change the same field.
    """

    version: str

    def stale(self, now: str) -> bool | list[int]:
        if len(self.version) != len(now):
            return True  # Another release made this version, so nothing can be compared.
        pairs = zip(_parts(self.version), _parts(now), strict=True)
        return [index for index, (before, after) in enumerate(pairs) if before != after]


def _parts(version: str) -> list[str]:
    return [version[at : at + DIGITS] for at in range(0, len(version), DIGITS)]


class Precondition(NamedTuple):
    """The versions in an If-Match header, one of which must be current (RFC 9110 13.1.1). Weak tags are left out."""

    tags: frozenset[str]

    def stale(self, now: str) -> bool | list[int]:
        if now in self.tags:
            return False
        seen = [FormSeen(tag).stale(now) for tag in self.tags if len(tag) == len(now)]
        return seen[0] if len(seen) == 1 else True


def version_digest(values: Mapping[str, Any]) -> str:
    return "".join(_digest(value) for value in values.values())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:DIGITS]


class HasVersion:
    """An editable row: `editable` returns its values as events store them."""

    def editable(self) -> dict[str, Any]:
        """Return the values that may be edited, by field, always in the same order."""
        raise NotImplementedError

    @property
    def version(self) -> str:
        """The version of the editable values, as an opaque text."""
        return version_digest(self.editable())
