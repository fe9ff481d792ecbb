"""An assignment (a server on a gateway) and the tools it offers there."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, ClassVar
from uuid import uuid4

from django.core.validators import RegexValidator
from django.db import models, transaction
from django.db.models import Q
from django.utils import timezone

from accounts.models import User
from auditlog.actions import Action
from auditlog.models import Event, Switchable
from auditlog.versions import Seen, Versioned
from gateways.models.gateway import Gateway, GatewayError
from servers.models import Identity, Server
from wire.jsonrpc import storable
from wire.tool_names import LONGEST_NAME, SEPARATOR, exposed_name, fingerprint, usable_tools

alias_validator = RegexValidator(
    r"\A[a-z0-9](?:-?[a-z0-9])*\Z", "Use lower-case letters, digits and single hyphens; it begins every tool's name."
)


class ServerStillEnabled(GatewayError):
    """Disable it first; only what is switched off can be archived."""


class WrongIdentity(GatewayError):
    """The shared identity belongs to another server or to a person."""


class AliasRequired(GatewayError):
    """A gateway with several servers tells their tools apart by alias: give this one an alias."""


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
        """Put `server` behind `gateway`. Raises AliasRequired or WrongIdentity."""
        with transaction.atomic():
            gateway.lock()  # Nobody else puts another there meanwhile.
            assignment = Assignment(gateway=gateway, server=server, **fields)
            assignment.check_alias()
            assignment.check_identity()
            assignment.check_allowed()
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
                raise ServerStillEnabled(ServerStillEnabled.__doc__)
            server.archived_at = timezone.now()
            server.save(update_fields=["archived_at", "updated_at"])
            for assignment in self.live().filter(server=server).order_by("pk"):
                assignment.remove(by=by)
            Event.objects.record(Action.SERVER_ARCHIVED, server, by=by)


class Assignment(Versioned, Switchable):
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
        """What every tool name of this assignment begins with."""
        return f"{self.alias}{SEPARATOR}" if self.alias else ""

    @property
    def blocks_all(self) -> bool:
        """Whether its policy leaves the switches of its tools without effect."""
        return self.tool_policy == ToolPolicy.BLOCK_ALL

    def check_alias(self) -> None:
        """Raise AliasRequired unless it has an alias or is alone on its gateway.

        Without one a server could list a tool of another's name, and get its calls.
        """
        if not self.alias and self.gateway.assignments.live().exclude(pk=self.pk).exists():
            raise AliasRequired(AliasRequired.__doc__)

    def check_identity(self) -> None:
        """Raise WrongIdentity unless the shared identity is a service account of this server."""
        identity = self.shared_identity
        if identity and (identity.server_id != self.server_id or not identity.is_shared):
            raise WrongIdentity(WrongIdentity.__doc__)

    def check_allowed(self) -> None:
        """Raise WrongIdentity unless the shared identity is allowed on this gateway."""
        identity = self.shared_identity
        if identity and not identity.gateways.filter(pk=self.gateway_id).exists():
            raise WrongIdentity(
                f"“{identity.label}” is not for the gateway {self.gateway.name}. "
                "Who manages identities can allow it there, on the page of the server."
            )

    def editable(self) -> dict[str, Any]:
        names = ("alias", "identity_scheme", "tool_policy", "enabled")
        shared = self.shared_identity.label if self.shared_identity else None
        return {name: getattr(self, name) for name in names} | {"shared_identity": shared}

    def edit(self, *, by: User, seen: Seen | None = None, **fields: Any) -> None:
        """Change alias, identity scheme or tool policy; records what changed.

        Raises AliasRequired, WrongIdentity, or ChangedMeanwhile when the row is not what was `seen`.
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
                Tool.objects.rename(self)
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
    """A value in the form in which events store it."""
    return str(value) if isinstance(value, models.Model) else value


class ToolQuerySet(models.QuerySet["Tool"]):
    def offered(self) -> "ToolQuerySet":
        """Tools their server still offers."""
        return self.filter(missing_since=None)

    def callable(self) -> "ToolQuerySet":
        """Tools that nothing between their gateway and their server forbids: offered, allowed and switched on."""
        on = {"assignment__enabled": True, "assignment__server__enabled": True}
        live = {"assignment__removed_at": None, "assignment__server__archived_at": None}
        return self.offered().filter(enabled=True, **on, **live).exclude(assignment__tool_policy=ToolPolicy.BLOCK_ALL)

    def matching(self, words: str) -> "ToolQuerySet":
        """Tools whose exposed name, title or description holds `words`; all of them without words."""
        matches = Q(exposed_name__icontains=words) | Q(title__icontains=words) | Q(description__icontains=words)
        return self.filter(matches) if words else self

    def rename(self, assignment: Assignment) -> None:
        """Give the tools of `assignment` the names its present alias exposes them under."""
        tools = list(self.filter(assignment=assignment))
        for tool in tools:
            tool.exposed_name = exposed_name(assignment.alias, tool.name)
        self.bulk_update(tools, ["exposed_name"])

    def learn(self, assignment: Assignment, definitions: Iterable[Mapping[str, Any]]) -> None:
        """Take over the complete list a server gave: new tools, changed ones, and those it no longer has.

        Under the policy `selected` a new tool starts switched off. A definition that cannot be
        used is left out.
        """
        now = timezone.now()
        with transaction.atomic():
            assignment = assignment.lock()
            tools = {tool.name: tool for tool in self.filter(assignment=assignment).select_for_update()}
            offered = {d["name"]: Tool.define(d, now) for d in usable_tools(definitions)}
            for name, values in offered.items():
                if name in tools:
                    tools[name].take_over(values)
            fresh = {
                "assignment": assignment,
                "enabled": assignment.tool_policy != ToolPolicy.SELECTED,
                "first_seen_at": now,
            }
            new = [
                Tool(name=name, exposed_name=exposed_name(assignment.alias, name), **fresh, **values)
                for name, values in offered.items()
                if name not in tools
            ]
            self.bulk_create(new, ignore_conflicts=True)  # The proxy may have been faster.
            self.bulk_update([tools[name] for name in offered if name in tools], Tool.LISTED_FIELDS)
            self.filter(assignment=assignment, missing_since=None).exclude(name__in=offered).update(missing_since=now)


class Tool(Versioned, Switchable):
    """A tool an assigned server offers: its switch, its definition and its history.

    Rows are upserted by the proxy after a list. Under `allow_all` a tool without a
    row is allowed; under `selected` only a tool whose row is enabled is.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    assignment = models.ForeignKey(Assignment, models.CASCADE, related_name="tools")
    name = models.CharField(max_length=LONGEST_NAME)
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

    LISTED_FIELDS: ClassVar = (
        "title",
        "description",
        "input_schema",
        "annotations",
        "definition_hash",
        "last_seen_at",
        "changed_at",
        "missing_since",
    )

    objects = ToolQuerySet.as_manager()

    class Meta:
        ordering = ("exposed_name",)
        constraints = (
            models.UniqueConstraint(fields=("assignment", "name"), name="tool_name_is_unique_per_assignment"),
        )

    def __str__(self) -> str:
        return self.exposed_name

    def editable(self) -> dict[str, Any]:
        return {"enabled": self.enabled}

    @staticmethod
    def define(definition: Mapping[str, Any], now: datetime) -> dict[str, Any]:
        """What a row remembers of a definition, which may hold anything anywhere."""
        annotations, schema = (definition.get(key) for key in ("annotations", "inputSchema"))
        annotations = annotations if isinstance(annotations, dict) else {}
        titles = (definition.get("title"), annotations.get("title"))
        description = definition.get("description")
        return {
            "title": next((storable(title)[:200] for title in titles if isinstance(title, str)), ""),
            "description": storable(description) if isinstance(description, str) else "",
            "input_schema": storable(schema) if isinstance(schema, dict) else {},
            "annotations": storable(annotations),
            "definition_hash": fingerprint(definition),
            "last_seen_at": now,
            "missing_since": None,
        }

    def take_over(self, values: Mapping[str, Any]) -> None:
        """Become what the server tells now; a definition that differs from the known one is marked as changed."""
        if self.definition_hash not in ("", values["definition_hash"]):
            self.changed_at = values["last_seen_at"]
        for name, value in values.items():
            setattr(self, name, value)
