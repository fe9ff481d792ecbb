"""Base classes of commands, and functions for their arguments."""

import argparse
from argparse import ArgumentParser
from datetime import UTC, datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from gatewayadmin.config import database
from gatewayadmin.config.database import UnusableDatabase
from gateways.models import Gateway


class WorkspaceCommand(BaseCommand):
    """A command that needs the tables of a workspace. Exceptions in `refusals` become errors without a traceback."""

    requires_system_checks = ()  # `make check` runs the checks, which take longer than most commands.
    refusals: tuple[type[Exception], ...] = ()

    def execute(self, *args: Any, **options: Any) -> str | None:
        try:
            database.require()
            return super().execute(*args, **options)
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from error
        except self.refusals as error:
            raise CommandError(str(error)) from error
        except UnusableDatabase as error:
            raise CommandError(str(error)) from error


class RefusedCommand(BaseCommand):
    """A command that always fails with the text `instead`."""

    instead: str
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("anything", nargs="*")

    def run_from_argv(self, argv: list[str]) -> None:
        super().run_from_argv(argv[:2])  # Passes no arguments, because Django might act upon them.

    def handle(self, *args: Any, **options: Any) -> None:
        raise CommandError(self.instead)


def gateway_named(slug: str) -> Gateway:
    """Return the gateway with this slug. If there is none, raise CommandError, which names existing gateways."""
    if (gateway := Gateway.objects.live().filter(slug=slug).first()) is None:
        slugs = ", ".join(Gateway.objects.live().order_by("slug").values_list("slug", flat=True)[:20])
        raise CommandError(f"There is no gateway {slug}. There are: {slugs or 'none'}.")
    return gateway


def moment(text: str) -> datetime:
    """Parse a date, or a date and time, for argparse (`type=moment`), and return it in UTC.

    A text without a time zone is read as UTC.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date such as 2026-11-20.") from None
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
