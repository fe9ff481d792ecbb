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
from accounts.models.api_keys import AlreadyRevoked
from accounts.rules import Outranked
from capabilities import Capability
from capabilities.rest import Own
from connections.subjects import by_person
from tokens.api_key_rows import STATUSES, keys_known_to
from ui.operations import ListQuery, operation
from ui.rest import Cause, Moment, Problem, Resource

OTHERS = Own(Capability.PEOPLE_MANAGE)


class ApiKeySerializer(serializers.Serializer[ApiKey]):
    """An API key without its secret."""

    id = serializers.UUIDField()
    name = serializers.CharField()
    prefix = serializers.CharField()
    capabilities = serializers.ListField(child=serializers.CharField())
    status = serializers.CharField()
    blocked_by = Cause()
    blocked_reason = Cause()
    user_email = serializers.EmailField(source="user.email")
    expires_at = Moment()
    last_used_at = Moment(allow_null=True)
    created_at = Moment()
    revoked_at = Moment(allow_null=True)


class ApiKeyQuery(ListQuery):
    """How a list of API keys is narrowed."""

    scope = serializers.ChoiceField(["own", "all"], default="own")
    status = serializers.ChoiceField(STATUSES, default="active")
    user = by_person()
    q = serializers.CharField(required=False)


class ApiKeyResource(Resource):
    """People's keys for this API. None of them can make, change or end one: that takes a person's session."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        AlreadyRevoked: Problem(HTTPStatus.CONFLICT, "api_key_revoked"),
        Outranked: Problem(HTTPStatus.FORBIDDEN, "beyond_yours"),
    }
    serializer_class = ApiKeySerializer
    versioned = True

    @operation(needs=OTHERS, query=ApiKeyQuery, orderings=("name", "created_at", "expires_at", "last_used_at"))
    def list(self, request: Request) -> Response:
        keys = ApiKey.objects.within_reach(self.me, of_all=self.query_data["scope"] == "all")
        keys = keys.of_status(self.query_data["status"]).matching(self.query_data.get("q", ""))
        if user := self.query_data.get("user"):
            keys = keys.filter(user__in=user)
        return self.page(keys.order_by("-created_at", "pk"), lambda keys: keys.select_related("user"))

    @operation(needs=OTHERS)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        return self.answer(self._find(pk))

    @operation(needs=OTHERS, answer=HTTPStatus.NO_CONTENT, api_keys=False, if_match=True)
    def destroy(self, request: Request, pk: UUID) -> Response:
        return self._end(pk)

    @action(detail=True, methods=["post"])
    @operation(needs=OTHERS, answer=HTTPStatus.NO_CONTENT, api_keys=False, if_match=True)
    def revoke(self, request: Request, pk: UUID) -> Response:
        return self._end(pk)

    def _end(self, pk: UUID) -> Response:
        key = self._find(pk)
        with self.unchanged(key):
            key.revoke(by=self.me)
        return Response(status=HTTPStatus.NO_CONTENT)

    def _find(self, pk: UUID) -> ApiKey:
        """The key, for its owner or a person who manages people."""
        return get_object_or_404(keys_known_to(self.me), pk=pk)
