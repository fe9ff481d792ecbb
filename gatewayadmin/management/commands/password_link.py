"""Prints a link to choose a password: for installations without a mail server."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from accounts import password_links
from accounts.models import User
from accounts.rules import PeopleError
from gatewayadmin.config import database
from gatewayadmin.config.database import UnusableDatabase
from gatewayadmin.config.public_url import public_url


class Command(BaseCommand):
    help = "Print a link with which a person chooses a password. It works once. Recorded as an admin event."
    requires_system_checks = ()  # `make check` has judged the code; to do it again takes longer than most commands.

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("email", metavar="EMAIL", help="the e-mail they sign in with")

    def handle(self, *args: Any, email: str, **options: Any) -> None:
        try:
            database.require()
            person = User.objects.get_by_natural_key(email.strip())
            hours = person.note_password_link(by=None)
        except (UnusableDatabase, PeopleError) as error:
            raise CommandError(str(error)) from error
        except User.DoesNotExist as error:
            raise CommandError(f"There is no person {email}.") from error
        self.stdout.write(password_links.password_link(person, public_url()))
        self.stdout.write(f"It works once, for {'an hour' if hours == 1 else f'{hours} hours'}.")
