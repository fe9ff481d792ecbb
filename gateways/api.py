"""/api/gateways."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar
from uuid import UUID

from django.db import IntegrityError
from django.db.models.functions import Lower
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.models import Team
from capabilities import Capability
from capabilities.catalogue import SEES_GATEWAYS
from capabilities.rest import Own
from gateways.forms import GatewayForm, NameForm, ReachForm
from gateways.models import Assignment, Gateway, GatewayQuerySet, OnArrival, OnChange, Reach, ServerStillEnabled
from gateways.views import counted, gateway_or_404
from servers.views import server_or_404 as find_server
from ui.forms import Limit
from ui.operations import ListQuery, RequestBody, operation
from ui.rest import Id, Problem, Reference, Resource, UtcDateTimeField, already_exists, checked

NAME_TAKEN = "A gateway with this name or slug already exists."
WITHIN_REACH = Own(SEES_GATEWAYS)


class GatewayReference(Reference):
    """A gateway, by id, name and slug, with its address for clients."""

    slug = serializers.CharField(help_text="Name in addresses; never changes.")
    url = serializers.CharField(help_text="Address for clients.")


class GatewaySerializer(serializers.Serializer[Gateway]):
    """A gateway."""

    id = Id()
    name = serializers.CharField(help_text="Name on the pages.")
    slug = serializers.CharField(help_text="Name in addresses; never changes.")
    url = serializers.CharField(help_text="Address for clients.")
    description = serializers.CharField(help_text="Text for people.")
    enabled = serializers.BooleanField(help_text="Whether it is enabled.")
    reach = serializers.CharField(help_text="`everyone` or `teams`: who may use it.")
    teams = Reference(many=True, help_text="Teams that may use it.")
    calls_per_minute = Limit()
    new_definitions = serializers.CharField(help_text="`approve` or `wait`: what happens with a new definition.")
    changed_definitions = serializers.CharField(
        help_text="`hold`, `warn` or `accept`: what happens with a changed one."
    )
    servers_count = serializers.IntegerField(source="server_count", help_text="Number of its servers.")
    tools_count = serializers.IntegerField(source="tool_count", help_text="Number of its tools.")
    connections_count = serializers.IntegerField(source="connection_count", help_text="Live connections you may see.")
    created_by = serializers.EmailField(
        source="created_by.email",
        default=None,
        allow_null=True,
        help_text="E-mail address of its creator; null for the system.",
    )
    created_at = UtcDateTimeField(help_text="When it was created.")
    updated_at = UtcDateTimeField(help_text="When it was last changed.")


class GatewayQuery(ListQuery):
    """How a list of gateways is narrowed."""

    q = serializers.CharField(required=False, help_text="Text contained in the name or slug.")
    enabled = serializers.BooleanField(required=False, help_text="Only enabled gateways, or only disabled ones.")
    reach = serializers.ChoiceField(Reach.choices, required=False, help_text="Only gateways with this reach.")


# The serializer alone checks these.
WITHOUT_FORM = ("calls_per_minute", "new_definitions", "changed_definitions")


class GatewayChanges(RequestBody):
    """What may change of a gateway; its slug and so its URL never do."""

    name = serializers.CharField(max_length=80)
    description = serializers.CharField(max_length=1000, allow_blank=True)
    reach = serializers.ChoiceField(Reach.choices)
    team_ids = serializers.ListField(
        child=serializers.UUIDField(), help_text="Teams that may use the gateway, for `reach` `teams`."
    )
    calls_per_minute = Limit()
    new_definitions = serializers.ChoiceField(OnArrival.choices)
    changed_definitions = serializers.ChoiceField(OnChange.choices)

    def validate_team_ids(self, pks: list[UUID]) -> list[UUID]:
        missing = set(pks) - set(Team.objects.filter(pk__in=pks).values_list("pk", flat=True))
        if missing:
            raise ValidationError([f"There is no team {pk}." for pk in sorted(missing)])
        return pks


class NewGateway(GatewayChanges):
    """A gateway to create; the default slug is made from its name."""

    slug = serializers.CharField(max_length=40, allow_blank=True, default="")
    description = serializers.CharField(max_length=1000, allow_blank=True, default="")
    reach = serializers.ChoiceField(Reach.choices, default=Reach.EVERYONE)
    team_ids = serializers.ListField(
        child=serializers.UUIDField(), default=list, help_text="Teams that may use the gateway, for `reach` `teams`."
    )
    calls_per_minute = Limit(default=None)
    new_definitions = serializers.ChoiceField(OnArrival.choices, default=OnArrival.APPROVE)
    changed_definitions = serializers.ChoiceField(OnChange.choices, default=OnChange.HOLD)


class GatewayResource(Resource):
    """Gateways: MCP endpoints with access control."""

    serializer_class = GatewaySerializer
    versioned = True
    lookup_url_kwarg = "slug"
    lookup_value_converter = "slug"

    @operation(needs=WITHIN_REACH, query=GatewayQuery, orderings=("name", "created_at"))
    def list(self, request: Request) -> Response:
        """List gateways."""
        rows = Gateway.objects.visible_to(self.me).order_by(Lower("name"), "pk")
        rows = rows.filter(**{name: value for name, value in self.query_data.items() if name in ("enabled", "reach")})
        rows = rows.matching(self.query_data.get("q", ""))
        return self.page(rows, self._detailed)

    @operation(needs=WITHIN_REACH)
    def retrieve(self, request: Request, slug: str) -> Response:
        """Get a gateway."""
        return self.answer(gateway_or_404(self.me, slug))

    @operation(needs=Capability.GATEWAYS_MANAGE, body=NewGateway, conflicts=True, makes=True)
    def create(self, request: Request) -> Response:
        """Create a gateway."""
        body = self.body()
        unformed = {name: body.pop(name) for name in WITHOUT_FORM}
        if _named(body["name"]).exists() or Gateway.objects.filter(slug=body["slug"]).exists():
            raise already_exists(NAME_TAKEN)
        fields = checked(GatewayForm({**body, "teams": body["team_ids"]}), teams="team_ids")
        try:
            gateway = Gateway.objects.add(**fields, **unformed, by=self.me)
        except IntegrityError:
            raise already_exists(NAME_TAKEN) from None
        return self._now(gateway, HTTPStatus.CREATED)

    @operation(needs=Capability.GATEWAYS_MANAGE, body=GatewayChanges, conflicts=True, if_match=True)
    def partial_update(self, request: Request, slug: str) -> Response:
        """Change a gateway."""
        gateway = gateway_or_404(self.me, slug)
        changes = self.body()
        if "name" in changes and _named(changes["name"]).exclude(pk=gateway.pk).exists():
            raise already_exists(NAME_TAKEN)
        fields = {name: value for name, value in changes.items() if name in WITHOUT_FORM}
        if {"name", "description"} & set(changes):
            current = {"name": gateway.name, "description": gateway.description}
            fields |= checked(NameForm({**current, **changes}, gateway=gateway))
        if {"reach", "team_ids"} & set(changes):
            teams = changes.get("team_ids", [team.pk for team in gateway.teams.all()])
            fields |= checked(ReachForm({"reach": gateway.reach, **changes, "teams": teams}), teams="team_ids")
        try:
            gateway.edit(**fields, by=self.me, seen=self.seen)
        except IntegrityError:
            raise already_exists(NAME_TAKEN) from None
        return self._now(gateway)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.GATEWAYS_TOGGLE, if_match=True)
    def disable(self, request: Request, slug: str) -> Response:
        """Disable a gateway."""
        gateway = gateway_or_404(self.me, slug)
        with self.unchanged(gateway):
            gateway.disable(by=self.me)
        return self._now(gateway)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.GATEWAYS_TOGGLE, if_match=True)
    def enable(self, request: Request, slug: str) -> Response:
        """Enable a gateway."""
        gateway = gateway_or_404(self.me, slug)
        with self.unchanged(gateway):
            gateway.enable(by=self.me)
        return self._now(gateway)

    def _detailed(self, rows: GatewayQuerySet) -> GatewayQuerySet:
        return counted(rows.select_related("created_by").prefetch_related("teams"), self.me)

    def _now(self, gateway: Any, status: int = HTTPStatus.OK) -> Response:
        """The gateway as it is now."""
        return self.answer(gateway_or_404(self.me, gateway.slug), status)


def _named(name: str) -> Any:
    return Gateway.objects.live().filter(name__iexact=name.strip())


class ServerArchive(Resource):
    """Archive a server for good. It is removed from all gateways."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        ServerStillEnabled: Problem(HTTPStatus.CONFLICT, "still_enabled"),
    }

    @operation(needs=Capability.SERVERS_MANAGE, answer=HTTPStatus.NO_CONTENT, if_match=True)
    def archive(self, request: Request, slug: str) -> Response:
        """Archive a server."""
        server = find_server(slug)
        with self.unchanged(server):
            Assignment.objects.archive_server(server, by=self.me)
        return Response(status=HTTPStatus.NO_CONTENT)
