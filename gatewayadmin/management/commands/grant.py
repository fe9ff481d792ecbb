"""Grants a role without tables of its own the rights to serve."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from gatewayadmin import grants
from gatewayadmin.config import database
from gatewayadmin.config.database import UnusableDatabase
from gatewayadmin.grants import Ungrantable


class Command(BaseCommand):
    help = "Let a database role serve: read and add to the logs, change everything else, own nothing. Run as the owner."
    requires_system_checks = ()  # `make check` has judged the code; to do it again takes longer than most commands.

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("role", help="a role that exists and can log in")
        parser.add_argument("--print", action="store_true", dest="only_print", help="say the SQL, change nothing")

    def handle(self, *args: Any, role: str, only_print: bool, **options: Any) -> None:
        try:
            database.require()
            if missing := database.missing():
                raise CommandError(f"The database lacks {', '.join(missing)}: run manage.py migrate first.")
            if only_print:
                self.stdout.write("".join(f"{statement};\n" for statement in grants.statements(role)), ending="")
            else:
                grants.apply(role)
                self.stdout.write(f"{role} may serve: run it with `serve --no-migrate`.")
        except (UnusableDatabase, Ungrantable) as error:
            raise CommandError(str(error)) from error
