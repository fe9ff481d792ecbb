"""Lists keys, each with the number of rows that need the key. A rotated key that no row needs can be removed."""

from typing import Any

from gatewayadmin.config.key_uses import key_uses
from gatewayadmin.management.base import WorkspaceCommand


class Command(WorkspaceCommand):
    help = "List the ids of the token and encryption keys, and how many rows still need each one."

    def handle(self, *args: Any, **options: Any) -> None:
        for keys in key_uses():
            self.stdout.write(keys.variable)
            for index, key_id in enumerate(keys.present):
                use = "newest, in use" if index == 0 else "still needed" if keys.uses[key_id] else "may be removed"
                self.stdout.write(f"  {key_id}  {keys.uses[key_id]:>6}  {use}")
            for key_id in keys.missing:
                self.stdout.write(f"  {key_id}  {keys.uses[key_id]:>6}  MISSING: the rows that need it cannot be used")
