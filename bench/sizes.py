"""Measure the size of the log on disk: `python -m bench.sizes`.

A database on the embedded PostgreSQL gets calls of thirty days, by 200 people, 40 hosts and 60 tools, generated like
the calls of `bench.log_pages`. The command prints the bytes per call in the table, in its indexes, in the write-ahead
log, in a dump, in the roll-ups and in the archive. Other load on the machine does not change these sizes.
"""

import argparse
import os
import subprocess
from pathlib import Path
from typing import Any

from bench.log_pages import SETTINGS, fill, place, roll_up

TABLES = """
SELECT coalesce(sum(pg_table_size(inhrelid)), 0), coalesce(sum(pg_indexes_size(inhrelid)), 0)
FROM pg_inherits WHERE inhparent = 'auditlog_call'::regclass
"""
INDEXES = """
SELECT string_agg(a.attname, ', ' ORDER BY k.place), sum(pg_relation_size(i.indexrelid)) / count(*)
FROM pg_inherits h JOIN pg_index i ON i.indrelid = h.inhrelid,
    unnest(i.indkey) WITH ORDINALITY k (number, place), pg_attribute a
WHERE h.inhparent = 'auditlog_call'::regclass AND a.attrelid = i.indrelid AND a.attnum = k.number
GROUP BY i.indexrelid
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sizes", description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000)
    options = parser.parse_args()
    with place(None) as home:
        os.environ |= {
            "GATEWAY_DATA_DIR": str(home),
            "GATEWAY_QUICKSTART": "0",
            "GATEWAY_ARCHIVE": str(home.parent / "archive"),
            "DJANGO_SETTINGS_MODULE": SETTINGS,
        }
        os.environ.pop("DATABASE_URL", None)
        import django  # noqa: PLC0415 - the settings are read from the environment above

        django.setup()
        measure(options.rows, home.parent / "archive")


def measure(rows: int, folder: Path) -> None:
    from django.conf import settings  # noqa: PLC0415
    from django.core.management import call_command  # noqa: PLC0415
    from django.db import connection  # noqa: PLC0415

    from gatewayadmin.config import database  # noqa: PLC0415
    from gatewayadmin.embedded.cluster import cluster  # noqa: PLC0415

    database.ensure()
    try:
        call_command("migrate", verbosity=0)
        before = one("SELECT pg_current_wal_lsn()")
        fill(rows)
        tell("write-ahead log", one(f"SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '{before}')"), rows)
        tell_tables(rows)
        tell("dump", dumped(), rows)
        roll_up()
        tell("roll-ups", one("SELECT pg_total_relation_size('auditlog_rollup')"), rows)
        tell_archive(folder)
    finally:
        connection.close()
        cluster(settings.DATA_DIR).leave()


def tell_tables(rows: int) -> None:
    tables, indexes = all_of(TABLES)[0]
    tell("rows", tables, rows)
    tell("indexes", indexes, rows)
    sizes: dict[str, int] = {}
    for columns, size in all_of(INDEXES):
        sizes[columns] = sizes.get(columns, 0) + int(size)
    for columns, size in sorted(sizes.items(), key=lambda item: -item[1]):
        tell(f"  ({columns})", size, rows)


def dumped() -> int:
    """Return the bytes of a dump of the log, made with the options of docs/how-to/back-up.md."""
    from gatewayadmin.config import database  # noqa: PLC0415
    from gatewayadmin.embedded.cluster import binaries  # noqa: PLC0415

    command = [str(binaries() / "pg_dump"), "--format=custom", "--table=auditlog_call*", database.conninfo()]
    return len(subprocess.run(command, capture_output=True, check=True).stdout)


def tell_archive(folder: Path) -> None:
    """Print the size of yesterday's calls as Parquet."""
    from auditlog.models import Call  # noqa: PLC0415
    from sinks.archive import archive  # noqa: PLC0415

    name, span = Call.partitions.expired(newest_day())[-1]
    archive(name, span)
    size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    tell("archive", size, one(f'SELECT count(*) FROM "{name}"'))


def newest_day() -> Any:
    from django.utils import timezone  # noqa: PLC0415

    return timezone.now().date()


def all_of(statement: str) -> list[tuple[Any, ...]]:
    from django.db import connection  # noqa: PLC0415

    with connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


def one(statement: str) -> Any:
    return all_of(statement)[0][0]


def tell(what: str, size: int, rows: int) -> None:
    print(f"{what:58}{int(size) / 1e6:10,.1f} MB{int(size) / max(rows, 1):9,.0f} B a call", flush=True)


if __name__ == "__main__":
    main()
