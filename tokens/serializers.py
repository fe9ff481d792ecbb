"""Serializers of tokens in the REST API."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ValidationError

from connections.subjects import by_gateway, by_host, by_person
from gateways.api import GatewayReference
from gateways.models import Assignment, Gateway, IdentityScheme
from hosts.models import Host, HostKind
from servers.models import Identity
from tokens.models import DEFAULT_LIFETIME, Issued, Token
from tokens.rows import STATUSES, servers_of
from ui.forms import Limit
from ui.operations import ListQuery, RequestBody
from ui.rest import CauseField, Id, Reference, UtcDateTimeField

SHOWN_ONCE = ("token", "id", "name", "prefix", "expires_at", "allowed_ips", "scopes", "created_at")


class Scope(serializers.Serializer[Any]):
    """A server that a token reaches."""

    server_id = serializers.UUIDField(help_text="Id of the server.")
    server_name = serializers.CharField(help_text="Name of the server.")
    server_slug = serializers.CharField(help_text="Slug of the server.")


class PreviousSecret(serializers.Serializer[Token]):
    """The previous secret, which works until `ends_at`."""

    prefix = serializers.CharField(source="previous_prefix", help_text="First characters of the previous secret.")
    ends_at = UtcDateTimeField(source="previous_works_until", help_text="When the previous secret stops working.")
    last_used_at = UtcDateTimeField(
        source="previous_last_used_at", allow_null=True, help_text="When it was last used; null if never."
    )


class TokenSerializer(serializers.Serializer[Token]):
    """A token, without its secret. A `waiting` token has no secret until its owner collects one."""

    id = Id()
    name = serializers.CharField(help_text="Name, unique among the unrevoked tokens of its connection.")
    prefix = serializers.CharField(help_text="First characters of the secret, to recognise the token.")
    expires_at = UtcDateTimeField(allow_null=True, help_text="When it expires; null if never.")
    allowed_ips = serializers.ListField(
        child=serializers.CharField(), allow_null=True, help_text="Networks it may be used from; null means any."
    )
    scopes = serializers.SerializerMethodField(help_text="Servers it reaches.")
    created_at = UtcDateTimeField(help_text="When it was created.")
    status = serializers.CharField(help_text="`active`, `waiting` (to be collected), `expired` or `revoked`.")
    blocked_by = CauseField(
        help_text="What blocks the token: `user`, `host`, `gateway`, `connection` or `reach`; null if nothing blocks "
        "the token."
    )
    blocked_reason = CauseField(
        help_text="Why the token is blocked, as an error code of the log; null if nothing blocks the token."
    )
    last_used_at = UtcDateTimeField(allow_null=True, help_text="When it was last used; null if never.")
    host = Reference(source="connection.host", help_text="The app or agent.")
    gateway = GatewayReference(source="connection.gateway")
    connection_id = serializers.UUIDField(help_text="Its connection.")
    user_email = serializers.CharField(source="connection.user.email", help_text="E-mail address of its owner.")
    rotated_at = UtcDateTimeField(allow_null=True, help_text="When its secret was last replaced; null if never.")
    revoked_at = UtcDateTimeField(allow_null=True, help_text="When it was revoked; null if it was not.")
    revoked_by = serializers.EmailField(
        source="revoked_by.email",
        default=None,
        allow_null=True,
        help_text="E-mail address of the person who revoked it; null if nobody.",
    )
    calls_per_minute = Limit()
    secret_last_used_at = UtcDateTimeField(
        allow_null=True, help_text="When the current secret was last used; null if never."
    )
    previous_secret = serializers.SerializerMethodField(
        help_text="Prefix and times of the previous secret, while it still works; otherwise null."
    )
    asked_at = UtcDateTimeField(
        allow_null=True,
        help_text="When the token's owner was asked to collect a new secret; null if no new secret is to be collected.",
    )

    @extend_schema_field(PreviousSecret(allow_null=True))
    def get_previous_secret(self, token: Token) -> dict[str, Any] | None:
        return PreviousSecret(token).data if token.previous_works_until else None

    @extend_schema_field(Scope(many=True))
    def get_scopes(self, token: Token) -> list[dict[str, str]]:
        return [
            {"server_id": str(server.pk), "server_name": server.name, "server_slug": server.slug}
            for server in servers_of(token)
        ]


class IssuedTokenSerializer(TokenSerializer):
    """A new token, with its secret."""

    token = serializers.CharField(help_text="The secret; it is shown only here.")


class RotatedTokenSerializer(serializers.Serializer[Any]):
    """The new secret of a token."""

    token = serializers.CharField(help_text="The secret; it is shown only here.")
    id = Id()
    name = serializers.CharField(help_text="Name, unique among the unrevoked tokens of its connection.")
    prefix = serializers.CharField(help_text="First characters of its secret, to recognise it.")
    expires_at = UtcDateTimeField(allow_null=True, help_text="When it expires; null if never.")
    allowed_ips = serializers.ListField(
        child=serializers.CharField(), allow_null=True, help_text="Networks it may be used from; null means any."
    )
    scopes = Scope(many=True, help_text="Servers it reaches.")
    created_at = UtcDateTimeField(help_text="When it was created.")


def issued(new: Issued) -> dict[str, Any]:
    """Return the fields of a new token, including the secret, which no other response contains."""
    return {"token": new.secret, **TokenSerializer(new.token).data}


def rotated(new: Issued) -> dict[str, Any]:
    """Return the fields of RotatedTokenSerializer for a token with a new secret."""
    payload = issued(new)
    return {key: payload[key] for key in SHOWN_ONCE}


class TokenQuery(ListQuery):
    """Filters of the list of tokens."""

    scope = serializers.ChoiceField(["own", "all"], default="own", help_text="Your own tokens, or everyone's.")
    status = serializers.ChoiceField(STATUSES, default="active", help_text="Only tokens with this status.")
    host = by_host()
    gateway = by_gateway()
    user = by_person()
    q = serializers.CharField(
        required=False,
        help_text="Part of the token's name or of its agent's name, or the start of the token's prefix. If `scope` is "
        "`all`, the owner's address is searched too.",
    )
    expires_before = serializers.DateTimeField(required=False, help_text="Only tokens that expire before this time.")


class TokenChanges(RequestBody):
    """The fields of a token that can be changed. The choice of servers cannot be changed."""

    name = serializers.CharField(max_length=100)
    expires_in_days = serializers.IntegerField(
        allow_null=True,
        help_text="Lifetime from now: 7, 30 or 90 days; null means no expiry, if the workspace allows it.",
    )
    allowed_ips = serializers.ListField(child=serializers.CharField(max_length=64), allow_null=True)
    calls_per_minute = Limit()


class Rotation(RequestBody):
    """Options for replacing a secret."""

    overlap_hours = serializers.IntegerField(
        default=0, help_text="Hours for which the old secret stays valid: 0, 1, 24 or 168."
    )
    until_used = serializers.BooleanField(
        default=False,
        help_text="Whether the first call with the new secret ends the old secret, even within overlap_hours.",
    )


class NewToken(RequestBody):
    """A token for yourself."""

    host_id = serializers.UUIDField(help_text="Agent that uses the token.")
    gateway_id = serializers.UUIDField(help_text="Gateway that the token is for.")
    name = serializers.CharField(max_length=100)
    server_ids = serializers.ListField(
        child=serializers.UUIDField(),
        allow_null=True,
        allow_empty=False,
        default=None,
        help_text="Servers it reaches; null means all servers of the gateway, including servers added later.",
    )
    expires_in_days = serializers.IntegerField(
        allow_null=True,
        default=DEFAULT_LIFETIME,
        help_text="Lifetime: 7, 30 or 90 days; null means no expiry, if the workspace allows it.",
    )
    allowed_ips = serializers.ListField(child=serializers.CharField(max_length=64), allow_null=True, default=None)
    calls_per_minute = Limit(default=None)
    identities = serializers.DictField(
        child=serializers.UUIDField(),
        default=dict,
        help_text="Your credential for each server that needs one, by the server's id.",
    )

    def validate_host_id(self, pk: UUID) -> Host:
        host = Host.objects.live().filter(kind=HostKind.TOKEN, pk=pk).first()
        if host is None:
            raise ValidationError("There is no such agent.")
        return host

    def validate_gateway_id(self, pk: UUID) -> Gateway:
        gateway = Gateway.objects.reachable_by(self.context["request"].user).filter(pk=pk).first()
        if gateway is None:
            raise ValidationError("There is no such gateway, or you may not use it.")
        return gateway

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Return the fields, with objects instead of ids: `host`, `gateway`, `servers` and `identities`."""
        gateway = attrs["gateway_id"]
        offered = Assignment.objects.placed().filter(gateway=gateway).select_related("server")
        named_things = {
            "host": attrs["host_id"],
            "gateway": gateway,
            "servers": _chosen(offered, attrs["server_ids"]),
            "identities": _brought(offered, attrs["identities"], self.context["request"].user),
        }
        fields = ("name", "expires_in_days", "allowed_ips", "calls_per_minute")
        return {key: attrs[key] for key in fields} | named_things


def _chosen(offered: Any, servers: list[UUID] | None) -> list[Assignment] | None:
    """Return the assignments of the chosen servers; None for all servers, including servers added later."""
    if servers is None:
        return None
    missing = set(servers) - {assignment.server_id for assignment in offered}
    if missing:
        raise ValidationError({"server_ids": [f"Server {pk} is not on this gateway." for pk in sorted(missing)]})
    return [assignment for assignment in offered if assignment.server_id in servers]


def _brought(offered: Any, choices: dict[str, UUID], user: Any) -> dict[Assignment, Identity]:
    """Return the user's own usable identities in `choices`, by assignment. Raises ValidationError for others."""
    per_user = [a for a in offered if a.identity_scheme == IdentityScheme.PER_USER]
    identities = Identity.objects.usable().own(user).in_bulk(list(choices.values()))
    bound: dict[Assignment, Identity] = {}
    for server, pk in choices.items():
        assignments = [assignment for assignment in per_user if str(assignment.server_id) == server.lower()]
        if not assignments:
            raise ValidationError(
                {"identities": [f"Server {server} does not use your own credential on this gateway."]}
            )
        if pk not in identities or identities[pk].server_id != assignments[0].server_id:
            raise ValidationError({"identities": [f"You have no usable credential {pk} for server {server}."]})
        bound |= dict.fromkeys(assignments, identities[pk])
    return bound
