"""SAML sign-in: one response of the provider signs one person in, once."""

import base64
import re
import secrets
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from lxml import etree, html

from tests.cases import first
from tests.contract.running import Workspace
from tests.contract.web import Browser
from tests.contract.world import results, unique

pytestmark = pytest.mark.full

pytest.importorskip("signxml")

METADATA = "/accounts/organisation/saml/metadata/"
ENTITY, SSO = "https://idp.example.com/saml", "https://idp.example.com/sso"
NAMES = {
    "saml": "urn:oasis:names:tc:SAML:2.0:assertion",
    "samlp": "urn:oasis:names:tc:SAML:2.0:protocol",
    "md": "urn:oasis:names:tc:SAML:2.0:metadata",
    "ds": "http://www.w3.org/2000/09/xmldsig#",
}
XMLNS = " ".join(f'xmlns:{name}="{uri}"' for name, uri in NAMES.items())
SAML = "urn:oasis:names:tc:SAML:2.0"


def moment(seconds: int) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Provider:
    """An identity provider: its key, metadata and responses."""

    key: Any = field(default_factory=lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048))

    def __post_init__(self) -> None:
        subject, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "provider")]), datetime.now(UTC)
        number = x509.random_serial_number()
        made = (
            x509.CertificateBuilder(subject, subject, self.key.public_key(), number)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=30))
            .sign(self.key, hashes.SHA256())
        )
        self.certificate = made.public_bytes(Encoding.PEM).decode()

    @property
    def metadata(self) -> str:
        bare = "".join(self.certificate.splitlines()[1:-1])
        return (
            f'<md:EntityDescriptor {XMLNS} entityID="{ENTITY}"><md:IDPSSODescriptor'
            f' protocolSupportEnumeration="{SAML}:protocol"><md:KeyDescriptor use="signing"><ds:KeyInfo><ds:X509Data>'
            f"<ds:X509Certificate>{bare}</ds:X509Certificate></ds:X509Data></ds:KeyInfo></md:KeyDescriptor>"
            f'<md:SingleSignOnService Binding="{SAML}:bindings:HTTP-Redirect" Location="{SSO}"/>'
            "</md:IDPSSODescriptor></md:EntityDescriptor>"
        )

    def answer(self, request: str, email: str, acs: str, audience: str, lasts: int = 300) -> dict[str, str]:
        """Return the form fields of a SAML response for a signed-in person, valid for `lasts` seconds."""
        from signxml.algorithms import SignatureConstructionMethod  # type: ignore[attr-defined,unused-ignore]
        from signxml.signer import XMLSigner

        uid = f"_{secrets.token_hex(8)}"
        plain = etree.fromstring(
            f'<saml:Assertion xmlns:saml="{NAMES["saml"]}" ID="{uid}" Version="2.0" IssueInstant="{moment(0)}">'
            f"<saml:Issuer>{ENTITY}</saml:Issuer><saml:Subject>"
            f'<saml:NameID Format="{SAML}:nameid-format:persistent">{email}</saml:NameID>'
            f'<saml:SubjectConfirmation Method="{SAML}:cm:bearer"><saml:SubjectConfirmationData Recipient="{acs}"'
            f' NotOnOrAfter="{moment(lasts)}" InResponseTo="{request}"/></saml:SubjectConfirmation></saml:Subject>'
            f'<saml:Conditions NotBefore="{moment(-300)}" NotOnOrAfter="{moment(lasts)}"><saml:AudienceRestriction>'
            f"<saml:Audience>{audience}</saml:Audience></saml:AudienceRestriction></saml:Conditions>"
            f'<saml:AuthnStatement AuthnInstant="{moment(0)}" SessionIndex="s1"><saml:AuthnContext>'
            f"<saml:AuthnContextClassRef>{SAML}:ac:classes:Password</saml:AuthnContextClassRef></saml:AuthnContext>"
            f'</saml:AuthnStatement><saml:AttributeStatement><saml:Attribute Name="email"><saml:AttributeValue>{email}'
            '</saml:AttributeValue></saml:Attribute><saml:Attribute Name="email_verified"><saml:AttributeValue>true'
            "</saml:AttributeValue></saml:Attribute></saml:AttributeStatement></saml:Assertion>"
        )
        signer = XMLSigner(
            method=SignatureConstructionMethod.enveloped, c14n_algorithm="http://www.w3.org/2001/10/xml-exc-c14n#"
        )
        pem = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        signed = signer.sign(plain, key=pem, cert=self.certificate, reference_uri=uid)
        signed.insert(1, signed.find("ds:Signature", NAMES))
        response = etree.fromstring(
            f'<samlp:Response xmlns:samlp="{NAMES["samlp"]}" xmlns:saml="{NAMES["saml"]}" ID="_{secrets.token_hex(8)}"'
            f' Version="2.0" IssueInstant="{moment(0)}" Destination="{acs}" InResponseTo="{request}">'
            f'<saml:Issuer>{ENTITY}</saml:Issuer><samlp:Status><samlp:StatusCode Value="{SAML}:status:Success"/>'
            "</samlp:Status></samlp:Response>"
        )
        response.append(signed)
        return {"SAMLResponse": base64.b64encode(etree.tostring(response)).decode(), "RelayState": ""}


@dataclass
class Organisation:
    """The identity provider in the workspace's settings, and the workspace's address for responses (ACS)."""

    workspace: Workspace
    provider: Provider
    name: str
    domain: str
    acs: str
    audience: str

    def answer_for(self, browser: Browser, email: str, **changes: Any) -> dict[str, str]:
        """Press the provider's button on the sign-in page, and return the provider's response as form fields."""
        page = browser.http.get("/accounts/login/")
        (button,) = [one for one in html.fromstring(page.text).xpath("//button") if self.name in one.text_content()]
        asked = browser.submit(page, " ".join(button.text_content().split()))
        (away,) = {link for link in html.fromstring(asked.text).xpath("//a/@href") if link.startswith(SSO)}
        (request,) = parse_qs(urlsplit(away).query)["SAMLRequest"]
        text = zlib.decompress(base64.b64decode(request), -15).decode()
        (uid,) = re.findall(r' ID="([^"]+)"', text)
        return self.provider.answer(uid, email, **{"acs": self.acs, "audience": self.audience, **changes})

    def brought(self, fields: dict[str, str]) -> httpx.Response:
        """Post the response's fields to the workspace as the provider's page does: without the browser's cookies."""
        from_there = Browser.at(self.workspace.url)
        return from_there.http.post(self.acs, data=fields, follow_redirects=False)


@pytest.fixture
def organisation(workspace: Workspace) -> Iterator[Organisation]:
    """A SAML provider for all people of one e-mail domain, who can still sign in with a password instead."""
    owner, name, domain, provider = workspace.owner, unique("Organisation"), f"{unique('d')}.example.com", Provider()
    role = next(one["id"] for one in results(owner, "/roles") if one["name"] == "Member")
    owner.patch("/organisation", protocol="saml", name=name)
    rest = {"domains": [domain], "default_role_id": role, "mode": "offered"}
    owner.patch("/organisation", metadata_xml=provider.metadata, **rest)
    ours = etree.fromstring(owner.http.get(METADATA).content)
    (acs,) = ours.xpath("//md:AssertionConsumerService/@Location", namespaces=NAMES)
    yield Organisation(workspace, provider, name, domain, str(acs), str(ours.get("entityID")))
    owner.patch("/organisation", mode="off")


def leads_in(browser: Browser, brought: httpx.Response) -> bool:
    """Return True if the browser is signed in after it followed the redirect that `brought` returned."""
    assert brought.status_code in {303, 400}, brought.text
    browser.http.get(brought.headers.get("location", "/"))
    return browser.is_signed_in()


def test_answer_signs_in_once(workspace: Workspace, organisation: Organisation) -> None:
    person = Browser.at(workspace.url)
    fields = organisation.answer_for(person, f"mia@{organisation.domain}")

    first, second = organisation.brought(fields), organisation.brought(fields)

    assert not leads_in(person, second)
    assert leads_in(person, first)
    for browser in (Browser.at(workspace.url), person):
        browser.http.cookies.clear()
        assert not leads_in(browser, first)
        assert not leads_in(browser, organisation.brought(fields))


def test_answer_signs_in_only_the_browser_that_asked(workspace: Workspace, organisation: Organisation) -> None:
    person, thief = Browser.at(workspace.url), Browser.at(workspace.url)
    organisation.answer_for(thief, f"thief@{organisation.domain}")
    led = organisation.brought(organisation.answer_for(person, f"ina@{organisation.domain}"))

    assert not leads_in(thief, led)


@pytest.mark.parametrize(
    "changes",
    first(1, [{"audience": "https://other.example.com"}, {"acs": "https://other.example.com/acs"}, {"lasts": -120}]),
)
def test_answer_for_another_or_of_earlier_is_refused(
    workspace: Workspace, organisation: Organisation, changes: dict[str, Any]
) -> None:
    person, email = Browser.at(workspace.url), f"{unique('zoe')}@{organisation.domain}"

    assert not leads_in(person, organisation.brought(organisation.answer_for(person, email, **changes)))
    assert leads_in(person, organisation.brought(organisation.answer_for(person, email)))


def test_answer_that_another_key_signed_is_refused(workspace: Workspace, organisation: Organisation) -> None:
    person = Browser.at(workspace.url)
    organisation.provider = Provider()

    assert not leads_in(person, organisation.brought(organisation.answer_for(person, f"eve@{organisation.domain}")))
