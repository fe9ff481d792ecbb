"""Optimistic locking of editable rows: a save based on an outdated version fails, and the error lists the changes.

A version has a digest of each value of `editable()`. A form contains the version that the row had when the form was
opened, and submits it with the changes. The API returns the version as the ETag (RFC 9110, section 8.8.3). The method
that writes the row locks the row, and then compares the submitted version with the current version.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from django.db.models import Model
from django.shortcuts import get_object_or_404

from auditlog.models import Event
from ui.versions import ChangedMeanwhile, ConflictingChange, FormSeen, HasVersion, Precondition, Seen, version_digest

__all__ = ["ChangedMeanwhile", "ConflictingChange", "FormSeen", "Precondition", "Seen", "Versioned"]


class Versioned(HasVersion):
    """Base of editable models, whose methods refuse a save based on an outdated version."""

    def lock(self) -> Any:
        """Return the current row, locked until the transaction ends. Raises Http404 if somebody has removed the row."""
        row: Any = self
        return get_object_or_404(type(row)._base_manager.select_for_update(of=("self",)), pk=row.pk)

    def must_be(self, seen: Seen | None, changed: Collection[str] | None = None) -> None:
        """Raise ChangedMeanwhile if this row differs from the version `seen`. The row must be locked.

        If `seen` is None, nothing is checked. `changed` names the fields that the writer would change; None means all.
        If `seen` is a FormSeen, a difference in a field that the writer would not change is allowed.
        """
        if seen is None:
            return
        values = self.editable()
        version = version_digest(values)
        stale = seen.stale(version)
        if stale is False or stale == []:
            return
        names = list(values)
        fields = [] if stale is True else [names[index] for index in stale]
        if isinstance(seen, FormSeen) and changed is not None:
            fields = [field for field in fields if field in changed]
        if fields or stale is True:
            raise ChangedMeanwhile(_changes_of(self, {field: values[field] for field in fields}), version)


def _changes_of(thing: Any, values: Mapping[str, Any]) -> list[ConflictingChange]:
    row: Model = thing
    events = Event.objects.filter(target_type=row._meta.model_name, target_id=str(row.pk))
    latest: dict[str, Event] = {}
    for event in events.filter(changes__has_any_keys=[*values]).order_by("-pk")[:200]:
        for field in values:
            if field in event.changes:
                latest.setdefault(field, event)
    return [_change(field, value, latest.get(field)) for field, value in values.items()]


def _change(field: str, value: Any, event: Event | None) -> ConflictingChange:
    return (
        ConflictingChange(field, value, event.actor_email, event.created_at)
        if event
        else ConflictingChange(field, value, "", None)
    )
