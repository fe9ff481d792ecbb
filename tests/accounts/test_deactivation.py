"""Deactivating a person, and stopping a person on the Incident page, which also revokes the person's access."""

from typing import Any

import pytest

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from tests import make
from tests.conftest import SignIn

pytestmark = pytest.mark.django_db


@pytest.fixture
def chief() -> User:
    return make.user(*Capability, email="chief@example.com")


def text(response: Any) -> str:
    return str(response.content.decode())


@pytest.mark.full
def test_deactivating_says_what_stops_and_stops_it(chief: User, sign_in: SignIn) -> None:
    bo = make.user(email="bo@example.com")
    connection = make.connection(make.agent(by=bo), make.gateway(), bo)
    browser, client = sign_in(bo), sign_in(chief)

    asked = text(client.get(f"/people/{bo.pk}/deactivate/"))
    done = client.post(f"/people/{bo.pk}/deactivate/", follow=True)

    assert (
        "Deactivate bo@example.com? All sessions end and every connection acting as this user stops on its next "
        "request."
    ) in asked
    assert "1 app or agent, 1 person." in asked
    assert "bo@example.com is deactivated" in text(done)
    assert browser.get("/").status_code == 302
    connection.refresh_from_db()
    assert (connection.is_live, connection.blocked_by) == (True, "user")


@pytest.mark.full
def test_cutting_off_says_what_ends_and_ends_it(chief: User, sign_in: SignIn) -> None:
    bo = make.user(Capability.HOSTS_READ, email="bo@example.com", display_name="<img src=x>")
    make.api_key(bo, Capability.HOSTS_READ)
    gateway = make.gateway(name="Work")
    for number in range(7):
        make.connection(make.agent(by=bo, name=f"bot {number}"), gateway, bo)
    client = sign_in(chief)

    asked = text(client.get(f"/incident/people/{bo.pk}/stop/"))
    done = client.post(f"/incident/people/{bo.pk}/stop/", follow=True)

    assert "Deactivate and revoke 8" in asked
    assert "<img" not in asked
    assert "&lt;img src=x&gt;" in asked
    assert "Ends 7 connections with the next request. 1 API key for the REST API ends too." in asked
    assert "Revoking cannot be undone; the account can be reactivated." in asked
    assert "bo@example.com is deactivated, 7 connections revoked" in text(done)
    assert not bo.connections.filter(revoked_at=None).exists()
    assert set(bo.connections.values_list("revoke_reason", flat=True)) == {"user_deactivated"}
    assert not User.objects.get(pk=bo.pk).is_active
    assert Event.objects.filter(actor_email=chief.email, action="user.deactivated").count() == 1


@pytest.mark.full
def test_of_deactivated_people_connections_and_sign_ins_at_servers_can_still_be_cut_off(
    chief: User, sign_in: SignIn
) -> None:
    bo = make.user()
    connection = make.connection(make.agent(by=bo), make.gateway(), bo)
    identity = make.identity(make.server(auth_type="oauth"), bo)
    type(identity).objects.filter(pk=identity.pk).update(issuer="https://github.example")
    bo.deactivate(by=chief)
    client = sign_in(chief)

    asked = text(client.get(f"/incident/people/{bo.pk}/stop/"))
    done = client.post(f"/incident/people/{bo.pk}/stop/", follow=True)

    assert "Revoke 2" in asked
    assert "1 sign-in at servers ends too." in asked
    identity.refresh_from_db()
    connection.refresh_from_db()
    assert identity.revoked_at
    assert not connection.is_live
    assert "There is nothing left to stop" in text(done)


def test_the_last_manager_of_people_stays(chief: User, sign_in: SignIn) -> None:
    connection = make.connection(make.agent(by=chief), make.gateway(), chief)
    client = sign_in(chief)

    for path in (f"/people/{chief.pk}/deactivate/", f"/incident/people/{chief.pk}/stop/"):
        refused = text(client.post(path, follow=True))
        assert "The last active person who can manage people must keep that capability." in refused

    connection.refresh_from_db()
    assert connection.is_live
    assert User.objects.get(pk=chief.pk).is_active
