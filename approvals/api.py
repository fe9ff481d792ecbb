"""/api/holds and /api/allowances: held calls, the decisions on them, and permissions to repeat an approved call."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar
from uuid import UUID

from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from approvals.arguments import shown_to
from approvals.models import (
    LONGEST_NAME,
    LONGEST_SENTENCE,
    SEES_ALL,
    Allowance,
    AllowanceQuerySet,
    AllowFor,
    BadAllowance,
    Hold,
    HoldDecided,
    HoldQuerySet,
    HoldState,
    NotYourDecision,
)
from approvals.views import allowance_or_404, hold_or_404
from capabilities import NOBODY, Capability
from capabilities.rest import Own
from rules.models import Approvers
from ui.operations import ListQuery, RequestBody, operation
from ui.rest import Id, Problem, Resource, UtcDateTimeField

SEEN = Own(SEES_ALL)
OWN = Own(Capability.APPROVALS_DECIDE)
PROBLEMS: Mapping[type[Exception], Problem] = {
    HoldDecided: Problem(HTTPStatus.CONFLICT, "already_decided"),
    BadAllowance: Problem(HTTPStatus.BAD_REQUEST, "invalid", "names"),
    NotYourDecision: Problem(HTTPStatus.FORBIDDEN, "not_yours"),
}


class HoldSerializer(serializers.Serializer[Hold]):
    """A tool call that a rule holds."""

    id = Id()
    tool = serializers.CharField(help_text="Name by which clients call the tool.")
    server = serializers.CharField(source="server.slug", help_text="Slug of its server.")
    gateway = serializers.CharField(source="connection.gateway.slug", help_text="Slug of the gateway.")
    connection_id = serializers.UUIDField(help_text="Connection of the call.")
    agent = serializers.CharField(source="connection.host.name", help_text="Name of the app or agent.")
    email = serializers.EmailField(source="user.email", help_text="Address of the person the agent acts for.")
    rule_id = serializers.UUIDField(help_text="Rule that holds the call.")
    rule = serializers.CharField(source="rule_name", help_text="Name of the rule at the time of the hold.")
    rule_revision = serializers.IntegerField(source="rule_version", help_text="Revision of the rule.")
    state = serializers.ChoiceField(HoldState.choices, source="current_state", help_text="State of the held call.")
    arguments: Any = serializers.SerializerMethodField(
        help_text="Arguments as JSON text, without recognisable secrets, shortened above 64 KiB; null if you may not "
        "see their values, or if they cannot be decrypted."
    )
    argument_names = serializers.SerializerMethodField(
        help_text="Paths of the arguments, 100 at most; empty if you may not see them."
    )
    approvers = serializers.ChoiceField(Approvers.choices, help_text="Who decides first.")
    team = serializers.CharField(
        source="team.name",
        default=None,
        allow_null=True,
        help_text="Team that decides first; null if the approvers are not a team, or if the team was deleted.",
    )
    somebody_else = serializers.BooleanField(help_text="If true, people cannot decide on calls of their own agents.")
    asked_at = UtcDateTimeField(help_text="When the call was made.")
    fallback_at = UtcDateTimeField(help_text="From this time on, everybody with `approvals:decide` may decide.")
    ends_at = UtcDateTimeField(
        help_text="Before a decision: when the time to decide ends. After a decision: when the decision stops applying."
    )
    decided_by = serializers.EmailField(
        source="decided_by.email",
        default=None,
        allow_null=True,
        help_text="Address of the person who decided; null if nobody has decided.",
    )
    decided_at = UtcDateTimeField(allow_null=True, help_text="When it was decided; null if nobody has decided.")
    sentence = serializers.CharField(help_text="Sentence about the decision; may be empty.")
    used_at = UtcDateTimeField(allow_null=True, help_text="When the approval was used; null if it was not.")
    asking_call = serializers.UUIDField(help_text="Log id of the held call.")
    run_call = serializers.UUIDField(allow_null=True, help_text="Log id of the call that ran; null if none ran.")

    def to_representation(self, instance: Hold) -> Any:
        self._shown = shown_to(self.context["request"].user, instance)
        return super().to_representation(instance)

    def get_arguments(self, hold: Hold) -> str | None:
        return self._shown.text or None

    def get_argument_names(self, hold: Hold) -> list[str]:
        return [line.path for line in self._shown.lines]


class HoldQuery(ListQuery):
    """Filters of held calls."""

    q = serializers.CharField(
        required=False, help_text="Text contained in the name of the tool, agent or rule, or in the person's address."
    )
    show = serializers.ChoiceField(
        ["decide", "waiting", "decided", "own"],
        required=False,
        help_text="`decide`: calls that wait for your decision; `waiting`: calls that wait for anybody's; `decided`: "
        "calls that no longer wait; `own`: calls of your agents.",
    )


class DenyBody(RequestBody):
    """The decision to deny."""

    sentence = serializers.CharField(
        max_length=LONGEST_SENTENCE,
        required=False,
        allow_blank=True,
        help_text="Your reason, one sentence. If the call is denied, the agent gets this sentence. If the call is "
        "approved, only people see it.",
    )


class ApproveHoldBody(DenyBody):
    """The decision to approve."""

    allow = serializers.ChoiceField(
        [choice for choice in AllowFor.values if choice],
        required=False,
        help_text="Let the agent call the tool again without asking: `hour` for one hour, `today` until midnight in "
        "the time zone of the workspace.",
    )
    names = serializers.ListField(
        child=serializers.CharField(max_length=LONGEST_NAME),
        required=False,
        max_length=100,
        help_text="With `allow`: names of the arguments whose values must be the same as in this call. If the list is "
        "empty, any arguments are allowed.",
    )


class HoldResource(Resource):
    """Held calls that you may see: those of your agents, those on which you may decide, or all."""

    serializer_class = HoldSerializer
    problems = PROBLEMS

    @operation(needs=SEEN, query=HoldQuery, orderings=("asked_at",))
    def list(self, request: Request) -> Response:
        """List held calls."""
        asked, rows = self.query_data, Hold.objects.visible_to(self.me)
        rows = _SHOWN[asked["show"]](rows, self.me) if "show" in asked else rows
        rows = rows.matching(asked.get("q", "")).order_by("-asked_at", "pk")
        return self.page(rows, lambda page: page.with_details(self.me))

    @operation(needs=SEEN)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get a held call."""
        return self.answer(hold_or_404(self.me, pk))

    @action(detail=True, methods=["post"])
    @operation(needs=OWN, body=ApproveHoldBody, conflicts=True)
    def approve(self, request: Request, pk: UUID) -> Response:
        """Approve a held call, so that it can run once before the returned `ends_at`."""
        hold_or_404(self.me, pk).approve(**self.body(), by=self.me)
        return self.answer(hold_or_404(self.me, pk))

    @action(detail=True, methods=["post"])
    @operation(needs=OWN, body=DenyBody, conflicts=True)
    def deny(self, request: Request, pk: UUID) -> Response:
        """Deny a held call."""
        hold_or_404(self.me, pk).deny(**self.body(), by=self.me)
        return self.answer(hold_or_404(self.me, pk))

    @action(detail=True, methods=["post"])
    @operation(needs=Own(NOBODY, by_key=Capability.APPROVALS_DECIDE), conflicts=True)
    def withdraw(self, request: Request, pk: UUID) -> Response:
        """Withdraw a held call of your own agent."""
        hold_or_404(self.me, pk).withdraw(by=self.me)
        return self.answer(hold_or_404(self.me, pk))


_SHOWN: dict[str, Any] = {
    "decide": HoldQuerySet.to_decide,
    "waiting": lambda rows, viewer: rows.waiting(),
    "decided": lambda rows, viewer: rows.decided(),
    "own": lambda rows, viewer: rows.filter(user=viewer),
}


class AllowanceSerializer(serializers.Serializer[Allowance]):
    """A permission for an agent to repeat an approved call without asking."""

    id = Id()
    hold_id = serializers.UUIDField(help_text="Held call whose approval gave the permission.")
    tool = serializers.CharField(help_text="Name by which clients call the tool.")
    gateway = serializers.CharField(source="connection.gateway.slug", help_text="Slug of the gateway.")
    connection_id = serializers.UUIDField(help_text="Connection that may repeat the call.")
    agent = serializers.CharField(source="connection.host.name", help_text="Name of the app or agent.")
    names = serializers.ListField(
        child=serializers.CharField(),
        help_text="Arguments that must have the values of the approved call; if empty, any arguments are allowed.",
    )
    calls = serializers.IntegerField(help_text="Number of calls that used the permission so far.")
    given_by = serializers.EmailField(
        source="given_by.email", help_text="E-mail address of the person who gave the permission."
    )
    given_at = UtcDateTimeField(help_text="When it was given.")
    ends_at = UtcDateTimeField(help_text="When it ends.")
    ended_at = UtcDateTimeField(allow_null=True, help_text="When somebody ended it; null if nobody did.")


class AllowanceResource(Resource):
    """Temporary permissions to repeat approved calls. The list has the permissions in force that you may see."""

    serializer_class = AllowanceSerializer
    problems: ClassVar[Mapping[type[Exception], Problem]] = PROBLEMS

    @operation(needs=SEEN, query=ListQuery, orderings=("ends_at",))
    def list(self, request: Request) -> Response:
        """List the temporary permissions in force."""
        rows = Allowance.objects.visible_to(self.me).live().order_by("ends_at", "pk")
        return self.page(rows, AllowanceQuerySet.with_details)

    @operation(needs=SEEN)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get a temporary permission."""
        return self.answer(allowance_or_404(self.me, pk))

    @action(detail=True, methods=["post"])
    @operation(needs=OWN, conflicts=True)
    def end(self, request: Request, pk: UUID) -> Response:
        """End a temporary permission, with effect from the next call."""
        allowance_or_404(self.me, pk).end(by=self.me)
        return self.answer(allowance_or_404(self.me, pk))
