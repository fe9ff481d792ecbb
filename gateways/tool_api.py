"""/api/gateways/{slug}/tools: the tools of a gateway and their switches."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db.models import Q
from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from capabilities import Capability
from gateways.api import WITHIN_REACH
from gateways.models import Tool, ToolQuerySet
from gateways.refresh import Refreshed, refresh
from gateways.views import find as find_gateway
from servers.api import ServerReference
from servers.discovery import Discovered
from ui.operations import Body, ListQuery, operation
from ui.rest import Moment, Resource


class ToolSerializer(serializers.Serializer[Tool]):
    """A tool as its server last defined it."""

    id = serializers.UUIDField()
    name = serializers.CharField()
    exposed_name = serializers.CharField()
    title = serializers.CharField()
    description = serializers.CharField()
    server = ServerReference(source="assignment.server")
    alias = serializers.CharField(source="assignment.alias")
    enabled = serializers.BooleanField()
    tool_policy = serializers.CharField(source="assignment.tool_policy")
    input_schema = serializers.JSONField()
    annotations = serializers.JSONField()
    first_seen_at = Moment()
    last_seen_at = Moment()
    changed_at = Moment(allow_null=True)
    missing_since = Moment(allow_null=True)


class RefreshedSerializer(serializers.Serializer[Any]):
    """How a refresh went with one server."""

    alias = serializers.CharField(allow_blank=True)
    server = ServerReference()
    ok = serializers.BooleanField()
    tools = serializers.IntegerField(allow_null=True)
    detail = serializers.CharField()


class RefreshSerializer(serializers.Serializer[Any]):
    """How many tools the gateway has now, and how its servers answered."""

    tools_count = serializers.IntegerField()
    servers = RefreshedSerializer(many=True)


class ToolQuery(ListQuery):
    """How a list of tools is narrowed."""

    q = serializers.CharField(required=False)
    enabled = serializers.BooleanField(required=False)
    server = serializers.CharField(required=False)


class ToolChanges(Body):
    """The switch of a tool."""

    enabled = serializers.BooleanField()


class ToolResource(Resource):
    """The tools of one gateway."""

    serializer_class = ToolSerializer
    versioned = True

    @operation(needs=WITHIN_REACH, query=ToolQuery, orderings=("exposed_name", "first_seen_at", "last_seen_at"))
    def list(self, request: Request, slug: str) -> Response:
        tools = self._tools(slug)
        if "enabled" in self.query_data:
            tools = tools.filter(enabled=self.query_data["enabled"])
        if server := self.query_data.get("server"):
            tools = tools.filter(Q(assignment__server__slug=server) | Q(assignment__alias=server))
        tools = tools.matching(self.query_data.get("q", ""))
        return self.page(tools, lambda tools: tools.select_related("assignment__server"))

    @operation(needs=WITHIN_REACH)
    def retrieve(self, request: Request, slug: str, pk: UUID) -> Response:
        return self.answer(get_object_or_404(self._tools(slug), pk=pk))

    @operation(needs=Capability.GATEWAYS_MANAGE, body=ToolChanges, if_match=True)
    def partial_update(self, request: Request, slug: str, pk: UUID) -> Response:
        tool = get_object_or_404(self._tools(slug), pk=pk)
        enabled = self.body().get("enabled")
        with self.unchanged(tool):
            match enabled:
                case True:
                    tool.enable(by=self.me)
                case False:
                    tool.disable(by=self.me)
        return self.answer(tool)

    @operation(needs=Capability.GATEWAYS_MANAGE, answer=RefreshSerializer, if_match=True)
    def refresh(self, request: Request, slug: str) -> Response:
        """*Refresh tools*: ask every enabled server now; one that does not answer keeps its rows."""
        gateway = find_gateway(self.me, slug)
        with self.unchanged(gateway):
            pass  # Its servers are asked without a lock.
        servers = [serialize_refresh(row) for row in refresh(gateway, by=self.me)]
        return Response({"tools_count": find_gateway(self.me, slug).tool_count, "servers": servers})

    def _tools(self, slug: str) -> ToolQuerySet:
        gateway = find_gateway(self.me, slug)
        tools = Tool.objects.filter(assignment__gateway=gateway.pk, assignment__removed_at=None)
        return tools.select_related("assignment__server").order_by("exposed_name", "pk")


def serialize_refresh(row: Refreshed) -> dict[str, object]:
    """How a refresh went with one server."""
    discovered = row.outcome if isinstance(row.outcome, Discovered) else None
    return {
        "alias": row.assignment.alias,
        "server": ServerReference(row.assignment.server).data,
        "ok": discovered is not None,
        "tools": len(discovered.tools) if discovered else None,
        "detail": str(discovered) if discovered else row.failure,
    }
