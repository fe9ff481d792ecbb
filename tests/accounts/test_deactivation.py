"""Deactivating a person, and cutting a person off."""

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
    assert "1 host, 1 user, 0 calls in 24 h." in asked
    assert "bo@example.com is deactivated" in text(done)
    assert browser.get("/").status_code == 302
    connection.refresh_from_db()
    assert (connection.is_live, connection.blocked_by) == (True, "user")


def test_cutting_off_says_what_ends_and_ends_it(chief: User, sign_in: SignIn) -> None:
    bo = make.user(Capability.HOSTS_READ, email="bo@example.com")
    make.api_key(bo, Capability.HOSTS_READ)
    gateway = make.gateway(name="Work")
    for number in range(7):
        make.connection(make.agent(by=bo, name=f"bot {number}"), gateway, bo)
    client = sign_in(chief)

    asked = text(client.get(f"/people/{bo.pk}/cut-off/"))
    done = client.post(f"/people/{bo.pk}/cut-off/", {"typed": "bo@example.com"}, follow=True)

    assert "Cut bo@example.com off?" in asked
    assert "7 hosts, 1 user, 0 calls in 24 h." in asked
    assert "Revoked: bot 0 on Work, bot 1 on Work, bot 2 on Work, bot 3 on Work, bot 4 on Work and 2 more." in asked
    assert "An API key ends too." in asked
    assert "This cannot be undone." in asked
    assert "bo@example.com is cut off, 7 connections revoked" in text(done)
    assert not bo.connections.filter(revoked_at=None).exists()
    assert set(bo.connections.values_list("revoke_reason", flat=True)) == {"user_deactivated"}
    assert not User.objects.get(pk=bo.pk).is_active
    assert Event.objects.filter(actor_email=chief.email, action="user.deactivated").count() == 1


def test_deactivated_people_can_still_be_cut_off(chief: User, sign_in: SignIn) -> None:
    bo = make.user()
    connection = make.connection(make.agent(by=bo), make.gateway(), bo)
    bo.deactivate(by=chief)

    done = sign_in(chief).post(f"/people/{bo.pk}/cut-off/", {"typed": bo.email}, follow=True)

    assert "1 connection revoked" in text(done)
    connection.refresh_from_db()
    assert not connection.is_live


@pytest.mark.parametrize("act", ["deactivate", "cut-off"])
def test_the_last_manager_of_people_stays(act: str, chief: User, sign_in: SignIn) -> None:
    connection = make.connection(make.agent(by=chief), make.gateway(), chief)

    response = sign_in(chief).post(f"/people/{chief.pk}/{act}/", {"typed": chief.email}, follow=True)

    assert "The last active person who can manage people must keep that capability." in text(response)
    connection.refresh_from_db()
    assert connection.is_live
    assert User.objects.get(pk=chief.pk).is_active


def test_names_on_the_way_stay_text(chief: User, sign_in: SignIn) -> None:
    bo = make.user()
    make.connection(make.agent(by=bo, name="<img src=x>"), make.gateway(), bo)

    asked = text(sign_in(chief).get(f"/people/{bo.pk}/cut-off/"))

    assert "<img" not in asked
    assert "&lt;img src=x&gt;" in asked
