"""The Playground, the gateway's own app, in the list of apps and agents."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from accounts.models import User
from capabilities import Capability
from hosts.models import Host
from tests import make

pytestmark = [pytest.mark.django_db, pytest.mark.full]


@pytest.fixture
def keeper() -> User:
    return make.user(Capability.HOSTS_READ, Capability.HOSTS_TOGGLE)


def counts(response: Any) -> tuple[str, bool]:
    """Return the count that a page shows, and True if the page has a row named Playground."""
    page = response.content.decode()
    counted = re.search(r'data-count="hosts\.(?:listed|all)"[^>]*>(\d+)<', page)
    return counted[1] if counted else "", bool(re.search('class="row-link"[^>]*>Playground<', page))


def test_the_playground_is_no_app_among_others_unless_it_waits_and_every_count_says_so(
    keeper: User, sign_in: Callable[[User], Client]
) -> None:
    client = sign_in(keeper)
    make.agent(by=keeper)
    playground = Host.objects.playground(needs_approval=True, by=keeper)
    assert counts(client.get("/hosts/?status=pending")) == ("1", True)
    playground.approve(by=keeper)

    assert counts(client.get("/hosts/")) == ("1", False)
    assert counts(client.get("/hosts/?status=enabled")) == ("1", False)
    assert counts(client.get("/hosts/?type=app"))[1] is False
    assert counts(client.get("/"))[0] == "1"
    assert counts(client.get("/hosts/?type=built-in")) == ("1", True)
    assert counts(client.get("/hosts/?q=playg")) == ("1", True)
    make.app(name="Playground")
    assert counts(client.get("/hosts/")) == ("2", True), "an app that only has its name"
