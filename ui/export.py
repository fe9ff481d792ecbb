"""Export lists and logs: CSV for spreadsheets, JSON lines for programs.

The last line of a file says whether the file is complete. docs/how-to/read-the-log.md describes the format, and how to
check that line.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import logging
import re
import threading
import unicodedata
import weakref
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

import orjson
import psycopg
from asgiref.sync import sync_to_async
from django.apps import apps
from django.core.handlers.asgi import ASGIRequest
from django.db import DatabaseError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, StreamingHttpResponse
from django.utils import timezone

from ui import databases
from ui.rest import ApiError, stamp

if TYPE_CHECKING:
    from collections.abc import Callable

    from ui.pages import AppRequest
    from ui.tables import TableView

logger = logging.getLogger(__name__)

TYPES = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}
LIST_CHUNK = 500  # Rows of a list in memory at once.
MAX_EXPORTS = 2  # Per person and process.
READERS = 4  # Exports in one process that may query the database at once, each over a separate connection.

_FORMULA = frozenset("=+-@")
# Matches a separator followed by a formula sign, inside a cell: some spreadsheets begin a new cell at the separator.
_NEW_CELL = re.compile(r"([;\t\r\n][\s\"']*)(?=[=+\-@])")
_AS_STAMP = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_APPEND_NEWLINE

_lock = threading.Lock()
_running: dict[object, object] = {}  # Maps each running export to the person who runs it.
reading = threading.BoundedSemaphore(READERS)


class TooManyExports(ApiError):
    """This person already runs their maximum number of exports in this process."""

    wait = 30.0  # Seconds, for Retry-After.

    def __init__(self) -> None:
        detail = f"{MAX_EXPORTS} of your exports are running. Try again when an export has ended."
        super().__init__(503, "too_many_exports", detail)


class IncompleteExport(Exception):
    """Reading the rows failed. The last line of the file says so, and then the response is cut off."""


class Export:
    """A file of rows that the person `by` exports, written a few rows at a time.

    Creating an export may raise TooManyExports, and iterating over it may raise IncompleteExport. `close` may be called
    at any time, from any thread. Subclasses implement `chunks`, which yields the rows.
    """

    def __init__(self, kind: str, columns: Sequence[str], *, by: Any) -> None:
        self._kind, self._columns = kind, columns
        self._turn = threading.Lock()
        self._is_closed = False
        self._resources = ExitStack()
        self._resources.enter_context(_place_of(by.pk))
        try:
            self.begin()
        except BaseException:
            self._resources.close()
            raise
        weakref.finalize(self, self._resources.close)  # Releases the slot if the response is never read.
        self._pieces = self.pieces()

    def begin(self) -> None:
        """Prepare reading. This runs before the answer begins, so an exception can still become an error response."""

    def chunks(self) -> Iterator[Sequence[Sequence[Any]]]:
        """Yield lists of a few rows each; the cells of a row are in the order of the columns."""
        # Subclasses hold no database connection between two chunks, because clients may be slow.
        raise NotImplementedError

    def interrupt(self) -> None:
        """Cancel the running query, if any."""

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
                self._resources.close()  # At the end or after an error, so that callers need not call close().
                raise

    def close(self) -> None:
        """Cancel the running query, if any, and release the export's slot."""
        self._is_closed = True
        self.interrupt()
        with self._turn:
            self._pieces.close()
            self._resources.close()

    def pieces(self) -> Generator[str]:
        """Yield the file: the column names (CSV only), the rows, and a line that says whether the file is complete."""
        count = 0
        if self._kind == "csv":
            yield _csv([self._columns])
        try:
            for some in self.chunks():
                count += len(some)
                yield _csv(some) if self._kind == "csv" else _jsonl(self._columns, some)
        except (psycopg.Error, DatabaseError) as error:
            logger.warning("an export was interrupted", extra={"rows": count, "error": str(error)})
            yield self._last(count, complete=False)
            raise IncompleteExport(IncompleteExport.__doc__) from error
        yield self._last(count, complete=True)

    def _last(self, count: int, *, complete: bool) -> str:
        if self._kind == "csv":
            return _csv([[f"# {'complete' if complete else 'incomplete'}: {count} rows"]])
        return orjson.dumps({"export": {"complete": complete, "rows": count}}, None, _AS_STAMP).decode()


@contextmanager
def _place_of(person: object) -> Iterator[None]:
    """Hold one of this person's MAX_EXPORTS slots during the block. Raises TooManyExports."""
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
    """Return the plain-text 503 response of a page that cannot start an export, with Retry-After."""
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


# Exports of lists: all columns that the viewer may see, of all rows that the filters match.


class ListExport(Export):
    """The rows of a list, in the order of the list.

    `detail` and `wrap` mean the same as in `ui.viewset.list_page`. `rows` may also be a sequence instead of a query.
    """

    def __init__(
        self,
        view: TableView,
        rows: QuerySet[Any] | Sequence[Any],
        kind: str,
        *,
        by: Any,
        detail: Callable[[Any], QuerySet[Any]] | None = None,
        wrap: Callable[[Any], Any] | None = None,
    ) -> None:
        self._view, self._rows, self._detail, self._wrap = view, rows, detail, wrap
        super().__init__(kind, [name for name, _ in view.exported], by=by)

    def begin(self) -> None:
        # All keys are read first, so rows that are deleted meanwhile are left out, and no row appears twice.
        rows = self._rows
        self._keys: Sequence[Any] = list(rows.values_list("pk", flat=True)) if isinstance(rows, QuerySet) else rows
        self._count = len(self._keys)

    def chunks(self) -> Iterator[Sequence[Sequence[Any]]]:
        for start in range(0, self._count, LIST_CHUNK):
            with reading, databases.apart():
                if self._is_closed:
                    return
                some = self._keys[start : start + LIST_CHUNK]
                rows = self._loaded(self._rows, some) if isinstance(self._rows, QuerySet) else some
                shown = map(self._wrap, rows) if self._wrap else rows
                cells = [[value(row) for _, value in self._view.exported] for row in shown]
            yield cells

    def _loaded(self, listed: QuerySet[Any], keys: Sequence[Any]) -> list[Any]:
        """Return the rows with these keys, in the order of the keys."""
        query = self._detail(listed.model._default_manager.all()) if self._detail else listed
        rows = query.order_by().in_bulk(keys)
        return [rows[key] for key in keys if key in rows]


def list_export(
    request: AppRequest,
    view: TableView,
    rows: QuerySet[Any] | Sequence[Any],
    detail: Callable[[Any], QuerySet[Any]] | None = None,
    wrap: Callable[[Any], Any] | None = None,
) -> HttpResponse | None:
    """Return the list as a file and record the export. Return None if the request has no `?format=`."""
    kind = request.GET.get("format")
    if kind is None:
        return None
    if kind not in TYPES:
        return HttpResponseBadRequest("format must be csv or jsonl.", content_type="text/plain")
    try:
        pieces = ListExport(view, rows, kind, by=request.user, detail=detail, wrap=wrap)
    except TooManyExports as refused:
        return too_many_response(refused)
    changes = {"list": [None, view.table.caption], "filters": [None, request.GET.urlencode()[:500]]}
    event: Any = apps.get_model("auditlog", "Event")  # By name, because ui must not import auditlog.
    event.objects.record("list.exported", request.user, by=request.user, changes=changes)
    return file_response(request, view.table.key, kind, pieces)  # type: ignore[return-value]  # A stream is a response too.


# Cells.


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a few rows as a whole CSV file with a header line and escaped cells; empty if there are no rows."""
    return _csv([list(rows[0]), *(list(row.values()) for row in rows)]) if rows else ""


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Escape formulas in untrusted text, such as tool names, so that spreadsheets do not run them."""
    if isinstance(value, str):
        value = _NEW_CELL.sub(r"\1'", value)
        return f"'{value}" if _is_formula(value) else value
    if isinstance(value, datetime):
        return stamp(value)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False) if value else ""
    if isinstance(value, list | tuple):
        return _cell(", ".join(map(str, value)))
    return value


def _is_formula(value: str) -> bool:
    """True if a spreadsheet might run `value` as a formula.

    Blanks, quotes and invisible characters can come before the formula sign.
    """
    if not value or (value[0].isalnum() and value[0].isascii()):
        return False
    if unicodedata.category(value[0]) == "Cc":  # After a line break or tab, a spreadsheet may start a new cell.
        return True
    for sign in value:
        if sign in "\"'`" or sign.isspace() or unicodedata.category(sign) in ("Cc", "Cf", "Zs", "Pi", "Pf"):
            continue
        # Full-width signs count too.
        return unicodedata.normalize("NFKC", sign)[0] in _FORMULA or sign == "\N{MINUS SIGN}"
    return False


def _jsonl(names: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = (orjson.dumps(dict(zip(names, row, strict=True)), stamp, _AS_STAMP) for row in rows)
    return b"".join(lines).decode()
