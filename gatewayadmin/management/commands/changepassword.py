"""Refuses Django's command `changepassword`, which would set a person's password without an admin event."""

from gatewayadmin.management.base import RefusedCommand


class Command(RefusedCommand):
    help = "This command is refused. manage.py password_link EMAIL prints a link for the person to choose a password."
    instead = (
        "People choose their passwords themselves. `manage.py password_link EMAIL` prints a link for choosing a "
        "password. `manage.py rescue EMAIL --link` prints such a link, and makes the person a Super admin."
    )
