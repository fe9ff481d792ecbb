"""Base of Django commands that are refused, with a message that names the replacement."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError


class RefusedCommand(BaseCommand):
    """Ends with `instead`, whatever it is given."""

    instead: str
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("anything", nargs="*")

    def run_from_argv(self, argv: list[str]) -> None:
        super().run_from_argv(argv[:2])  # Django's options lead to the same words.

    def handle(self, *args: Any, **options: Any) -> None:
        raise CommandError(self.instead)
