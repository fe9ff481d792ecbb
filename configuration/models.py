"""The configuration files that govern objects. Each governed object has one source."""

from __future__ import annotations

from collections.abc import Iterable

from django.db import models
from django.utils import timezone


def target_of(row: models.Model) -> tuple[str, str]:
    """Return the model's name and the id of a row."""
    return row._meta.model_name or "", str(row.pk)


class ManagedObjectQuerySet(models.QuerySet["ManagedObject"]):
    def of(self, row: models.Model) -> ManagedObject | None:
        """Return the file that governs `row`, or None."""
        target_type, target_id = target_of(row)
        return self.filter(target_type=target_type, target_id=target_id).first()

    def sources(self) -> dict[tuple[str, str], str]:
        """Return the source of each managed object, by its model's name and its id."""
        rows = self.values_list("target_type", "target_id", "source")
        return {(target_type, target_id): source for target_type, target_id, source in rows}

    def claim(self, rows: Iterable[models.Model], *, source: str, file: str, commit: str) -> None:
        """Record that a file of this source governs these rows, as of now."""
        terms = {"source": source, "file": file[:300], "commit": commit, "applied_at": timezone.now()}
        targets = map(target_of, rows)
        claimed = [ManagedObject(target_type=kind, target_id=pk, **terms) for kind, pk in targets]
        self.bulk_create(
            claimed,
            update_conflicts=True,
            unique_fields=["target_type", "target_id"],
            update_fields=["file", "commit", "applied_at", "source"],
        )


class ManagedObject(models.Model):
    """An object that a configuration file governs. Nothing is locked: people may change the object by hand."""

    target_type = models.CharField(max_length=40)
    target_id = models.CharField(max_length=40)
    source = models.CharField(max_length=80)
    file = models.CharField(max_length=300)
    commit = models.CharField(max_length=100, blank=True)
    applied_at = models.DateTimeField()

    objects = ManagedObjectQuerySet.as_manager()

    class Meta:
        default_permissions = ()
        constraints = (models.UniqueConstraint(fields=("target_type", "target_id"), name="an_object_has_one_source"),)

    def __str__(self) -> str:
        return f"{self.file} ({self.source})"
