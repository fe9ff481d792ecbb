"""A page that refuses a person lets them ask for the missing capability, and people who assign roles are notified."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.core import mail

from accounts.asking import open_requests
from accounts.models import User
from attention import telling
from auditlog.actions import Action
from auditlog.models import Event
from auditlog.sentences import sentence
from capabilities import Capability
from tests import make
from tests.conftest import SignIn
from tests.rest import Rest

pytestmark = pytest.mark.django_db

TOKENS = Capability.API_TOKENS_CREATE


@pytest.fixture
def chief() -> User:
    return make.user(*Capability, email="chief@example.com")


def text(response: Any) -> str:
    return str(response.content.decode())


def asked() -> int:
    return Event.objects.filter(action=Action.USER_ASKED_FOR_CAPABILITY).count()


@pytest.mark.full
def test_who_may_make_no_token_asks_for_it_and_those_who_give_roles_see_it_until_it_is_given(
    chief: User, sign_in: SignIn
) -> None:
    person = make.user(email="dev@example.com")
    make.gateway()
    page = "/connect/client/?client=curl"

    before = text(sign_in(person).get(page))
    sent = sign_in(person).post("/settings/ask-for", {"capability": TOKENS.slug, "next": page})
    telling.tell_at_once()
    telling.deliver_due()
    after = text(sign_in(person).get(page))
    dashboard = text(sign_in(chief).get("/"))

    assert ">Ask for it</button>" in before
    assert sent["Location"] == page
    assert ">Ask for it</button>" not in after
    assert "You asked for this capability." in after
    assert "dev@example.com asks for Connect own agents" in dashboard
    assert f"/people/{person.pk}/role/" in dashboard
    [letter] = mail.outbox
    assert (letter.subject, letter.bcc) == ("1 person asks for a capability", [chief.email])
    assert "dev@example.com: Connect own agents" in letter.body.replace("\u200b", "")
    assert "/people/?asking=1" in letter.body
    assert "asks for" not in text(sign_in(person).get("/"))
    role = make.user(TOKENS).role
    assert role
    earlier = person.role
    assert earlier
    person.give_role(role, by=chief)
    assert open_requests(8) == []
    person.give_role(earlier, by=chief)
    assert open_requests(8) == []
    assert "Asks for" not in text(sign_in(chief).get(f"/people/{person.pk}/"))


def test_a_change_of_role_closes_only_the_requests_that_it_grants(chief: User) -> None:
    person = make.user()
    earlier, role = person.role, make.role(TOKENS)
    assert earlier
    assert person.ask_for(TOKENS)
    assert person.ask_for(Capability.OAUTH_CONNECT)

    person.give_role(role, by=chief)
    person.give_role(earlier, by=chief)

    assert [capability for capability, _ in person.open_requests()] == [Capability.OAUTH_CONNECT]
    assert not person.ask_for(Capability.OAUTH_CONNECT)
    assert person.ask_for(TOKENS)
    assert {capability for capability, _ in person.open_requests()} == {TOKENS, Capability.OAUTH_CONNECT}
    assert not person.ask_for(TOKENS)


def test_the_same_is_asked_for_once_a_day(chief: User) -> None:
    person = make.user()

    assert person.ask_for(TOKENS)
    assert not person.ask_for(TOKENS)
    assert person.ask_for(Capability.OAUTH_CONNECT)
    assert not chief.ask_for(TOKENS)
    assert asked() == 2
    with time_machine.travel(datetime.now(UTC) + timedelta(hours=25), tick=False):
        assert person.ask_for(TOKENS)
        assert [capability for _, capability, _ in open_requests(8)] == [TOKENS]
    with time_machine.travel(datetime.now(UTC) + timedelta(days=9), tick=False):
        assert open_requests(8) == []


@pytest.mark.full
def test_one_person_does_not_flood_those_who_grant(chief: User) -> None:
    flooding, other = make.user(), make.user()
    assert other.ask_for(TOKENS)

    sent = [flooding.ask_for(capability) for capability in Capability]

    assert sum(sent) == 5
    assert [(person, capability) for person, capability, _ in open_requests(2)][1] == (other, TOKENS)


@pytest.mark.full
def test_a_page_that_refuses_offers_to_ask_for_the_capability_and_programs_ask_by_rest(sign_in: SignIn) -> None:
    browser = sign_in(make.user(email="dev@example.com"))

    refused = browser.get("/people/?q=ann")
    sent = browser.post("/settings/ask-for", {"capability": "people:read", "next": "/people/?q=ann"})

    assert refused.status_code == 403
    assert '<input type="hidden" name="next" value="/people/?q=ann">' in text(refused)
    assert '<button class="button" data-kind="primary">Ask for it</button>' in text(refused)
    assert sent["Location"] == "/people/?q=ann"
    assert "Not asked: you have this capability" in text(
        browser.post("/settings/ask-for", {"capability": "people:read", "next": "/settings/"}, follow=True)
    )
    assert "You asked for this capability." in text(browser.get("/people/"))
    assert browser.post("/settings/ask-for", {"capability": "no:such"}).status_code == 404
    assert asked() == 1
    by_rest = [Rest(browser).post("/me/ask-for", {"capability": slug}) for slug in (TOKENS.slug, TOKENS.slug, "no")]
    assert [answer.status_code for answer in by_rest] == [204, 204, 400]
    assert asked() == 2


@pytest.mark.full
def test_a_request_is_shown_where_roles_are_given_and_can_be_declined_there(chief: User, sign_in: SignIn) -> None:
    person = make.user(email="dev@example.com")
    person.ask_for(TOKENS)
    make.gateway()
    manager, url = sign_in(chief), f"/people/{person.pk}/decline-request/"
    shown = [text(manager.get(f"/people/{person.pk}/{page}")) for page in ("", "role/")]

    question = manager.get(url, {"capability": TOKENS.slug})
    declined = [manager.post(url, {"capability": TOKENS.slug}).status_code for _ in range(2)]

    assert all("Asks for" in page and TOKENS.label in page for page in shown)
    marked = re.findall(r"<b>([^<]+)</b><small>Includes Connect own agents</small>", shown[1])
    assert marked == [chief.role and chief.role.name]
    assert "Decline" in text(question)
    assert declined == [302, 302]
    [event] = Event.objects.filter(action=Action.USER_REQUEST_DECLINED)
    assert (event.actor_email, event.target_id, event.changes["capability"][0]) == (
        chief.email,
        str(person.pk),
        TOKENS.slug,
    )
    assert (
        sentence(event) == f"{chief.email} declined the request of {person.email} for the capability “{TOKENS.label}”."
    )
    assert "Asks for" not in text(manager.get(f"/people/{person.pk}/"))
    assert "asks for" not in text(manager.get("/"))
    refused = text(sign_in(person).get("/connect/client/?client=curl"))
    assert "Your request was declined" in refused
    assert ">Ask for it</button>" not in refused
    with time_machine.travel(datetime.now(UTC) + timedelta(hours=25), tick=False):
        assert person.ask_for(TOKENS)
        assert [capability for _, capability, _ in open_requests(8)] == [TOKENS]
    assert manager.post(url, {"capability": "no:such"}).status_code == 404
