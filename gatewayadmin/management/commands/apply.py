"""Applies a configuration file: all its changes or none."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from configuration.apply import apply_and_list
from configuration.words import as_json
from gatewayadmin.management.configuration import FilesCommand, acting, opened, remote


class Command(FilesCommand):
    help = "Make the changes of a configuration file, all or none. The admin events of the changes name the file."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--plan", metavar="DIGEST", help="refuse unless the plan still has this digest")
        parser.add_argument("--commit", default="", help="version of the file, for the events")

    def handle(self, *args: Any, file: Path, **options: Any) -> None:
        terms = {"digest": options["plan"], "commit": options["commit"], "prune": options["prune"]}
        if options["url"]:
            made = remote(options["url"], options["key_file"]).apply(opened(file).body(**terms))
        elif options["user"]:
            found = opened(file)
            person = acting(options["user"])
            made = as_json(apply_and_list(found.document, by=person, secrets=found.secrets, **terms))
        else:
            raise CommandError("Name the person who makes the changes: --user EMAIL.")
        self.stdout.write(f"{file}: {made['summary']}.")
        if said := made.get("unanswered"):  # Gateways of 1.0.0 do not send it.
            self.stdout.write(said)
