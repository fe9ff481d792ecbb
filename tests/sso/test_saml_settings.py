"""Setting SAML up by page, REST and Django's admin, and refused settings."""

import base64
import sys
import time
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.asymmetric import ec
from django.test import Client
from django.utils import timezone
from lxml import etree
from pytest_django import Settings

from accounts import sign_in_limits
from auditlog.models import Event
from capabilities import Capability
from gatewayadmin.serving import housekeeping
from sso.errors import BadSamlMetadata, Incomplete, ProviderError
from sso.models import Provider, ReceivedAssertion
from sso.provider_test import test_provider as try_provider
from sso.saml.settings import consumer_url, entity_id
from tests import make
from tests.accounts.again import confirmed
from tests.asgi_server import Receive, Scope, Send, answer
from tests.asgi_server import running as serving
from tests.oauth.apps import browser
from tests.rest import Rest
from tests.sso.conftest import must_move_to_the_newest_key
from tests.sso.saml_provider import ACS, Answer, Pair, SamlOrganisation, asks, brings, metadata_of, sent
from tests.sso.test_saml_signing_in import query_id
from wire.oauth_client import MOST_BYTES

pytestmark = pytest.mark.django_db

PAGE = "/settings/organisation/"
FORM = {
    "mode": "off",
    "protocol": "saml",
    "name": "Example",
    "groups_claim": "groups",
    "name_id_format": "persistent",
    "email_attribute": "mail",
}
ENTITY, SSO = "https://idp.example.com/saml", "https://idp.example.com/sso"
PAIR = Pair.make()
PASTED = metadata_of(ENTITY, SSO, PAIR)


@pytest.fixture
def boss(db: None) -> Client:
    return confirmed(browser(make.user(*Capability)))


@pytest.fixture
def pasted(db: None) -> Provider:
    """A provider with pasted metadata."""
    role = make.role()
    return Provider.edit(
        by=None, protocol="saml", mode="offered", name="Example", metadata_xml=PASTED, default_role=role
    )


def test_pasted_metadata_are_read_and_shown_and_so_is_what_the_provider_needs(boss: Client) -> None:
    saved = boss.post(PAGE, FORM | {"mode": "offered", "metadata_xml": PASTED})

    assert saved.status_code == 302
    row = Provider.load()
    assert (row.issuer, row.sso_url, row.client_id) == (ENTITY, SSO, entity_id())
    page = boss.get(PAGE).content.decode()
    for words in (ENTITY, SSO, row.signing[0].fingerprint, entity_id(), consumer_url()):
        assert words in page
    event = Event.objects.get(action="organisation.updated")
    assert event.changes["certificates"] == [[], [row.signing[0].fingerprint]]
    assert event.changes["protocol"] == ["oidc", "saml"]
    response = Client().get("/accounts/organisation/saml/metadata/")
    root = etree.fromstring(response.content)
    assert response["Content-Type"] == "application/samlmetadata+xml"
    assert (root.get("entityID"), root[0].get("WantAssertionsSigned")) == (entity_id(), "true")
    assert [each.get("Location") for each in root[0] if each.tag.endswith("ConsumerService")] == [consumer_url()]


@pytest.mark.full
def test_metadata_at_an_address_are_read_through_the_guard(boss: Client, settings: Settings) -> None:
    """The metadata URL is checked like other outbound addresses; a SAML library would fetch any URL."""
    inside = FORM | {"metadata_url": "http://127.0.0.1:9/metadata"}
    refused = boss.post(PAGE, inside)
    settings.PRIVATE_UPSTREAMS = [ip_network("127.0.0.0/8")]
    down = boss.post(PAGE, inside)

    assert "GATEWAY_PRIVATE_UPSTREAMS" in refused.content.decode()
    assert "cannot be reached" in down.content.decode()
    assert (refused.status_code, down.status_code) == (422, 422)
    assert not Event.objects.filter(action="organisation.updated").exists()


def test_fetched_metadata_are_limited_and_must_match_exactly(boss: Client, settings: Settings) -> None:
    settings.PRIVATE_UPSTREAMS = [ip_network("127.0.0.0/8")]
    for status, body, words in (
        (302, b"", "answered 302"),
        (404, b"", "answered 404"),
        (200, b"x" * (MOST_BYTES + 1), "answered with more than"),
        (200, b"<!doctype html><p>Hello</p>", "cannot be read"),
    ):

        async def page(scope: Scope, receive: Receive, send: Send, status: int = status, body: bytes = body) -> None:
            to = [(b"location", b"http://127.0.0.1:1/")] if status == 302 else []
            await answer(send, status, body, headers=to)

        with serving(page) as server:
            refused = boss.post(PAGE, FORM | {"metadata_url": f"http://127.0.0.1:{server.port}/metadata"})
        assert (refused.status_code, words in refused.content.decode()) == (422, True), words


def broken(part: bytes, by: bytes) -> str:
    """Return metadata in which the last occurrence of `part` in the certificate is replaced."""
    before, after = base64.b64decode(PAIR.bare).rsplit(part, 1)
    return PASTED.replace(PAIR.bare, base64.b64encode(before + by + after).decode())


BOMB = '<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'


UNUSABLE = [
    ("<html></html>", "must describe one SAML 2.0 identity provider"),
    ("hello", "The document is not XML"),
    (BOMB + PASTED.partition("-->")[2], "document type"),
    (metadata_of(ENTITY, SSO), "these have 0"),
    (metadata_of(ENTITY, SSO, Pair.make(bits=1024)), "RSA of 2048 bits"),
    (metadata_of(ENTITY, "http://93.184.216.34/sso", PAIR), "GATEWAY_PRIVATE_UPSTREAMS"),
    (metadata_of(ENTITY, "javascript:alert(1)", PAIR), "no usable sign-in URL"),
    (metadata_of(ENTITY, SSO, PAIR, until="2020-01-01T00:00:00Z"), "expired on 2020"),
    (metadata_of("x" * 451, SSO, PAIR), "1 to 450 printable characters"),
    (PASTED.replace("HTTP-Redirect", "HTTP-POST"), "no SingleSignOnService with the HTTP-Redirect"),
    (PASTED.replace(PAIR.bare, "AAAA"), "A certificate in the metadata cannot be read"),
    (broken(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07"), "A certificate in the metadata cannot be read"),
    (broken(b"provider", b"\xffrovider"), "A certificate in the metadata cannot be read"),
    (metadata_of(ENTITY, SSO, Pair.on(ec.SECP224R1())), "has a weak key"),
    (metadata_of(ENTITY, SSO, Pair.on(ec.SECP256K1())), "has a weak key"),
]


@pytest.mark.full
def test_metadata_that_cannot_be_used_are_refused_in_words_and_nothing_is_saved(
    boss: Client, subtests: pytest.Subtests
) -> None:
    both = {"metadata_xml": PASTED, "metadata_url": "https://93.184.216.34/metadata"}
    forms: list[tuple[dict[str, str], str]] = [({"metadata_xml": metadata}, words) for metadata, words in UNUSABLE]
    for fields, words in [*forms, ({"mode": "offered"}, "name and metadata"), (both, "not both")]:
        with subtests.test(words):
            refused = boss.post(PAGE, FORM | fields)

            assert refused.status_code == 422
            assert words in refused.content.decode()
    assert Provider.load().protocol == "oidc"
    with pytest.raises(BadSamlMetadata, match="for SAML only"):
        Provider.edit(by=None, metadata_xml=PASTED)


@pytest.mark.full
def test_comments_in_metadata_are_left_out_in_time_and_keys_on_p256_sign(boss: Client) -> None:
    begun = time.process_time()
    refused = boss.post(PAGE, FORM | {"metadata_xml": "<!--" * 30_000})
    assert time.process_time() - begun < 2
    assert "The document is not XML" in refused.content.decode()

    good = metadata_of(ENTITY, SSO, Pair.on(ec.SECP256R1())).replace(">", "><!-- x -->")
    assert boss.post(PAGE, FORM | {"metadata_xml": good}).status_code == 302


@pytest.mark.full
def test_without_the_packages_page_and_rest_say_what_installs_them(
    boss: Client, saml: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "pip install &#x27;gateway-admin[saml]&#x27;"
    fields = Answer(saml.issuer, Pair.make()).fields()
    monkeypatch.setattr("sso.saml.settings.find_spec", lambda name: None)
    for name in ("lxml", "signxml", "sso.saml.documents", "sso.saml.responses"):
        monkeypatch.setitem(sys.modules, name, None)

    assert words in boss.get(PAGE).content.decode()
    assert Client().post("/accounts/organisation/").status_code == 502
    assert "refused=not_installed" in Client().post(ACS, fields)["Location"]
    assert "gateway-admin[saml]" in try_provider(saml, by=None).detail
    assert boss.post(PAGE, FORM | {"mode": "off"}).status_code == 302  # Disabling the provider still works.
    Provider.edit(by=None, protocol="oidc")
    assert words in boss.post(PAGE, FORM).content.decode()
    refused = Rest.of(make.user(*Capability)).patch("/organisation", {"protocol": "saml"})
    assert (refused.status_code, refused.json()["code"]) == (409, "needs_extra")
    assert "pip install 'gateway-admin[saml]'" in refused.json()["detail"]


@pytest.mark.full
def test_saml_terms_can_be_changed_only_with_every_capability(pasted: Provider) -> None:
    """For people without every capability, the gateway does not even fetch the metadata URL."""
    lacking = Rest.of(make.user(*(each for each in Capability if each != Capability.LOGS_READ)))
    before = Provider.load().editable()
    terms: dict[str, Any] = {
        "protocol": "oidc",
        "metadata_url": "https://93.184.216.34/other",
        "metadata_xml": metadata_of(ENTITY, SSO, Pair.make("other")),
        "name_id_format": "unspecified",
        "email_attribute": "other",
        "takes_unsolicited": True,
        "name_attribute": "other",
        "signs_requests": True,
        "takes_encrypted": True,
    }

    for name, value in terms.items():
        refused = lacking.patch("/organisation", {name: value})
        assert (refused.status_code, refused.json()["code"]) == (403, "beyond_yours"), name
    assert Provider.load().editable() == before


def test_rest_sets_it_up_and_says_what_has_to_be_entered_at_the_provider() -> None:
    rest = Rest.of(make.user(*Capability))

    said = rest.patch("/organisation", {"protocol": "saml", "name": "Example", "metadata_xml": PASTED}).json()

    assert (said["issuer"], said["sso_url"], said["protocol"]) == (ENTITY, SSO, "saml")
    assert (said["entity_id"], said["acs_url"]) == (entity_id(), consumer_url())
    assert said["certificates"][0]["subject"] == "CN=provider"
    assert "metadata_xml" not in said
    for terms, field in (
        ({"issuer": "https://other.example.com"}, "issuer"),
        ({"secret": "x"}, "secret"),
        ({"metadata_xml": "x"}, "metadata_xml"),
        ({"metadata_url": "https://10.0.0.1/"}, "metadata_url"),
    ):
        refused = rest.patch("/organisation", terms)
        assert (refused.status_code, [*refused.json()["errors"]]) == (400, [field]), refused.text


@pytest.mark.full
def test_a_key_is_made_for_signed_requests_held_sealed_and_gone_with_them(pasted: Provider) -> None:
    signed = Provider.edit(by=None, signs_requests=True)
    key = signed.secret
    assert key.startswith("-----BEGIN PRIVATE KEY-----")
    assert b"PRIVATE" not in bytes(signed.secret_ciphertext or b"")
    assert Provider.edit(by=None, name="Other").secret == key
    assert all("PRIVATE" not in str(event.changes) for event in Event.objects.all())

    ended = Provider.edit(by=None, signs_requests=False)

    assert (ended.has_secret, ended.own_certificate) == (False, "")


@pytest.mark.full
def test_a_provider_with_signed_requests_has_a_key(db: None, saml_organisation: SamlOrganisation) -> None:
    """Enabling SAML makes the key if signing was enabled before. If the key is missing later, saving makes another."""
    Provider.edit(by=None, signs_requests=True)
    row = Provider.edit(by=None, protocol="saml", mode="offered", name="Example", metadata_xml=PASTED)
    assert (row.has_secret, bool(row.own_certificate)) == (True, True)

    Provider.objects.update(secret_ciphertext=None)
    assert Client().post("/accounts/organisation/").status_code == 502
    with pytest.raises(Incomplete, match="no key"):
        Provider.load().must_be_sound()
    assert Provider.edit(by=None, name="Other").has_secret
    assert asks(Client()).startswith(SSO)

    Provider.objects.update(secret_ciphertext=Fernet(Fernet.generate_key()).encrypt(b"x"))
    assert Client().post("/accounts/organisation/").status_code == 502


@pytest.mark.full
def test_metadata_past_their_end_are_said_to_be_on_the_page_and_by_test(boss: Client) -> None:
    until = (timezone.now() + timedelta(days=1)).isoformat()
    Provider.edit(by=None, protocol="saml", name="Example", metadata_xml=metadata_of(ENTITY, SSO, PAIR, until=until))
    assert Provider.load().metadata_end_at is not None
    assert "in the past: update" not in boss.get(PAGE).content.decode()
    Provider.objects.update(metadata_end_at="2026-01-01T00:00:00Z")

    assert "in the past: update the metadata" in boss.get(PAGE).content.decode()
    assert "The metadata were valid until 2026-01-01 00:00 UTC" in try_provider(Provider.load(), by=None).detail


@pytest.mark.full
def test_the_key_moves_to_the_newest_encryption_key_and_is_counted(pasted: Provider, settings: Settings) -> None:
    must_move_to_the_newest_key(settings, Provider.edit(by=None, signs_requests=True).secret)


@pytest.mark.full
def test_changing_the_protocol_takes_nothing_of_the_other_along(pasted: Provider) -> None:
    Provider.edit(by=None, signs_requests=True)

    oidc = Provider.edit(by=None, protocol="oidc", mode="off")

    assert (oidc.issuer, oidc.client_id, oidc.sso_url, oidc.certificates) == ("", "", "", "")
    assert (oidc.has_secret, oidc.signs_requests) == (False, False)
    Provider.edit(by=None, issuer="https://93.184.216.34", client_id="ours", secret="the-secret-of-oidc")
    saml = Provider.edit(by=None, protocol="saml", metadata_xml=PASTED)
    assert (saml.issuer, saml.client_id, saml.has_secret) == (ENTITY, entity_id(), False)


@pytest.mark.full
def test_test_reads_the_metadata_anew_and_says_what_was_found(
    boss: Client, saml: Provider, saml_organisation: SamlOrganisation
) -> None:
    good = boss.post(f"{PAGE}test/").content.decode()
    saml_organisation.signs_with(Pair.make("new"))
    boss.post(f"{PAGE}test/")
    renewed = Provider.load().signing[0].subject
    Provider.objects.update(issuer="https://other.example.com")
    other = boss.post(f"{PAGE}test/").content.decode()

    assert (
        f"{saml.issuer} signs people in at {saml_organisation.origin}/sso and signs answers with 1 certificate." in good
    )
    assert renewed == "CN=new"
    assert "now has metadata of another provider" in other
    told = Event.objects.filter(action="organisation.tested").order_by("pk")
    assert [event.changes["works"] for event in told] == [True, True, False]


@pytest.mark.full
def test_a_certificate_past_its_end_is_accepted_while_the_metadata_name_it_and_test_says_so(pasted: Provider) -> None:
    """The metadata establish trust in the certificate, and its expiry should lock nobody out."""
    old = Pair.make("old", until=timedelta(days=-1))
    provider = Provider.edit(by=None, metadata_xml=metadata_of(ENTITY, SSO, old), domains=["example.com"])

    assert "1 of them expired" in try_provider(provider, by=None).detail
    client = Client()

    assert brings(client, Answer(ENTITY, old, query_id(asks(client))).fields()).person is not None


@pytest.mark.full
def test_claims_of_a_browser_that_never_returns_are_deleted(saml: Provider) -> None:
    first = ReceivedAssertion.keep(saml.issuer, "_1", {"a": 1})
    assert ReceivedAssertion.keep(saml.issuer, "_1", {"a": 1}) == ""
    ReceivedAssertion.objects.update(until=timezone.now())
    assert ReceivedAssertion.take(first) is None

    assert housekeeping.CHORES["saml_assertions"](timezone.now()) == 1
    assert not ReceivedAssertion.objects.exists()


@pytest.mark.usefixtures("within_one_minute")
def test_a_stranger_sends_no_more_answers_than_an_office_would_and_accepted_ones_are_not_counted(
    saml: Provider, saml_organisation: SamlOrganisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole office may share one address."""
    limit = sign_in_limits.MOST["organisation answer, from one address"]
    monkeypatch.setitem(sign_in_limits.MOST, "organisation answer, from one address", (2, limit[1]))
    for _ in range(4):
        client = Client()
        fields = Answer(saml.issuer, saml_organisation.pair, query_id(asks(client))).fields()
        assert brings(client, fields).response.status_code == 302

    codes = [Client().post(ACS, sent(b"<a/>")).status_code for _ in range(3)]

    assert codes == [303, 303, 429]


def test_metadata_that_turn_bad_keep_nobody_out_and_leave_what_there_is(saml: Provider) -> None:
    def read_from(url: str, **more: Any) -> None:
        Provider.objects.update(metadata_url=url, metadata_read_at="2026-01-01T00:00:00Z", **more)

    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 200, broken(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07").encode())

    with serving(page) as server:
        read_from(f"http://127.0.0.1:{server.port}/metadata")
        assert asks(Client()).startswith(saml.sso_url)
    read_from("http://127.0.0.1:9/metadata")
    assert asks(Client()).startswith(saml.sso_url)
    read_from(saml.metadata_url, issuer="https://ours.example.com")  # Another provider is at the address.
    assert asks(Client()).startswith(saml.sso_url)

    assert (Provider.load().certificates, Provider.load().issuer) == (saml.certificates, "https://ours.example.com")
    with pytest.raises(ProviderError, match="another provider"):
        Provider.load().read_metadata_again(by=None)
