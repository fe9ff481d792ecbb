"""Django's own command, refused: it would make an account outside of every role, without an admin event."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    help = "Refused; manage.py rescue EMAIL --create makes a Super admin."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("anything", nargs="*")

    def run_from_argv(self, argv: list[str]) -> None:
        super().run_from_argv(argv[:2])  # Django's options lead to the same words.

    def handle(self, *args: Any, **options: Any) -> None:
        raise CommandError(
            "Rights come from roles here. `manage.py rescue EMAIL` makes a person a Super admin, with --create a new "
            "one, with --staff one who may use the Django admin too."
        )
