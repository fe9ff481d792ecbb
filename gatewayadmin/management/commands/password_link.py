"""Prints a link to choose a password: for installations without a mail server."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from accounts import password_links
from accounts.models import User
from accounts.rules import PeopleError
from gatewayadmin.management.base import WorkspaceCommand
from gatewayadmin.serving.start import public_url


class Command(WorkspaceCommand):
    help = "Print a link with which a person sets a password. It works once, and is recorded as an admin event."

    refusals = (PeopleError,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("email", metavar="EMAIL", help="the e-mail they sign in with")

    def handle(self, *args: Any, email: str, **options: Any) -> None:
        try:
            person = User.objects.get_by_natural_key(email.strip())
        except User.DoesNotExist as error:
            raise CommandError(f"There is no person {email}.") from error
        hours = person.note_password_link(by=None)
        self.stdout.write(password_links.password_link(person, public_url()))
        self.stdout.write(f"It works once, for {'an hour' if hours == 1 else f'{hours} hours'}.")
