"""Gateways: the URLs that agents call."""

from collections.abc import Iterable
from typing import Any
from uuid import uuid4

from django.conf import settings
from django.db import models, transaction
from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Lower

from accounts.models import Team, User
from auditlog.actions import Action
from auditlog.models import Event, Switchable
from auditlog.versions import Seen, Versioned
from capabilities import Capability, CapabilityRequired
from servers.models import Identity, slug_validator
from ui.forms import holds


class GatewayError(Exception):
    """The change of a gateway or assignment is refused; the message says why."""


class Reach(models.TextChoices):
    EVERYONE = "everyone", "Everyone"
    TEAMS = "teams", "Teams"


class HostsAllowed(models.TextChoices):
    """The apps and agents that may use a gateway."""

    ALL = "all", "All"
    LISTED = "listed", "Only these"


class ToolsGiven(models.TextChoices):
    """The tools that people who may use a gateway can use there."""

    ALL = "all", "All tools"
    GRANTED = "granted", "Only granted tools"


class OnArrival(models.TextChoices):
    """The setting that decides about definitions that were never approved."""

    APPROVE = "approve", "Approve on arrival"
    WAIT = "wait", "Wait for approval"


class OnChange(models.TextChoices):
    """The setting that decides about definitions that the server changed after they were approved."""

    HOLD = "hold", "Hold back"
    WARN = "warn", "Warn"
    ACCEPT = "accept", "Accept"


class GatewayQuerySet(models.QuerySet["Gateway"]):
    def live(self) -> "GatewayQuerySet":
        return self.filter(archived_at=None)

    def reachable_by(self, user: User) -> "GatewayQuerySet":
        """Return live gateways `user` may use: open to everyone or to their teams, or all with GATEWAYS_READ."""
        if user.has_perm(Capability.GATEWAYS_READ):
            return self.live()
        # A subquery, because a join needs DISTINCT, which would compute the annotations of every row first.
        through_teams = Gateway.objects.filter(teams__in=user.teams.all()).order_by().values("pk")
        return self.live().filter(Q(reach=Reach.EVERYONE) | Q(pk__in=through_teams))

    def usable_by(self, user: User) -> "GatewayQuerySet":
        """Return enabled gateways that `user` may use."""
        return self.reachable_by(user).filter(enabled=True)

    def visible_to(self, user: User) -> "GatewayQuerySet":
        """Return live gateways whose page `user` may open: those they may use, or all if they manage gateways."""
        if any(user.has_perm(c) for c in (Capability.GATEWAYS_MANAGE, Capability.GATEWAYS_TOGGLE)):
            return self.live()
        return self.reachable_by(user)

    def demo_last(self, *order: str) -> "GatewayQuerySet":
        """Order by `order`, but put gateways that have no server except the built-in one last."""
        real = Gateway.objects.filter(
            pk=OuterRef("pk"),
            assignments__removed_at=None,
            assignments__server__archived_at=None,
            assignments__server__url__startswith="http",
        )
        return self.annotate(is_real=Exists(real)).order_by("-is_real", *order)

    def matching(self, words: str) -> "GatewayQuerySet":
        """Return gateways with `words` in their name or slug; all if `words` is empty."""
        return self.filter(holds("name", words) | holds("slug", words)) if words else self

    def add(self, *, by: User | None, teams: Iterable[Team] = (), **fields: Any) -> "Gateway":
        """Create a gateway. The slug cannot be changed later, because it is part of the gateway's URL."""
        with transaction.atomic():
            gateway = self.create(created_by=by, **fields)
            gateway.teams.set(teams)
            Event.objects.record(Action.GATEWAY_CREATED, gateway, by=by, changes={"slug": [None, gateway.slug]})
        return gateway

    def open_to(self, team: Team, wanted: Iterable["Gateway"], *, by: User, seen: Seen | None = None) -> None:
        """Open the gateways in `wanted` to `team`, close all others with reach `teams` to it, and record each change.

        Raises ChangedMeanwhile if the team's gateways are no longer those in `seen`.
        """
        pks = {gateway.pk for gateway in wanted}
        with transaction.atomic():
            Team.objects.select_for_update().get(pk=team.pk)
            TeamGateways(team).must_be(seen)
            for gateway in self.live().filter(reach=Reach.TEAMS).prefetch_related("teams").order_by("pk"):
                teams = {*gateway.teams.all()}
                if (gateway.pk in pks) != (team in teams):
                    gateway.edit(teams=teams ^ {team}, by=by)


class TeamGateways(Versioned):
    """The gateways open to a team, versioned for the form on the team's page."""

    def __init__(self, team: Team) -> None:
        self.pk, self._meta, self._team = team.pk, team._meta, team

    def editable(self) -> dict[str, Any]:
        open_now = Gateway.objects.live().filter(reach=Reach.TEAMS, teams=self._team)
        return {"gateways": sorted(open_now.values_list("slug", flat=True))}


class IdentityGateways(Versioned):
    """The gateways that may use a shared identity, versioned for the form that edits them."""

    def __init__(self, identity: Identity) -> None:
        self.pk, self._meta, self._identity = identity.pk, identity._meta, identity

    @property
    def live(self) -> list["Gateway"]:
        return list(Gateway.objects.live().filter(shared_identities=self._identity).order_by("name"))

    def editable(self) -> dict[str, Any]:
        return {"gateways": _slugs(self._identity)}


def allow_identity(
    identity: Identity, wanted: Iterable["Gateway"], *, by: User | None, seen: Seen | None = None
) -> None:
    """Set the gateways that may use the shared `identity` to `wanted`, from the next request on.

    Raises CapabilityRequired unless `by` manages identities (None is the system), or ChangedMeanwhile.
    """
    if by is not None and not by.has_perm(Capability.IDENTITIES_MANAGE):
        raise CapabilityRequired(Capability.IDENTITIES_MANAGE)
    with transaction.atomic():
        identity.lock()
        IdentityGateways(identity).must_be(seen)
        before = _slugs(identity)
        identity.gateways.set(wanted)
        after = _slugs(identity)
        if before != after:
            Event.objects.record(Action.IDENTITY_UPDATED, identity, by=by, changes={"gateways": [before, after]})


def _slugs(identity: Identity) -> list[str]:
    return sorted(identity.gateways.values_list("slug", flat=True))


class Gateway(Versioned, Switchable):
    """One governed MCP endpoint, `/mcp/<slug>`, in front of one or more servers."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    name = models.CharField(max_length=80)
    slug = models.CharField(max_length=40, unique=True, validators=[slug_validator])
    description = models.TextField(max_length=1000, blank=True)
    reach = models.CharField(max_length=10, choices=Reach, default=Reach.EVERYONE)
    teams = models.ManyToManyField(Team, blank=True, related_name="gateways")
    hosts_allowed = models.CharField(
        max_length=10, choices=HostsAllowed, default=HostsAllowed.ALL, db_default=HostsAllowed.ALL
    )
    tools_given = models.CharField(max_length=10, choices=ToolsGiven, default=ToolsGiven.ALL, db_default=ToolsGiven.ALL)
    # Identities that this gateway may use; edited on the page of each identity.
    shared_identities = models.ManyToManyField(Identity, blank=True, related_name="gateways")
    calls_per_minute = models.PositiveIntegerField(null=True, blank=True)
    new_definitions = models.CharField(
        max_length=10, choices=OnArrival, default=OnArrival.APPROVE, db_default=OnArrival.APPROVE
    )
    changed_definitions = models.CharField(
        max_length=10, choices=OnChange, default=OnChange.HOLD, db_default=OnChange.HOLD
    )
    archived_at = models.DateTimeField(null=True, blank=True)
    created_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects = GatewayQuerySet.as_manager()

    class Meta:
        ordering = ("name",)
        permissions = (
            ("manage_gateway", "Basic gateway management"),
            ("toggle_gateway", "Disable and enable gateways"),
        )
        constraints = (
            models.UniqueConstraint(Lower("name"), condition=Q(archived_at=None), name="live_gateway_name_is_unique"),
        )

    def __str__(self) -> str:
        return self.name

    @property
    def url(self) -> str:
        return "".join(self.url_parts)

    @property
    def url_parts(self) -> tuple[str, str]:
        """The URL in two parts: the public URL, which all gateways share, and the path of this gateway."""
        return settings.PUBLIC_URL, f"/mcp/{self.slug}"

    def is_reachable_by(self, user: User) -> bool:
        """True if `user` may use this gateway."""
        return Gateway.objects.reachable_by(user).filter(pk=self.pk).exists()

    def editable(self) -> dict[str, Any]:
        names = (
            "name",
            "description",
            "reach",
            "hosts_allowed",
            "tools_given",
            "calls_per_minute",
            "new_definitions",
            "changed_definitions",
            "enabled",
        )
        return {name: getattr(self, name) for name in names} | {"teams": self.team_names()}

    def edit(self, *, by: User, teams: Iterable[Team] | None = None, seen: Seen | None = None, **fields: Any) -> None:
        """Change the gateway's settings or teams, and record an event of the changes. Raises ChangedMeanwhile."""
        with transaction.atomic():
            row = self.lock()
            changes = {
                name: [getattr(row, name), value] for name, value in fields.items() if getattr(row, name) != value
            }
            if teams is not None:
                teams = list(teams)
            team_names = sorted(team.name for team in teams) if teams is not None else None
            other_teams = team_names is not None and team_names != row.team_names()
            row.must_be(seen, {*changes, "teams"} if other_teams else changes)
            for name, value in fields.items():
                setattr(self, name, value)
            self.save(update_fields=[*fields, "updated_at"])
            if teams is not None:
                changes |= self._open_to(teams)
            if changes:
                Event.objects.record(Action.GATEWAY_UPDATED, self, by=by, changes=changes)

    def team_names(self) -> list[str]:
        """Return the sorted names of the teams that the gateway is open to, as events store them."""
        return sorted(team.name for team in self.teams.all())

    def _open_to(self, teams: Iterable[Team]) -> dict[str, Any]:
        before = self.team_names()
        self.teams.set(teams)
        after = self.team_names()
        return {"teams": [before, after]} if before != after else {}
