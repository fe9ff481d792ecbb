"""The API of connections: /api/connections, and the connections, apps and agents of one gateway.

The API also sets the identities of a connection, archives hosts and gateways, and cuts people off.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar
from uuid import UUID

from django.db import transaction
from django.db.models import F
from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api import PROBLEMS as PEOPLE_PROBLEMS
from accounts.models import User
from capabilities import NOBODY, Capability
from capabilities.rest import Own, capabilities_in
from connections.carried_identities import CarriedIdentities, CarriedRow
from connections.models import (
    LONGEST_HOLD_WAIT,
    Connection,
    ConnectionAlreadyRevoked,
    ConnectionQuerySet,
    ConnectionRefused,
    HostAtGateway,
    StillEnabled,
)
from connections.rows import STATUSES, ConnectionFilter, ConnectionRow, visible
from connections.subjects import by_gateway, by_host, by_person
from connections.tool_sets import sets_at
from gateways.api import WITHIN_REACH, GatewayReference
from gateways.models import Assignment, GatewayError
from gateways.views import gateway_or_404 as find_gateway
from hosts.models import Host, HostKind
from hosts.views import host_or_404 as find_host
from servers.api import ServerReference
from servers.models import Identity
from ui.operations import ListQuery, RequestBody, operation
from ui.rest import CauseField, Id, Problem, Reference, Resource, UtcDateTimeField, matching

PROBLEMS: Mapping[type[Exception], Problem] = {
    ConnectionAlreadyRevoked: Problem(HTTPStatus.CONFLICT, "connection_revoked"),
    StillEnabled: Problem(HTTPStatus.CONFLICT, "still_enabled"),
}


ORDERINGS = ("connected_at", "last_token_at", "last_used_at", "revoked_at")


HOLD_WAIT = (
    "Seconds for which a held call keeps its request open. Null means 50 if the client asked for progress "
    "notifications, otherwise 4."
)


class ConnectionSerializer(serializers.Serializer[ConnectionRow]):
    """A connection."""

    id = Id(source="connection.pk")
    client_name = serializers.CharField(source="connection.host.name", help_text="Name of the app or agent.")
    kind = serializers.CharField(
        source="connection.host.kind",
        help_text="`headed` (an app that signs people in by OAuth) or `token` (an agent with tokens).",
    )
    status = serializers.CharField(
        help_text="`active`, `blocked`, `disabled`, `expired` (each token or key has expired, was revoked or waits for "
        "its owner to collect the new secret) or `revoked`."
    )
    enabled = serializers.BooleanField(
        source="connection.enabled",
        help_text="Whether the connection itself is enabled. An enabled connection may be blocked (`blocked_by`).",
    )
    blocked_by = CauseField(
        source="connection.blocked_by",
        help_text="What blocks the connection: `user` (its owner), `host` (the app or agent), `gateway`, or `reach` "
        "(the owner may not use the gateway). Null if nothing blocks the connection.",
    )
    blocked_reason = CauseField(
        source="connection.blocked_reason",
        help_text="Why the connection is blocked, as an error code of the log; null if nothing blocks the connection. "
        "A connection that is only disabled (`enabled` is false) is not blocked.",
    )
    needs_identity = serializers.BooleanField(
        help_text="True if the connection works, but has no usable credential for a server that needs one."
    )
    user_email = serializers.EmailField(source="connection.user.email", help_text="E-mail address of its owner.")
    host = Reference(source="connection.host", help_text="The app or agent.")
    gateway = GatewayReference(source="connection.gateway")
    api_key_prefix = serializers.CharField(source="prefix", help_text="First characters of its newest token or key.")
    connected_at = UtcDateTimeField(source="connection.connected_at", help_text="When it was created.")
    last_token_at = UtcDateTimeField(
        source="connection.last_token_at",
        allow_null=True,
        help_text="Time of the last refresh of an app's access token, or of the last regeneration of an agent's token; "
        "null if there was none.",
    )
    last_used_at = UtcDateTimeField(
        source="connection.last_used_at", allow_null=True, help_text="When it was last used."
    )
    revoked_at = UtcDateTimeField(source="connection.revoked_at", allow_null=True, help_text="When it was revoked.")
    hold_wait = serializers.IntegerField(source="connection.hold_wait", allow_null=True, help_text=HOLD_WAIT)
    tokens_active = serializers.IntegerField(source="active", help_text="Number of its valid tokens or keys.")


class ConnectionChanges(RequestBody):
    """The changeable fields of a connection."""

    hold_wait = serializers.IntegerField(min_value=0, max_value=LONGEST_HOLD_WAIT, allow_null=True, help_text=HOLD_WAIT)


class GatewayConnectionQuery(ListQuery):
    """Filters of the connections of a gateway."""

    host = by_host()
    user = by_person()
    status = serializers.ChoiceField(STATUSES, required=False, help_text="Only connections with this status.")
    kind = serializers.ChoiceField(
        HostKind.choices, required=False, help_text="Only apps (`headed`), or only agents (`token`)."
    )
    q = serializers.CharField(
        required=False,
        help_text="Only connections with this text in the owner's e-mail address, or in the name of the app, agent or "
        "gateway. Also finds the connection of a token or key whose prefix starts with this text.",
    )


class ConnectionQuery(GatewayConnectionQuery):
    """Filters of the list of connections."""

    gateway = by_gateway()


class Connections(Resource):
    """Base of all views of connections."""

    problems = PROBLEMS
    serializer_class = ConnectionSerializer
    versioned = True

    def get_queryset(self) -> ConnectionQuerySet:
        """Return all connections if the caller has a capability to see or change them, otherwise the caller's own."""
        opening = {Capability.MCP_CONNECTIONS_READ} | capabilities_in(self.operation.needs)
        rows = Connection.objects.with_details()
        return rows if any(map(self.me.has_perm, opening)) else rows.own(self.me)

    def serialize(self, thing: Any, *, many: bool = False) -> Any:
        rows = [ConnectionRow(connection, self.me) for connection in thing] if many else ConnectionRow(thing, self.me)
        return super().serialize(rows, many=many)

    def current(self, row: Any, status: int = HTTPStatus.OK) -> Response:
        return self.answer(Connection.objects.with_details().get(pk=row.pk), status)


class ConnectionResource(Connections):
    """Connections of people's apps and agents to gateways."""

    @operation(needs=Own(Capability.MCP_CONNECTIONS_READ), query=ConnectionQuery, orderings=ORDERINGS)
    def list(self, request: Request) -> Response:
        """List connections."""
        return self.page(filter_connections(self.get_queryset(), self.query_data), _detailed)

    @operation(needs=Own(Capability.MCP_CONNECTIONS_READ))
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get a connection."""
        return self.answer(self._find(pk))

    @operation(needs=Own(Capability.CONNECTIONS_TOGGLE), body=ConnectionChanges, if_match=True)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Change a connection's `hold_wait`, the time for which requests of held calls stay open."""
        connection = self._find(pk)
        self.must_own(connection.user_id)
        seconds = self.body().get("hold_wait", connection.hold_wait)
        return self.changed(connection, connection.set_hold_wait, seconds=seconds)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.CONNECTIONS_TOGGLE, if_match=True)
    def disable(self, request: Request, pk: UUID) -> Response:
        """Disable a connection."""
        connection = self._find(pk)
        return self.changed(connection, connection.disable)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.CONNECTIONS_TOGGLE, if_match=True)
    def enable(self, request: Request, pk: UUID) -> Response:
        """Enable a connection."""
        connection = self._find(pk)
        return self.changed(connection, connection.enable)

    @action(detail=True, methods=["post"])
    @operation(needs=Own(Capability.MCP_CONNECTIONS_REVOKE), if_match=True)
    def revoke(self, request: Request, pk: UUID) -> Response:
        """Revoke a connection."""
        connection = self._find(pk)
        self.must_own(connection.user_id)
        return self.changed(connection, connection.revoke)

    @action(detail=True, methods=["delete"], url_path="sessions")
    @operation(needs=Own(Capability.CONNECTIONS_TOGGLE), answer=HTTPStatus.NO_CONTENT, if_match=True)
    def end_sessions(self, request: Request, pk: UUID) -> Response:
        """End the open MCP sessions of a connection."""
        connection = self._find(pk)
        self.must_own(connection.user_id)
        return self.removed(connection, connection.end_sessions)

    def _find(self, pk: UUID) -> Connection:
        return get_object_or_404(self.get_queryset(), pk=pk)


class GatewayConnections(Connections):
    """Connections to one gateway. Callers without the capability to see all connections get only their own."""

    @operation(needs=WITHIN_REACH, query=GatewayConnectionQuery, orderings=ORDERINGS)
    def list(self, request: Request, slug: str) -> Response:
        """List the connections of a gateway."""
        gateway = find_gateway(self.me, slug)
        return self.page(filter_connections(visible(self.me).filter(gateway=gateway.pk), self.query_data), _detailed)


# /api/gateways/{slug}/hosts: the apps and agents that are listed, blocked or limited on a gateway.


class HostAtGatewaySerializer(serializers.Serializer[HostAtGateway]):
    """An app or agent that a gateway lists as allowed, blocks, or limits to a tool set."""

    host = Reference(help_text="The app or agent.")
    allowed = serializers.BooleanField(
        allow_null=True,
        help_text="True if the app or agent is on the gateway's list of allowed ones, false if it is blocked, null if "
        "neither is the case.",
    )
    tool_set = Reference(allow_null=True, help_text="Tool set that limits the app or agent; null if there is none.")
    set_by = serializers.EmailField(
        source="set_by.email", allow_null=True, help_text="E-mail address of the person who made the last change."
    )
    set_at = UtcDateTimeField(help_text="Time of the last change.")


class HostAtGatewayQuery(ListQuery):
    """Filters of the apps and agents of a gateway."""

    allowed = serializers.BooleanField(
        required=False, help_text="Only apps and agents listed as allowed (true), or only blocked ones (false)."
    )
    q = serializers.CharField(required=False, help_text="Text contained in the name.")


class HostAtGatewayBody(RequestBody):
    """The settings of a gateway for one app or agent. Omitted fields are not changed."""

    allowed = serializers.BooleanField(
        required=False, help_text="If true, the app or agent is listed as allowed; if false, it is blocked."
    )
    tool_set_id = serializers.UUIDField(
        required=False,
        allow_null=True,
        help_text="Id of the tool set that limits the app or agent; null lifts the limit.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not attrs:
            raise serializers.ValidationError({"allowed": ["Give `allowed`, `tool_set_id` or both."]})
        return attrs


class GatewayHosts(Resource):
    """The apps and agents that have an entry at a gateway.

    An entry allows or blocks the app or agent, or limits it to a tool set. If no entry
    allows or blocks an app or agent, the gateway's `hosts_allowed` decides.
    """

    serializer_class = HostAtGatewaySerializer
    versioned = True
    problems: ClassVar[Mapping[type[Exception], Problem]] = {GatewayError: Problem(HTTPStatus.CONFLICT, "conflict")}

    @operation(needs=Capability.GATEWAYS_READ, query=HostAtGatewayQuery, orderings=("set_at",))
    def list(self, request: Request, slug: str) -> Response:
        """List the apps and agents that have an entry at a gateway.

        An entry allows or blocks the app or agent, or limits it to a tool set.
        """
        rows = HostAtGateway.objects.live().filter(gateway=find_gateway(self.me, slug).pk)
        if words := self.query_data.get("q"):
            rows = rows.filter(host__in=Host.objects.matching(words).values("pk"))
        rows = matching(rows, self.query_data, allowed="allowed").order_by("host__name", "pk")
        return self.page(rows, lambda rows: rows.select_related("host", "tool_set", "set_by"))

    @operation(needs=Capability.GATEWAYS_READ)
    def retrieve(self, request: Request, slug: str, host: UUID) -> Response:
        """Get the entry of an app or agent at a gateway."""
        return self.answer(self._saved(slug, host))

    @operation(needs=Capability.GATEWAYS_MANAGE, body=HostAtGatewayBody, if_match=True)
    def update(self, request: Request, slug: str, host: UUID) -> Response:
        """Put an app or agent on the list of a gateway, block it, or limit it to a tool set."""
        gateway, body = find_gateway(self.me, slug), self.body()
        row = HostAtGateway.objects.at(gateway, get_object_or_404(Host.objects.live(), pk=host))
        pk = body.get("tool_set_id")
        tool_set = sets_at(gateway).filter(pk=pk).first() if pk else None
        if pk and tool_set is None:
            raise serializers.ValidationError({"tool_set_id": ["There is no such set on this gateway."]})

        def put(*, by: User) -> None:
            with transaction.atomic():  # No call is decided between the two changes.
                if "tool_set_id" in body:
                    row.limit(tool_set, by=by)
                if "allowed" in body:
                    (row.allow if body["allowed"] else row.block)(by=by)

        return self.changed(row, put)

    @operation(needs=Capability.GATEWAYS_MANAGE, answer=HTTPStatus.NO_CONTENT, if_match=True)
    def destroy(self, request: Request, slug: str, host: UUID) -> Response:
        """Remove the decision that allows or blocks an app or agent on a gateway. A limit to a tool set stays."""
        row = self._saved(slug, host)
        return self.removed(row, row.reset)

    def _saved(self, slug: str, host: UUID) -> HostAtGateway:
        rows = HostAtGateway.objects.live().select_related("gateway", "host", "tool_set", "set_by")
        return get_object_or_404(rows, gateway=find_gateway(self.me, slug).pk, host=host)

    def current(self, row: Any, status: int = HTTPStatus.OK) -> Response:
        return self.answer(HostAtGateway.objects.at(row.gateway, row.host), status)


class CutOffSerializer(serializers.Serializer[Any]):
    """The number of revoked connections."""

    connections_revoked = serializers.IntegerField(help_text="Number of revoked connections.")


class Endings(Resource):
    """Operations that archive a host, archive a gateway, or cut a person off.

    Each operation revokes all connections of the host, gateway or person. Archiving cannot be undone.
    """

    problems: ClassVar[Mapping[type[Exception], Problem]] = {**PROBLEMS, **PEOPLE_PROBLEMS}

    @operation(
        needs=frozenset({Capability.HOSTS_TOGGLE, Capability.MCP_CONNECTIONS_REVOKE}),
        answer=HTTPStatus.NO_CONTENT,
        if_match=True,
    )
    def host(self, request: Request, pk: UUID) -> Response:
        """Archive an app or agent."""
        host = find_host(self.me, pk)
        return self.removed(host, Connection.objects.archive_host, host)

    @operation(
        needs=frozenset({Capability.GATEWAYS_MANAGE, Capability.MCP_CONNECTIONS_REVOKE}),
        answer=HTTPStatus.NO_CONTENT,
        if_match=True,
    )
    def gateway(self, request: Request, slug: str) -> Response:
        """Archive a gateway."""
        gateway = find_gateway(self.me, slug)
        return self.removed(gateway, Connection.objects.archive_gateway, gateway)

    @operation(
        needs=frozenset({Capability.PEOPLE_MANAGE, Capability.MCP_CONNECTIONS_REVOKE}),
        answer=CutOffSerializer,
        if_match=True,
    )
    def user(self, request: Request, pk: UUID) -> Response:
        """Cut a person off.

        Deactivates the person. Revokes all their connections and API keys, and the credentials that they got by signing
        in at servers.
        """
        person = get_object_or_404(User, pk=pk)
        with self.unchanged(person):
            revoked = Connection.objects.cut_off(person, by=self.me)
        return Response({"connections_revoked": revoked})


def _detailed(rows: ConnectionQuerySet) -> ConnectionQuerySet:
    return rows.with_details()


def filter_connections(rows: ConnectionQuerySet, query: Mapping[str, Any]) -> ConnectionQuerySet:
    """Return the connections that match the query: live ones (newest first), then revoked ones (last revoked first)."""
    statuses = [query["status"]] if "status" in query else []
    rows = ConnectionFilter({"q": query.get("q", ""), "status": statuses}).narrow(rows)
    rows = matching(rows, query, host="host__in", kind="host__kind", gateway="gateway__in", user="user__in")
    return rows.order_by(F("revoked_at").desc(nulls_first=True), "-connected_at", "pk")


# /api/connections/{id}/identities: the identities that connections use at servers where each person needs their own.

OWN = Own(NOBODY, by_key=Capability.SERVERS_MANAGE)


class CarriedIdentity(serializers.Serializer[Any]):
    """The identity that a connection uses for a server."""

    id = Id()
    label = serializers.CharField(help_text="Label of the credential.")  # type: ignore[assignment]  # DRF takes it out of the class


class CarriedSerializer(serializers.Serializer[CarriedRow]):
    """A server that needs an identity of each person, and the identity that the connection uses at this server."""

    assignment_id = serializers.UUIDField(source="assignment.pk", help_text="Id of the server's assignment.")
    alias = serializers.CharField(
        source="assignment.alias", help_text="Prefix of the server's tool names; empty if none."
    )
    server = ServerReference()
    identity = CarriedIdentity(allow_null=True, help_text="Credential used for the server; null if none.")
    state = serializers.ChoiceField(
        ["active", "missing", "attention", "disabled", "blocked"],
        help_text="`active`, `missing` (there is no credential, or it was revoked), `attention` (its owner has to act; "
        "see `reason`), `disabled` (the credential is disabled) or `blocked` (the server is disabled, "
        "everywhere or on this gateway).",
    )
    reason = serializers.CharField(source="why", help_text="The problem and how to fix it; empty if there is none.")


class CarriedAnswer(serializers.Serializer[Any]):
    """The identities of a connection."""

    identities = CarriedSerializer(many=True, help_text="One entry for each server that needs a credential.")


class IdentityToCarry(RequestBody):
    """An identity of the connection's owner."""

    identity_id = serializers.UUIDField(help_text="Id of one of your own credentials for this server.")


class ConnectionIdentities(Resource):
    """Identities that a connection uses at servers where each person uses their own identity.

    The connection's tokens stay the same when its identities change. Owners need no capability to change the identities
    of their own connections, but an API key needs `servers:manage` to do so.
    """

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        ConnectionAlreadyRevoked: Problem(HTTPStatus.CONFLICT, "connection_revoked"),
        ConnectionRefused: Problem(HTTPStatus.BAD_REQUEST, "invalid", "identity_id"),
    }
    serializer_class = CarriedAnswer
    versioned = True

    @operation(needs=Own(Capability.MCP_CONNECTIONS_READ))
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get the identities of a connection."""
        return self.answer(CarriedIdentities(self._find(pk), self.me))

    @operation(needs=OWN, body=IdentityToCarry, if_match=True)
    def update(self, request: Request, pk: UUID, assignment: UUID) -> Response:
        """Set the identity that a connection uses for a server."""
        carried, place = self._place(pk, assignment)
        own = Identity.objects.own(self.me).filter(pk=self.body()["identity_id"]).first()
        if own is None:
            raise ValidationError({"identity_id": ["You have no such credential."]})
        return self.changed(carried, partial(carried.connection.use_identity, place, own))

    @operation(needs=OWN, answer=HTTPStatus.NO_CONTENT, if_match=True)
    def destroy(self, request: Request, pk: UUID, assignment: UUID) -> Response:
        """Remove an identity from a connection."""
        carried, place = self._place(pk, assignment)
        return self.removed(carried, carried.connection.drop_identity, place)

    def _find(self, pk: UUID) -> Connection:
        everybodys = self.me.has_perm(Capability.MCP_CONNECTIONS_READ)
        rows = Connection.objects.with_details()
        return get_object_or_404(rows if everybodys else rows.own(self.me), pk=pk)

    def _place(self, pk: UUID, assignment: UUID) -> tuple[CarriedIdentities, Assignment]:
        """Return the identities of the caller's connection `pk`, and the per-user assignment with id `assignment`."""
        connection = self._find(pk)
        self.must_own(connection.user_id)
        asking = Assignment.objects.per_user().filter(gateway=connection.gateway_id).select_related("server")
        return CarriedIdentities(connection, self.me), get_object_or_404(asking, pk=assignment)
