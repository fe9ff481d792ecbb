"""The URLs agents reach, and the servers behind each."""

from typing import Any
from uuid import uuid4

from django.conf import settings
from django.core.validators import RegexValidator
from django.db import models, transaction
from django.db.models import Q
from django.db.models.functions import Lower
from django.utils import timezone

from accounts.models import Team, User
from auditlog.actions import Action
from auditlog.models import Event
from auditlog.switch import Switchable
from capabilities import Capability
from servers.models import Identity, Server, slug_validator

alias_validator = RegexValidator(
    r"\A[a-z0-9](?:-?[a-z0-9])*\Z", "Use lower-case letters, digits and single hyphens; it begins every tool's name."
)


class GatewayError(Exception):
    """A gateway or assignment cannot be changed like that; the message says why."""


class StillEnabled(GatewayError):
    """Disable it first; only what is switched off can be archived."""


class WrongIdentity(GatewayError):
    """The shared identity belongs to another server or to a person."""


class Reach(models.TextChoices):
    EVERYONE = "everyone", "Everyone"
    TEAMS = "teams", "Teams"


class GatewayQuerySet(models.QuerySet["Gateway"]):
    def live(self) -> "GatewayQuerySet":
        """Gateways that are not archived."""
        return self.filter(archived_at=None)

    def reachable_by(self, user: User) -> "GatewayQuerySet":
        """Live gateways `user` may use: everyone's, their teams', or all of them with GATEWAYS_READ."""
        if user.has_perm(Capability.GATEWAYS_READ):
            return self.live()
        open_to_user = Q(reach=Reach.EVERYONE) | Q(teams__in=user.teams.all())
        return self.live().filter(open_to_user).distinct()

    def add(self, *, by: User | None, **fields: Any) -> "Gateway":
        """Make a gateway; its slug and so its URL stay for ever."""
        with transaction.atomic():
            gateway = self.create(created_by=by, **fields)
            Event.objects.record(Action.GATEWAY_CREATED, gateway, by=by, changes={"slug": [None, gateway.slug]})
        return gateway


class Gateway(Switchable):
    """One governed MCP endpoint, `/mcp/<slug>`, in front of one or more servers."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    name = models.CharField(max_length=80)
    slug = models.CharField(max_length=40, unique=True, validators=[slug_validator])
    description = models.TextField(max_length=1000, blank=True)
    reach = models.CharField(max_length=10, choices=Reach, default=Reach.EVERYONE)
    teams = models.ManyToManyField(Team, blank=True, related_name="gateways")
    calls_per_minute = models.PositiveIntegerField(null=True, blank=True)
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
        """The address agents post to."""
        return f"{settings.PUBLIC_URL}/mcp/{self.slug}"

    def is_reachable_by(self, user: User) -> bool:
        """Whether `user` may use this gateway at present."""
        return Gateway.objects.reachable_by(user).filter(pk=self.pk).exists()

    def edit(self, *, by: User, **fields: Any) -> None:
        """Change name, description or reach; records what changed."""
        with transaction.atomic():
            row = self.lock()
            changes = {
                name: [getattr(row, name), value] for name, value in fields.items() if getattr(row, name) != value
            }
            for name, value in fields.items():
                setattr(self, name, value)
            self.save(update_fields=[*fields, "updated_at"])
            if changes:
                Event.objects.record(Action.GATEWAY_UPDATED, self, by=by, changes=changes)


class IdentityScheme(models.TextChoices):
    NONE = "none", "No credential"
    SHARED = "shared", "Shared identity (service account)"
    PER_USER = "per_user", "Per-user identity (bring your own identity)"


class ToolPolicy(models.TextChoices):
    ALLOW_ALL = "allow_all", "Allow all"
    SELECTED = "selected", "Allow selected"
    BLOCK_ALL = "block_all", "Block all"


class AssignmentQuerySet(models.QuerySet["Assignment"]):
    def live(self) -> "AssignmentQuerySet":
        """Assignments that have not been removed."""
        return self.filter(removed_at=None)

    def assign(self, *, gateway: Gateway, server: Server, by: User | None, **fields: Any) -> "Assignment":
        """Put `server` behind `gateway`. Raises WrongIdentity."""
        with transaction.atomic():
            assignment = Assignment(gateway=gateway, server=server, **fields)
            assignment.check_identity()
            assignment.save(force_insert=True)
            changes = {"alias": [None, assignment.alias], "identity_scheme": [None, assignment.identity_scheme]}
            Event.objects.record(Action.ASSIGNMENT_CREATED, assignment, by=by, changes=changes)
        return assignment

    def archive_server(self, server: Server, *, by: User) -> None:
        """Put a disabled server away for good and take it off every gateway. Raises StillEnabled."""
        with transaction.atomic():
            row = server.lock()
            if row.archived_at:
                return
            if row.enabled:
                raise StillEnabled(StillEnabled.__doc__)
            server.archived_at = timezone.now()
            server.save(update_fields=["archived_at", "updated_at"])
            for assignment in self.live().filter(server=server).order_by("pk"):
                assignment.remove(by=by)
            Event.objects.record(Action.SERVER_ARCHIVED, server, by=by)


class Assignment(Switchable):
    """A server placed behind a gateway: under which alias, with whose identity, with which tools."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    gateway = models.ForeignKey(Gateway, models.PROTECT, related_name="assignments")
    server = models.ForeignKey(Server, models.PROTECT, related_name="assignments")
    alias = models.CharField(max_length=16, blank=True, validators=[alias_validator])
    identity_scheme = models.CharField(max_length=10, choices=IdentityScheme, default=IdentityScheme.NONE)
    shared_identity = models.ForeignKey(Identity, models.PROTECT, null=True, blank=True, related_name="assignments")
    tool_policy = models.CharField(max_length=10, choices=ToolPolicy, default=ToolPolicy.ALLOW_ALL)
    removed_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects = AssignmentQuerySet.as_manager()

    class Meta:
        ordering = ("alias", "created_at")
        constraints = (
            models.UniqueConstraint(
                fields=("gateway", "alias"),
                condition=Q(removed_at=None) & ~Q(alias=""),
                name="live_assignment_alias_is_unique_per_gateway",
            ),
            models.CheckConstraint(
                condition=Q(shared_identity=None) | Q(identity_scheme=IdentityScheme.SHARED),
                name="only_shared_scheme_has_a_shared_identity",
            ),
        )

    def __str__(self) -> str:
        return f"{self.server} on {self.gateway}"

    @property
    def prefix(self) -> str:
        """What every tool name of this assignment begins with."""
        return f"{self.alias}__" if self.alias else ""

    def check_identity(self) -> None:
        """Raise WrongIdentity unless the shared identity is a service account of this server."""
        identity = self.shared_identity
        if identity and (identity.server_id != self.server_id or not identity.is_shared):
            raise WrongIdentity(WrongIdentity.__doc__)

    def edit(self, *, by: User, **fields: Any) -> None:
        """Change alias, identity scheme or tool policy; records what changed. Raises WrongIdentity."""
        with transaction.atomic():
            row = self.lock()
            changes = {n: [_plain(getattr(row, n)), _plain(v)] for n, v in fields.items() if getattr(row, n) != v}
            for name, value in fields.items():
                setattr(self, name, value)
            self.check_identity()
            self.save(update_fields=[*fields, "updated_at"])
            if changes:
                Event.objects.record(Action.ASSIGNMENT_UPDATED, self, by=by, changes=changes)

    def remove(self, *, by: User) -> None:
        """Take the server off the gateway; its tools are gone on the next request."""
        with transaction.atomic():
            if self.lock().removed_at is None:
                self.removed_at = timezone.now()
                self.save(update_fields=["removed_at", "updated_at"])
                Event.objects.record(Action.ASSIGNMENT_REMOVED, self, by=by)


def _plain(value: Any) -> Any:
    """A value as it may stand in an event."""
    return str(value) if isinstance(value, models.Model) else value


class Tool(Switchable):
    """A tool an assigned server offers: its switch, its definition and its history.

    Rows are upserted by the proxy after a list (decisions 7.6). Under `allow_all` a tool without a
    row is allowed; under `selected` only a tool whose row is enabled is.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    assignment = models.ForeignKey(Assignment, models.CASCADE, related_name="tools")
    name = models.CharField(max_length=200)
    exposed_name = models.CharField(max_length=64)
    title = models.CharField(max_length=200, blank=True)
    description = models.TextField(blank=True)
    input_schema = models.JSONField(default=dict)
    annotations = models.JSONField(default=dict)
    definition_hash = models.CharField(max_length=64, blank=True)
    first_seen_at = models.DateTimeField(default=timezone.now)
    last_seen_at = models.DateTimeField(default=timezone.now)
    changed_at = models.DateTimeField(null=True, blank=True)
    missing_since = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ("exposed_name",)
        constraints = (
            models.UniqueConstraint(fields=("assignment", "name"), name="tool_name_is_unique_per_assignment"),
        )

    def __str__(self) -> str:
        return self.exposed_name
