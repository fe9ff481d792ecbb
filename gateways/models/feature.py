"""Features of an assigned server (tools, prompts, resources and templates), and the definitions that clients see.

Clients see only approved definitions. One setting of the gateway decides whether the first definition of a feature is
approved on arrival. Another setting decides this for changed definitions (docs/concepts.md). The database function
`gateways_learn` stores a server's list.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Self
from uuid import uuid4

from django.core.exceptions import ValidationError
from django.db import connection, models, transaction
from django.db.models import F, Q
from django.http import Http404
from django.utils import timezone
from psycopg.types.json import Jsonb

from accounts.models import User
from auditlog.actions import Action
from auditlog.models import Event, Switchable
from auditlog.outcomes import in_short
from auditlog.versions import Versioned
from gateways.models.assignment import Assignment, ToolPolicy
from gateways.models.gateway import Gateway, GatewayError
from servers.models import Identity
from ui.forms import holds
from wire import definitions, mcp
from wire.definitions import LONGEST_URI, Definition

FIRST_LIST = timedelta(hours=1)  # Features first seen within this time of the assignment do not count as new.
LEARN = "SELECT gateways_learn(%s, %s, %s, %s, %s)"


class NothingToAccept(GatewayError):
    """There is nothing to accept: the definition that the server offers is already approved."""


class FeatureKind(models.TextChoices):
    TOOL = mcp.TOOL, "Tool"
    PROMPT = mcp.PROMPT, "Prompt"
    RESOURCE = mcp.RESOURCE, "Resource"
    TEMPLATE = mcp.TEMPLATE, "Resource template"


class FeatureState(models.TextChoices):
    """The state of approval of the definition that a server offers for a feature."""

    APPROVED = "approved", "Approved"
    HELD = "held", "Held"  # Clients see the approved definition; the server offers a changed one.
    QUARANTINED = "quarantined", "Quarantined"
    NEW = "new", "Waiting"  # No definition has been approved yet.


class Effect(models.TextChoices):
    """The effect of a tool, as an administrator or the tool's annotations state it; not verified."""

    READ_ONLY = "read_only", "Read only"
    WRITES = "writes", "Writes"
    DESTRUCTIVE = "destructive", "Destructive"
    UNKNOWN = "unknown", "Not said"

    @classmethod
    def of(cls, annotations: Any) -> "Effect":
        """Return the effect that a server's `annotations` claim. They may be any JSON value.

        For stored features, the database computes the effect by the same rules.
        """
        hints = annotations if isinstance(annotations, dict) else {}
        if hints.get("readOnlyHint") is True:
            return cls.READ_ONLY
        if hints.get("destructiveHint") is True:
            return cls.DESTRUCTIVE
        return cls.WRITES if hints.get("readOnlyHint") is False else cls.UNKNOWN

    @property
    def claim(self) -> str:
        """The effect as text; empty if it is unknown."""
        return "" if self is Effect.UNKNOWN else str(self.label)


# Effects an administrator can state. In sets of tools, a tool with an unknown effect counts as destructive.
STATED_EFFECTS = [(effect.value, effect.label) for effect in Effect if effect != Effect.UNKNOWN]
SAID_EFFECTS = [("", "As its server says"), *STATED_EFFECTS]


LONGEST_TEXT = 4_000  # Characters of a description that an administrator states.


def check_visible(text: str) -> None:
    """Raise ValidationError if `text` has hidden characters, which models read but people do not see."""
    if places := [*definitions.hidden_places(text)]:
        raise ValidationError(f"This text has a hidden character: U+{ord(text[places[0]]):04X}.")


OFFERED = Q(missing_since=None)
PLACED = Q(assignment__removed_at=None, assignment__server__archived_at=None)
# The condition of `FeatureQuerySet.callable`, to annotate features in lists that also show features that clients cannot
# call.
CALLABLE = (
    OFFERED
    & PLACED
    & Q(enabled=True, state__in=(FeatureState.APPROVED, FeatureState.HELD))
    & Q(assignment__enabled=True, assignment__server__enabled=True)
    & ~Q(assignment__tool_policy=ToolPolicy.BLOCK_ALL)
)


class FeatureQuerySet(models.QuerySet["Feature"]):
    def tools(self) -> "FeatureQuerySet":
        return self.filter(kind=FeatureKind.TOOL)

    def offered(self) -> "FeatureQuerySet":
        """Return features the server still offers."""
        return self.filter(OFFERED)

    def tools_seen_by(self, viewer: User) -> "FeatureQuerySet":
        """Return the tools offered on the gateways whose pages `viewer` may open."""
        return self.tools().offered().seen_by(viewer)

    def callable(self) -> "FeatureQuerySet":
        """Return the features that clients can call while their gateway is enabled (see CALLABLE)."""
        return self.filter(CALLABLE)

    def new_since(self, moment: datetime) -> "FeatureQuerySet":
        """Return features first seen after `moment`, except features found soon after their server was assigned."""
        late = self.filter(first_seen_at__gt=F("assignment__created_at") + FIRST_LIST)
        return late.filter(first_seen_at__gt=moment)

    def needing_attention(self) -> "FeatureQuerySet":
        """Return features with an offered definition that somebody has to accept or quarantine."""
        return self.offered().exclude(offered=None).exclude(state=FeatureState.QUARANTINED)

    def placed(self) -> "FeatureQuerySet":
        return self.filter(PLACED)

    def seen_by(self, viewer: User) -> "FeatureQuerySet":
        """Return features on the gateways whose pages `viewer` may open (see AssignmentQuerySet.seen_by)."""
        return self.placed().filter(assignment__gateway__in=Gateway.objects.visible_to(viewer))

    def waiting_for(self, viewer: User) -> "FeatureQuerySet":
        """Return features that need attention, on gateways that `viewer` may open, newest change first."""
        waiting = self.needing_attention().seen_by(viewer)
        return waiting.order_by(F("changed_at").desc(nulls_last=True), "-first_seen_at", "pk")

    def matching(self, words: str) -> "FeatureQuerySet":
        """Return features with `words` in their exposed name, title or description; all if `words` is empty."""
        matches = holds("exposed_name", words) | holds("title", words) | holds("description", words)
        return self.filter(matches) if words else self

    def rename(self, assignment: Assignment) -> None:
        """Update the exposed names of the features of `assignment` to its current alias."""
        features = list(self.filter(assignment=assignment))
        for feature in features:
            feature.expose(assignment.alias)
        self.bulk_update(features, ["exposed_name", "shown"])

    def learn(
        self,
        assignment: Assignment,
        listed: Iterable[Definition | Mapping[str, Any]],
        kind: str = FeatureKind.TOOL,
        identity: Identity | None = None,
    ) -> None:
        """Store the server's complete list of one kind of feature, and record new, changed and missing features.

        The list was requested with `identity`. If people do not have their own identities at the server, `identity` is
        ignored, because all connections share one list.

        Under the tool policy `selected`, new features start disabled. Unusable definitions are not stored.
        """
        read = [one if isinstance(one, Definition) else Definition.of(one) for one in listed]
        said = definitions.rows(kind, assignment.alias, read)
        self._learn(assignment, kind, identity, said=Jsonb(said), fault="")

    def expect(self, assignment: Assignment, names: Iterable[str]) -> None:
        """Create rows for the tools in `names` that have no row yet, so that they can be enabled and disabled.

        Each tool counts as missing until the server lists it.
        """
        known = {*self.filter(assignment=assignment, kind=FeatureKind.TOOL).values_list("name", flat=True)}
        rows = [
            Feature(assignment=assignment, name=name, state=FeatureState.NEW, missing_since=timezone.now())
            for name in sorted({*names} - known)
        ]
        for row in rows:
            row.enabled = assignment.tool_policy != ToolPolicy.SELECTED
            row.expose(assignment.alias)
        self.bulk_create(rows, ignore_conflicts=True)

    def note_fault(self, assignment: Assignment, fault: str, kind: str, identity: Identity | None = None) -> None:
        """Record that asking a server for its list failed with the error code `fault`. Known features are unchanged."""
        self._learn(assignment, kind, identity, said=None, fault=fault)

    def note_asking(self, assignment: Assignment, kind: str, identity: Identity | None = None) -> None:
        """Record that a server is being asked for its list. Clears the last error; an earlier list is unchanged."""
        self._learn(assignment, kind, identity, said=None, fault="")

    def _learn(
        self, assignment: Assignment, kind: str, identity: Identity | None, *, said: Jsonb | None, fault: str
    ) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            told: list[Any] = [assignment.pk, identity.pk if identity else None, str(kind), said, fault]
            cursor.execute(LEARN, told)


class Feature(Versioned, Switchable):
    """A tool, prompt, resource or template of an assigned server, enabled or disabled, with its definition.

    If a tool or prompt has no row, its calls are refused. Under the tool policy `allow_all`, however, the proxy first
    requests the server's list. If the list has the tool or prompt, its row is added and the call continues.

    For a resource without a row, the row of a template that matches its URI decides. If no template matches, the
    resource is allowed under `allow_all`, unless access is limited to tool sets.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    assignment = models.ForeignKey(Assignment, models.CASCADE, related_name="features")
    kind = models.CharField(max_length=10, choices=FeatureKind, default=FeatureKind.TOOL)
    # The name at the server: a URI for a resource, a URI template for a template.
    name = models.CharField(max_length=LONGEST_URI)
    exposed_name = models.CharField(max_length=LONGEST_URI)
    # Title, description, schema and annotations are taken from the approved definition; while none is approved, from
    # the server's current one.
    title = models.CharField(max_length=200, blank=True)
    description = models.TextField(blank=True)
    input_schema = models.JSONField(default=dict)
    annotations = models.JSONField(default=dict)
    # Computed by the database on every write: `said_effect`, or else the effect that the annotations claim.
    effect = models.CharField(
        max_length=12, choices=Effect, default=Effect.UNKNOWN, db_default=Effect.UNKNOWN, editable=False
    )
    # Stated by an administrator.
    said_effect = models.CharField(max_length=12, choices=SAID_EFFECTS, default="", db_default="", blank=True)
    # For clients, these replace the server's title and description. They are not part of the definition.
    said_title = models.CharField(max_length=200, default="", db_default="", blank=True, validators=[check_visible])
    said_description = models.TextField(
        max_length=LONGEST_TEXT, default="", db_default="", blank=True, validators=[check_visible]
    )
    state = models.CharField(max_length=12, choices=FeatureState, default=FeatureState.APPROVED)
    approved = models.TextField(blank=True, default="")  # The approved definition as JSON, with the name at the server.
    # The definition that clients get.
    shown = models.TextField(null=True, editable=False)  # noqa: DJ001 - NULL: equal to `approved`
    # The server's current definition.
    offered = models.TextField(null=True, editable=False)  # noqa: DJ001 - NULL: equal to `approved`
    definition_hash = models.CharField(max_length=64, blank=True)
    offered_hash = models.CharField(max_length=64, blank=True, default="")
    position = models.PositiveIntegerField(default=0)
    # If each person has their own identity: those for which the server lists the feature.
    identities = models.ManyToManyField(Identity, blank=True, related_name="+")
    first_seen_at = models.DateTimeField(default=timezone.now)
    last_seen_at = models.DateTimeField(default=timezone.now)
    changed_at = models.DateTimeField(null=True, blank=True)
    missing_since = models.DateTimeField(null=True, blank=True)

    objects = FeatureQuerySet.as_manager()

    class Meta:
        ordering = ("exposed_name",)
        constraints = (
            models.UniqueConstraint(
                fields=("assignment", "kind", "name"), name="feature_name_is_unique_per_assignment"
            ),
        )
        # Each page with a navigation bar counts the few features that need attention, among very many rows. The
        # condition of this index has to be that of `needing_attention`.
        indexes = (
            models.Index(
                fields=("changed_at",),
                name="feature_needing_attention",
                condition=Q(missing_since=None, offered__isnull=False) & ~Q(state="quarantined"),
            ),
            # Rows are long, because they contain definitions. Lists and counts of tools read only this index.
            models.Index(
                fields=("assignment", "name"),
                include=("enabled", "state", "exposed_name", "effect"),
                name="listed_tool_of_assignment",
                condition=Q(kind="tool", missing_since=None),
            ),
        )

    def __str__(self) -> str:
        return f"{self.exposed_name} on {self.assignment.gateway}"

    @property
    def claim(self) -> str:
        """The tool's effect as text: the effect stated by an administrator, or else by the server.

        Empty if neither of them states an effect.
        """
        return Effect(self.effect).claim

    @property
    def claim_of_server(self) -> str:
        """The effect the server claims, as text; empty if it does not state one."""
        return Effect.of(self.annotations).claim

    @property
    def title_for_clients(self) -> str:
        return self.said_title or self.title

    @property
    def description_for_clients(self) -> str:
        return self.said_description or self.description

    @property
    def hidden_characters(self) -> list[str]:
        """The hidden characters in the definition `offered`, each as its code point and name.

        If `offered` is None, the hidden characters in `approved` are returned.
        """
        text = self.offered or self.approved
        return definitions.hidden_characters(definitions.definition_in(text)) if text else []

    @property
    def blocked(self) -> str:
        """The reason why an enabled feature cannot be called, in words; empty if it can be called."""
        assignment = self.assignment
        if not assignment.server.enabled:
            return in_short("server_disabled")
        if not assignment.enabled:
            return in_short("assignment_disabled")
        if assignment.blocks_all:
            return "blocked by the policy"
        if self.state == FeatureState.QUARANTINED:
            return in_short("definition_quarantined")
        if self.state == FeatureState.NEW:
            return in_short("definition_held")
        return "no longer offered by its server" if self.missing_since else ""

    def editable(self) -> dict[str, Any]:
        hashes = {"definition": self.definition_hash, "offered": self.offered_hash}
        said = {name: getattr(self, name) for name in ("said_effect", "said_title", "said_description")}
        return {"enabled": self.enabled, "state": self.state, **said, **hashes}

    def expose(self, alias: str) -> None:
        """Set the exposed name and shown definition for the server's `alias`, without saving."""
        self.exposed_name = definitions.exposed(self.kind, alias, self.name)
        if self.approved:
            shown = definitions.shown_text(self.kind, alias, definitions.definition_in(self.approved))
            self.shown = None if shown == self.approved else shown

    def accept(self, *, by: User | None) -> None:
        """Approve the definition the server offers now, and lift a quarantine.

        Raises NothingToAccept if this definition is already approved and the feature is not quarantined.
        """
        with transaction.atomic():
            row = self.lock()
            if row.offered is None and row.state != FeatureState.QUARANTINED:
                raise NothingToAccept(NothingToAccept.__doc__)
            before = {"definition": row.definition_hash[:12] or None, "state": row.state}
            if row.offered is not None:
                row.take_over(row.offered)
            # A tool that the server never listed has no definition to approve.
            row.state = FeatureState.APPROVED if row.approved else FeatureState.NEW
            row.save()
            if row.approved:
                version, _ = row.versions.get_or_create(hash=row.definition_hash, defaults={"definition": row.approved})
                version.approved_at, version.approved_by = timezone.now(), by
                version.save(update_fields=["approved_at", "approved_by"])
            changes = {
                "definition": [before["definition"], row.definition_hash[:12] or None],
                "state": [before["state"], row.state],
            }
            Event.objects.record(Action.FEATURE_ACCEPTED, row, by=by, changes=changes)
        self.refresh_from_db()

    def say_effect(self, effect: str, *, by: User) -> bool:
        """Set the effect of a tool, in place of the server's claim. If `effect` is empty, the claim applies again.

        Returns False if unchanged.
        """
        with transaction.atomic():
            row = self.lock()
            if row.said_effect == effect:
                return False
            changes = {"effect": [row.said_effect or None, effect or None]}
            type(self).objects.filter(pk=self.pk).update(said_effect=effect)
            Event.objects.record(Action.FEATURE_EFFECT_SAID, row, by=by, changes=changes)
        self.refresh_from_db()
        return True

    def say_texts(self, *, title: str, description: str, by: User) -> bool:
        """Set the title and description that clients see. If one of them is empty, clients see the server's own text.

        Returns False if unchanged.
        """
        with transaction.atomic():
            row = self.lock()
            said = {"title": title, "description": description}
            before = {name: getattr(row, f"said_{name}") for name in said}
            changes = {name: [before[name] or None, said[name] or None] for name in said if before[name] != said[name]}
            if not changes:
                return False
            type(self).objects.filter(pk=self.pk).update(said_title=title, said_description=description)
            Event.objects.record(Action.FEATURE_TEXTS_SAID, row, by=by, changes=changes)
        self.refresh_from_db()
        return True

    def quarantine(self, *, by: User | None) -> None:
        """Hide the feature from clients and refuse its calls from the next request on, until somebody accepts it."""
        with transaction.atomic():
            row = self.lock()
            if row.state != FeatureState.QUARANTINED:
                changes = {"state": [row.state, FeatureState.QUARANTINED.value]}
                type(self).objects.filter(pk=self.pk).update(state=FeatureState.QUARANTINED)
                Event.objects.record(Action.FEATURE_QUARANTINED, row, by=by, changes=changes)
        self.state = FeatureState.QUARANTINED

    def take_over(self, text: str) -> None:
        """Make `text` the approved definition, without saving."""
        told = definitions.row(self.kind, self.assignment.alias, definitions.definition_in(text))
        for name in ("exposed_name", "title", "description", "input_schema", "annotations", "shown"):
            setattr(self, name, told[name])
        self.approved, self.definition_hash = text, told["hash"]
        self.offered, self.offered_hash = None, ""

    @classmethod
    def switch_all(cls, rows: Sequence[Self], *, on: bool, by: User | None) -> None:
        """Enable or disable features together. Record an event for each feature whose state changes."""
        models.prefetch_related_objects(rows, "assignment__gateway")  # Named in each event.
        cls._switch_all(rows, on=on, by=by)

    def lock(self) -> Self:
        """Lock the assignment, then the feature; return the current row. Raises Http404 if the feature is gone."""
        rows = self.lock_all([self])
        if not rows:
            raise Http404
        return rows[0]

    @classmethod
    def lock_all(cls, rows: Iterable[Self]) -> list[Self]:
        """Return the current features. They and their assignments are locked until the transaction ends.

        Assignments are locked before features. The SQL function `gateways_learn` locks in this order, too.
        """
        rows = list(rows)
        places = Assignment.objects.select_related("gateway").select_for_update(of=("self",)).order_by("pk")
        by_key = places.in_bulk({row.assignment_id for row in rows})
        found = super().lock_all(rows)
        for row in found:
            row.assignment = by_key[row.assignment_id]
        return found


class FeatureVersion(models.Model):
    """A definition that a server offered for a feature.

    For each feature, the approved definition, the current one and the last twenty others are stored.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    feature = models.ForeignKey(Feature, models.CASCADE, related_name="versions")
    hash = models.CharField(max_length=64)
    definition = models.TextField()
    first_seen_at = models.DateTimeField(default=timezone.now)
    approved_at = models.DateTimeField(null=True, blank=True)
    # NULL if no person approved the definition: the gateway's settings did, or it was never approved.
    approved_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")

    class Meta:
        ordering = ("-first_seen_at",)
        constraints = (models.UniqueConstraint(fields=("feature", "hash"), name="feature_version_is_kept_once"),)

    def __str__(self) -> str:
        return f"{self.feature} {self.hash[:12]}"


class Listing(models.Model):
    """Time and outcome of the last request for a list of features, by assigned server, kind and identity."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    assignment = models.ForeignKey(Assignment, models.CASCADE, related_name="listings")
    # NULL if all connections share one list.
    identity = models.ForeignKey(Identity, models.CASCADE, null=True, related_name="+")
    kind = models.CharField(max_length=10, choices=FeatureKind)
    asked_at = models.DateTimeField()
    learnt_at = models.DateTimeField(null=True)  # NULL if the server has never answered.
    # The error code if the request failed; empty if it succeeded or is not answered yet.
    error = models.CharField(max_length=40, blank=True)
    # How long the list may be cached, according to the server.
    ttl_ms = models.PositiveIntegerField(default=0, db_default=0)

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=("assignment", "identity", "kind"), name="listing_is_kept_once", nulls_distinct=False
            ),
        )

    def __str__(self) -> str:
        return f"{self.get_kind_display()} of {self.assignment}"
