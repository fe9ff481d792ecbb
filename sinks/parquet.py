"""Rows of the logs as Parquet (zstd). Needs pyarrow (extra `archive`), so import this module only where needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from django.db.models import Field, ForeignKey

from auditlog.checkpoints.sealing import AS_TEXT, CALL_COLUMNS
from auditlog.models import Call

GROUP_ROWS, GROUP_BYTES = 2000, 8 << 20  # Limits of a row group. One row group is in memory at a time.
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
# The types of columns with numbers, times or booleans. All other columns are text, with nested values as JSON.
LINE_TYPES = {name: _type_of(field) for name, field in FIELDS.items() if name not in ("id", *AS_TEXT)}
LINE_TYPES |= {"time": MOMENT, "number": pa.int64()}


def schema_of(version: int) -> pa.Schema:
    """Return the schema of archived calls, with the columns of this version of CALL_COLUMNS.

    CALL_COLUMNS lists, for each version, the columns that checkpoints cover.
    """
    return pa.schema(
        [(name, pa.string() if name in AS_TEXT else _type_of(FIELDS[name])) for name in CALL_COLUMNS[version]]
    )


class Writer:
    """Writes one Parquet file in memory, row by row."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema, self._sink = schema, pa.BufferOutputStream()
        self._file = pq.ParquetWriter(self._sink, schema, compression="zstd")
        self._group: list[dict[str, Any]] = []
        self._group_bytes = 0
        self.rows = 0

    @property
    def size(self) -> int:
        """The number of bytes written so far. Rows of an unfinished row group are not written yet."""
        return int(self._sink.tell())

    def add(self, row: dict[str, Any], size: int) -> None:
        """Add a row of about `size` bytes."""
        self._group.append(row)
        self._group_bytes += size
        self.rows += 1
        if len(self._group) >= GROUP_ROWS or self._group_bytes >= GROUP_BYTES:
            self._write_group()

    def close(self) -> bytes:
        """Finish the file and return its bytes."""
        if self._group:
            self._write_group()
        self._file.close()
        return bytes(self._sink.getvalue())

    def _write_group(self) -> None:
        self._file.write_table(pa.Table.from_pylist(self._group, schema=self._schema))
        self._group, self._group_bytes = [], 0


def parquet_rows(data: bytes, equal: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, which is read in chunks.

    `equal` maps columns to values. If `equal` is given, yield only rows that have these values in these columns.
    """
    file = pq.ParquetFile(pa.BufferReader(data))
    for batch in file.iter_batches(batch_size=500):
        for row in batch.to_pylist():
            if not equal or all(row[name] == value for name, value in equal.items()):
                yield row


def of_lines(lines: Sequence[bytes]) -> bytes:
    """Convert JSON lines to a Parquet file with the union of their columns."""
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
