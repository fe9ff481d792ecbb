"""Runs each housekeeping chore once."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from gatewayadmin.config import database
from gatewayadmin.config.database import UnusableDatabase
from gatewayadmin.serving import housekeeping


class Command(BaseCommand):
    help = "Make log partitions ahead, apply retention, sweep what has expired. `serve` does it by itself."
    requires_system_checks = ()  # `make check` has judged the code; to do it again takes longer than most commands.

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            database.require()
        except UnusableDatabase as error:
            raise CommandError(str(error)) from error
        counts = housekeeping.do_chores()
        if counts is None:
            self.stdout.write("Another process is at it already.")
        else:
            self.stdout.write(", ".join(f"{name} {count}" for name, count in counts.items()))
            if failed := counts.get("failed"):
                raise CommandError(f"{failed} of the chores failed; the log above says how.")
