"""A browser in which the password was typed again just now, so that grave acts are not asked for it."""

from django.test import Client

from tests import make


def confirmed(client: Client) -> Client:
    response = client.post("/accounts/reauthenticate/", {"password": make.PASSWORD, "next": "/settings/profile"})
    assert response["Location"] == "/settings/profile"
    return client
