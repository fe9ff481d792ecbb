"""The time ranges that pages offer, by their names in URLs."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from auditlog.rollups.schema import DAYS, HOURS


class Stretch(NamedTuple):
    """A time range: short label, words, and length."""

    label: str
    words: str
    length: timedelta


def range_start(now: datetime, length: timedelta) -> datetime:
    """Return where a range up to `now` begins, as roll-ups do.

    A day begins with a whole hour, what is longer with a whole day (UTC), what is shorter `length` ago.
    """
    if length < timedelta(days=1):
        return now - length
    return (DAYS if length > timedelta(days=1) else HOURS).begin(now) - length


STRETCHES = {
    "5m": Stretch("5 min", "Last 5 minutes", timedelta(minutes=5)),
    "15m": Stretch("15 min", "Last 15 minutes", timedelta(minutes=15)),
    "1h": Stretch("1 h", "Last hour", timedelta(hours=1)),
    "24h": Stretch("24 h", "Last 24 hours", timedelta(hours=24)),
    "7d": Stretch("7 d", "Last 7 days", timedelta(days=7)),
    "30d": Stretch("30 d", "Last 30 days", timedelta(days=30)),
}
