"""Security keys as second factor: adding them, signing in, confirming, removing, and refusals."""

import json
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from django.core.cache import cache
from django.test import Client
from pytest_django import Settings

from accounts import second_factor
from accounts.models import User
from auditlog.models import Event
from auditlog.sentences import sentence
from sso.models import Provider
from tests import make
from tests.accounts.soft_key import SoftKey, added, options_of
from tests.accounts.test_second_factor import code_of, confirm, sign_in_by_page, text, turn_on
from tests.conftest import SignIn
from tests.sso.test_enforced import owner
from tests.undone import undone

pytestmark = pytest.mark.django_db

INDEX, ADD = "/settings/second-factor/", "/settings/second-factor/keys/add/"
ASKED = "/accounts/second-factor/"
REFUSED = "The security key could not be verified"


@pytest.fixture(autouse=True)
def fresh(settings: Settings) -> None:
    """Set PUBLIC_URL to a local address. Forget the sign-in attempts of earlier tests."""
    settings.PUBLIC_URL = "http://localhost:8000"
    cache.clear()


def add(client: Client, key: SoftKey, name: str = "Blue key", **changed: Any) -> Any:
    page = text(confirm(client, ADD))
    return client.post(ADD, {"name": name, "credential": key.create(page, **changed)})


@pytest.fixture
def person(db: None) -> User:
    return make.user()


@pytest.fixture
def client_of(person: User, sign_in: SignIn) -> Client:
    return sign_in(person)


@pytest.fixture
def key(person: User, client_of: Client) -> SoftKey:
    """Return a security key that was added to the person's account, which has no other second factor."""
    key = SoftKey()
    add(client_of, key)
    person.refresh_from_db()  # Other sessions ended.
    return key


@pytest.mark.full
def test_the_first_key_shows_recovery_codes_one_of_which_stands_in_for_a_lost_key(
    person: User, client_of: Client
) -> None:
    assert client_of.get(ADD)["Location"].startswith("/accounts/reauthenticate/?next=")
    added = text(add(client_of, SoftKey(), "Blue key"))

    codes = added.partition('id="codes"')[2].partition(">")[2].split("<")[0].split("&#10;")
    assert len(codes) == 10
    page = text(client_of.get(INDEX))
    assert "Blue key" in page
    assert "10 of 10 left" in page
    event = Event.objects.get(action="user.second_factor_added")
    assert event.changes == {"security_key": "Blue key"}
    assert sentence(event) == f"{person.email} added the security key “Blue key” as a second factor."
    client = sign_in_by_page(person)
    assert "or type one of your recovery codes" in text(client.get(ASKED))
    assert client.post(ASKED, {"code": codes[0]})["Location"] == "/"


@pytest.mark.full
def test_an_app_beside_a_key_shows_no_codes_again_and_goes_without_it(client_of: Client, key: SoftKey) -> None:
    page = text(client_of.get("/settings/second-factor/activate/"))
    secret = page.partition('id="totp-secret"')[2].partition('value="')[2].partition('"')[0]
    turned_on = client_of.post("/settings/second-factor/activate/", {"code": code_of(secret)})
    assert turned_on["Location"] == INDEX
    assert "Your security keys and recovery codes keep working" in text(
        client_of.get("/settings/second-factor/deactivate/")
    )

    client_of.post("/settings/second-factor/deactivate/")

    kinds = Authenticator.objects.values_list("type", flat=True)
    assert sorted(kinds) == ["recovery_codes", "webauthn"]


def test_after_the_password_signing_in_takes_the_key(person: User, key: SoftKey) -> None:
    client = sign_in_by_page(person)
    page = text(client.get(ASKED))
    assert client.get("/settings/profile").status_code == 302

    done = client.post(ASKED, {"credential": key.get(page)})

    assert done["Location"] == "/"
    assert client.get("/settings/profile").status_code == 200
    assert Authenticator.objects.get(type="webauthn").last_used_at is not None


@pytest.mark.full
def test_keys_are_named_only_to_who_has_one_and_a_key_beside_an_app_shows_no_codes_again(
    person: User, client_of: Client, sign_in: SignIn
) -> None:
    turn_on(client_of)
    page = text(sign_in_by_page(person).get(ASKED))
    assert "data-security-key" not in page
    assert "security-keys.js" not in page
    there = sign_in(User.objects.get(pk=person.pk))

    added = add(client_of, SoftKey())

    assert added["Location"] == INDEX
    assert there.get(INDEX).status_code == 200  # Only the first one ends other sessions.


def refused(client: Client, credential: str) -> None:
    response = client.post(ASKED, {"credential": credential})
    assert REFUSED in text(response)
    assert client.get("/settings/profile").status_code == 302


@pytest.mark.full
def test_a_key_that_is_somebody_elses_or_nobodys_is_refused(person: User, key: SoftKey, sign_in: SignIn) -> None:
    other, theirs = make.user(), SoftKey()
    add(sign_in(other), theirs)
    client = sign_in_by_page(person)

    for one in (theirs, SoftKey(), SoftKey(identifier=key.identifier)):
        refused(client, one.get(text(client.get(ASKED))))


@pytest.mark.full
def test_signatures_for_another_page_host_or_action_are_refused(
    person: User, key: SoftKey, subtests: pytest.Subtests
) -> None:
    changes: list[tuple[str, dict[str, str]]] = [
        *(("localhost", {"origin": origin}) for origin in ("http://localhost", "https://localhost:8000")),
        *(("localhost", {"origin": origin}) for origin in ("http://evil.localhost:8000", "https://evil.example")),
        ("example.com", {}),
        ("localhost", {"type": "webauthn.create"}),
    ]
    for host, changed in changes:
        with subtests.test(f"{host} {changed}"), undone():
            client = sign_in_by_page(person)
            key.host = host
            refused(client, key.get(text(client.get(ASKED)), **changed))


@pytest.mark.full
def test_a_signature_answers_one_challenge_of_one_browser_once(person: User, key: SoftKey) -> None:
    first, second = sign_in_by_page(person), sign_in_by_page(person)
    said = key.get(text(first.get(ASKED)))
    second.get(ASKED)
    refused(second, said)
    assert first.post(ASKED, {"credential": said})["Location"] == "/"

    third = sign_in_by_page(person)
    refused(third, said)
    third.get(ASKED)
    refused(third, said)


@pytest.mark.full
def test_a_key_whose_count_did_not_grow_is_a_copy_and_is_refused_with_an_event(person: User, key: SoftKey) -> None:
    copy = SoftKey(identifier=key.identifier, private=key.private, count=key.count)
    used = sign_in_by_page(person)
    used.post(ASKED, {"credential": key.get(text(used.get(ASKED)))})
    client = sign_in_by_page(person)

    refused(client, copy.get(text(client.get(ASKED))))

    event = Event.objects.get(action="user.sign_in_refused")
    assert (event.target_id, event.changes) == (str(person.pk), {"security_key": "Blue key"})
    assert "it may have been copied" in sentence(event)


INVALID = (
    "",
    "[]",
    "{}",
    "x",
    "[" * 10000,
    '{"id": 1}',
    '{"id": "AA", "rawId": "AA", "type": "public-key", "response": {}}',
    '{"rawId": "AA", "response": {"clientDataJSON": "e30", "authenticatorData": "AA", "signature": ""}}',
    '{"id": "AA", "rawId": "AA", "response": {"clientDataJSON": "e30", "attestationObject": "n4GBgYGBgYE"}}',
    '{"id": "AA", "rawId": "AA", "response": {"clientDataJSON": "\\ud800", "attestationObject": "AA"}}',
    "x" * 20000,
)


@pytest.mark.full
def test_an_invalid_credential_is_refused_in_words(
    person: User, client_of: Client, key: SoftKey, subtests: pytest.Subtests
) -> None:
    for credential in INVALID:
        with subtests.test(credential[:70] or "nothing"), undone():
            client = sign_in_by_page(person)
            client.get(ASKED)
            client_of.get(ADD)
            for response in (
                client.post(ASKED, {"credential": credential}),
                client_of.post(ADD, {"name": "Other", "credential": credential}),
            ):
                assert response.status_code == 200
                assert 'data-kind="bad" role="alert">' in text(response)
    assert Authenticator.objects.filter(type="webauthn").count() == 1


@pytest.mark.full
def test_a_key_is_added_once_by_one_person(person: User, client_of: Client, key: SoftKey, sign_in: SignIn) -> None:
    assert options_of(text(client_of.get(ADD)))["excludeCredentials"][0]["id"]
    for client in (client_of, sign_in(make.user())):
        assert "was added already" in text(add(client, key))

    assert Authenticator.objects.filter(type="webauthn").count() == 1


@pytest.mark.full
def test_a_key_made_for_another_page_or_under_another_id_is_not_added(client_of: Client) -> None:
    assert REFUSED in text(add(client_of, SoftKey(), origin="https://evil.example"))
    assert REFUSED in text(add(client_of, SoftKey(host="evil.example")))
    credential = json.loads(SoftKey().create(text(confirm(client_of, ADD)))) | {"id": "AAAA", "rawId": "AAAA"}
    assert REFUSED in text(client_of.post(ADD, {"name": "Blue key", "credential": json.dumps(credential)}))
    assert not Authenticator.objects.exists()


@pytest.mark.full
def test_there_are_ten_keys_at_most(person: User, client_of: Client) -> None:
    for number in range(second_factor.MOST_KEYS):
        added(person, f"Key {number}")

    assert "10 security keys at most" in text(add(client_of, SoftKey()))


def rename(client: Client, name: str) -> Any:
    pk = Authenticator.objects.get(type="webauthn").pk
    return client.post(f"{INDEX}keys/{pk}/rename/", {"name": name})


@pytest.mark.full
def test_a_key_is_renamed_and_goes_on_signing_in(person: User, client_of: Client, key: SoftKey) -> None:
    pk = Authenticator.objects.get(type="webauthn").pk
    assert 'value="Blue key"' in text(client_of.get(f"{INDEX}keys/{pk}/rename/"))

    assert rename(client_of, "  Laptop ")["Location"] == INDEX

    page = text(client_of.get(INDEX))
    assert "Laptop" in page
    assert "Blue key" not in page
    event = Event.objects.get(action="user.security_key_renamed")
    assert sentence(event) == f"{person.email} renamed their security key “Blue key” to “Laptop”."
    client = sign_in_by_page(person)
    assert client.post(ASKED, {"credential": key.get(text(client.get(ASKED)))})["Location"] == "/"


@pytest.mark.full
def test_a_name_that_is_none_is_refused_in_words_and_stays_to_be_mended(client_of: Client, key: SoftKey) -> None:
    for name, said in (
        ("   ", "This field is required."),
        ("x" * 61, "at most 60 characters (it has 61)"),
        ("a\0b", "Null characters are not allowed."),
    ):
        refused = rename(client_of, name)
        assert (refused.status_code, said in text(refused)) == (422, True)
        assert f'value="{name}"' in text(refused) or not name.strip()
    assert str(Authenticator.objects.get(type="webauthn")) == "Blue key"


@pytest.mark.full
def test_nobody_renames_or_removes_the_key_of_somebody_else_nor_their_own_unconfirmed(
    person: User, key: SoftKey, sign_in: SignIn
) -> None:
    foreign, unconfirmed = sign_in(make.user()), sign_in(person)
    confirm(foreign, INDEX)
    path = f"{INDEX}keys/{Authenticator.objects.get(type='webauthn').pk}"

    for act in ("rename", "remove"):
        assert foreign.post(f"{path}/{act}/", {"name": "Mine"}).status_code == 404
        assert "reauthenticate" in unconfirmed.post(f"{path}/{act}/", {"name": "Mine"})["Location"]
    assert str(Authenticator.objects.get(type="webauthn")) == "Blue key"


@pytest.mark.full
def test_removing_the_last_key_turns_the_second_factor_off(person: User, client_of: Client, key: SoftKey) -> None:
    path = f"/settings/second-factor/keys/{Authenticator.objects.get(type='webauthn').pk}/remove/"
    assert "Remove Blue key?" in text(client_of.get(path))

    client_of.post(path)

    assert not Authenticator.objects.exists()
    assert Client().post("/accounts/login/", {"login": person.email, "password": make.PASSWORD})["Location"] == "/"
    event = Event.objects.get(action="user.second_factor_removed")
    assert sentence(event) == f"{person.email} removed their security key “Blue key”."


@pytest.mark.full
def test_a_key_confirms_in_place_of_the_password(person: User, key: SoftKey, sign_in: SignIn) -> None:
    client = sign_in(person)
    again = f"/accounts/second-factor/key/?next={ADD}"
    assert "Use a security key instead" in text(client.get(f"/accounts/reauthenticate/?next={ADD}"))

    foreign = client.post("/accounts/second-factor/key/", {"credential": SoftKey().get(text(client.get(again)))})
    done = client.post("/accounts/second-factor/key/", {"credential": key.get(text(client.get(again))), "next": ADD})

    assert REFUSED in text(foreign)
    assert done["Location"] == ADD
    assert client.get(ADD).status_code == 200


@pytest.mark.full
def test_a_key_that_does_not_count_signs_in_again_and_again_and_an_answer_confirms_once(
    person: User, client_of: Client, sign_in: SignIn
) -> None:
    passkey, again = SoftKey(counts=0), "/accounts/second-factor/key/"
    add(client_of, passkey)
    for _ in range(2):
        client = sign_in_by_page(person)
        assert client.post(ASKED, {"credential": passkey.get(text(client.get(ASKED)))})["Location"] == "/"
    client = sign_in(User.objects.get(pk=person.pk))
    said = passkey.get(text(client.get(again)))
    assert client.post(again, {"credential": said, "next": ADD})["Location"] == ADD

    assert REFUSED in text(client.post(again, {"credential": said, "next": ADD}))


def test_an_administrator_takes_keys_off_with_the_rest(person: User, key: SoftKey) -> None:
    second_factor.remove(person, by=None)

    assert not second_factor.has_second_factor(person)


def test_a_key_makes_a_break_glass_owner_and_the_last_ones_stays(sign_in: SignIn) -> None:
    person = owner(app=False)
    client = sign_in(person)
    add(client, SoftKey())
    person.set_break_glass(True, by=None)
    Provider.objects.create(mode="enforced", name="x", issuer="https://x.example", client_id="x", domains=["x.example"])

    kept = client.post(
        f"/settings/second-factor/keys/{Authenticator.objects.get(type='webauthn').pk}/remove/", follow=True
    )

    assert "the last break-glass owner must remain" in text(kept)
    assert Authenticator.objects.filter(type="webauthn").exists()


@pytest.mark.full
def test_keys_are_offered_where_browsers_allow_them(client_of: Client, settings: Settings) -> None:
    for url, offered in (
        ("https://gateway.example.com", True),
        ("http://localhost:8000", True),
        ("http://gateway.example.com", False),
        ("https://192.0.2.7", False),
        ("https://[2001:db8::1]", False),
    ):
        settings.PUBLIC_URL = url
        page = text(client_of.get(INDEX))
        assert ("Add a security key" in page) is offered, url
        assert (client_of.get(ADD).status_code == 302) or offered


@pytest.mark.full
def test_a_key_is_made_for_the_host_of_the_public_url_and_its_origin_is_as_browsers_write_it(
    client_of: Client, settings: Settings
) -> None:
    settings.PUBLIC_URL = "https://LOCALHOST:443"
    add(client_of, SoftKey(origin="https://localhost"))
    assert Authenticator.objects.filter(type="webauthn").exists()

    settings.PUBLIC_URL = "https://gateway.example.com"
    settings.ALLOWED_HOSTS = ["*"]
    assert options_of(text(confirm(client_of, ADD)))["rp"]["id"] == "gateway.example.com"
