"""Turns words such as `refused yesterday` into an entry of the palette that opens the log with fitting filters."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from urllib.parse import urlencode

from django.utils import timezone

from auditlog.filters import stamp, zone_of

_DAY = timedelta(days=1)


class CallsDescribed(NamedTuple):
    """An entry of the palette: its text, and the query string for the log."""

    text: str
    query: str


# Maps each word for an outcome to the text of the entry and the filters of the log.
_OUTCOMES: dict[str, tuple[str, dict[str, str]]] = {
    "refused": ("Refused calls", {"q": "refused"}),
    "denied": ("Refused calls", {"q": "refused"}),
    "blocked": ("Refused calls", {"q": "refused"}),
    "failed": ("Failed calls", {"q": "error"}),
    "failures": ("Failed calls", {"q": "error"}),
    "errors": ("Failed calls", {"q": "error"}),
    "timeouts": ("Timed-out calls", {"q": "timeout"}),
    "slow": ("Slowest calls", {"order": "slowest"}),
    "slowest": ("Slowest calls", {"order": "slowest"}),
    "cancelled": ("Cancelled calls", {"q": "cancelled"}),
    "successful": ("Successful calls", {"q": "ok"}),
    "calls": ("Calls", {}),
}


def _days(before: int, length: int) -> Callable[[datetime], dict[str, str]]:
    """Return a function that takes the last midnight and returns the filter of the log for `length` days.

    The first of these days is `before` days ago. If the last of them is today, the filter has no end.
    """

    def between(midnight: datetime) -> dict[str, str]:
        begin = midnight - before * _DAY
        return {"from": stamp(begin), **({} if length > before else {"to": stamp(begin + length * _DAY)})}

    return between


def _range(name: str) -> Callable[[datetime], dict[str, str]]:
    return lambda _: {"range": name}


_TIMES: dict[str, tuple[str, Callable[[datetime], dict[str, str]]]] = {
    "yesterday": ("yesterday", _days(1, 1)),
    "today": ("today", _days(0, 1)),
    "last hour": ("in the last hour", _range("1h")),
    "last 24 hours": ("in the last 24 hours", _range("24h")),
    "last week": ("in the last 7 days", _range("7d")),
    "last 7 days": ("in the last 7 days", _range("7d")),
    "this week": ("in the last 7 days", _range("7d")),
    "last month": ("in the last 30 days", _range("30d")),
    "last 30 days": ("in the last 30 days", _range("30d")),
}
_FILLERS = {"calls", "in", "the", "of", "from", "logs", "log", "and"}


def calls_described(words: str, zone: str) -> CallsDescribed | None:
    """Return the entry for the calls that the words describe.

    Return None if the words name neither an outcome nor a time. Days begin at midnight in `zone`.
    """
    text = " ".join(words.lower().replace('"', "").split())
    time = next((name for name in _TIMES if re.search(rf"\b{name}\b", text)), "")
    rest = re.sub(rf"\b{time}\b", " ", text).split() if time else text.split()
    outcome = next((found for word in rest if (found := _outcome(word))), "")
    if not time and not outcome:
        return None
    name = " ".join(word for word in rest if word not in _FILLERS and not _outcome(word))
    title, filters = _OUTCOMES[outcome or "calls"]
    when, between = _TIMES.get(time, ("", _always))
    midnight = timezone.now().astimezone(zone_of(zone) or UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    query = {**filters, **between(midnight)}
    if name:
        query["q"] = " and ".join(filter(None, (query.get("q"), f'"{name}"')))
    about = f"with “{name}”" if name else ""
    return CallsDescribed(" ".join(filter(None, (title, about, when))), urlencode(query))


def _always(_: datetime) -> dict[str, str]:
    return {}


def _outcome(word: str) -> str:
    """Return the first key of _OUTCOMES that begins with `word` (four letters or more), or an empty string."""
    if len(word) < 4:
        return ""
    return next((key for key in _OUTCOMES if key.startswith(word)), "")
