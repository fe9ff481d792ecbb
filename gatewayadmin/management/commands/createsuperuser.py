"""Django's own command, refused: it would create an account without a role and without an admin event."""

from gatewayadmin.management.base import RefusedCommand


class Command(RefusedCommand):
    help = "Refused; manage.py rescue EMAIL --create makes a Super admin."
    instead = (
        "Rights come from roles here. `manage.py rescue EMAIL` makes a person a Super admin, with --create a new "
        "one, with --staff one who may use the Django admin too."
    )
