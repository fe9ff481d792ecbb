"""Django OAuth Toolkit's validator, extended: every code and token belongs to one live connection."""

from __future__ import annotations

import hashlib
import re
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Q
from django.http import HttpRequest
from django.utils import timezone
from oauth2_provider.models import AccessToken, Grant, RefreshToken
from oauth2_provider.oauth2_validators import OAuth2Validator
from oauthlib.common import Request
from oauthlib.oauth2 import Server as OAuthServer
from oauthlib.oauth2.rfc6749 import errors

from accounts.models import WorkspaceSettings
from auditlog.actions import Action
from auditlog.models import Event
from connections.models import Connection
from oauth.client_metadata import same_resource
from oauth.models import Binding, Registration
from tokens.models import Token
from wire import token_text

# The toolkit's OAuth server, with our token format and lifetime.

BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")

GRANTS = ("authorization_code", "refresh_token")
RESPONSES = ("code",)


class AuthorizationServer(OAuthServer):  # type: ignore[misc]
    """Issues access tokens with the lifetime set for the workspace, an hour at most."""

    def __init__(self, request_validator: Any, **options: Any) -> None:
        super().__init__(request_validator, **{**options, "token_expires_in": lifetime})
        # Other grant and response types are refused (RFC 6749 sections 4.1.2.1 and 5.2).
        self._grant_types = {name: self.grant_types[name] for name in GRANTS}
        self._response_types = {name: self.response_types[name] for name in RESPONSES}


def has_readable_query(request: HttpRequest) -> bool:
    """Return False if the query has an invalid % escape or a NUL."""
    query = request.META.get("QUERY_STRING", "")
    # Django OAuth Toolkit would fail on an invalid escape, and the database on NUL.
    return "%00" not in query and not BROKEN_ESCAPE.search(query)


def access_token(request: Request, refresh_token: bool = False) -> str:
    return token_text.mint(token_text.OAUTH_ACCESS)


def refresh_token(request: Request, refresh_token: bool = False) -> str:
    return token_text.mint(token_text.OAUTH_REFRESH)


def lifetime(request: Request) -> int:
    """Return the lifetime of an access token in seconds, an hour at most."""
    return WorkspaceSettings.load().oauth_access_token_seconds


SCOPES = ["mcp"]
GRACE = timedelta(seconds=60)


class Validator(OAuth2Validator):  # type: ignore[misc]
    """Issues and refreshes tokens only for live connections, and only for the gateway of the connection.

    `request.connection` is the connection for which a new authorization code is issued.
    """

    def _load_application(self, client_id: str, request: Request) -> Any:
        """Return the application. Return None if `client_id` has a NUL, because the database would refuse the query.

        HTTP Basic can transport a NUL.
        """
        return super()._load_application(client_id, request) if "\x00" not in (client_id or "") else None

    def _extract_basic_auth(self, request: Request) -> str | None:
        """Return the Basic credentials; None if there are none, or if they are not ASCII.

        Django OAuth Toolkit would fail on credentials that are not ASCII.
        """
        credentials: str | None = super()._extract_basic_auth(request)
        return credentials if credentials and credentials.isascii() else None

    # --- One scope: access is decided by the database ---------------------------------------------------

    def validate_scopes(self, client_id: str, scopes: Any, client: Any, request: Request, *_: Any, **__: Any) -> bool:
        """Grant the only scope that exists, regardless of the requested scopes."""
        request.scopes = SCOPES
        return True

    def get_default_scopes(self, client_id: str, request: Request, *_: Any, **__: Any) -> list[str]:
        return SCOPES

    def get_original_scopes(self, refresh_token: str, request: Request, *_: Any, **__: Any) -> list[str]:
        return SCOPES

    def is_within_original_scope(self, scopes: Any, refresh_token: str, request: Request, *_: Any, **__: Any) -> bool:
        request.scopes = SCOPES
        return True

    # --- Codes ------------------------------------------------------------------------------------------------------

    def _create_authorization_code(
        self, request: Request, code: dict[str, str], expires: datetime | None = None
    ) -> Any:
        grant = super()._create_authorization_code(request, code, expires)
        Binding.objects.create(connection=request.connection, grant=grant)  # Later steps read the connection from it.
        return grant

    def validate_code(self, client_id: str, code: str, client: Any, request: Request, *_: Any, **__: Any) -> bool:
        """Return whether the code is unused and its connection is live.

        If the code was used before, revoke its tokens.
        """
        if not super().validate_code(client_id, code, client, request):
            _end_family_of_code(code, client)  # OAuth 2.1 section 4.1.3.
            return False
        request.binding = Binding.objects.select_related("connection__user").filter(grant__code=code).first()
        return request.binding is not None and _is_usable(request.binding.connection)

    def confirm_redirect_uri(self, client_id: str, code: str, redirect_uri: str, client: Any, *rest: Any) -> bool:
        """Return True if the code was issued for this redirect URI. Raises InvalidGrantError (RFC 6749 section 5.2)."""
        if super().confirm_redirect_uri(client_id, code, redirect_uri, client, *rest):
            return True
        raise errors.InvalidGrantError("The code was issued for another redirect URI.")

    def invalidate_authorization_code(self, client_id: str, code: str, request: Request, *_: Any, **__: Any) -> None:
        """Do nothing, because the code was deleted in the transaction that stored the tokens."""

    # --- Tokens -----------------------------------------------------------------------------------------------------

    def validate_refresh_token(self, refresh_token: str, client: Any, request: Request, *_: Any, **__: Any) -> bool:
        """Return whether this refresh token may be used now.

        If a token is used again, more than GRACE after its first use, its whole token family is revoked.
        """
        row = _refresh_token(refresh_token, client)
        if row is None or not _is_usable(row.binding.connection):
            return False
        # Several processes of a client may share a token, so a used token still works for a short time.
        if row.revoked is not None and not _is_in_grace(row):
            _end_family(row, "reuse")
            return False
        idle = timedelta(days=WorkspaceSettings.load().oauth_refresh_idle_days)
        if row.created + idle <= timezone.now():
            return False
        request.user, request.refresh_token, request.refresh_token_instance = row.user, refresh_token, row
        request.binding = row.binding
        return True

    def _save_bearer_token(self, token: dict[str, Any], request: Request, *_: Any, **__: Any) -> None:
        """Store an access token and a refresh token, both bound to the connection."""
        # First lock the connection, like all code that changes tokens, so that revocation and refresh cannot overlap.
        connection = Connection.objects.select_for_update(of=("self",)).get(pk=request.binding.connection_id)
        key = Token.objects.live_key(connection)
        if connection.revoked_at or key is None:
            raise errors.InvalidGrantError(request=request)
        self._check_and_set_request_resource(request)
        previous, code_digest = _use_up(request)
        expires = timezone.now() + timedelta(seconds=token["expires_in"])
        access = self._create_access_token(expires, request, token)
        refresh = self._create_refresh_token(request, token["refresh_token"], access, previous)
        Binding.objects.create(connection=connection, access_token=access, generation=key.generation)
        Binding.objects.create(connection=connection, refresh_token=refresh, code_digest=code_digest)
        if previous:
            Connection.objects.filter(pk=connection.pk).update(last_token_at=timezone.now())
        _note_use(request.client)

    def _check_and_set_request_resource(self, request: Request) -> None:
        """Limit the token to the URL of its connection's gateway; refuse a request for another resource (RFC 8707)."""
        url = request.binding.connection.gateway.url
        resources = [value for name, value in request.decoded_body or () if name == "resource" and value]
        if not all(same_resource(resource, url) for resource in resources):
            description = "The resource must be the gateway that was authorised."
            raise errors.CustomOAuth2Error(error="invalid_target", description=description, request=request)
        request.resource = [url]

    def revoke_token(self, token: str, token_type_hint: str, request: Request, *_: Any, **__: Any) -> None:
        """Revoke the token family to which this access or refresh token belongs (RFC 7009)."""
        row = _refresh_token(token, request.client)
        if row is None:
            access = AccessToken.objects.filter(token_checksum=_sha256(token), application=request.client).first()
            bound = RefreshToken.objects.filter(access_token=access, binding__isnull=False)
            row = bound.select_related("binding__connection").first() if access else None
        if row is not None:
            _end_family(row, "revoked by the app")


def _use_up(request: Request) -> tuple[RefreshToken | None, bytes | None]:
    """Mark the refresh token as used, or delete the code. Raises InvalidGrantError.

    Return a pair: the refresh token (None for a code), and the code's digest (None for a refresh token).
    """
    if request.grant_type == "refresh_token":
        row = RefreshToken.objects.select_for_update().get(pk=request.refresh_token_instance.pk)
        if row.revoked is not None and not _is_in_grace(row):  # The token's family was revoked meanwhile.
            raise errors.InvalidGrantError(request=request)
        if row.revoked is None:
            row.revoked = timezone.now()
            row.save(update_fields=["revoked", "updated"])
            Binding.objects.filter(refresh_token=row).update(superseded_at=row.revoked)
        return row, None
    spent, _ = Grant.objects.filter(code=request.code, application=request.client).delete()
    if not spent:  # A concurrent request used the code first.
        raise errors.InvalidGrantError(request=request)
    return None, hashlib.sha256(request.code.encode()).digest()


def _note_use(client: Any) -> None:
    """Record, at most once an hour, that the app is in use."""
    now = timezone.now()
    unnoted = Q(last_used_at=None) | Q(last_used_at__lt=now - timedelta(hours=1))
    Registration.objects.filter(unnoted, application=client).update(last_used_at=now)


def _refresh_token(text: str, client: Any) -> RefreshToken | None:
    """Return this client's refresh token `text`. Return None if it is unknown or belongs to no connection."""
    return (
        RefreshToken.objects.filter(token_checksum=_sha256(text), application=client, binding__isnull=False)
        .select_related("user", "binding__connection__user", "binding__connection__gateway")
        .order_by("-pk")
        .first()
    )


def _is_usable(connection: Connection) -> bool:
    """True if tokens may be issued for `connection`: it is not revoked, and its person is active.

    The host, gateway and connection may be disabled, because each MCP request checks that they are enabled.
    """
    return connection.revoked_at is None and connection.user.is_active


def _is_in_grace(row: RefreshToken) -> bool:
    """True if the token was superseded at most GRACE ago and its family is live."""
    superseded = row.binding.superseded_at
    family = RefreshToken.objects.filter(token_family=row.token_family, revoked=None)
    return superseded is not None and timezone.now() - superseded <= GRACE and family.exists()


def _end_family(row: RefreshToken, reason: str) -> None:
    """Revoke all refresh and access tokens of one authorization; the connection stays live."""
    with transaction.atomic():
        # Lock the connection first: then a concurrent refresh has either completed, or it will see the revocation.
        connection = row.binding.connection.lock()
        if RefreshToken.objects.filter(token_family=row.token_family, revoked=None).exists():
            RefreshToken.revoke_family(row.token_family)
            Event.objects.record(Action.OAUTH_FAMILY_ENDED, connection, by=None, changes={"reason": [None, reason]})


def _end_family_of_code(code: str, client: Any) -> None:
    digest = hashlib.sha256(code.encode()).digest()
    family = Binding.objects.filter(code_digest=digest, refresh_token__application=client)
    first = family.select_related("refresh_token").first()
    if first is not None:
        _end_family(first.refresh_token, "code used again")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
