"""Sets of tools on a gateway. Grants (gateways/models/grants.py) give them to everybody, to teams and to people.

A set contains the tools, prompts and resources that somebody chose or that fit its patterns and effects. Database
functions (gateways/migrations/0003_give_tools.py) find these features.
"""

from collections.abc import Iterable
from typing import Any
from uuid import uuid4

from django.contrib.postgres.fields import ArrayField
from django.db import IntegrityError, models, transaction
from django.db.models import Func, Q
from django.db.models.expressions import RawSQL
from django.db.models.functions import Cast, Lower
from django.utils import timezone

from accounts.models import User
from accounts.rules import NameTaken
from auditlog.actions import Action
from auditlog.models import Event
from auditlog.versions import Seen, Versioned
from gateways.models.feature import STATED_EFFECTS, Feature, FeatureQuerySet
from gateways.models.gateway import Gateway, GatewayError
from ui.forms import holds


class StillInUse(GatewayError):
    """The set is still granted, or an app or agent is limited to it. End these grants and limits first."""


def like(pattern: str) -> str:
    """Convert a pattern with `*` and `?` to an SQL LIKE pattern."""
    escaped = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")


def fitting(patterns: Iterable[str], effects: Iterable[str]) -> Q:
    """Match the features that fit at least one of the patterns and have one of the effects.

    If `patterns` is empty, only the effects decide. If `effects` is empty, only the patterns decide. If both are empty,
    no feature matches. Only tools have effects, and an unknown effect counts as destructive.
    """
    likes = models.Value([*map(like, patterns)], ArrayField(models.TextField()))
    asked = models.Value([*effects], ArrayField(models.TextField()))
    return _fits(models.F("kind"), models.F("exposed_name"), models.F("effect"), likes, asked)


def fits(feature: Feature, effect: str) -> Q:
    """Match the sets whose patterns and effects would include `feature` if its effect were `effect`."""
    values = (models.Value(text, models.TextField()) for text in (feature.kind, feature.exposed_name, effect))
    return _fits(*values, models.F("likes"), Cast("effects", ArrayField(models.TextField())))


def _fits(*arguments: models.expressions.Combinable) -> Q:
    return Q(Func(*arguments, function="gateways_fits", output_field=models.BooleanField()))


class ToolSetQuerySet(models.QuerySet["ToolSet"]):
    def live(self) -> "ToolSetQuerySet":
        return self.filter(archived_at=None)

    def matching(self, words: str) -> "ToolSetQuerySet":
        return self.filter(holds("name", words)) if words else self

    def add(
        self,
        *,
        gateway: Gateway,
        name: str,
        patterns: Iterable[str] = (),
        effects: Iterable[str] = (),
        members: Iterable[Feature] = (),
        by: User | None,
    ) -> "ToolSet":
        """Create a set of tools. Raises NameTaken."""
        try:
            with transaction.atomic():
                row = self.model(gateway=gateway, name=name.strip(), created_by=by)
                row.set_rule(patterns, effects)
                row.save()
                row.members.set(members)
                changes = {field: [None, value] for field, value in row.editable().items() if value}
                Event.objects.record(Action.TOOL_SET_CREATED, row, by=by, changes=changes)
        except IntegrityError:
            raise NameTaken(NameTaken.__doc__) from None
        return row


class ToolSet(Versioned, models.Model):
    """A named set of tools, prompts and resources of one gateway."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    gateway = models.ForeignKey(Gateway, models.PROTECT, related_name="tool_sets")
    name = models.CharField(max_length=80)
    # Exposed names with `*` and `?`. A set without patterns and effects contains only its members.
    patterns = ArrayField(models.CharField(max_length=200), default=list, blank=True)
    likes = ArrayField(models.TextField(), default=list, editable=False)  # The patterns, for SQL's LIKE.
    effects = ArrayField(models.CharField(max_length=12, choices=STATED_EFFECTS), default=list, blank=True)
    members = models.ManyToManyField(Feature, blank=True, related_name="+")
    created_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    archived_at = models.DateTimeField(null=True, blank=True)

    objects = ToolSetQuerySet.as_manager()

    class Meta:
        ordering = ("name",)
        constraints = (
            models.UniqueConstraint(
                "gateway", Lower("name"), condition=Q(archived_at=None), name="live_tool_set_name_is_unique"
            ),
        )

    def __str__(self) -> str:
        return f"{self.name} on {self.gateway}"

    def editable(self) -> dict[str, Any]:
        members = sorted(self.members.values_list("exposed_name", flat=True))
        return {"name": self.name, "patterns": self.patterns, "effects": self.effects, "members": members}

    @property
    def features(self) -> FeatureQuerySet:
        """The features in the set now, including those that their servers no longer offer."""
        return in_sets(Feature.objects.all(), [self])

    def set_rule(self, patterns: Iterable[str], effects: Iterable[str]) -> None:
        """Set patterns and effects, without saving."""
        self.patterns, self.effects = [*dict.fromkeys(patterns)], sorted({*effects})
        self.likes = [*map(like, self.patterns)]

    def edit(
        self,
        *,
        name: str,
        patterns: Iterable[str],
        effects: Iterable[str],
        members: Iterable[Feature],
        by: User,
        seen: Seen | None = None,
    ) -> bool:
        """Change the set, from the next request on; return whether anything changed.

        Raises NameTaken or ChangedMeanwhile.
        """
        try:
            with transaction.atomic():
                row = self.lock()
                before, members = row.editable(), [*members]
                self.name = name.strip()
                self.set_rule(patterns, effects)
                new = {"name": self.name, "patterns": self.patterns, "effects": self.effects}
                new["members"] = sorted(feature.exposed_name for feature in members)
                changed = {field for field in before if before[field] != new[field]}
                row.must_be(seen, changed)
                self.save(update_fields=["name", "patterns", "likes", "effects"])
                self.members.set(members)
                changes = {field: [before[field], new[field]] for field in before if field in changed}
                if changes:
                    Event.objects.record(Action.TOOL_SET_UPDATED, self, by=by, changes=changes)
        except IntegrityError:
            raise NameTaken(NameTaken.__doc__) from None
        return bool(changes)

    @property
    def is_in_use(self) -> bool:
        """True if the set is granted, or limits an app or agent (connections.HostAtGateway)."""
        return self.grants.live().exists() or self.limited.live().exists()

    def archive(self, *, by: User) -> None:
        """Archive the set. Raises StillInUse."""
        with transaction.atomic():
            row = self.lock()
            if row.archived_at:
                return
            if row.is_in_use:
                raise StillInUse(StillInUse.__doc__)
            self.archived_at = timezone.now()
            self.save(update_fields=["archived_at"])
            Event.objects.record(Action.TOOL_SET_ARCHIVED, self, by=by)


def in_sets(features: FeatureQuerySet, tool_sets: Iterable[ToolSet]) -> FeatureQuerySet:
    """Return those of `features` that are in any of these sets."""
    pks = [tool_set.pk for tool_set in tool_sets]
    chosen = RawSQL("SELECT feature_id FROM gateways_features_of(%s::uuid[])", [pks])
    return features.filter(pk__in=chosen)
