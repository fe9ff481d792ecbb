"""Prints the changes that applying a configuration file would make, and the access that each change ends."""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from configuration.plan import plan
from configuration.words import as_json
from gatewayadmin.management.configuration import FilesCommand, acting, opened, remote

CHANGES = 2  # The exit code with --exit-code if there are changes.


class Command(FilesCommand):
    help = (
        "Print the changes that `apply` would make, the access that each change ends, and the digest of the plan for "
        "`apply --plan`. Changes nothing."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        parser.add_argument("--exit-code", action="store_true", help="exit with 2 if there are changes")

    def handle(self, *args: Any, file: Path, prune: bool, **options: Any) -> None:
        found = opened(file)
        if options["url"]:
            made = remote(options["url"], options["key_file"]).plan(found.body(prune=prune))
        else:
            made = as_json(plan(found.document, acting(options["user"]), secrets=found.secrets, prune=prune))
        self.stdout.write(json.dumps(made) if options["json"] else made["text"], ending="")
        if options["exit_code"] and made["changes"]:
            sys.exit(CHANGES)
