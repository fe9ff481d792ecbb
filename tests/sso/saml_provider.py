"""An organisation's third-party SAML identity provider, and responses that must be refused."""

import base64
import json
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from django.http import HttpResponse
from django.test import Client
from lxml import etree
from signxml.algorithms import DigestAlgorithm, SignatureConstructionMethod, SignatureMethod
from signxml.signer import XMLSigner

from accounts.models import User
from sso.saml.responses import BEARER
from sso.saml.settings import consumer_url, entity_id
from tests.clients.apps import node
from tests.clients.fixtures import Npm, listening
from tests.clients.issuers import Page
from tests.issuers import destination
from tests.workspace import free_port

ACS = "/accounts/organisation/saml/acs/"
ANSWERED = "/accounts/organisation/saml/"
PERSISTENT = "urn:oasis:names:tc:SAML:2.0:nameid-format:persistent"


@dataclass(frozen=True)
class Pair:
    """A signing key and its certificate (PEM)."""

    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey  # As text, each signature would read and validate it again.
    certificate: str

    @classmethod
    def make(cls, name: str = "provider", bits: int = 2048, until: timedelta = timedelta(days=30)) -> "Pair":
        return cls.of(rsa.generate_private_key(public_exponent=65537, key_size=bits), name, until)

    @classmethod
    def on(cls, curve: ec.EllipticCurve) -> "Pair":
        return cls.of(ec.generate_private_key(curve))

    @classmethod
    def of(
        cls,
        key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
        name: str = "provider",
        until: timedelta = timedelta(days=30),
    ) -> "Pair":
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        begins = datetime.now(UTC) - timedelta(days=60)
        certificate = (
            x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(datetime.now(UTC) + until)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate.public_bytes(Encoding.PEM).decode())

    @property
    def bare(self) -> str:
        """Return the certificate in base64 without header lines, as in metadata."""
        return "".join(self.certificate.splitlines()[1:-1])


@dataclass
class SamlOrganisation:
    """A running SAML identity provider of an organisation, and its people."""

    origin: str
    folder: Path
    pair: Pair = field(default_factory=Pair.make)

    @property
    def entity_id(self) -> str:
        return f"{self.origin}/metadata"

    def knows(self, name: str, **attributes: Any) -> None:
        """Set the attributes that the provider sends for a person."""
        path = self.folder / "people.json"
        known = json.loads(path.read_text())
        known[name] = {
            "email": f"{name}@example.com",
            "email_verified": "true",
            "displayName": name.title(),
        } | attributes
        path.write_text(json.dumps(known))

    def signs_with(self, pair: Pair) -> None:
        self.pair = pair
        pem = pair.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self.folder / "key.pem").write_bytes(pem)
        (self.folder / "cert.pem").write_text(pair.certificate)

    def encrypts_for(self, certificate: str) -> None:
        """Make the provider encrypt assertions for this certificate (base64, as in metadata)."""
        lines = "\n".join(certificate[at : at + 64] for at in range(0, len(certificate), 64))
        pem = f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"
        (self.folder / "encrypt.pem").write_text(pem)

    def forget(self) -> None:
        """Reset the provider to its initial state."""
        (self.folder / "people.json").write_text("{}")
        for name in ("client.pem", "signs-responses", "encrypt.pem"):
            (self.folder / name).unlink(missing_ok=True)


@contextmanager
def saml_provider_of(npm: Npm, acs_url: str, audience: str) -> Iterator[SamlOrganisation]:
    """Run an organisation's provider, which sends its responses to `acs_url`, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        organisation = SamlOrganisation(f"http://127.0.0.1:{port}", Path(folder))
        organisation.forget()
        organisation.signs_with(organisation.pair)
        settings = {"FOLDER": folder, "ACS_URL": acs_url, "AUDIENCE": audience, "NODE_NO_WARNINGS": "1"}
        with listening(npm, [*node("saml_provider.mjs"), str(port)], port, **settings):
            yield organisation


@dataclass
class SamlVisit:
    """A browser at the gateway after a visit to the provider, and the form posted by the provider."""

    client: Client
    fields: dict[str, str]
    response: HttpResponse

    @property
    def person(self) -> User | None:
        """Return the person signed in at the gateway; None if nobody is."""
        request: Any = self.client.get("/settings/profile")
        return request.wsgi_request.user if request.status_code == 200 else None

    @property
    def words(self) -> str:
        return self.response.content.decode()


def asks(client: Client, path: str = "/accounts/organisation/", **fields: Any) -> str:
    """Press the sign-in button, and return the URL of the provider to which it leads."""
    return destination(client.post(path, fields))


def signs_in_at(away: str, name: str) -> dict[str, str]:
    """Sign in at the provider under this name, and return the form that the provider posts to the gateway."""
    with httpx.Client(trust_env=False) as http:
        asked = Page(http.get(away).text)
        answered = http.get(away.partition("?")[0], params=asked.fields | {"login": name})
    return form_of(answered.text)


def begins_at(organisation: SamlOrganisation, name: str, to: str = "") -> dict[str, str]:
    """Return the form that the provider posts for a person who started at the provider."""
    answered = httpx.get(f"{organisation.origin}/begin", params={"name": name, "to": to}, trust_env=False)
    return form_of(answered.text)


def form_of(page: str) -> dict[str, str]:
    found = Page(page)
    assert found.form is not None, page
    return found.fields


def brings(client: Client, fields: dict[str, str]) -> SamlVisit:
    """Post the provider's form cross-site, without the gateway's cookies, then follow the redirect with the cookies."""
    answer: Any = Client().post(ACS, fields)
    assert answer.status_code == 303, answer.content
    assert not answer.cookies, "a cookie from there would take the place of the session's"
    assert urlsplit(answer["Location"]).path == ANSWERED
    response: Any = client.get(answer["Location"])
    return SamlVisit(client, fields, response)


def agrees(visit: SamlVisit) -> SamlVisit:
    """Press the button on the page for people who started at the provider."""
    fields = form_of(visit.words)
    response: Any = visit.client.post(ANSWERED, fields)
    return SamlVisit(visit.client, fields, response)


# --- Responses made by the tests --------------------------------------------------------------------------------------

SIGNER = XMLSigner(
    method=SignatureConstructionMethod.enveloped, c14n_algorithm="http://www.w3.org/2001/10/xml-exc-c14n#"
)
NS = {
    "samlp": "urn:oasis:names:tc:SAML:2.0:protocol",
    "saml": "urn:oasis:names:tc:SAML:2.0:assertion",
    "ds": "http://www.w3.org/2000/09/xmldsig#",
}


def moment(minutes: float = 0) -> str:
    return (datetime.now(UTC) + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Answer:
    """A provider's SAML response, in which every part can be made wrong."""

    issuer: str
    pair: Pair
    answers: str = ""
    name: str = "mia"
    format: str = PERSISTENT
    email: str = "mia@example.com"
    audience: str = field(default_factory=entity_id)
    recipient: str = field(default_factory=consumer_url)
    destination: str = field(default_factory=consumer_url)
    made: float = 0
    begins: float = -1
    ends: float = 5
    confirmed_until: float = 5
    signed_in: float = 0
    assertion_id: str = field(default_factory=lambda: f"_{secrets.token_hex(8)}")
    more: str = ""  # More attributes, as XML.
    qualifiers: str = ""  # XML attributes of the NameID.
    expired_first: bool = False  # Add an expired SubjectConfirmation for us, of another request, before the other one.

    def confirmation(self, until: float, answered: str, recipient: str) -> str:
        answers = f' InResponseTo="{answered}"' if answered else ""
        return (
            f'<saml:SubjectConfirmation Method="{BEARER}"><saml:SubjectConfirmationData'
            f' Recipient="{recipient}" NotOnOrAfter="{moment(until)}"{answers}/></saml:SubjectConfirmation>'
        )

    def assertion(self) -> Any:
        confirmed = self.confirmation(self.confirmed_until, self.answers, self.recipient)
        expired = self.confirmation(-2, "_another", consumer_url()) if self.expired_first else ""
        return etree.fromstring(
            f'<saml:Assertion xmlns:saml="{NS["saml"]}" ID="{self.assertion_id}" Version="2.0"'
            f' IssueInstant="{moment(self.made)}"><saml:Issuer>{self.issuer}</saml:Issuer>'
            f'<saml:Subject><saml:NameID Format="{self.format}"{self.qualifiers}>{self.name}</saml:NameID>'
            f"{expired}{confirmed}</saml:Subject>"
            f'<saml:Conditions NotBefore="{moment(self.begins)}" NotOnOrAfter="{moment(self.ends)}">'
            f"<saml:AudienceRestriction><saml:Audience>{self.audience}</saml:Audience></saml:AudienceRestriction>"
            f'</saml:Conditions><saml:AuthnStatement AuthnInstant="{moment(self.signed_in)}" SessionIndex="s1">'
            "<saml:AuthnContext><saml:AuthnContextClassRef>urn:oasis:names:tc:SAML:2.0:ac:classes:Password"
            "</saml:AuthnContextClassRef></saml:AuthnContext></saml:AuthnStatement><saml:AttributeStatement>"
            f'<saml:Attribute Name="email"><saml:AttributeValue>{self.email}</saml:AttributeValue></saml:Attribute>'
            '<saml:Attribute Name="email_verified"><saml:AttributeValue>true</saml:AttributeValue></saml:Attribute>'
            f"{self.more}</saml:AttributeStatement></saml:Assertion>"
        )

    def signed(self, signer: XMLSigner = SIGNER) -> Any:
        """Return the assertion, with the signature where the SAML schema requires it."""
        signed = signer.sign(
            self.assertion(), key=self.pair.key, cert=self.pair.certificate, reference_uri=self.assertion_id
        )
        signature = signed.find("ds:Signature", NS)
        signed.insert(1, signature)
        return signed

    def around(self, *assertions: Any) -> Any:
        """Return a response that contains these assertions."""
        answers = f' InResponseTo="{self.answers}"' if self.answers else ""
        root = etree.fromstring(
            f'<samlp:Response xmlns:samlp="{NS["samlp"]}" xmlns:saml="{NS["saml"]}" ID="_{secrets.token_hex(8)}"'
            f' Version="2.0" IssueInstant="{moment()}" Destination="{self.destination}"{answers}>'
            f"<saml:Issuer>{self.issuer}</saml:Issuer><samlp:Status>"
            '<samlp:StatusCode Value="urn:oasis:names:tc:SAML:2.0:status:Success"/></samlp:Status></samlp:Response>'
        )
        root.extend(assertions)
        return root

    def fields(self) -> dict[str, str]:
        """Return the form that a provider posts with a valid response."""
        return sent(self.around(self.signed()))


def sent(root: Any) -> dict[str, str]:
    text = root if isinstance(root, bytes) else etree.tostring(root)
    return {"SAMLResponse": base64.b64encode(text).decode(), "RelayState": ""}


def weak_signer() -> XMLSigner:
    """Return a signer that uses SHA-1, like old providers."""

    class Weak(XMLSigner):
        def check_deprecated_methods(self) -> None:
            pass

    return Weak(
        method=SignatureConstructionMethod.enveloped,
        signature_algorithm=SignatureMethod.RSA_SHA1,
        digest_algorithm=DigestAlgorithm.SHA1,
        c14n_algorithm="http://www.w3.org/2001/10/xml-exc-c14n#",
    )


def metadata_of(entity: str, sso_url: str, *pairs: Pair, until: str = "") -> str:
    """Return the metadata of a provider, as pasted by a person."""
    keys = "".join(
        '<md:KeyDescriptor use="signing"><ds:KeyInfo><ds:X509Data>'
        f"<ds:X509Certificate>{pair.bare}</ds:X509Certificate></ds:X509Data></ds:KeyInfo></md:KeyDescriptor>"
        for pair in pairs
    )
    return (
        '<?xml version="1.0"?><!-- ours -->'
        f'<md:EntityDescriptor xmlns:md="urn:oasis:names:tc:SAML:2.0:metadata" xmlns:ds="{NS["ds"]}"'
        f' entityID="{entity}"{f" validUntil='{until}'" if until else ""}>'
        '<md:IDPSSODescriptor protocolSupportEnumeration="urn:oasis:names:tc:SAML:2.0:protocol">'
        f'{keys}<md:SingleSignOnService Binding="urn:oasis:names:tc:SAML:2.0:bindings:HTTP-Redirect"'
        f' Location="{sso_url}"/></md:IDPSSODescriptor></md:EntityDescriptor>'
    )
