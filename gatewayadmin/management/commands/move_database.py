"""Moves an installation from the embedded PostgreSQL to the database of DATABASE_URL."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import psycopg
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from gatewayadmin.config import database, keys
from gatewayadmin.config.database import Lock, UnusableDatabase
from gatewayadmin.config.environment import Refused
from gatewayadmin.embedded import moving
from gatewayadmin.embedded.cluster import ClusterError
from gatewayadmin.embedded.moving import Immovable
from gatewayadmin.serving.start import make_partitions


class Command(BaseCommand):
    help = (
        "Move everything from the embedded database in the data directory to the database of DATABASE_URL, which must "
        "be empty. If anything fails, nothing is moved."
    )
    requires_system_checks = ()  # `make check` runs the checks, which take longer than most commands.

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--check", action="store_true", help="report whether it can be done, change nothing")

    def handle(self, *args: Any, check: bool, **options: Any) -> None:
        if database.is_embedded():
            raise CommandError(
                "Set DATABASE_URL to the database to move to. Set the three key variables to the keys in use."
            )
        try:
            database.require(tables=False)
            self._judge(settings.DATA_DIR)
            if check:
                self.stdout.write("The database can be moved.")
                return
            with database.advisory_lock(Lock.FIRST_START):
                call_command("migrate", verbosity=0, interactive=False)
                rows = moving.move(settings.DATA_DIR, self._say)
            make_partitions()
        except (UnusableDatabase, Immovable, Refused, ClusterError) as error:
            raise CommandError(str(error)) from error
        except psycopg.Error as error:
            # The full text may contain addresses, rows or the connection string.
            said = error.diag.message_primary or f"the connection failed ({type(error).__name__})"
            raise CommandError(f"Nothing was moved: {said}.") from error
        self.stdout.write(
            f"Moved {rows} rows. Each table has as many rows as before. {settings.DATA_DIR} is left as it was."
        )

    def _judge(self, data_dir: Path) -> None:
        """Raise Immovable, Refused or ClusterError if the move is not possible. Changes nothing."""
        with moving.source(data_dir), psycopg.connect(database.conninfo()) as target:
            moving.refuse_unless_empty(target)
        if strange := keys.not_of(data_dir / "keys"):
            name = strange[0]
            place = data_dir / "keys" / keys.file_of(name)
            raise Immovable(f"{name} differs from the key of the installation: set {name}_FILE to {place} instead.")

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()
