"""Exports of the logs: CSV for spreadsheets, JSON lines for programs. The last line shows if the file is complete.

docs/how-to/read-the-log.md describes the format and what readers must check.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import logging
import threading
import unicodedata
import weakref
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from typing import Any, Self

import orjson
import psycopg
from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.db import connection
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.utils import timezone
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.types.json import JsonbLoader

from auditlog import paging, replica
from auditlog.search import Search
from ui import databases
from ui.rest import ApiError, stamp

logger = logging.getLogger(__name__)

TYPES = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}
CHUNK = 2_000  # Rows in memory at once.
MAX_EXPORTS = 2  # Per person and process.
READERS = 4  # Exports in one process that may query the database at once, each over a separate connection.

_FORMULA = frozenset("=+-@")
_AS_STAMP = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_APPEND_NEWLINE

_lock = threading.Lock()
_running: dict[object, object] = {}  # The person who runs each export.
_reading = threading.BoundedSemaphore(READERS)


class TooManyExports(ApiError):
    """This person already runs their maximum number of exports in this process."""

    wait = 30.0  # Seconds, for Retry-After.

    def __init__(self) -> None:
        detail = f"{MAX_EXPORTS} of your exports are running. Try again when an export has ended."
        super().__init__(503, "too_many_exports", detail)


class IncompleteExport(Exception):
    """Reading the rows failed; the last line of the file says so, and the answer is cut off after it."""


class AsItIs(Loader):
    """Pass JSON from the database through unparsed, so that large numbers and deep nesting cannot fail."""

    def load(self, data: Buffer) -> orjson.Fragment:
        return orjson.Fragment(bytes(data))


class Export:
    """Rows as a file for one person, in pieces of a few thousand rows; `columns` maps fields to column names.

    Each piece is read by one statement over a separate connection, without the time limit of pages. The connection is
    closed before the piece is sent, so that a slow client holds no database resources. `close` may be called at any
    time, from any thread. Creating an Export raises TooManyExports; iterating raises IncompleteExport.
    """

    def __init__(self, rows: QuerySet[Any] | Search, kind: str, columns: Mapping[str, str], *, by: Any) -> None:
        self._kind, self._columns = kind, columns
        self._parts = list(rows.by_time()) if isinstance(rows, Search) else [rows]
        self._connect = replica.connector() or databases.connect_direct
        self._turn = threading.Lock()
        self._session: psycopg.Connection[Any] | None = None
        self._is_closed = False
        self._resources = ExitStack()
        self._resources.enter_context(_place_of(by.pk))
        try:
            with self._reader():
                """Fail here, before the answer begins, if the database cannot be reached."""
        except BaseException:
            self._resources.close()
            raise
        weakref.finalize(self, self._resources.close)  # Releases the slot if the response is never read.
        self._pieces = self._lines()

    def __iter__(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> str:
        with self._turn:
            try:
                return next(self._pieces)
            except BaseException:
                self._resources.close()  # So that close() need not be called at the end or after an error.
                raise

    def close(self) -> None:
        """Cancel the running statement, if any, and release the export's slot."""
        self._is_closed = True
        if (session := self._session) is not None:
            with suppress(psycopg.Error):
                session.cancel_safe(timeout=2)
        with self._turn:
            self._pieces.close()
            self._resources.close()

    def _lines(self) -> Generator[str]:
        count = 0
        if self._kind == "csv":
            yield _csv([self._columns])
        try:
            for some in self._chunks():
                count += len(some)
                yield _csv(some) if self._kind == "csv" else _jsonl(list(self._columns), some)
        except psycopg.Error as error:
            logger.warning("an export was interrupted", extra={"rows": count, "error": str(error)})
            yield self._last(count, complete=False)
            raise IncompleteExport(IncompleteExport.__doc__) from error
        yield self._last(count, complete=True)

    def _chunks(self) -> Iterator[list[tuple[Any, ...]]]:
        for part in self._parts:
            rows = part.order_by("-created_at", "-pk")
            while some := self._read(rows):
                yield [row[:-2] for row in some]
                if len(some) < CHUNK:
                    break
                rows = paging.beyond(part, paging.Cursor(paging.OLDER, *some[-1][-2:]))

    def _read(self, rows: QuerySet[Any]) -> list[tuple[Any, ...]]:
        """Return the first CHUNK rows, each with its position in the log (created_at, pk) appended."""
        columns = (*self._columns.values(), "created_at", "pk")
        statement, parameters = rows.values_list(*columns)[:CHUNK].query.sql_with_params()
        with _reading, self._reader() as session, session.cursor() as cursor:
            cursor.adapters.register_loader("jsonb", JsonbLoader if self._kind == "csv" else AsItIs)
            self._session = session
            try:
                return [] if self._is_closed else cursor.execute(statement.encode(), parameters).fetchall()
            finally:
                self._session = None

    @contextmanager
    def _reader(self) -> Iterator[psycopg.Connection[Any]]:
        """Yield a connection for reading: a new one, or the current one inside a transaction.

        The new connection leads to the replica if the export began there.
        """
        if connection.in_atomic_block:
            connection.ensure_connection()
            yield connection.connection
            return
        with self._connect() as own:
            own.execute("SET application_name = 'gateway export'; SET statement_timeout = 0")
            yield own

    def _last(self, count: int, *, complete: bool) -> str:
        if self._kind == "csv":
            return _csv([[f"# {'complete' if complete else 'incomplete'}: {count} rows"]])
        return orjson.dumps({"export": {"complete": complete, "rows": count}}, None, _AS_STAMP).decode()


@contextmanager
def _place_of(person: object) -> Iterator[None]:
    """Take one of this person's MAX_EXPORTS slots. Raises TooManyExports."""
    key = object()
    with _lock:
        if list(_running.values()).count(person) >= MAX_EXPORTS:
            raise TooManyExports
        _running[key] = person
    try:
        yield
    finally:
        _running.pop(key, None)  # Takes no lock, because the garbage collector may run this at any time.


def file_response(request: HttpRequest, name: str, kind: str, pieces: Export) -> StreamingHttpResponse:
    """Return the export as a download whose file name is `name` plus the time."""
    return StreamingHttpResponse(
        stream_export(pieces) if isinstance(request, ASGIRequest) else pieces,
        content_type=TYPES[kind],
        headers={
            "Content-Disposition": f'attachment; filename="{name}-{timezone.now():%Y-%m-%d-%H%M%S}.{kind}"',
            "Cache-Control": "no-store",
        },
    )


def too_many_response(refused: TooManyExports) -> HttpResponse:
    """Return a plain-text 503 response with Retry-After, for pages that cannot start an export."""
    headers = {"Retry-After": f"{refused.wait:.0f}"}
    return HttpResponse(refused.detail, status=refused.status_code, headers=headers, content_type="text/plain")


async def stream_export(pieces: Export) -> AsyncIterator[str]:
    """Yield the pieces of the export, read in a thread; close the export when the client disconnects."""

    @sync_to_async
    def take() -> str | None:
        return next(pieces, None)

    try:
        while (piece := await take()) is not None:
            yield piece
    finally:
        await asyncio.shield(asyncio.to_thread(pieces.close))


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a few rows as a whole CSV file with a header line and escaped cells; empty if there are no rows."""
    return _csv([list(rows[0]), *(list(row.values()) for row in rows)]) if rows else ""


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Escape formulas, so that spreadsheets do not run them: tool names and addresses are untrusted."""
    if isinstance(value, str):
        return f"'{value}" if _is_formula(value) else value
    if isinstance(value, datetime):
        return stamp(value)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False) if value else ""
    return value


def _is_formula(value: str) -> bool:
    """True if a spreadsheet might run `value`: a formula sign after optional blanks, quotes and invisible characters.

    Full-width signs count too. A value that starts with a line break or tab always counts, because a spreadsheet may
    start a new cell there.
    """
    if not value or (value[0].isalnum() and value[0].isascii()):
        return False
    if unicodedata.category(value[0]) == "Cc":
        return True
    for sign in value:
        if sign in "\"'`" or sign.isspace() or unicodedata.category(sign) in ("Cc", "Cf", "Zs", "Pi", "Pf"):
            continue
        return unicodedata.normalize("NFKC", sign)[0] in _FORMULA or sign == "\N{MINUS SIGN}"
    return False


def _jsonl(names: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = (orjson.dumps(dict(zip(names, row, strict=True)), stamp, _AS_STAMP) for row in rows)
    return b"".join(lines).decode()
