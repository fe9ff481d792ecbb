"""The texts of OAuth tokens: the same 48-character form as all our credentials."""

from oauthlib.common import Request

from accounts.models import WorkspaceSettings
from wire import token_text


def access_token(request: Request, refresh_token: bool = False) -> str:
    return token_text.mint(token_text.OAUTH_ACCESS)


def refresh_token(request: Request, refresh_token: bool = False) -> str:
    return token_text.mint(token_text.OAUTH_REFRESH)


def lifetime(request: Request) -> int:
    """How many seconds an access token lives: an hour at most."""
    return WorkspaceSettings.load().oauth_access_token_seconds
