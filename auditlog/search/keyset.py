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


class BadCursor(ValueError):
    """This cursor was not made here."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in the log, and the direction to page from there."""

    way: str
    at: datetime
    pk: int

    def __str__(self) -> str:
        return f"{self.way}{(self.at - EPOCH) // MICROSECOND}-{self.pk}"

    @classmethod
    def read(cls, text: str) -> Cursor:
        """The cursor parsed from `text`. Raises BadCursor."""
        way, (micros, _, pk) = text[:1], text[1:].partition("-")
        if way not in (OLDER, NEWER) or not (text.isascii() and micros.isdecimal() and pk.isdecimal()):
            raise BadCursor(BadCursor.__doc__)
        try:
            return cls(way, EPOCH + int(micros[:20]) * MICROSECOND, min(int(pk[:20]), LAST))
        except OverflowError:
            raise BadCursor(BadCursor.__doc__) from None

    @classmethod
    def named(cls, text: str) -> Cursor | None:
        """The cursor of a query string; None, for the newest page, when it has none."""
        try:
            return cls.read(text)
        except BadCursor:
            return None


def older_than[M: Any](rows: QuerySet[M], at: datetime, pk: int) -> QuerySet[M]:
    """The rows before a place. The first condition is the one an index and the partitions know."""
    return rows.filter(Q(created_at__lt=at) | Q(pk__lt=pk), created_at__lte=at).order_by("-created_at", "-pk")


def newer_than[M: Any](rows: QuerySet[M], at: datetime, pk: int) -> QuerySet[M]:
    """The rows after a place, the nearest first."""
    return rows.filter(Q(created_at__gt=at) | Q(pk__gt=pk), created_at__gte=at).order_by("created_at", "pk")


@dataclass(frozen=True, slots=True)
class Page[M: Any]:
    """Some rows, newest first, and the cursors of its neighbours; None where the log ends."""

    rows: Sequence[M]
    older: Cursor | None
    newer: Cursor | None


def beyond[M: Any](rows: QuerySet[M], cursor: Cursor | None) -> QuerySet[M]:
    """The rows on the side of a cursor to which it goes; all of them without one, the newest first."""
    if cursor is None:
        return rows.order_by("-created_at", "-pk")
    return (newer_than if cursor.way == NEWER else older_than)(rows, cursor.at, cursor.pk)


def together(parts: Sequence[Any]) -> Any:
    """The rows of some queries, which have none in common and are in the same order, as one."""
    first, *others = parts
    return first.union(*others, all=True).order_by(*first.query.order_by) if others else first


def page[M: Any](parts: Sequence[QuerySet[M]], cursor: Cursor | None, size: int, at_once: int = 1) -> Page[M]:
    """The page a cursor names, the newest one without, of rows that may come from several queries.

    `parts` have no row in common. An index that leads to one value each gives its rows in their order. So many of them
    as `at_once` says are asked in one statement.
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
