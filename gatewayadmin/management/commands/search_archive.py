"""Prints calls from the archive, as JSON lines."""

import argparse
import sys
from datetime import date, datetime
from typing import Any

import orjson
from django.core.management.base import BaseCommand, CommandError

from auditlog.partitions import DAY
from gatewayadmin.management.base import moment
from sinks import archive
from sinks.archive import UnreadableArchive

# The column that each option is compared with.
COLUMN_OF_OPTION = {
    "uid": "uid",
    "outcome": "outcome",
    "user": "user_email",
    "host": "host_name",
    "gateway": "gateway_name",
    "server": "server_name",
    "tool": "feature_name",
    "token": "token_prefix",
}

MOST_DAYS_NAMED = 5


class Command(BaseCommand):
    help = "Print matching calls of the archive as JSON lines. Needs no database."
    requires_system_checks = ()  # `make check` runs the checks, which take longer than most commands.

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--from", dest="since", type=moment, required=True, help="such as 2026-11-20 (UTC)")
        parser.add_argument("--to", dest="until", type=moment, help="end of the period (default: one day after --from)")
        for name, column in COLUMN_OF_OPTION.items():
            parser.add_argument(f"--{name}", help=f"{column.replace('_', ' ')}, exactly")
        parser.add_argument("--most", type=int, default=1000, help="maximum number of calls (default: 1000)")

    def handle(self, *args: Any, **options: Any) -> None:
        if not archive.archive_enabled():
            raise CommandError("Set GATEWAY_ARCHIVE to the folder or bucket of the archive.")
        since: datetime = options["since"]
        until: datetime = options["until"] or since + DAY
        equal = {column: options[name] for name, column in COLUMN_OF_OPTION.items() if options[name] is not None}
        found, absent = 0, list[date]()
        try:
            for row in archive.search_archive(since, until, equal, absent):
                if found == options["most"]:
                    self.stderr.write(f"There are more than {found} calls. Narrow the search, or raise --most.")
                    break
                self.stdout.write(orjson.dumps(row, option=orjson.OPT_UTC_Z).decode())
                found += 1
        except UnreadableArchive as reason:
            raise CommandError(str(reason)) from reason
        sys.stdout.flush()
        if absent:
            days = ", ".join(map(str, absent[:MOST_DAYS_NAMED])) + (", ..." if absent[MOST_DAYS_NAMED:] else "")
            self.stderr.write(f"The archive lacks {len(absent)} of the requested days: {days}.")
