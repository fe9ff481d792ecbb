"""/api/{hosts,users,connections,tokens,servers}/{id}/stop: operations that stop an object during an incident."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar
from uuid import UUID

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api import PROBLEMS as PEOPLE_PROBLEMS
from auditlog.models import LONGEST_REASON, giving_reason
from capabilities import Held
from connections.models import ConnectionAlreadyRevoked
from gatewayadmin.incident.subjects import (
    ConnectionSubject,
    HostSubject,
    PersonSubject,
    ServerSubject,
    Stopped,
    Subject,
    TokenSubject,
)
from servers.views import server_or_404
from tokens.models import TokenAlreadyRevoked
from ui.operations import RequestBody, operation
from ui.rest import ApiError, Problem, Resource


class ReasonGiven(RequestBody):
    """The reason for stopping something."""

    reason = serializers.CharField(
        max_length=LONGEST_REASON, default="", allow_blank=True, help_text="Recorded with the admin events."
    )


class StoppedSerializer(serializers.Serializer[Stopped]):
    """The result of stopping something."""

    detail = serializers.CharField(source="words", help_text="What was ended, in words.")
    undo = serializers.CharField(
        allow_null=True, help_text="Path for a POST that undoes the stop; null if it cannot be undone."
    )


def needed(kind: type[Subject]) -> Held:
    """Return the capabilities required to stop a subject of this kind."""
    return frozenset(group[0] for group in kind.stops) if len(kind.stops) > 1 else kind.stops[0]


class Stops(Resource):
    """Stop an app or agent, a person, a connection, a token or a server with one request, and give a reason.

    Revoking cannot be undone. `GET /api/admin-events` returns the reason in the field `because`.
    """

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        **PEOPLE_PROBLEMS,
        ConnectionAlreadyRevoked: Problem(HTTPStatus.CONFLICT, "connection_revoked"),
        TokenAlreadyRevoked: Problem(HTTPStatus.CONFLICT, "token_revoked"),
    }
    serializer_class = StoppedSerializer

    @operation(needs=needed(HostSubject), body=ReasonGiven, if_match=True, conflicts=True)
    def host(self, request: Request, pk: UUID) -> Response:
        """Stop an app or agent.

        Disables it and revokes its connections with their tokens.
        """
        return self._stop(HostSubject, HostSubject.find(self.me, pk))

    @operation(needs=needed(PersonSubject), body=ReasonGiven, if_match=True, conflicts=True)
    def user(self, request: Request, pk: UUID) -> Response:
        """Stop a person.

        Deactivates the person and revokes all their connections, API keys and sign-ins at servers. The operation
        `cut-off` has the same effect.
        """
        return self._stop(PersonSubject, PersonSubject.find(self.me, pk))

    @operation(needs=needed(ConnectionSubject), body=ReasonGiven, if_match=True, conflicts=True)
    def connection(self, request: Request, pk: UUID) -> Response:
        """Stop a connection.

        Revokes it with its tokens.
        """
        return self._stop(ConnectionSubject, ConnectionSubject.find(self.me, pk))

    @operation(needs=needed(TokenSubject), body=ReasonGiven, if_match=True, conflicts=True)
    def token(self, request: Request, pk: UUID) -> Response:
        """Stop a token.

        Revokes it.
        """
        return self._stop(TokenSubject, TokenSubject.find(self.me, pk))

    @operation(needs=needed(ServerSubject), body=ReasonGiven, if_match=True, conflicts=True)
    def server(self, request: Request, slug: str) -> Response:
        """Stop a server.

        Disables it on all gateways.
        """
        return self._stop(ServerSubject, server_or_404(slug))

    def _stop(self, kind: type[Subject], row: Any) -> Response:
        reason, subject = self.body()["reason"], kind(row, self.me)
        if not subject.act:
            raise ApiError(HTTPStatus.CONFLICT, "nothing_to_stop", "There is nothing left to stop.")
        with self.unchanged(row), giving_reason(reason):
            done = subject.stop()
        undo = subject.undo_operation if done.may_undo else None
        return self.answer({"words": done.words, "undo": undo})
