"""Teams of users."""

from collections.abc import Collection, Iterable
from typing import Any, ClassVar
from uuid import UUID, uuid4

from django.db import IntegrityError, models, transaction
from django.db.models.functions import Lower

from accounts.models.users import User
from accounts.rules import Grantor, NameTaken, must_match, one_at_a_time
from auditlog.actions import Action
from auditlog.models import Event
from auditlog.versions import Seen, Versioned

MOST_TOLD = 100  # For larger teams, events of changes list only the people who joined or left.


class TeamManager(models.Manager["Team"]):
    def add(self, *, name: str, users: Iterable[User], by: Grantor | None) -> "Team":
        """Create a team. Raises NameTaken, or Outranked if a member has a capability that the actor `by` lacks."""
        users = list(users)
        try:
            with transaction.atomic():
                _must_match_all(by, {person.pk for person in users})
                team = self.create(name=name.strip())
                team.users.set(users)
                changes = {"users": [[], team.emails()]}
                Event.objects.record(Action.TEAM_CREATED, team, by=by, changes=changes)
        except IntegrityError:
            raise NameTaken(NameTaken.__doc__) from None
        return team


class Team(Versioned, models.Model):
    """A named set of users. A gateway may be open to certain teams only."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    name = models.CharField(max_length=80)
    users = models.ManyToManyField(User, blank=True, related_name="teams")

    objects: ClassVar[TeamManager] = TeamManager()

    class Meta:
        ordering = ("name",)
        constraints = (models.UniqueConstraint(Lower("name"), name="team_name_is_unique"),)

    def __str__(self) -> str:
        return self.name

    def editable(self) -> dict[str, Any]:
        return {"name": self.name, "users": self.emails()}

    def emails(self) -> list[str]:
        """Return the members' e-mail addresses, sorted. Events store them in this form."""
        return list(self.users.order_by("email").values_list("email", flat=True))

    def edit(
        self,
        *,
        name: str | None = None,
        users: Iterable[User] | None = None,
        by: Grantor | None,
        seen: Seen | None = None,
    ) -> bool:
        """Rename the team and set its members; return True if anything changed.

        If `name` or `users` is None, it stays as it is. Access changes from the members' next request on. Raises
        NameTaken or ChangedMeanwhile. Raises Outranked if the actor `by` lacks a capability of an added or removed
        person.
        """
        try:
            with transaction.atomic():
                row = self.lock()
                one_at_a_time()  # Otherwise a member removed concurrently would be added back.
                before, users = row.editable(), list(row.users.all() if users is None else users)
                name = row.name if name is None else name.strip()
                _must_match_all(by, {*row.users.values_list("pk", flat=True)} ^ {person.pk for person in users})
                new_values = {"name": name, "users": sorted(person.email for person in users)}
                row.must_be(seen, {field for field in before if before[field] != new_values[field]})
                self.name = name
                self.save(update_fields=["name"])
                self.users.set(users)
                after = {"name": self.name, "users": self.emails()}
                changes = {field: [before[field], after[field]] for field in before if before[field] != after[field]}
                if len(before["users"]) > MOST_TOLD and "users" in changes:
                    changes["users"] = _differences(*changes["users"])
                if changes:
                    Event.objects.record(Action.TEAM_UPDATED, self, by=by, changes=changes)
        except IntegrityError:
            raise NameTaken(NameTaken.__doc__) from None
        return bool(changes)

    def remove(self, *, by: Grantor | None) -> None:
        """Delete the team and end its grants. Raises Outranked if the actor `by` lacks a capability of a member."""
        with transaction.atomic():
            row = self.lock()
            _must_match_all(by, {*row.users.values_list("pk", flat=True)})
            for grant in row.tool_grants.filter(ended_at=None).select_related("tool_set", "gateway", "team"):
                grant.end(by=by)
            row.tool_grants.update(removed_team=row.pk)  # The access report of a past day needs the id.
            Event.objects.record(Action.TEAM_REMOVED, self, by=by, changes={"users": [self.emails(), []]})
            self.delete()


def _differences(before: list[str], after: list[str]) -> list[list[str]]:
    """Return the members who left, and the members who joined.

    Events store these differences if complete lists of members would be too long.
    """
    return [sorted({*before} - {*after}), sorted({*after} - {*before})]


def _must_match_all(by: Grantor | None, pks: Collection[UUID]) -> None:
    """Raise Outranked if the actor `by` lacks a capability of one of these people.

    If `by` is None, the system acts. The caller must lock the team's row first.
    """
    if not pks:
        return
    # From here on, the people's roles cannot change. All code takes this lock after the lock of the team's row.
    one_at_a_time()
    people = {(person.role_id, person.is_superuser): person for person in User.objects.filter(pk__in=pks)}
    must_match(by, {capability for person in people.values() for capability in person.granted})
