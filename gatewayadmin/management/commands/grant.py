"""Gives a database role the rights that a serving process needs. A role that owns the tables is refused."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from gatewayadmin import grants
from gatewayadmin.config import database, schema_versions
from gatewayadmin.grants import Ungrantable
from gatewayadmin.management.base import WorkspaceCommand


class Command(WorkspaceCommand):
    help = (
        "Give a database role the rights that `serve` needs: to read and add log rows, and to change most other "
        "tables. Run this as the owner of the tables."
    )

    refusals = (Ungrantable,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("role", help="a role that exists and can log in")
        parser.add_argument("--print", action="store_true", dest="only_print", help="print the SQL, change nothing")

    def handle(self, *args: Any, role: str, only_print: bool, **options: Any) -> None:
        if missing := database.missing():
            raise CommandError(f"The database lacks {', '.join(missing)}: run manage.py migrate first.")
        if newer := schema_versions.newer_version():
            self._leave_to(newer, role, only_print)
        elif only_print:
            self.stdout.write("".join(f"{statement};\n" for statement in grants.statements(role)), ending="")
        else:
            grants.apply(role)
            self.stdout.write(f"{role} has the rights. Connect as this role, and run `serve --no-migrate`.")

    def _leave_to(self, newer: str, role: str, only_print: bool) -> None:
        """Report that `role` keeps the rights that version `newer` granted.

        Raises CommandError if `role` has no such rights, or if `only_print` is True.
        """
        if only_print or role not in grants.serving_roles():
            raise CommandError(f"The tables were made by version {newer}: run `grant` of that version.")
        self.stdout.write(f"{role} keeps the rights that version {newer} granted.")
