"""Invites people: for installations without a mail server, and for scripts on the machine."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from accounts import password_links
from accounts.models import Role, Team, User
from accounts.people_forms import AddressesField
from accounts.rules import PeopleError
from gatewayadmin.management.base import WorkspaceCommand
from gatewayadmin.serving.start import public_url
from ui.forms import named


class Command(WorkspaceCommand):
    help = (
        "Invite people and print a link for each person. A link works once, for 72 hours. The invitations are recorded "
        "as admin events."
    )

    refusals = (PeopleError,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("emails", nargs="+", metavar="EMAIL", help="address of a person to invite")
        parser.add_argument("--role", default="Member", help="their role (default: %(default)s)")
        parser.add_argument("--team", action="append", default=[], help="a team they join; may be given several times")

    def handle(self, *args: Any, emails: list[str], role: str, team: list[str], **options: Any) -> None:
        people = AddressesField().clean("\n".join(emails))
        teams = [_named(Team, name) for name in team]
        invited = User.objects.invite_all(people, role=_named(Role, role), teams=teams, by=None)
        for person in invited:
            self.stdout.write(f"{person.email} {password_links.invitation_link(person, public_url())}")


def _named(model: Any, name: str) -> Any:
    row = model.objects.filter(named(name)).first()
    if row is None:
        names = ", ".join(model.objects.values_list("name", flat=True))
        raise CommandError(f"There is no {model._meta.verbose_name} {name}. There are: {names or 'none'}.")
    return row
