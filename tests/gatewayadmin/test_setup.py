"""The first steps of a workspace: a step is done once its result exists, such as a server or a call."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine

from accounts.models import User, WorkspaceSettings
from auditlog.models import Event
from capabilities import Capability
from gatewayadmin.first_steps import SETS_UP, Setup
from servers.models import BUILT_IN_URL
from tests import make
from tests.conftest import SignIn

pytestmark = [pytest.mark.django_db, pytest.mark.full]

HTMX = {"HX-Request": "true"}


@pytest.fixture
def owner() -> User:
    WorkspaceSettings.load()
    User.objects.all().delete()
    return make.user(*Capability)


def text(response: Any) -> str:
    return str(response.content.decode())


def done(viewer: User) -> list[str]:
    setup = Setup.of(viewer)
    return [step.name for step in setup.steps if step.done] if setup else ["all"]


def test_each_step_is_done_when_the_thing_has_happened(owner: User, settings: Any) -> None:
    built_in = make.server(slug="quickstart", url=BUILT_IN_URL)
    trial = make.gateway(built_in)
    make.call(at=datetime.now(UTC) - timedelta(days=40), outcome="denied")
    assert done(owner) == []

    server = make.server()
    assert done(owner) == ["server"]
    make.assignment(trial, server)
    assert done(owner) == ["server", "gateway"]
    make.connection(make.agent(by=owner), trial, owner)
    assert done(owner) == ["server", "gateway", "connection"]
    make.call(outcome="denied", deny_reason="host_disabled")
    assert done(owner) == ["server", "gateway", "connection"]
    make.call(method="tools/list", at=datetime.now(UTC) - timedelta(days=30))
    assert done(owner) == ["server", "gateway", "connection", "call"]
    settings.PUBLIC_URL, settings.MAIL_SERVER = "https://gateway.example.com", ""
    make.user()
    assert done(owner) == ["server", "gateway", "connection", "call", "people"], "people elsewhere need a mail server"
    settings.MAIL_SERVER = "smtp.example.com"
    assert done(owner) == ["all"]


def test_the_dashboard_shows_them_to_who_sets_up_and_says_who_else_may(sign_in: SignIn) -> None:
    WorkspaceSettings.load()
    page = text(sign_in(make.user(Capability.PEOPLE_MANAGE)).get("/"))

    assert "First steps" in page
    assert "<i>Basic server management</i>, which your role lacks" in page
    assert 'href="/servers/add/"' not in page
    assert 'href="/people/invite/"' in page
    assert "Hide for everybody" not in page
    assert "First steps" not in text(sign_in(make.user(*(set(Capability) - set(SETS_UP)))).get("/"))


def test_the_page_asks_again_and_gets_an_answer_when_something_has_happened(owner: User, sign_in: SignIn) -> None:
    client = sign_in(owner)
    asks = client.get("/").context["setup"].url

    assert client.get(asks, headers=HTMX).status_code == 204
    make.server(name="Handbook")
    ticked = client.get(asks, headers=HTMX)
    assert "Add a server<span" in text(ticked)
    asks = ticked.context["setup"].url
    with time_machine.travel(datetime.now(UTC) + timedelta(minutes=6)):
        asleep = text(client.get(asks, headers=HTMX))
    assert "Look again" in asleep
    assert "every 2s" not in asleep


def test_the_first_call_is_named_and_when_all_is_done_it_says_so(owner: User, sign_in: SignIn) -> None:
    client = sign_in(owner)
    first = make.call(feature_name="echo", client_name="Codex CLI")
    make.call(feature_name="later")

    page = text(client.get("/"))
    assert "echo from Codex CLI" in page
    assert f'href="/logs/{first.uid}/"' in page

    asks = client.get("/").context["setup"].url
    make.connection(make.agent(by=owner), make.gateway(make.server()), owner)
    make.user()
    assert "All first steps are done." in text(client.get(asks, headers=HTMX))
    assert "First steps" not in text(client.get("/"))


def test_workspace_managers_hide_the_first_steps_for_everybody_and_show_them_again(
    owner: User, sign_in: SignIn
) -> None:
    client = sign_in(owner)
    assert sign_in(make.user(Capability.PEOPLE_MANAGE)).post("/setup/dismiss/").status_code == 403

    assert client.post("/setup/dismiss/").status_code == 302
    assert "First steps</h2>" not in text(client.get("/")).replace(" <span", "</h2><span")
    assert Event.objects.get(action="workspace.updated").changes == {"setup_steps": [True, False]}
    WorkspaceSettings.edit(by=owner, setup_steps=True)
    assert 'id="setup"' in text(client.get("/"))
