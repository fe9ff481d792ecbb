"""The version of the gateway that last migrated the database tables."""

from django.db import models
from django.db.models import Q


class SchemaVersion(models.Model):
    """The version that last migrated the tables, and the oldest version that may use them; a single row.

    Written by `migrate` and read at each start (gatewayadmin/config/schema_versions.py).
    """

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    made_by = models.CharField(max_length=40)
    oldest = models.CharField(max_length=40)

    class Meta:
        default_permissions = ()
        constraints = (models.CheckConstraint(condition=Q(id=1), name="schema_version_is_one_row"),)

    def __str__(self) -> str:
        return f"{self.made_by}, for {self.oldest} or newer"
