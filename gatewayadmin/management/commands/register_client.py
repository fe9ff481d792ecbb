"""Registers an OAuth client for an app that cannot register itself."""

import json
from argparse import ArgumentParser
from typing import Any

from gatewayadmin.management.base import WorkspaceCommand
from gatewayadmin.serving.start import public_url
from oauth import registration
from oauth.client_metadata import BadClientMetadata


class Command(WorkspaceCommand):
    help = (
        "Register an app that cannot register itself and asks for a client_id. Prints one line of JSON. If the line "
        "has a secret, copy the secret now: it is not shown again."
    )

    refusals = (BadClientMetadata,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--name", required=True, help="name shown to people")
        parser.add_argument("--redirect-uri", required=True, action="append", metavar="URL", help="may be repeated")
        parser.add_argument("--confidential", action="store_true", help="the app can keep a secret: create one")

    def handle(self, *args: Any, name: str, redirect_uri: list[str], confidential: bool, **options: Any) -> None:
        application, secret = registration.by_hand(name=name, redirect_uris=redirect_uri, confidential=confidential)
        line = {"client_id": application.application.client_id, "client_secret": secret, "issuer": public_url()}
        self.stdout.write(json.dumps({key: value for key, value in line.items() if value}))
