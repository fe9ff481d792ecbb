"""Prints the workspace as a configuration file."""

from typing import Any

from configuration.export import export_recorded
from gatewayadmin.management.configuration import ConfigurationCommand, acting, remote


class Command(ConfigurationCommand):
    help = "Print the workspace as a configuration file (YAML). The file has no people, tokens or secrets."

    def handle(self, *args: Any, **options: Any) -> None:
        far = remote(options["url"], options["key_file"]) if options["url"] else None
        self.stdout.write(far.export() if far else export_recorded(acting(options["user"])), ending="")
