"""/api/provisioning-keys: credentials of directories that provision people."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar
from uuid import UUID

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api import existing_role
from accounts.groups_api import NamedCapabilities
from accounts.models import Role
from accounts.rules import BeyondYours
from capabilities import Capability
from scim.models import (
    BadKeyOverlap,
    IssuedProvisioningKey,
    MakesOwners,
    NoPreviousKey,
    ProvisioningKey,
    ProvisioningKeyAlreadyRevoked,
    ProvisioningKeyNameTaken,
    RoleBeyond,
    TooManyProvisioningKeys,
)
from tokens.serializers import PreviousSecret, Rotation
from ui.operations import ListQuery, operation
from ui.rest import Id, Problem, Reference, Resource, UtcDateTimeField, secret_answer

# Both capabilities are needed to create a key or to replace its secret, because a person who has the secret can do
# everything that the key may do.
ISSUING = frozenset({Capability.PROVISIONING_MANAGE, Capability.PEOPLE_MANAGE})


class ProvisioningKeySerializer(serializers.Serializer[ProvisioningKey]):
    """A provisioning key without its secret."""

    id = Id()
    name = serializers.CharField(help_text="Name that pages show.")
    prefix = serializers.CharField(help_text="First characters of its secret, to recognise it.")
    role = Reference(allow_null=True, help_text="Role of the people that the key creates; null if the key is revoked.")
    capabilities = serializers.ListField(
        child=serializers.CharField(),
        help_text="Slugs of the key's capabilities. The key cannot change people who have other capabilities.",
    )
    status = serializers.ChoiceField([(state, state) for state in ("active", "revoked")], help_text="Whether it works.")
    last_used_at = UtcDateTimeField(allow_null=True, help_text="When it was last used; null if never.")
    rolled_at = UtcDateTimeField(allow_null=True, help_text="When its secret was last replaced; null if never.")
    previous_secret = serializers.SerializerMethodField(
        help_text="Prefix and times of the previous secret, while it still works; otherwise null."
    )
    created_at = UtcDateTimeField(help_text="When it was created.")
    revoked_at = UtcDateTimeField(allow_null=True, help_text="When it was revoked; null if it was not.")

    @extend_schema_field(PreviousSecret(allow_null=True))
    def get_previous_secret(self, key: ProvisioningKey) -> dict[str, Any] | None:
        return PreviousSecret(key).data if key.previous_works_until else None  # type: ignore[arg-type]


class IssuedProvisioningKeySerializer(ProvisioningKeySerializer):
    """A provisioning key, with its new secret."""

    secret = serializers.CharField(help_text="The secret; it is shown only here.")


class NewProvisioningKey(NamedCapabilities):
    """A key for a directory, with a role for new people.

    The key may change a person only if the key has all capabilities of this person.
    """

    role_id = serializers.UUIDField(help_text="Role of the people that the key creates.")

    def validate_role_id(self, pk: UUID) -> Role:
        return existing_role(pk)


class ProvisioningKeyQuery(ListQuery):
    """Filters of the list."""

    q = serializers.CharField(required=False, help_text="Text contained in the name.")
    status = serializers.ChoiceField(["active", "revoked"], required=False, help_text="Only keys with this status.")


class ProvisioningKeyResource(Resource):
    """Keys of directories. A secret is shown once.

    With an API key you can list and revoke these keys. You cannot create one or replace its secret, because the new
    secret would outlive the API key.
    """

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        ProvisioningKeyNameTaken: Problem(HTTPStatus.CONFLICT, "already_exists"),
        TooManyProvisioningKeys: Problem(HTTPStatus.CONFLICT, "too_many_keys"),
        ProvisioningKeyAlreadyRevoked: Problem(HTTPStatus.CONFLICT, "provisioning_key_revoked"),
        NoPreviousKey: Problem(HTTPStatus.CONFLICT, "no_previous_secret"),
        MakesOwners: Problem(HTTPStatus.BAD_REQUEST, "invalid", "role_id"),
        RoleBeyond: Problem(HTTPStatus.BAD_REQUEST, "invalid", "capabilities"),
        BadKeyOverlap: Problem(HTTPStatus.BAD_REQUEST, "invalid", "overlap_hours"),
        BeyondYours: Problem(HTTPStatus.FORBIDDEN, "beyond_yours"),
    }
    serializer_class = ProvisioningKeySerializer
    versioned = True
    queryset = ProvisioningKey.objects.select_related("role")

    @operation(
        needs=Capability.PROVISIONING_READ,
        query=ProvisioningKeyQuery,
        orderings=("name", "created_at", "last_used_at"),
    )
    def list(self, request: Request) -> Response:
        """List provisioning keys."""
        keys = ProvisioningKey.objects.filter(name__icontains=self.query_data.get("q", ""))
        if status := self.query_data.get("status"):
            keys = keys.filter(revoked_at__isnull=status == "active")
        return self.page(keys, lambda keys: keys.select_related("role"))

    @operation(needs=Capability.PROVISIONING_READ)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get a provisioning key."""
        return self.answer(self._find(pk))

    @operation(
        needs=ISSUING,
        body=NewProvisioningKey,
        answer=IssuedProvisioningKeySerializer,
        reauth=True,
        api_keys=False,
        makes=True,
    )
    def create(self, request: Request) -> Response:
        """Create a provisioning key."""
        body = self.body()
        role = body.pop("role_id")
        new = ProvisioningKey.objects.all().issue(**body, role=role, by=self.me)
        return self._told(new, HTTPStatus.CREATED)

    @action(detail=True, methods=["post"])
    @operation(
        needs=ISSUING,
        body=Rotation,
        answer=IssuedProvisioningKeySerializer,
        reauth=True,
        api_keys=False,
        if_match=True,
        makes=True,
    )
    def roll(self, request: Request, pk: UUID) -> Response:
        """Replace the secret of a provisioning key.

        The previous secret works for another `overlap_hours`: 0, 1, 24 or 168.
        """
        key, hours = self._find(pk), self.body()["overlap_hours"]
        with self.unchanged(key):
            new = key.roll(by=self.me, overlap_hours=hours)
        return self._told(new)

    @action(detail=True, methods=["post"], url_path="end-previous")
    @operation(needs=Capability.PROVISIONING_MANAGE, if_match=True)
    def end_previous(self, request: Request, pk: UUID) -> Response:
        """End the previous secret of a provisioning key."""
        key = self._find(pk)
        with self.unchanged(key):
            key.end_previous(by=self.me)
        return self.answer(self._find(pk))

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.PROVISIONING_MANAGE, if_match=True)
    def revoke(self, request: Request, pk: UUID) -> Response:
        """Revoke a provisioning key.

        The current and the previous secret stop working. The people that the key created do not change.
        """
        key = self._find(pk)
        with self.unchanged(key):
            key.revoke(by=self.me)
        return self.answer(self._find(pk))

    def _told(self, new: IssuedProvisioningKey, status: int = HTTPStatus.OK) -> Response:
        """Return the response with the key and its new secret, which no other response contains."""
        return secret_answer(self.serialize(self._find(new.key.pk)) | {"secret": new.secret}, status)

    def _find(self, pk: UUID) -> ProvisioningKey:
        key: ProvisioningKey = get_object_or_404(self.get_queryset(), pk=pk)
        return key
