"""/api/hosts: apps and agents."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models.functions import Lower
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from capabilities import Capability
from hosts.forms import STATUSES
from hosts.models import AgentNameTaken, Host, HostKind, NotPending
from hosts.views import counted, host_or_404
from ui.operations import ListQuery, RequestBody, operation
from ui.rest import CreatedBy, Id, Problem, Resource, UtcDateTimeField, matching

PROBLEMS: Mapping[type[Exception], Problem] = {
    AgentNameTaken: Problem(HTTPStatus.CONFLICT, "already_exists"),
    NotPending: Problem(HTTPStatus.CONFLICT, "not_pending"),
}


class HostSerializer(serializers.Serializer[Host]):
    """An app or agent."""

    id = Id()
    kind = serializers.CharField(help_text="`headed` (app that signs in by OAuth) or `token` (agent with tokens).")
    name = serializers.CharField(help_text="Name that pages show.")
    description = serializers.CharField(help_text="Text for people.")
    enabled = serializers.BooleanField(help_text="Whether it is enabled.")
    status = serializers.CharField(help_text="`enabled`, `disabled` or `pending` (waits for approval).")
    approved = serializers.SerializerMethodField(help_text="False while an app waits for approval, otherwise true.")
    allow_enrolment = serializers.BooleanField(
        help_text="Whether everyone may create their own tokens for this agent, even without `api-tokens:create`."
    )
    connections_count = serializers.IntegerField(
        source="connection_count", help_text="Number of live connections you may see."
    )
    users_count = serializers.IntegerField(
        source="user_count", help_text="Number of people who have the connections in `connections_count`."
    )
    created_by = CreatedBy()
    created_at = UtcDateTimeField(help_text="When it was created.")
    first_seen_at = UtcDateTimeField(allow_null=True, help_text="When it was first seen; null if never.")
    last_seen_at = UtcDateTimeField(allow_null=True, help_text="When it was last seen; null if never.")

    def get_approved(self, host: Host) -> bool:
        return not host.is_pending


class HostQuery(ListQuery):
    """Filters of the list of hosts."""

    kind = serializers.ChoiceField(
        HostKind.choices, required=False, help_text="Only apps (`headed`), or only agents (`token`)."
    )
    enabled = serializers.BooleanField(required=False, help_text="true: only enabled rows; false: only disabled rows.")
    status = serializers.ChoiceField(list(STATUSES), required=False, help_text="Only hosts with this status.")
    q = serializers.CharField(required=False, help_text="Text contained in the name.")


class NewHost(RequestBody):
    """An agent to create. Apps are added when they first connect."""

    name = serializers.CharField(max_length=120)
    description = serializers.CharField(max_length=500, allow_blank=True, default="")
    allow_enrolment = serializers.BooleanField(default=False)


class HostChanges(RequestBody):
    """The changeable fields of a host."""

    name = serializers.CharField(max_length=120)
    description = serializers.CharField(max_length=500, allow_blank=True)
    allow_enrolment = serializers.BooleanField()


class HostResource(Resource):
    """Apps and agents."""

    problems = PROBLEMS
    serializer_class = HostSerializer
    versioned = True

    @operation(
        needs=Capability.HOSTS_READ, query=HostQuery, orderings=("name", "created_at", "first_seen_at", "last_seen_at")
    )
    def list(self, request: Request) -> Response:
        """List apps and agents."""
        hosts = Host.objects.live().order_by(Lower("name"), "pk")
        hosts = matching(hosts, self.query_data, kind="kind", enabled="enabled")
        if "status" in self.query_data:
            hosts = hosts.filter(STATUSES[self.query_data["status"]])
        hosts = hosts.matching(self.query_data.get("q", ""))
        return self.page(hosts, lambda hosts: counted(hosts.select_related("created_by"), self.me))

    @operation(needs=Capability.HOSTS_READ)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get an app or agent."""
        return self.answer(host_or_404(self.me, pk))

    @operation(needs=(Capability.API_TOKENS_MANAGE, Capability.API_TOKENS_CREATE), body=NewHost, makes=True)
    def create(self, request: Request) -> Response:
        """Create an agent."""
        return self.current(Host.objects.add_agent(**self.body(), by=self.me), HTTPStatus.CREATED)

    @operation(needs=Capability.API_TOKENS_MANAGE, body=HostChanges, if_match=True)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Change an app or agent."""
        host = host_or_404(self.me, pk)
        changes = self.body()
        allow = changes.pop("allow_enrolment", None)
        if allow and not host.is_agent:
            raise ValidationError({"allow_enrolment": ["Only agents can allow enrolment; this is an app."]})
        with transaction.atomic():
            row = host.lock()
            row.must_be(self.seen)
            if changes:
                host.rename(**{"name": row.name, "description": row.description} | changes, by=self.me)
            if allow is not None:
                host.set_enrolment(allow, by=self.me)
        return self.current(host)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.HOSTS_TOGGLE, if_match=True)
    def disable(self, request: Request, pk: UUID) -> Response:
        """Disable an app or agent."""
        host = host_or_404(self.me, pk)
        return self.changed(host, host.disable)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.HOSTS_TOGGLE, if_match=True)
    def enable(self, request: Request, pk: UUID) -> Response:
        """Enable an app or agent."""
        host = host_or_404(self.me, pk)
        return self.changed(host, host.enable)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.HOSTS_TOGGLE, if_match=True)
    def approve(self, request: Request, pk: UUID) -> Response:
        """Approve an app."""
        host = host_or_404(self.me, pk)
        return self.changed(host, host.approve)

    def current(self, row: Any, status: int = HTTPStatus.OK) -> Response:
        return self.answer(host_or_404(self.me, row.pk), status)
