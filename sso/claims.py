"""What a provider says of somebody, in the form in which it is believed, whichever protocol it came by."""

from __future__ import annotations

from collections.abc import Iterable

from wire.oauth_client import printable

LONGEST_EMAIL = 254  # A longer one is none: cut, it might be somebody else's.


def email_of(value: object) -> str:
    """Empty unless it is written in ASCII: other letters become somebody else's in lower case."""
    email = value.strip() if isinstance(value, str) else ""
    return email if len(email) <= LONGEST_EMAIL and email.isascii() and email.isprintable() else ""


def groups_of(values: Iterable[object]) -> frozenset[str]:
    """One that cannot be shown is none: without the hidden character it might be another one."""
    return frozenset(group for group in values if isinstance(group, str) and group.isprintable())


def is_true(value: object) -> bool | None:
    """Yes or no, also as a word, as some send it; None for anything else."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def line_of(value: object) -> str:
    """One line to show."""
    return printable(value).strip() if isinstance(value, str) else ""
