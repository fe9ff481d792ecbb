"""Access requests: a person asks to use a gateway, or one of its tool sets, for a number of days."""

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from django.db import models, transaction
from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Now
from django.utils import timezone

from accounts.models import User
from accounts.rules import ONLY_LOOKS
from auditlog.actions import Action
from auditlog.models import Actor, Event
from auditlog.versions import Versioned
from capabilities import Capability
from gateways.models.gateway import Gateway, GatewayError, ToolsGiven
from gateways.models.grants import AlreadyGiven, GatewayGrant, ToolGrant, reached_until
from gateways.models.tool_sets import ToolSet

MOST_OPEN = 10  # Open requests of one person.
MOST_A_DAY = 20  # Requests of one person, including withdrawn requests.
FALLBACK_AFTER = timedelta(days=3)  # After this time, people with GATEWAYS_MANAGE are notified too.


class RequestRefused(GatewayError):
    """The request cannot be made or decided; the message says why."""


class AlreadyRequested(RequestRefused):
    """You have asked for this already. It waits for a decision."""


class TooManyOpen(RequestRefused):
    """You have reached a limit: 10 open requests, or 20 requests a day. Withdraw an open one, or ask again later."""


class AlreadyDecided(RequestRefused):
    """This request does not wait for a decision any more."""


class NotYoursToDecide(RequestRefused):
    """You cannot decide on this request."""


class TooLong(RequestRefused):
    """The period is longer than the gateway allows."""


class RequestState(models.TextChoices):
    OPEN = "open", "Waiting"
    APPROVED = "approved", "Approved"
    DECLINED = "declined", "Declined"
    WITHDRAWN = "withdrawn", "Withdrawn"


def _approvers(**where: Any) -> models.QuerySet[Any]:
    """Return a subquery for the approvers of a request's gateway. The outer query must select access requests."""
    return Gateway.approvers.through.objects.filter(gateway=OuterRef("gateway"), **where)


def _approvable_by(viewer: User) -> Q:
    """Match the requests for gateways that name `viewer` as an approver.

    If `viewer` uses an API key without GATEWAYS_MANAGE, match none.
    """
    if viewer.narrowed_to is None or viewer.has_perm(Capability.GATEWAYS_MANAGE):
        return Q(Exists(_approvers(user=viewer)))
    return Q(pk=None)


class AccessRequestQuerySet(models.QuerySet["AccessRequest"]):
    def open(self) -> "AccessRequestQuerySet":
        """Return the waiting requests whose person is active and whose gateway is not archived."""
        return self.filter(state=RequestState.OPEN, user__is_active=True, gateway__archived_at=None)

    def with_details(self) -> "AccessRequestQuerySet":
        """Return the requests, with their gateways, tool sets and people loaded by the same query."""
        return self.select_related("gateway", "tool_set", "user", "decided_by")

    def visible_to(self, viewer: User) -> "AccessRequestQuerySet":
        """Return the requests that `viewer` may read.

        A viewer with GATEWAYS_READ may read all requests. Other viewers may read only those that `concerning` returns.
        """
        return self if viewer.has_perm(Capability.GATEWAYS_READ) else self.concerning(viewer)

    def concerning(self, viewer: User) -> "AccessRequestQuerySet":
        """Return the viewer's own requests, and the requests on which the viewer may decide."""
        if viewer.has_perm(Capability.GATEWAYS_MANAGE):
            return self
        return self.filter(Q(user=viewer) | _approvable_by(viewer))

    def to_decide(self, viewer: User | None) -> "AccessRequestQuerySet":
        """Return the open requests that wait for a decision by `viewer`; if `viewer` is None, all open requests."""
        if viewer is None:
            return self.open()
        mine = _approvable_by(viewer)
        if viewer.has_perm(Capability.GATEWAYS_MANAGE):
            # Also requests that no named approver can decide, and requests older than FALLBACK_AFTER.
            others = _approvers(user__is_active=True).exclude(user=OuterRef("user"))
            mine |= ~Q(Exists(others)) | Q(created_at__lte=Now() - FALLBACK_AFTER)
        return self.open().filter(mine).exclude(user=viewer)

    def ask(
        self, gateway: Gateway, *, tool_set: ToolSet | None = None, reason: str, days: int, by: User
    ) -> "AccessRequest":
        """Request to use a gateway, or one of its tool sets, for `days` days. The period begins with the approval.

        Raises RequestRefused or AlreadyGiven.
        """
        with transaction.atomic():
            # Lock the person, so that concurrent requests of the same person cannot exceed the limits.
            User.objects.select_for_update(of=("self",)).get(pk=by.pk)
            row: Gateway = Gateway.objects.select_for_update(of=("self",)).get(pk=gateway.pk)
            _refuse_unless_well_formed(row, reason, days)
            _refuse_unless_useful(row, tool_set, by)
            own = self.filter(user=by)
            waiting = own.filter(state=RequestState.OPEN)
            if waiting.filter(gateway=row, tool_set=tool_set).exists():
                raise AlreadyRequested(AlreadyRequested.__doc__)
            today = own.filter(created_at__gt=timezone.now() - timedelta(days=1))
            if waiting.count() >= MOST_OPEN or today.count() >= MOST_A_DAY:
                raise TooManyOpen(TooManyOpen.__doc__)
            request = self.create(gateway=row, tool_set=tool_set, user=by, reason=reason.strip(), days=days)
            Event.objects.record(Action.ACCESS_REQUEST_MADE, request, by=by, changes=request.described())
        return request


def _refuse_unless_well_formed(gateway: Gateway, reason: str, days: int) -> None:
    if gateway.archived_at or not gateway.takes_requests:
        raise RequestRefused("This gateway takes no requests. Ask a workspace administrator.")
    if not reason.strip():
        raise RequestRefused("Say what you need the access for.")
    _refuse_too_long(gateway, days)


def _refuse_too_long(gateway: Gateway, days: int) -> None:
    if not 1 <= days <= gateway.most_request_days:
        raise TooLong(f"Choose 1 to {gateway.most_request_days} days.")


def _refuse_unless_useful(gateway: Gateway, tool_set: ToolSet | None, by: User) -> None:
    """Raise an error if an approval would give the person `by` nothing.

    Raises RequestRefused if the person's role cannot use gateways, if `tool_set` is archived or belongs to another
    gateway, or if the gateway gives all its tools to everybody, so that nobody needs a tool set. Raises AlreadyGiven
    if the person has the requested access without an end date.
    """
    if not by.uses_gateways:
        raise RequestRefused(ONLY_LOOKS)
    reaches, until = reached_until(gateway, by)
    is_open = reaches and until is None
    if tool_set is None:
        if is_open:
            raise AlreadyGiven("You may use this gateway already.")
        return
    if tool_set.gateway_id != gateway.pk or tool_set.archived_at:
        raise RequestRefused("This gateway has no such tool set.")
    if gateway.tools_given == ToolsGiven.ALL:
        raise RequestRefused("Everybody who may use this gateway can use all its tools. Ask for the gateway only.")
    if is_open and ToolGrant.objects.to(by).filter(tool_set=tool_set, ends_at=None).exists():
        raise AlreadyGiven("You may use these tools already.")


class AccessRequest(Versioned, models.Model):
    """A person's request to use a gateway and, if `tool_set` is given, the tools of this set."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    gateway = models.ForeignKey(Gateway, models.PROTECT, related_name="access_requests")
    tool_set = models.ForeignKey(ToolSet, models.PROTECT, null=True, blank=True, related_name="+")
    user = models.ForeignKey(User, models.PROTECT, related_name="access_requests")
    reason = models.CharField(max_length=500)
    days = models.PositiveSmallIntegerField()
    created_at = models.DateTimeField(default=timezone.now)
    state = models.CharField(max_length=10, choices=RequestState, default=RequestState.OPEN)
    decided_by = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="+")
    decided_at = models.DateTimeField(null=True, blank=True)
    answer = models.CharField(max_length=500, blank=True, default="")

    objects = AccessRequestQuerySet.as_manager()

    class Meta:
        ordering = ("-created_at",)
        constraints = (
            models.UniqueConstraint(
                fields=("user", "gateway", "tool_set"),
                condition=Q(state=RequestState.OPEN),
                nulls_distinct=False,
                name="open_access_request_is_unique",
            ),
            models.CheckConstraint(
                condition=Q(decided_by__isnull=True) | ~Q(decided_by=models.F("user")) | Q(state="withdrawn"),
                name="nobody_decides_on_their_own_request",
            ),
        )
        indexes = (
            models.Index(fields=("created_at",), condition=Q(state=RequestState.OPEN), name="open_access_request"),
        )

    def __str__(self) -> str:
        return f"{self.gateway} / {self.user.email}"

    @property
    def owner_email(self) -> str:
        return self.user.email

    @property
    def what(self) -> str:
        """The names of the tool set and the gateway, or only of the gateway if no set was requested."""
        return f"{self.tool_set.name} on {self.gateway.name}" if self.tool_set else self.gateway.name

    @property
    def is_open(self) -> bool:
        return self.state == RequestState.OPEN

    def editable(self) -> dict[str, Any]:
        return {"state": self.state}

    def described(self) -> dict[str, Any]:
        """Return the requested days and the tool set, if any, for the `changes` of an event."""
        told: dict[str, Any] = {"days": self.days}
        return told | ({"tool_set": self.tool_set.name} if self.tool_set else {})

    @property
    def approvers(self) -> list[User]:
        """The named approvers who can decide. If there are none, only people with GATEWAYS_MANAGE can decide."""
        named = self.gateway.approvers.filter(is_active=True).exclude(pk=self.user_id)
        return list(named.order_by("email"))

    @property
    def fallback_at(self) -> datetime:
        """The time from which people with GATEWAYS_MANAGE are notified, too.

        If there are approvers who can decide, only they are notified before this time.
        """
        return self.created_at + FALLBACK_AFTER

    def may_be_decided_by(self, person: User) -> bool:
        """True if `person` has GATEWAYS_MANAGE, or is an active approver. False for the person who asked.

        With an API key, approvers also need GATEWAYS_MANAGE, and the key must have this capability.
        """
        if person.pk == self.user_id:
            return False
        if person.has_perm(Capability.GATEWAYS_MANAGE):
            return True
        return person.narrowed_to is None and self.gateway.approvers.filter(pk=person.pk, is_active=True).exists()

    def approve(self, *, days: int | None = None, answer: str = "", by: User) -> None:
        """Approve the request, and give the requested access for `days` days from now.

        If `days` is None, the access lasts the requested number of days. If the person has a grant for this access that
        ends earlier, the grant is extended. Raises RequestRefused.
        """
        with transaction.atomic():
            row = self._locked_for(by)
            days = days or row.days
            gateway: Gateway = row.gateway.lock()
            if not row.user.is_active:
                raise RequestRefused("This person is inactive.")
            if gateway.archived_at or (row.tool_set and row.tool_set.archived_at):
                raise RequestRefused("The gateway or tool set of this request no longer exists. Decline the request.")
            _refuse_too_long(gateway, days)
            self._give(row, gateway, timezone.now() + timedelta(days=days), by)
            row.days = days
            self._close(row, RequestState.APPROVED, Action.ACCESS_REQUEST_APPROVED, answer, by)

    def _give(self, row: "AccessRequest", gateway: Gateway, ends_at: datetime, by: User) -> None:
        """Give the person access to the request's gateway and tool set until `ends_at`.

        Create or extend only the grants that are necessary for this access.
        """
        terms: dict[str, Any] = {"ends_at": ends_at, "request": row, "by": by}
        reaches, until = reached_until(gateway, row.user)
        if not reaches or (until and until < ends_at):
            GatewayGrant.objects.give(gateway, row.user, **terms)
        if row.tool_set:
            present = ToolGrant.objects.live().filter(tool_set=row.tool_set, user=row.user)
            if not present.filter(Q(ends_at=None) | Q(ends_at__gte=ends_at)).exists():
                ToolGrant.objects.give(row.tool_set, user=row.user, **terms)

    def decline(self, *, answer: str = "", by: User) -> None:
        """Decline the request. Raises RequestRefused."""
        with transaction.atomic():
            self._close(self._locked_for(by), RequestState.DECLINED, Action.ACCESS_REQUEST_DECLINED, answer, by)

    def withdraw(self, *, by: Actor) -> None:
        """Withdraw the request. Raises RequestRefused if it is decided already, or if another person made it.

        `by` may also be a directory. A directory that deletes a person withdraws the person's open requests.
        """
        with transaction.atomic():
            row = self._locked_open()
            if isinstance(by, User) and by.pk != row.user_id:
                raise NotYoursToDecide("Only the person who made the request can withdraw it.")
            self._close(row, RequestState.WITHDRAWN, Action.ACCESS_REQUEST_WITHDRAWN, "", by)

    def _locked_open(self) -> "AccessRequest":
        row: AccessRequest = self.lock()
        if not row.is_open:
            raise AlreadyDecided(AlreadyDecided.__doc__)
        return row

    def _locked_for(self, by: User) -> "AccessRequest":
        row = self._locked_open()
        if not row.may_be_decided_by(by):
            raise NotYoursToDecide(
                "You cannot decide on your own request." if by.pk == row.user_id else NotYoursToDecide.__doc__
            )
        return row

    def _close(self, row: "AccessRequest", state: RequestState, action: Action, answer: str, by: Actor) -> None:
        row.decided_by = by if isinstance(by, User) else None
        row.state, row.decided_at, row.answer = state, timezone.now(), answer.strip()
        row.save(update_fields=["state", "decided_by", "decided_at", "answer", "days"])
        Event.objects.record(action, row, by=by, changes=row.described())
        self.refresh_from_db()

    def end_access(self, *, by: User) -> int:
        """End the grants made for this request, and return their number. Raises NotYoursToDecide."""
        if not self.may_be_decided_by(by) and by.pk != self.user_id:
            raise NotYoursToDecide(NotYoursToDecide.__doc__)
        with transaction.atomic():
            return sum(grant.end(by=by) for grant in self.live_grants)

    @property
    def live_grants(self) -> list[Any]:
        """The grants made for this request that have not ended yet."""
        return [*GatewayGrant.objects.live().filter(request=self), *ToolGrant.objects.live().filter(request=self)]
