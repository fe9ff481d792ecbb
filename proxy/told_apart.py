"""Which names are labels of metrics: of each kind so many at most, and the same ones in all workers of one `serve`."""

import fcntl
import json
from collections.abc import Iterable
from pathlib import Path

OTHER = "other"


class Names:
    """The names of one kind that are told apart; every other is counted as `other`.

    Who comes first is in: before all calls those that were used most (see `admit`), then whoever is called while there
    is room. None is given up before `serve` starts again, since a counter never goes back. Workers share them in a
    file of `folder`; a process without a folder is alone.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._most = 50
        self._path: Path | None = None
        self._known: dict[str, None] = {}

    def set_up(self, most: int, folder: Path | None) -> None:
        """How many there may be, and where workers agree upon them."""
        self._most, self._path = most, folder / f"{self._kind}.names" if folder else None
        self._known.clear()

    def label(self, name: str) -> str:
        """The name itself, if it is told apart."""
        if name not in self._known and len(self._known) < self._most:
            self.admit([name])
        return name if name in self._known else OTHER

    def admit(self, names: Iterable[str]) -> None:
        """Tell these apart, in this order, as far as there is room."""
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
