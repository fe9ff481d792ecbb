"""Rows and dialogs of tokens in the HTML of pages."""

import re
from typing import Any

from accounts.models import User
from connections.models import Connection
from tests import make
from tokens.models import Token

HTMX = {"HX-Request": "true"}
ON_LIST = HTMX | {"HX-Current-URL": "http://testserver/settings/api-tokens"}


def text(response: Any) -> str:
    return str(response.content.decode())


def row(response: Any, token: Token) -> str:
    """Return the markup of one token's row on the API Tokens page."""
    return text(response).split(f'id="token-{token.pk}"')[1].split("</tr>")[0]


def names(response: Any) -> list[str]:
    """Return the tokens listed on a page, in order."""
    return [one.token.name for one in response.context["rows"]]


def a_connection(user: User, **fields: Any) -> Connection:
    return make.connection(make.agent(by=user, **fields), make.gateway(), user)


def secret_in(response: Any) -> str | None:
    """Return the secret in a show-once dialog; None if the page has none."""
    found = re.search(r'id="token-value"[^>]* value="([^"]+)"', text(response))
    return found[1] if found else None
