"""Encrypted assertions of a third-party provider; encryption does not replace the signature."""

import base64
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.test import Client
from lxml import etree
from pytest_django import Settings

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from gatewayadmin.config.key_uses import key_uses
from servers.resealing import reseal_servers
from sso.models import Account, DecryptionKey, Provider
from sso.saml.keys import make_key
from sso.saml.responses import FAILED
from tests import make
from tests.accounts.again import confirmed
from tests.oauth.apps import browser
from tests.rest import Rest
from tests.sso.encrypting import CBC, OAEP, PKCS1, Encrypted
from tests.sso.saml_provider import NS, Answer, Pair, SamlOrganisation, SamlVisit, asks, brings, sent, signs_in_at
from tests.sso.test_saml_responses import reason, signed_by, tried
from tests.sso.test_saml_settings import FORM, PAGE, PASTED
from tests.sso.test_saml_signing_in import query_id
from tests.undone import undone
from ui.sealing import cipher
from wire.cipher import encryption_key_id

pytestmark = pytest.mark.django_db

METADATA = "/accounts/organisation/saml/metadata/"


@pytest.fixture(scope="module")
def pair() -> tuple[str, str]:
    """A key pair as `Provider.edit` makes one. The tests share it, because making a pair is slow."""
    return make_key()


@pytest.fixture
def taking(saml: Provider, pair: tuple[str, str]) -> Provider:
    """A provider with encrypted assertions enabled, as `Provider.edit(takes_encrypted=True)` leaves it."""
    DecryptionKey.add(*pair)
    Provider.objects.update(takes_encrypted=True)
    return Provider.load()


@pytest.fixture
def answer(taking: Provider, saml_organisation: SamlOrganisation) -> Answer:
    return Answer(taking.issuer, saml_organisation.pair)


def metadata() -> str:
    return Client().get(METADATA).content.decode()


def published() -> str:
    """Return the encryption certificate in the gateway's metadata."""
    (found,) = re.findall(r'use="encryption">.*?<ds:X509Certificate>([^<]+)', metadata())
    return str(found)


def encrypted(content: Any, **how: Any) -> Any:
    data = content if isinstance(content, bytes) else etree.tostring(content)
    return Encrypted(how.pop("certificate", "") or published(), data, **how).element()


def brought(answer: Answer, build: Callable[[Answer], Any]) -> SamlVisit:
    """Start a sign-in, send a response with the assertion that `build` makes, and return the outcome."""
    return tried(answer, lambda given: sent(given.around(build(given))))


def signs_in(name: str) -> SamlVisit:
    client = Client()
    return brings(client, signs_in_at(asks(client), name))


def detail() -> str:
    event = Event.objects.filter(action="user.sign_in_refused").latest("pk")
    return str(event.changes["detail"])


@pytest.mark.full
def test_a_provider_encrypts_for_the_key_in_our_metadata_and_people_sign_in(
    taking: Provider, saml_organisation: SamlOrganisation
) -> None:
    saml_organisation.knows("mia")
    saml_organisation.encrypts_for(published())

    visit = signs_in("mia")

    assert b"EncryptedAssertion" in base64.b64decode(visit.fields["SAMLResponse"])
    assert b"mia@example.com" not in base64.b64decode(visit.fields["SAMLResponse"])
    assert visit.person == User.objects.get(email="mia@example.com")
    saml_organisation.forget()
    saml_organisation.knows("ann")
    assert signs_in("ann").person == User.objects.get(email="ann@example.com")  # Not encrypted.


@pytest.mark.full
def test_aes_gcm_under_rsa_oaep_is_taken(answer: Answer, subtests: pytest.Subtests) -> None:
    sha256, sha512 = (f"http://www.w3.org/2001/04/xmlenc#sha{bits}" for bits in (256, 512))
    ways: list[dict[str, Any]] = [
        {"bits": 128},
        {"bits": 192},
        {"digest": "http://www.w3.org/2000/09/xmldsig#sha1"},
        {"digest": sha256},
        {"wrapping": OAEP, "digest": sha256, "mask": "mgf1sha256"},
        {"wrapping": OAEP, "digest": sha512, "mask": "mgf1sha1"},
        {"beside": True},
    ]
    for how in ways:
        with subtests.test(str(how)), undone():
            visit = brought(replace(answer), lambda given, how=how: encrypted(given.signed(), **how))  # type: ignore[misc]
            assert visit.person == User.objects.get(email="mia@example.com")


@pytest.mark.full
def test_whatever_our_metadata_announce_is_taken(answer: Answer) -> None:
    announced = re.findall(r'<md:EncryptionMethod Algorithm="([^"]+)"/>', metadata())
    ciphers = {each: int(bits[1]) for each in announced if (bits := re.search(r"#aes(\d+)", each))}
    wrappings = [each for each in announced if each not in ciphers]
    assert ciphers
    assert wrappings

    def person(**how: Any) -> User | None:
        another = Answer(answer.issuer, answer.pair)
        return brought(another, lambda given: encrypted(given.signed(), **how)).person

    for (algorithm, bits), wrapping in product(ciphers.items(), wrappings):
        found = person(algorithm=algorithm, bits=bits, wrapping=wrapping)
        assert found == User.objects.get(email="mia@example.com"), (algorithm, wrapping)


@pytest.mark.full
def test_unsafe_encryption_is_refused_before_decrypting(
    answer: Answer, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    monkeypatch.setattr(DecryptionKey, "opening", lambda: pytest.fail("it was opened"))
    for how in (
        {"algorithm": CBC},
        {"algorithm": "http://www.w3.org/2001/04/xmlenc#tripledes-cbc"},
        {"algorithm": ""},
        {"wrapping": PKCS1},
        {"wrapping": "http://www.w3.org/2001/04/xmlenc#kw-aes256"},
        {"wrapping": OAEP, "digest": "http://www.w3.org/2001/04/xmldsig-more#md5"},
        {"wrapping": OAEP, "mask": "mgf1md5"},
    ):
        with subtests.test(str(how)), undone():
            element = Encrypted(published(), etree.tostring(answer.signed()), **how).element()  # type: ignore[arg-type]
            if how == {"algorithm": ""}:
                element.find(".//{*}EncryptedData/{*}EncryptionMethod").set("Algorithm", "")

            visit = brought(replace(answer), lambda _, element=element: element)  # type: ignore[misc]

            assert (visit.response.status_code, visit.person) == (400, None)
            assert reason() == "weak_encryption"


# --- No way around the signature --------------------------------------------------------------------------------------


def other(answer: Answer) -> Answer:
    return Answer(answer.issuer, Pair.make(), answers=answer.answers)


CONTENT: dict[str, tuple[Callable[[Answer], Any], str]] = {
    "unsigned": (lambda answer: answer.assertion(), "not_signed"),
    "by another": (lambda answer: other(answer).signed(), "wrong_signature"),
    "for others": (lambda answer: replace(answer, audience="https://other.example.com").signed(), "other_audience"),
    "expired": (lambda answer: replace(answer, ends=-2).signed(), "expired"),
    "changed": (lambda answer: changed(answer.signed()), "wrong_signature"),
    "one in another": (lambda answer: other_around(answer.signed(), answer), "wrapped"),
    "a comment": (lambda answer: etree.tostring(answer.signed()).replace(b"mia@", b"m<!---->ia@"), "not_decrypted"),
    "a document type": (lambda answer: b"<!DOCTYPE x>" + etree.tostring(answer.signed()), "not_decrypted"),
}


@pytest.mark.full
def test_decrypted_content_is_checked_as_if_sent_in_the_clear(answer: Answer, subtests: pytest.Subtests) -> None:
    for name, (build, named) in CONTENT.items():
        with subtests.test(name), undone():
            visit = brought(replace(answer), lambda given, build=build: encrypted(build(given)))  # type: ignore[misc]

            assert (visit.response.status_code, visit.person) == (400, None)
            assert reason() == named
            assert not Account.objects.exists()


def changed(signed: Any) -> Any:
    signed.find(".//saml:NameID", NS).text = "ann"
    return signed


def other_around(signed: Any, answer: Answer) -> Any:
    """Return a forged assertion that contains the signed assertion."""
    evil = answer.assertion()
    evil.set("ID", "_evil")
    evil.find(".//saml:Subject", NS).append(signed)
    return evil


def test_the_response_around_may_be_signed_but_its_signature_stands_for_no_other(
    answer: Answer, subtests: pytest.Subtests
) -> None:
    def signed(pair: Pair, content: Any) -> Callable[[Answer], dict[str, str]]:
        return lambda given: sent(signed_by(pair, given.around(encrypted(content(given)))))

    with subtests.test("its signature does not sign what is encrypted in it"), undone():
        visit = tried(replace(answer), signed(answer.pair, Answer.assertion))
        assert (visit.person, reason()) == (None, "not_signed")
    with subtests.test("its signature is wrong though the assertion is good"), undone():
        visit = tried(replace(answer), signed(Pair.make(), Answer.signed))
        assert (visit.person, reason()) == (None, "wrong_signature")
    with subtests.test("both are good"), undone():
        assert tried(replace(answer), signed(answer.pair, Answer.signed)).person is not None


@pytest.mark.full
def test_prefixes_of_the_response_leave_the_assertion_as_it_was_signed(answer: Answer) -> None:
    """The response uses another prefix for the same namespace, which must not change the signed assertion's text."""

    def around(given: Answer) -> Any:
        text = etree.tostring(given.around(encrypted(given.signed())))
        return etree.fromstring(text.replace(b"saml:", b"said:").replace(b"xmlns:saml=", b"xmlns:said="))

    visit = tried(answer, lambda given: sent(around(given)))

    assert visit.person == User.objects.get(email="mia@example.com")


@pytest.mark.full
def test_more_than_one_assertion_is_refused_whichever_is_encrypted(answer: Answer, subtests: pytest.Subtests) -> None:
    several: dict[str, Callable[[Answer], list[Any]]] = {
        "two": lambda given: [encrypted(given.signed()), encrypted(given.signed())],
        "beside a signed one": lambda given: [given.signed(), encrypted(given.signed())],
        "before one": lambda given: [encrypted(given.signed()), given.assertion()],
        "further inside": lambda given: [nested(encrypted(given.signed()))],
    }
    for name, parts in several.items():
        with subtests.test(name), undone():
            visit = tried(replace(answer), lambda given, parts=parts: sent(given.around(*parts(given))))  # type: ignore[misc]
            assert (visit.person, reason()) == (None, "wrapped")


def nested(element: Any) -> Any:
    holder = etree.fromstring(f'<samlp:Extensions xmlns:samlp="{NS["samlp"]}"/>')
    holder.append(element)
    return holder


@pytest.mark.full
def test_an_assertion_is_taken_once_however_often_it_is_encrypted(answer: Answer) -> None:
    client = Client()
    answer.answers = query_id(asks(client))
    signed = answer.signed()
    visits = [brings(client, sent(answer.around(encrypted(signed)))) for _ in range(2)]

    assert visits[0].person == User.objects.get(email="mia@example.com")
    assert visits[1].response.status_code == 400
    assert reason() == "used_before"


# --- No oracle --------------------------------------------------------------------------------------------------------


def with_value(element: Any, path: str, change: Callable[[bytes], bytes]) -> Any:
    value = element.find(f".//{{*}}{path}/{{*}}CipherData/{{*}}CipherValue")
    value.text = base64.b64encode(change(base64.b64decode(value.text))).decode()
    return element


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


CLOSED: dict[str, Callable[[Answer], Any]] = {
    "the key": lambda given: with_value(encrypted(given.signed()), "EncryptedKey", lambda data: flipped(data, -1)),
    "part of the key": lambda given: with_value(encrypted(given.signed()), "EncryptedKey", lambda data: data[:-1]),
    "the check": lambda given: with_value(encrypted(given.signed()), "EncryptedData", lambda data: flipped(data, -1)),
    "the nonce": lambda given: with_value(encrypted(given.signed()), "EncryptedData", lambda data: flipped(data, 0)),
    "the data": lambda given: with_value(encrypted(given.signed()), "EncryptedData", lambda data: flipped(data, 40)),
    "for others": lambda given: encrypted(given.signed(), certificate=Pair.make().bare),
    "another length": lambda given: encrypted(given.signed(), bits=128, said_bits=256),
    "no XML": lambda _: encrypted(b"no XML"),
    "nothing": lambda _: encrypted(b""),
    "another element": lambda given: encrypted(given.around(given.signed())),
}


@pytest.mark.full
def test_whatever_keeps_it_from_being_opened_looks_the_same(answer: Answer, subtests: pytest.Subtests) -> None:
    for name, build in CLOSED.items():
        with subtests.test(name), undone():
            visit = brought(replace(answer), build)

            assert (visit.response.status_code, visit.person) == (400, None)
            assert (reason(), detail()) == ("not_decrypted", FAILED)


@pytest.mark.full
def test_encrypted_data_is_never_fetched_by_reference(answer: Answer) -> None:
    element = encrypted(answer.signed())
    data = element.find(".//{*}EncryptedData/{*}CipherData")
    data.remove(data[0])
    etree.SubElement(data, data.tag.replace("CipherData", "CipherReference")).set("URI", "http://127.0.0.1/")

    visit = brought(answer, lambda given: element)

    assert (visit.person, reason()) == (None, "malformed")


# --- The keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_new_key_is_published_and_the_one_before_opens_until_there_is_another(answer: Answer) -> None:
    first = published()
    Provider.edit(by=None, new_decryption_key=True)
    second = published()
    assert first != second
    for certificate in (first, second):
        given, client = Answer(answer.issuer, answer.pair), Client()
        given.answers = query_id(asks(client))
        visit = brings(client, sent(given.around(encrypted(given.signed(), certificate=certificate))))
        assert visit.person == User.objects.get(email="mia@example.com")

    Provider.edit(by=None, new_decryption_key=True)

    assert DecryptionKey.objects.count() == 2
    brought(answer, lambda given: encrypted(given.signed(), certificate=first))
    assert reason() == "not_decrypted"


@pytest.mark.full
def test_one_request_for_a_new_key_makes_one_however_often_it_is_sent(taking: Provider) -> None:
    """Repeating the request must not create a second key, because the provider may still use the previous key."""
    boss = make.user(*Capability)
    rest, seen = Rest.of(boss), {"If-Match": Rest.of(boss).get("/organisation").headers["ETag"]}

    said = [rest.send("patch", "/organisation", {"new_decryption_key": True}, seen).status_code for _ in range(2)]

    assert said == [200, 412]
    assert DecryptionKey.objects.count() == 2


@pytest.mark.full
def test_switched_off_or_with_another_protocol_nothing_encrypted_is_taken_and_the_keys_are_gone(answer: Answer) -> None:
    certificate = published()
    Provider.edit(by=None, takes_encrypted=False)

    brought(answer, lambda given: encrypted(given.signed(), certificate=certificate))

    assert reason() == "encrypted"
    assert not DecryptionKey.objects.exists()
    assert 'use="encryption"' not in Client().get(METADATA).content.decode()
    Provider.edit(by=None, takes_encrypted=True)
    assert published() != certificate

    Provider.edit(by=None, mode="off", protocol="oidc")
    assert not DecryptionKey.objects.exists()
    assert Provider.load().takes_encrypted is False


@pytest.mark.full
def test_the_keys_are_sealed_and_move_to_the_newest_encryption_key(taking: Provider, settings: Settings) -> None:
    newest = Fernet.generate_key()
    settings.ENCRYPTION_KEYS = [newest, *settings.ENCRYPTION_KEYS]
    cipher.cache_clear()
    try:
        (row,) = DecryptionKey.objects.all()
        assert b"PRIVATE KEY" not in bytes(row.sealed)
        reseal_servers()

        (row,) = DecryptionKey.objects.all()
        assert row.key_id == encryption_key_id(newest)
        assert len(DecryptionKey.opening()) == 1
        assert key_uses()[1].uses[encryption_key_id(newest)] == 1
    finally:
        settings.ENCRYPTION_KEYS = settings.ENCRYPTION_KEYS[1:]
        cipher.cache_clear()


@pytest.mark.full
def test_a_key_that_cannot_be_opened_keeps_out_only_what_is_encrypted(
    answer: Answer, saml_organisation: SamlOrganisation
) -> None:
    saml_organisation.knows("ann")
    DecryptionKey.objects.update(sealed=b"lost")

    brought(answer, lambda given: encrypted(given.signed()))

    assert reason() == "not_decrypted"
    assert signs_in("ann").person == User.objects.get(email="ann@example.com")


@pytest.mark.full
def test_the_page_and_rest_turn_it_on_show_the_certificate_and_never_the_key() -> None:
    boss = make.user(*Capability)
    Provider.edit(by=None, protocol="saml", name="Example", metadata_xml=PASTED)
    client = confirmed(browser(boss))
    client.post(PAGE, FORM | {"takes_encrypted": "on", "version": Provider.load().version})

    key = DecryptionKey.newest()
    assert key
    assert key.fingerprint in client.get(PAGE).content.decode()
    said = Rest.of(boss).patch("/organisation", {"new_decryption_key": True})
    assert said.json()["takes_encrypted"] is True
    assert "new_decryption_key" not in said.json()
    assert DecryptionKey.newest() != key
    events = Event.objects.filter(action="organisation.updated").order_by("-pk")[:2]
    assert [event.changes for event in events] == [
        {"decryption_key_made": True},
        {"email_attribute": ["email", "mail"], "takes_encrypted": [False, True], "decryption_key_made": True},
    ]
