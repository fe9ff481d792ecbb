"""/api/connections/{id}/identities: what connections carry to the servers that ask for a person's own identity."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar
from uuid import UUID

from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from capabilities import NOBODY, Capability
from capabilities.rest import Own
from connections.carried_identities import CarriedIdentities, CarriedRow
from connections.models import Connection, ConnectionAlreadyRevoked, ConnectionRefused
from gateways.models import Assignment
from servers.api import ServerReference
from servers.models import Identity
from ui.operations import RequestBody, operation
from ui.rest import Id, Problem, Resource

OWN = Own(NOBODY, by_key=Capability.SERVERS_MANAGE)


class CarriedIdentity(serializers.Serializer[Any]):
    """The identity that a connection uses."""

    id = Id()
    label = serializers.CharField(help_text="Label of the identity.")  # type: ignore[assignment]  # DRF takes it out of the class


class CarriedSerializer(serializers.Serializer[CarriedRow]):
    """A server that needs a person's identity, and the identity a connection uses for it."""

    assignment_id = serializers.UUIDField(source="assignment.pk", help_text="Id of the server's assignment.")
    alias = serializers.CharField(
        source="assignment.alias", help_text="Prefix of the server's tool names; empty if none."
    )
    server = ServerReference()
    identity = CarriedIdentity(allow_null=True, help_text="Identity used for the server; null if none.")
    state = serializers.ChoiceField(
        ["active", "missing", "attention", "disabled", "blocked"],
        help_text="Whether calls to the server work with it, and if not, why.",
    )
    reason = serializers.CharField(source="why", help_text="What is wrong and how to fix it; otherwise empty.")


class CarriedAnswer(serializers.Serializer[Any]):
    """The identities of a connection."""

    identities = CarriedSerializer(many=True, help_text="One entry for each server that needs an identity.")


class IdentityToCarry(RequestBody):
    """An identity of the connection's owner."""

    identity_id = serializers.UUIDField(help_text="One of your own identities for this server.")


class ConnectionIdentities(Resource):
    """Identities that a connection uses for servers that need its person's own.

    Changing them needs no capability and creates no new token.
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
            raise ValidationError({"identity_id": ["You have no such identity."]})
        with self.unchanged(carried):
            carried.connection.use_identity(place, own, by=self.me)
        return self.answer(carried)

    @operation(needs=OWN, answer=HTTPStatus.NO_CONTENT, if_match=True)
    def destroy(self, request: Request, pk: UUID, assignment: UUID) -> Response:
        """Remove an identity from a connection."""
        carried, place = self._place(pk, assignment)
        with self.unchanged(carried):
            carried.connection.drop_identity(place, by=self.me)
        return Response(status=HTTPStatus.NO_CONTENT)

    def _find(self, pk: UUID) -> Connection:
        everybodys = self.me.has_perm(Capability.MCP_CONNECTIONS_READ)
        rows = Connection.objects.with_details()
        return get_object_or_404(rows if everybodys else rows.own(self.me), pk=pk)

    def _place(self, pk: UUID, assignment: UUID) -> tuple[CarriedIdentities, Assignment]:
        """Return the identities of this person's own connection, and the assignment that needs one."""
        connection = self._find(pk)
        self.must_own(connection.user_id)
        asking = Assignment.objects.per_user().filter(gateway=connection.gateway_id).select_related("server")
        return CarriedIdentities(connection, self.me), get_object_or_404(asking, pk=assignment)
