"""A form that needs a password confirmation is stored only in the session, and resubmitted after the confirmation."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import Any

import pytest
import time_machine
from django.contrib.sessions.models import Session
from django.test import Client
from django.urls import reverse

from accounts.held_forms import HELD_S, MOST_CHARACTERS, SESSION_KEY
from accounts.models import User
from capabilities import Capability
from sinks.models import Sink
from tests import make
from tests.accounts.again import AGAIN, confirm, form_of, onward, sent_again

type SignIn = Callable[[User], Client]

ADD = "/settings/sinks/add/?kind=webhook"
SECRET = "dGhpcyBpcyBhIHNlY3JldCBvZiB0aGUgdGVzdHM="
FILLED = {"name": "Archive", "address": "https://93.184.216.34/intake", "secret": SECRET, "sends_calls": "on"}

pytestmark = pytest.mark.django_db


@pytest.fixture
def keeper() -> User:
    return make.user(Capability.SINKS_MANAGE, Capability.LOGS_READ, Capability.AUDIT_READ, Capability.PEOPLE_MANAGE)


@pytest.fixture
def client(keeper: User, sign_in: SignIn) -> Client:
    return sign_in(keeper)


def text(response: Any) -> str:
    return str(response.content.decode())


def test_a_form_is_sent_once_and_whole_after_the_password_and_its_secret_is_shown_nowhere(client: Client) -> None:
    asked = client.post(ADD, FILLED)
    stored = str(Session.objects.get(pk=client.session.session_key).get_decoded())
    wrong = client.post(AGAIN, {"password": "wrong", "next": onward(asked)})
    assert "data-sends" not in text(wrong)
    assert not Sink.objects.exists()

    page = client.post(AGAIN, {"password": make.PASSWORD, "next": onward(asked)})
    done, repeated = sent_again(client, page), sent_again(client, page)

    for shown in (asked["Location"], stored, text(page)):
        assert SECRET not in shown
    assert "Archive" not in stored
    assert "no-store" in page["Cache-Control"]
    sink = Sink.objects.get()
    assert done["Location"] == f"/settings/sinks/{sink.pk}/"
    assert (sink.kind, sink.name, sink.secret(), sink.sends_events) == ("webhook", "Archive", SECRET, False)
    assert repeated.status_code == 410
    assert "The form was already sent" in text(repeated)
    assert f'href="{ADD}"' in text(repeated)


@pytest.mark.full
def test_errors_are_shown_at_the_forms_own_address_with_the_input(client: Client) -> None:
    asked = client.post(ADD, FILLED | {"address": "nowhere"})

    page = client.post(AGAIN, {"password": make.PASSWORD, "next": onward(asked)})
    refused = sent_again(client, page)

    assert form_of(page)[0] == ADD
    assert (refused.status_code, refused.request["QUERY_STRING"]) == (422, "kind=webhook")
    assert 'value="Archive"' in text(refused)


@pytest.mark.full
def test_to_name_it_does_not_stand_in_for_the_password(client: Client) -> None:
    key = onward(client.post(ADD, FILLED)).partition("#")[2]

    asked = client.post(ADD, {"held_form": key})

    assert not Sink.objects.exists()
    assert confirm(client, asked).status_code == 302
    assert Sink.objects.get().name == "Archive"


def test_an_expired_form_and_a_form_sent_twice_lead_to_its_page(client: Client) -> None:
    """People are led to the page that has the form, not to the form's target, because many targets accept only POST."""
    unlink, page = reverse("sso:unlink"), {"Referer": "http://testserver/settings/profile?from=mail"}
    with time_machine.travel(datetime.now(UTC), tick=False) as clock:
        where = onward(client.post(unlink, headers=page))
        clock.shift(30 * 60)
        late = client.post(AGAIN, {"password": make.PASSWORD, "next": where})
        clock.shift(30 * 60)
        where = onward(client.post(unlink, headers=page))
        confirmed = client.post(AGAIN, {"password": make.PASSWORD, "next": where})
        once, twice = sent_again(client, confirmed), sent_again(client, confirmed)

    assert late["Location"].startswith("/settings/profile?from=mail")
    assert (once.status_code == 410, twice.status_code) == (False, 410)
    assert 'href="/settings/profile?from=mail">Open the page again' in text(twice)


@pytest.mark.full
def test_a_form_held_twice_still_returns_to_its_page(client: Client) -> None:
    with time_machine.travel(datetime.now(UTC), tick=False) as clock:
        asked = client.post(reverse("sso:unlink"), headers={"Referer": "http://testserver/settings/profile"})
        page = client.post(AGAIN, {"password": make.PASSWORD, "next": onward(asked)})
        clock.shift(timedelta(minutes=20))
        address, fields = form_of(page)
        again = client.post(address, fields, headers={"Referer": f"http://testserver{AGAIN}"})

    assert onward(again).startswith("/settings/profile#")


@pytest.mark.full
def test_it_goes_to_no_other_address_and_no_other_session_can_send_it_even_with_a_copy(
    client: Client, keeper: User, sign_in: SignIn
) -> None:
    where = onward(client.post(ADD, FILLED))
    own, copied = sign_in(keeper), sign_in(make.user(*keeper.granted))
    theirs = copied.session
    theirs["held_forms"] = client.session["held_forms"]
    theirs.save()

    for other in (own, copied):
        assert other.post(AGAIN, {"password": make.PASSWORD, "next": where}).status_code == 302
        assert other.post(ADD, {"held_form": where.partition("#")[2]}).status_code == 410
    page = client.post(AGAIN, {"password": make.PASSWORD, "next": where})
    assert client.post("/settings/sinks/add/?kind=s3", form_of(page)[1]).status_code == 410
    assert not Sink.objects.exists()


@pytest.mark.full
def test_it_is_sent_with_a_csrf_token_of_its_own(keeper: User) -> None:
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(keeper)
    token = str(browser.get(AGAIN).context["csrf_token"])
    asked = browser.post(ADD, FILLED | {"csrfmiddlewaretoken": token})
    page = browser.post(AGAIN, {"password": make.PASSWORD, "next": onward(asked), "csrfmiddlewaretoken": token})
    address, fields = form_of(page)

    without = browser.post(address, fields | {"csrfmiddlewaretoken": ""})
    sent = browser.post(address, fields)

    assert without.status_code == 403
    assert sent.status_code == 302


@pytest.mark.full
def test_three_are_held_each_for_its_tab_and_the_oldest_is_given_up_for_another(client: Client) -> None:
    asked = [onward(client.post(ADD, FILLED | {"name": f"Number {number}"})) for number in range(4)]

    first, *others = [client.post(AGAIN, {"password": make.PASSWORD, "next": where}) for where in asked]
    for page in others:
        sent_again(client, page)

    assert first.status_code == 302
    assert {sink.name for sink in Sink.objects.all()} == {"Number 1", "Number 2", "Number 3"}


@pytest.mark.full
def test_a_forbidden_action_is_refused_when_resubmitted(client: Client, keeper: User) -> None:
    asked = client.post(ADD, FILLED)
    User.objects.filter(pk=keeper.pk).update(role=make.role())

    assert confirm(client, asked).status_code == 403
    assert not Sink.objects.exists()


def test_forms_with_much_to_fill_in_ask_before_they_open(keeper: User, sign_in: SignIn) -> None:
    for path in (ADD, "/people/roles/add/", "/settings/api-keys/create"):
        client = sign_in(keeper)
        asked = client.get(path)
        opened = client.post(AGAIN, {"password": make.PASSWORD, "next": onward(asked)}, follow=True)

        assert asked.status_code == 302
        assert (opened.status_code, "reauthenticate" in opened.request["PATH_INFO"]) == (200, False)


@pytest.mark.full
def test_a_form_too_large_to_hold_is_reported_and_the_session_stays_small(client: Client) -> None:
    asked = client.post(ADD, FILLED | {"address": token_hex(MOST_CHARACTERS)})

    confirmed = client.post(AGAIN, {"password": make.PASSWORD, "next": onward(asked)})
    page = client.get(confirmed["Location"])

    assert confirmed["Location"] == ADD
    assert "too large to be saved" in text(page)
    assert not Sink.objects.exists()
    assert len(Session.objects.get(pk=client.session.session_key).session_data) < MOST_CHARACTERS


@pytest.mark.full
def test_abandoned_forms_leave_the_session_with_its_next_page(client: Client) -> None:
    client.post(ADD, FILLED)
    assert client.session[SESSION_KEY]

    with time_machine.travel(datetime.now(UTC) + timedelta(seconds=HELD_S)):
        client.get("/settings/profile")
        assert not client.session[SESSION_KEY]


@pytest.mark.full
@pytest.mark.usefixtures("within_one_minute")
def test_a_stranger_who_names_a_held_form_makes_no_session_and_is_counted(db: None) -> None:
    stranger = Client()

    tried = {"login": "nobody@example.com", "password": "wrong", "held_form": "x"}
    answers = [stranger.post("/accounts/login/", tried).status_code for _ in range(30)]

    assert set(answers) == {200, 429}
    assert not Session.objects.exists()
