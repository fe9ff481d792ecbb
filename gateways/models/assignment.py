"""An assignment: a server on a gateway, with its alias, identity and policy."""

from collections.abc import Collection, Iterable
from typing import Any
from uuid import UUID, uuid4

from django.core.validators import RegexValidator
from django.db import models, transaction
from django.db.models import Q
from django.utils import timezone

from accounts.models import User
from auditlog.actions import Action
from auditlog.models import Event, Switchable
from auditlog.versions import Seen, Versioned
from gateways.models.gateway import Gateway, GatewayError
from servers.models import AuthType, Identity, Server
from wire.definitions import SEPARATOR

alias_validator = RegexValidator(
    r"\A[a-z0-9](?:-?[a-z0-9])*\Z",
    "Use lower-case letters, digits and single hyphens. The alias is the prefix of the server's tool names.",
)


class ServerStillEnabled(GatewayError):
    """The server is still enabled. Disable it first, then archive it."""


class WrongIdentity(GatewayError):
    """The shared identity belongs to another server or to a person."""


class AliasRequired(GatewayError):
    """A gateway with several servers needs an alias for each server, to keep tool names apart. Enter an alias."""


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
        return self.filter(removed_at=None)

    def placed(self) -> "AssignmentQuerySet":
        return self.live().filter(server__archived_at=None)

    def seen_by(self, viewer: User) -> "AssignmentQuerySet":
        """Return assignments on the gateways whose pages `viewer` may open."""
        return self.placed().filter(gateway__in=Gateway.objects.visible_to(viewer))

    def on(self) -> "AssignmentQuerySet":
        """Return assignments that can take calls: both the assignment and its server are enabled."""
        return self.placed().filter(enabled=True, server__enabled=True)

    def per_user(self) -> "AssignmentQuerySet":
        """Return assignments for which each person adds an identity of their own."""
        return self.placed().filter(identity_scheme=IdentityScheme.PER_USER).exclude(server__auth_type=AuthType.NONE)

    def assign(self, *, gateway: Gateway, server: Server, by: User | None, **fields: Any) -> "Assignment":
        """Assign `server` to `gateway`, and return the assignment. Raises AliasRequired or WrongIdentity."""
        with transaction.atomic():
            gateway.lock()  # So that two concurrent requests cannot both add a server without an alias.
            assignment = Assignment(gateway=gateway, server=server, **fields)
            assignment.check_alias()
            assignment.check_identity()
            assignment.check_allowed()
            assignment.save(force_insert=True)
            chosen = assignment.editable()
            changes = {name: [None, chosen[name]] for name in ("alias", "identity_scheme", "tool_policy")}
            if assignment.shared_identity:
                changes["shared_identity"] = [None, chosen["shared_identity"]]
            Event.objects.record(Action.ASSIGNMENT_CREATED, assignment, by=by, changes=changes)
        return assignment

    def archive_server(self, server: Server, *, by: User) -> None:
        """Archive a disabled server and remove it from every gateway. Raises ServerStillEnabled."""
        with transaction.atomic():
            row = server.lock()
            if row.archived_at:
                return
            if not row.may_be_archived:
                raise ServerStillEnabled(ServerStillEnabled.__doc__)
            server.archived_at = timezone.now()
            server.save(update_fields=["archived_at", "updated_at"])
            for assignment in self.live().filter(server=server).order_by("pk"):
                assignment.remove(by=by)
            Event.objects.record(Action.SERVER_ARCHIVED, server, by=by)


class Assignment(Versioned, Switchable):
    """A server on a gateway: its alias, the identity it is called with, and its tool policy."""

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
                condition=Q(removed_at=None),
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
        """The prefix of this assignment's tool names, empty without an alias."""
        return f"{self.alias}{SEPARATOR}" if self.alias else ""

    @property
    def blocks_all(self) -> bool:
        """True if the policy blocks all tools, whether they are enabled or not."""
        return self.tool_policy == ToolPolicy.BLOCK_ALL

    def check_alias(self) -> None:
        """Raise AliasRequired unless the assignment has an alias or is the only server of its gateway."""
        # Without aliases, a server could list a tool with the name of another server's tool, and receive its calls.
        if not self.alias and self.gateway.assignments.live().exclude(pk=self.pk).exists():
            raise AliasRequired(AliasRequired.__doc__)

    def check_identity(self) -> None:
        """Raise WrongIdentity if the assignment has a shared identity that is not a service account of this server."""
        identity = self.shared_identity
        if identity and (identity.server_id != self.server_id or not identity.is_shared):
            raise WrongIdentity(WrongIdentity.__doc__)

    def check_allowed(self) -> None:
        """Raise WrongIdentity if the assignment has a shared identity that may not be used on this gateway."""
        identity = self.shared_identity
        if identity and not identity.gateways.filter(pk=self.gateway_id).exists():
            raise WrongIdentity(
                f"“{identity.label}” may not be used on the gateway {self.gateway.name}. "
                "A person with Identity management can allow it on the server's page."
            )

    def editable(self) -> dict[str, Any]:
        names = ("alias", "identity_scheme", "tool_policy", "enabled")
        shared = self.shared_identity.label if self.shared_identity else None
        return {name: getattr(self, name) for name in names} | {"shared_identity": shared}

    def edit(self, *, by: User, seen: Seen | None = None, **fields: Any) -> None:
        """Change and record the alias, identity scheme, shared identity or tool policy.

        Raises AliasRequired or WrongIdentity. Raises ChangedMeanwhile if the row differs from `seen`.
        """
        with transaction.atomic():
            if "alias" in fields:
                self.gateway.lock()
            row = self.lock()
            changes = {n: [_plain(getattr(row, n)), _plain(v)] for n, v in fields.items() if getattr(row, n) != v}
            row.must_be(seen, changes)
            for name, value in fields.items():
                setattr(self, name, value)
            if "alias" in changes:
                self.check_alias()
            self.check_identity()
            if "shared_identity" in changes:
                self.check_allowed()
            self.save(update_fields=[*fields, "updated_at"])
            if "alias" in changes:
                self.features.rename(self)
            if "shared_identity" in changes or "identity_scheme" in changes:
                self.listings.all().delete()  # The server may list other tools for another identity: ask again.
            if changes:
                Event.objects.record(Action.ASSIGNMENT_UPDATED, self, by=by, changes=changes)

    def narrow(self, used: Collection[str], *, by: User) -> list[str]:
        """Disable all tools except those in `used` (exposed names); return the names of the disabled tools.

        The policy *Allow all* becomes *Allow selected*. `widen` undoes both.
        """
        with transaction.atomic():
            policy = self.lock().tool_policy
            on = self.features.filter(kind="tool", enabled=True).select_related("assignment")
            off = list(on.exclude(exposed_name__in=used).order_by("exposed_name"))
            self.features.model.switch_all(off, on=False, by=by)
            # The policy changes, so that tools that the server adds later start disabled.
            if policy == ToolPolicy.ALLOW_ALL:
                self.edit(tool_policy=ToolPolicy.SELECTED, by=by)
            names = [feature.exposed_name for feature in off]
            if names or policy == ToolPolicy.ALLOW_ALL:
                changes = {"policy": [policy, self.tool_policy], "switched_off": [None, names]}
                Event.objects.record(Action.ASSIGNMENT_NARROWED, self, by=by, changes=changes)
        return names

    def widen(self, *, by: User) -> list[str]:
        """Undo the last `narrow`, and return the names of the tools that are enabled again.

        Changes that were made after that `narrow` stay.
        """
        with transaction.atomic():
            policy = self.lock().tool_policy
            done = self.last_narrowed()
            if done is None:
                return []
            (before, after), names = done.changes["policy"], done.changes["switched_off"][1]
            # By id, because a changed alias renames tools: `narrow` recorded these events just before its own.
            own = [str(pk) for pk in self.features.values_list("pk", flat=True)]
            made = Event.objects.filter(target_type="feature", target_id__in=own, action=Action.FEATURE_DISABLED)
            ids = made.filter(pk__lt=done.pk).order_by("-pk").values_list("target_id", flat=True)[: len(names)]
            off = self.features.filter(pk__in=list(ids), enabled=False).select_related("assignment")
            # Tools that somebody has disabled again since then stay disabled.
            later = Event.objects.filter(target_type="feature", pk__gt=done.pk)
            switched = set(later.filter(action=Action.FEATURE_DISABLED).values_list("target_id", flat=True))
            features = [feature for feature in off.order_by("exposed_name") if str(feature.pk) not in switched]
            self.features.model.switch_all(features, on=True, by=by)
            if policy == after:
                self.edit(tool_policy=before, by=by)
            names = [feature.exposed_name for feature in features]
            Event.objects.record(Action.ASSIGNMENT_WIDENED, self, by=by, changes={"switched_on": [None, names]})
        return names

    def last_narrowed(self) -> Event | None:
        """Return the event of the last `narrow`; None if `narrow` was never called, or its last call was undone."""
        return narrowings([self.pk]).get(str(self.pk))

    def remove(self, *, by: User) -> None:
        """Remove the server from the gateway. Its tools disappear with the next request."""
        with transaction.atomic():
            if self.lock().removed_at is None:
                self.removed_at = timezone.now()
                self.save(update_fields=["removed_at", "updated_at"])
                Event.objects.record(Action.ASSIGNMENT_REMOVED, self, by=by)


def narrowings(assignments: Iterable[UUID]) -> dict[str, Event]:
    """Return, by assignment id, the event of the last `narrow`, unless `widen` has undone it."""
    told = Event.objects.filter(target_type="assignment", target_id__in=list(map(str, assignments)))
    acts = told.filter(action__in=(Action.ASSIGNMENT_NARROWED, Action.ASSIGNMENT_WIDENED))
    last = {event.target_id: event for event in reversed(acts)}
    return {pk: event for pk, event in last.items() if event.action == Action.ASSIGNMENT_NARROWED}


def _plain(value: Any) -> Any:
    """Return `value` in the form that events store: the text of a model instance, any other value unchanged."""
    return str(value) if isinstance(value, models.Model) else value
