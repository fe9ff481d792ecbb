"""Grants of two kinds: tool grants and gateway grants.

A tool grant gives a set of tools to everybody, to a team or to a person. A gateway grant opens a gateway to a person.
A grant stops working at its end date, because the SQL of each request checks the date
(gateways/migrations/0005_access_requests.py). The chores record the end of the grant later. If it is a tool grant,
clients with an open stream are then notified that the gateway's lists have changed.
"""

from datetime import datetime
from typing import Any, Self
from uuid import UUID, uuid4

from django.db import models, transaction
from django.db.models import Q
from django.utils import timezone

from accounts.models import Team, User
from auditlog.actions import Action
from auditlog.models import Actor, Event, EventContext, use_context
from auditlog.versions import Versioned
from gateways.models.gateway import Gateway, GatewayError, Reach
from gateways.models.tool_sets import ToolSet


class AlreadyGiven(GatewayError):
    """The recipient has this access already, for as long or longer."""


class BadEnd(GatewayError):
    """The end must be in the future."""


class GrantQuerySet(models.QuerySet[Any]):
    def live(self) -> Self:
        return self.filter(Q(ends_at=None) | Q(ends_at__gt=timezone.now()), ended_at=None)

    def end_due(self) -> int:
        """Record the end of grants whose date has come, and return their number."""
        due = self.filter(ended_at=None, ends_at__lte=timezone.now()).order_by("pk")
        return sum(grant.end(by=None) for grant in due)

    def _give(self, action: Action, *, by: User, ends_at: datetime | None, **values: Any) -> Any:
        """Create and return a grant that ends at `ends_at`. The other fields are `values`.

        If the recipient has a live grant of the same access that ends sooner, the new grant replaces it. If an earlier
        grant of the same access has passed its end date, but its end is not recorded yet, the end is recorded first.

        The caller must have locked the row of the gateway or tool set. Raises AlreadyGiven or BadEnd.
        """
        if ends_at is not None and ends_at <= timezone.now():
            raise BadEnd(BadEnd.__doc__)
        same = {name: value for name, value in values.items() if name != "request"}
        present = self.live().filter(**same).first()
        if present and (present.ends_at is None or (ends_at is not None and ends_at <= present.ends_at)):
            raise AlreadyGiven(AlreadyGiven.__doc__)
        with use_context(EventContext()):  # As if the chores had recorded it, not the person who gives the new grant.
            self.filter(**same).end_due()
        named = {"team_name": values["team"].name} if values.get("team") else {}
        self.filter(**same, ended_at=None).update(ended_at=timezone.now(), ended_by=by, **named)
        grant = self.create(**values, ends_at=ends_at, given_by=by)
        until = {"ends_at": [_text(present.ends_at) if present else None, _text(ends_at)]} if ends_at else {}
        Event.objects.record(action, grant, by=by, changes=until)
        return grant


class DatedGrant(Versioned, models.Model):
    """Base of all grants.

    A grant can be ended, but it is not edited or deleted. To change the end date, a new grant replaces the old one.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    given_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    given_at = models.DateTimeField(default=timezone.now)
    ends_at = models.DateTimeField(null=True, blank=True)  # None: until somebody ends it.
    request = models.ForeignKey("gateways.AccessRequest", models.PROTECT, null=True, blank=True, related_name="+")
    ended_by = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="+")
    ended_at = models.DateTimeField(null=True, blank=True)

    ENDED: Action

    class Meta:
        abstract = True

    def editable(self) -> dict[str, Any]:
        return {"ended_at": _text(self.ended_at)}

    def end(self, *, by: Actor | None) -> bool:
        """End the grant from the next request on. Return False if it had ended already.

        `by` is None if the grant ends because its end date has passed.
        """
        with transaction.atomic():
            row = self.lock()
            if row.ended_at:
                return False
            self.ended_at, self.ended_by = timezone.now(), by if isinstance(by, User) else None
            self.save(update_fields=["ended_at", "ended_by"])
            Event.objects.record(self.ENDED, self, by=by)
        return True


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


class ToolGrantQuerySet(GrantQuerySet):
    def to(self, user: User) -> "ToolGrantQuerySet":
        """Return the live grants for `user`: those to everybody, to the user's teams, and to the user."""
        mine = Q(everyone=True) | Q(user=user) | Q(team__in=user.teams.order_by().values("pk"))
        return self.live().filter(mine)

    def give(
        self,
        tool_set: ToolSet,
        *,
        team: Team | None = None,
        user: User | None = None,
        ends_at: datetime | None = None,
        request: Any = None,
        by: User,
    ) -> "ToolGrant":
        """Give a set to a team or a person, or to everybody if both are None. Return the new grant.

        The new grant replaces a live grant of the set to the same recipient that ends sooner.

        Raises AlreadyGiven or BadEnd, or GatewayError if the set is archived.
        """
        with transaction.atomic():
            row: ToolSet = tool_set.lock()
            if row.archived_at:
                raise GatewayError("There is no such set.")
            subject = {"everyone": team is None and user is None, "team": team, "user": user}
            what = {"gateway_id": row.gateway_id, "tool_set": tool_set, "request": request}
            grant: ToolGrant = self._give(Action.TOOL_GRANT_GIVEN, by=by, ends_at=ends_at, **subject, **what)
        return grant


class ToolGrant(DatedGrant):
    """A grant that gives a set of tools to everybody, a team or a person."""

    # The gateway of the set, copied here because each request looks up the grants of a gateway.
    gateway = models.ForeignKey(Gateway, models.PROTECT, related_name="+", db_index=False)
    tool_set = models.ForeignKey(ToolSet, models.PROTECT, related_name="grants", db_index=False)
    everyone = models.BooleanField()
    team = models.ForeignKey(Team, models.SET_NULL, null=True, blank=True, related_name="tool_grants")
    # The name of the team, stored when a grant to a team ends. Deleting a team ends its grants.
    team_name = models.CharField(max_length=80, blank=True, default="", db_default="", editable=False)
    removed_team = models.UUIDField(null=True, editable=False)  # The id of the team, stored when the team is deleted.
    user = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="+")

    ENDED = Action.TOOL_GRANT_ENDED

    objects = ToolGrantQuerySet.as_manager()

    class Meta:
        ordering = ("-given_at",)
        constraints = (
            models.CheckConstraint(
                condition=Q(everyone=True, team=None, user=None)
                | Q(everyone=False, team__isnull=False, user=None)
                | Q(everyone=False, team=None, user__isnull=False)
                | Q(everyone=False, team=None, user=None, ended_at__isnull=False),
                name="tool_grant_has_one_subject",
            ),
            models.UniqueConstraint(
                fields=("tool_set", "team", "user"),
                condition=Q(ended_at=None),
                nulls_distinct=False,
                name="live_tool_grant_is_unique",
            ),
        )
        indexes = (
            models.Index(
                fields=("gateway",),
                include=("tool_set", "everyone", "team", "user"),
                condition=Q(ended_at=None),
                name="live_tool_grant_of_gateway",
            ),
        )

    def __str__(self) -> str:
        return f"{self.tool_set.name} / {self.subject} / {self.gateway}"

    @property
    def subject(self) -> str:
        """The text `everybody`, the name of the team, or the person's e-mail address."""
        if self.everyone:
            return "everybody"
        return self.owner_email or (self.team.name if self.team else self.team_name)

    @property
    def team_pk(self) -> UUID | None:
        """The id of the team that has or had the grant, even if the team was deleted."""
        return self.team_id or self.removed_team

    @property
    def owner_email(self) -> str:
        """The e-mail address of the person who has the grant; empty if a team or everybody has it."""
        return self.user.email if self.user else ""

    def end(self, *, by: Actor | None) -> bool:
        with transaction.atomic():
            ended = super().end(by=by)
            if ended and self.team:
                self.team_name = self.team.name
                self.save(update_fields=["team_name"])
        return ended


class GatewayGrantQuerySet(GrantQuerySet):
    def give(
        self, gateway: Gateway, user: User, *, ends_at: datetime | None = None, request: Any = None, by: User
    ) -> "GatewayGrant":
        """Open a gateway to a person, regardless of their teams. Return the new grant.

        The new grant replaces a live grant of the gateway to this person that ends sooner.

        Raises AlreadyGiven or BadEnd, or GatewayError if the gateway is archived.
        """
        with transaction.atomic():
            row: Gateway = gateway.lock()
            if row.archived_at:
                raise GatewayError("There is no such gateway.")
            what = {"gateway": gateway, "user": user, "request": request}
            grant: GatewayGrant = self._give(Action.GATEWAY_GRANT_GIVEN, by=by, ends_at=ends_at, **what)
        return grant


class GatewayGrant(DatedGrant):
    """A grant that lets one person use a gateway that is open to teams only. The person need not be in these teams."""

    gateway = models.ForeignKey(Gateway, models.PROTECT, related_name="people_given")
    user = models.ForeignKey(User, models.PROTECT, related_name="gateways_given")

    ENDED = Action.GATEWAY_GRANT_ENDED

    objects = GatewayGrantQuerySet.as_manager()

    class Meta:
        ordering = ("-given_at",)
        constraints = (
            models.UniqueConstraint(
                fields=("gateway", "user"), condition=Q(ended_at=None), name="live_gateway_grant_is_unique"
            ),
        )

    def __str__(self) -> str:
        return f"{self.gateway} / {self.user.email}"

    @property
    def owner_email(self) -> str:
        return self.user.email


def reached_until(gateway: Gateway, user: User) -> tuple[bool, datetime | None]:
    """Return a pair: whether `user` may use the gateway now, and the end date of this access.

    The end date is None if this access has no end date.
    """
    if not user.uses_gateways:
        return False, None
    own = GatewayGrant.objects.live().filter(gateway=gateway, user=user).first()
    if own is None or gateway.reach == Reach.EVERYONE:
        return gateway.is_reachable_by(user), None
    without = Gateway.objects.reachable_by(user, by_grant=False).filter(pk=gateway.pk).exists()
    return True, None if without else own.ends_at
