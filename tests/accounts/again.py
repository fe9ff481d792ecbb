"""A browser in which the password was typed again just now, so that grave acts are not asked for it."""

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
    """Where it goes on after the confirmation that this answer leads to."""
    address = asked.get("HX-Redirect") or asked["Location"]
    return str(parse_qs(urlsplit(address).query)["next"][0])


def confirm(client: Client, asked: Any) -> Any:
    """Type the password that is asked for, and send what waited for it, as a browser does: the answer to that."""
    return sent_again(client, client.post(AGAIN, {"password": make.PASSWORD, "next": onward(asked)}))


def sent_again(client: Client, page: Any) -> Any:
    """The answer to the form that this page sends by itself."""
    address, fields = form_of(page)
    return client.post(address, fields)


def form_of(page: Any) -> tuple[str, dict[str, str]]:
    """The address of the form that sends itself, and its fields."""
    text = page.content.decode()
    action = re.search(r'<form method="post" action="([^"]*)" data-sends>(.*?)</form>', text, re.DOTALL)
    assert action, text
    return unescape(action[1]), dict(re.findall(r'name="(\w+)" value="([^"]*)"', action[2]))
