"""Rules on tool calls: a rule refuses, holds or labels calls, depending on the tool and the arguments.

proxy/access/query.sql reads the enabled rules of a call; proxy/access/rules.py applies them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any
from uuid import uuid4

from django.contrib.postgres.fields import ArrayField
from django.db import IntegrityError, models, transaction
from django.db.models import Q
from django.db.models.functions import Lower

from accounts.models import Team, User
from auditlog.actions import Action
from auditlog.models import Actor, Event, Switchable
from auditlog.versions import Seen, Versioned
from capabilities import Capability
from gateways.models import Gateway
from proxy.access.expression_text import BadExpression
from proxy.access.expressions import MOST_CHARACTERS, compiled
from proxy.access.rules import reads_arguments
from rules.order import arranged, moved
from servers.models import Server
from ui.forms import holds

MOST_RULES = 200  # Every call reads all of them.
LONGEST_TEXT = 200
# If one of these fields changes, earlier approvals and replays of the rule no longer apply.
MEANING = frozenset(
    {"gateway", "servers", "tools", "tool_effect", "when", "effect"}
    | {"approvers", "approver_team", "somebody_else", "hold_minutes"}
)
USUAL_HOLD, LONGEST_HOLD = 15, 24 * 60  # Minutes.


class RuleError(Exception):
    """The rule cannot be saved. The message says why. `field` is the form field with the mistake, or ""."""

    field = ""


class RuleNameTaken(RuleError):
    """A rule with this name already exists."""

    field = "name"


class TooManyRules(RuleError):
    """The workspace has 200 rules, and cannot have more. Remove one first."""


class NeedsText(RuleError):
    """Enter the label, without a comma."""

    field = "text"


class NeedsTeam(RuleError):
    """Choose the team that decides."""

    field = "approver_team"


class NobodyDecides(RuleError):
    """Do not require somebody else to decide: the approver is the person for whom the agent acts."""

    field = "somebody_else"


class NeedsPayloads(RuleError):
    """A condition on arguments needs the permission “View recorded payloads”: a match reveals argument values."""

    field = "when"


class BadCondition(RuleError):
    """The condition cannot be used. `at` is the position of the first wrong character, from 0."""

    field = "when"

    def __init__(self, problem: str, at: int) -> None:
        super().__init__(problem)
        self.at = at


class RuleEffect(models.TextChoices):
    REFUSE = "refuse", "Refuse"
    HOLD = "hold", "Hold for approval"
    LABEL = "label", "Label"


class Approvers(models.TextChoices):
    """The people who decide first on a call that a rule holds.

    From the hold's time `fallback_at` on, everybody who may decide on held calls can decide on this call, too.
    """

    ANYBODY = "anybody", "Everybody who may decide on held calls"
    TEAM = "team", "A team"
    PERSON = "person", "The person the agent acts for"


class RuleMode(models.TextChoices):
    WATCH = "watch", "Watch"
    ON = "on", "On"


class ToolEffect(models.TextChoices):
    ANY = "", "Any"
    READ_ONLY = "read_only", "Read only"
    DESTRUCTIVE = "destructive", "Destructive"


class RuleQuerySet(models.QuerySet["Rule"]):
    def matching(self, words: str) -> RuleQuerySet:
        return self.filter(holds("name", words) | holds("when", words) | holds("note", words)) if words else self

    def live(self) -> RuleQuerySet:
        """Return all rules: every rule is live, because a removed rule is deleted.

        The method exists because auditlog.remedies calls `live` on every model.
        """
        return self.all()

    def at(self, gateway: Gateway) -> RuleQuerySet:
        """Return the rules for calls of this gateway: the gateway's own rules and the rules of the workspace."""
        return self.filter(Q(gateway=gateway) | Q(gateway=None))

    def add(
        self,
        *,
        name: str,
        effect: str,
        by: User | None,
        servers: Collection[Server] = (),
        gateway: Gateway | None = None,
        **fields: Any,
    ) -> Rule:
        """Add a rule at the end. Raises RuleError."""
        row = self.model(name=name, effect=effect, gateway=gateway, created_by=by, **fields)
        row.tidy()
        row.check_author(by)
        try:
            with transaction.atomic():
                rules = list(self.model.objects.select_for_update().values_list("position", flat=True))
                if len(rules) >= MOST_RULES:
                    raise TooManyRules(TooManyRules.__doc__)
                row.position = max(rules, default=0) + 1
                row.save(force_insert=True)
                row.servers.set(servers)
                changes = {field: [None, value] for field, value in row.editable().items() if value}
                Event.objects.record(Action.RULE_CREATED, row, by=by, changes=changes)
        except IntegrityError:
            raise RuleNameTaken(RuleNameTaken.__doc__) from None
        return row

    def arrange(self, rules: Sequence[Rule], *, by: Actor | None) -> None:
        """Put these rules into this order. The rules change places only with each other; other rules do not move."""
        with transaction.atomic():
            now = list(self.model.objects.select_for_update())
            if (after := arranged(now, rules)) != now:
                _number(after)
            for rule, places in moved(now, after).items():
                Event.objects.record(Action.RULE_MOVED, rule, by=by, changes={"place": [*places]})


class Rule(Versioned, Switchable):
    """A rule on tool calls, of one gateway or of the workspace. Rules apply in the order of `position`."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    gateway = models.ForeignKey(Gateway, models.PROTECT, null=True, blank=True, related_name="rules")
    name = models.CharField(max_length=80)
    # These three fields select tools; an empty field selects all. `tools` are names for clients, with `*` and `?`.
    servers = models.ManyToManyField(Server, blank=True, related_name="+")
    tools = ArrayField(models.CharField(max_length=200), default=list, blank=True)
    tool_effect = models.CharField(max_length=12, choices=ToolEffect, default=ToolEffect.ANY, blank=True)
    # A condition in CEL; an empty condition is true.
    when = models.TextField(max_length=MOST_CHARACTERS, blank=True, default="")
    effect = models.CharField(max_length=10, choices=RuleEffect)
    # The sentence of a refusal, or the label. Not used if the rule holds calls.
    text = models.CharField(max_length=LONGEST_TEXT, blank=True, default="")
    # In the mode `watch`, a rule only labels calls with what it would have done.
    mode = models.CharField(max_length=10, choices=RuleMode, default=RuleMode.WATCH)
    note = models.CharField(max_length=500, blank=True, default="")
    # Only for rules that hold calls: who decides, and for how many minutes a held call waits.
    approvers = models.CharField(
        max_length=10, choices=Approvers, default=Approvers.ANYBODY, db_default=Approvers.ANYBODY
    )
    approver_team = models.ForeignKey(Team, models.SET_NULL, null=True, blank=True, related_name="+")
    somebody_else = models.BooleanField(default=False, db_default=False)
    hold_minutes = models.PositiveSmallIntegerField(default=USUAL_HOLD, db_default=USUAL_HOLD)
    position = models.PositiveIntegerField(default=0)
    # Increases when a field in MEANING changes.
    revision = models.PositiveIntegerField(default=1, editable=False)
    created_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects = RuleQuerySet.as_manager()

    class Meta:
        ordering = ("position", "created_at")
        default_permissions = ()
        permissions = (("view_rule", "View rules"), ("manage_rule", "Manage rules"))
        constraints = (
            models.UniqueConstraint(Lower("name"), name="rule_name_is_unique"),
            models.CheckConstraint(condition=~Q(effect="label") | ~Q(text=""), name="label_rule_has_a_label"),
            models.CheckConstraint(
                condition=Q(hold_minutes__gte=1, hold_minutes__lte=LONGEST_HOLD), name="rule_holds_for_a_day_at_most"
            ),
            models.CheckConstraint(
                condition=~Q(approvers="person") | Q(somebody_else=False), name="somebody_can_decide_for_rule"
            ),
        )

    def __str__(self) -> str:
        return self.name

    @property
    def status(self) -> str:
        """`disabled`, `watch` or `on`."""
        return self.mode if self.enabled else "disabled"

    def editable(self) -> dict[str, Any]:
        names = "name tools tool_effect when effect text mode note approvers somebody_else hold_minutes"
        values = {name: getattr(self, name) for name in names.split()}
        values["approver_team"] = self.approver_team.name if self.approver_team else ""
        servers = sorted(self.servers.values_list("slug", flat=True)) if not self._state.adding else []
        return values | {"gateway": self.gateway.slug if self.gateway else "", "servers": servers}

    def tidy(self) -> None:
        """Remove surrounding blanks and repeated tool names, and reset the approval fields that are not used.

        Raises RuleError if the rule cannot be used.
        """
        self.name, self.text, self.note = self.name.strip(), self.text.strip(), self.note.strip()
        self.when = self.when.strip().replace("\r\n", "\n")  # Browsers send CRLF.
        self.tools = [*dict.fromkeys(filter(None, map(str.strip, self.tools)))]
        if self.effect == RuleEffect.LABEL and (not self.text or "," in self.text):
            raise NeedsText(NeedsText.__doc__)
        self._tidy_approvers()
        if self.when:
            try:
                compiled(self.when)
            except BadExpression as bad:
                raise BadCondition(bad.problem, bad.at) from None

    def check_author(self, author: User | None) -> None:
        """Raise NeedsPayloads if the condition reads arguments, and the person `author` may not read them."""
        if author is not None and reads_arguments(self.when) and not author.has_perm(Capability.LOGS_PAYLOADS):
            raise NeedsPayloads(NeedsPayloads.__doc__)

    def _tidy_approvers(self) -> None:
        """Reset the approval fields that the rule does not use. Raises NeedsTeam or NobodyDecides."""
        if self.effect != RuleEffect.HOLD:
            self.approvers, self.somebody_else, self.hold_minutes = Approvers.ANYBODY, False, USUAL_HOLD
        if self.approvers != Approvers.TEAM:
            self.approver_team = None
        elif self.approver_team is None:
            raise NeedsTeam(NeedsTeam.__doc__)
        if self.approvers == Approvers.PERSON and self.somebody_else:
            raise NobodyDecides(NobodyDecides.__doc__)

    def edit(
        self, *, by: User | None, seen: Seen | None = None, servers: Iterable[Server] | None = None, **fields: Any
    ) -> bool:
        """Change the rule from the next call on; return whether anything changed.

        Raises RuleError or ChangedMeanwhile.
        """
        try:
            with transaction.atomic():
                row: Rule = self.lock()
                before = row.editable()
                for name, value in fields.items():
                    setattr(row, name, value)
                row.tidy()
                if row.when != before["when"]:
                    row.check_author(by)
                changes = row._save_changes(before, servers, seen)
                if changes:
                    Event.objects.record(Action.RULE_UPDATED, row, by=by, changes=changes)
        except IntegrityError:
            raise RuleNameTaken(RuleNameTaken.__doc__) from None
        self.refresh_from_db()
        return bool(changes)

    def _save_changes(
        self, before: dict[str, Any], servers: Iterable[Server] | None, seen: Seen | None
    ) -> dict[str, list[Any]]:
        chosen = None if servers is None else [*servers]
        after = self.editable() | ({} if chosen is None else {"servers": sorted(each.slug for each in chosen)})
        changes = {name: [before[name], after[name]] for name in before if before[name] != after[name]}
        type(self)._base_manager.get(pk=self.pk).must_be(seen, changes)
        if chosen is not None:
            self.servers.set(chosen)
        self.revision += bool(MEANING.intersection(changes))
        self.save()
        return changes

    def set_mode(self, mode: str, *, by: Actor | None) -> bool:
        """Set the mode to `watch` or `on`, from the next call on. Return False if the rule had this mode already."""
        with transaction.atomic():
            row: Rule = self.lock()
            changed = row.mode != mode
            if changed:
                type(self).objects.filter(pk=self.pk).update(mode=mode)
                Event.objects.record(Action.RULE_MODE_SET, row, by=by, changes={"mode": [row.mode, mode]})
        self.mode = mode
        return changed

    def move(self, to: int, *, by: Actor | None) -> bool:
        """Move the rule to the place `to` among all rules; the first place is 1.

        Return False if the rule was there already.
        """
        with transaction.atomic():
            rules = list(type(self).objects.select_for_update())
            self.lock()  # Raises Http404 if somebody has removed the rule meanwhile.
            before = next(index for index, rule in enumerate(rules, 1) if rule.pk == self.pk)
            to = min(max(to, 1), len(rules))
            if before == to:
                return False
            rules.insert(to - 1, rules.pop(before - 1))
            _number(rules)
            Event.objects.record(Action.RULE_MOVED, self, by=by, changes={"place": [before, to]})
        self.refresh_from_db(fields=["position"])
        return True

    def remove(self, *, by: Actor | None, seen: Seen | None = None) -> None:
        """Remove the rule; from the next call on, it does not apply. Raises ChangedMeanwhile."""
        with transaction.atomic():
            rules = list(type(self).objects.select_for_update())
            row: Rule = self.lock()
            row.must_be(seen)
            changes = {name: [value, None] for name, value in row.editable().items() if value}
            Event.objects.record(Action.RULE_REMOVED, row, by=by, changes=changes)
            row.delete()
            _number([rule for rule in rules if rule.pk != self.pk])


def _number(rules: Sequence[Rule]) -> None:
    """Store the order of all rules."""
    for position, rule in enumerate(rules, 1):
        rule.position = position
    Rule.objects.bulk_update(rules, ["position"])
