"""What an assigned server offers: tools, prompts, resources and templates of resources."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, ClassVar
from uuid import uuid4

from django.db import models, transaction
from django.db.models import Q
from django.utils import timezone

from auditlog.models import Switchable
from gateways.models.assignment import Assignment, ToolPolicy
from wire.jsonrpc import storable
from wire.tool_names import LONGEST_URI, exposed_name, fingerprint, usable_tools


class Kind(models.TextChoices):
    """What a feature is: the words of the log and of the REST paths."""

    TOOL = "tool", "Tool"
    PROMPT = "prompt", "Prompt"
    RESOURCE = "resource", "Resource"
    TEMPLATE = "template", "Resource template"


class FeatureQuerySet(models.QuerySet["Feature"]):
    def tools(self) -> "FeatureQuerySet":
        """Those that are tools."""
        return self.filter(kind=Kind.TOOL)

    def offered(self) -> "FeatureQuerySet":
        """Tools their server still offers."""
        return self.filter(missing_since=None)

    def callable(self) -> "FeatureQuerySet":
        """Tools that nothing between their gateway and their server forbids: offered, allowed and switched on."""
        on = {"assignment__enabled": True, "assignment__server__enabled": True}
        live = {"assignment__removed_at": None, "assignment__server__archived_at": None}
        return self.offered().filter(enabled=True, **on, **live).exclude(assignment__tool_policy=ToolPolicy.BLOCK_ALL)

    def matching(self, words: str) -> "FeatureQuerySet":
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
            known = {tool.name: tool for tool in self.filter(assignment=assignment).select_for_update()}
            offered = {d["name"]: Feature.define(d, now) for d in usable_tools(definitions)}
            for name, values in offered.items():
                if name in known:
                    known[name].take_over(values)
            fresh = {
                "assignment": assignment,
                "enabled": assignment.tool_policy != ToolPolicy.SELECTED,
                "first_seen_at": now,
            }
            new = [
                Feature(name=name, exposed_name=exposed_name(assignment.alias, name), **fresh, **values)
                for name, values in offered.items()
                if name not in known
            ]
            self.bulk_create(new, ignore_conflicts=True)  # The proxy may have been faster.
            self.bulk_update([known[name] for name in offered if name in known], Feature.LEARNT)
            self.filter(assignment=assignment, missing_since=None).exclude(name__in=offered).update(missing_since=now)


class Feature(Switchable):
    """A tool, prompt, resource or template an assigned server offers: its switch, its definition and its history.

    `name` is the server's own: a URI for a resource, a URI template for a template. Under `allow_all` a feature without
    a row is allowed; under `selected` only one whose row is enabled is.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    assignment = models.ForeignKey(Assignment, models.CASCADE, related_name="features")
    kind = models.CharField(max_length=10, choices=Kind, default=Kind.TOOL)
    name = models.CharField(max_length=LONGEST_URI)
    exposed_name = models.CharField(max_length=LONGEST_URI)
    title = models.CharField(max_length=200, blank=True)
    description = models.TextField(blank=True)
    input_schema = models.JSONField(default=dict)
    annotations = models.JSONField(default=dict)
    definition_hash = models.CharField(max_length=64, blank=True)
    first_seen_at = models.DateTimeField(default=timezone.now)
    last_seen_at = models.DateTimeField(default=timezone.now)
    changed_at = models.DateTimeField(null=True, blank=True)
    missing_since = models.DateTimeField(null=True, blank=True)

    LEARNT: ClassVar = (
        "title",
        "description",
        "input_schema",
        "annotations",
        "definition_hash",
        "last_seen_at",
        "changed_at",
        "missing_since",
    )

    objects = FeatureQuerySet.as_manager()

    class Meta:
        ordering = ("exposed_name",)
        constraints = (
            models.UniqueConstraint(
                fields=("assignment", "kind", "name"), name="feature_name_is_unique_per_assignment"
            ),
        )

    def __str__(self) -> str:
        return self.exposed_name

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
