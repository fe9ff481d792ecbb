"""The archive of old calls: before retention drops a partition, its rows are written to Parquet, elsewhere.

A day has files of its own, and a manifest that names them, how many rows they hold and a digest of them. Each file is
read back and its rows are compared with those that were read; a partition that is not in the archive whole is not
dropped. Days are found by their names, so that nothing but the archive is needed to search it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import httpcore
import httpx
import orjson
from django.conf import settings
from django.db import Error, connection, transaction
from django.utils import timezone
from prometheus_client import Gauge
from psycopg import sql

from auditlog.checkpoints.tree import CANONICAL, NEWEST, columns_of, leaf_of
from auditlog.models import Call
from auditlog.partitions import DAY, Span, midnight
from servers.upstream_guard import upstream_guard
from sinks.models import LONGEST_ERROR, ArchivedPartition
from sinks.objects import S3, Folder, NotKept, Objects
from wire.forward_proxy import ProxyFailed

PART_BYTES = 32 << 20  # Of one file, compressed.
FETCHED = 200  # Rows at a time.
REQUEST_S = 120.0
NEEDS_EXTRA = "The archive takes the extra “archive”: pip install 'gateway-admin[archive]'."

WAITING = Gauge(
    "gateway_partitions_not_archived",
    "Partitions of the log past retention that could not be archived, and are kept",
    multiprocess_mode="mostrecent",
)


class NotArchived(Exception):
    """Rows are not in the archive; the message says why."""


class Unreadable(Exception):
    """The archive cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a day: its name below the archive, its rows, and the SHA-256 of its bytes."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is archived of a day. `digest` is over the leaves of its rows, in the order of the log: SHA-256 of each uid
    and digest as checkpoints have them (docs/decisions/0033-checkpoints-of-the-log.md)."""

    day: str
    columns: int
    rows: int
    digest: str
    parts: tuple[Part, ...]

    @classmethod
    def read(cls, text: bytes) -> Manifest:
        """Raises Unreadable."""
        try:
            told = orjson.loads(text)
            return cls(**told | {"parts": tuple(Part(**one) for one in told["parts"])})
        except (ValueError, TypeError, KeyError):
            raise Unreadable("A manifest of the archive is none.") from None

    def written(self) -> bytes:
        return orjson.dumps(self, option=CANONICAL)


def is_on() -> bool:
    """Whether calls are archived before they are dropped."""
    return bool(settings.ARCHIVE)


def opened() -> Objects:
    """The archive of the settings."""
    place: str = settings.ARCHIVE
    if place.startswith("/"):
        return Folder(Path(place))
    return S3(place, settings.ARCHIVE_KEYS, upstream_guard(), REQUEST_S)


def archive_before(limit: date) -> int:
    """Archive the partitions that may be dropped before `limit`, oldest first; how many were not archived before.

    Nothing where the archive is off. Raises NotArchived for the first that cannot be archived, which is noted.
    """
    number = 0
    if not is_on():
        ArchivedPartition.objects.filter(archived_at=None).delete()  # They are dropped as they are.
    else:
        for name, span in Call.partitions.expired(limit):
            try:
                number += archive(name, span)
            except NotArchived as reason:
                told = {"archived_at": None, "last_error": str(reason)[:LONGEST_ERROR], "failed_at": timezone.now()}
                _note(name, span, **told)
                raise
    return number


def keep_from(limit: date) -> date:
    """The day from which calls have to be kept, when they may be dropped before `limit`: that of the oldest partition
    which is not archived, where the archive is on."""
    if not is_on():
        return limit
    archived = set(ArchivedPartition.objects.exclude(archived_at=None).values_list("pk", flat=True))
    return min((span.start for name, span in Call.partitions.expired(limit) if name not in archived), default=limit)


def note_waiting() -> int:
    """Say in the metrics how many partitions could not be archived; the number."""
    number: int = waiting().count()
    WAITING.set(number)
    return number


def waiting() -> Any:
    """The partitions that could not be archived, and are kept until they are."""
    return ArchivedPartition.objects.filter(archived_at=None).exclude(failed_at=None)


def archive(name: str, span: Span) -> bool:
    """Have the rows of a partition in the archive, as they are now: whether there was anything to do.

    Raises NotArchived.
    """
    if find_spec("pyarrow") is None:
        raise NotArchived(NEEDS_EXTRA)
    known = ArchivedPartition.objects.filter(pk=name).exclude(archived_at=None).first()
    if known and known.rows == _count(name):
        return False
    try:
        manifests = []
        with opened() as store:
            day = span.start
            while day < span.end:
                manifests.append(_archive_day(store, name, day))
                day += DAY
        rows = sum(one.rows for one in manifests)
        if rows != (now := _count(name)):
            raise NotArchived(f"It has {now} rows, and {rows} were read: somebody writes to it.")
    except (NotKept, httpx.HTTPError, httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
        raise NotArchived(_in_words(error)) from error
    except Error as error:
        raise NotArchived(f"Its rows could not be read ({type(error).__name__}).") from error
    digest = sha256("".join(one.digest for one in manifests).encode()).hexdigest()
    _note(name, span, rows=rows, digest=digest, archived_at=timezone.now(), last_error="", failed_at=None)
    return True


def _in_words(error: Exception) -> str:
    if isinstance(error, NotKept):
        return f"The archive {error}"
    if isinstance(error, ProxyFailed):
        return f"The archive cannot be reached: {error}."
    if isinstance(error, OSError) and error.strerror:
        return f"The archive cannot be written: {error.strerror}."
    return f"The archive cannot be reached ({type(error).__name__})."


def _note(name: str, span: Span, **fields: Any) -> None:
    told = {"begin": span.start, "end": span.end, **fields}
    ArchivedPartition.objects.update_or_create(pk=name, defaults=told)


def _count(name: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(name)))
        return int(cursor.fetchone()[0])


def _folder(day: date) -> str:
    return f"calls/{day:%Y/%m/%d}"


def _manifest_name(day: date, number: int) -> str:
    return f"{_folder(day)}/manifest-{number}.json"


def _archive_day(store: Objects, partition: str, day: date) -> Manifest:
    """Write the rows of a day and their manifest, unless there is one that says the same."""
    made = _written(store, partition, day)
    _compare(store, made)
    for number in count(1):
        name = _manifest_name(day, number)
        if store.put(name, made.written()):
            return made
        # Of an earlier try, or of before a row came that took very long: then the day is there once more, whole.
        there = _read(store, name)
        if (there.rows, there.digest) == (made.rows, made.digest):
            _compare(store, there)
            return there
    raise AssertionError  # Numbers do not end.


def _read(store: Objects, name: str) -> Manifest:
    try:
        return Manifest.read(store.get(name) or b"")
    except Unreadable as reason:
        raise NotArchived(str(reason)) from reason


def _written(store: Objects, partition: str, day: date) -> Manifest:
    parquet = import_module("sinks.parquet")
    parts: list[Part] = []
    schema, digest = parquet.schema_of(NEWEST), sha256()
    rows = _rows(partition, day)
    row = next(rows, None)
    while row is not None:
        writer = parquet.Writer(schema)
        while row is not None and writer.size < PART_BYTES:
            digest.update(leaf_of(row).packed)
            writer.add(_plain(row), _size(row))
            row = next(rows, None)
        data = writer.close()
        fingerprint = sha256(data).hexdigest()
        name = f"{_folder(day)}/{len(parts) + 1:05}-{fingerprint[:16]}.parquet"
        store.put(name, data)
        parts.append(Part(name, writer.rows, fingerprint))
    total = sum(part.rows for part in parts)
    return Manifest(day.isoformat(), NEWEST, total, digest.hexdigest(), tuple(parts))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, UUID) else value for name, value in row.items()}


def _size(row: dict[str, Any]) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, str)) + 200


def _rows(partition: str, day: date) -> Iterator[dict[str, Any]]:
    """The rows of a day in the order of the log, some at a time."""
    begin = midnight(day)
    asked = sql.SQL(
        f"SELECT {columns_of(NEWEST)} FROM {{}} WHERE created_at >= %s AND created_at < %s ORDER BY created_at, id"  # noqa: S608
    ).format(sql.Identifier(partition))
    with transaction.atomic(), connection.chunked_cursor() as cursor:
        cursor.execute(asked, [begin, begin + DAY])
        names: list[str] = []
        while rows := cursor.fetchmany(FETCHED):
            names = names or [column.name for column in cursor.description]
            yield from (dict(zip(names, row, strict=True)) for row in rows)


def _compare(store: Objects, manifest: Manifest) -> None:
    """Read back what is in the archive. Raises NotArchived unless it is what was in the partition, row by row."""
    digest, rows = sha256(), 0
    try:
        for row in rows_of(store, manifest):
            digest.update(leaf_of(row | {"uid": UUID(row["uid"])}).packed)
            rows += 1
    except Unreadable as reason:
        raise NotArchived(str(reason)) from reason
    if (rows, digest.hexdigest()) != (manifest.rows, manifest.digest):
        raise NotArchived(f"What was written of {manifest.day} does not read as the rows it was written from.")


def rows_of(store: Objects, manifest: Manifest, equal: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a day in the archive, those only whose columns are `equal` to these. Raises Unreadable when a file is
    missing or another one than was written."""
    parquet = import_module("sinks.parquet")
    for part in manifest.parts:
        data = store.get(part.name)
        if data is None:
            raise Unreadable(f"{part.name} is missing in the archive.")
        if sha256(data).hexdigest() != part.sha256:
            raise Unreadable(f"{part.name} was changed in the archive.")
        yield from parquet.rows_of(data, equal)


def search(since: datetime, until: datetime, equal: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The archived calls dated from `since` to before `until` whose columns are `equal` to these, day by day.

    Raises Unreadable.
    """
    if find_spec("pyarrow") is None:
        raise Unreadable(NEEDS_EXTRA)
    with opened() as store:
        day = since.date()
        while day < until.date() + DAY:
            seen: set[str] = set()
            for manifest in _manifests(store, day):
                for row in rows_of(store, manifest, equal):
                    if since <= row["created_at"] < until and row["uid"] not in seen:
                        seen.add(row["uid"])
                        yield row
            day += DAY


def _manifests(store: Objects, day: date) -> Iterator[Manifest]:
    """The newest first: it has all that is in those before."""
    found: list[Manifest] = []
    for number in count(1):
        text = store.get(_manifest_name(day, number))
        if text is None:
            break
        found.append(Manifest.read(text))
    yield from reversed(found)
