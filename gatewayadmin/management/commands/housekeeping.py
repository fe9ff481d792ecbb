"""Runs each housekeeping chore once."""

from typing import Any

from django.core.management.base import CommandError

from gatewayadmin.management.base import WorkspaceCommand
from gatewayadmin.serving import housekeeping


class Command(WorkspaceCommand):
    help = (
        "Create log partitions and delete expired rows. If the database role owns the tables, also apply retention. "
        "While `serve` runs, it does these chores regularly."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        counts = housekeeping.do_chores()
        if counts is None:
            self.stdout.write("Another process is doing the chores already.")
        else:
            self.stdout.write(", ".join(f"{name} {count}" for name, count in counts.items()))
            if failed := counts.get("failed"):
                raise CommandError(f"{failed} of the chores failed; the errors were logged above.")
