"""REST resources: gateways, their servers, the gateways of a shared identity, and the archiving of a server."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar
from uuid import UUID

from django.db.models import Q
from django.db.models.functions import Lower
from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.models import Team
from capabilities import Capability
from capabilities.rest import Own
from gateways.access_forms import MOST_DAYS, TakesRequestsForm
from gateways.feature_refresh import first_list
from gateways.forms import AssignmentForm, GatewayForm, NameForm, ReachForm
from gateways.models import (
    AliasRequired,
    Assignment,
    Gateway,
    GatewayQuerySet,
    HostsAllowed,
    IdentityGateways,
    IdentityScheme,
    OnArrival,
    OnChange,
    Reach,
    ServerStillEnabled,
    ToolPolicy,
    ToolsGiven,
    WrongIdentity,
    allow_identity,
)
from gateways.usage import used_tools
from gateways.views import counted, counted_assignments, gateway_or_404, shared_identity_or_404
from servers.api import ServerReference
from servers.models import Server
from servers.views import server_or_404
from ui.forms import Limit, named
from ui.operations import Afterwards, ListQuery, RequestBody, operation
from ui.rest import CreatedBy, Id, Problem, Reference, Resource, UtcDateTimeField, already_exists, checked, matching

NAME_TAKEN = "A gateway with this name or slug already exists."
WITHIN_REACH = Own(Capability.GATEWAYS_READ)


TAKES_REQUESTS = "Whether everybody sees it in the catalogue and may request access."
APPROVERS = "E-mail addresses of the people who decide on requests; if empty, people with `gateways:manage` decide."
REQUEST_FIELDS = ("takes_requests", "request_days", "most_request_days", "approvers")


class GatewayReference(Reference):
    """A gateway, by id, name and slug, with its address for clients."""

    slug = serializers.CharField(help_text="Name in URLs; never changes.")
    url = serializers.CharField(help_text="Address for clients.")


class GatewaySerializer(serializers.Serializer[Gateway]):
    """A gateway."""

    id = Id()
    name = serializers.CharField(help_text="Name that pages show.")
    slug = serializers.CharField(help_text="Name in URLs; never changes.")
    url = serializers.CharField(help_text="Address for clients.")
    description = serializers.CharField(help_text="Text for people.")
    enabled = serializers.BooleanField(help_text="Whether it is enabled.")
    reach = serializers.CharField(help_text="`everyone` or `teams`: who may use it.")
    teams = Reference(many=True, help_text="Teams that may use it.")
    hosts_allowed = serializers.CharField(
        help_text="Apps and agents that may use it: `all` except blocked ones, or only `listed` ones."
    )
    tools_given = serializers.CharField(
        help_text="`all`, or `granted`: whether people can use all its tools, or only those given to them."
    )
    takes_requests = serializers.BooleanField(help_text=TAKES_REQUESTS)
    request_days = serializers.IntegerField(help_text="Default for the number of days in an access request.")
    most_request_days = serializers.IntegerField(help_text="Most days for which people can request access.")
    approvers = serializers.ListField(source="editable.approvers", child=serializers.EmailField(), help_text=APPROVERS)
    calls_per_minute = Limit()
    new_definitions = serializers.CharField(help_text="`approve` or `wait`: what happens with a new definition.")
    changed_definitions = serializers.CharField(
        help_text="`hold`, `warn` or `accept`: what happens with a changed definition."
    )
    servers_count = serializers.IntegerField(source="server_count", help_text="Number of its servers.")
    tools_count = serializers.IntegerField(source="tool_count", help_text="Number of its tools.")
    connections_count = serializers.IntegerField(
        source="connection_count",
        help_text="Number of the gateway's live connections. Connections that you may not see are not counted.",
    )
    created_by = CreatedBy()
    created_at = UtcDateTimeField(help_text="When it was created.")
    updated_at = UtcDateTimeField(help_text="When it was last changed.")


class GatewayQuery(ListQuery):
    """Filters of the list of gateways."""

    q = serializers.CharField(required=False, help_text="Text contained in the name or slug.")
    enabled = serializers.BooleanField(required=False, help_text="Only enabled gateways, or only disabled ones.")
    reach = serializers.ChoiceField(
        Reach.choices, required=False, help_text="Only gateways that everyone may use, or only those for some teams."
    )


# Fields that the forms used here do not have; only the serializer validates them.
WITHOUT_FORM = ("hosts_allowed", "tools_given", "calls_per_minute", "new_definitions", "changed_definitions")


class GatewayChanges(RequestBody):
    """The changeable fields of a gateway; its slug and URL never change."""

    name = serializers.CharField(max_length=80)
    description = serializers.CharField(max_length=1000, allow_blank=True)
    reach = serializers.ChoiceField(Reach.choices)
    team_ids = serializers.ListField(
        child=serializers.UUIDField(), help_text="Teams that may use the gateway if `reach` is `teams`."
    )
    hosts_allowed = serializers.ChoiceField(
        HostsAllowed.choices,
        help_text="Apps and agents that may use the gateway. If `listed`, an app or agent needs an entry with "
        "`allowed` true in the gateway's `/hosts`.",
    )
    tools_given = serializers.ChoiceField(
        ToolsGiven.choices, help_text="Whether people can use all tools of the gateway, or only tools given to them."
    )
    takes_requests = serializers.BooleanField(help_text=TAKES_REQUESTS)
    request_days = serializers.IntegerField(min_value=1, max_value=MOST_DAYS)
    most_request_days = serializers.IntegerField(min_value=1, max_value=MOST_DAYS)
    approvers = serializers.ListField(child=serializers.EmailField(), help_text=APPROVERS)
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
    defaults: ClassVar[Mapping[str, Any]] = {
        "description": "",
        "reach": Reach.EVERYONE,
        "team_ids": list,
        "hosts_allowed": HostsAllowed.ALL,
        "tools_given": ToolsGiven.ALL,
        "takes_requests": False,
        "request_days": 30,
        "most_request_days": 90,
        "approvers": list,
        "calls_per_minute": None,
        "new_definitions": OnArrival.APPROVE,
        "changed_definitions": OnChange.HOLD,
    }


class GatewayResource(Resource):
    """Gateways: MCP endpoints with access control."""

    serializer_class = GatewaySerializer
    versioned = True
    taken = NAME_TAKEN
    lookup_url_kwarg = "slug"
    lookup_value_converter = "slug"

    @operation(needs=WITHIN_REACH, query=GatewayQuery, orderings=("name", "created_at"))
    def list(self, request: Request) -> Response:
        """List gateways."""
        rows = Gateway.objects.visible_to(self.me).order_by(Lower("name"), "pk")
        rows = matching(rows, self.query_data, enabled="enabled", reach="reach")
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
        unformed |= checked(TakesRequestsForm(_asked({name: body.pop(name) for name in REQUEST_FIELDS})))
        if _named(body["name"]).exists() or Gateway.objects.filter(slug=body["slug"]).exists():
            raise already_exists(NAME_TAKEN)
        fields = checked(GatewayForm({**body, "teams": body["team_ids"]}), teams="team_ids")
        return self.current(Gateway.objects.add(**fields, **unformed, by=self.me), HTTPStatus.CREATED)

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
        if {*REQUEST_FIELDS} & set(changes):
            # The stored approvers are not checked again: one of them may have been deactivated.
            current = gateway.editable() | {"approvers": []}
            changed = {name: changes.get(name, current[name]) for name in REQUEST_FIELDS}
            values = checked(TakesRequestsForm(_asked(changed)))
            fields |= {name: value for name, value in values.items() if name in changes}
        gateway.edit(**fields, by=self.me, seen=self.seen)
        return self.current(gateway)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.GATEWAYS_TOGGLE, if_match=True)
    def disable(self, request: Request, slug: str) -> Response:
        """Disable a gateway."""
        gateway = gateway_or_404(self.me, slug)
        return self.changed(gateway, gateway.disable)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.GATEWAYS_TOGGLE, if_match=True)
    def enable(self, request: Request, slug: str) -> Response:
        """Enable a gateway."""
        gateway = gateway_or_404(self.me, slug)
        return self.changed(gateway, gateway.enable)

    def _detailed(self, rows: GatewayQuerySet) -> GatewayQuerySet:
        return counted(rows.select_related("created_by").prefetch_related("teams", "approvers"), self.me)

    def current(self, row: Any, status: int = HTTPStatus.OK) -> Response:
        return self.answer(gateway_or_404(self.me, row.slug), status)


def _asked(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` as TakesRequestsForm expects them: the approvers are one text, with one approver per line."""
    return values | {"approvers": "\n".join(values["approvers"])}


def _named(name: str) -> Any:
    return Gateway.objects.live().filter(named(name))


class ServerArchive(Resource):
    """Archive a server for good, and remove it from all gateways."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        ServerStillEnabled: Problem(HTTPStatus.CONFLICT, "still_enabled"),
    }

    @operation(needs=Capability.SERVERS_MANAGE, answer=HTTPStatus.NO_CONTENT, if_match=True)
    def archive(self, request: Request, slug: str) -> Response:
        """Archive a server."""
        server = server_or_404(slug)
        return self.removed(server, Assignment.objects.archive_server, server)


# /api/gateways/{slug}/servers: the servers assigned to a gateway.

ALIAS_TAKEN = "Another server of this gateway has this alias."
CALLED = {"server": "server_id", "shared_identity": "shared_identity_id", "bare": "alias"}


class SharedIdentity(serializers.Serializer[Any]):
    """The shared identity that everyone uses."""

    id = Id()
    name = serializers.CharField(source="label", help_text="Label of the credential.")


class AssignmentSerializer(serializers.Serializer[Assignment]):
    """A server assigned to a gateway."""

    id = Id()
    alias = serializers.CharField(help_text="Prefix of the server's tool names, before `__`; empty if none.")
    server = ServerReference()
    identity_scheme = serializers.CharField(
        help_text="Credential that calls use: `none`, a `shared` one, or each person's own (`per_user`)."
    )
    shared_identity = SharedIdentity(allow_null=True, help_text="Shared credential that everyone uses; null if none.")
    tool_policy = serializers.CharField(help_text="`allow_all`, `selected` or `block_all`: which tools may be called.")
    enabled = serializers.BooleanField(help_text="Whether the server is enabled on this gateway.")
    server_enabled = serializers.BooleanField(
        source="server.enabled", help_text="Whether the server itself is enabled. If not, no gateway can use it."
    )
    health = serializers.CharField(
        source="server.health", help_text="Result of the last contact with the server: `ok`, `down` or `unknown`."
    )
    tools_count = serializers.IntegerField(source="tool_count", help_text="Number of the server's tools.")
    tools_allowed = serializers.IntegerField(
        source="callable_count", help_text="Number of the server's tools that clients can call on this gateway."
    )
    created_at = UtcDateTimeField(help_text="When the server was assigned to the gateway.")


class AssignmentChanges(RequestBody):
    """The settings of a server on a gateway.

    If the alias is empty, the server's tools keep their own names. The alias can be made empty only while the gateway
    has no other server. Servers that are added to the gateway later need an alias.
    """

    alias = serializers.CharField(max_length=16, allow_blank=True, required=False)
    identity_scheme = serializers.ChoiceField(IdentityScheme.choices, required=False)
    shared_identity_id = serializers.UUIDField(
        allow_null=True,
        required=False,
        help_text="Shared credential that everyone uses. Needed if `identity_scheme` is `shared`.",
    )
    tool_policy = serializers.ChoiceField(ToolPolicy.choices, required=False)


class NewAssignment(AssignmentChanges):
    """A server to assign to a gateway; the default alias is the server's slug."""

    server_id = serializers.UUIDField(help_text="Server to assign.")

    def validate_server_id(self, pk: UUID) -> Server:
        server = Server.objects.live().filter(pk=pk).first()
        if server is None:
            raise ValidationError("There is no such server.")
        return server


class AssignmentResource(Resource):
    """The servers of one gateway, addressed by alias, or by id if they have no alias."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        WrongIdentity: Problem(HTTPStatus.BAD_REQUEST, "invalid", "shared_identity_id"),
        AliasRequired: Problem(HTTPStatus.BAD_REQUEST, "invalid", "alias"),
    }
    taken = ALIAS_TAKEN
    serializer_class = AssignmentSerializer
    versioned = True

    @operation(needs=WITHIN_REACH, query=ListQuery, orderings=("alias", "created_at"))
    def list(self, request: Request, slug: str) -> Response:
        """List the servers of a gateway."""
        return self.page(gateway_or_404(self.me, slug).assignments.live().order_by("alias", "pk"), counted_assignments)

    @operation(needs=WITHIN_REACH)
    def retrieve(self, request: Request, slug: str, alias: str) -> Response:
        """Get a server of a gateway."""
        return self.answer(self._find(slug, alias))

    @operation(needs=Capability.GATEWAYS_MANAGE, body=NewAssignment, conflicts=True, makes=True)
    def create(self, request: Request, slug: str) -> Response:
        """Assign a server to a gateway."""
        gateway = gateway_or_404(self.me, slug)
        body = self.body()
        server = body["server_id"]
        policy = body.pop("tool_policy", ToolPolicy.ALLOW_ALL)
        _must_be_free(gateway, body.get("alias", server.slug))
        scheme = IdentityScheme.PER_USER if server.needs_credential else IdentityScheme.NONE
        data = {"server": server.slug, "identity_scheme": scheme, **_as_form(body)}
        fields = checked(AssignmentForm(data, gateway=gateway, server=server), **CALLED)
        assignment = Assignment.objects.assign(gateway=gateway, tool_policy=policy, by=self.me, **fields)

        def listed() -> Response:
            first_list(assignment, by=self.me)
            return self.current(assignment, HTTPStatus.CREATED)

        return Afterwards(lambda: self.current(assignment, HTTPStatus.CREATED), listed)

    @operation(needs=Capability.GATEWAYS_MANAGE, body=AssignmentChanges, conflicts=True, if_match=True)
    def partial_update(self, request: Request, slug: str, alias: str) -> Response:
        """Change a server at a gateway."""
        assignment = self._find(slug, alias)
        changes = self.body()
        if changes.get("alias"):
            _must_be_free(assignment.gateway, changes["alias"], assignment)
        fields = {name: value for name, value in changes.items() if name == "tool_policy"}
        if set(changes) - set(fields):
            current: dict[str, Any] = {
                "gateway": assignment.gateway,
                "server": assignment.server,
                "assignment": assignment,
            }
            start = AssignmentForm(**current).initial
            fields |= checked(AssignmentForm({**start, **_as_form(changes)}, **current), **CALLED)
        assignment.edit(**fields, by=self.me, seen=self.seen)
        return self.current(assignment)

    @operation(needs=Capability.GATEWAYS_MANAGE, answer=HTTPStatus.NO_CONTENT, if_match=True)
    def destroy(self, request: Request, slug: str, alias: str) -> Response:
        """Remove a server from a gateway."""
        assignment = self._find(slug, alias)
        return self.removed(assignment, assignment.remove)

    @operation(needs=Capability.GATEWAYS_TOGGLE, if_match=True)
    def disable(self, request: Request, slug: str, alias: str) -> Response:
        """Disable a server at a gateway."""
        assignment = self._find(slug, alias)
        return self.changed(assignment, assignment.disable)

    @operation(needs=Capability.GATEWAYS_TOGGLE, if_match=True)
    def enable(self, request: Request, slug: str, alias: str) -> Response:
        """Enable a server at a gateway."""
        assignment = self._find(slug, alias)
        return self.changed(assignment, assignment.enable)

    @operation(needs=frozenset({Capability.GATEWAYS_MANAGE, Capability.LOGS_READ}), if_match=True)
    def narrow(self, request: Request, slug: str, alias: str) -> Response:
        """Disable the unused tools of a server.

        A tool is unused if it was not called in the last 30 days; denied calls do not count. The policy `allow_all`
        becomes `selected`, so that tools that the server adds later start disabled.
        """
        assignment = self._find(slug, alias)
        return self.changed(assignment, partial(assignment.narrow, used_tools(assignment)))

    @operation(needs=Capability.GATEWAYS_MANAGE, if_match=True)
    def widen(self, request: Request, slug: str, alias: str) -> Response:
        """Enable the tools that the last `narrow` disabled."""
        assignment = self._find(slug, alias)
        return self.changed(assignment, assignment.widen)

    def _find(self, slug: str, alias: str) -> Assignment:
        return get_object_or_404(
            counted_assignments(gateway_or_404(self.me, slug).assignments.all()), matching_reference(alias)
        )

    def current(self, row: Any, status: int = HTTPStatus.OK) -> Response:
        return self.answer(counted_assignments(Assignment.objects.all()).get(pk=row.pk), status)


def matching_reference(alias: str) -> Q:
    """Match assignments by the alias or id in a URL."""
    try:
        return Q(pk=UUID(alias))  # Not an alias: aliases are shorter.
    except ValueError:
        return Q(pk=None) if "\0" in alias else Q(alias=alias)


def _must_be_free(gateway: Gateway, alias: str, excluded: Assignment | None = None) -> None:
    """Raise 409 if another live server of `gateway` has this alias."""
    others = gateway.assignments.live()
    others = others.exclude(pk=excluded.pk) if excluded else others
    if alias and others.filter(alias=alias).exists():
        raise already_exists(ALIAS_TAKEN)


def _as_form(body: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a request body to the fields of the page's form."""
    data = {name: body[name] for name in ("alias", "identity_scheme") if name in body}
    if "alias" in body:
        data["bare"] = not body["alias"]
    if "shared_identity_id" in body:
        data["shared_identity"] = body["shared_identity_id"]
    return data


# /api/identities/{id}/gateways: the gateways that may use a shared identity.


class IdentityGatewaysSerializer(serializers.Serializer[Any]):
    """The gateways that may use a shared identity."""

    gateways = Reference(many=True, source="live", help_text="Gateways that may use it.")


class IdentityGatewaysBody(RequestBody):
    """The gateways that may use a shared identity."""

    gateway_ids = serializers.ListField(
        child=serializers.UUIDField(),
        help_text="All gateways that may use the identity. Gateways that are not in the list may not use it.",
    )

    def validate_gateway_ids(self, pks: list[UUID]) -> list[Gateway]:
        gateways = list(Gateway.objects.live().filter(pk__in=pks))
        if missing := set(pks) - {gateway.pk for gateway in gateways}:
            raise ValidationError([f"There is no gateway {pk}." for pk in sorted(missing)])
        return gateways


class IdentityPlaces(Resource):
    """The gateways that may use a shared identity. A removal takes effect on the next request."""

    serializer_class = IdentityGatewaysSerializer
    versioned = True

    @operation(needs=Capability.IDENTITIES_READ)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get the gateways of a shared identity."""
        return self.answer(IdentityGateways(shared_identity_or_404(pk)))

    @operation(needs=Capability.IDENTITIES_MANAGE, body=IdentityGatewaysBody, if_match=True)
    def update(self, request: Request, pk: UUID) -> Response:
        """Replace the gateways of a shared identity."""
        identity = shared_identity_or_404(pk)
        allow_identity(identity, self.body()["gateway_ids"], by=self.me, seen=self.seen)
        return self.answer(IdentityGateways(identity))
