"""Apps registered by hand, for clients that need a client_id typed in."""

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from hosts.models import Host
from tests import make
from tests.conftest import SignIn
from tests.oauth.apps import CALLBACK, App, browser, connect, decide, register

pytestmark = pytest.mark.django_db


def run(*arguments: str) -> dict[str, Any]:
    said = StringIO()
    call_command("register_client", "--name", "Claude Desktop", "--redirect-uri", CALLBACK, *arguments, stdout=said)
    return dict(json.loads(said.getvalue()))


def test_an_app_without_a_secret_connects_and_is_no_others_namesake(viv: User, sign_in: SignIn) -> None:
    """Another registration with the same name and URI counts as a different app."""
    member, gateway = make.user(Capability.OAUTH_CONNECT), make.gateway()
    made = run()
    assert set(made) == {"client_id", "issuer"}
    assert Event.objects.get(action="oauth.app_registered").target_label == "Claude Desktop"

    connect(App(made["client_id"]), member, gateway)
    host = Host.objects.get()
    connect(App(register().json()["client_id"]), member, gateway)

    assert Host.objects.count() == 2
    page = sign_in(viv).get(f"/hosts/{host.pk}/registrations/").content.decode()
    assert "Registered by an administrator" in page
    assert "Self-reported" not in page


@pytest.mark.full
def test_an_app_with_a_secret_needs_it() -> None:
    member, gateway = make.user(Capability.OAUTH_CONNECT), make.gateway()
    made = run("--confidential")
    app = App(made["client_id"])

    code = decide(browser(member), app.question(gateway))["code"]

    assert app.exchange(code).json()["error"] == "invalid_client"
    assert app.exchange(code, client_secret=made["client_secret"]).status_code == 200


def test_the_rules_are_those_of_every_registration() -> None:
    with pytest.raises(CommandError, match=r"http://evil\.example/cb"):
        call_command("register_client", "--name", "X", "--redirect-uri", "http://evil.example/cb")
