"""/api/rules: rules on tool calls."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar
from uuid import UUID

from django.db.models import Q
from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.models import Team
from capabilities import Capability
from connections.subjects import by_gateway
from gateways.models import Gateway
from proxy.access.expressions import MOST_CHARACTERS
from rules.models import (
    LONGEST_HOLD,
    LONGEST_TEXT,
    USUAL_HOLD,
    Approvers,
    BadCondition,
    NeedsPayloads,
    NeedsTeam,
    NeedsText,
    NobodyDecides,
    Rule,
    RuleEffect,
    RuleMode,
    RuleNameTaken,
    ToolEffect,
    TooManyRules,
)
from servers.models import Server
from ui.operations import ListQuery, RequestBody, operation
from ui.rest import Id, Problem, Resource, UtcDateTimeField

SOMEBODY_ELSE = "If true, people cannot decide on calls that agents make for them."
TOOLS_HELP = "Names of tools as clients see them, with `*` (any text) and `?` (any character); empty means all."


class NamedTeam(serializers.SlugRelatedField[Team]):
    """A team, by name. A name with NUL is refused, because PostgreSQL cannot compare it."""

    def to_internal_value(self, data: Any) -> Team:
        if "\x00" in str(data):
            self.fail("does_not_exist", slug_name=self.slug_field, value=data)
        return super().to_internal_value(data)


class RuleSerializer(serializers.Serializer[Rule]):
    """A rule on tool calls."""

    id = Id()
    name = serializers.CharField(help_text="Name, unique in the workspace.")
    gateway = serializers.CharField(
        source="gateway.slug", default=None, allow_null=True, help_text="Slug of its gateway; null for all gateways."
    )
    servers = serializers.SerializerMethodField(help_text="Slugs of the servers; empty means all.")
    tools = serializers.ListField(child=serializers.CharField(), help_text=TOOLS_HELP)
    tool_effect = serializers.ChoiceField(ToolEffect.choices, help_text="Only tools of this effect; empty means any.")
    when = serializers.CharField(help_text="Condition in CEL; empty means every call.")
    effect = serializers.ChoiceField(RuleEffect.choices, help_text="What the rule does with a call.")
    text = serializers.CharField(help_text="For `refuse`, the sentence for the agent; for `label`, the label.")
    mode = serializers.ChoiceField(
        RuleMode.choices, help_text="`watch` only labels calls with what the rule would have done; `on` acts."
    )
    enabled = serializers.BooleanField(help_text="Whether the rule is enabled.")
    note = serializers.CharField(help_text="Note for administrators.")
    approvers = serializers.ChoiceField(Approvers.choices, help_text="Who decides first on held calls.")
    approver_team = serializers.CharField(
        source="approver_team.name",
        default=None,
        allow_null=True,
        help_text="Team that decides first; null if the approvers are not a team, or if the team was deleted.",
    )
    somebody_else = serializers.BooleanField(help_text=SOMEBODY_ELSE)
    hold_minutes = serializers.IntegerField(help_text="Minutes for which a held call waits for a decision.")
    position = serializers.IntegerField(help_text="Place in the order of rules.")
    revision = serializers.IntegerField(
        help_text="Increases when any field but `name`, `text`, `mode`, `enabled`, `note` or `position` changes."
    )
    created_at = UtcDateTimeField(help_text="When it was created.")

    def get_servers(self, rule: Rule) -> list[str]:
        return sorted(server.slug for server in rule.servers.all())


class RuleChanges(RequestBody):
    """The changeable fields of a rule."""

    name = serializers.CharField(max_length=80)
    servers = serializers.ListField(
        child=serializers.SlugField(), max_length=200, help_text="Slugs of servers; empty means all."
    )
    tools = serializers.ListField(child=serializers.CharField(max_length=200), max_length=100, help_text=TOOLS_HELP)
    tool_effect = serializers.ChoiceField(ToolEffect.choices)
    when = serializers.CharField(max_length=MOST_CHARACTERS, allow_blank=True, help_text="Condition in CEL.")
    effect = serializers.ChoiceField(RuleEffect.choices)
    text = serializers.CharField(max_length=LONGEST_TEXT, allow_blank=True)
    mode = serializers.ChoiceField(RuleMode.choices)
    note = serializers.CharField(max_length=500, allow_blank=True)
    approvers = serializers.ChoiceField(Approvers.choices, help_text="Who decides first on held calls.")
    approver_team = NamedTeam(
        slug_field="name",
        queryset=Team.objects.all(),
        allow_null=True,
        help_text="Team that decides first; null if the approvers are not a team.",
    )
    somebody_else = serializers.BooleanField(help_text=SOMEBODY_ELSE)
    hold_minutes = serializers.IntegerField(min_value=1, max_value=LONGEST_HOLD)


class NewRule(RuleChanges):
    """A rule to create."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "servers": [],
        "tools": [],
        "tool_effect": "",
        "when": "",
        "text": "",
        "mode": RuleMode.WATCH,
        "note": "",
        "approvers": Approvers.ANYBODY,
        "approver_team": None,
        "somebody_else": False,
        "hold_minutes": USUAL_HOLD,
    }
    gateway = serializers.SlugField(
        default=None, allow_null=True, help_text="Slug of its gateway; null for all gateways."
    )


class RuleQuery(ListQuery):
    """Filters of the list of rules."""

    q = serializers.CharField(required=False, help_text="Text contained in name, condition or note.")
    gateway = by_gateway(
        help_text="Id, slug or name of a gateway: only the rules of this gateway and the rules for all gateways."
    )
    enabled = serializers.BooleanField(required=False, help_text="Only enabled rules, or only disabled ones.")


class RulePlace(RequestBody):
    """The new place of a rule in the order of all rules."""

    position = serializers.IntegerField(min_value=1, help_text="Place in the order of all rules, from 1.")


class RuleResource(Resource):
    """Rules on tool calls, in the order in which they apply. Changes apply from the next call on."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        BadCondition: Problem(HTTPStatus.BAD_REQUEST, "invalid", "when"),
        NeedsPayloads: Problem(HTTPStatus.BAD_REQUEST, "invalid", "when"),
        NeedsTeam: Problem(HTTPStatus.BAD_REQUEST, "invalid", "approver_team"),
        NeedsText: Problem(HTTPStatus.BAD_REQUEST, "invalid", "text"),
        NobodyDecides: Problem(HTTPStatus.BAD_REQUEST, "invalid", "somebody_else"),
        RuleNameTaken: Problem(HTTPStatus.CONFLICT, "already_exists"),
        TooManyRules: Problem(HTTPStatus.CONFLICT, "too_many"),
    }
    serializer_class = RuleSerializer
    versioned = True
    queryset = Rule.objects.select_related("gateway").prefetch_related("servers")

    @operation(needs=Capability.RULES_READ, query=RuleQuery, orderings=("name", "position", "created_at"))
    def list(self, request: Request) -> Response:
        """List rules."""
        asked = self.query_data
        rules = self.queryset.matching(asked.get("q", ""))
        if "gateway" in asked:
            rules = rules.filter(Q(gateway=None) | Q(gateway__in=asked["gateway"]))
        if "enabled" in asked:
            rules = rules.filter(enabled=asked["enabled"])
        return self.page(rules)

    @operation(needs=Capability.RULES_READ)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get a rule."""
        return self._now(pk)

    @operation(needs=Capability.RULES_MANAGE, body=NewRule, makes=True)
    def create(self, request: Request) -> Response:
        """Create a rule, at the end of the order."""
        return self._now(Rule.objects.add(**_found(self.body(), Approvers.ANYBODY), by=self.me).pk, HTTPStatus.CREATED)

    @operation(needs=Capability.RULES_MANAGE, body=RuleChanges, if_match=True)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Change a rule."""
        rule = get_object_or_404(Rule, pk=pk)
        rule.edit(**_found(self.body(), rule.approvers), by=self.me, seen=self.seen)
        return self._now(pk)

    @operation(needs=Capability.RULES_MANAGE, answer=HTTPStatus.NO_CONTENT, if_match=True)
    def destroy(self, request: Request, pk: UUID) -> Response:
        """Remove a rule."""
        get_object_or_404(Rule, pk=pk).remove(by=self.me, seen=self.seen)
        return Response(status=HTTPStatus.NO_CONTENT)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.RULES_MANAGE, if_match=True)
    def disable(self, request: Request, pk: UUID) -> Response:
        """Disable a rule."""
        rule = get_object_or_404(Rule, pk=pk)
        return self.changed(rule, rule.disable)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.RULES_MANAGE, if_match=True)
    def enable(self, request: Request, pk: UUID) -> Response:
        """Enable a rule."""
        rule = get_object_or_404(Rule, pk=pk)
        return self.changed(rule, rule.enable)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.RULES_MANAGE, body=RulePlace, if_match=True)
    def move(self, request: Request, pk: UUID) -> Response:
        """Move a rule to another place in the order."""
        rule = get_object_or_404(Rule, pk=pk)
        return self.changed(rule, rule.move, to=self.body()["position"])

    def _now(self, pk: UUID, status: int = HTTPStatus.OK) -> Response:
        """Return a response with the rule, read again from the database."""
        return self.answer(get_object_or_404(self.queryset.all(), pk=pk), status)


def _found(body: dict[str, Any], approvers: str) -> dict[str, Any]:
    """Return `body` with the gateway and the servers instead of their slugs.

    Raises ValidationError if a slug is unknown, or if `body` has an approver team but the approvers are not a team.
    The argument `approvers` is used if `body` has no `approvers`.
    """
    if body.get("approver_team") and body.get("approvers", approvers) != Approvers.TEAM:
        raise serializers.ValidationError({"approver_team": ["Set `approver_team` only if `approvers` is `team`."]})
    if body.get("gateway"):
        body["gateway"] = _gateway(body["gateway"])
    if "servers" in body:
        servers = list(Server.objects.live().filter(slug__in=body["servers"]))
        if unknown := {*body["servers"]} - {server.slug for server in servers}:
            raise serializers.ValidationError({"servers": [f"There is no server {', '.join(sorted(unknown))}."]})
        body["servers"] = servers
    return body


def _gateway(slug: str) -> Gateway:
    gateway = Gateway.objects.live().filter(slug=slug).first()
    if gateway is None:
        raise serializers.ValidationError({"gateway": [f"There is no gateway {slug}."]})
    return gateway
