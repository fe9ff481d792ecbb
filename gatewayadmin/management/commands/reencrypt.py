"""Encrypts every stored secret with the newest key: needed after adding a new first key to GATEWAY_ENCRYPTION_KEYS."""

from typing import Any

from django.core.management.base import CommandError

from accounts import second_factor
from accounts.models import WorkspaceSettings
from auditlog.actions import Action
from auditlog.models import Event
from gatewayadmin.management.base import WorkspaceCommand
from servers import resealing
from ui.sealing import cipher


class Command(WorkspaceCommand):
    help = "Encrypt every stored secret with the newest encryption key; safe while the server runs, and safe to repeat."

    def handle(self, *args: Any, **options: Any) -> None:
        resealed = resealing.reseal_servers() | {"second factors": second_factor.reseal_second_factors()}
        secrets, unreadable = (sum(column) for column in zip(*resealed.values(), strict=True))
        if secrets:
            changes = {"secrets": secrets, "unreadable": unreadable, "key": cipher().key_id}
            Event.objects.record(Action.SECRETS_REENCRYPTED, WorkspaceSettings.load(), by=None, changes=changes)
        for what, column in resealed.items():
            self.stdout.write(f"{what:<20}  {column.moved:>6}  resealed")
            if column.unreadable:
                self.stdout.write(f"{what:<20}  {column.unreadable:>6}  UNREADABLE: no configured key decrypts them")
        if unreadable:
            raise CommandError("Some secrets were not changed. Configure the key that `manage.py keys` calls MISSING.")
