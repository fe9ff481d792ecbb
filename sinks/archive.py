"""Archive old calls to Parquet files before retention drops their partitions.

Each day has its own files and a manifest. Files are read back and compared with the database before a partition is
dropped. The archive can be searched without the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
from django.conf import settings
from django.db import Error, connection, transaction
from django.utils import timezone
from prometheus_client import Gauge
from psycopg import sql

from accounts.models import WorkspaceSettings
from auditlog.actions import Action
from auditlog.checkpoints.sealing import CANONICAL, NEWEST, columns_of, leaf_of
from auditlog.models import Call, Event
from auditlog.partitions import DAY, PartitionDays, midnight
from servers.upstream_guard import upstream_guard
from sinks.models import LONGEST_ERROR, ArchivedPartition
from sinks.objects import S3, Folder, Objects
from sinks.receivers import NEEDS_EXTRA
from wire.outbound import NoAnswer

PART_BYTES = 32 << 20  # Compressed size of a file.
FETCHED = 200  # Rows fetched at a time.
REQUEST_S = 120.0

WAITING = Gauge(
    "gateway_partitions_not_archived",
    "Partitions of the log past retention that could not be archived, so they are kept",
    multiprocess_mode="mostrecent",
)


class NotArchived(Exception):
    """Rows could not be archived; the message says why."""


class UnreadableArchive(Exception):
    """The archive cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """One file of a day: its name in the archive, its number of rows, and the SHA-256 of its bytes."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of an archived day.

    `digest` is the SHA-256 of the rows' uids and digests in the order of the log, as in checkpoints
    (docs/decisions/0033-checkpoints-of-the-log.md).
    """

    day: str
    columns: int
    rows: int
    digest: str
    parts: tuple[ArchiveFile, ...]

    @classmethod
    def read(cls, text: bytes) -> Manifest:
        """Parse a manifest. Raises UnreadableArchive."""
        try:
            told = orjson.loads(text)
            return cls(**told | {"parts": tuple(ArchiveFile(**one) for one in told["parts"])})
        except (ValueError, TypeError, KeyError):
            raise UnreadableArchive("A manifest of the archive is invalid.") from None

    def written(self) -> bytes:
        return orjson.dumps(self, option=CANONICAL)


def archive_enabled() -> bool:
    """True if calls are archived before they are dropped."""
    return bool(settings.ARCHIVE)


def archive_place() -> str | None:
    """Return where this process archives calls: a folder, or the URL of a bucket; None if the archive is disabled."""
    place: str = settings.ARCHIVE
    return (place if place.startswith("/") else place.partition("?")[0]) or None


def open_archive() -> Objects:
    """Return the archive that the settings name."""
    place: str = settings.ARCHIVE
    if place.startswith("/"):
        return Folder(Path(place))
    return S3(place, settings.ARCHIVE_KEYS, upstream_guard(), REQUEST_S)


@contextmanager
def _reading() -> Iterator[Objects]:
    """Open the archive for reading. Raises UnreadableArchive if it cannot be reached."""
    try:
        with open_archive() as store:
            yield store
    except NoAnswer as error:
        raise UnreadableArchive(f"The archive {error}.") from error
    except OSError as error:
        raise UnreadableArchive(f"The archive cannot be read ({type(error).__name__}).") from error


def archive_before(limit: date) -> int:
    """Archive the partitions in which all rows are older than `limit`. Return how many were archived now.

    Archives nothing if the archive is disabled. Raises NotArchived at the first partition that cannot be archived.
    """
    number, failed = 0, ArchivedPartition.objects.filter(archived_at=None)
    if not archive_enabled():
        failed.delete()  # These partitions will be dropped without being archived.
    else:
        expired = [*Call.partitions.expired(limit)]
        failed.exclude(pk__in=[name for name, _ in expired]).delete()  # A longer retention keeps these for now.
        for name, span in expired:
            try:
                number += archive(name, span)
            except NotArchived as reason:
                told = {"archived_at": None, "last_error": str(reason)[:LONGEST_ERROR], "failed_at": timezone.now()}
                _note(name, span, **told)
                raise
    return number


def keep_from(limit: date) -> date:
    """Return the first day whose calls must be kept.

    If expired partitions still have to be archived, this is the first day of the oldest of them. Otherwise it is
    `limit`.
    """
    if not archive_enabled():
        return limit
    archived = set(ArchivedPartition.objects.exclude(archived_at=None).values_list("pk", flat=True))
    return min((span.start for name, span in Call.partitions.expired(limit) if name not in archived), default=limit)


def must_have_archived(name: str, rows: int) -> None:
    """Raise NotArchived unless exactly `rows` calls of the partition are archived, or the archive is disabled."""
    archived = ArchivedPartition.objects.filter(pk=name, rows=rows).exclude(archived_at=None)
    if archive_enabled() and not archived.exists():
        raise NotArchived(f"The partition has {rows} rows. Some of them are not archived yet.")


def note_waiting() -> int:
    """Update the metric of partitions that could not be archived, and return their number."""
    number: int = waiting().count()
    WAITING.set(number)
    return number


def waiting() -> Any:
    """Return the partitions that could not be archived. Such partitions are not dropped."""
    return ArchivedPartition.objects.filter(archived_at=None).exclude(failed_at=None)


def archive(name: str, span: PartitionDays) -> bool:
    """Archive the current rows of a partition and return True, or return False if they are archived already.

    Raises NotArchived.
    """
    if find_spec("pyarrow") is None:
        raise NotArchived(f"The archive {NEEDS_EXTRA}")
    known = ArchivedPartition.objects.filter(pk=name).exclude(archived_at=None).first()
    if known and known.rows == _count(name):
        return False
    try:
        manifests = []
        with open_archive() as store:
            day = span.start
            while day < span.end:
                manifests.append(_archive_day(store, name, day))
                day += DAY
        rows = sum(one.rows for one in manifests)
        if rows != (now := _count(name)):
            raise NotArchived(f"The partition has {now} rows, but {rows} were read. Its rows changed meanwhile.")
    except NoAnswer as error:
        raise NotArchived(f"The archive {error}.") from error
    except OSError as error:
        raise NotArchived(f"The archive cannot be written: {error.strerror or type(error).__name__}.") from error
    except Error as error:
        raise NotArchived(f"The rows of the partition could not be read ({type(error).__name__}).") from error
    digest = sha256("".join(one.digest for one in manifests).encode()).hexdigest()
    _note(name, span, rows=rows, digest=digest, archived_at=timezone.now(), last_error="", failed_at=None)
    return True


def _note(name: str, span: PartitionDays, **fields: Any) -> None:
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
    """Write the rows and the manifest of a day, and return the manifest. An equal manifest is not written again."""
    made = _written(store, partition, day)
    _compare(store, made)
    for number in count(1):
        name, text = _manifest_name(day, number), made.written()
        if store.put(name, text):
            _record(name, text, made)
            return made
        # The manifest of an earlier attempt. If rows were committed since, the day gets another manifest.
        text = store.get(name) or b""
        try:
            there = Manifest.read(text)
        except UnreadableArchive as reason:
            raise NotArchived(str(reason)) from reason
        if (there.rows, there.digest) == (made.rows, made.digest):
            _compare(store, there)
            _record(name, text, there)
            return there
    raise AssertionError  # Unreachable: count() is infinite.


def _record(name: str, text: bytes, manifest: Manifest) -> None:
    """Record the manifest as an admin event, once. `verify_log --archive` compares the archive with these events."""
    told = {"day": manifest.day, "calls": manifest.rows, "manifest": name, "sha256": sha256(text).hexdigest()}
    if not Event.objects.filter(action=Action.CALLS_ARCHIVED, changes=told).exists():
        Event.objects.record(Action.CALLS_ARCHIVED, WorkspaceSettings.load(), by=None, changes=told)


def _written(store: Objects, partition: str, day: date) -> Manifest:
    parquet = import_module("sinks.parquet")
    parts: list[ArchiveFile] = []
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
        parts.append(ArchiveFile(name, writer.rows, fingerprint))
    total = sum(part.rows for part in parts)
    return Manifest(day.isoformat(), NEWEST, total, digest.hexdigest(), tuple(parts))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, UUID) else value for name, value in row.items()}


def _size(row: dict[str, Any]) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, str)) + 200


def _rows(partition: str, day: date) -> Iterator[dict[str, Any]]:
    """Yield the rows of a day in the order of the log, fetched in chunks."""
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
    """Read back the archived rows. Raises NotArchived unless their number and digest equal the manifest's."""
    digest, rows = sha256(), 0
    try:
        for row in archived_rows(store, manifest):
            digest.update(leaf_of(row | {"uid": UUID(row["uid"])}).packed)
            rows += 1
    except UnreadableArchive as reason:
        raise NotArchived(str(reason)) from reason
    if (rows, digest.hexdigest()) != (manifest.rows, manifest.digest):
        raise NotArchived(f"The archive of {manifest.day} has other rows when read back.")


def archived_rows(store: Objects, manifest: Manifest, equal: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the archived rows of a day. With `equal`, yield only rows whose columns have these values.

    Raises UnreadableArchive if a file is missing or was changed.
    """
    parquet = import_module("sinks.parquet")
    for part in manifest.parts:
        yield from parquet.parquet_rows(_read_part(store, part), equal)


def search_archive(
    since: datetime, until: datetime, equal: dict[str, Any], absent: list[date]
) -> Iterator[dict[str, Any]]:
    """Yield the archived calls with these column values, dated `since` or later and before `until`.

    If the archive has no data for a day, the day is added to `absent`. Raises UnreadableArchive.
    """
    if find_spec("pyarrow") is None:
        raise UnreadableArchive(f"The archive {NEEDS_EXTRA}")
    with _reading() as store:
        day = since.date()
        while day < until.date() + DAY:
            seen, manifests = set[str](), [*_manifests(store, day)]
            if not manifests and midnight(day) < until:
                absent.append(day)
            for manifest in manifests:
                for row in archived_rows(store, manifest, equal):
                    if since <= row["created_at"] < until and row["uid"] not in seen:
                        seen.add(row["uid"])
                        yield row
            day += DAY


def verify_archive(named: Mapping[str, str], days: Iterable[date]) -> Iterator[tuple[date, str]]:
    """Compare archived days with `named`: the SHA-256 of each manifest that an admin event names.

    Yields each day that has manifests or should have some, with what differs; "" if nothing does. Raises
    UnreadableArchive if the archive cannot be reached.
    """
    with _reading() as store:
        for day in days:
            there = dict(_manifest_files(store, day))
            expected = {name for name in named if name.startswith(f"{_folder(day)}/")}
            if there or expected:
                yield day, _difference(store, there, {name: named[name] for name in expected})


def _difference(store: Objects, there: Mapping[str, bytes], named: Mapping[str, str]) -> str:
    """Return what differs between the manifests `there`, the admin events that name them, and their files."""
    for name in sorted({*there, *named}):
        if name not in there:
            return f"{name} is missing in the archive."
        if name not in named:
            return f"{name} was added to the archive: no admin event names it."
        if sha256(there[name]).hexdigest() != named[name]:
            return f"{name} was changed in the archive."
        try:
            for part in Manifest.read(there[name]).parts:
                _read_part(store, part)
        except UnreadableArchive as reason:
            return str(reason)
    return ""


def _read_part(store: Objects, part: ArchiveFile) -> bytes:
    """Return the bytes of a file. Raises UnreadableArchive if the file is missing or was changed."""
    data = store.get(part.name)
    if data is None:
        raise UnreadableArchive(f"{part.name} is missing in the archive.")
    if sha256(data).hexdigest() != part.sha256:
        raise UnreadableArchive(f"{part.name} was changed in the archive.")
    return data


def _manifest_files(store: Objects, day: date) -> Iterator[tuple[str, bytes]]:
    """Yield the names and texts of the manifests of a day, oldest first."""
    for number in count(1):
        name = _manifest_name(day, number)
        text = store.get(name)
        if text is None:
            return
        yield name, text


def _manifests(store: Objects, day: date) -> Iterator[Manifest]:
    """Yield the manifests of a day, newest first. The newest manifest covers all rows of the earlier ones."""
    yield from reversed([Manifest.read(text) for _, text in _manifest_files(store, day)])
