"""Sign-in, sign-out and passwords."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY
from django.core import mail
from django.test import Client

from accounts.models import User
from accounts.sign_in import AccountAdapter
from auditlog.models import Event
from capabilities import Capability
from tests import make
from tests.conftest import SignIn

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("within_one_minute")]

REFUSED = "The e-mail or the password is wrong."


def text(response: Any) -> str:
    return str(response.content.decode())


def sign_in_as(email: str, password: str, **more: str) -> Any:
    return Client().post("/accounts/login/", {"login": email, "password": password} | more)


def test_a_person_signs_in_by_e_mail_in_any_case_and_is_led_to_no_other_site() -> None:
    person = make.user()

    for onward in ("", "https://evil.example/", "//["):
        response = sign_in_as(person.email.upper(), make.PASSWORD, next=onward)
        assert (response.status_code, response["Location"]) == (302, "/")


@pytest.mark.full
def test_a_refusal_reads_the_same_whatever_the_cause() -> None:
    person, gone = make.user(), make.user(is_active=False)

    answers = {
        text(sign_in_as(email, password)).split('role="alert"')[1].split("</p>")[0]
        for email, password in (
            (person.email, "wrong"),
            ("nobody@example.com", make.PASSWORD),
            (gone.email, make.PASSWORD),
        )
    }

    assert len(answers) == 1
    assert REFUSED in answers.pop()


def test_a_bad_form_is_shown_again() -> None:
    for email, password in (("", ""), ("not an address", "x"), ("a@example.com", ""), ("a@example.com\x00", "x")):
        response = sign_in_as(email, password)
        assert (response.status_code, 'class="error"' in text(response)) == (200, True)


def test_nobody_signs_up() -> None:
    for response in (
        Client().get("/accounts/signup/"),
        Client().post("/accounts/signup/", {"email": "eve@example.com", "password1": make.PASSWORD}),
    ):
        assert "Sign-up is closed" in text(response)
    assert not User.objects.exists()


@pytest.mark.full
def test_signing_out_needs_a_press_and_ends_the_session(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)
    assert client.session[BACKEND_SESSION_KEY] == "accounts.backend.RoleBackend"  # Other releases read this path.

    asked = client.get("/accounts/logout/")
    assert "Sign out" in text(asked)
    assert client.get("/").status_code == 200
    client.post("/accounts/logout/")

    for path in ("/", "/hosts/", "/settings/profile", "/connect/help/"):
        assert client.get(path)["Location"].startswith("/accounts/login/?next=")


# --- Reset --------------------------------------------------------------------------------------------------------


def ask_for_reset(email: str) -> Any:
    return Client().post("/accounts/password/reset/", {"email": email}, follow=True)


def mailed_link() -> str:
    found = re.search(r"https?://[^/]+(/accounts/password/reset/key/\S+)", str(mail.outbox[-1].body))
    assert found
    return found[1]


def test_asking_for_a_reset_tells_nobody_whether_the_account_exists_and_its_link_works_for_one_hour() -> None:
    person, gone = make.user(), make.user(is_active=False)

    known = Client().post("/accounts/password/reset/", {"email": person.email}, headers={"Host": "127.0.0.1"})
    pages = [text(ask_for_reset(email)) for email in ("nobody@example.com", gone.email, make.user().email)]

    assert known.status_code == 302
    assert "If an account exists, we sent a link" in pages[0]
    assert len({page.split("<main")[1] for page in pages}) == 1
    assert gone.email not in [to for message in mail.outbox for to in message.to]
    assert f"{settings.PUBLIC_URL}/accounts/password/reset/key/" in mail.outbox[0].body  # Whatever host was asked.
    with time_machine.travel(datetime.now(UTC) + timedelta(hours=1, seconds=2)):
        assert "This link no longer works" in text(Client().get(mailed_link(), follow=True))


@pytest.mark.full
def test_a_reset_sets_the_password_once_and_ends_what_acts_as_the_person(sign_in: SignIn) -> None:
    person, other = make.user(Capability.HOSTS_READ), make.user()
    host, gateway = make.agent(by=person), make.gateway()
    own, others = make.connection(host, gateway, person), make.connection(host, gateway, other)
    make.token(own)
    make.api_key(person, Capability.HOSTS_READ)
    elsewhere = sign_in(person)
    ask_for_reset(person.email)
    client = Client()

    form = client.get(mailed_link(), follow=True)
    own.refresh_from_db()
    assert own.is_live  # Until the password is changed, connections work.
    fresh = {"password1": "another horse battery staple", "password2": "another horse battery staple"}
    done = client.post(form.redirect_chain[-1][0], fresh, follow=True)

    assert (
        "Resetting your password revokes all your API tokens and app connections. You will need to create new ones."
    ) in text(form)
    assert "Your password is set" in text(done)
    own.refresh_from_db()
    others.refresh_from_db()
    assert (own.is_live, own.revoke_reason, others.is_live) == (False, "password_reset", True)
    assert not own.tokens.filter(revoked_at=None).exists()
    assert [one.revoke_reason for one in person.api_keys.all()] == ["password_reset"]
    assert Event.objects.get(action="user.password_reset").actor_email == person.email
    assert elsewhere.get("/").status_code == 302
    assert sign_in_as(person.email, fresh["password1"]).status_code == 302
    assert "This link no longer works" in text(Client().get(mailed_link(), follow=True))


@pytest.mark.full
def test_a_bad_new_password_changes_nothing() -> None:
    person = make.user()
    connection = make.connection(make.agent(by=person), make.gateway(), person)
    ask_for_reset(person.email)
    client = Client()
    page = client.get(mailed_link(), follow=True).redirect_chain[-1][0]

    for first, second, words in (
        ("short", "short", "at least 12"),
        ("another horse battery", "another horse", "You must type the same password each time."),
        ("", "", "This field is required."),
    ):
        assert words in text(client.post(page, {"password1": first, "password2": second}))
    connection.refresh_from_db()
    assert connection.is_live


def test_changing_the_password_keeps_connections_and_ends_other_sessions(sign_in: SignIn) -> None:
    person = make.user()
    connection = make.connection(make.agent(by=person), make.gateway(), person)
    here, elsewhere = sign_in(person), sign_in(person)

    done = here.post("/accounts/password/change/", other_password(), follow=True)

    assert done.redirect_chain == [("/settings/profile", 302)]
    assert "Your password was changed." in text(done)
    assert here.get("/").status_code == 200
    assert elsewhere.get("/").status_code == 302
    connection.refresh_from_db()
    assert connection.is_live


def other_password(**more: str) -> dict[str, str]:
    return {
        "oldpassword": make.PASSWORD,
        "password1": "another horse battery",
        "password2": "another horse battery",
    } | more


@pytest.mark.full
def test_the_box_ends_what_acts_as_the_person_too(sign_in: SignIn) -> None:
    person, other = make.user(Capability.HOSTS_READ), make.user()
    host, gateway = make.agent(by=person), make.gateway()
    own, others = make.connection(host, gateway, person), make.connection(host, gateway, other)
    issued = make.token(own)
    key = make.api_key(person, Capability.HOSTS_READ).key

    asked = text(sign_in(person).get("/accounts/password/change/"))
    sign_in(person).post("/accounts/password/change/", other_password(revoke="on"))

    assert "Also revoke my API tokens and connections" in asked
    own.refresh_from_db()
    others.refresh_from_db()
    issued.token.refresh_from_db()
    key.refresh_from_db()
    assert (own.is_live, others.is_live, issued.token.status, key.status) == (False, True, "revoked", "revoked")
    assert Event.objects.get(action="user.password_changed").actor_email == person.email


@pytest.mark.full
def test_a_refused_change_of_password_ends_nothing(sign_in: SignIn) -> None:
    person = make.user()
    connection, client = make.connection(make.agent(by=person), make.gateway(), person), sign_in(person)

    for wrong, words in (
        ({"oldpassword": "wrong"}, "Please type your current password."),
        ({"password1": "short", "password2": "short"}, "at least 12"),
        ({"password2": "yet another horse"}, "You must type the same password each time."),
        ({"oldpassword": "", "password1": "", "password2": ""}, "This field is required."),
    ):
        assert words in text(client.post("/accounts/password/change/", other_password(revoke="on") | wrong))
    connection.refresh_from_db()
    assert connection.is_live


def test_changing_the_password_undoes_nothing_an_administrator_does_meanwhile(sign_in: SignIn) -> None:
    person = make.user()
    stale = User.objects.get(pk=person.pk)
    make.user(Capability.PEOPLE_MANAGE)
    person.deactivate(by=None)

    AccountAdapter().set_password(stale, "another horse battery")

    person.refresh_from_db()
    assert not person.is_active


def test_guessing_passwords_is_recorded_once_a_minute() -> None:
    person = make.user()
    for _ in range(8):
        sign_in_as(person.email, "wrong")

    event = Event.objects.get(action="user.sign_in_refused")

    assert (event.target_label, event.changes, event.ip) == (person.email, {"email": person.email}, "127.0.0.1")


@pytest.mark.full
def test_signing_in_counts_as_a_confirmation_for_a_quarter_of_an_hour(client: Client) -> None:
    boss = make.user(Capability.PEOPLE_MANAGE)
    roles = {"name": "Auditors", "description": "", "capabilities": []}

    with time_machine.travel(datetime.now(UTC), tick=False) as clock:
        client.post("/accounts/login/", {"login": boss.email, "password": make.PASSWORD})
        assert "reauthenticate" not in client.post("/people/roles/add/", roles)["Location"]
        clock.shift(15 * 60)
        late = client.post("/people/roles/add/", roles | {"name": "Others"})

    assert late["Location"].startswith("/accounts/reauthenticate/")
