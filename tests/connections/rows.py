"""Rows of connections on pages."""

from typing import Any

from accounts.models import User
from connections.models import Connection
from tests import make

HTMX = {"HX-Request": "true"}


def text(response: Any) -> str:
    return str(response.content.decode())


def row(response: Any, connection: Connection) -> str:
    """Return the markup of one connection, including its tokens."""
    return text(response).split(f'id="connection-{connection.pk}"')[1].split("</tbody>")[0]


def a_connection(user: User, name: str = "CI bot") -> Connection:
    return make.connection(make.agent(by=user, name=name), make.gateway(), user)
