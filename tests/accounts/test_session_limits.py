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
def test_a_session_ends_twelve_hours_after_the_last_request_and_is_no_longer_listed() -> None:
    person = make.user()
    with time_machine.travel(START, tick=False) as clock:
        client = signed_in(person)
        for _ in range(2):
            clock.shift(timedelta(hours=11, minutes=59))
            assert is_in(client)
        clock.shift(timedelta(hours=12, seconds=2))

        assert client.get("/settings/profile")["Location"] == "/accounts/login/?next=/settings/profile"
        assert text(signed_in(person).get("/settings/sessions")).count("<tr>") == 2


@pytest.mark.full
def test_a_session_ends_after_seven_days_however_busy() -> None:
    with time_machine.travel(START, tick=False) as clock:
        client = signed_in(make.user())
        for _ in range(16):
            clock.shift(timedelta(hours=10, minutes=25))
            assert is_in(client)
        clock.shift(timedelta(hours=2))

        assert not is_in(client)


def test_a_form_of_who_was_signed_out_leads_to_sign_in_and_back_to_its_page() -> None:
    for referer, back in (
        ("http://testserver/hosts/?type=agent", "/hosts/?type=agent"),
        ("https://elsewhere.example/hosts/", "/settings/sessions/end-all"),
        ("http://testserver//elsewhere.example/", "/settings/sessions/end-all"),
        ("http://[", "/settings/sessions/end-all"),
        ("", "/settings/sessions/end-all"),
    ):
        client = Client(headers={"Referer": referer})
        response = client.post("/settings/sessions/end-all")

        assert parse_qs(urlsplit(response["Location"]).query) == {"next": [back], "not_done": ["1"]}
        assert not response.cookies
        page = text(client.get(response["Location"]))
        assert "You are not signed in. Your last action was not carried out." in page
        assert f'name="next" value="{back}"' in page


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
def test_the_page_lists_the_browsers_one_is_signed_in_with_in_few_queries(
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    person = make.user()
    here = signed_in(person)
    signed_in(make.user())
    for user_agent in (
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0) AppleWebKit/605 Version/18.0 Mobile/15E148 Safari/604.1",
        "Mozilla/5.0 (Windows NT 10.0) Chrome/140.0 Safari/537.36 Edg/140.0",
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15) Chrome/140.0 Safari/537.36",
        "curl/8.14.1",
        "",
        "<b>bold</b>",
    ):
        signed_in(person, user_agent)

    with django_assert_num_queries(5):  # session, user, known sessions, stored sessions, permissions
        page = text(here.get("/settings/sessions"))

    for words in ("Firefox on Linux", "Safari on iPhone", "Edge on Windows", "Chrome on macOS", "curl/8.14.1"):
        assert words in page
    assert "Unknown browser" in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert page.count("This one") == 1
    assert page.count("<tr>") == 8  # The header and seven rows.


def test_one_browser_is_signed_out_from_another_of_the_same_person_only() -> None:
    person = make.user()
    here, there, theirs = signed_in(person), signed_in(person), signed_in(make.user())
    own, foreign = (UserSession.objects.get(session_key=each.session.session_key) for each in (there, theirs))

    response = here.post(f"/settings/sessions/{own.pk}/end", follow=True)

    assert "Signed out there" in text(response)
    assert here.post(f"/settings/sessions/{foreign.pk}/end").status_code == 404
    assert (is_in(here), is_in(there), is_in(theirs)) == (True, False, True)


def test_signing_out_everywhere_asks_first_and_ends_all_this_one_too(sign_in: SignIn) -> None:
    person, other = make.user(), make.user()
    here, there, unrelated = signed_in(person), sign_in(person), sign_in(other)

    asked = text(here.get("/settings/sessions/end-all"))
    assert is_in(there)
    gone = here.post("/settings/sessions/end-all", follow=True)

    assert "Sign out everywhere? All your sessions end, including this one." in asked
    assert "You are signed out everywhere" in text(gone)
    assert (is_in(here), is_in(there), is_in(unrelated)) == (False, False, True)
