"""Encrypts every stored secret with the newest key, after a new first key in GATEWAY_ENCRYPTION_KEYS."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from accounts import second_factor
from gatewayadmin.config import database
from gatewayadmin.config.database import UnusableDatabase
from servers import resealing


class Command(BaseCommand):
    help = "Seal every stored secret with the newest encryption key; safe while the server runs, and safe to repeat."
    requires_system_checks = ()  # `make check` has judged the code; to do it again takes longer than most commands.

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            database.require()
        except UnusableDatabase as error:
            raise CommandError(str(error)) from error
        resealed = resealing.reseal_servers() | {"second factors": second_factor.reseal_second_factors()}
        for what, (moved, unreadable) in resealed.items():
            self.stdout.write(f"{what:<20}  {moved:>6}  resealed")
            if unreadable:
                self.stdout.write(f"{what:<20}  {unreadable:>6}  UNREADABLE: no configured key opens them")
        if any(unreadable for _, unreadable in resealed.values()):
            raise CommandError("Some secrets stay as they are. Configure the key that `manage.py keys` calls MISSING.")
