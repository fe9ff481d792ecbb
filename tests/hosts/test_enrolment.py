"""The host page's enrolment switch and link, and approving a waiting app."""

from typing import Any

import pytest
from django.test import Client

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from hosts.models import Host
from tests import make
from tests.conftest import SignIn

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}


@pytest.fixture
def bot(ana: User) -> Host:
    return make.agent(by=ana, name="Feedback bot")


@pytest.fixture
def waiting() -> Host:
    return make.app("Claude Desktop", needs_approval=True)


def text(response: Any) -> str:
    return str(response.content.decode())


# --- Enrolment --------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_link_is_there_while_enrolment_is_on(ana: User, bot: Host, sign_in: SignIn) -> None:
    client, link = sign_in(ana), f"http://localhost:8000/connect/?host={bot.pk}"

    off = text(client.get(f"/hosts/{bot.pk}/"))
    answer = client.post(f"/hosts/{bot.pk}/enrolment/on/", headers=HTMX)
    on = text(client.get(f"/hosts/{bot.pk}/"))

    assert "Allow enrolment" in off
    assert link not in off
    assert text(answer).lstrip().startswith('<section class="card" id="enrolment"')
    for page in (text(answer), on):
        assert link in page
        assert "Copy enrolment link" in page
    assert [event.changes for event in Event.objects.filter(action="host.updated")] == [
        {"allow_enrolment": [False, True]}
    ]


@pytest.mark.full
def test_the_link_works_for_a_member_as_long_as_it_is_on(ana: User, ann: User, bot: Host, sign_in: SignIn) -> None:
    make.gateway()
    member, owner, link = sign_in(ann), sign_in(ana), f"/connect/?host={bot.pk}"

    assert member.get(link).status_code == 403
    owner.post(f"/hosts/{bot.pk}/enrolment/on/")
    assert member.get(link, follow=True).status_code == 200
    owner.post(f"/hosts/{bot.pk}/enrolment/off/")
    assert member.get(link).status_code == 403


@pytest.mark.full
@pytest.mark.parametrize("verb", ["on", "off"])
def test_the_switch_takes_its_capability(verb: str, bot: Host, sign_in: SignIn) -> None:
    path = f"/hosts/{bot.pk}/enrolment/{verb}/"
    without = sign_in(make.user(*set(Capability) - {Capability.API_TOKENS_MANAGE}))

    assert Client().post(path)["Location"].startswith("/accounts/login/")
    assert without.post(path).status_code == 403
    assert "enrolment/on/" not in text(without.get(f"/hosts/{bot.pk}/"))
    assert sign_in(make.user(Capability.API_TOKENS_MANAGE)).post(path).status_code == 302
    assert sign_in(make.user(Capability.API_TOKENS_MANAGE)).get(path).status_code == 405


@pytest.mark.full
def test_apps_take_no_enrolment(ana: User, sign_in: SignIn) -> None:
    app = make.app()

    assert sign_in(ana).post(f"/hosts/{app.pk}/enrolment/on/").status_code == 404
    assert "Enrolment" not in text(sign_in(ana).get(f"/hosts/{app.pk}/"))


# --- Approval ---------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_waiting_app_says_so_and_can_be_let_in(ana: User, waiting: Host, sign_in: SignIn) -> None:
    client = sign_in(ana)

    for path in ("/hosts/", f"/hosts/{waiting.pk}/"):
        assert "Waiting for approval" in text(client.get(path))
        assert f'action="/hosts/{waiting.pk}/approve/"' in text(client.get(path))
    done = client.post(f"/hosts/{waiting.pk}/approve/", follow=True)

    waiting.refresh_from_db()
    assert (waiting.is_pending, waiting.approved_by) == (False, ana)
    assert "Claude Desktop allowed" in text(done)
    assert "Waiting for approval" not in text(done)
    assert Event.objects.filter(action="host.approved", actor_email=ana.email).count() == 1


@pytest.mark.parametrize(
    ("shown_in", "begins"), [("host-head", '<header class="page-header" id="host-head">'), ("", "<tr id=")]
)
def test_the_part_that_shows_it_comes_back(
    shown_in: str, begins: str, ana: User, waiting: Host, sign_in: SignIn
) -> None:
    answer = sign_in(ana).post(f"/hosts/{waiting.pk}/approve/", headers=HTMX | {"HX-Target": shown_in})

    assert text(answer).lstrip().startswith(begins)
    assert "Waiting for approval" not in text(answer)


@pytest.mark.full
def test_a_second_approval_says_so_and_is_not_recorded(ana: User, waiting: Host, sign_in: SignIn) -> None:
    client = sign_in(ana)

    client.post(f"/hosts/{waiting.pk}/approve/")
    again = client.post(f"/hosts/{waiting.pk}/approve/", follow=True)

    assert "This app is not waiting for approval." in text(again)
    assert Event.objects.filter(action="host.approved").count() == 1


@pytest.mark.full
def test_letting_in_takes_its_capability(waiting: Host, sign_in: SignIn) -> None:
    path = f"/hosts/{waiting.pk}/approve/"
    without = sign_in(make.user(*set(Capability) - {Capability.HOSTS_TOGGLE}))

    assert Client().post(path)["Location"].startswith("/accounts/login/")
    assert without.post(path).status_code == 403
    assert path not in text(without.get("/hosts/"))
    waiting.refresh_from_db()
    assert waiting.is_pending
    assert sign_in(make.user(Capability.HOSTS_TOGGLE)).post(path).status_code == 302
