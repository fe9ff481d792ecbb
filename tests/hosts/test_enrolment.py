"""The page of a host: the switch and the link for enrolment, and the approval of a waiting app."""

from typing import Any

import pytest

from accounts.models import User
from auditlog.models import Event
from tests import make
from tests.conftest import SignIn

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}


def text(response: Any) -> str:
    return str(response.content.decode())


@pytest.mark.full
def test_the_link_is_there_and_works_for_members_while_enrolment_is_on(ana: User, ann: User, sign_in: SignIn) -> None:
    make.gateway()
    bot = make.agent(by=ana, name="Feedback bot")
    member, owner, link = sign_in(ann), sign_in(ana), f"/connect/?host={bot.pk}"

    off = text(owner.get(f"/hosts/{bot.pk}/"))
    assert "Allow enrolment" in off
    assert link not in off
    assert member.get(link).status_code == 403
    answer = owner.post(f"/hosts/{bot.pk}/enrolment/on/", headers=HTMX)
    assert text(answer).lstrip().startswith('<section class="card" id="enrolment"')
    for page in (text(answer), text(owner.get(f"/hosts/{bot.pk}/"))):
        assert f"http://localhost:8000{link}" in page
        assert "Copy enrolment link" in page
    assert member.get(link, follow=True).status_code == 200
    owner.post(f"/hosts/{bot.pk}/enrolment/off/")
    assert member.get(link).status_code == 403
    changes = [event.changes for event in Event.objects.filter(action="host.updated").order_by("pk")]
    assert changes == [{"allow_enrolment": [False, True]}, {"allow_enrolment": [True, False]}]


@pytest.mark.full
def test_apps_take_no_enrolment(ana: User, sign_in: SignIn) -> None:
    app = make.app()

    assert sign_in(ana).post(f"/hosts/{app.pk}/enrolment/on/").status_code == 404
    assert "Enrolment" not in text(sign_in(ana).get(f"/hosts/{app.pk}/"))


@pytest.mark.full
def test_a_waiting_app_has_no_switch_until_it_is_let_in_once(ana: User, sign_in: SignIn) -> None:
    waiting, client = make.app("Claude Desktop", needs_approval=True), sign_in(ana)
    approve = f"/hosts/{waiting.pk}/approve/"

    row = text(client.get("/hosts/")).split(f'id="host-{waiting.pk}"')[1].split("</tr>")[0]
    head = text(client.get(f"/hosts/{waiting.pk}/")).split('id="host-head"')[1].split("</header>")[0]
    for part in (row, head):
        assert "Waiting for approval" in part
        assert 'role="switch"' not in part
        assert f'action="{approve}"' in part
    done = client.post(approve, follow=True)

    waiting.refresh_from_db()
    assert (waiting.is_pending, waiting.approved_by) == (False, ana)
    assert "Claude Desktop allowed" in text(done)
    assert "Waiting for approval" not in text(done)
    assert "This app is not waiting for approval." in text(client.post(approve, follow=True))
    assert Event.objects.filter(action="host.approved", actor_email=ana.email).count() == 1


def test_letting_an_app_in_swaps_the_part_of_the_page_that_showed_it(ana: User, sign_in: SignIn) -> None:
    for target, begins in {"host-head": '<header class="page-header" id="host-head">', "": "<tr id="}.items():
        waiting = make.app(needs_approval=True)
        answer = sign_in(ana).post(f"/hosts/{waiting.pk}/approve/", headers=HTMX | {"HX-Target": target})

        assert text(answer).lstrip().startswith(begins)
        assert "Waiting for approval" not in text(answer)
