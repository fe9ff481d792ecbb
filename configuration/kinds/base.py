"""Kinds of objects in configuration files.

`World` has the workspace's objects, each with the values that a configuration file would give it.

To add a kind, write a subclass of `Kind` that makes changes by the methods of the models. Then add it to
`configuration.kinds.KINDS`, after the kinds that it refers to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from capabilities import Capability
from configuration.document import Path
from configuration.fields import Field

if TYPE_CHECKING:
    from django.db.models import Model, QuerySet

    from accounts.models import User

# The key of an object: the key of its parent, if any, then its name or slug. The workspace has an empty key.
type Key = tuple[str, ...]


@dataclass(slots=True)
class Found:
    """An object of the workspace: its row, and its values as in a file. `values` is {} if no file can contain it."""

    row: Any
    values: dict[str, Any]


@dataclass(slots=True)
class Entry:
    """An object in a document. `given` has the values in the document. `was` is the object's key before a rename."""

    kind: Kind
    key: Key
    given: dict[str, Any]
    path: Path
    was: Key | None = None


class Act(StrEnum):
    ADD = "add"
    CHANGE = "change"
    REMOVE = "remove"
    DISABLE = "disable"


@dataclass(slots=True)
class Change:
    """A difference between a document and the workspace."""

    act: Act
    kind: Kind
    key: Key
    values: dict[str, Any]  # The object's values after the change.
    fields: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # Changed fields: value before and after.
    row: Any = None
    path: Path = ()
    was: Key | None = None
    secrets: dict[str, str] = field(default_factory=dict)  # New secrets by field.
    cuts: str = ""  # The effects of the change, in words.

    @property
    def title(self) -> str:
        return self.kind.title(self.key)

    @property
    def settings(self) -> dict[str, Any]:
        """The object's values after the change, without `enabled`, which is applied separately for all kinds."""
        return {name: value for name, value in self.values.items() if name != "enabled"}

    @property
    def disables(self) -> bool:
        """True if the change disables the object."""
        return self.fields.get("enabled", (None, None))[1] is False

    def after(self, *names: str) -> dict[str, Any]:
        """Return the new values of the changed fields, without `enabled`.

        If `names` are given, return only the values of the fields with these names.
        """
        changed = {name: after for name, (_, after) in self.fields.items() if name != "enabled"}
        return {name: value for name, value in changed.items() if not names or name in names}

    def gives(self, *names: str) -> bool:
        """True if one of these fields changes. All fields that the file gives to a new object count as changed."""
        return any(name in self.fields for name in names)


class Kind:
    """A kind of object in configuration files."""

    name: ClassVar[str]  # The name of the list in files.
    noun: ClassVar[str]
    about: ClassVar[str]
    key: ClassVar[str] = "name"  # The field that identifies an object.
    lookup: ClassVar[str] = "name"  # The query lookup that selects the rows of one top-level object by its key.
    parent: ClassVar[str] = ""
    fields: ClassVar[tuple[Field, ...]]
    sees: ClassVar[frozenset[Capability]]
    why_managers_see: ClassVar[str] = ""  # The reason, in words, if `manages` is in `sees`.
    manages: ClassVar[Capability]
    toggles: ClassVar[Capability | None] = None
    refuses_keys: ClassVar[bool] = False
    is_removed_last: ClassVar[bool] = False
    keeps_order: ClassVar[bool] = False  # If True, the order of the list matters.
    cuts_when_new: ClassVar[bool] = False  # If True, a new object can take access away from somebody.

    @property
    def id(self) -> str:
        """The name of this kind's list. If the kind has a parent, the parent's list comes first: `gateways.servers`."""
        return f"{self.parent}.{self.name}" if self.parent else self.name

    @property
    def is_single(self) -> bool:
        """True if the workspace, or each parent, has exactly one object of this kind."""
        return not self.key

    def title(self, key: Key) -> str:
        """Return the name that people see for the object with this key."""
        return f"{self.noun} {key[-1]}" if key else self.noun

    def field(self, name: str) -> Field | None:
        return next((one for one in self.fields if one.name == name), None)

    def key_of(self, given: Mapping[str, Any]) -> str:
        """Return the last part of an object's key. `given` has the object's values."""
        return str(given.get(self.key, ""))

    def read(self, world: World) -> Iterator[tuple[Key, Any, dict[str, Any]]]:
        """Yield the key, row and values of each object of this kind, in order if `keeps_order` is set."""
        raise NotImplementedError

    def exported(self, found: Found) -> dict[str, Any]:
        """Return the values that an export writes."""
        return found.values

    def complete(self, values: dict[str, Any], world: World) -> dict[str, Any]:
        """Return the values of a new object, completed with defaults. Defaults may depend on other objects."""
        return values

    def check(self, change: Change, world: World) -> Iterator[tuple[str, str]]:
        """Yield the field and message of each reason why the change would be refused."""
        return iter(())

    def needs(self, change: Change) -> set[Capability]:
        """Return all capabilities that the change requires."""
        if change.act is Act.DISABLE and self.toggles:
            return {self.toggles}
        needed: set[Capability] = set()
        if self.toggles and "enabled" in change.fields:
            needed.add(self.toggles)
        return needed | ({self.manages} if change.fields.keys() - {"enabled"} or not needed else set())

    def places(self, entries: Iterable[Entry], world: World) -> dict[Key, tuple[int, int]]:
        """Return the old and the new position of each object that moves, by its old key.

        Return {} if the order does not matter.
        """
        return {}

    def secret_of(self, row: Any, name: str) -> str:
        """Return the decrypted secret in a field of `row`; empty if there is none."""
        raise NotImplementedError

    def add(self, change: Change, world: World, by: User) -> Any:
        """Create the object and return its row. The new object is enabled."""
        raise NotImplementedError

    def edit(self, change: Change, world: World, by: User) -> None:
        """Change the object, but do not enable or disable it."""
        raise NotImplementedError

    def remove(self, change: Change, world: World, by: User) -> None:
        raise NotImplementedError

    def finish(self, world: World, by: User) -> None:
        """Do the work that must follow all changes of this kind, such as arranging the objects in order."""

    def cuts(self, change: Change, world: World, viewer: User) -> str:
        """Return in words the effects of the change, such as access that ends; empty if no effect is known."""
        return ""


class World:
    """The objects of the workspace, read when first needed.

    If `only` is given, it is the key of a top-level object, and only this object and its children are read.
    """

    def __init__(
        self, kinds: Iterable[Kind], secrets: Mapping[str, str] | None = None, *, only: str | None = None
    ) -> None:
        self._only = only
        self.kinds = {kind.id: kind for kind in kinds}
        self._found: dict[str, dict[Key, Found]] = {}
        self._by_parent: dict[str, dict[Key, list[Key]]] = {}
        self.secrets = secrets or {}
        self.renames: dict[tuple[str, str], str] = {}
        self.entries: dict[tuple[str, Key], Entry] = {}

    def narrowed[Row: Model](self, rows: QuerySet[Row], kind: Kind) -> QuerySet[Row]:
        """Return `rows`. If this World reads only one top-level object, the rows of all others are left out."""
        return rows if self._only is None else rows.filter(**{kind.lookup: self._only})

    def of(self, kind: str) -> dict[Key, Found]:
        """Return the objects of this kind by key."""
        if kind not in self._found:
            found = self._found[kind] = {}
            for key, row, values in self.kinds[kind].read(self):
                found[key] = Found(row, values)
        return self._found[kind]

    def children(self, kind: str, parent: Key) -> list[Key]:
        """Return the keys of the objects of this kind that `parent` has."""
        if self._by_parent.get(kind) is None:
            below = self._by_parent[kind] = {}
            for key in self.of(kind):
                below.setdefault(key[:-1] if self.kinds[kind].key else key, []).append(key)
        return self._by_parent[kind].get(parent, [])

    def row(self, kind: str, *key: str) -> Any:
        """Return the row of an object, or None if there is none."""
        found = self.of(kind).get(key)
        return found.row if found else None

    def row_of(self, entry: Entry) -> Any:
        """Return the row of an entry's object, or None if there is no row.

        The row is looked up by the object's new key, then by the old key.
        """
        row = self.row(entry.kind.id, *entry.key)
        return self.row(entry.kind.id, *entry.was) if row is None and entry.was else row

    def planned(self, kind: str, *key: str) -> dict[str, Any]:
        """Return the values that an object will have when the plan is applied; empty if there is no such object."""
        found, entry = self.of(kind).get(key), self.entries.get((kind, key))
        return (found.values if found else {}) | (entry.given if entry else {})

    def renamed(self, field: Field, value: Any) -> Any:
        """Return `value`, with the new names of the objects that the document renames."""
        if not field.refers_to:
            return value
        if isinstance(value, list):
            return sorted(self.renames.get((field.refers_to, name), name) for name in value)
        return self.renames.get((field.refers_to, value), value)

    def listed(self, kind: str) -> list[Entry]:
        """Return the entries of this kind in the order of the document."""
        return [entry for (of, _), entry in self.entries.items() if of == kind]

    def put(self, kind: str, key: Key, row: Any) -> None:
        """Store the row of an object that was just created or changed."""
        self.of(kind)[key] = Found(row, {})


def reference_for(*words: str) -> str:
    """Return the reference that an export writes instead of a secret, such as `env:SINK_SIEM_SECRET`."""
    return "env:" + re.sub(r"[^A-Z0-9]+", "_", "_".join(words).upper()).strip("_")
