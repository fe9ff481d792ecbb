"""Django's own command, refused: it would set somebody else's password without an admin event."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    help = "Refused; manage.py password_link EMAIL prints a link with which the person chooses a password."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("anything", nargs="*")

    def run_from_argv(self, argv: list[str]) -> None:
        super().run_from_argv(argv[:2])  # Django's options lead to the same words.

    def handle(self, *args: Any, **options: Any) -> None:
        raise CommandError(
            "People choose their passwords themselves. `manage.py password_link EMAIL` prints a link for one of them, "
            "`manage.py rescue EMAIL --link` for who is to be a Super admin."
        )
