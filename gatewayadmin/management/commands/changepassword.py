"""Refuses Django's command `changepassword`, which would set a person's password without an admin event."""

from gatewayadmin.management.base import RefusedCommand


class Command(RefusedCommand):
    help = "Refused; manage.py password_link EMAIL prints a link with which the person chooses a password."
    instead = (
        "People choose their passwords themselves. `manage.py password_link EMAIL` prints a link for choosing a "
        "password. `manage.py rescue EMAIL --link` prints such a link, and makes the person a Super admin."
    )
