"""Reads the statements of a .sql file: each begins with a line `-- name: ...`."""

from pathlib import Path


def load(path: Path) -> dict[str, str]:
    """The statements of the file by name."""
    _, *parts = path.read_text().split("-- name: ")
    named = (part.partition("\n") for part in parts)
    return {name.strip(): statement.strip() for name, _, statement in named}
