"""/api/gateways/{slug}/tool-sets and /grants: sets of tools, and the grants that give sets to people."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar
from uuid import UUID

from django import forms
from django.db import transaction
from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api import PROBLEMS as PEOPLE_PROBLEMS
from accounts.models import Team, User
from capabilities import Capability
from connections.tool_sets import MOST_NAMES, features_named, sets_at, with_holders
from gateways.models import STATED_EFFECTS, AlreadyGiven, BadEnd, Gateway, GatewayError, StillInUse, ToolGrant, ToolSet
from gateways.views import gateway_or_404
from ui.operations import ListQuery, RequestBody, operation
from ui.rest import Id, Problem, Reference, Resource, UtcDateTimeField

EVERYONE, TEAM, PERSON = "everyone", "team", "person"


class ToolSetSerializer(serializers.Serializer[ToolSet]):
    """A set of tools, prompts and resources of a gateway."""

    id = Id()
    name = serializers.CharField(help_text="Name, unique on the gateway.")
    patterns = serializers.ListField(
        child=serializers.CharField(), help_text="Patterns of exposed names: `*` is any text, `?` any character."
    )
    effects = serializers.ListField(
        child=serializers.CharField(),
        help_text="`patterns` match only tools with one of these effects. If `patterns` is empty, all tools with one "
        "of these effects match. If `effects` is empty, the effect does not matter.",
    )
    members = serializers.SerializerMethodField(
        help_text="Exposed names of the tools, prompts and resources that were chosen one by one."
    )
    tools_count = serializers.IntegerField(
        source="feature_count", help_text="Number of tools, prompts and resources in the set now."
    )
    created_at = UtcDateTimeField(help_text="When the set was created.")

    def get_members(self, tool_set: ToolSet) -> list[str]:
        return sorted(feature.exposed_name for feature in tool_set.members.all())


class ToolSetQuery(ListQuery):
    """Filters of the tool sets of a gateway."""

    q = serializers.CharField(required=False, help_text="Text contained in the name.")


class ToolSetBody(RequestBody):
    """A tool set to create or change. If `patterns` and `effects` are empty, the tool set contains only `members`."""

    name = serializers.CharField(max_length=80)
    patterns = serializers.ListField(child=serializers.CharField(max_length=200), default=list, max_length=100)
    effects = serializers.ListField(child=serializers.ChoiceField(STATED_EFFECTS), default=list)
    members = serializers.ListField(
        child=serializers.CharField(), default=list, max_length=MOST_NAMES, help_text="Exposed names."
    )


class GatewayToolSets(Resource):
    """The tool sets of a gateway.

    A grant gives a set to people, and a limit restricts an app or agent to a set. A new tool that matches the patterns
    and effects of a set belongs to the set at once.
    """

    serializer_class = ToolSetSerializer
    versioned = True
    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        **PEOPLE_PROBLEMS,
        StillInUse: Problem(HTTPStatus.CONFLICT, "still_in_use"),
    }

    @operation(needs=Capability.GATEWAYS_READ, query=ToolSetQuery, orderings=("name", "created_at"))
    def list(self, request: Request, slug: str) -> Response:
        """List the tool sets of a gateway."""
        rows = sets_at(gateway_or_404(self.me, slug)).matching(self.query_data.get("q", ""))
        return self.page(rows, _detailed)

    @operation(needs=Capability.GATEWAYS_READ)
    def retrieve(self, request: Request, slug: str, pk: UUID) -> Response:
        """Get a tool set of a gateway."""
        return self.answer(self._find(slug, pk))

    @operation(needs=Capability.GATEWAYS_MANAGE, body=ToolSetBody, makes=True)
    def create(self, request: Request, slug: str) -> Response:
        """Create a tool set."""
        gateway, body = gateway_or_404(self.me, slug), self.body()
        body["members"] = _members(gateway, body["members"])
        return self.current(ToolSet.objects.add(gateway=gateway, **body, by=self.me), HTTPStatus.CREATED)

    @operation(needs=Capability.GATEWAYS_MANAGE, body=ToolSetBody, if_match=True)
    def partial_update(self, request: Request, slug: str, pk: UUID) -> Response:
        """Change a tool set."""
        row, body = self._find(slug, pk), self.body()
        if "members" in body:
            body["members"] = _members(row.gateway, body["members"], row)
        with transaction.atomic():
            now: ToolSet = row.lock()  # Omitted fields keep their values as they are now, under the lock.
            kept = {"name": now.name, "patterns": now.patterns, "effects": now.effects, "members": [*now.members.all()]}
            row.edit(**kept | body, by=self.me, seen=self.seen)
        return self.current(row)

    @operation(needs=Capability.GATEWAYS_MANAGE, answer=HTTPStatus.NO_CONTENT, if_match=True)
    def destroy(self, request: Request, slug: str, pk: UUID) -> Response:
        """Archive a tool set that has no grant and limits no app or agent."""
        row = self._find(slug, pk)
        return self.removed(row, row.archive)

    def current(self, row: Any, status: int = HTTPStatus.OK) -> Response:
        return self.answer(_detailed(ToolSet.objects.filter(pk=row.pk)).get(), status)

    def _find(self, slug: str, pk: UUID) -> ToolSet:
        tool_set: ToolSet = get_object_or_404(_detailed(sets_at(gateway_or_404(self.me, slug))), pk=pk)
        return tool_set


def _detailed(rows: Any) -> Any:
    return with_holders(rows).prefetch_related("members")


def _members(gateway: Gateway, names: list[str], tool_set: ToolSet | None = None) -> list[Any]:
    """Return the features with these exposed names.

    Members of `tool_set` are found even if servers no longer offer them. Raises ValidationError for an unknown name,
    or for too many names.
    """
    try:
        return features_named(gateway, names, tool_set)
    except forms.ValidationError as error:
        raise ValidationError({"members": error.messages}) from None


class ToolGrantSerializer(serializers.Serializer[ToolGrant]):
    """A grant of a tool set to everybody, a team or a person."""

    id = Id()
    tool_set = Reference(help_text="The set.")
    to = serializers.SerializerMethodField(help_text="`everyone`, `team` or `person`.")
    team = Reference(
        allow_null=True, help_text="The team; null if the recipient is not a team, or if the team was deleted."
    )
    team_name = serializers.CharField(
        help_text="Name that the team had when the grant ended. Empty if the grant has not ended, or is not for a team."
    )
    email = serializers.EmailField(
        source="user.email", allow_null=True, help_text="E-mail address of the person; null for other recipients."
    )
    given_by = serializers.EmailField(
        source="given_by.email", help_text="E-mail address of the person who granted the set."
    )
    given_at = UtcDateTimeField(help_text="When the set was given.")
    ends_at = UtcDateTimeField(allow_null=True, help_text="When the grant ends by itself; null if no end is set.")
    ended_at = UtcDateTimeField(allow_null=True, help_text="When the grant ended; null while it is in force.")

    def get_to(self, grant: ToolGrant) -> str:
        return EVERYONE if grant.everyone else PERSON if grant.user_id else TEAM


class ToolGrantQuery(ListQuery):
    """Filters of the grants of a gateway."""

    ended = serializers.BooleanField(
        required=False, help_text="True returns ended grants. False, the default, returns the grants in force."
    )


class ToolGrantBody(RequestBody):
    """A tool set to give to a team or a person. If the body names no team and no person, everybody gets the set."""

    tool_set_id = serializers.UUIDField(help_text="The set.")
    team_id = serializers.UUIDField(required=False, allow_null=True, help_text="The team.")
    user_id = serializers.UUIDField(required=False, allow_null=True, help_text="The person.")
    ends_at = serializers.DateTimeField(
        required=False,
        allow_null=True,
        help_text="When the grant ends by itself. If null or missing, the grant lasts until somebody ends it.",
    )


class GatewayGrants(Resource):
    """The grants of a gateway: each gives a tool set to everybody, a team or a person."""

    serializer_class = ToolGrantSerializer
    versioned = True
    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        AlreadyGiven: Problem(HTTPStatus.CONFLICT, "already_given"),
        BadEnd: Problem(HTTPStatus.BAD_REQUEST, "invalid", "ends_at"),
        GatewayError: Problem(HTTPStatus.CONFLICT, "archived"),
    }

    @operation(needs=Capability.GATEWAYS_READ, query=ToolGrantQuery, orderings=("given_at",))
    def list(self, request: Request, slug: str) -> Response:
        """List the grants of a gateway."""
        rows = ToolGrant.objects.filter(gateway=gateway_or_404(self.me, slug).pk)
        live = ToolGrant.objects.live()
        rows = rows.exclude(pk__in=live.values("pk")) if self.query_data.get("ended") else rows & live
        rows = rows.order_by("given_at", "pk")
        return self.page(rows, _loaded)

    @operation(needs=Capability.GATEWAYS_READ)
    def retrieve(self, request: Request, slug: str, pk: UUID) -> Response:
        """Get a grant of a gateway."""
        return self.answer(self._find(slug, pk))

    @operation(needs=Capability.GATEWAYS_MANAGE, body=ToolGrantBody, conflicts=True, makes=True)
    def create(self, request: Request, slug: str) -> Response:
        """Give a tool set to everybody, a team or a person."""
        gateway, body = gateway_or_404(self.me, slug), self.body()
        tool_set = _named(sets_at(gateway).select_related("gateway"), body, "tool_set_id")
        subject = {
            "team": _named(Team.objects.all(), body, "team_id"),
            "user": _named(User.objects.all(), body, "user_id"),
        }
        if None not in subject.values():
            raise ValidationError({"user_id": ["Give only one of team_id and user_id."]})
        grant = ToolGrant.objects.give(tool_set, **subject, ends_at=body.get("ends_at"), by=self.me)
        return self.current(grant, HTTPStatus.CREATED)

    @operation(needs=Capability.GATEWAYS_MANAGE, answer=HTTPStatus.NO_CONTENT, if_match=True)
    def destroy(self, request: Request, slug: str, pk: UUID) -> Response:
        """End a grant."""
        grant = self._find(slug, pk)
        return self.removed(grant, grant.end)

    def current(self, row: Any, status: int = HTTPStatus.OK) -> Response:
        return self.answer(_loaded(ToolGrant.objects.filter(pk=row.pk)).get(), status)

    def _find(self, slug: str, pk: UUID) -> ToolGrant:
        rows = _loaded(ToolGrant.objects.filter(gateway=gateway_or_404(self.me, slug).pk))
        grant: ToolGrant = get_object_or_404(rows, pk=pk)
        return grant


def _loaded(rows: Any) -> Any:
    return rows.select_related("tool_set", "gateway", "team", "user", "given_by")


def _named(rows: Any, body: Mapping[str, Any], field: str) -> Any:
    """Return the row whose id is in `field` of the body; None if this field is missing or empty.

    Raises ValidationError if there is no row with this id.
    """
    pk = body.get(field)
    found = rows.filter(pk=pk).first() if pk else None
    if pk and found is None:
        raise ValidationError({field: ["There is no object with this id."]})
    return found
