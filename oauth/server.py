"""The toolkit's OAuth server, with our token format and lifetime."""

import re
from typing import Any

from django.http import HttpRequest
from oauthlib.common import Request
from oauthlib.oauth2 import Server as OAuthServer

from accounts.models import WorkspaceSettings
from wire import token_text

BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")

GRANTS = ("authorization_code", "refresh_token")
RESPONSES = ("code",)


class AuthorizationServer(OAuthServer):  # type: ignore[misc]
    """Issues access tokens with the lifetime set for the workspace, an hour at most.

    Supports only the grants and responses in our metadata; others are refused (RFC 6749 sections 4.1.2.1 and 5.2).
    """

    def __init__(self, request_validator: Any, **options: Any) -> None:
        super().__init__(request_validator, **{**options, "token_expires_in": lifetime})
        self._grant_types = {name: self.grant_types[name] for name in GRANTS}
        self._response_types = {name: self.response_types[name] for name in RESPONSES}


def has_readable_query(request: HttpRequest) -> bool:
    """True if the toolkit can parse the query: it fails on an invalid % escape, and the database on NUL."""
    query = request.META.get("QUERY_STRING", "")
    return "%00" not in query and not BROKEN_ESCAPE.search(query)


def access_token(request: Request, refresh_token: bool = False) -> str:
    return token_text.mint(token_text.OAUTH_ACCESS)


def refresh_token(request: Request, refresh_token: bool = False) -> str:
    return token_text.mint(token_text.OAUTH_REFRESH)


def lifetime(request: Request) -> int:
    """Return the lifetime of an access token in seconds, an hour at most."""
    return WorkspaceSettings.load().oauth_access_token_seconds
