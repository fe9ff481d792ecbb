"""The logs as files: CSV for spreadsheets, JSON lines for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.db.models import QuerySet
from django.http import HttpRequest, StreamingHttpResponse
from django.utils import timezone

from auditlog.keyset import chunks
from auditlog.models import Call
from auditlog.search import Search
from ui.rest import stamp

MOST_ROWS = 100_000
TYPES = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}

# What no list or file says of a call: what it carried, and how long its row waited.
UNTOLD = ("recorded_at", "request_payload", "response_payload")
# What is told of a call: by which name, which column.
CALL_COLUMNS = {"id": "uid"} | {
    field.attname: field.attname for field in Call._meta.concrete_fields if field.name not in ("id", "uid", *UNTOLD)
}

# What a spreadsheet would take for a formula at the start of a cell.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_AS_STAMP = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_APPEND_NEWLINE


def export(rows: QuerySet[Any] | Search, kind: str, columns: Mapping[str, str]) -> Iterator[str]:
    """The rows as a file of this kind, in pieces; `columns` says by which name which column is told."""
    names = list(columns)
    if kind == "csv":
        yield _csv([names])
    # Plain values, since a model for each of 100,000 rows takes its time; by `pk` the next chunk is found.
    for some in _plain(rows, ("pk", *columns.values())):
        told = (row[1:] for row in some)
        yield _csv(told) if kind == "csv" else _jsonl(names, told)


def _plain(rows: QuerySet[Any] | Search, columns: Sequence[str]) -> Iterator[Sequence[Any]]:
    if isinstance(rows, Search):
        return rows.chunks(columns, MOST_ROWS)
    return chunks(rows.values_list(*columns, named=True), MOST_ROWS)


def download(request: HttpRequest, name: str, kind: str, pieces: Iterator[str]) -> StreamingHttpResponse:
    """The answer that is this file, called `name` and the time."""
    return StreamingHttpResponse(
        flowing(pieces) if isinstance(request, ASGIRequest) else pieces,
        content_type=TYPES[kind],
        headers={
            "Content-Disposition": f'attachment; filename="{name}-{timezone.now():%Y-%m-%d-%H%M%S}.{kind}"',
            "Cache-Control": "no-store",
        },
    )


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A cell no spreadsheet runs as a formula: tool names and addresses come from strangers."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    if isinstance(value, datetime):
        return stamp(value)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False) if value else ""
    return value


def _jsonl(names: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = (orjson.dumps(dict(zip(names, row, strict=True)), stamp, _AS_STAMP) for row in rows)
    return b"".join(lines).decode()


async def flowing(pieces: Iterator[str]) -> AsyncIterator[str]:
    """The same pieces for a response of an asynchronous server, which would otherwise collect them all first."""

    @sync_to_async
    def take() -> str | None:
        return next(pieces, None)

    while (piece := await take()) is not None:
        yield piece
