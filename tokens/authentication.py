"""Bearer credentials at the REST API: API keys and API access tokens.

The only operation that accepts an API access token is the token's own rotation.
"""

from dataclasses import dataclass
from typing import ClassVar

from django.conf import settings
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from accounts.models import ApiKey, User
from auditlog.models import note_api_key
from tokens import api_keys
from tokens.models import Token, TokenKind
from wire import token_text


@dataclass(frozen=True, slots=True)
class Presented:
    """The token that authenticated a request, and its secret."""

    token: Token
    secret: str
    is_data_plane: ClassVar[bool] = True

    @property
    def credential(self) -> str:
        """A name for the credential; the name does not change when the secret is rotated."""
        return f"token {self.token.pk}"


@dataclass(frozen=True, slots=True)
class ByKey:
    """The API key that authenticated a request. The key limits the user's capabilities to the key's capabilities."""

    key: ApiKey
    is_api_key: ClassVar[bool] = True

    @property
    def credential(self) -> str:
        return f"API key {self.key.pk}"


class BearerAuthentication(BaseAuthentication):
    """Authenticates requests that have a Bearer credential. The session cookie of such requests is ignored.

    `request.auth` is a `Presented` or a `ByKey`. The answer is 401 unless the credential and its owner are active.
    """

    def authenticate(self, request: Request) -> tuple[User, Presented | ByKey] | None:
        scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        secret = secret.strip()
        if key := api_keys.find_api_key(secret):
            key.note_use()
            note_api_key(f"API key {key}")
            return key.acting, ByKey(key)
        token = find_token(secret)
        if token is None and secret.lower().startswith("bearer"):
            raise AuthenticationFailed("Write the word Bearer once, then the API key.", code="unauthorized")
        if token is None:
            raise AuthenticationFailed(
                "This token is missing, unknown, expired or revoked, or its owner is inactive.", code="unauthorized"
            )
        return token.connection.user, Presented(token, secret)

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


def find_token(secret: str) -> Token | None:
    """Return the API access token with this secret if both token and user are active, otherwise None."""
    if not token_text.well_formed(secret, {token_text.ACCESS}):
        return None
    digests = token_text.candidates(secret, settings.TOKEN_KEYS)
    alive = {"connection__revoked_at": None, "connection__user__is_active": True}
    return (
        Token.objects.active()
        .filter(digest__in=digests, kind=TokenKind.ACCESS, **alive)
        .select_related("connection__user", "connection__host", "connection__gateway")
        .first()
    )
