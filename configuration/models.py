"""The files that govern objects: each object has one source."""

from __future__ import annotations

from collections.abc import Iterable

from django.db import models
from django.utils import timezone


class ManagedObjectQuerySet(models.QuerySet["ManagedObject"]):
    def of(self, row: models.Model) -> ManagedObject | None:
        """Return the file that governs `row`, or None."""
        return self.filter(target_type=row._meta.model_name, target_id=str(row.pk)).first()

    def claim(self, rows: Iterable[models.Model], *, source: str, file: str, commit: str) -> None:
        """Note that these rows are governed by a file of this source."""
        terms = {"source": source, "file": file[:300], "commit": commit, "applied_at": timezone.now()}
        claimed = [
            ManagedObject(target_type=row._meta.model_name or "", target_id=str(row.pk), **terms) for row in rows
        ]
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
