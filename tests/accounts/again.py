"""Password confirmation in a test browser."""

import re
from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlsplit

from django.test import Client

from tests import make

AGAIN = "/accounts/reauthenticate/"


def confirmed(client: Client) -> Client:
    response = client.post(AGAIN, {"password": make.PASSWORD, "next": "/settings/profile"})
    assert response["Location"] == "/settings/profile"
    return client


def onward(asked: Any) -> str:
    """Return the URL that follows the password confirmation. `asked` is the response that requires the confirmation."""
    address = asked.get("HX-Redirect") or asked["Location"]
    return str(parse_qs(urlsplit(address).query)["next"][0])


def confirm(client: Client, asked: Any) -> Any:
    """Confirm the password as `asked` requires, submit the stored form again, and return the response to the form."""
    return sent_again(client, client.post(AGAIN, {"password": make.PASSWORD, "next": onward(asked)}))


def sent_again(client: Client, page: Any) -> Any:
    """Submit the form on `page` that a script submits in a browser. Return the response."""
    address, fields = form_of(page)
    return client.post(address, fields)


def form_of(page: Any) -> tuple[str, dict[str, str]]:
    """Return the address and the fields of the form on `page` that a script submits in a browser."""
    text = page.content.decode()
    action = re.search(r'<form method="post" action="([^"]*)" data-sends>(.*?)</form>', text, re.DOTALL)
    assert action, text
    return unescape(action[1]), dict(re.findall(r'name="(\w+)" value="([^"]*)"', action[2]))
