"""Exports of the logs, with any number of rows (see ui.export)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import orjson
import psycopg
from django.db import connection
from django.db.models import QuerySet
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.types.json import JsonbLoader

from auditlog import paging, replica
from auditlog.search import Search
from ui import databases
from ui.export import Export, reading

CHUNK = 2_000  # Rows in memory at once.


class AsItIs(Loader):
    """Loads JSON unparsed: parsing could fail for large numbers or deep nesting."""

    def load(self, data: Buffer) -> orjson.Fragment:
        return orjson.Fragment(bytes(data))


class LogExport(Export):
    """Rows of a log, newest first; `columns` maps fields to column names.

    A new database connection reads each chunk of rows. The time limit for queries of pages does not apply to it.
    """

    def __init__(self, rows: QuerySet[Any] | Search, kind: str, columns: Mapping[str, str], *, by: Any) -> None:
        self._sources = columns
        self._parts = list(rows.by_time()) if isinstance(rows, Search) else [rows]
        # Read from the replica if the export began on the replica.
        self._connect = replica.connector() or databases.connect_direct
        self._session: psycopg.Connection[Any] | None = None
        super().__init__(kind, list(columns), by=by)

    def begin(self) -> None:
        with self.reader():
            """Connect to the database and do nothing else.

            If the database cannot be reached, this raises the error before the answer begins.
            """

    def interrupt(self) -> None:
        if (session := self._session) is not None:
            with suppress(psycopg.Error):
                session.cancel_safe(timeout=2)

    def chunks(self) -> Iterator[list[tuple[Any, ...]]]:
        for part in self._parts:
            rows = part.order_by("-created_at", "-pk")
            while some := self._read(rows):
                yield [row[:-2] for row in some]
                if len(some) < CHUNK:
                    break
                rows = paging.beyond(part, paging.Cursor(paging.OLDER, *some[-1][-2:]))

    def _read(self, rows: QuerySet[Any]) -> list[tuple[Any, ...]]:
        """Return the first CHUNK rows, each with its position in the log (created_at, pk) appended."""
        columns = (*self._sources.values(), "created_at", "pk")
        statement, parameters = rows.values_list(*columns)[:CHUNK].query.sql_with_params()
        # The connection is closed before the rows are sent, so that a slow client holds no database resources.
        with reading, self.reader() as session, session.cursor() as cursor:
            cursor.adapters.register_loader("jsonb", JsonbLoader if self._kind == "csv" else AsItIs)
            self._session = session
            try:
                return [] if self._is_closed else cursor.execute(statement.encode(), parameters).fetchall()
            finally:
                self._session = None

    @contextmanager
    def reader(self) -> Iterator[psycopg.Connection[Any]]:
        """Yield a database connection for reading: the current one inside a transaction, otherwise a new one."""
        if connection.in_atomic_block:
            connection.ensure_connection()
            yield connection.connection
            return
        with self._connect() as own:
            own.execute("SET application_name = 'gateway export'; SET statement_timeout = 0")
            yield own
