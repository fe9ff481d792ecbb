"""/api/tokens: a user's own API access tokens, or everybody's tokens if the user may see them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar
from uuid import UUID

from django.db import transaction
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import PolymorphicProxySerializer
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.models import ApiKey
from accounts.models.api_keys import ApiKeyAlreadyRevoked
from accounts.rules import Outranked
from auditlog.models import Via, current_context, use_context
from capabilities import NOBODY, Capability
from capabilities.rest import Own, must_hold
from connections.api import PROBLEMS as CONNECTION_PROBLEMS
from connections.api import Connections, ConnectionSerializer
from connections.models import Connection, ConnectionRefused
from connections.subjects import by_person
from tokens.api_key_views import STATUSES, keys_known_to
from tokens.authentication import Presented
from tokens.models import (
    AskedForNew,
    BadAllowlistEntry,
    BadLifetime,
    BadTokenOverlap,
    Expired,
    Issued,
    NoPreviousToken,
    NothingToCollect,
    NotYourToken,
    Superseded,
    Token,
    TokenAlreadyRevoked,
    TokenError,
    TokenKind,
    TokenNameTaken,
    TokenQuerySet,
    TooMany,
)
from tokens.rows import ENDING, of_status, tokens_visible_to, with_reach
from tokens.serializers import (
    IssuedTokenSerializer,
    NewToken,
    RotatedTokenSerializer,
    Rotation,
    TokenChanges,
    TokenQuery,
    TokenSerializer,
    issued,
    rotated,
)
from tokens.validation import admits
from ui.operations import ListQuery, operation
from ui.rest import ApiError, CauseField, Id, Problem, RateLimit, Resource, UtcDateTimeField, matching, secret_answer

PROBLEMS: Mapping[type[Exception], Problem] = {
    TokenAlreadyRevoked: Problem(HTTPStatus.CONFLICT, "token_revoked"),
    Expired: Problem(HTTPStatus.CONFLICT, "token_expired"),
    Superseded: Problem(HTTPStatus.CONFLICT, "superseded"),
    TokenNameTaken: Problem(HTTPStatus.CONFLICT, "already_exists"),
    TooMany: Problem(HTTPStatus.CONFLICT, "too_many_tokens"),
    NotYourToken: Problem(HTTPStatus.FORBIDDEN, "not_yours"),
    AskedForNew: Problem(HTTPStatus.CONFLICT, "asked_for_new"),
    NothingToCollect: Problem(HTTPStatus.CONFLICT, "nothing_to_collect"),
    NoPreviousToken: Problem(HTTPStatus.CONFLICT, "no_previous_secret"),
    BadTokenOverlap: Problem(HTTPStatus.BAD_REQUEST, "invalid", "overlap_hours"),
    BadLifetime: Problem(HTTPStatus.BAD_REQUEST, "invalid", "expires_in_days"),
    BadAllowlistEntry: Problem(HTTPStatus.BAD_REQUEST, "invalid", "allowed_ips"),
    TokenError: Problem(HTTPStatus.CONFLICT, "conflict"),
    ConnectionRefused: Problem(HTTPStatus.CONFLICT, "refused"),
}


class RotationLimit(RateLimit):
    """A token may rotate itself 60 times an hour: enough for a job that runs every minute and rotates on each run."""

    scope = "rotation"
    rate = "60/h"

    def get_cache_key(self, request: Request, view: Any) -> str | None:
        return f"rotation:{request.auth.token.pk}" if isinstance(request.auth, Presented) else None


class TokenResource(Resource):
    """API access tokens. A secret is shown once, and only to the token's owner."""

    problems = PROBLEMS
    serializer_class = TokenSerializer
    versioned = True

    def get_queryset(self) -> TokenQuerySet:
        """Return the API tokens that this person may see. The connection keys of apps are left out."""
        return with_reach(tokens_visible_to(self.me))

    @operation(
        needs=Own(Capability.API_TOKENS_READ),
        query=TokenQuery,
        orderings=("name", "created_at", "expires_at", "last_used_at"),
    )
    def list(self, request: Request) -> Response:
        """List API access tokens."""
        tokens = tokens_visible_to(self.me)
        if self.query_data["scope"] == "all":
            must_hold(self.me, Capability.API_TOKENS_READ)
        else:
            tokens = tokens.filter(connection__user=self.me)
        return self.page(filter_tokens(tokens, self.query_data).order_by("-created_at", "pk"), with_reach)

    @operation(needs=Own(Capability.API_TOKENS_READ))
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get an API access token."""
        return self.answer(self._find(pk))

    @operation(
        needs=(Capability.API_TOKENS_MANAGE, Capability.API_TOKENS_CREATE),
        body=NewToken,
        answer=IssuedTokenSerializer,
        makes=True,
    )
    def create(self, request: Request) -> Response:
        """Create an API access token."""
        body = self.body()
        triple = {key: body.pop(key) for key in ("host", "gateway", "identities")}
        with transaction.atomic():
            connection = Connection.objects.open(**triple, user=self.me, by=self.me)
            new = Token.objects.issue(connection, **body, by=self.me)
        return secret_answer(issued(self._again(new)), HTTPStatus.CREATED)

    @operation(needs=Own(Capability.API_TOKENS_MANAGE), body=TokenChanges, if_match=True)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Change an API access token."""
        token = self._find(pk)
        changes = self.body()
        token.edit(**changes, by=self.me, seen=self.seen)
        return self.answer(token)

    @operation(needs=Own(ENDING), answer=HTTPStatus.NO_CONTENT, if_match=True)
    def destroy(self, request: Request, pk: UUID) -> Response:
        """Revoke an API access token."""
        return self._end(pk)

    @action(detail=True, methods=["post"])
    @operation(needs=Own(ENDING), answer=HTTPStatus.NO_CONTENT, if_match=True)
    def revoke(self, request: Request, pk: UUID) -> Response:
        """Revoke an API access token."""
        return self._end(pk)

    def _end(self, pk: UUID) -> Response:
        token = self._find(pk)
        return self.removed(token, token.revoke)

    @action(detail=True, methods=["post"], throttle_classes=[RotationLimit])
    @operation(
        needs=Own(NOBODY, by_key=Capability.API_TOKENS_MANAGE),
        body=Rotation,
        answer=RotatedTokenSerializer,
        access_tokens=True,
        if_match=True,
        makes=True,
    )
    def rotate(self, request: Request, pk: UUID) -> Response:
        """Replace the secret of a token.

        The request must come from the token's owner, or carry the token itself as Bearer. A previous secret cannot
        rotate the token. The replaced secret stays valid for `overlap_hours` hours: 0, 1, 24 or 168. With `until_used`,
        the replaced secret ends when the new secret is first used, if this is earlier. Without a body, the replaced
        secret ends at once. Nothing else in the token changes.
        """
        presented: Any = request.auth
        terms = self.body()
        itself = isinstance(presented, Presented)
        new = self._by_itself(presented, pk, terms) if itself else self._by_person(pk, terms)
        return secret_answer(rotated(self._again(new)))

    @action(detail=True, methods=["post"], url_path="ask-for-new")
    @operation(needs=Own(ENDING), body=Rotation, if_match=True)
    def ask_for_new(self, request: Request, pk: UUID) -> Response:
        """Ask the owner of a token to collect a new secret, which replaces the present secret.

        Only the owner can collect the new secret. From this request on, the present secret stays valid for
        `overlap_hours` hours. With `until_used` it ends earlier, when the new secret is first used. Without a body, the
        present secret ends at once.

        Until the owner has collected the new secret, further requests have only one effect: if `overlap_hours` is 0 or
        missing, the present secret ends at once.
        """
        token = self._find(pk)
        return self.changed(token, partial(token.ask_for_new, **self.body()))

    @action(detail=True, methods=["post"])
    @operation(
        needs=Own(NOBODY, by_key=Capability.API_TOKENS_MANAGE), answer=RotatedTokenSerializer, if_match=True, makes=True
    )
    def collect(self, request: Request, pk: UUID) -> Response:
        """Collect the new secret of a token.

        The secret is shown once, to the token's owner.
        """
        token = self._find(pk)
        token.must_be_active()
        must_be_on(token.connection)
        with self.unchanged(token):
            new = token.collect(by=self.me)
        return secret_answer(rotated(self._again(new)))

    @action(detail=True, methods=["post"], url_path="end-previous")
    @operation(needs=Own(ENDING), if_match=True)
    def end_previous(self, request: Request, pk: UUID) -> Response:
        """End the previous secret of a token."""
        token = self._find(pk)
        return self.changed(token, token.end_previous)

    def _by_itself(self, presented: Presented, pk: UUID, terms: Mapping[str, Any]) -> Issued:
        """Rotate the token that authenticated this request.

        Raises ApiError if `pk` is another token, or if the client's address or the connection is refused. Raises
        AuthenticationFailed if the token's secret has just ended.
        """
        token = presented.token
        if token.pk != pk:
            raise ApiError(HTTPStatus.FORBIDDEN, "not_own_token", "A token can rotate only itself.")
        if not admits(token.allowed_ips, self.request.META.get("REMOTE_ADDR")):
            raise ApiError(
                HTTPStatus.FORBIDDEN, "ip_not_allowed", "Your address is not on the IP allowlist of this token."
            )
        must_be_on(token.connection)
        with use_context(replace(current_context(), via=Via.BEARER)):
            try:
                with self.unchanged(token):
                    return token.rotate(by=None, presented=presented.secret, **terms)
            except (TokenAlreadyRevoked, AskedForNew, Expired, Superseded):  # The token ended after authentication.
                raise AuthenticationFailed(code="unauthorized") from None

    def _by_person(self, pk: UUID, terms: Mapping[str, Any]) -> Issued:
        """Rotate a token at the request of a person."""
        token = self._find(pk)
        token.must_be_active()
        must_be_on(token.connection)
        with self.unchanged(token):
            return token.rotate(by=self.me, **terms)

    @contextmanager
    def unchanged(self, row: Any) -> Iterator[None]:
        with transaction.atomic() if self.seen else nullcontext():
            if self.seen:
                row.connection.lock()  # Before the token, because Token's methods lock in this order.
            with super().unchanged(row):
                yield

    def current(self, row: Any, status: int = HTTPStatus.OK) -> Response:
        return self.answer(self._find(row.pk), status)

    def _find(self, pk: UUID) -> Token:
        """Return the token. Raises Http404 if the person may not see the token.

        Raises CapabilityRequired if the person may not do this operation with it.
        """
        token = get_object_or_404(self.get_queryset(), pk=pk)
        self.must_own(token.connection.user_id)
        return token

    def _again(self, new: Issued) -> Issued:
        """Return the issued token, re-read with the related rows that the serializer needs."""
        return Issued(with_reach(Token.objects.all()).get(pk=new.token.pk), new.secret)


def must_be_on(connection: Connection) -> None:
    """Raise ApiError if the gateway or connection is disabled, or the host is disabled, not approved or not allowed."""
    # A token may be stolen: while access is disabled, it must not rotate itself.
    if not connection.is_on:
        raise ApiError(
            HTTPStatus.FORBIDDEN,
            "disabled",
            "The gateway or the connection is disabled, or the app or agent is disabled, not approved, or not allowed "
            "at the gateway.",
        )


def filter_tokens(tokens: TokenQuerySet, query: Mapping[str, Any]) -> TokenQuerySet:
    """Return the tokens that match the query."""
    columns = {"host": "connection__host__in", "gateway": "connection__gateway__in", "user": "connection__user__in"}
    tokens = matching(tokens.filter(of_status(query["status"])), query, **columns, expires_before="expires_at__lt")
    found: TokenQuerySet = tokens.matching(query.get("q", ""), of_many=query["scope"] == "all")
    return found


# /api/api-keys: lists and revokes people's API keys. API keys are created on the API keys page only.

OTHERS = Own(Capability.PEOPLE_MANAGE)
SEEING = Own(Capability.PEOPLE_READ)


class ApiKeySerializer(serializers.Serializer[ApiKey]):
    """An API key without its secret."""

    id = Id()
    name = serializers.CharField(help_text="Name that pages show.")
    prefix = serializers.CharField(help_text="First characters of its secret, to recognise it.")
    capabilities = serializers.ListField(
        child=serializers.CharField(),
        help_text="Slugs of the key's capabilities. A capability works only while the key's owner has it, too.",
    )
    status = serializers.CharField(help_text="`active`, `expired` or `revoked`.")
    blocked_by = CauseField(help_text="`user` if it is blocked because its owner is deactivated; otherwise null.")
    blocked_reason = CauseField(help_text="Why the key is blocked, as a code; null if the key is not blocked.")
    user_email = serializers.EmailField(source="user.email", help_text="E-mail address of its owner.")
    expires_at = UtcDateTimeField(help_text="When it expires.")
    last_used_at = UtcDateTimeField(allow_null=True, help_text="When it was last used; null if never.")
    created_at = UtcDateTimeField(help_text="When it was created.")
    revoked_at = UtcDateTimeField(allow_null=True, help_text="When it was revoked; null if it was not.")


class ApiKeyQuery(ListQuery):
    """Filters of the list of API keys."""

    scope = serializers.ChoiceField(["own", "all"], default="own", help_text="Your own keys, or everyone's.")
    status = serializers.ChoiceField(STATUSES, default="active", help_text="Only keys with this status.")
    user = by_person()
    q = serializers.CharField(
        required=False,
        help_text="Text in the name, or the start of the prefix. With `scope=all`, also text in the owner's e-mail.",
    )


class ApiKeyResource(Resource):
    """API keys of people. Keys are created on the API keys page only. Revoking a key requires a person's session."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        ApiKeyAlreadyRevoked: Problem(HTTPStatus.CONFLICT, "api_key_revoked"),
        Outranked: Problem(HTTPStatus.FORBIDDEN, "beyond_yours"),
    }
    serializer_class = ApiKeySerializer
    versioned = True

    @operation(needs=SEEING, query=ApiKeyQuery, orderings=("name", "created_at", "expires_at", "last_used_at"))
    def list(self, request: Request) -> Response:
        """List API keys."""
        of_many = self.query_data["scope"] == "all"
        keys = ApiKey.objects.within_reach(self.me, of_all=of_many).of_status(self.query_data["status"])
        keys = keys.matching(self.query_data.get("q", ""), of_many=of_many)
        if user := self.query_data.get("user"):
            keys = keys.filter(user__in=user)
        return self.page(keys.order_by("-created_at", "pk"), lambda keys: keys.select_related("user"))

    @operation(needs=SEEING)
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
        return self.removed(key, key.revoke)

    def _find(self, pk: UUID) -> ApiKey:
        """Return the key. Raises Http404 if the person may not see the key.

        Raises CapabilityRequired if the person may not do this operation with it.
        """
        key = get_object_or_404(keys_known_to(self.me), pk=pk)
        self.must_own(key.user_id)
        return key


# POST /api/connections/{id}/regenerate: a new key for an app, a new secret for an agent.


class Regenerate(Connections):
    """A new secret for a connection. The previous secret stops working at once.

    For your own agent, the answer has the new secret. For another person's agent, the gateway asks this person to
    collect a new secret. For an app, the gateway makes a new key, which it never shows. In these two cases, the answer
    is the connection.
    """

    versioned = False  # The response may be a token instead of the connection.
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
        """Replace the key of an app's connection with a new key, which is never shown.

        The person needs MCP_CONNECTIONS_REVOKE, even for their own connection.
        """
        must_hold(self.me, Capability.MCP_CONNECTIONS_REVOKE)
        _must_be_renewable(connection)
        return self.changed(connection, partial(Token.objects.renew_key, connection))

    def _token(self, connection: Connection) -> Response:
        """Rotate the connection's only active token.

        If the token belongs to another person, ask this person to collect the new secret.
        """
        self.must_own(connection.user_id)
        is_own = connection.user_id == self.me.pk
        if is_own and getattr(self.request.auth, "is_api_key", False):
            # With an API key, the key needs a capability to create tokens.
            must_hold(self.me, (Capability.API_TOKENS_MANAGE, Capability.API_TOKENS_CREATE))
        if is_own or not connection.is_live:  # Other people may end the secret even of a disabled connection.
            _must_be_renewable(connection)
        active = list(Token.objects.active().filter(connection=connection, kind=TokenKind.ACCESS)[:2])
        if not active:
            raise ApiError(HTTPStatus.CONFLICT, "no_active_token", "This connection has no active token.")
        if len(active) > 1:
            raise ApiError(
                HTTPStatus.CONFLICT, "choose_token", "This connection has several active tokens. Rotate one by its id."
            )
        if not is_own:
            return self.changed(connection, active[0].ask_for_new)
        with self.unchanged(connection):
            new = active[0].rotate(by=self.me)
        return secret_answer(rotated(new._replace(token=with_reach(Token.objects.all()).get(pk=new.token.pk))))


def _must_be_renewable(connection: Connection) -> None:
    """Raise ConnectionAlreadyRevoked if the connection is revoked.

    Raise ApiError if `must_be_on` refuses the connection.
    """
    connection.must_be_live()
    must_be_on(connection)
