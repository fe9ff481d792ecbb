"""Models of held calls, and of permissions to repeat an approved call for a while.

A held call is a tool call that waits for a person's decision. The proxy (proxy/holds.py) calls the database function
`approvals_ask`. This function creates a hold, or uses up the approval of an approved hold.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

from django.contrib.postgres.fields import ArrayField
from django.db import models, transaction
from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Now
from django.utils import timezone
from django.utils.functional import cached_property

from accounts.models import Team, User, WorkspaceSettings
from auditlog.actions import Action
from auditlog.models import Call, Event
from capabilities import Capability
from connections.models import Connection
from rules.models import Approvers
from servers.models import Server
from ui.forms import holds as contains
from ui.sealing import cipher
from wire import canonical_json, jsonrpc
from wire.cipher import Undecryptable

MOST_WAITING = 20  # Waiting holds per connection; `approvals_ask` refuses further calls.
LONGEST_SENTENCE = 500
LONGEST_NAME = 200  # Characters of the name of an argument of an allowance.
AN_HOUR = timedelta(hours=1)


class HoldRefused(Exception):
    """The hold cannot be decided; the message says why."""


class HoldDecided(HoldRefused):
    """This call does not wait for a decision any more."""


class NotYourDecision(HoldRefused):
    """You cannot decide on this call."""


class BadAllowance(HoldRefused):
    """The call lacks one of the chosen arguments."""


class HoldState(models.TextChoices):
    WAITING = "waiting", "Waiting"
    APPROVED = "approved", "Approved, not used"
    DENIED = "denied", "Denied"
    EXPIRED = "expired", "Expired"
    USED = "used", "Ran once"
    WITHDRAWN = "withdrawn", "Withdrawn"


# Capabilities that let a person see all held calls. The log shows the calls themselves.
SEES_ALL = (Capability.APPROVALS_DECIDE, Capability.LOGS_READ)


class AllowFor(models.TextChoices):
    """Period in which the same agent may call the same tool again without asking."""

    CALL = "", "Only this call"
    HOUR = "hour", "Same tool, same agent, for 1 hour"
    TODAY = "today", "Same tool, same agent, today"


class HoldQuerySet(models.QuerySet["Hold"]):
    def waiting(self) -> HoldQuerySet:
        """Return the holds that wait for a decision."""
        return self.filter(state=HoldState.WAITING, ends_at__gt=Now())

    def decided(self) -> HoldQuerySet:
        """Return the holds that no longer wait for a decision, including expired and withdrawn ones."""
        return self.exclude(state=HoldState.WAITING, ends_at__gt=Now())

    def with_details(self, viewer: User) -> HoldQuerySet:
        """Load the related rows that pages and answers show with each hold.

        Add `concerns_viewer`, which is True if the hold concerns `viewer`.
        """
        concerns = Exists(Hold.objects.concerning(viewer).filter(pk=OuterRef("pk")))
        rows: Any = self.select_related(
            "connection__host", "connection__gateway", "server", "user", "team", "decided_by"
        )
        found: HoldQuerySet = rows.annotate(concerns_viewer=concerns)
        return found

    def visible_to(self, viewer: User) -> HoldQuerySet:
        """Return the holds that `viewer` may see.

        With LOGS_READ, these are all holds. Without it, they are the holds that concern the viewer.
        """
        return self if viewer.has_perm(Capability.LOGS_READ) else self.concerning(viewer)

    def concerning(self, viewer: User) -> HoldQuerySet:
        """Return the holds that concern `viewer`. The viewer may also see the names of the arguments of these holds.

        With APPROVALS_DECIDE, these are all holds. Without it, an API key gets none, and a person gets the holds of
        their own agents and the holds that their teams decide.
        """
        if viewer.has_perm(Capability.APPROVALS_DECIDE):
            return self
        if viewer.narrowed_to is not None:
            return self.none()
        return self.filter(Q(user=viewer) | Q(team__in=viewer.teams.values("pk")))

    def to_decide(self, viewer: User | None) -> HoldQuerySet:
        """Return the waiting holds on which `viewer` may decide now, sorted by the time at which they expire.

        If `viewer` is None, return all waiting holds.
        """
        rows = self if viewer is None else self.decidable_by(viewer)
        return rows.waiting().order_by("ends_at", "pk")

    def decidable_by(self, person: User) -> HoldQuerySet:
        """Return the holds that have `person` as an approver now, including holds that no longer wait.

        Approvers are the people whom the rule names (see `asking`). Everybody with APPROVALS_DECIDE is an approver of
        a hold if its rule names nobody, if the rule's team was deleted, or if `fallback_at` has passed. A rule can
        exclude the person for whom the agent acts.
        """
        if not person.is_active:
            return self.none()
        mine = Q(pk=None)
        if person.narrowed_to is None:
            mine = Q(Exists(Hold.objects.asking(person).filter(pk=OuterRef("pk"))))
        if person.has_perm(Capability.APPROVALS_DECIDE):
            is_without_team = Q(approvers=Approvers.TEAM, team=None)
            mine |= Q(approvers=Approvers.ANYBODY) | is_without_team | Q(fallback_at__lte=Now())
        return self.filter(mine).exclude(somebody_else=True, user=person)

    def asking(self, person: User | OuterRef) -> HoldQuerySet:
        """Return the holds whose rule names `person` as an approver: as a team member, or as the agent's owner."""
        of_person = Q(approvers=Approvers.PERSON, user=person)
        return self.filter(of_person | Q(approvers=Approvers.TEAM, team__users=person))

    def matching(self, words: str) -> HoldQuerySet:
        """Return the holds with `words` in the person's e-mail or in the name of the tool, agent or rule.

        Without `words`, return all holds.
        """
        if not words:
            return self
        call = contains("tool", words) | contains("connection__host__name", words)
        return self.filter(call | contains("user__email", words) | contains("rule_name", words))

    def expire_due(self) -> int:
        """Expire the holds whose time has passed without a decision, and return their number."""
        return self.filter(state=HoldState.WAITING, ends_at__lte=Now()).update(state=HoldState.EXPIRED)

    def drop_before(self, since: datetime) -> int:
        """Delete ended holds of calls made before `since`, the start of the log. Return the number of deleted holds."""
        over = self.filter(asked_at__lt=since, ends_at__lt=Now())
        return over.delete()[1].get("approvals.Hold", 0)


class Hold(models.Model):
    """One held tool call, and the decision on it.

    A decision is valid until `ends_at`. Until then, an approved call can run once. If the agent repeats a denied call
    before `ends_at`, the call is refused without a new hold.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    connection = models.ForeignKey(Connection, models.PROTECT, related_name="holds", db_index=False)
    user = models.ForeignKey(User, models.PROTECT, related_name="+")
    server = models.ForeignKey(Server, models.PROTECT, related_name="+")
    tool = models.CharField(max_length=300)  # Its name for clients.
    digest = models.BinaryField(max_length=32)  # Of the canonical arguments.
    definition = models.CharField(max_length=64, blank=True)  # Digest of the tool's approved definition.
    # The arguments as JSON, encrypted with the key `key_id`.
    sealed_arguments = models.BinaryField()
    key_id = models.CharField(max_length=8)

    # The version of the rule that holds the call. Approvers and period (`seconds`) are copied from the rule.
    rule_id = models.UUIDField(db_index=True)
    rule_version = models.PositiveIntegerField()
    rule_name = models.CharField(max_length=80)
    approvers = models.CharField(max_length=10, choices=Approvers)
    team = models.ForeignKey(Team, models.SET_NULL, null=True, blank=True, related_name="+")
    somebody_else = models.BooleanField(default=False)
    seconds = models.PositiveIntegerField()

    asked_at = models.DateTimeField()
    # The time from which everybody with APPROVALS_DECIDE may decide.
    fallback_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    state = models.CharField(max_length=10, choices=HoldState, default=HoldState.WAITING)
    decided_by = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="+")
    decided_at = models.DateTimeField(null=True, blank=True)
    sentence = models.CharField(max_length=LONGEST_SENTENCE, blank=True, default="")
    used_at = models.DateTimeField(null=True, blank=True)
    # Ids of two calls in the log: the call that was held, and the call that ran after the approval.
    asking_call = models.UUIDField()
    run_call = models.UUIDField(null=True)
    client = models.CharField(max_length=200, blank=True)

    concerns_viewer: bool  # Set by `with_details`: its viewer may see the names and types of the arguments.

    objects = HoldQuerySet.as_manager()

    class Meta:
        ordering = ("-asked_at", "pk")
        default_permissions = ()
        permissions = (("decide_hold", "Decide on held calls"),)
        constraints = (
            models.UniqueConstraint(
                fields=("connection", "server", "tool", "digest"),
                condition=Q(state="waiting"),
                name="waiting_hold_is_unique",
            ),
            models.CheckConstraint(
                condition=~Q(state__in=("approved", "denied", "used")) | Q(decided_by__isnull=False),
                name="decided_hold_names_who_decided",
            ),
            models.CheckConstraint(
                condition=Q(somebody_else=False)
                | Q(decided_by__isnull=True)
                | ~Q(decided_by=F("user"))
                | Q(state="withdrawn"),
                name="somebody_else_decides_on_hold",
            ),
        )
        indexes = (
            models.Index(fields=("connection", "server", "tool", "digest"), name="holds_of_a_call"),
            models.Index(fields=("ends_at",), condition=Q(state="waiting"), name="waiting_holds"),
            models.Index(fields=("-asked_at",), name="holds_by_date"),
        )

    def __str__(self) -> str:
        return f"{self.tool} / {self.connection.host} / {self.connection.gateway}"

    @property
    def owner_email(self) -> str:
        return self.user.email

    @property
    def current_state(self) -> str:
        """The state. A hold whose time passed without a decision counts as EXPIRED, even while `state` is WAITING."""
        is_over = self.state == HoldState.WAITING and self.ends_at <= timezone.now()
        return HoldState.EXPIRED if is_over else self.state

    @property
    def approvers_text(self) -> str:
        """The rule's approvers in words, such as "the team Support"."""
        if self.approvers == Approvers.PERSON:
            return self.user.email
        is_of_team = self.approvers == Approvers.TEAM and self.team is not None
        return f"the team {self.team}" if is_of_team else "people who may decide on held calls"

    @property
    def earlier_run(self) -> Hold | None:
        """The hold of the last identical call that ran before this hold's `asked_at`; None if no such call ran.

        Calls are identical if they have the same connection, server, tool and arguments.
        """
        same = Hold.objects.filter(connection=self.connection_id, server=self.server_id, tool=self.tool)
        ran = same.filter(digest=bytes(self.digest), state=HoldState.USED, used_at__lte=self.asked_at)
        return ran.exclude(pk=self.pk).order_by("-used_at").first()

    @property
    def last_approved(self) -> Hold | None:
        """The last approved other hold of the same connection and tool, to compare arguments; None if none exists."""
        approved = Hold.objects.filter(state__in=(HoldState.APPROVED, HoldState.USED), server=self.server_id)
        here = approved.filter(tool=self.tool, connection=self.connection_id).exclude(pk=self.pk)
        return here.order_by("-decided_at").first()

    @cached_property
    def arguments(self) -> dict[str, Any] | None:
        """The decrypted arguments; None if no configured key decrypts them."""
        try:
            found: dict[str, Any] = jsonrpc.loads(cipher().open(bytes(self.sealed_arguments)).encode())
        except Undecryptable:
            return None
        return found

    def shows_arguments_to(self, viewer: User) -> bool:
        """True if `viewer` may read the values of the arguments. Does not check who may see the arguments' names."""
        if not viewer.has_perm(Capability.LOGS_PAYLOADS):
            return False
        return viewer.pk == self.user_id or viewer.has_perm(Capability.LOGS_READ)

    def may_be_decided_by(self, person: User) -> bool:
        """True if `person` may approve or deny. Checks neither the hold's state nor who may see the hold."""
        return Hold.objects.decidable_by(person).filter(pk=self.pk).exists()

    def approve(self, *, by: User, sentence: str = "", allow: str = AllowFor.CALL, names: Any = ()) -> None:
        """Let the call run once. Raises HoldRefused.

        The call can run until `ends_at`: the time of the approval plus the hold's `seconds`.

        If `allow` is a period, the agent may repeat the call in this period without asking, as long as the tool
        arguments listed in `names` keep their values.
        """
        with transaction.atomic():
            row = self._decide(HoldState.APPROVED, Action.HOLD_APPROVED, sentence, by)
            if allow:
                Allowance.objects.give(row, AllowFor(allow), [*names], by=by)

    def deny(self, *, by: User, sentence: str = "") -> None:
        """Deny the call, with a sentence for the agent. Raises HoldRefused."""
        with transaction.atomic():
            self._decide(HoldState.DENIED, Action.HOLD_DENIED, sentence, by)

    def withdraw(self, *, by: User) -> None:
        """Withdraw the held call. Only the person for whom the agent acts may do this. Raises HoldRefused."""
        with transaction.atomic():
            if by.pk != self.user_id:
                raise NotYourDecision("Only the person the agent acts for can withdraw the request.")
            self._close(HoldState.WITHDRAWN, Action.HOLD_WITHDRAWN, "", by)

    def _decide(self, state: HoldState, action: Action, sentence: str, by: User) -> Hold:
        if not self.may_be_decided_by(by):
            is_own = self.somebody_else and by.pk == self.user_id
            raise NotYourDecision(
                "This rule needs somebody else's decision: you cannot decide on calls of your own agent."
                if is_own
                else NotYourDecision.__doc__
            )
        return self._close(state, action, sentence, by)

    def _close(self, state: HoldState, action: Action, sentence: str, by: User) -> Hold:
        """Set the state if the hold still waits, so that only the first decision counts. Raises HoldDecided."""
        ends_at = Now() + timedelta(seconds=self.seconds)
        changed = (
            Hold.objects.filter(pk=self.pk)
            .waiting()
            .update(
                state=state,
                decided_by=by,
                decided_at=Now(),
                sentence=sentence.strip()[:LONGEST_SENTENCE],
                ends_at=ends_at,
            )
        )
        if not changed:
            raise HoldDecided(HoldDecided.__doc__)
        Event.objects.record(action, self, by=by, changes={"rule": self.rule_name})
        self.refresh_from_db()
        return self


def hold_of(call: Call, viewer: User) -> Hold | None:
    """Return the hold that stopped or allowed the call.

    Return None if the call has no hold, or if `viewer` may not see the hold.
    """
    if call.hold_id is None:
        return None
    return Hold.objects.visible_to(viewer).with_details(viewer).filter(pk=call.hold_id).first()


class AllowanceQuerySet(models.QuerySet["Allowance"]):
    def live(self) -> AllowanceQuerySet:
        return self.filter(ended_at=None, ends_at__gt=Now())

    def with_details(self) -> AllowanceQuerySet:
        return self.select_related("connection__host", "connection__gateway", "server", "hold", "given_by", "ended_by")

    def visible_to(self, viewer: User) -> AllowanceQuerySet:
        """Return the allowances that `viewer` may see.

        With one of the capabilities in SEES_ALL, these are all allowances. Without them, a person sees the allowances
        of their own connections, and an API key sees none.
        """
        if any(map(viewer.has_perm, SEES_ALL)):
            return self
        return self.filter(connection__user=viewer) if viewer.narrowed_to is None else self.none()

    def give(self, hold: Hold, period: AllowFor, names: list[str], *, by: User) -> Allowance:
        """Let the agent repeat the held call until `period` ends. Raises BadAllowance.

        The arguments in `names` must keep their values; other arguments may change.
        """
        arguments = hold.arguments or {}
        if names and hold.arguments is None:
            raise BadAllowance("The arguments of this call cannot be decrypted. Allow it with any arguments.")
        if any(name not in arguments for name in names):
            raise BadAllowance(BadAllowance.__doc__)
        if any(len(name) > LONGEST_NAME for name in names):  # The database would cut the name and match no call.
            raise BadAllowance(
                f"An argument's name has more than {LONGEST_NAME} characters. Leave it out, or allow only this call."
            )
        names = sorted(set(names))
        row = self.create(
            hold=hold,
            connection=hold.connection,
            server=hold.server,
            tool=hold.tool,
            definition=hold.definition,
            rule_id=hold.rule_id,
            rule_version=hold.rule_version,
            names=names,
            digest=canonical_json.digest({name: arguments[name] for name in names}),
            given_by=by,
            ends_at=_end_of(period),
        )
        Event.objects.record(Action.ALLOWANCE_GIVEN, row, by=by, changes={"rule": hold.rule_name})
        return row


def _end_of(period: AllowFor) -> datetime:
    """Return the end of a period that begins now. TODAY ends at midnight in the time zone of the workspace."""
    now = timezone.now()
    if period == AllowFor.HOUR:
        return now + AN_HOUR
    local = now.astimezone(ZoneInfo(WorkspaceSettings.load().zone)) + timedelta(days=1)
    return local.replace(hour=0, minute=0, second=0, microsecond=0)


class Allowance(models.Model):
    """A permission for an agent to repeat an approved call without asking.

    The permission does not apply if the rule, or the tool's definition, has changed since the call was held.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    hold = models.ForeignKey(Hold, models.CASCADE, related_name="allowances")
    connection = models.ForeignKey(Connection, models.PROTECT, related_name="+", db_index=False)
    server = models.ForeignKey(Server, models.PROTECT, related_name="+")
    tool = models.CharField(max_length=300)
    definition = models.CharField(max_length=64, blank=True)
    rule_id = models.UUIDField()
    rule_version = models.PositiveIntegerField()
    # Arguments that must have the same values as in the approved call.
    names = ArrayField(models.CharField(max_length=LONGEST_NAME), default=list, blank=True)
    digest = models.BinaryField(max_length=32)
    calls = models.PositiveIntegerField(default=0, db_default=0)
    given_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    given_at = models.DateTimeField(default=timezone.now)
    ends_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)
    ended_by = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="+")

    objects = AllowanceQuerySet.as_manager()

    class Meta:
        ordering = ("ends_at", "pk")
        default_permissions = ()
        indexes = (
            models.Index(
                fields=("connection", "server", "tool"), condition=Q(ended_at=None), name="allowances_in_force"
            ),
        )

    def __str__(self) -> str:
        return f"{self.tool} / {self.connection.host} / {self.connection.gateway}"

    @property
    def owner_email(self) -> str:
        return self.connection.owner_email

    def may_be_ended_by(self, person: User) -> bool:
        """True if `person` may end the permission: `person` has APPROVALS_DECIDE, or owns the agent's connection."""
        is_own = person.narrowed_to is None and person.pk == self.connection.user_id
        return is_own or person.has_perm(Capability.APPROVALS_DECIDE)

    def end(self, *, by: User) -> bool:
        """End the permission. Return False if it had ended already. Raises NotYourDecision.

        From the next call on, the permission does not apply.
        """
        if not self.may_be_ended_by(by):
            raise NotYourDecision("You cannot end this permission.")
        with transaction.atomic():
            ended = Allowance.objects.live().filter(pk=self.pk).update(ended_at=Now(), ended_by=by)
            if ended:
                Event.objects.record(Action.ALLOWANCE_ENDED, self, by=by)
        self.refresh_from_db()
        return bool(ended)
