"""The toolkit's OAuth server, with the form (that of all our credentials) and the lifetime of its tokens."""

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


class Server(OAuthServer):  # type: ignore[misc]
    """Issues access tokens that live as long as the workspace says, an hour at most.

    It knows the grants and responses that our metadata names; any other is unsupported (RFC 6749 sections 4.1.2.1 and
    5.2).
    """

    def __init__(self, request_validator: Any, **options: Any) -> None:
        super().__init__(request_validator, **{**options, "token_expires_in": lifetime})
        self._grant_types = {name: self.grant_types[name] for name in GRANTS}
        self._response_types = {name: self.response_types[name] for name in RESPONSES}


def has_readable_query(request: HttpRequest) -> bool:
    """Whether the toolkit can read the query: it fails on a % that escapes nothing, and the database takes no NUL."""
    query = request.META.get("QUERY_STRING", "")
    return "%00" not in query and not BROKEN_ESCAPE.search(query)


def access_token(request: Request, refresh_token: bool = False) -> str:
    return token_text.mint(token_text.OAUTH_ACCESS)


def refresh_token(request: Request, refresh_token: bool = False) -> str:
    return token_text.mint(token_text.OAUTH_REFRESH)


def lifetime(request: Request) -> int:
    """How many seconds an access token lives: an hour at most."""
    return WorkspaceSettings.load().oauth_access_token_seconds
