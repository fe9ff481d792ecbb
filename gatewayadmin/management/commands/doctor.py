"""Runs the OAuth doctor on the command line, for example on a machine without a browser."""

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError

from accounts.models import User
from gatewayadmin.config import checks
from gatewayadmin.config.checks import default_workers
from gatewayadmin.doctor import CheckStep, OAuthCheck, passed
from gatewayadmin.doctor.http_probe import StepState
from gatewayadmin.management.base import WorkspaceCommand, gateway_named
from gatewayadmin.serving.start import public_url
from gateways.models import Gateway


class Command(WorkspaceCommand):
    help = "Run a client's OAuth flow, list a gateway's tools, and report which step fails and why."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--gateway", metavar="SLUG", help="default: the first one that is enabled")
        parser.add_argument("--url", help="the address clients use (default: the public URL)")
        parser.add_argument("--user", metavar="EMAIL", help="whose consent is simulated (default: the first user)")

    def handle(self, *args: Any, **options: Any) -> None:
        in_use = checks.survey(settings.WORKERS or default_workers())
        for line in (*in_use.uses, *(f"Warning: {warning}" for warning in in_use.warnings)):
            self.stdout.write(f"{'database':<12}{line}")
        walk = OAuthCheck(options["url"] or public_url(), _gateway(options["gateway"]), _user(options["user"]))
        steps = walk.run()
        for number, step in enumerate(steps, 1):
            self.stdout.write(_lines(number, step))
        if not passed(steps):
            failed = next(step for step in steps if step.state == StepState.FAILED)
            raise CommandError(f"{failed.title}: {failed.reason}")
        self.stdout.write("A client can connect, sign in and call.")


def _gateway(slug: str | None) -> Gateway:
    if slug:
        return gateway_named(slug)
    if (gateway := Gateway.objects.live().filter(enabled=True).order_by("created_at", "pk").first()) is None:
        raise CommandError("There is no enabled gateway.")
    return gateway


def _user(email: str | None) -> User:
    users = User.objects.filter(is_active=True, **({"email": email.strip().lower()} if email else {}))
    if (user := users.order_by("date_joined").first()) is None:
        raise CommandError(f"There is no active user {email}." if email else "There is no active user.")
    return user


def _lines(number: int, step: CheckStep) -> str:
    """Return the text of one step, with request and response indented below its title."""
    details = {"asked": step.asked, "answered": step.answered, "found": step.reason, "change": step.advice}
    lines = [f"{step.state:<12}{number}. {step.title}"]
    for name, text in details.items():
        for index, line in enumerate(text.splitlines()):
            lines.append(f"{'':<15}{name if index == 0 else '':<10}{line}")
    return "\n".join(lines)
