"""Lists keys with the rows that need them: a rotated key can be removed when no row needs it."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from gatewayadmin.config import database
from gatewayadmin.config.database import UnusableDatabase
from gatewayadmin.config.key_uses import KeyUses, key_uses


class Command(BaseCommand):
    help = "List the ids of the token and encryption keys, and how much each one still holds."
    requires_system_checks = ()  # `make check` has judged the code; to do it again takes longer than most commands.

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            database.require()
        except UnusableDatabase as error:
            raise CommandError(str(error)) from error
        for keys in key_uses():
            self._list(keys)

    def _list(self, keys: KeyUses) -> None:
        self.stdout.write(keys.variable)
        for index, key_id in enumerate(keys.present):
            use = "newest, in use" if index == 0 else "still needed" if keys.uses[key_id] else "may be removed"
            self.stdout.write(f"  {key_id}  {keys.uses[key_id]:>6}  {use}")
        for key_id in keys.missing:
            self.stdout.write(f"  {key_id}  {keys.uses[key_id]:>6}  MISSING: what it holds cannot be used")
