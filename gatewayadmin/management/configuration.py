"""Shared parts of `export`, `plan` and `apply`: options, and functions to open files and find the acting person."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any, NamedTuple

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from accounts.models import User
from capabilities.catalogue import SUPER_ADMIN
from configuration import document, files
from configuration.apply import ApplyRefused
from configuration.document import ConfigDocument, ConfigurationError
from configuration.files import UnreadableFile
from configuration.remote import Remote, RemoteRefused
from gatewayadmin.management.base import WorkspaceCommand


class ConfigurationCommand(WorkspaceCommand):
    """A command on the configuration of this installation, or of another one (`--url`)."""

    refusals = (ConfigurationError, ApplyRefused, UnreadableFile, RemoteRefused)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--user", metavar="EMAIL", help="the person who acts")
        parser.add_argument("--url", metavar="URL", help="another installation, asked over REST with an API key")
        parser.add_argument(
            "--key-file", type=Path, metavar="FILE", help="file with the API key (default: GATEWAY_API_KEY)"
        )

    def execute(self, *args: Any, **options: Any) -> str | None:
        if not options.get("url"):
            return super().execute(*args, **options)
        try:
            return BaseCommand.execute(self, *args, **options)  # Needs no database.
        except self.refusals as error:
            raise CommandError(str(error)) from error


class FilesCommand(ConfigurationCommand):
    """A command on configuration files."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("file", type=Path, metavar="FILE", help="a YAML file, or a folder of them")
        parser.add_argument(
            "--prune",
            action="store_true",
            help="also disable objects of the file's source that are missing from lists in the file",
        )


def remote(url: str, key_file: Path | None) -> Remote:
    """Return the installation at `url`."""
    if key_file is None:
        return Remote(url, settings.API_KEY)
    try:
        return Remote(url, key_file.read_text("utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"The key file cannot be read: {error}") from error


def acting(email: str | None) -> User:
    """Return the active person with this address; without an address, the active Super admin who joined first."""
    people = User.objects.filter(is_active=True).order_by("date_joined")
    if email is None:
        found = people.filter(role__name=SUPER_ADMIN.name, role__locked=True).first()
        if found is None:
            raise CommandError("There is no active Super admin. Name a person with --user.")
        return found
    found = people.filter(email=email.strip().lower()).first()
    if found is None:
        raise CommandError(f"There is no active person {email}.")
    return found


class OpenedFiles(NamedTuple):
    """Configuration files: their texts by name, the document they form, and the secrets that they refer to."""

    texts: dict[str, str]
    document: ConfigDocument
    secrets: dict[str, str]

    def body(self, **more: Any) -> dict[str, Any]:
        """Return the body of a REST request with the files and their secrets."""
        sent = [{"name": name, "content": text} for name, text in self.texts.items()]
        return {"files": sent, "secrets": self.secrets} | {name: value for name, value in more.items() if value}


def opened(place: Path) -> OpenedFiles:
    """Open a configuration file, or all files of a folder. Raises ConfigurationError or UnreadableFile."""
    texts = files.texts(place)
    read = document.read(texts)
    folder = place if place.is_dir() else place.parent
    return OpenedFiles(texts, read, files.resolve(files.references(read.data), folder))
