"""The second factor: turning it on and off, signing in with it, and its stored data."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value
from allauth.mfa.utils import encrypt
from cryptography.fernet import Fernet
from django.core.cache import cache
from django.db import connection
from django.test import Client

from accounts import second_factor
from accounts.models import User
from accounts.rules import BeyondYours
from auditlog.models import Event
from capabilities import Capability
from tests import make
from tests.conftest import SignIn
from ui.sealing import cipher

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def noon(db: None) -> Iterator[Any]:
    """Yield a clock that stands still at NOON. Forget the sign-in attempts of earlier tests."""
    cache.clear()
    with time_machine.travel(NOON, tick=False) as clock:
        yield clock
    cache.clear()


def text(response: Any) -> str:
    return str(response.content.decode())


def code_of(secret: str, ahead: int = 0) -> str:
    """Return the authenticator app's code for the current 30 seconds, or for the 30 seconds `ahead` periods later."""
    return str(format_hotp_value(hotp_value(secret, int(datetime.now(UTC).timestamp()) // 30 + ahead)))


def confirm(client: Client, path: str) -> Any:
    """Confirm with the password, and return the page at `path`, which the confirmation opens."""
    return client.post("/accounts/reauthenticate/", {"password": make.PASSWORD, "next": path}, follow=True)


def turn_on(client: Client) -> tuple[str, list[str]]:
    """Turn the second factor on; return its secret and the recovery codes."""
    page = text(confirm(client, "/settings/second-factor/activate/"))
    secret = re.search(r'id="totp-secret"[^>]*value="([A-Z2-7]+)"', page)
    assert secret
    done = text(client.post("/settings/second-factor/activate/", {"code": code_of(secret[1])}))
    codes = re.search(r'id="codes"[^>]*>([^<]+)<', done)
    assert codes
    return secret[1], codes[1].split("&#10;")


def sign_in_by_page(person: User) -> Client:
    client = Client()
    response = client.post("/accounts/login/", {"login": person.email, "password": make.PASSWORD})
    assert response["Location"] == "/accounts/second-factor/"
    return client


def test_turning_it_on_asks_for_the_password_first(sign_in: SignIn) -> None:
    client, activate = sign_in(make.user()), "/settings/second-factor/activate/"

    asked = client.get(activate)
    wrong = client.post("/accounts/reauthenticate/", {"password": "wrong", "next": activate})

    assert asked["Location"] == "/accounts/reauthenticate/?next=%2Fsettings%2Fsecond-factor%2Factivate%2F"
    assert "Confirm that it is you" in text(client.get(asked["Location"]))
    assert 'class="error"' in text(wrong)
    assert client.get(activate).status_code == 302
    assert "no-store" in confirm(client, activate)["Cache-Control"]


@pytest.mark.full
def test_it_is_turned_on_by_a_code_shows_recovery_codes_once_and_is_turned_off(sign_in: SignIn) -> None:
    person = make.user()
    client = sign_in(person)

    _, codes = turn_on(client)
    again = text(client.get("/settings/second-factor/"))
    client.post("/settings/second-factor/deactivate/")
    response = Client().post("/accounts/login/", {"login": person.email, "password": make.PASSWORD})

    assert len(set(codes)) == 10
    assert not any(code in again for code in codes)
    assert "10 of 10 left" in again
    assert response["Location"] == "/"
    assert not Authenticator.objects.exists()
    for action in ("user.second_factor_added", "user.second_factor_removed"):
        assert Event.objects.get(action=action).actor_email == person.email


@pytest.mark.full
def test_a_bad_code_turns_nothing_on(sign_in: SignIn) -> None:
    client = sign_in(make.user())
    confirm(client, "/settings/second-factor/activate/")

    for code in ("", "000000", "abc", "0" * 200, "12\x0034"):
        response = client.post("/settings/second-factor/activate/", {"code": code})
        assert 'class="error"' in text(response)
    assert not Authenticator.objects.exists()


@pytest.mark.full
def test_after_the_password_signing_in_takes_the_code(sign_in: SignIn, noon: Any) -> None:
    person = make.user()
    secret, _ = turn_on(sign_in(person))
    client = sign_in_by_page(person)
    assert client.get("/settings/profile").status_code == 302

    wrong = client.post("/accounts/second-factor/", {"code": "000000"})
    right = client.post("/accounts/second-factor/", {"code": code_of(secret)})

    assert "This code is wrong, or was used before." in text(wrong)
    assert right["Location"] == "/"
    assert client.get("/settings/profile").status_code == 200


def test_a_code_works_once_and_half_a_minute_early_or_late_and_no_more(sign_in: SignIn, noon: Any) -> None:
    person = make.user()
    secret, _ = turn_on(sign_in(person))

    for ahead, works in ((-2, False), (-1, True), (1, True), (2, False)):
        response = sign_in_by_page(person).post("/accounts/second-factor/", {"code": code_of(secret, ahead)})
        assert (response.status_code == 302) == works
    code = code_of(secret, 1)
    noon.shift(timedelta(seconds=45))
    for spelled in (code, f"{code[:3]}-{code[3:]}", f"{code}."):
        response = sign_in_by_page(person).post("/accounts/second-factor/", {"code": spelled})
        assert "This code is wrong, or was used before." in text(response)


@pytest.mark.full
def test_a_recovery_code_signs_in_once_and_new_ones_replace_the_old(sign_in: SignIn) -> None:
    person = make.user()
    client = sign_in(person)
    _, codes = turn_on(client)

    first, second = (
        sign_in_by_page(person).post("/accounts/second-factor/", {"code": codes[0]}).status_code for _ in range(2)
    )
    page = text(client.post("/settings/second-factor/codes/"))
    replaced = sign_in_by_page(person).post("/accounts/second-factor/", {"code": codes[1]})

    assert (first, second, replaced.status_code) == (302, 200, 200)
    assert page.count("&#10;") == 9
    assert not any(code in page for code in codes)
    assert Event.objects.filter(action="user.recovery_codes_replaced").count() == 1


def test_a_second_factor_that_is_removed_during_the_sign_in_leads_back_to_the_password() -> None:
    person = make.user()
    Authenticator.objects.create(user=person, type="totp", data={"secret": encrypt("JBSWY3DPEHPK3PXP")})
    client = sign_in_by_page(person)

    second_factor.remove(person, by=None)

    page = client.get("/accounts/second-factor/", follow=True)
    assert 'name="password"' in text(page)
    assert client.post("/accounts/login/", {"login": person.email, "password": make.PASSWORD})["Location"] == "/"


@pytest.mark.full
def test_a_code_confirms_in_place_of_the_password(sign_in: SignIn, noon: Any) -> None:
    person = make.user()
    secret, _ = turn_on(sign_in(person))
    client = sign_in(User.objects.get(pk=person.pk))

    asked = client.get("/accounts/second-factor/again/?next=/settings/second-factor/deactivate/")
    done = client.post(
        "/accounts/second-factor/again/", {"code": code_of(secret), "next": "/settings/second-factor/deactivate/"}
    )

    assert "Use your password instead" in text(asked)
    assert done["Location"] == "/settings/second-factor/deactivate/"
    assert client.get("/settings/second-factor/deactivate/").status_code == 200


# --- What is stored -----------------------------------------------------------------------------------------------


def stored() -> str:
    """Return the stored data of all authenticators, and the decoded data of all sessions, as one text."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT data::text FROM mfa_authenticator")
        rows = [row for (row,) in cursor.fetchall()]
    from django.contrib.sessions.models import Session

    return "\n".join([*rows, *(json.dumps(one.get_decoded()) for one in Session.objects.all())])


@pytest.mark.full
def test_no_secret_is_stored_in_clear_and_a_sealed_one_names_its_key(sign_in: SignIn) -> None:
    client = sign_in(make.user())
    page = text(confirm(client, "/settings/second-factor/activate/"))
    waiting = re.search(r'id="totp-secret"[^>]*value="([A-Z2-7]+)"', page)
    assert waiting
    before = stored()
    secret, codes = turn_on(sign_in(make.user()))

    for one in (waiting[1], secret, *codes):
        assert one not in before + stored()
    sealed = Authenticator.objects.get(type="totp").data["secret"]
    assert sealed.startswith(f"{cipher().key_id}:")


@pytest.fixture
def rotated(settings: Any) -> Iterator[Any]:
    """Yield a function that puts a new encryption key first, and removes the others unless `keep` is true."""

    def rotate(*, keep: bool) -> None:
        settings.ENCRYPTION_KEYS = [Fernet.generate_key(), *(settings.ENCRYPTION_KEYS if keep else [])]
        cipher.cache_clear()

    yield rotate
    cipher.cache_clear()


@pytest.mark.full
def test_a_rotated_key_may_go_once_its_secrets_are_sealed_again(sign_in: SignIn, settings: Any, rotated: Any) -> None:
    person = make.user()
    secret, codes = turn_on(sign_in(person))
    old = cipher().key_id
    assert second_factor.second_factor_key_uses() == {old: 2}

    rotated(keep=True)
    moved = second_factor.reseal_second_factors()
    settings.ENCRYPTION_KEYS = settings.ENCRYPTION_KEYS[:1]
    cipher.cache_clear()

    assert (moved, second_factor.reseal_second_factors()) == ((2, 0), (0, 0))
    assert second_factor.second_factor_key_uses() == {cipher().key_id: 2}
    for code in (code_of(secret, 1), codes[0]):
        assert sign_in_by_page(person).post("/accounts/second-factor/", {"code": code}).status_code == 302


@pytest.mark.full
def test_a_second_factor_that_no_key_opens_stays_lets_nobody_in_and_stops_no_other(
    sign_in: SignIn, rotated: Any
) -> None:
    lost, found = make.user(), make.user()
    gone, _ = turn_on(sign_in(lost))
    rotated(keep=False)
    secret, _ = turn_on(sign_in(found))
    rotated(keep=True)
    before = list(Authenticator.objects.filter(user=lost).order_by("pk").values_list("data", flat=True))

    assert second_factor.reseal_second_factors() == (2, 2)
    assert list(Authenticator.objects.filter(user=lost).order_by("pk").values_list("data", flat=True)) == before
    assert sign_in_by_page(found).post("/accounts/second-factor/", {"code": code_of(secret, 1)}).status_code == 302
    refused = sign_in_by_page(lost).post("/accounts/second-factor/", {"code": code_of(gone, 1)})
    assert "cannot be checked" in text(refused)
    assert confirm(sign_in(lost), "/settings/second-factor/codes/").status_code == 200


# --- Taken off by an administrator --------------------------------------------------------------------------------


@pytest.mark.full
def test_a_second_factor_cannot_be_removed_by_people_with_fewer_capabilities(sign_in: SignIn) -> None:
    person, clerk = make.user(Capability.LOGS_READ), make.user(Capability.PEOPLE_MANAGE)
    turn_on(sign_in(person))

    with pytest.raises(BeyondYours):
        second_factor.remove(person, by=clerk)
    second_factor.remove(person, by=make.user(Capability.LOGS_READ))

    assert not second_factor.has_second_factor(person)
