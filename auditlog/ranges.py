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

    def since(self, now: datetime) -> datetime:
        """Return the start: a whole hour, or for several days a whole day (UTC), as in the roll-ups."""
        return range_start(now, self.length)


def range_start(now: datetime, length: timedelta) -> datetime:
    """Return the start of a range up to `now`: a whole hour or day if the range is at least a day long."""
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
