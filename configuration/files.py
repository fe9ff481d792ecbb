"""Configuration files on this machine, and the secrets that they refer to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from configuration.fields import REFERENCE_FORM

SUFFIXES = (".yaml", ".yml")
LONGEST_SECRET = 4000


class UnreadableFile(Exception):
    """A configuration file or secret cannot be read; the message says why."""


def texts(place: Path) -> dict[str, str]:
    """Return a dictionary from the name of each file to its text.

    `place` is a file or a folder. In a folder, all .yaml and .yml files are read. Raises UnreadableFile.
    """
    try:
        if not place.is_dir():
            return {place.name: place.read_text("utf-8")}
        found = sorted(one for one in place.iterdir() if one.suffix in SUFFIXES and one.is_file())
        return {one.name: one.read_text("utf-8") for one in found}
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"{place} cannot be read: {error}") from error


def references(data: Any) -> Iterator[str]:
    """Yield the strings in `data` that have the form of a reference to a secret."""
    if isinstance(data, str) and REFERENCE_FORM(data):
        yield data
    elif isinstance(data, dict | list):
        for one in data.values() if isinstance(data, dict) else data:
            yield from references(one)


def resolve(wanted: Iterable[str], folder: Path) -> dict[str, str]:
    """Return a dictionary from each reference to its secret. References without a secret on this machine are left out.

    Paths are relative to `folder`. Raises UnreadableFile.
    """
    found = {}
    for reference in {*wanted}:
        kind, _, name = reference.partition(":")
        secret = os.environ.get(name) if kind == "env" else _content(folder / name)
        if secret:
            if len(secret) > LONGEST_SECRET:
                raise UnreadableFile(f"{reference} has more than {LONGEST_SECRET:,} characters. Use a shorter secret.")
            found[reference] = secret
    return found


def _content(path: Path) -> str | None:
    """Return the text of a file without the line break at its end, or None if there is no such file.

    Only LONGEST_SECRET + 2 characters are read: enough for the caller to notice that the text is too long.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(LONGEST_SECRET + 2).removesuffix("\n")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"The secret {path} cannot be read: {error}") from error
