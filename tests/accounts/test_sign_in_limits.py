"""Limits for sign-in attempts. Known browsers have separate ones, so strangers cannot lock a browser's owner out."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from allauth.mfa.models import Authenticator
from django.conf import settings
from django.core import mail
from django.test import Client

from accounts.models import User
from accounts.sign_in_limits import COOKIE, DEVICE_LIFETIME, MOST
from auditlog.models import Event
from tests import make
from tests.accounts.test_second_factor import code_of, turn_on
from tests.conftest import SignIn

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 3, 2, 12, 0, 15, tzinfo=UTC)
FAR, FURTHER = "203.0.113.7", "198.51.100.9"


@pytest.fixture(autouse=True)
def clock() -> Iterator[Any]:
    with time_machine.travel(NOW, tick=False) as travelled:
        yield travelled


def at(address: str) -> Client:
    return Client(REMOTE_ADDR=address)


def enter(client: Client, email: str, password: str = make.PASSWORD) -> Any:
    return client.post("/accounts/login/", {"login": email, "password": password})


def guess(client: Client, email: str, times: int) -> list[int]:
    return [enter(client, email, "wrong").status_code for _ in range(times)]


def known_browser(person: User, address: str) -> Client:
    """Return a browser in which this person signed in once, and out again."""
    client = at(address)
    assert enter(client, person.email).status_code == 302
    client.post("/accounts/logout/")
    return client


@pytest.mark.full
def test_a_stranger_or_many_elsewhere_keep_nobody_out_nor_stop_who_confirms_a_password(sign_in: SignIn) -> None:
    person = make.user()
    here = sign_in(person)

    assert guess(at(FAR), person.email, 7) == [200] * 5 + [429] * 2
    for n in range(10, 30):
        guess(at(f"203.0.113.{n}"), person.email, 5)
    guess(Client(), person.email, 6)

    assert enter(at(FURTHER), person.email).status_code == 302
    assert here.post("/accounts/reauthenticate/", {"password": make.PASSWORD}).status_code == 302


@pytest.mark.full
def test_a_known_browser_gets_in_beside_a_stranger_of_the_same_address() -> None:
    person = make.user()
    known = known_browser(person, FAR)
    guess(at(FAR), person.email, 6)
    for n in range(20):
        guess(at(FAR), f"person{n}@example.com", 1)

    assert enter(at(FAR), person.email).status_code == 429
    assert enter(known, person.email).status_code == 302


@pytest.mark.full
def test_a_known_browser_has_tries_of_its_own_for_the_one_who_signed_in_and_not_more() -> None:
    person, other = make.user(), make.user()
    known = known_browser(person, FAR)

    assert guess(known, person.email, 11) == [200] * 10 + [429]
    assert enter(at(FAR), person.email).status_code == 302  # Failed attempts count for one browser only.
    assert guess(known, other.email, 6)[-1] == 429


@pytest.mark.full
def test_a_browser_is_known_no_longer(clock: Any, settings: Any, subtests: pytest.Subtests) -> None:
    def with_a_new_password(person: User) -> None:
        person.set_password("another horse battery staple")
        person.save()

    ends: dict[str, Callable[[User], Any]] = {
        "password": with_a_new_password,
        "signed out everywhere": lambda person: person.end_sessions(by=person),
        "half a year": lambda _: clock.shift(DEVICE_LIFETIME + timedelta(seconds=1)),
        "another key": lambda _: setattr(settings, "SECRET_KEY", "another"),
    }
    for number, (name, end) in enumerate(ends.items()):
        with subtests.test(name):
            person = make.user()
            known = known_browser(person, f"203.0.113.{number}")
            end(person)
            assert guess(known, person.email, 6)[-1] == 429


@pytest.mark.full
def test_a_made_up_cookie_makes_no_browser_known() -> None:
    for number, made_up in enumerate(("", "x", "a:b:c", "\xff:\xff:\xff", "a" * 5000)):
        person, client = make.user(), at(f"203.0.113.{number}")
        client.cookies[COOKIE] = made_up
        assert guess(client, person.email, 6)[-1] == 429, made_up


def test_the_cookie_goes_to_sign_in_alone_and_no_script_reads_it() -> None:
    client = at(FAR)
    enter(client, make.user().email)

    kept = client.cookies[COOKIE]

    assert (kept["path"], kept["httponly"], kept["samesite"]) == ("/accounts/", True, "Lax")
    assert (bool(kept["secure"]), kept["max-age"]) == (settings.SESSION_COOKIE_SECURE, 180 * 24 * 3600)


@pytest.mark.full
def test_an_ipv6_network_is_one_address() -> None:
    person = make.user()
    answers = [guess(at(f"2001:db8::{n}"), person.email, 1)[0] for n in range(1, 7)]

    assert answers == [200] * 5 + [429]
    assert enter(at("2001:db8:0:1::1"), person.email).status_code == 302
    assert Event.objects.filter(action="user.sign_in_refused").count() == 1


@pytest.mark.full
def test_one_address_tries_twenty_times_in_a_minute_at_whatever_accounts(clock: Any) -> None:
    answers = [guess(at(FAR), f"person{n}@example.com", 1)[0] for n in range(21)]

    assert answers == [200] * 20 + [429]
    clock.shift(timedelta(seconds=45))
    assert guess(at(FAR), "person@example.com", 1) == [200]


@pytest.mark.full
def test_right_sign_ins_use_nothing_up() -> None:
    """Many people of an office may sign in at the same time from one address."""
    assert {enter(at(FAR), make.user().email).status_code for _ in range(25)} == {302}


@pytest.mark.full
def test_a_right_sign_in_does_not_forgive_the_wrong_ones() -> None:
    person, own = make.user(), make.user()
    guess(at(FAR), person.email, 5)
    enter(at(FAR), own.email)

    assert guess(at(FAR), person.email, 1) == [429]


# --- Codes --------------------------------------------------------------------------------------------------------


def code_page(person: User, address: str, client: Client | None = None) -> Client:
    client = client or at(address)
    assert enter(client, person.email)["Location"].startswith("/accounts/second-factor/")
    return client


def try_code(client: Client, code: str) -> int:
    return int(client.post("/accounts/second-factor/", {"code": code}).status_code)


@pytest.mark.full
def test_codes_are_guessed_five_times_a_minute_from_everywhere_together(sign_in: SignIn) -> None:
    person = make.user()
    turn_on(sign_in(person))

    answers = [try_code(code_page(person, f"203.0.113.{n}"), "000000") for n in range(1, 7)]

    assert answers == [200] * 5 + [429]


@pytest.mark.full
def test_a_known_browser_gets_in_while_a_thief_of_the_password_guesses_codes(sign_in: SignIn, clock: Any) -> None:
    person = make.user()
    secret, _ = turn_on(sign_in(person))
    known = code_page(person, FAR)
    assert try_code(known, code_of(secret)) == 302
    known.post("/accounts/logout/")
    clock.shift(timedelta(seconds=60))
    for n in range(1, 7):
        try_code(code_page(person, f"203.0.113.{n}"), "000000")

    assert try_code(code_page(person, FAR), code_of(secret)) == 429
    assert try_code(code_page(person, FAR, known), code_of(secret)) == 302
    assert Authenticator.objects.filter(user=person).exists()


# --- Resets -------------------------------------------------------------------------------------------------------


def ask_for_reset(address: str, email: str) -> int:
    return int(at(address).post("/accounts/password/reset/", {"email": email}).status_code)


@pytest.mark.full
def test_resets_are_asked_for_three_times_an_hour_for_one_account_and_twenty_times_from_one_address() -> None:
    person = make.user()

    of_one = [ask_for_reset(f"203.0.113.{n}", person.email) for n in range(1, 5)]
    from_one = [ask_for_reset(FURTHER, f"person{n}@example.com") for n in range(21)]

    assert of_one == [302] * 3 + [429]
    assert from_one == [302] * 20 + [429]
    assert len(mail.outbox) == 3


def test_the_page_on_signing_in_tells_every_limit() -> None:
    page = (settings.BASE_DIR / "docs/explanation/signing-in.md").read_text()

    for what, (most, window) in MOST.items():
        assert f"| {what} | {most} | {'minute' if window < timedelta(hours=1) else 'hour'} |" in page
