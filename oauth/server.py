"""The toolkit's OAuth server, with the lifetime of access tokens read from the workspace each time."""

from typing import Any

from oauthlib.oauth2 import Server as OAuthServer

from oauth import generators


class Server(OAuthServer):  # type: ignore[misc]
    """Issues access tokens that live as long as the workspace says, an hour at most (W26)."""

    def __init__(self, request_validator: Any, **options: Any) -> None:
        super().__init__(request_validator, **{**options, "token_expires_in": generators.lifetime})
