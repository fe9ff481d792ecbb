"""Compare a document with the workspace. The result is a plan: the changes in order, with the access that each ends."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.utils.crypto import constant_time_compare

from capabilities import Capability
from configuration.checks import lacking, must_be_right, not_visible, of_other_sources, refused
from configuration.document import ConfigDocument, ConfigurationError, Mistake
from configuration.entries import ListedEntries, read_entries
from configuration.fields import REFERENCE_FORM
from configuration.kinds import KINDS, Act, Change, Entry, Found, Key, Kind, World
from configuration.models import ManagedObject, target_of
from configuration.schema import mistakes_of

if TYPE_CHECKING:
    from accounts.models import User

# Time for counting what the changes of a plan cut off. The last count may exceed it by 2 s (rules.replay.LATELY_S).
COUNTING_S = 10.0
NOT_COUNTED = f"Effects not counted: counting the effects of earlier changes took {COUNTING_S:.0f} s."
SECRET_CHANGED: tuple[Any, Any] = ("set", "another value")  # Shown instead of secrets.


@dataclass
class Plan:
    """The changes that applying a document would make."""

    document: ConfigDocument
    world: World
    changes: list[Change] = field(default_factory=list)
    # The titles of objects:
    not_in_file: list[str] = field(default_factory=list)  # Missing in the document's lists.
    claimed: list[str] = field(default_factory=list)  # Unchanged; the document's source would manage them from now on.
    missing: list[tuple[str, Capability]] = field(default_factory=list)  # With a capability that the person lacks.
    not_by_key: list[str] = field(default_factory=list)  # An API key cannot change them.

    # Set by `apply_and_list`: a text about servers that were added to gateways, but did not list their tools.
    unanswered: str = ""

    @property
    def digest(self) -> str:
        """A digest of the document's source and of all changes, with the values before and after each change.

        `apply` refuses a plan whose digest differs from the digest of the reviewed plan.
        """
        changes = [[change.act, change.kind.id, change.key, change.was, change.fields] for change in self.changes]
        told = [self.document.source, changes]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def plan(
    document: ConfigDocument,
    viewer: User,
    *,
    secrets: Mapping[str, str] | None = None,
    prune: bool = False,
    cuts: bool = True,
) -> Plan:
    """Return the changes that applying `document` as `viewer` would make.

    `secrets` maps references to the resolved secrets. With `prune`, the changes also disable the enabled objects that
    have the document's source, but are missing from the document's lists. With `cuts`, each change says which access
    it ends. Raises ConfigurationError with all mistakes of the first check that finds any.
    """
    must_be_right(mistakes_of(document))
    world = World(KINDS, secrets or {})
    listed, mistakes = read_entries(document, world)
    # This check precedes the following checks, because their messages name objects of the workspace.
    must_be_right(not_visible(listed, viewer, document))
    sources = ManagedObject.objects.sources() if document.source else {}
    must_be_right((*mistakes, *of_other_sources(document, world, sources)))
    made = Plan(document, world, [*_all_changes(listed, world)])
    made.changes += _pruned(document, world) if prune else ()
    must_be_right(refused(made.changes, document, world, viewer))
    made.missing = [*lacking(made.changes, viewer)]
    if viewer.narrowed_to is not None:
        made.not_by_key = [change.title for change in made.changes if change.kind.refuses_keys]
    made.not_in_file = [kind.title(key) for kind, key, _ in absent(document, world)]
    made.claimed = [*_claimed(made, viewer, sources)] if document.source else []
    if cuts:
        _count_cuts(made, viewer)
    return made


def _count_cuts(made: Plan, viewer: User) -> None:
    """Set the `cuts` of changes to texts about their effects. After COUNTING_S seconds, set them to NOT_COUNTED."""
    ends = time.monotonic() + COUNTING_S
    for change in made.changes:
        if change.row is not None or change.kind.cuts_when_new:
            is_late = time.monotonic() > ends
            change.cuts = NOT_COUNTED if is_late else change.kind.cuts(change, made.world, viewer)


def _all_changes(listed: ListedEntries, world: World) -> list[Change]:
    changes = [change for kind in KINDS for change in _changes(kind, listed, world)]
    return sorted(changes, key=lambda change: change.act is Act.REMOVE and change.kind.is_removed_last)


def _changes(kind: Kind, listed: ListedEntries, world: World) -> Iterator[Change]:
    """Yield the changes of one kind, removals first, so that another object can get the name of a removed object."""
    entries = listed.entries.get(kind.id, [])
    places = kind.places(entries, world)
    if not kind.keeps_order:
        entries = sorted(entries, key=lambda entry: entry.key)
    if kind.parent and kind.id in listed.lists:
        stays = {entry.key for entry in entries} | {entry.was for entry in entries}
        for key in sorted(world.of(kind.id).keys() - stays):
            if key[:-1] in listed.lists[kind.id]:
                yield Change(Act.REMOVE, kind, key, {}, row=world.of(kind.id)[key].row)
    changes = [change for entry in entries if (change := _change(kind, entry, world, places))]
    yield from (change for change in changes if change.act is Act.CHANGE)
    yield from (change for change in changes if change.act is Act.ADD)


def _change(kind: Kind, entry: Entry, world: World, places: Mapping[Key, tuple[int, int]]) -> Change | None:
    now = entry.was or entry.key
    found, place = world.of(kind.id).get(now), {"place": places[now]} if now in places else {}
    secrets = _new_secrets(kind, entry, found, world)
    if found is None:
        values = {one.name: entry.given.get(one.name, one.default) for one in kind.fields}
        values = kind.complete(values, world)
        fields = {name: (None, value) for name, value in values.items() if name in entry.given} | place
        return Change(Act.ADD, kind, entry.key, values, fields, path=entry.path, secrets=secrets)
    different = _different(kind, entry, found.values, world)
    different |= dict.fromkeys(secrets, SECRET_CHANGED) | place
    if not different:
        return None
    values = found.values | entry.given
    return Change(Act.CHANGE, kind, entry.key, values, different, found.row, entry.path, entry.was, secrets)


def _different(kind: Kind, entry: Entry, now: Mapping[str, Any], world: World) -> dict[str, tuple[Any, Any]]:
    """Return {field: (value before, value after)} for each field that changes, except secret fields."""
    different = {}
    for one in kind.fields:
        if one.name in entry.given and not one.is_secret:
            before, after = world.renamed(one, now.get(one.name)), entry.given[one.name]
            if before != after or one.name not in now:
                different[one.name] = (before, after)
    return different


def _new_secrets(kind: Kind, entry: Entry, found: Found | None, world: World) -> dict[str, str]:
    """Return the secrets that the document changes, by field.

    A field is left out if it contains a reference for which `world.secrets` has no secret.
    """
    changed = {}
    for one in kind.fields:
        given = entry.given.get(one.name)
        if one.is_secret and given:
            secret = world.secrets.get(given) if REFERENCE_FORM(given) else given
            now = kind.secret_of(found.row, one.name) if found else ""
            if secret is not None and not constant_time_compare(secret, now):
                changed[one.name] = secret
    return changed


def _pruned(document: ConfigDocument, world: World) -> Iterator[Change]:
    """Yield a change for each enabled object of the document's source that is missing from the document's lists.

    The change disables the object. Raises ConfigurationError if the document names no source.
    """
    if not document.source:
        mistake = "Pruning needs a source. Write “source: name of the file's owner”."
        raise ConfigurationError([Mistake(document.at(()), mistake)])
    own = ManagedObject.objects.targets(document.source)
    for kind, key, found in absent(document, world):
        if found.values.get("enabled") and target_of(found.row) in own:
            values = found.values | {"enabled": False}
            yield Change(Act.DISABLE, kind, key, values, {"enabled": (True, False)}, found.row)


def absent(document: ConfigDocument, world: World) -> Iterator[tuple[Kind, Key, Found]]:
    """Yield the objects of the workspace that are missing from the document's lists."""
    for kind in (one for one in KINDS if one.name in document.data and not one.parent and not one.is_single):
        for key, found in sorted(world.of(kind.id).items()):
            if (kind.id, key) not in world.entries and (kind.id, *key) not in world.renames and found.values:
                yield kind, key, found


def may_claim(kind: Kind, viewer: User) -> bool:
    """Return True if `viewer` may set which source governs an object of this kind."""
    return viewer.has_perm(kind.manages) and not (kind.refuses_keys and viewer.narrowed_to is not None)


def _claimed(made: Plan, viewer: User, sources: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """Yield the title of each object that gets the document's source, but does not change otherwise."""
    changed = {(change.kind.id, change.key) for change in made.changes}
    for (kind, key), entry in made.world.entries.items():
        if (kind, key) not in changed and may_claim(entry.kind, viewer):
            row = made.world.row_of(entry)
            if row is not None and sources.get(target_of(row)) != made.document.source:
                yield entry.kind.title(key)
