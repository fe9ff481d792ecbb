"""Keyset pagination of a growing log: a cursor names the row where a page ends, so new rows shift nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import batched
from typing import Any

from django.db.models import Q, QuerySet

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
OLDER, NEWER = "o", "n"
LAST = 2**63 - 1


class BadLogCursor(ValueError):
    """This cursor was not made here."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in the log, and the paging direction."""

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
        """Return the cursor in a query string, or None (the newest page) if there is no valid one."""
        try:
            return cls.read(text)
        except BadLogCursor:
            return None


def older_than[M: Any](rows: QuerySet[M], at: datetime, pk: int) -> QuerySet[M]:
    """Return the rows before a position. `created_at__lte` lets PostgreSQL use the index and skip partitions."""
    return rows.filter(Q(created_at__lt=at) | Q(pk__lt=pk), created_at__lte=at).order_by("-created_at", "-pk")


def newer_than[M: Any](rows: QuerySet[M], at: datetime, pk: int) -> QuerySet[M]:
    """Return the rows after a position, nearest first."""
    return rows.filter(Q(created_at__gt=at) | Q(pk__gt=pk), created_at__gte=at).order_by("created_at", "pk")


@dataclass(frozen=True, slots=True)
class Page[M: Any]:
    """Rows, newest first, and the cursors of the neighbouring pages; None at an end of the log."""

    rows: Sequence[M]
    older: Cursor | None
    newer: Cursor | None


def beyond[M: Any](rows: QuerySet[M], cursor: Cursor | None) -> QuerySet[M]:
    """Return the rows on the cursor's side; without a cursor all rows, newest first."""
    if cursor is None:
        return rows.order_by("-created_at", "-pk")
    return (newer_than if cursor.way == NEWER else older_than)(rows, cursor.at, cursor.pk)


def together(parts: Sequence[Any]) -> Any:
    """Combine the rows of disjoint queries with the same order into one query."""
    first, *others = parts
    return first.union(*others, all=True).order_by(*first.query.order_by) if others else first


def page[M: Any](parts: Sequence[QuerySet[M]], cursor: Cursor | None, size: int, at_once: int = 1) -> Page[M]:
    """Return the cursor's page (the newest one without) of rows from one or more queries.

    `parts` are disjoint. Each uses an index with a single value, which returns rows in order. `at_once` parts are
    queried in one statement.
    """
    found = [beyond(part, cursor)[: size + 1] for part in parts]
    rows = [row for few in batched(found, at_once) for row in together(few)[: size + 1]]
    forward = cursor is not None and cursor.way == NEWER
    if len(parts) > at_once:
        rows.sort(key=lambda row: (row.created_at, row.pk), reverse=not forward)
    more, page_rows = len(rows) > size, rows[:size]
    if forward:
        page_rows = page_rows[::-1]
        return Page(page_rows, _from(page_rows, OLDER), _from(page_rows, NEWER) if more else None)
    return Page(page_rows, _from(page_rows, OLDER) if more else None, _from(page_rows, NEWER) if cursor else None)


def _from(rows: Sequence[Any], way: str) -> Cursor | None:
    if not rows:
        return None
    edge = rows[-1] if way == OLDER else rows[0]
    return Cursor(way, edge.created_at, edge.pk)
