"""Refuses Django's command `createsuperuser`, which would create an account without a role or an admin event."""

from gatewayadmin.management.base import RefusedCommand


class Command(RefusedCommand):
    help = "This command is refused. manage.py rescue EMAIL --create makes a Super admin."
    instead = (
        "Rights come from roles here. `manage.py rescue EMAIL` makes a person a Super admin. --create adds a new "
        "person. --staff also lets the person use the Django admin."
    )
