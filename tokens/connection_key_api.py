"""POST /api/connections/{id}/regenerate: a new key for an app, a new secret for an agent."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import ClassVar
from uuid import UUID

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import PolymorphicProxySerializer
from rest_framework.request import Request
from rest_framework.response import Response

from capabilities import Capability
from capabilities.rest import Own, must_hold
from connections.api import PROBLEMS as CONNECTION_PROBLEMS
from connections.api import Connections, ConnectionSerializer
from connections.models import Connection, ConnectionAlreadyRevoked
from tokens.api import PROBLEMS, must_be_on
from tokens.models import Token, TokenKind
from tokens.serializers import RotatedTokenSerializer, rotated
from tokens.visibility import with_reach
from ui.operations import operation
from ui.rest import ApiError, Problem, secret_answer


class Regenerate(Connections):
    """The previous secret stops at once.

    The secret of an agent is shown to its owner. For another person's agent, the owner is asked to collect it, and the
    answer is the connection.
    """

    versioned = False  # Its answer may be a token.
    problems: ClassVar[Mapping[type[Exception], Problem]] = {**PROBLEMS, **CONNECTION_PROBLEMS}

    @operation(
        needs=Own(Capability.MCP_CONNECTIONS_REVOKE),
        answer=PolymorphicProxySerializer(
            "Regenerated", [ConnectionSerializer, RotatedTokenSerializer], resource_type_field_name=None
        ),
        if_match=True,
        makes=True,
    )
    def regenerate(self, request: Request, pk: UUID) -> Response:
        """Replace the secret of a connection."""
        connection = get_object_or_404(self.get_queryset(), pk=pk)
        return self._token(connection) if connection.host.is_agent else self._key(connection)

    def _key(self, connection: Connection) -> Response:
        """Regenerate an app's key, which is never shown; needs the capability also for one's own connection."""
        must_hold(self.me, Capability.MCP_CONNECTIONS_REVOKE)
        _must_regenerate(connection)
        with self.unchanged(connection):
            Token.objects.renew_key(connection, by=self.me)
        return self.now(connection)

    def _token(self, connection: Connection) -> Response:
        """The only active token of an agent: its secret is shown once to its owner, who is asked to collect it else."""
        self.must_own(connection.user_id)
        is_own = connection.user_id == self.me.pk
        if is_own and getattr(self.request.auth, "is_api_key", False):
            must_hold(self.me, Capability.API_TOKENS_MANAGE)  # A key that may make no token gets no secret of one.
        if is_own or not connection.is_live:  # What is switched off may still lose its secret.
            _must_regenerate(connection)
        active = list(Token.objects.active().filter(connection=connection, kind=TokenKind.ACCESS)[:2])
        if not active:
            raise ApiError(HTTPStatus.CONFLICT, "no_active_token", "This connection has no active token.")
        if len(active) > 1:
            raise ApiError(
                HTTPStatus.CONFLICT, "choose_token", "This connection has several tokens. Rotate one by its id."
            )
        if not is_own:
            with self.unchanged(connection):
                active[0].ask_for_new(by=self.me)
            return self.now(connection)
        with self.unchanged(connection):
            new = active[0].rotate(by=self.me)
        return secret_answer(rotated(new._replace(token=with_reach(Token.objects.all()).get(pk=new.token.pk))))


def _must_regenerate(connection: Connection) -> None:
    """Refuse for what has ended or is switched off."""
    if not connection.is_live:
        raise ConnectionAlreadyRevoked(ConnectionAlreadyRevoked.__doc__)
    must_be_on(connection)
