"""A person who connects an app to a gateway."""

import pytest

from accounts.models import User
from capabilities import Capability
from gateways.models import Gateway
from tests import make
from tests.oauth.apps import App, register


@pytest.fixture
def member(db: None) -> User:
    return make.user(Capability.OAUTH_CONNECT)


@pytest.fixture
def gateway(db: None) -> Gateway:
    return make.gateway(make.server(), name="Quickstart")


@pytest.fixture
def app(db: None) -> App:
    return App(register().json()["client_id"])
