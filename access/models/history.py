"""The history of facts that decide who may use gateways: teams, roles, and the people a gateway is open to.

Database triggers (migrations/0001_history.py) write the history. Therefore, it also has the changes that an older
release makes in the same database. The history has no grants, because grants store their own dates.
"""

from datetime import datetime

from django.db import models
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Q


class FactKind(models.TextChoices):
    """A kind of fact. Its label is a sentence about `subject` (for MEMBER, the person) and `object` (the team)."""

    MEMBER = "member", "The person is in the team."
    OPEN_TO = "open_to", "The gateway is open to the team."
    EVERYONE = "everyone", "The gateway is open to everyone."
    ONLY_GRANTED = "only_granted", "The gateway gives only granted tools."
    ROLE = "role", "The person has the role."
    SUPERUSER = "superuser", "The person is a superuser."
    INACTIVE = "inactive", "The person is deactivated."
    ONLY_LOOKS = "only_looks", "People with the role cannot use gateways."
    USES_ALL = "uses_all", "People with the role use all gateways."


def lasted(moment: datetime, began: str, *ends: str) -> Q:
    """Return a condition that matches the rows in force at `moment`.

    `began` names the column with the start; `ends` name the columns with the ends, of which the earliest counts.
    """
    found = Q(**{f"{began}__lte": moment})
    for end in ends:
        found &= Q(**{end: None}) | Q(**{f"{end}__gt": moment})
    return found


class FactQuerySet(models.QuerySet["Fact"]):
    def at(self, moment: datetime) -> "FactQuerySet":
        """Return the facts that were true at `moment`."""
        return self.filter(lasted(moment, "began_at", "ended_at"))


class Fact(models.Model):
    """Something that was true from `began_at` until `ended_at`; still true if `ended_at` is None.

    Rows are never deleted.
    """

    kind = models.CharField(max_length=12, choices=FactKind)
    # Ids without a foreign key, so that a fact remains when its team or role is deleted.
    subject = models.UUIDField()
    object = models.UUIDField(null=True)
    # The name of the object when the fact began.
    label = models.CharField(max_length=80, blank=True, default="", db_default="")
    began_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    from_events = models.BooleanField(default=False, db_default=False)  # Its start was derived from admin events.

    objects = FactQuerySet.as_manager()

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=("kind", "subject", "object"),
                condition=Q(ended_at=None),
                nulls_distinct=False,
                name="present_fact_is_unique",
            ),
        )
        indexes = (models.Index(fields=("kind", "subject"), name="fact_of_subject"),)

    def __str__(self) -> str:
        return f"{self.kind} {self.subject} {self.object or ''}".strip()


def recorded_since() -> datetime | None:
    """Return when triggers began to record facts. Earlier facts were derived from admin events."""
    applied = MigrationRecorder.Migration.objects.filter(app="access", name="0001_history")
    moment: datetime | None = applied.values_list("applied", flat=True).first()
    return moment
