"""The log as a file: CSV for spreadsheets, JSON lines for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.db.models import QuerySet
from django.http import HttpRequest, StreamingHttpResponse
from django.utils import timezone

from auditlog.keyset import chunks

MOST_ROWS = 100_000
TYPES = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}

# What a spreadsheet would take for a formula at the start of a cell.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export[M: Any](
    rows: QuerySet[M], kind: str, tell: Callable[[M], Mapping[str, Any]], columns: Sequence[str]
) -> Iterator[str]:
    """The rows as a file of this kind, in pieces; `tell` says what is told of one, in the order of `columns`."""
    if kind == "csv":
        yield _csv([columns])
    for some in chunks(rows, MOST_ROWS):
        told = [tell(row) for row in some]
        yield _csv([row.values() for row in told]) if kind == "csv" else _jsonl(told)


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
    csv.writer(text).writerows([_safe(value) for value in row] for row in rows)
    return text.getvalue()


def _safe(value: Any) -> Any:
    """A cell no spreadsheet runs as a formula: tool names and addresses come from strangers."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


async def flowing(pieces: Iterator[str]) -> AsyncIterator[str]:
    """The same pieces for a response of an asynchronous server, which would otherwise collect them all first."""

    @sync_to_async
    def take() -> str | None:
        return next(pieces, None)

    while (piece := await take()) is not None:
        yield piece
