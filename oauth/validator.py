"""The toolkit's validator with our rules: every credential belongs to one live connection."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from oauth2_provider.models import AccessToken, Grant, RefreshToken
from oauth2_provider.oauth2_validators import OAuth2Validator
from oauthlib.common import Request
from oauthlib.oauth2.rfc6749 import errors

from accounts.models import WorkspaceSettings
from auditlog.actions import Action
from auditlog.models import Event
from connections.models import Connection
from oauth.models import Binding, Registration
from oauth.resource_indicators import same_resource
from tokens.models import Token

SCOPES = ["mcp"]
GRACE = timedelta(seconds=60)


class Validator(OAuth2Validator):  # type: ignore[misc]
    """Issues and refreshes tokens for live connections only, and for their own gateway only.

    A grant comes with its connection as `request.connection`; from then on its binding leads back there.
    """

    def _load_application(self, client_id: str, request: Request) -> Any:
        """The app with this id; one with a NUL, in HTTP Basic too, is unknown before the database is asked."""
        return super()._load_application(client_id, request) if "\x00" not in (client_id or "") else None

    def _extract_basic_auth(self, request: Request) -> str | None:
        """The credentials after Basic; None unless ASCII, on which the toolkit would fail."""
        credentials: str | None = super()._extract_basic_auth(request)
        return credentials if credentials and credentials.isascii() else None

    # --- One scope: what may be done is decided in the database ---------------------------------------------------

    def validate_scopes(self, client_id: str, scopes: Any, client: Any, request: Request, *_: Any, **__: Any) -> bool:
        """Whatever scopes a client asks for, it gets the one there is."""
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
        Binding.objects.create(connection=request.connection, grant=grant)
        return grant

    def validate_code(self, client_id: str, code: str, client: Any, request: Request, *_: Any, **__: Any) -> bool:
        """Whether the code was never used, and its connection still lives.

        A code that comes again ends what it brought the first time (OAuth 2.1 section 4.1.3).
        """
        if not super().validate_code(client_id, code, client, request):
            _end_family_of_code(code, client)
            return False
        request.binding = Binding.objects.select_related("connection__user").filter(grant__code=code).first()
        return request.binding is not None and _is_usable(request.binding.connection)

    def confirm_redirect_uri(self, client_id: str, code: str, redirect_uri: str, client: Any, *rest: Any) -> bool:
        """Whether the code was sent to this address; the error is the one of RFC 6749 section 5.2."""
        if super().confirm_redirect_uri(client_id, code, redirect_uri, client, *rest):
            return True
        raise errors.InvalidGrantError("The code was sent to another redirect address.")

    def invalidate_authorization_code(self, client_id: str, code: str, request: Request, *_: Any, **__: Any) -> None:
        """Nothing is left to do: the code was spent in the transaction that stored the tokens."""

    # --- Tokens -----------------------------------------------------------------------------------------------------

    def validate_refresh_token(self, refresh_token: str, client: Any, request: Request, *_: Any, **__: Any) -> bool:
        """Whether this refresh token may be used now.

        One that was used before still works for 60 s, since several processes of a client may share it; later its
        return ends its whole family. One unused for too long is dead.
        """
        row = _refresh_token(refresh_token, client)
        if row is None or not _is_usable(row.binding.connection):
            return False
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
        """Store a pair of tokens, tied to the connection and to the present generation of its key.

        The connection's row is locked first, as everywhere, so a revoke and a refresh cannot cross.
        """
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
        """A token is for its connection's gateway, under whatever public URL it has now (RFC 8707)."""
        url = request.binding.connection.gateway.url
        resources = [value for name, value in request.decoded_body or () if name == "resource" and value]
        if not all(same_resource(resource, url) for resource in resources):
            description = "The resource must be the gateway that was authorised."
            raise errors.CustomOAuth2Error(error="invalid_target", description=description, request=request)
        request.resource = [url]

    def revoke_token(self, token: str, token_type_hint: str, request: Request, *_: Any, **__: Any) -> None:
        """End the one family this access or refresh token belongs to (RFC 7009)."""
        row = _refresh_token(token, request.client)
        if row is None:
            access = AccessToken.objects.filter(token_checksum=_sha256(token), application=request.client).first()
            bound = RefreshToken.objects.filter(access_token=access, binding__isnull=False)
            row = bound.select_related("binding__connection").first() if access else None
        if row is not None:
            _end_family(row, "revoked by the app")


def _use_up(request: Request) -> tuple[RefreshToken | None, bytes | None]:
    """Mark the refresh token of the request as used, or store the digest of its code."""
    if request.grant_type == "refresh_token":
        row = RefreshToken.objects.select_for_update().get(pk=request.refresh_token_instance.pk)
        if row.revoked is not None and not _is_in_grace(row):  # Its family ended since it was judged.
            raise errors.InvalidGrantError(request=request)
        if row.revoked is None:
            row.revoked = timezone.now()
            row.save(update_fields=["revoked", "updated"])
            Binding.objects.filter(refresh_token=row).update(superseded_at=row.revoked)
        return row, None
    spent, _ = Grant.objects.filter(code=request.code, application=request.client).delete()
    if not spent:  # Another request was faster by a blink.
        raise errors.InvalidGrantError(request=request)
    return None, hashlib.sha256(request.code.encode()).digest()


def _note_use(client: Any) -> None:
    """Once an hour is enough to tell an app that is used from one that is not."""
    now = timezone.now()
    unnoted = Q(last_used_at=None) | Q(last_used_at__lt=now - timedelta(hours=1))
    Registration.objects.filter(unnoted, application=client).update(last_used_at=now)


def _refresh_token(text: str, client: Any) -> RefreshToken | None:
    """The refresh token of this client with this text, if it is bound to a connection."""
    return (
        RefreshToken.objects.filter(token_checksum=_sha256(text), application=client, binding__isnull=False)
        .select_related("user", "binding__connection__user", "binding__connection__gateway")
        .order_by("-pk")
        .first()
    )


def _is_usable(connection: Connection) -> bool:
    """Disabled layers do not matter here: each MCP request asks them anyway."""
    return connection.revoked_at is None and connection.user.is_active


def _is_in_grace(row: RefreshToken) -> bool:
    """Whether it was superseded, not repudiated, a moment ago, and its family still lives."""
    superseded = row.binding.superseded_at
    family = RefreshToken.objects.filter(token_family=row.token_family, revoked=None)
    return superseded is not None and timezone.now() - superseded <= GRACE and family.exists()


def _end_family(row: RefreshToken, reason: str) -> None:
    """Kill every refresh and access token that descends from one authorisation; the connection lives on."""
    with transaction.atomic():
        # The connection first, as everywhere: a refresh under way has then either happened or will see the end.
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
