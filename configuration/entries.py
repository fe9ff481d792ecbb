"""Read the objects of a document, and check their names and the names of objects that they refer to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from configuration.document import ConfigDocument, Mistake, Path
from configuration.kinds import KINDS, Entry, Key, Kind, World


def read_entries(document: ConfigDocument, world: World) -> tuple[ListedEntries, list[Mistake]]:
    """Return the entries of a document, and the mistakes in their names and in the names that they refer to.

    The document must fit the schema. The entries are also added to `world`.
    """
    return _EntryReader(document, world).read()


@dataclass
class ListedEntries:
    """The entries of a document by kind."""

    entries: dict[str, list[Entry]] = field(default_factory=dict)
    # By kind: the keys of the objects that contain a list of this kind, with old keys of renamed objects; () is the
    # top level.
    lists: dict[str, list[Key]] = field(default_factory=dict)


class _EntryReader:
    """Reads the entries of a document that fits the schema, and checks their names and references."""

    def __init__(self, document: ConfigDocument, world: World) -> None:
        self._document, self._world = document, world
        self._found, self._mistakes = ListedEntries(), list[Mistake]()

    def read(self) -> tuple[ListedEntries, list[Mistake]]:
        for kind in KINDS:
            if not kind.parent and kind.name in self._document.data:
                self._read_list(kind, self._document.data[kind.name], (), (kind.name,))
        for entries in self._found.entries.values():
            for entry in entries:
                self._check_references(entry)
            self._check_renames(entries)
        return self._found, self._mistakes

    def _read_list(self, kind: Kind, given: Any, parent: Key, path: Path) -> None:
        self._found.lists.setdefault(kind.id, []).extend({parent, self._old_parent(kind, parent)})
        self._found.entries.setdefault(kind.id, [])
        if kind.is_single:
            self._read_one(kind, given, parent, path)
            return
        for index, one in enumerate(given):
            key = (*parent, kind.key_of(one))
            self._read_one(kind, one, key, (*path, index))

    def _read_one(self, kind: Kind, given: Mapping[str, Any], key: Key, path: Path) -> None:
        values = {one.name: one.normal(given[one.name]) for one in kind.fields if one.name in given}
        entry = Entry(kind, key, values, path, self._old_key(kind, given, key, path))
        if earlier := self._world.entries.get((kind.id, key)):
            first = self._document.at(earlier.path)
            self._mistake((*path, kind.key), f"{kind.title(key)} is already in {first}. Write it once.")
            return
        self._world.entries[kind.id, key] = entry
        self._found.entries[kind.id].append(entry)
        for child in KINDS:
            if child.parent == kind.id and child.name in given:
                self._read_list(child, given[child.name], key, (*path, child.name))

    def _old_key(self, kind: Kind, given: Mapping[str, Any], key: Key, path: Path) -> Key | None:
        """Return the key that the object has before the document is applied. Return None if its key does not change.

        The key changes if the document renames the object or its parent. If the object has the new name already, or if
        `moved` has a mistake, nothing is renamed.
        """
        moved, known, above = given.get("moved"), self._world.of(kind.id), self._old_parent(kind, key[:-1])
        if moved is None:
            old = (*above, *key[-1:])
            return old if old != key and old in known else None
        old = (*above, moved["from"])
        where = (*path, "moved")
        if kind.key == "slug":
            self._mistake(where, f"A slug never changes: clients and tool names use it. Write “slug: {moved['from']}”.")
        elif moved["to"] != key[-1]:
            self._mistake((*where, "to"), f"“to” must be the {kind.key} of this object. Write “to: {key[-1]}”.")
        elif key not in known and old not in known:
            self._mistake((*where, "from"), f"There is no {kind.title(old)}. Remove “moved”, or correct the name.")
        elif old in known and key in known and moved["from"] != moved["to"]:
            self._mistake(where, f"{kind.title(key)} and {kind.title(old)} both exist. Remove “moved”.")
        elif old in known:
            self._world.renames[kind.id, moved["from"]] = moved["to"]
            return old
        return None

    def _check_renames(self, entries: list[Entry]) -> None:
        renamed = Counter(entry.was for entry in entries if entry.was)
        for entry in entries:
            if entry.was and (renamed[entry.was] > 1 or (entry.kind.id, entry.was) in self._world.entries):
                title = entry.kind.title(entry.was)
                self._mistake(entry.path, f"{title} is renamed here and also has another entry. Keep only one entry.")

    def _old_parent(self, kind: Kind, parent: Key) -> Key:
        """Return the key that the parent has before the document is applied. The document may rename the parent."""
        entry = self._world.entries.get((kind.parent, parent))
        return entry.was if entry and entry.was else parent

    def _check_references(self, entry: Entry) -> None:
        for one in entry.kind.fields:
            if one.refers_to and (value := entry.given.get(one.name)):
                for name in value if isinstance(value, list) else [value]:
                    if not self._is_known(one.refers_to, name):
                        where = self._path_of(entry, one.name, name)
                        self._mistake(where, _unknown(self._world, one.refers_to, name))

    def _path_of(self, entry: Entry, field: str, name: str) -> Path:
        """Return the path of `name` in the document."""
        path: Path = (*entry.path, field)
        given: Any = self._document.data
        for part in path:
            given = given[part]
        # The order of a list in the document may differ from its order in the entry.
        return (*path, given.index(name)) if isinstance(given, list) else path

    def _is_known(self, kind: str, name: str) -> bool:
        return (kind, (name,)) in self._world.entries or (name,) in self._world.of(kind)

    def _mistake(self, path: Path, message: str) -> None:
        self._mistakes.append(Mistake(self._document.at(path), message))


def _unknown(world: World, kind: str, name: str) -> str:
    noun = world.kinds[kind].noun
    known = {key[0].lower(): key[0] for key in world.of(kind)}
    if name.lower() in known:
        return f"The {noun} is called “{known[name.lower()]}”. Write it like this."
    return f"There is no {noun} “{name}”, neither here nor in the workspace. Add it to “{kind}”, or correct the name."
