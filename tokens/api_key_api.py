"""/api/api-keys: lists and revokes people's API keys; they are created on their page only."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import ClassVar
from uuid import UUID

from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.models import ApiKey
from accounts.models.api_keys import ApiKeyAlreadyRevoked
from accounts.rules import Outranked
from capabilities import Capability
from capabilities.rest import Own
from connections.subjects import by_person
from tokens.api_key_rows import STATUSES, keys_known_to
from ui.operations import ListQuery, operation
from ui.rest import CauseField, Id, Problem, Resource, UtcDateTimeField

OTHERS = Own(Capability.PEOPLE_MANAGE)


class ApiKeySerializer(serializers.Serializer[ApiKey]):
    """An API key without its secret."""

    id = Id()
    name = serializers.CharField(help_text="Name on the pages.")
    prefix = serializers.CharField(help_text="First characters of its secret, to recognise it.")
    capabilities = serializers.ListField(
        child=serializers.CharField(),
        help_text="Slugs of its capabilities; those its owner no longer holds do not work.",
    )
    status = serializers.CharField(help_text="`active`, `expired` or `revoked`.")
    blocked_by = CauseField(help_text="What blocks it: `user`; else null.")
    blocked_reason = CauseField(help_text="Reason its requests are refused for; null if they are not.")
    user_email = serializers.EmailField(source="user.email", help_text="E-mail address of its owner.")
    expires_at = UtcDateTimeField(help_text="When it expires.")
    last_used_at = UtcDateTimeField(allow_null=True, help_text="When it was last used; null if never.")
    created_at = UtcDateTimeField(help_text="When it was created.")
    revoked_at = UtcDateTimeField(allow_null=True, help_text="When it was revoked; null if it was not.")


class ApiKeyQuery(ListQuery):
    """How a list of API keys is narrowed."""

    scope = serializers.ChoiceField(["own", "all"], default="own", help_text="Your own keys, or everyone's.")
    status = serializers.ChoiceField(STATUSES, default="active", help_text="Only keys with this status.")
    user = by_person()
    q = serializers.CharField(
        required=False,
        help_text="Text contained in the name, or start of the prefix; with `scope` `all` also in the owner.",
    )


class ApiKeyResource(Resource):
    """API keys of people. Creating, changing or revoking one takes a person's session."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        ApiKeyAlreadyRevoked: Problem(HTTPStatus.CONFLICT, "api_key_revoked"),
        Outranked: Problem(HTTPStatus.FORBIDDEN, "beyond_yours"),
    }
    serializer_class = ApiKeySerializer
    versioned = True

    @operation(needs=OTHERS, query=ApiKeyQuery, orderings=("name", "created_at", "expires_at", "last_used_at"))
    def list(self, request: Request) -> Response:
        """List API keys."""
        keys = ApiKey.objects.within_reach(self.me, of_all=self.query_data["scope"] == "all")
        keys = keys.of_status(self.query_data["status"]).matching(self.query_data.get("q", ""))
        if user := self.query_data.get("user"):
            keys = keys.filter(user__in=user)
        return self.page(keys.order_by("-created_at", "pk"), lambda keys: keys.select_related("user"))

    @operation(needs=OTHERS)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get an API key."""
        return self.answer(self._find(pk))

    @operation(needs=OTHERS, answer=HTTPStatus.NO_CONTENT, api_keys=False, if_match=True)
    def destroy(self, request: Request, pk: UUID) -> Response:
        """Revoke an API key."""
        return self._end(pk)

    @action(detail=True, methods=["post"])
    @operation(needs=OTHERS, answer=HTTPStatus.NO_CONTENT, api_keys=False, if_match=True)
    def revoke(self, request: Request, pk: UUID) -> Response:
        """Revoke an API key."""
        return self._end(pk)

    def _end(self, pk: UUID) -> Response:
        key = self._find(pk)
        with self.unchanged(key):
            key.revoke(by=self.me)
        return Response(status=HTTPStatus.NO_CONTENT)

    def _find(self, pk: UUID) -> ApiKey:
        """The key, for its owner or a person who manages people."""
        return get_object_or_404(keys_known_to(self.me), pk=pk)
