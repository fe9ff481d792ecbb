"""Lifetime of web sessions."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import time_machine
from allauth.usersessions.models import UserSession
from django.core.cache import cache
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from accounts.models import User
from tests import make
from tests.conftest import SignIn

pytestmark = pytest.mark.django_db

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
START = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def fresh_limits(db: None) -> Iterator[None]:
    cache.clear()
    yield
    cache.clear()


def signed_in(person: User, user_agent: str = FIREFOX) -> Client:
    """Return a browser in which this person signed in through the page."""
    client = Client(headers={"User-Agent": user_agent})
    form = {"login": person.email, "password": make.PASSWORD, "remember": "on"}
    assert client.post("/accounts/login/", form).status_code == 302
    return client


def is_in(client: Client) -> bool:
    return bool(client.get("/settings/profile").status_code == 200)


@pytest.mark.full
@pytest.mark.parametrize(
    ("idle", "still_in"), [(timedelta(hours=11, minutes=59), True), (timedelta(hours=12, seconds=2), False)]
)
def test_a_session_ends_after_twelve_hours_without_a_request(idle: timedelta, still_in: bool) -> None:
    with time_machine.travel(START, tick=False) as clock:
        client = signed_in(make.user())
        clock.shift(idle)

        assert is_in(client) == still_in


@pytest.mark.full
def test_each_request_begins_the_twelve_hours_again() -> None:
    with time_machine.travel(START, tick=False) as clock:
        client = signed_in(make.user())
        for _ in range(3):
            clock.shift(timedelta(hours=8))
            assert is_in(client)


@pytest.mark.full
def test_a_session_ends_after_seven_days_however_busy() -> None:
    with time_machine.travel(START, tick=False) as clock:
        client = signed_in(make.user())
        for _ in range(16):
            clock.shift(timedelta(hours=10, minutes=25))
            assert is_in(client)
        clock.shift(timedelta(hours=2))

        assert not is_in(client)


@pytest.mark.full
def test_a_late_consent_is_sent_to_sign_in_and_back() -> None:
    with time_machine.travel(START, tick=False) as clock:
        client = signed_in(make.user())
        clock.shift(timedelta(days=1))

        response = client.get("/settings/profile")

    assert response["Location"] == "/accounts/login/?next=/settings/profile"


@pytest.mark.parametrize(
    ("referer", "back"),
    [
        ("http://testserver/hosts/?type=agent", "/hosts/?type=agent"),
        ("https://elsewhere.example/hosts/", "/settings/sessions/end-all"),
        ("http://testserver//elsewhere.example/", "/settings/sessions/end-all"),
        ("http://[", "/settings/sessions/end-all"),
        ("", "/settings/sessions/end-all"),
    ],
)
def test_a_form_of_who_was_signed_out_leads_to_sign_in_and_back_to_its_page(referer: str, back: str) -> None:
    client = Client(headers={"Referer": referer})

    response = client.post("/settings/sessions/end-all")

    assert parse_qs(urlsplit(response["Location"]).query) == {"next": [back], "not_done": ["1"]}
    page = client.get(response["Location"])
    assert "You are not signed in. Your last action was not carried out." in text(page)
    assert f'name="next" value="{back}"' in page.content.decode()
    assert not response.cookies
    assert "was not done" not in text(client.options("/settings/sessions/end-all", follow=True))


@pytest.mark.full
def test_noting_the_last_use_costs_a_write_every_five_minutes_only(
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    with time_machine.travel(START, tick=False) as clock:
        client = signed_in(make.user())
        is_in(client)
        clock.shift(timedelta(minutes=4))
        with django_assert_num_queries(5):  # session, user, second factor, sign-in provider, permissions
            is_in(client)
        clock.shift(timedelta(minutes=2))
        is_in(client)

        assert UserSession.objects.get().last_seen_at == START + timedelta(minutes=6)


# --- The page -----------------------------------------------------------------------------------------------------


def text(response: Any) -> str:
    return str(response.content.decode())


@pytest.mark.full
def test_the_page_lists_the_browsers_one_is_signed_in_with() -> None:
    person = make.user()
    here = signed_in(person)
    signed_in(
        person, "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0) AppleWebKit/605 Version/18.0 Mobile/15E148 Safari/604.1"
    )
    signed_in(make.user())

    page = text(here.get("/settings/sessions"))

    assert "Firefox on Linux" in page
    assert "Safari on iPhone" in page
    assert page.count("This one") == 1
    assert page.count("<tr>") == 3  # The header and two rows.


@pytest.mark.parametrize(
    ("user_agent", "words"),
    [
        ("Mozilla/5.0 (Windows NT 10.0) Chrome/140.0 Safari/537.36 Edg/140.0", "Edge on Windows"),
        ("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15) Chrome/140.0 Safari/537.36", "Chrome on macOS"),
        ("curl/8.14.1", "curl/8.14.1"),
        ("", "Unknown browser"),
        ("<b>bold</b>", "&lt;b&gt;bold&lt;/b&gt;"),
    ],
)
def test_a_browser_is_named_in_words(user_agent: str, words: str) -> None:
    client = signed_in(make.user(), user_agent)

    assert words in text(client.get("/settings/sessions"))


@pytest.mark.full
def test_sessions_that_are_over_are_not_listed() -> None:
    person = make.user()
    with time_machine.travel(START, tick=False) as clock:
        signed_in(person)
        clock.shift(timedelta(hours=13))
        here = signed_in(person)

        assert text(here.get("/settings/sessions")).count("<tr>") == 2


@pytest.mark.full
def test_the_page_costs_the_same_for_one_session_and_for_many(
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    person = make.user()
    here = signed_in(person)
    for _ in range(4):
        signed_in(person)

    with django_assert_num_queries(5):  # session, user, known sessions, stored sessions, permissions
        here.get("/settings/sessions")


@pytest.mark.full
def test_one_browser_is_signed_out_from_another() -> None:
    person = make.user()
    here, there = signed_in(person), signed_in(person)
    other = UserSession.objects.exclude(session_key=here.session.session_key).get()

    response = here.post(f"/settings/sessions/{other.pk}/end", follow=True)

    assert "Signed out there" in text(response)
    assert is_in(here)
    assert not is_in(there)


def test_nobody_ends_the_session_of_another() -> None:
    mine, theirs = signed_in(make.user()), signed_in(make.user())
    session = UserSession.objects.get(session_key=theirs.session.session_key)

    assert mine.post(f"/settings/sessions/{session.pk}/end").status_code == 404
    assert is_in(theirs)


def test_signing_out_everywhere_asks_first_and_ends_all_this_one_too(sign_in: SignIn) -> None:
    person, other = make.user(), make.user()
    here, there, unrelated = signed_in(person), sign_in(person), sign_in(other)

    asked = text(here.get("/settings/sessions/end-all"))
    assert is_in(there)
    gone = here.post("/settings/sessions/end-all", follow=True)

    assert "Sign out everywhere? All your sessions end, including this one." in asked
    assert "You are signed out everywhere" in text(gone)
    assert (is_in(here), is_in(there), is_in(unrelated)) == (False, False, True)
