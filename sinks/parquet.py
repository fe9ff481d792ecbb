"""Rows of the logs as Parquet, zstd compressed. Needs pyarrow, the extra `archive`: imported by who needs it only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from django.db.models import Field, ForeignKey

from auditlog.checkpoints.tree import AS_TEXT, COLUMNS
from auditlog.models import Call

GROUP_ROWS, GROUP_BYTES = 2000, 8 << 20  # Of one row group: what is in memory at a time.
MOMENT = pa.timestamp("us", tz="UTC")
WHOLE = (
    *("AutoField", "BigAutoField", "BigIntegerField", "IntegerField", "SmallIntegerField"),
    *("PositiveIntegerField", "PositiveSmallIntegerField", "PositiveBigIntegerField"),
)
TYPES = {
    "BooleanField": pa.bool_(),
    "DateTimeField": MOMENT,
    "FloatField": pa.float64(),
    **dict.fromkeys(WHOLE, pa.int64()),
}


def _type_of(field: Field[Any, Any]) -> pa.DataType:
    kind = field.target_field if isinstance(field, ForeignKey) else field
    return TYPES.get(kind.get_internal_type(), pa.string())


FIELDS = {str(field.column): field for field in Call._meta.concrete_fields}
# What is a number, a moment or a truth value in lines of sinks; all else is text, nested values as JSON.
LINE_TYPES = {name: _type_of(field) for name, field in FIELDS.items() if name not in ("id", *AS_TEXT)}
LINE_TYPES |= {"time": MOMENT, "number": pa.int64()}


def schema_of(version: int) -> pa.Schema:
    """The columns of archived calls, as a version of the checkpoints' list of columns has them."""
    return pa.schema([(name, pa.string() if name in AS_TEXT else _type_of(FIELDS[name])) for name in COLUMNS[version]])


class Writer:
    """One Parquet file in memory, made row by row, compressed as it grows."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema, self._sink = schema, pa.BufferOutputStream()
        self._file = pq.ParquetWriter(self._sink, schema, compression="zstd")
        self._group: list[dict[str, Any]] = []
        self._group_bytes = 0
        self.rows = 0

    @property
    def size(self) -> int:
        """How large it is so far, without the rows of the last group."""
        return int(self._sink.tell())

    def add(self, row: dict[str, Any], size: int) -> None:
        """Add a row of about so many bytes."""
        self._group.append(row)
        self._group_bytes += size
        self.rows += 1
        if len(self._group) >= GROUP_ROWS or self._group_bytes >= GROUP_BYTES:
            self._write_group()

    def close(self) -> bytes:
        """The file."""
        if self._group:
            self._write_group()
        self._file.close()
        return bytes(self._sink.getvalue())

    def _write_group(self) -> None:
        self._file.write_table(pa.Table.from_pylist(self._group, schema=self._schema))
        self._group, self._group_bytes = [], 0


def rows_of(data: bytes, equal: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a file, some at a time; only those whose columns are `equal` to these."""
    file = pq.ParquetFile(pa.BufferReader(data))
    for batch in file.iter_batches(batch_size=500):
        for row in batch.to_pylist():
            if not equal or all(row[name] == value for name, value in equal.items()):
                yield row


def of_lines(lines: Sequence[bytes]) -> bytes:
    """Lines of JSON as one file, with every column that any of them has."""
    rows = [orjson.loads(line) for line in lines]
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: _column(name, (row.get(name) for row in rows)) for name in names})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _column(name: str, values: Iterable[Any]) -> pa.Array:
    kind = LINE_TYPES.get(name, pa.string())
    if kind == MOMENT:
        return pa.array(list(values), pa.string()).cast(MOMENT)
    if kind == pa.string():
        return pa.array([_text(value) for value in values], kind)
    return pa.array(list(values), kind)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()
