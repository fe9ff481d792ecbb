"""Keyset pagination of a growing log: a cursor names the row where a page ends, so new rows do not shift pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.models import Q, QuerySet
from django.utils import timezone

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
OLDER, NEWER = "o", "n"
LAST = 2**63 - 1
RECENT = timedelta(days=7)  # This period is searched first, because it is in few partitions.


class BadLogCursor(ValueError):
    """This cursor is invalid. Use the cursor in `next` or `previous` of an earlier answer."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in the log, and the paging direction (`way`)."""

    way: str
    at: datetime
    pk: int

    def __str__(self) -> str:
        return f"{self.way}{(self.at - EPOCH) // MICROSECOND}-{self.pk}"

    @classmethod
    def read(cls, text: str) -> Cursor:
        """Parse a cursor. Raises BadLogCursor."""
        way, (micros, _, pk) = text[:1], text[1:].partition("-")
        if way not in (OLDER, NEWER) or not (text.isascii() and micros.isdecimal() and pk.isdecimal()):
            raise BadLogCursor(BadLogCursor.__doc__)
        try:
            return cls(way, EPOCH + int(micros[:20]) * MICROSECOND, min(int(pk[:20]), LAST))
        except OverflowError:
            raise BadLogCursor(BadLogCursor.__doc__) from None

    @classmethod
    def named(cls, text: str) -> Cursor | None:
        """Return the cursor in a URL, or None if the cursor is missing or invalid. None leads to the newest page."""
        try:
            return cls.read(text)
        except BadLogCursor:
            return None


@dataclass(frozen=True, slots=True)
class Page[M: Any]:
    """Rows, newest first, and the cursors of the neighbouring pages; a cursor is None at an end of the log."""

    rows: Sequence[M]
    older: Cursor | None
    newer: Cursor | None


def is_newer(cursor: Cursor | None) -> bool:
    """True if the cursor leads to newer rows."""
    return cursor is not None and cursor.way == NEWER


def beyond[M: Any](rows: QuerySet[M], cursor: Cursor | None) -> QuerySet[M]:
    """Return the rows beyond the cursor in its direction, nearest first; without a cursor, all rows, newest first."""
    if cursor is None:
        return rows.order_by("-created_at", "-pk")
    # The separate condition on `created_at` lets PostgreSQL use the index and skip partitions.
    if is_newer(cursor):
        newer = Q(created_at__gt=cursor.at) | Q(pk__gt=cursor.pk)
        return rows.filter(newer, created_at__gte=cursor.at).order_by("created_at", "pk")
    older = Q(created_at__lt=cursor.at) | Q(pk__lt=cursor.pk)
    return rows.filter(older, created_at__lte=cursor.at).order_by("-created_at", "-pk")


def page[M: Any](rows: QuerySet[M], cursor: Cursor | None, size: int) -> Page[M]:
    """Return the page at `cursor`, or the newest page without a cursor."""
    return page_beside(beyond(rows, cursor)[: size + 1], cursor, size)


def page_beside[M: Any](nearest: Sequence[M] | QuerySet[M], cursor: Cursor | None, size: int) -> Page[M]:
    """Return a page of up to `size` rows from `nearest`.

    `nearest` has up to `size` + 1 rows next to `cursor`, nearest first. The extra row shows that more rows follow.
    """
    rows = list(nearest)
    more, rows = len(rows) > size, rows[:size]
    if is_newer(cursor):
        rows = rows[::-1]
        return Page(rows, _from(rows, OLDER), _from(rows, NEWER) if more else None)
    return Page(rows, _from(rows, OLDER) if more else None, _from(rows, NEWER) if cursor else None)


def _from(rows: Sequence[Any], way: str) -> Cursor | None:
    if not rows:
        return None
    edge = rows[-1] if way == OLDER else rows[0]
    return Cursor(way, edge.created_at, edge.pk)


def newest_calls(calls: QuerySet[Any], most: int) -> list[Any]:
    """Return the newest calls, at most `most`, newest first.

    Recent partitions are tried first, because planning a query over all partitions takes longer than running it.
    """
    calls = calls.order_by("-created_at", "-pk")
    lately = list(calls.filter(created_at__gte=timezone.now() - RECENT)[:most])
    return lately if len(lately) == most else list(calls[:most])
