"""Responses without proof are refused with a specific reason, because anybody can make a browser post a form here."""

import base64
import copy
import re
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from django.test import Client
from django.utils.html import escape
from lxml import etree

from accounts.models import User
from auditlog.models import Event
from sso.errors import RESPONSE_ADVICE
from sso.models import Account, Provider
from sso.saml.responses import LONGEST
from tests.sso.saml_provider import (
    ACS,
    NS,
    PERSISTENT,
    SIGNER,
    Answer,
    Pair,
    SamlOrganisation,
    SamlVisit,
    asks,
    brings,
    metadata_of,
    sent,
    weak_signer,
)
from tests.sso.test_saml_signing_in import query_id
from tests.undone import undone

pytestmark = pytest.mark.django_db

type Build = Callable[[Answer], dict[str, str]]


@pytest.fixture
def answer(saml: Provider, saml_organisation: SamlOrganisation) -> Answer:
    """Return a provider's response to a request started in the browser of this test."""
    return Answer(saml.issuer, saml_organisation.pair)


def tried(answer: Answer, build: Build) -> SamlVisit:
    """Start a request, call `build(answer)`, send the response that it returns, and return the outcome."""
    client = Client()
    answer.answers = query_id(asks(client))
    return brings(client, build(answer))


def reason() -> str:
    event = Event.objects.filter(action="user.sign_in_refused").latest("pk")
    return str(event.changes["reason"])


def signed_by(pair: Pair, element: Any) -> Any:
    return SIGNER.sign(element, key=pair.key, cert=pair.certificate, reference_uri=element.get("ID"))


def as_it_should_be(answer: Answer) -> dict[str, str]:
    return answer.fields()


ACCEPTED: list[dict[str, Any]] = [
    {},
    {"qualifiers": ' NameQualifier="{issuer}" SPNameQualifier="{audience}"'},
    {"ends": -0.7, "confirmed_until": -0.7},  # Clocks may differ by less than a minute.
    {"made": 0.7, "begins": 0.7},
    {"expired_first": True},
]

# Each case is a separate rule.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"audience": "https://other.example.com"}, "other_audience"),
    ({"recipient": "https://other.example.com/acs"}, "other_recipient"),
    ({"destination": "https://other.example.com/acs"}, "other_recipient"),
    ({"issuer": "https://other.example.com"}, "other_issuer"),
    ({"ends": -2}, "expired"),
    ({"confirmed_until": -2}, "expired"),
    ({"confirmed_until": -2, "expired_first": True}, "expired"),
    ({"recipient": "https://other.example.com/acs", "expired_first": True}, "expired"),
    ({"made": -15, "begins": -15}, "expired"),
    ({"begins": 3}, "not_yet_valid"),
    ({"made": 3}, "not_yet_valid"),
    ({"format": "urn:oasis:names:tc:SAML:2.0:nameid-format:transient"}, "no_name"),
    ({"format": "urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress"}, "no_name"),
    ({"name": ""}, "no_name"),
    ({"name": "x" * 256}, "no_name"),
    ({"name": "mia\u202eadmin"}, "no_name"),
    ({"qualifiers": ' NameQualifier="https://other.example.com"'}, "no_name"),
    ({"qualifiers": ' SPNameQualifier="https://other.example.com"'}, "no_name"),
]


def test_only_a_signed_answer_for_us_and_for_now_is_accepted(answer: Answer, subtests: pytest.Subtests) -> None:
    for changes in ACCEPTED:
        with subtests.test(str(changes)), undone():
            given = replace(answer, **changes)
            given.qualifiers = given.qualifiers.format(issuer=answer.issuer, audience=answer.audience)
            assert tried(given, as_it_should_be).person == User.objects.get(email="mia@example.com")

    for changes, named in REFUSED:
        with subtests.test(str(changes)), undone():
            visit = tried(replace(answer, **changes), as_it_should_be)

            assert (visit.response.status_code, visit.person) == (400, None)
            refused = Event.objects.get(action="user.sign_in_refused")
            assert (refused.changes["reason"], set(refused.changes)) == (named, {"reason", "detail"})
            assert not re.search(r"\d{4}-\d\d-\d\dT", str(refused.changes))
            assert escape(RESPONSE_ADVICE[named].text) in visit.words
            assert not Account.objects.exists()


# --- Signatures -------------------------------------------------------------------------------------------------------


def unsigned(answer: Answer) -> dict[str, str]:
    return sent(answer.around(answer.assertion()))


def signed_by_somebody(answer: Answer) -> dict[str, str]:
    answer.pair = Pair.make("somebody")
    return answer.fields()


def changed(answer: Answer) -> dict[str, str]:
    return sent(etree.tostring(answer.around(answer.signed())).replace(b">mia<", b">ana<"))


def old_signature(answer: Answer) -> dict[str, str]:
    return sent(answer.around(answer.signed(weak_signer())))


def signed_around_only(answer: Answer) -> dict[str, str]:
    """Sign the response, but not the assertion inside."""
    root = answer.around(answer.assertion())
    return sent(signed_by(answer.pair, root))


def signed_with_a_secret(answer: Answer) -> dict[str, str]:
    """Sign with the provider's public certificate as a shared secret."""
    root = answer.around(answer.signed())
    method = root.find(".//ds:SignatureMethod", NS)
    method.set("Algorithm", "http://www.w3.org/2001/04/xmldsig-more#hmac-sha256")
    return sent(root)


def spoiled_response_signature(answer: Answer) -> dict[str, str]:
    root = answer.around(answer.signed())
    return sent(signed_by(Pair.make("somebody"), root))


# --- Wrapping: an unsigned assertion where the signed one is expected -------------------------------------------------


def forged_of(answer: Answer) -> Any:
    forged = copy.copy(answer)
    forged.assertion_id, forged.name, forged.email = f"_{secrets.token_hex(8)}", "owner", "owner@example.com"
    return forged.assertion()


def forged_before(answer: Answer) -> dict[str, str]:
    return sent(answer.around(forged_of(answer), answer.signed()))


def forged_after(answer: Answer) -> dict[str, str]:
    return sent(answer.around(answer.signed(), forged_of(answer)))


def original_within_forged(answer: Answer) -> dict[str, str]:
    forged = forged_of(answer)
    forged.append(answer.signed())
    return sent(answer.around(forged))


def original_within_the_signature(answer: Answer) -> dict[str, str]:
    """Put the signature into a forged assertion, and the signed assertion into an Object of the signature."""
    original, forged = answer.signed(), forged_of(answer)
    signature = original.find("ds:Signature", NS)
    original.remove(signature)
    etree.SubElement(signature, f"{{{NS['ds']}}}Object").append(original)
    forged.insert(1, signature)
    return sent(answer.around(forged))


def original_in_extensions(answer: Answer) -> dict[str, str]:
    root = answer.around(forged_of(answer))
    extensions = etree.SubElement(root, f"{{{NS['samlp']}}}Extensions")
    extensions.append(answer.signed())
    return sent(root)


def same_name_twice(answer: Answer) -> dict[str, str]:
    """Give another element the ID that the signature refers to."""
    root = answer.around(answer.signed())
    decoy = etree.SubElement(root, f"{{{NS['samlp']}}}Extensions")
    decoy.set("ID", answer.assertion_id)
    return sent(root)


def signature_of_something_else(answer: Answer) -> dict[str, str]:
    """Sign the status instead of an assertion."""
    root = answer.around(answer.assertion())
    status = root.find("samlp:Status", NS)
    status.set("ID", "_status")
    signed = signed_by(answer.pair, copy.deepcopy(status))
    root.find("saml:Assertion", NS).insert(1, signed.find("ds:Signature", NS))
    return sent(root)


def encrypted(answer: Answer) -> dict[str, str]:
    root = answer.around()
    etree.SubElement(root, f"{{{NS['saml']}}}EncryptedAssertion")
    return sent(root)


# --- Documents that are dangerous to parse ----------------------------------------------------------------------------


def around_declared(answer: Answer, declared: str, used: str = "") -> dict[str, str]:
    text = etree.tostring(answer.around(answer.signed())).decode().replace("mia@example.com", used or "mia@example.com")
    return sent(f"{declared}{text}".encode())


def bomb(answer: Answer) -> dict[str, str]:
    laughs = "".join(f'<!ENTITY l{level} "{f"&l{level - 1};" * 10}">' for level in range(1, 12))
    return around_declared(answer, f'<!DOCTYPE r [<!ENTITY l0 "ha">{laughs}]>', "&l11;")


def reads_a_file(answer: Answer) -> dict[str, str]:
    return around_declared(answer, '<!DOCTYPE r [<!ENTITY file SYSTEM "file:///etc/passwd">]>', "&file;")


def bomb_in_another_alphabet(answer: Answer) -> dict[str, str]:
    text = '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE r [<!ENTITY a "b">]><r>&a;</r>'
    return sent(text.encode("utf-16"))


def commented_name(answer: Answer) -> dict[str, str]:
    """Put a comment into the name, because comments are not signed, and some parsers end the name at the comment."""
    text = etree.tostring(answer.around(answer.signed()))
    return sent(text.replace(b">mia@example.com<", b">owner@example.com<!-- -->.evil.example<"))


def commented_in(encoding: str) -> Build:
    """Put a comment into the name; encode the response without a byte order mark or a declared encoding."""

    def build(answer: Answer) -> dict[str, str]:
        text = etree.tostring(answer.around(answer.signed())).decode().replace(">mia<", ">mi<!-- -->a<")
        return sent(f'<?xml version="1.0"?>{text}'.encode(encoding))

    build.__name__ = f"commented_in_{encoding}"
    return build


def declared_in(encoding: str) -> Build:
    """Declare a document type; encode the response without a byte order mark or a declared encoding."""

    def build(answer: Answer) -> dict[str, str]:
        text = etree.tostring(answer.around(answer.signed())).decode()
        return sent(f'<?xml version="1.0"?><!DOCTYPE r [<!ENTITY a "b">]>{text}'.encode(encoding))

    build.__name__ = f"declared_in_{encoding}"
    return build


# A verifier canonicalises SignedInfo before it knows the signer, so a huge SignedInfo could exhaust the verifier.


def with_in_signed_info(answer: Answer, where: str, more: str) -> dict[str, str]:
    root = answer.around(answer.signed())
    root.find(f".//ds:{where}", NS).append(etree.fromstring(more))
    return sent(root)


def object_in_the_signature(answer: Answer) -> dict[str, str]:
    return with_in_signed_info(answer, "Signature", f'<ds:Object xmlns:ds="{NS["ds"]}"/>')


def object_in_its_canonicalization(answer: Answer) -> dict[str, str]:
    return with_in_signed_info(answer, "CanonicalizationMethod", f'<ds:Object xmlns:ds="{NS["ds"]}"><x/></ds:Object>')


def child_of_a_transform(answer: Answer) -> dict[str, str]:
    return with_in_signed_info(answer, "Transform", f'<ds:XPath xmlns:ds="{NS["ds"]}">1</ds:XPath>')


def two_references(answer: Answer) -> dict[str, str]:
    root = answer.around(answer.signed())
    reference = root.find(".//ds:Reference", NS)
    reference.addnext(copy.deepcopy(reference))
    return sent(root)


def three_transforms(answer: Answer) -> dict[str, str]:
    root = answer.around(answer.signed())
    transform = root.find(".//ds:Transform", NS)
    transform.addnext(copy.deepcopy(transform))
    return sent(root)


def long_list_of_prefixes(answer: Answer) -> dict[str, str]:
    namespace = "http://www.w3.org/2001/10/xml-exc-c14n#"
    more = f'<ec:InclusiveNamespaces xmlns:ec="{namespace}" PrefixList="{"a " * 300}"/>'
    return with_in_signed_info(answer, "CanonicalizationMethod", more)


def beside(answer: Answer, more: str) -> dict[str, str]:
    root = answer.around(answer.signed())
    etree.SubElement(root, f"{{{NS['samlp']}}}Extensions").append(etree.fromstring(more))
    return sent(root)


def many_attributes(answer: Answer) -> dict[str, str]:
    return beside(answer, f"<x {' '.join(f'a{number}=""' for number in range(21))}/>")


def many_elements(answer: Answer) -> dict[str, str]:
    return beside(answer, f"<x>{'<x/>' * 5000}</x>")


def namespaces_declared_again_at_each_level(answer: Answer) -> dict[str, str]:
    opened = "".join(f"<x {' '.join(f'''xmlns:p{each}="u:{level}" ''' for each in range(10))}>" for level in range(10))
    return beside(answer, f"{opened}{'</x>' * 10}")


def too_large(answer: Answer) -> dict[str, str]:
    answer.more = (
        f'<saml:Attribute Name="x"><saml:AttributeValue>{"x" * LONGEST}</saml:AttributeValue></saml:Attribute>'
    )
    return answer.fields()


def nested(answer: Answer) -> dict[str, str]:
    root = answer.around(answer.signed())
    etree.SubElement(root, f"{{{NS['samlp']}}}Extensions").append(etree.fromstring(b"<a>" * 100 + b"</a>" * 100))
    return sent(root)


def many_namespaces(answer: Answer) -> dict[str, str]:
    """Declare so many namespaces that verifying a response takes half a second."""
    declared = " ".join(f'xmlns:p{number}="urn:u{number}"' for number in range(3000))
    text = etree.tostring(answer.around(answer.signed()))
    return sent(text.replace(b"<samlp:Response ", f"<samlp:Response {declared} ".encode(), 1))


def no_xml(answer: Answer) -> dict[str, str]:
    return {"SAMLResponse": base64.b64encode(b"hello").decode()}


def no_base64(answer: Answer) -> dict[str, str]:
    return {"SAMLResponse": "<Response>"}


# Each case is a separate rule.
DANGEROUS: list[tuple[Build, str]] = [
    (unsigned, "not_signed"),
    (signed_around_only, "not_signed"),
    (signed_by_somebody, "wrong_signature"),
    (changed, "wrong_signature"),
    (old_signature, "weak_signature"),
    (signed_with_a_secret, "weak_signature"),
    (spoiled_response_signature, "wrong_signature"),
    (signature_of_something_else, "wrapped"),
    (forged_before, "wrapped"),
    (forged_after, "wrapped"),
    (original_within_forged, "wrapped"),
    (original_within_the_signature, "wrapped"),
    (original_in_extensions, "wrapped"),
    (same_name_twice, "wrapped"),
    (encrypted, "encrypted"),
    (bomb, "malformed"),
    (reads_a_file, "malformed"),
    (bomb_in_another_alphabet, "malformed"),
    (commented_name, "malformed"),
    *[(commented_in(each), "malformed") for each in ("utf-16-le", "utf-32-be")],
    *[(declared_in(each), "malformed") for each in ("utf-16-be", "utf-32-le")],
    (object_in_the_signature, "malformed"),
    (object_in_its_canonicalization, "malformed"),
    (child_of_a_transform, "malformed"),
    (two_references, "malformed"),
    (three_transforms, "malformed"),
    (long_list_of_prefixes, "malformed"),
    (many_attributes, "malformed"),
    (many_elements, "malformed"),
    (namespaces_declared_again_at_each_level, "malformed"),
    (nested, "malformed"),
    (many_namespaces, "malformed"),
    (no_xml, "malformed"),
    (no_base64, "malformed"),
    (lambda _: {}, "malformed"),
    (too_large, "too_large"),
]


def test_wrongly_signed_or_dangerous_documents_are_refused(answer: Answer, subtests: pytest.Subtests) -> None:
    for build, named in DANGEROUS:
        with subtests.test(build.__name__), undone():
            visit = tried(replace(answer), build)

            assert (visit.response.status_code, visit.person) == (400, None)
            assert reason() == named
            assert f"<code>{named}</code>" in visit.words
            assert not User.objects.filter(email__in=["mia@example.com", "owner@example.com"]).exists()


@pytest.mark.full
def test_an_answer_to_another_request_than_this_browsers_or_to_one_answered_before_is_refused(answer: Answer) -> None:
    client = Client()
    request = query_id(asks(client))

    for answers, status in (("_0123456789", 400), (request, 302), (request, 400)):
        given = replace(answer, answers=answers, assertion_id=f"_{secrets.token_hex(8)}")
        assert brings(client, given.fields()).response.status_code == status
    assert reason() == "not_begun_here"


@pytest.mark.full
def test_response_and_assertion_have_to_answer_the_same_request(answer: Answer) -> None:
    """The response around the assertion is unsigned, so an attacker can write this browser's request id into it.

    The signed assertion inside answers another request, and must be refused.
    """
    client = Client()
    answer.answers = "_somebody-elses"
    assertion = answer.signed()
    answer.answers = query_id(asks(client))

    visit = brings(client, sent(answer.around(assertion)))

    assert (visit.response.status_code, visit.person) == (400, None)
    assert reason() == "not_confirmed"


@pytest.mark.full
def test_either_of_two_certificates_in_the_metadata_may_sign(
    answer: Answer, saml_organisation: SamlOrganisation
) -> None:
    old, new = Pair.make("old"), Pair.make("new")
    pasted = metadata_of(answer.issuer, f"{saml_organisation.origin}/sso", old, new)
    Provider.edit(by=None, metadata_url="", metadata_xml=pasted)

    for pair in (old, new):
        answer.pair = pair
        answer.assertion_id = f"_{secrets.token_hex(8)}"
        assert tried(answer, as_it_should_be).person is not None
    answer.pair, answer.assertion_id = saml_organisation.pair, f"_{secrets.token_hex(8)}"
    assert tried(answer, as_it_should_be).person is None


@pytest.mark.full
def test_allowed_name_formats_are_listed_in_the_settings(answer: Answer) -> None:
    """The emailAddress format is allowed only by the settings, because an address can pass to another person."""
    Provider.edit(by=None, name_id_format="emailAddress", email_attribute="mail", domains=["example.com"])
    answer.format, answer.name = "urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress", "mia@example.com"

    assert tried(answer, as_it_should_be).person == User.objects.get(email="mia@example.com")

    Provider.edit(by=None, name_id_format="unspecified")
    answer.format, answer.assertion_id = PERSISTENT, f"_{secrets.token_hex(8)}"
    assert tried(answer, as_it_should_be).person is not None


@pytest.mark.full
def test_attributes_are_found_by_either_of_their_names(answer: Answer) -> None:
    Provider.edit(by=None, email_attribute="urn:oid:0.9.2342.19200300.100.1.3", name_attribute="displayName")
    answer.email = "wrong@example.com"
    answer.more = (
        '<saml:Attribute Name="urn:oid:0.9.2342.19200300.100.1.3" FriendlyName="mail"><saml:AttributeValue>'
        "mia@example.com</saml:AttributeValue></saml:Attribute>"
        '<saml:Attribute Name="urn:oid:2.16.840.1.113730.3.1.241" FriendlyName="displayName"><saml:AttributeValue>'
        "Mia Muster</saml:AttributeValue></saml:Attribute>"
    )

    person = tried(answer, as_it_should_be).person

    assert person == User.objects.get(email="mia@example.com")
    assert person is not None
    assert person.display_name == "Mia Muster"


@pytest.mark.full
def test_a_thousand_groups_are_read_and_too_many_to_be_said_are_not_taken_as_none(answer: Answer) -> None:
    """Some providers declare the same namespaces on each of a thousand values."""
    value = (
        '<saml:AttributeValue xmlns:xs="http://www.w3.org/2001/XMLSchema"'
        ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="xs:string">a</saml:AttributeValue>'
    )
    many = replace(answer, more=f'<saml:Attribute Name="groups">{value * 1000}</saml:Attribute>')
    with undone():
        assert tried(many, as_it_should_be).person is not None

    answer.more = (
        '<saml:Attribute Name="http://schemas.microsoft.com/claims/groups.link"><saml:AttributeValue>'
        "https://graph.example.com</saml:AttributeValue></saml:Attribute>"
    )
    assert tried(answer, as_it_should_be).response.status_code == 403
    assert reason() == "too_many_groups"


@pytest.mark.full
def test_a_flood_of_bad_answers_makes_one_event_and_one_line_a_minute_for_each_sender(
    answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    """One sender's flood of bad responses does not hide the errors of other senders."""
    for sender in ["192.0.2.1"] * 5 + ["192.0.2.2"]:
        Client(REMOTE_ADDR=sender).post(ACS, {"SAMLResponse": "x"})

    assert Event.objects.filter(action="user.sign_in_refused").count() == 2
    assert [line.message for line in caplog.records].count("an answer of the identity provider was refused") == 2


def test_untrusted_status_text_is_recorded_nowhere(answer: Answer) -> None:
    root = answer.around()
    status = root.find("samlp:Status", NS)
    code = status.find("samlp:StatusCode", NS)
    code.set("Value", "urn:oasis:names:tc:SAML:2.0:status:Responder")
    etree.SubElement(code, code.tag, Value="urn:x:CallThisNumber")
    tried(answer, lambda _: sent(root))

    event = Event.objects.get(action="user.sign_in_refused")
    assert event.changes["detail"] == "The provider refused the sign-in: Responder, another code."
