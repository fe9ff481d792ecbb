"""Normalise claims of an identity provider, for OpenID Connect and SAML alike."""

from __future__ import annotations

from collections.abc import Iterable

from wire.oauth_client import printable

LONGEST_EMAIL = 254  # Longer ones are rejected: truncated, they might be somebody else's address.


def email_of(value: object) -> str:
    """Return an ASCII e-mail address or "". Lower-casing other letters could produce another person's address."""
    email = value.strip() if isinstance(value, str) else ""
    return email if len(email) <= LONGEST_EMAIL and email.isascii() and email.isprintable() else ""


def groups_of(values: Iterable[object]) -> frozenset[str]:
    """Return the printable group names. Without a hidden character a name might be that of another group."""
    return frozenset(group for group in values if isinstance(group, str) and group.isprintable())


def is_true(value: object) -> bool | None:
    """Return a boolean, also from "true" or "false" as some providers send it; None for anything else."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def line_of(value: object) -> str:
    """Return printable text on one line."""
    return printable(value).strip() if isinstance(value, str) else ""
