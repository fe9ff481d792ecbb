"""Encrypts every stored secret with the newest key, after a new first key in GATEWAY_ENCRYPTION_KEYS."""

from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from accounts import second_factor
from gatewayadmin.config import database
from gatewayadmin.config.database import Unusable
from servers import resealing


class Command(BaseCommand):
    help = "Seal every stored secret with the newest encryption key; safe while the server runs, and safe to repeat."
    requires_system_checks = ()  # `make check` has judged the code; to do it again takes longer than most commands.

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            database.require()
        except Unusable as error:
            raise CommandError(str(error)) from error
        identities = resealing.reseal()
        self.stdout.write(f"identities      {identities.moved:>6}  resealed")
        factors = self._second_factors()
        if identities.unreadable:
            self.stdout.write(f"identities      {identities.unreadable:>6}  UNREADABLE: no configured key opens them")
        if identities.unreadable or factors is None:
            raise CommandError("Some secrets stay as they are. Configure the key that `manage.py keys` calls MISSING.")

    def _second_factors(self) -> int | None:
        """How many secrets of second factors were moved; None when one of them could not be read."""
        try:
            count = second_factor.reseal()
        except ValidationError:
            self.stdout.write("second factors          UNREADABLE: no configured key opens all of them")
            return None
        self.stdout.write(f"second factors  {count:>6}  resealed")
        return count
