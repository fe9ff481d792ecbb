"""Validation of tokens' lifetimes and allowed addresses, and the errors of creating or changing a token."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network

from django.utils import timezone

from accounts.models import WorkspaceSettings
from accounts.models.secrets import OVERLAP_HOURS

LIFETIMES = (7, 30, 90)
DEFAULT_LIFETIME = 90
MOST_PER_CONNECTION = 20
MOST_ADDRESSES = 50


class TokenError(Exception):
    """Creating or changing a token is refused; the message says why."""


class TokenNameTaken(TokenError):
    """This connection already has an unrevoked token of that name."""


class TooMany(TokenError):
    """A connection can have at most 20 unrevoked, unexpired tokens. Revoke one first."""


class NotYourToken(TokenError):
    """You can create tokens only for yourself."""


class TokenAlreadyRevoked(TokenError):
    """This token is already revoked."""


class BadLifetime(TokenError):
    """Must be 7, 30 or 90 days."""


class BadAllowlistEntry(TokenError):
    """An entry of the IP allowlist is neither an address nor a CIDR range."""


class Expired(TokenError):
    """This token has expired. Create a new one."""


class Superseded(TokenError):
    """This token was rotated by another request."""


class BadTokenOverlap(TokenError):
    """Must be 0, 1, 24 or 168 hours."""


class AskedForNew(TokenError):
    """A new token was requested to replace this one. Collect the new token."""


class NothingToCollect(TokenError):
    """There is no new token to collect: it was collected before, or nobody requested one."""


class NoPreviousToken(TokenError):
    """There is no old token that still works."""


def expiry(days: int | None) -> datetime | None:
    """Return when a lifetime of 7, 30 or 90 days ends. Raises BadLifetime.

    If `days` is None and the workspace allows tokens without expiry, return None.
    """
    if days is None:
        if not WorkspaceSettings.load().allow_non_expiring_tokens:
            raise BadLifetime("Must be 7, 30 or 90 days: this workspace does not allow tokens without expiry.")
        return None
    if days not in LIFETIMES:
        raise BadLifetime(BadLifetime.__doc__)
    return timezone.now() + timedelta(days=days)


def overlap(hours: int) -> timedelta:
    """Return how long a replaced secret stays valid. Raises BadTokenOverlap."""
    if hours not in OVERLAP_HOURS:
        raise BadTokenOverlap(BadTokenOverlap.__doc__)
    return timedelta(hours=hours)


def canonical_allowlist(entries: Sequence[str] | None) -> list[str] | None:
    """Return the allowlist as canonical CIDR ranges without duplicates, or None if the list is empty.

    Raises BadAllowlistEntry for an invalid entry, or for more than MOST_ADDRESSES entries.
    """
    ranges = dict.fromkeys(_network(entry) for entry in entries or () if entry.strip())
    if len(ranges) > MOST_ADDRESSES:
        raise BadAllowlistEntry(f"At most {MOST_ADDRESSES} addresses or ranges are possible.")
    return list(ranges) or None


def _network(entry: str) -> str:
    try:
        return str(ip_network(entry.strip(), strict=False))
    except ValueError:
        raise BadAllowlistEntry(f"“{entry.strip()}” is neither an IP address nor a CIDR range.") from None


def admits(ranges: Sequence[str] | None, address: str | None) -> bool:
    """Return whether an allowlist admits `address`; without a list every address is admitted."""
    if ranges is None:
        return True
    try:
        ip = ip_address(address or "")
    except ValueError:
        return False
    return any(ip in ip_network(entry) for entry in ranges)
