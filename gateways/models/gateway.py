"""Gateways: the URLs that agents call."""

from collections.abc import Iterable
from typing import Any
from uuid import uuid4

from django.conf import settings
from django.db import models, transaction
from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Lower
from django.utils import timezone

from accounts.models import Team, User
from auditlog.actions import Action
from auditlog.models import Actor, Event, Switchable
from auditlog.versions import Seen, Versioned
from capabilities import Capability, CapabilityRequired
from servers.models import Identity, slug_validator
from ui.forms import holds


class GatewayError(Exception):
    """A change of a gateway, or of something on a gateway, is refused; the message says why."""


class Reach(models.TextChoices):
    EVERYONE = "everyone", "Everyone"
    TEAMS = "teams", "Teams"


class HostsAllowed(models.TextChoices):
    """The apps and agents that may use a gateway."""

    ALL = "all", "All"
    LISTED = "listed", "Only these"


class ToolsGiven(models.TextChoices):
    """The tools that people get on a gateway they may use: all its tools, or only granted tools."""

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

    def reachable_by(self, user: User, *, by_grant: bool = True) -> "GatewayQuerySet":
        """Return live gateways that `user` may use.

        If `by_grant` is False, leave out those that `user` may use only because of a gateway grant.
        """
        if not user.uses_gateways:
            return self.none()
        if user.has_perm(Capability.GATEWAYS_USE):
            return self.live()
        reached = _open_to(user.teams.all())
        if by_grant:
            reached |= Q(pk__in=user.gateways_given.live().order_by().values("gateway"))
        return self.live().filter(reached)

    def open_to_all_of(self, team: Team | None) -> "GatewayQuerySet":
        """Return live gateways that are open to `team` or to everyone.

        If `team` is None, return only gateways that are open to everyone.
        """
        return self.live().filter(_open_to([team] if team else []))

    def usable_by(self, user: User) -> "GatewayQuerySet":
        """Return enabled gateways that `user` may use."""
        return self.reachable_by(user).filter(enabled=True)

    def visible_to(self, user: User) -> "GatewayQuerySet":
        """Return live gateways whose page `user` may open.

        With GATEWAYS_READ, these are all live gateways. Otherwise, these are the live gateways that `user` may use.
        """
        return self.live() if user.has_perm(Capability.GATEWAYS_READ) else self.reachable_by(user)

    def catalogue_of(self, user: User) -> "GatewayQuerySet":
        """Return the live gateways that `user` may know of.

        These are the gateways whose page `user` may open, and those that take access requests.
        """
        return self.live().filter(Q(takes_requests=True) | Q(pk__in=self.visible_to(user).order_by().values("pk")))

    def demo_last(self, *order: str) -> "GatewayQuerySet":
        """Sort by `order`, but put gateways at the end that have no servers, or only built-in servers."""
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

    def add(
        self, *, by: User | None, teams: Iterable[Team] = (), approvers: Iterable[User] = (), **fields: Any
    ) -> "Gateway":
        """Create a gateway. The slug cannot be changed later, because it is part of the gateway's URL."""
        with transaction.atomic():
            gateway = self.create(created_by=by, **fields)
            gateway.teams.set(teams)
            gateway.approvers.set(approvers)
            usual = {field.name: field.get_default() for field in Gateway._meta.fields} | {"reach": None}
            chosen = {"slug": gateway.slug, **gateway.editable()}
            changes = {n: [None, v] for n, v in chosen.items() if v not in ("", []) and v != usual.get(n)}
            Event.objects.record(Action.GATEWAY_CREATED, gateway, by=by, changes=changes)
        return gateway

    def open_to(self, team: Team, wanted: Iterable["Gateway"], *, by: User, seen: Seen | None = None) -> None:
        """Open the gateways in `wanted` to `team`, and close all other gateways to `team`.

        Gateways that are open to everyone are not changed.

        Raises ChangedMeanwhile if the list of the team's gateways has changed since the version `seen`.
        """
        pks = {gateway.pk for gateway in wanted}
        with transaction.atomic():
            # Gateways first: a change of a gateway's teams locks in this order, too.
            rows = [*self.live().filter(reach=Reach.TEAMS).select_for_update().order_by("pk").prefetch_related("teams")]
            Team.objects.select_for_update().get(pk=team.pk)
            TeamGateways(team).must_be(seen)
            for gateway in rows:
                teams = {*gateway.teams.all()}
                if (gateway.pk in pks) != (team in teams):
                    gateway.edit(teams=teams ^ {team}, by=by)


def _open_to(teams: Iterable[Team]) -> Q:
    """Match gateways that are open to everyone or to one of the teams."""
    # A subquery, because a join needs DISTINCT: PostgreSQL would compute the annotations of every row first.
    return Q(reach=Reach.EVERYONE) | Q(pk__in=Gateway.objects.filter(teams__in=teams).order_by().values("pk"))


class TeamGateways(Versioned):
    """The gateways that are open to a team, but not to everyone, as a list with a version.

    A form on the team's page that was opened with an older version cannot save the list.
    """

    def __init__(self, team: Team) -> None:
        self.pk, self._meta, self._team = team.pk, team._meta, team

    def editable(self) -> dict[str, Any]:
        open_now = Gateway.objects.live().filter(reach=Reach.TEAMS, teams=self._team)
        return {"gateways": sorted(open_now.values_list("slug", flat=True))}


class IdentityGateways(Versioned):
    """The gateways that may use a shared identity, as a list with a version.

    A form that was opened with an older version cannot save the list.
    """

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
    """Let exactly the gateways in `wanted` use the shared `identity`, from the next request on.

    `by` is the person who makes the change, or None if the system makes it. Raises CapabilityRequired if this person
    may not manage identities. Raises ChangedMeanwhile if the identity's list of gateways has changed since the version
    `seen`.
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
    # True: everybody sees the gateway and its tools in the catalogue, and may request to use them.
    takes_requests = models.BooleanField(default=False, db_default=False)
    request_days = models.PositiveSmallIntegerField(default=30, db_default=30)  # Default length of a grant.
    most_request_days = models.PositiveSmallIntegerField(default=90, db_default=90)
    # People who decide on requests. If there are none, people with GATEWAYS_MANAGE decide.
    approvers = models.ManyToManyField(User, blank=True, related_name="approves")
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
            ("see_gateway", "View all gateways"),
            ("manage_gateway", "Basic gateway management"),
            ("toggle_gateway", "Disable and enable gateways"),
        )
        constraints = (
            models.UniqueConstraint(Lower("name"), condition=Q(archived_at=None), name="live_gateway_name_is_unique"),
            models.CheckConstraint(
                condition=Q(request_days__gte=1, request_days__lte=models.F("most_request_days")),
                name="request_days_are_within_the_most",
            ),
        )

    def __str__(self) -> str:
        return self.name

    def _further_columns(self, on: bool, by: Actor | None) -> dict[str, Any]:
        return {"updated_at": timezone.now()}  # Clients of the directory ask which gateways have changed since a time.

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

    def takes_requests_of(self, user: User) -> bool:
        """True if `user` may request to use this gateway. A role that forbids the use of gateways forbids this, too."""
        return self.takes_requests and user.uses_gateways

    def editable(self) -> dict[str, Any]:
        names = (
            "name",
            "description",
            "reach",
            "hosts_allowed",
            "tools_given",
            "takes_requests",
            "request_days",
            "most_request_days",
            "calls_per_minute",
            "new_definitions",
            "changed_definitions",
            "enabled",
        )
        return {name: getattr(self, name) for name in names} | self._names()

    def edit(
        self,
        *,
        by: Actor,
        teams: Iterable[Team] | None = None,
        approvers: Iterable[User] | None = None,
        seen: Seen | None = None,
        **fields: Any,
    ) -> None:
        """Change the gateway's settings, teams or approvers, and record an event with the changes.

        Raises ChangedMeanwhile if the gateway has changed since the version `seen`. If `seen` is a FormSeen, only
        changes of the fields that this call would change count.
        """
        related = {name: [*rows] for name, rows in (("teams", teams), ("approvers", approvers)) if rows is not None}
        with transaction.atomic():
            row = self.lock()
            before = row.editable()
            after = fields | {name: sorted(map(str, rows)) for name, rows in related.items()}
            changes = {name: [before[name], value] for name, value in after.items() if before[name] != value}
            row.must_be(seen, changes)
            for name, value in fields.items():
                setattr(self, name, value)
            self.save(update_fields=[*fields, "updated_at"])
            for name, rows in related.items():
                getattr(self, name).set(rows)
            if changes:
                Event.objects.record(Action.GATEWAY_UPDATED, self, by=by, changes=changes)

    @property
    def reach_text(self) -> str:
        """The reach in words: "Everyone", or the names of the teams."""
        return "Everyone" if self.reach == Reach.EVERYONE else ", ".join(self.team_names()) or "No team"

    def team_names(self) -> list[str]:
        """Return the names of the teams that the gateway is open to, sorted. Events store this list."""
        return sorted(team.name for team in self.teams.all())

    def _names(self) -> dict[str, list[str]]:
        return {"teams": self.team_names(), "approvers": sorted(map(str, self.approvers.all()))}
