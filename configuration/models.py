"""The objects that configuration files govern. Each object has one source, which is a named set of these files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db import models
from django.utils import timezone


def target_of(row: models.Model) -> tuple[str, str]:
    """Return the model's name and the id of a row."""
    return row._meta.model_name or "", str(row.pk)


class ManagedObjectQuerySet(models.QuerySet["ManagedObject"]):
    def of(self, row: models.Model) -> ManagedObject | None:
        """Return the ManagedObject of `row`; None if no file governs `row`."""
        target_type, target_id = target_of(row)
        return self.filter(target_type=target_type, target_id=target_id, is_listed=True).first()

    def sources(self) -> dict[tuple[str, str], str]:
        """Return the source of each object that a file governs, by model name and id."""
        rows = self.filter(is_listed=True).values_list("target_type", "target_id", "source")
        return {(target_type, target_id): source for target_type, target_id, source in rows}

    def targets(self, source: str) -> set[tuple[str, str]]:
        """Return the model name and the id of each object of `source`.

        Objects that the source's files no longer list are included.
        """
        return {*self.filter(source=source).values_list("target_type", "target_id")}

    def release(self, rows: Iterable[models.Model], *, source: str) -> None:
        """Record that files of this source no longer list these rows. Then another source may claim them."""
        targets = self.targets(source) & {*map(target_of, rows)}
        for target_type in {kind for kind, _ in targets}:
            ids = [pk for kind, pk in targets if kind == target_type]
            self.filter(source=source, target_type=target_type, target_id__in=ids).update(is_listed=False)

    def claim(self, rows: Iterable[models.Model], *, source: str, file: str, commit: str) -> None:
        """Record that `file`, a file of this source, governs these rows and was applied just now."""
        terms: dict[str, Any] = {"source": source, "file": file[:300], "commit": commit[:100], "is_listed": True}
        terms["applied_at"] = timezone.now()
        targets = map(target_of, rows)
        claimed = [ManagedObject(target_type=kind, target_id=pk, **terms) for kind, pk in targets]
        self.bulk_create(
            claimed,
            update_conflicts=True,
            unique_fields=["target_type", "target_id"],
            update_fields=["file", "commit", "applied_at", "source", "is_listed"],
        )


class ManagedObject(models.Model):
    """An object that a configuration file governs. People may still change the object by hand."""

    target_type = models.CharField(max_length=40)
    target_id = models.CharField(max_length=40)
    source = models.CharField(max_length=80)
    file = models.CharField(max_length=300)
    commit = models.CharField(max_length=100, blank=True)
    applied_at = models.DateTimeField()
    # False if the last applied file lacks the object. The row remains, so that the object can be pruned.
    is_listed = models.BooleanField(default=True, db_default=True)

    objects = ManagedObjectQuerySet.as_manager()

    class Meta:
        default_permissions = ()
        constraints = (models.UniqueConstraint(fields=("target_type", "target_id"), name="an_object_has_one_source"),)

    def __str__(self) -> str:
        return f"{self.file} ({self.source})"
