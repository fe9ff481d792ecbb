"""Issues an API access token for an agent, and creates the agent if there is none of this name."""

import json
import secrets
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError
from django.db import transaction

from accounts.models import User
from connections.models import Connection, ConnectionFault
from gatewayadmin.management.base import WorkspaceCommand, gateway_named
from gatewayadmin.serving.start import public_url
from gateways.models import Gateway
from hosts.models import Host, HostError, HostKind
from tokens.models import DEFAULT_LIFETIME, LIFETIMES, Issued, Token, TokenError
from ui.forms import named
from ui.rest import stamp


class Command(WorkspaceCommand):
    help = "Issue an API access token and print it as one line of JSON. The token is shown only here."

    refusals = (HostError, ConnectionFault, TokenError)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--user", required=True, metavar="EMAIL", help="the person the token acts as")
        parser.add_argument("--host", required=True, metavar="NAME", help="the agent; created if there is none")
        parser.add_argument("--gateway", required=True, metavar="SLUG", help="the gateway, as in its URL")
        parser.add_argument("--name", default="", help="name of the token (default: generated)")
        parser.add_argument(
            "--expires-in-days", type=int, choices=LIFETIMES, default=DEFAULT_LIFETIME, help="default: %(default)s"
        )

    def handle(self, *args: Any, user: str, host: str, gateway: str, **options: Any) -> None:
        with transaction.atomic():
            issued = _issue(_user(user), host, gateway_named(gateway), options["name"], options["expires_in_days"])
        self.stdout.write(json.dumps(_line(issued)))


def _user(email: str) -> User:
    user = User.objects.filter(email=email.strip().lower()).first()
    if user is None or not user.is_active:
        raise CommandError(f"There is no active user {email}.")
    return user


def _issue(user: User, host_name: str, gateway: Gateway, name: str, days: int) -> Issued:
    agents = Host.objects.live().filter(named(host_name), kind=HostKind.TOKEN)
    host = agents.first() or Host.objects.add_agent(name=host_name, by=user)
    connection = Connection.objects.open(host=host, gateway=gateway, user=user, identities={}, by=user)
    return Token.objects.issue(connection, name=name or f"issued {secrets.token_hex(4)}", expires_in_days=days, by=user)


def _line(issued: Issued) -> dict[str, str | None]:
    token = issued.token
    return {
        "token": issued.secret,
        "id": str(token.pk),
        "name": token.name,
        "prefix": token.prefix,
        "gateway_url": f"{public_url()}/mcp/{token.connection.gateway.slug}",
        "expires_at": stamp(token.expires_at),
    }
