"""Write the workspace as a configuration file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from auditlog.actions import Action
from auditlog.models import Event
from configuration.document import write
from configuration.kinds import KINDS, Key, Kind, World
from configuration.schema import VERSION

if TYPE_CHECKING:
    from accounts.models import User


def export(viewer: User) -> str:
    """Return everything that files can contain and `viewer` may see, always in the same order."""
    world = World(KINDS)
    tops = [kind for kind in KINDS if not kind.parent and may_see(kind, viewer)]
    return write({"version": VERSION} | {kind.name: _listed(kind, (), world, viewer) for kind in tops})


def export_recorded(viewer: User) -> str:
    """Return the result of `export` for `viewer`, and record in an admin event that they exported it."""
    text = export(viewer)
    Event.objects.record(Action.CONFIGURATION_EXPORTED, viewer, by=viewer)
    return text


def export_one(name: str, key: str, viewer: User) -> str | None:
    """Return the object `key` of the kind `name` as a file.

    Return None if the object does not exist, if files cannot contain it, or if `viewer` may not see it. For a kind
    with a single object, such as the workspace, `key` is “”.
    """
    world = World(KINDS, only=key or None)
    path = (key,) if key else ()
    found = world.of(name).get(path)
    if found is None or not found.values or not may_see(world.kinds[name], viewer):
        return None
    written = _written(world.kinds[name], path, world, viewer)
    return write({name: written if world.kinds[name].is_single else [written]})


def may_see(kind: Kind, viewer: User) -> bool:
    return all(viewer.has_perm(capability) for capability in kind.sees)


def _listed(kind: Kind, parent: Key, world: World, viewer: User) -> Any:
    below = world.children(kind.id, parent)
    keys = below if kind.keeps_order else sorted(below, key=order)
    written = [_written(kind, key, world, viewer) for key in keys if world.of(kind.id)[key].values]
    return (written[0] if written else {}) if kind.is_single else written


def _written(kind: Kind, key: Key, world: World, viewer: User) -> dict[str, Any]:
    values = kind.exported(world.of(kind.id)[key])
    ordered = {one.name: values[one.name] for one in kind.fields if one.name in values}
    children = [child for child in KINDS if child.parent == kind.id and may_see(child, viewer)]
    return ordered | {child.name: _listed(child, key, world, viewer) for child in children}


def order(key: Key) -> list[tuple[str, str]]:
    """Return a sort key for names: first without regard to case, and independent of the database's collation."""
    return [(part.casefold(), part) for part in key]
