"""Registers an OAuth client for an app that cannot register itself."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from gatewayadmin.config import database
from gatewayadmin.config.database import UnusableDatabase
from gatewayadmin.config.public_url import public_url
from oauth import registration
from oauth.client_metadata import BadClientMetadata


class Command(BaseCommand):
    help = "Register an app that wants a client_id typed in; one line of JSON. A secret is shown only here."
    requires_system_checks = ()  # `make check` has judged the code; to do it again takes longer than most commands.

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--name", required=True, help="what people are shown")
        parser.add_argument("--redirect-uri", required=True, action="append", metavar="URL", help="may be repeated")
        parser.add_argument("--confidential", action="store_true", help="the app can keep a secret: make it one")

    def handle(self, *args: Any, name: str, redirect_uri: list[str], confidential: bool, **options: Any) -> None:
        try:
            database.require()
            application, secret = registration.by_hand(name=name, redirect_uris=redirect_uri, confidential=confidential)
        except (UnusableDatabase, BadClientMetadata) as error:
            raise CommandError(str(error)) from error
        line = {"client_id": application.application.client_id, "client_secret": secret, "issuer": public_url()}
        self.stdout.write(json.dumps({key: value for key, value in line.items() if value}))
