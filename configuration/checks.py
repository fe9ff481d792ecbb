"""Checks of a document and its changes before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING

from capabilities import Capability
from configuration.document import ConfigDocument, ConfigurationError, Mistake
from configuration.entries import ListedEntries
from configuration.fields import REFERENCE_FORM
from configuration.kinds import KINDS, Act, Change, Key, Kind, World
from configuration.models import target_of

if TYPE_CHECKING:
    from accounts.models import User


def must_be_right(mistakes: Iterable[Mistake]) -> None:
    """Raise ConfigurationError if there are mistakes."""
    if found := [*mistakes]:
        raise ConfigurationError(found)


def not_visible(listed: ListedEntries, viewer: User, document: ConfigDocument) -> Iterator[Mistake]:
    """Yield a `Mistake` for each list in the document whose objects `viewer` may not see."""
    for kind in KINDS:
        if kind.id in listed.lists and (missing := [one for one in kind.sees if not viewer.has_perm(one)]):
            names = kind.id.split(".")
            path = next(
                path for path in document.key_marks if [part for part in path if isinstance(part, str)] == names
            )
            labels = ", ".join(f"“{one.label}” ({one.slug})" for one in sorted(missing))
            why = kind.why_managers_see if kind.manages in missing else ""
            message = f"You may not see {kind.name}: {labels} is required{why}. Remove the list."
            yield Mistake(document.at_key(path), message)


def of_other_sources(
    document: ConfigDocument, world: World, sources: Mapping[tuple[str, str], str]
) -> Iterator[Mistake]:
    """Yield a mistake for each object that is in this document but governed by a file of another source.

    `sources` is the result of `ManagedObjectQuerySet.sources`.
    """
    for (kind, key), entry in world.entries.items() if sources else ():
        found = world.of(kind).get(entry.was or key)
        source = sources.get(target_of(found.row)) if found else None
        if source not in (None, document.source):
            title = entry.kind.title(key)
            yield Mistake(
                document.at(entry.path),
                f"{title} has the source “{source}”. Remove it from this file, or remove it from the "
                "file of that source first.",
            )


def refused(changes: Iterable[Change], document: ConfigDocument, world: World, viewer: User) -> Iterator[Mistake]:
    """Yield a mistake for each reason why a change would be refused."""
    taken = _Names(world)
    for change in changes:
        if change.act in (Act.ADD, Act.CHANGE):
            # `Kind.check` might contact other machines, so it is not called for changes that the viewer may not make.
            own = () if any(lacking([change], viewer)) else change.kind.check(change, world)
            checks = (_fixed(change), taken.check(change), _unresolved(change, world), own)
            for name, message in chain(*checks):
                yield Mistake(document.at((*change.path, name)), message)


def _fixed(change: Change) -> Iterator[tuple[str, str]]:
    for one in change.kind.fields:
        if one.is_fixed and change.act is Act.CHANGE and one.name in change.fields:
            before = change.fields[one.name][0]
            yield (
                one.name,
                f"“{one.name}” cannot change, and is {before} now. Write {before}, or another {change.kind.key}.",
            )


class _Names:
    """The names that objects would have after the plan. Names must be unique without regard to case."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._names: dict[str, dict[str, Key]] = {}

    def check(self, change: Change) -> Iterator[tuple[str, str]]:
        kind = change.kind
        if kind.field("name") is None or not kind.key or kind.parent or not change.gives("name"):
            return
        name = str(change.values["name"])
        names = self._names.setdefault(kind.id, self._read(kind))
        other = names.setdefault(name.lower(), change.key)
        if other != change.key and kind.key == "slug":
            yield (
                "slug",
                f"“{name}” is the name of {kind.title(other)}. A slug never changes: write “slug: {other[-1]}”.",
            )
        elif other not in (change.key, change.was):
            yield (
                "name",
                f"There is {kind.title(other)} already. Names must differ in more than upper and lower case. Write "
                "another name.",
            )

    def _read(self, kind: Kind) -> dict[str, Key]:
        planned = {key: self._world.planned(kind.id, *key) for key in self._world.of(kind.id)}
        now = self._world.of(kind.id)
        return {str(values.get("name", now[key].row.name)).lower(): key for key, values in planned.items()}


def lacking(changes: Iterable[Change], viewer: User) -> Iterator[tuple[str, Capability]]:
    """Yield pairs of a change's title and a required capability that `viewer` lacks."""
    for change in changes:
        for capability in sorted(change.kind.needs(change)):
            if not viewer.has_perm(capability):
                yield change.title, capability


def _unresolved(change: Change, world: World) -> Iterator[tuple[str, str]]:
    """Yield a field and a message for each reference without a secret, unless the object already has a secret."""
    for one in change.kind.fields:
        reference = change.values.get(one.name)
        is_unknown = one.is_secret and reference and REFERENCE_FORM(reference) and reference not in world.secrets
        if is_unknown and (change.row is None or not change.kind.secret_of(change.row, one.name)):
            yield one.name, f"There is no secret for {reference}. Set it, or write another reference."
