"""Caps the number of distinct values per metric label, shared by all workers of one `serve`."""

import fcntl
import json
from collections.abc import Iterable
from pathlib import Path

OTHER = "other"


class Names:
    """The names of one kind that have their own label; all others are counted as `other`.

    At the start the most used names are admitted (see `admit`), then each name that is called while there is room. No
    name is removed before `serve` restarts, because counters never decrease. Workers share the names in a file in
    `folder`; a process without a folder does not share them.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._most = 50
        self._path: Path | None = None
        self._known: dict[str, None] = {}

    def set_up(self, most: int, folder: Path | None) -> None:
        """Set the maximum number of names and the folder in which workers share them."""
        self._most, self._path = most, folder / f"{self._kind}.names" if folder else None
        self._known.clear()

    def label(self, name: str) -> str:
        """Return the label for this name: the name itself, or `other`."""
        if name not in self._known and len(self._known) < self._most:
            self.admit([name])
        return name if name in self._known else OTHER

    def admit(self, names: Iterable[str]) -> None:
        """Give these names labels of their own, in this order, while there is room."""
        if self._path is None:
            self._add(names)
            return
        with self._path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            self._known.clear()
            self._add(json.loads(line) for line in file)
            before = len(self._known)
            self._add(names)
            file.writelines(f"{json.dumps(name)}\n" for name in list(self._known)[before:])

    def _add(self, names: Iterable[str]) -> None:
        for name in names:
            if len(self._known) < self._most and name != OTHER:
                self._known[name] = None
