"""Parse untrusted XML safely, and read the metadata of an identity provider. Needs the extra `saml`."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from lxml import etree

from sso.errors import BadSamlMetadata
from sso.saml.keys import certificate_properties

type Element = Any  # lxml publishes no types.

ASSERTION = "urn:oasis:names:tc:SAML:2.0:assertion"
PROTOCOL = "urn:oasis:names:tc:SAML:2.0:protocol"
METADATA = "urn:oasis:names:tc:SAML:2.0:metadata"
SIGNATURE = "http://www.w3.org/2000/09/xmldsig#"
# Limits of a document; documents of real providers are much smaller. The time to verify a signature grows with the
# number of elements times the namespaces in scope, and with the square of the number of attributes of an element.
DEEPEST = 60
MOST_ELEMENTS = 5000
MOST_ATTRIBUTES = 20  # Attributes of one element, not counting namespace declarations.
MOST_NAMESPACES = 60  # Namespaces in scope of one element; each redeclaration counts.

_declaration = re.compile(r"\s*<\?xml\s[^<>]*\?>")


class MalformedXml(Exception):
    """The document cannot be parsed safely; the message says why."""


def parse_xml(document: bytes, *, comments: bool = False) -> Element:
    """Return the root element of `document`. Raises MalformedXml.

    A DOCTYPE is always refused. Comments are removed if `comments` is True, and refused if `comments` is False.
    """
    try:
        text = document.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise MalformedXml("The document is not encoded in UTF-8.") from None
    if "\0" in text:  # Probably UTF-16 or UTF-32, whose bytes may also be valid UTF-8.
        raise MalformedXml("The document is not encoded in UTF-8.")
    text = _declaration.sub("", text, count=1) if _declaration.match(text) else text
    # Document types can define entities and read files. Some parsers cut a name off at a comment inside it. But
    # metadata that people edited may contain comments.
    forbidden = ("<!DOCTYPE", "<![", "<?") if comments else ("<!", "<?")
    if any(each in text for each in forbidden):
        comment = "" if comments else "a comment, "
        found = f"a document type declaration, {comment}a CDATA section or a processing instruction"
        raise MalformedXml(f"The document contains {found}.")
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=comments,
        encoding="utf-8",  # So that lxml does not guess the encoding.
    )
    try:
        root = etree.fromstring(text.encode(), parser)
    except (etree.LxmlError, ValueError):
        raise MalformedXml("The document is not XML.") from None
    _must_be_small(root)
    return root


def _must_be_small(root: Element) -> None:
    """Raise MalformedXml if the tree has nodes other than elements and text, or exceeds a limit of this module."""
    if root.getroottree().docinfo.doctype:
        raise MalformedXml("The document contains a document type declaration.")
    for count, node in enumerate(root.iter(), 1):
        if not isinstance(node.tag, str):
            raise MalformedXml("The document contains something other than elements and text.")
        if count > MOST_ELEMENTS or len(node.attrib) > MOST_ATTRIBUTES:
            raise MalformedXml(
                f"The document has over {MOST_ELEMENTS} elements, or an element with over {MOST_ATTRIBUTES} attributes."
            )
    _must_be_shallow(root)


def _must_be_shallow(root: Element) -> None:
    depth = declared = 0
    for event, _ in etree.iterwalk(root, events=("start", "end", "start-ns", "end-ns")):
        depth += {"start": 1, "end": -1}.get(event, 0)
        declared += {"start-ns": 1, "end-ns": -1}.get(event, 0)
        if depth > DEEPEST or declared > MOST_NAMESPACES:
            raise MalformedXml(
                f"The document is nested too deeply, or over {MOST_NAMESPACES} namespaces are in scope of one element."
            )


def tag(namespace: str, name: str) -> str:
    """Return a qualified name in the notation of lxml: `{namespace}name`."""
    return f"{{{namespace}}}{name}"


def element_text(element: Element | None) -> str:
    """Return the stripped text of `element` and its descendants; empty for None."""
    return "".join(element.itertext()).strip() if element is not None else ""


# --- Metadata ---------------------------------------------------------------------------------------------------------

REDIRECT = "urn:oasis:names:tc:SAML:2.0:bindings:HTTP-Redirect"
LONGEST_ENTITY_ID = 450
MOST_CERTIFICATES = 10
LEAST_RSA_BITS = 2048
CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


class SamlMetadata(NamedTuple):
    """The parts of the metadata that are used.

    There may be several certificates, for example during a rollover. A signature by any of them is accepted.
    """

    entity_id: str
    sso_url: str
    certificates: tuple[str, ...]  # Base64 of DER.
    valid_until: datetime | None


def parse_saml_metadata(document: bytes) -> SamlMetadata:
    """Parse the metadata of one identity provider. Raises BadSamlMetadata."""
    try:
        root = parse_xml(document, comments=True)
    except MalformedXml as fault:
        raise BadSamlMetadata(f"The metadata cannot be read. {fault}") from None
    entity, role = _provider(root)
    ends = [_must_be_valid(until) for each in (root, entity, role) if (until := each.get("validUntil")) is not None]
    entity_id = entity.get("entityID") or ""
    if not 0 < len(entity_id) <= LONGEST_ENTITY_ID or not entity_id.isprintable():
        raise BadSamlMetadata(f"The provider's entity ID must have 1 to {LONGEST_ENTITY_ID} printable characters.")
    places = [each for each in role.findall(tag(METADATA, "SingleSignOnService")) if each.get("Binding") == REDIRECT]
    if not places:
        raise BadSamlMetadata(
            "The metadata have no SingleSignOnService with the HTTP-Redirect binding. Enable it at the provider."
        )
    return SamlMetadata(entity_id, places[0].get("Location") or "", _certificates(role), min(ends, default=None))


def _provider(root: Element) -> tuple[Element, Element]:
    """Return the EntityDescriptor, and its identity provider role (IDPSSODescriptor)."""
    found = [
        (role.getparent(), role)
        for role in root.iter(tag(METADATA, "IDPSSODescriptor"))
        if PROTOCOL in (role.get("protocolSupportEnumeration") or "").split()
    ]
    if len(found) != 1 or found[0][0] is None or found[0][0].tag != tag(METADATA, "EntityDescriptor"):
        raise BadSamlMetadata(
            f"The metadata must describe one SAML 2.0 identity provider; these describe {len(found)}."
        )
    return found[0]


def _must_be_valid(until: str) -> datetime:
    """Return the time in a `validUntil`. Raises BadSamlMetadata unless the time is in the future."""
    try:
        said = datetime.fromisoformat(until)
        moment = said.replace(tzinfo=said.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadSamlMetadata("The metadata's end of validity (validUntil) cannot be read.") from None
    if moment < datetime.now(UTC):
        raise BadSamlMetadata(f"The metadata expired on {until} (validUntil). Enter newer ones.")
    return moment


def _certificates(role: Element) -> tuple[str, ...]:
    """Return the signing certificates, without duplicates."""
    keys = [key for key in role.findall(tag(METADATA, "KeyDescriptor")) if key.get("use", "signing") == "signing"]
    found = [each for key in keys for each in key.iter(tag(SIGNATURE, "X509Certificate"))]
    certificates = tuple(dict.fromkeys(_certificate("".join(element_text(each).split())) for each in found))
    if not 0 < len(certificates) <= MOST_CERTIFICATES:
        raise BadSamlMetadata(
            f"The metadata must have 1 to {MOST_CERTIFICATES} signing certificates; these have {len(certificates)}."
        )
    return certificates


def _certificate(encoded: str) -> str:
    """Return a certificate in normal form. Raises BadSamlMetadata for an invalid certificate or a weak key."""
    try:
        der = base64.b64decode(encoded, validate=True)
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        certificate_properties(certificate, der)  # Parsing is lazy: some errors are raised only when a part is read.
        certificate.not_valid_before_utc  # noqa: B018  (used as verification time)
    except Exception:  # noqa: BLE001  (parsers raise their own exceptions, for versions, encodings and keys)
        raise BadSamlMetadata("A certificate in the metadata cannot be read.") from None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= LEAST_RSA_BITS:
        return base64.b64encode(der).decode()
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, CURVES):
        return base64.b64encode(der).decode()
    raise BadSamlMetadata(
        f"A certificate in the metadata has a weak key. It must be RSA of {LEAST_RSA_BITS} bits or more, or EC on"
        " P-256, P-384 or P-521."
    )
