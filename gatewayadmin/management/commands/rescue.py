"""Makes a person an active Super admin: recovery for operators with a shell on the machine."""

from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError
from django.core.validators import validate_email
from django.db import transaction

from accounts import password_links, second_factor
from accounts.models import Role, User, WorkspaceSettings
from accounts.rules import PeopleError, RequiredSignIn, must_sign_in_at_organisation
from gatewayadmin.management.base import WorkspaceCommand
from gatewayadmin.serving.start import public_url
from sso.models import Mode, Provider


class Command(WorkspaceCommand):
    help = "Make a person an active Super admin, whatever they were before. The change is recorded as an admin event."

    refusals = (User.DoesNotExist,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("email", metavar="EMAIL", help="the e-mail they sign in with")
        parser.add_argument("--create", action="store_true", help="create the person if there is none")
        parser.add_argument("--staff", action="store_true", help="let them use the Django admin too")
        parser.add_argument("--link", action="store_true", help="print a link with which they choose a new password")
        parser.add_argument(
            "--without-second-factor",
            action="store_true",
            help="remove the second factor, for people who lost phone and codes",
        )
        parser.add_argument(
            "--end-enforcement",
            action="store_true",
            help="accept passwords again in addition to the organisation's sign-in",
        )

    def handle(self, *args: Any, email: str, **options: Any) -> None:
        try:
            validate_email(email)
            with transaction.atomic():
                person, previous = User.objects.rescue(email, create=options["create"])
                lines = [f"{person.email} is an active Super admin now (before: {previous})."]
                lines += _further(person, options)
        except ValidationError as error:
            raise CommandError(f"{email} is not an e-mail address.") from error
        except PeopleError as error:
            raise CommandError(f"{error} Or add --end-enforcement.") from error
        if options["link"] or not person.has_usable_password():
            link = password_links.password_link(person, public_url())
            lines.append(
                f"They choose a password at {link}\nThe link works once. Anyone who opens it can choose the password."
            )
        self.stdout.write("\n".join(lines))


def _further(person: User, options: dict[str, Any]) -> list[str]:
    """Apply the options `--end-enforcement`, `--staff` and `--without-second-factor`. Return the lines of output."""
    lines = []
    if options["end_enforcement"]:
        if Provider.load().mode == Mode.ENFORCED:
            Provider.edit(by=None, mode=Mode.OFFERED)
            lines.append("Sign-in by the organisation is not enforced any more: passwords are accepted.")
        if _end_required():
            lines.append("Neither a role nor the workspace requires sign-in by the organisation any more.")
    elif must_sign_in_at_organisation(person):
        lines.append("This person can sign in only at their organisation. --end-enforcement changes that.")
    if options["staff"] and not person.is_staff:
        person.set_staff(True, by=None)
        lines.append("They may use the Django admin.")
    if options["without_second_factor"] and second_factor.has_second_factor(person):
        second_factor.remove(person, by=None)
        lines.append("Their second factor was removed: they sign in with the password alone.")
    return lines


def _end_required() -> bool:
    """Stop requiring sign-in through the organisation, in all roles and in the workspace.

    Return True if a role or the workspace required it until now.
    """
    roles = list(Role.objects.filter(required_sign_in=RequiredSignIn.ORGANISATION))
    for role in roles:
        role.edit(name=role.name, capabilities=role.capabilities, by=None, required_sign_in=RequiredSignIn.NONE)
    of_workspace = WorkspaceSettings.load().required_sign_in == RequiredSignIn.ORGANISATION
    if of_workspace:
        WorkspaceSettings.edit(by=None, required_sign_in=RequiredSignIn.NONE)
    return of_workspace or bool(roles)
