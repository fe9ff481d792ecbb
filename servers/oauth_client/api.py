"""/api/sign-ins: begin to sign in at the issuer of a server."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from capabilities import NOBODY, Capability
from capabilities.rest import Own
from connections.models import Connection
from servers.api import ServerReference
from servers.models import Identity, Server
from servers.oauth_client.flow import SignInRefused, authorization, open_to
from servers.oauth_client.models import unfinished_sign_ins
from ui.operations import RequestBody, operation
from ui.rest import Problem, Resource, UtcDateTimeField


class StartedSignIn(NamedTuple):
    """The response to a started sign-in."""

    server: Server
    issuer: str
    expires_at: datetime
    authorization_url: str
    unfinished: int


class SignInSerializer(serializers.Serializer[StartedSignIn]):
    """A started sign-in: the person continues at `authorization_url` and returns to the pages."""

    server = ServerReference()
    issuer = serializers.CharField(help_text="Issuer where the person signs in.")
    expires_at = UtcDateTimeField(help_text="When it must be finished.")
    authorization_url = serializers.CharField(help_text="Address where the person continues.")
    unfinished = serializers.IntegerField(
        help_text="Unfinished sign-ins in a row at this server; from 3 on, its issuer may have forgotten this gateway."
    )


class NewSignIn(RequestBody):
    """A sign-in to start, for a new identity or to replace one."""

    server_id = serializers.UUIDField(help_text="Server with sign-in at an issuer.")
    connection_id = serializers.UUIDField(required=False, allow_null=True, help_text="First connection to use it.")
    identity_id = serializers.UUIDField(required=False, allow_null=True, help_text="Your identity to replace.")


class SignIns(Resource):
    """Signing in at the issuer of a server, by which an identity comes into being or works again."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        SignInRefused: Problem(HTTPStatus.CONFLICT, "sign_in_refused")
    }
    serializer_class = SignInSerializer

    @operation(needs=Own(NOBODY, by_key=Capability.SERVERS_MANAGE), body=NewSignIn)
    def create(self, request: Request) -> Response:
        """Start to sign in at the issuer of a server.

        The answer has the address where the person continues. It works once, for ten minutes, and only for the same
        person: with a session in that browser alone, with an API key wherever its owner is signed in. The result is an
        identity, which GET /identities lists.
        """
        body = self.body()
        server = self._server(body["server_id"])
        connection = self._own(Connection.objects.live().own(self.me), body, "connection_id")
        identity = self._own(Identity.objects.live().own(self.me).filter(server=server), body, "identity_id")
        sign_in, url = authorization(
            request,  # type: ignore[arg-type]  # It passes on what it is asked for to the request it wraps.
            server,
            connection=connection,
            identity=identity,
            return_to="/settings/identities",
        )
        return self.answer(
            StartedSignIn(server, sign_in.registration.issuer, sign_in.expires_at, url, unfinished_sign_ins(server)),
            HTTPStatus.CREATED,
        )

    def _server(self, pk: UUID) -> Server:
        server = open_to(self.me).filter(pk=pk).first()
        if server is None:
            raise ValidationError({"server_id": ["There is no such server where you could sign in."]})
        return server

    @staticmethod
    def _own(rows: Any, body: dict[str, Any], name: str) -> Any:
        if body.get(name) is None:
            return None
        found = rows.filter(pk=body[name]).first()
        if found is None:
            raise ValidationError({name: ["You have none like this."]})
        return found
