"""Verify the provider's answers (SAML 2.0 Profiles 4.1.4): signature, audience, recipient and time.

All values are read from the signed element that the verification returns. Anything else in the document can only cause
a refusal. Needs the extra `saml`.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from signxml.algorithms import DigestAlgorithm, SignatureMethod
from signxml.verifier import SignatureConfiguration, VerifyResult, XMLVerifier

from sso.errors import ResponseRefused
from sso.saml.documents import ASSERTION, PROTOCOL, SIGNATURE, Element, MalformedXml, element_text, parse_xml, tag

LONGEST = 256 * 1024  # Characters of an encoded answer.
CLOCKS_DIFFER_S = 60
OLDEST_S = 10 * 60  # Older assertions are refused, even if their own conditions allow more time.
STATUS = "urn:oasis:names:tc:SAML:2.0:status:"
SUCCESS = f"{STATUS}Success"
# Status codes of SAML Core 3.2.2.2. The status is not signed, so any other text in it is not shown.
CODES = (
    *("Success", "Requester", "Responder", "VersionMismatch", "AuthnFailed", "InvalidAttrNameOrValue"),
    *("InvalidNameIDPolicy", "NoAuthnContext", "NoAvailableIDP", "NoPassive", "NoSupportedIDP", "PartialLogout"),
    *("ProxyCountExceeded", "RequestDenied", "RequestUnsupported", "RequestVersionDeprecated"),
    *("RequestVersionTooHigh", "RequestVersionTooLow", "ResourceNotRecognized", "TooManyResponses"),
    *("UnknownAttrProfile", "UnknownPrincipal", "UnsupportedBinding"),
)
BEARER = "urn:oasis:names:tc:SAML:2.0:cm:bearer"
TRANSIENT = "urn:oasis:names:tc:SAML:2.0:nameid-format:transient"

# Public-key signatures without SHA-1.
BITS = (256, 384, 512)
SIGNED_WITH = frozenset(
    SignatureMethod[name.format(bits)] for name in ("RSA_SHA{}", "ECDSA_SHA{}", "SHA{}_RSA_MGF1") for bits in BITS
)
DIGESTED_WITH = frozenset(DigestAlgorithm[f"SHA{bits}"] for bits in BITS)
INCLUSIVE = "{http://www.w3.org/2001/10/xml-exc-c14n#}InclusiveNamespaces"
LONGEST_PREFIXES = 500
# The children of a signature, in order (SAML Core 5.4). A signature with other children is refused before it is used.
PARTS = {
    "Signature": (("SignedInfo", "SignatureValue"), ("SignedInfo", "SignatureValue", "KeyInfo")),
    "SignedInfo": (("CanonicalizationMethod", "SignatureMethod", "Reference"),),
    "Reference": (("Transforms", "DigestMethod", "DigestValue"), ("DigestMethod", "DigestValue")),
    "Transforms": (("Transform",), ("Transform", "Transform")),
}


class Expected(NamedTuple):
    """The expected issuer, audience and recipient; `keys` returns our private keys for encrypted assertions."""

    issuer: str
    audience: str
    recipient: str
    certificates: Sequence[str]
    keys: Callable[[], Sequence[rsa.RSAPrivateKey]] | None = None  # None if encrypted assertions are refused.


class Assertion(NamedTuple):
    """The verified content of an assertion. `in_response_to` is empty if the answer is unsolicited."""

    assertion_id: str
    in_response_to: str
    name: str
    name_format: str
    attributes: Mapping[str, Sequence[str]]
    session: str
    authenticated_at: float | None


def verify_response(encoded: str, expected: Expected) -> Assertion:
    """Verify a response (base64, as posted) and return its content. Raises ResponseRefused."""
    root = _parsed(encoded)
    _must_be_about_us(root, expected)
    encrypted = list(root.iter(tag(ASSERTION, "EncryptedAssertion")))
    document = _opened(root, encrypted, expected) if encrypted else root
    _must_be_plain(document)
    if not encrypted:
        _must_be_signed_as_a_whole(root, expected)
    (assertion,) = document.iter(tag(ASSERTION, "Assertion"))
    location = "./" if encrypted else f"./{tag(ASSERTION, 'Assertion')}/"
    signed = _signed(document, location, assertion, expected.certificates)
    now = datetime.now(UTC).timestamp()
    if element_text(signed.find(tag(ASSERTION, "Issuer"))) != expected.issuer:
        raise ResponseRefused("other_issuer", f"The assertion comes from another issuer than {expected.issuer}.")
    _must_be_fresh(signed, now)
    _must_hold(signed, expected, now)
    answers = _confirmed(signed, expected, now)
    if root.get("InResponseTo", answers) != answers:
        raise ResponseRefused("not_confirmed", "Response and assertion answer different requests (InResponseTo).")
    return _said(signed, expected, answers, now)


def _parsed(encoded: str) -> Element:
    if len(encoded) > LONGEST:
        raise ResponseRefused("too_large", f"The response is larger than {LONGEST >> 10} KiB.")
    try:
        root = parse_xml(base64.b64decode("".join(encoded.split()), validate=True))
    except (binascii.Error, ValueError):
        raise ResponseRefused("malformed", "The response is not base64.") from None
    except MalformedXml as fault:
        raise ResponseRefused("malformed", f"The response cannot be read. {fault}") from None
    if root.tag != tag(PROTOCOL, "Response") or root.get("Version") != "2.0":
        raise ResponseRefused("malformed", "The message is not a SAML 2.0 response.")
    return root


def _must_be_about_us(root: Element, expected: Expected) -> None:
    """Refuse a response that reports a failure, comes from another issuer, or is for another recipient.

    The response itself may be unsigned, so passing this check proves nothing.
    """
    issuer = root.find(tag(ASSERTION, "Issuer"))
    if issuer is not None and element_text(issuer) != expected.issuer:
        raise ResponseRefused("other_issuer", f"The response comes from another issuer than {expected.issuer}.")
    if root.get("Destination", expected.recipient) != expected.recipient:
        raise ResponseRefused(
            "other_recipient", f"The response is for another address than {expected.recipient} (Destination)."
        )
    if root.find(f"{tag(PROTOCOL, 'Status')}/{tag(PROTOCOL, 'StatusCode')}[@Value='{SUCCESS}']") is None:
        given = [code.get("Value", "") for code in root.iter(tag(PROTOCOL, "StatusCode"))][:2]
        names = [code.removeprefix(STATUS) if code.startswith(STATUS) else "" for code in given]
        words = ", ".join(name if name in CODES else "another code" for name in names) or "no status"
        raise ResponseRefused("refused_there", f"The provider refused the sign-in: {words}.")


def _opened(root: Element, encrypted: Sequence[Element], expected: Expected) -> Element:
    """Return the decrypted assertion as a separate document. Raises ResponseRefused."""
    if expected.keys is None:
        raise ResponseRefused("encrypted", "The assertion is encrypted, which the settings do not allow.")
    if root.find(f".//{tag(ASSERTION, 'Assertion')}") is not None:
        raise ResponseRefused("wrapped", "The response has another assertion beside the encrypted one.")
    _must_be_one(root, encrypted)
    sealed = parse_encrypted(encrypted[0])
    _must_be_signed_as_a_whole(root, expected)  # Before decryption: a signature covers the encrypted form.
    # Inside the response, the assertion would inherit namespaces and so differ from the signed text.
    return decrypt_assertion(sealed, expected.keys())


def _must_be_signed_as_a_whole(root: Element, expected: Expected) -> None:
    """Verify the signature of the response itself, if it has one. Raises ResponseRefused."""
    if root.find(tag(SIGNATURE, "Signature")) is not None:
        _signed(root, "./", root, expected.certificates)


def _must_be_plain(root: Element) -> None:
    """Raise ResponseRefused if there is not exactly one assertion, or if an ID occurs twice.

    Also raises ResponseRefused if the assertion is neither the root element nor a child of it.
    """
    if root.find(f".//{tag(ASSERTION, 'EncryptedAssertion')}") is not None:
        raise ResponseRefused("wrapped", "The encrypted assertion contains another encrypted one.")
    everywhere = list(root.iter(tag(ASSERTION, "Assertion")))
    if not everywhere:
        raise ResponseRefused("malformed", "The response has no assertion.")
    # Against signature wrapping. A decrypted assertion is itself the top.
    _must_be_one(root, everywhere)


def _must_be_one(root: Element, everywhere: Sequence[Element]) -> None:
    names = [each.get("ID") for each in root.iter() if each.get("ID") is not None]
    is_there = everywhere[0] is root or everywhere[0].getparent() is root
    if len(everywhere) > 1 or not is_there or len(set(names)) != len(names):
        raise ResponseRefused(
            "wrapped", "The response has several assertions, an assertion in the wrong place, or an ID twice."
        )


def _signed(root: Element, location: str, element: Element, certificates: Sequence[str]) -> Element:
    """Verify the one signature inside `element`, and return the signed element.

    Raises ResponseRefused unless one of the certificates verifies the signature and the signature covers `element`.
    """
    signatures = element.findall(tag(SIGNATURE, "Signature"))
    if len(signatures) != 1:
        raise ResponseRefused(
            "not_signed",
            "The assertion must have exactly one signature. The response must have one or none. Set the provider to "
            "sign assertions.",
        )
    _must_be_usual(signatures[0])
    method = signatures[0].find(f"{tag(SIGNATURE, 'SignedInfo')}/{tag(SIGNATURE, 'SignatureMethod')}")
    digests = list(signatures[0].iter(tag(SIGNATURE, "DigestMethod")))
    used = [each.get("Algorithm") for each in digests]
    if method is None or method.get("Algorithm") not in {each.value for each in SIGNED_WITH}:
        raise ResponseRefused("weak_signature", "The signature must use RSA or ECDSA with SHA-256, SHA-384 or SHA-512.")
    if not set(used) <= {each.value for each in DIGESTED_WITH}:
        raise ResponseRefused("weak_signature", "The digest of the signature is not SHA-256, SHA-384 or SHA-512.")
    for certificate in certificates:
        signed = _verified(root, location, certificate)
        if signed is not None:
            if signed.tag != element.tag or signed.get("ID") != element.get("ID") or not element.get("ID"):
                raise ResponseRefused("wrapped", "The signature does not cover the element that contains it.")
            return signed
    raise ResponseRefused(
        "wrong_signature",
        "The signature matches no certificate in the provider's metadata, or the content was changed.",
    )


def _must_be_usual(part: Element) -> None:
    """Raise ResponseRefused if a part of a signature has content that SAML does not use.

    The signature is processed before the signer is known, so only the usual content may be processed.
    """
    name, children = part.tag.removeprefix(tag(SIGNATURE, "")), [*part]
    if name in PARTS:
        is_usual = tuple(each.tag for each in children) in [
            tuple(tag(SIGNATURE, each) for each in names) for names in PARTS[name]
        ]
    elif name in {"CanonicalizationMethod", "Transform"}:
        is_usual = not children or ([each.tag for each in children] == [INCLUSIVE] and _is_short(children[0]))
    else:
        is_usual = not children
    if not is_usual or len(part.attrib) > 3:
        raise ResponseRefused("malformed", f"A signature has content that SAML does not use ({name[:40]}).")
    for child in children:
        if child.tag not in {INCLUSIVE, tag(SIGNATURE, "KeyInfo")}:
            _must_be_usual(child)


def _is_short(prefixes: Element) -> bool:
    return not len(prefixes) and len(prefixes.attrib) <= 1 and len(prefixes.get("PrefixList", "")) <= LONGEST_PREFIXES


def _verified(root: Element, location: str, certificate: str) -> Element | None:
    """Return the element covered by the signature at `location`, or None if the certificate does not verify it."""
    believed = x509.load_der_x509_certificate(base64.b64decode(certificate))
    terms = SignatureConfiguration(
        location=location,
        signature_methods=SIGNED_WITH,
        digest_algorithms=DIGESTED_WITH,
        verification_time=believed.not_valid_before_utc,  # The metadata establish trust, so expiry does not matter.
    )
    try:
        found = XMLVerifier().verify(root, x509_cert=believed, expect_config=terms, id_attribute="ID")
    except Exception:  # noqa: BLE001  (whatever an untrusted document makes the verifier raise)
        return None
    return found.signed_xml if isinstance(found, VerifyResult) else None


def _must_be_fresh(signed: Element, now: float) -> None:
    made = _moment(signed.get("IssueInstant"), "IssueInstant")
    if made > now + CLOCKS_DIFFER_S:
        raise ResponseRefused(
            "not_yet_valid", "The assertion is from the future: the clocks differ by more than a minute."
        )
    if made < now - OLDEST_S - CLOCKS_DIFFER_S:
        raise ResponseRefused("expired", "The assertion was made more than ten minutes ago.")


def _must_hold(signed: Element, expected: Expected, now: float) -> None:
    """Raise ResponseRefused if the assertion's Conditions do not name us as audience, or do not include this time."""
    conditions = signed.find(tag(ASSERTION, "Conditions"))
    restrictions = conditions.findall(tag(ASSERTION, "AudienceRestriction")) if conditions is not None else []
    named = [{element_text(each) for each in one.findall(tag(ASSERTION, "Audience"))} for one in restrictions]
    if not named or not all(expected.audience in audiences for audiences in named):
        raise ResponseRefused("other_audience", f"The assertion is for another audience than {expected.audience}.")
    _must_be_now(conditions, now)


def _must_be_now(element: Element, now: float) -> None:
    begins, ends = element.get("NotBefore"), element.get("NotOnOrAfter")
    if begins is not None and _moment(begins, "NotBefore") > now + CLOCKS_DIFFER_S:
        raise ResponseRefused(
            "not_yet_valid", "The assertion is not valid yet: the clocks differ by more than a minute."
        )
    if ends is not None and _moment(ends, "NotOnOrAfter") <= now - CLOCKS_DIFFER_S:
        raise ResponseRefused("expired", "The assertion has expired, or the clocks differ by more than a minute.")


def _confirmed(signed: Element, expected: Expected, now: float) -> str:
    """Return the ID of the answered request (Profiles 4.1.4.2), or "" if the answer is unsolicited.

    Raises ResponseRefused.
    """
    fault: ResponseRefused | None = None
    for confirmation in signed.findall(f"{tag(ASSERTION, 'Subject')}/{tag(ASSERTION, 'SubjectConfirmation')}"):
        data = confirmation.find(tag(ASSERTION, "SubjectConfirmationData"))
        if confirmation.get("Method") != BEARER or data is None:
            continue
        if data.get("Recipient") != expected.recipient:
            fault = fault or ResponseRefused(
                "other_recipient", f"The assertion is for another address than {expected.recipient} (Recipient)."
            )
        elif data.get("NotOnOrAfter") is None:
            fault = ResponseRefused("not_confirmed", "The SubjectConfirmation has no NotOnOrAfter.")
        else:
            try:
                _must_be_now(data, now)
            except ResponseRefused as refusal:  # One valid confirmation is enough (Core 2.4.1).
                fault = refusal
            else:
                return str(data.get("InResponseTo", ""))
    raise fault or ResponseRefused("not_confirmed", "The assertion has no bearer SubjectConfirmation.")


def _said(signed: Element, expected: Expected, answers: str, now: float) -> Assertion:
    name = signed.find(f"{tag(ASSERTION, 'Subject')}/{tag(ASSERTION, 'NameID')}")
    if name is not None:
        _must_be_a_name_for_us(name, expected)
    subject = "".join(name.itertext()) if name is not None else ""
    if not 0 < len(subject) <= 255 or not subject.isprintable() or name.get("Format") == TRANSIENT:
        wrong = "The assertion needs a NameID of 1 to 255 printable characters. Its format must not be transient."
        raise ResponseRefused("no_name", wrong)
    statement = signed.find(tag(ASSERTION, "AuthnStatement"))
    if statement is None:
        raise ResponseRefused("not_confirmed", "The assertion has no AuthnStatement.")
    ends, at = statement.get("SessionNotOnOrAfter"), statement.get("AuthnInstant")
    if ends is not None and _moment(ends, "SessionNotOnOrAfter") <= now - CLOCKS_DIFFER_S:
        raise ResponseRefused("expired", "The session at the provider has ended.")
    return Assertion(
        assertion_id=signed.get("ID"),
        in_response_to=answers,
        name=subject,
        name_format=name.get("Format") or "",
        attributes=_attributes(signed),
        session=(statement.get("SessionIndex") or "")[:255],
        authenticated_at=_moment(at, "AuthnInstant") if at else None,
    )


def _must_be_a_name_for_us(name: Element, expected: Expected) -> None:
    """Raise ResponseRefused if a qualifier of the NameID names another provider or another workspace.

    Such a NameID may identify another person (SAML Core 2.2.2).
    """
    given = (name.get("NameQualifier") or expected.issuer, name.get("SPNameQualifier") or expected.audience)
    if given != (expected.issuer, expected.audience):
        raise ResponseRefused("no_name", "The qualifiers of the NameID belong to another provider or workspace.")


def _attributes(signed: Element) -> dict[str, list[str]]:
    """Return attribute values by name and by friendly name. A name takes precedence over an equal friendly name."""
    found: dict[str, list[str]] = {}
    friendly: dict[str, list[str]] = {}
    for each in signed.iterfind(f"{tag(ASSERTION, 'AttributeStatement')}/{tag(ASSERTION, 'Attribute')}"):
        values = [element_text(value) for value in each.findall(tag(ASSERTION, "AttributeValue"))]
        found.setdefault(each.get("Name") or "", []).extend(values)
        if each.get("FriendlyName"):
            friendly.setdefault(each.get("FriendlyName"), []).extend(values)
    return friendly | found


def _moment(text: str | None, what: str) -> float:
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        raise ResponseRefused("malformed", f"The assertion has an unreadable time ({what}).") from None
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


# --- Encrypted assertions (XML Encryption 1.1) ------------------------------------------------------------------------
#
# Anybody who has our metadata can encrypt for us, so the content is checked as if it had been sent in the clear.
# Unauthenticated ciphers (CBC) and RSA with PKCS #1 v1.5 are refused, because they allow oracle attacks on captured
# answers. For the same reason, all failures look alike and take equal work.

ENCRYPTION = "http://www.w3.org/2001/04/xmlenc#"
ENCRYPTION_11 = "http://www.w3.org/2009/xmlenc11#"
# Key lengths in bytes.
CIPHERS = {f"{ENCRYPTION_11}aes{bits}-gcm": bits // 8 for bits in (128, 192, 256)}
OAEP_WITH_SHA1 = f"{ENCRYPTION}rsa-oaep-mgf1p"  # SHA-1 in the mask, where collisions do not matter.
OAEP = f"{ENCRYPTION_11}rsa-oaep"
DIGESTS: dict[str, hashes.HashAlgorithm] = {
    f"{SIGNATURE}sha1": hashes.SHA1(),  # noqa: S303  (collisions do not matter in OAEP)
    f"{ENCRYPTION}sha256": hashes.SHA256(),
    f"{ENCRYPTION}sha384": hashes.SHA384(),
    f"{ENCRYPTION}sha512": hashes.SHA512(),
}
MASKS: dict[str, hashes.HashAlgorithm] = {
    f"{ENCRYPTION_11}mgf1sha1": hashes.SHA1(),  # noqa: S303  (collisions do not matter in OAEP)
    f"{ENCRYPTION_11}mgf1sha256": hashes.SHA256(),
    f"{ENCRYPTION_11}mgf1sha384": hashes.SHA384(),
    f"{ENCRYPTION_11}mgf1sha512": hashes.SHA512(),
}
NONCE, CHECK = 12, 16  # Bytes. AES-GCM puts the nonce before the ciphertext, and the tag after it.
FAILED = "The assertion cannot be decrypted with our keys. Let the provider read our metadata again."


class EncryptedAssertion(NamedTuple):
    """An encrypted assertion.

    `wrapped` is the encrypted AES key. `length` is the length of the AES key in bytes.
    """

    nonce: bytes
    data: bytes
    length: int
    wrapped: bytes
    wrapping: padding.OAEP


def parse_encrypted(encrypted: Element) -> EncryptedAssertion:
    """Parse an EncryptedAssertion. Raises ResponseRefused for errors that are visible without decrypting."""
    datas, keys = (list(encrypted.iter(tag(ENCRYPTION, name))) for name in ("EncryptedData", "EncryptedKey"))
    if len(datas) != 1 or len(keys) != 1 or datas[0].getparent() is not encrypted:
        raise ResponseRefused("malformed", "An encrypted assertion must have one EncryptedData and one EncryptedKey.")
    cipher, method = _encryption_method(datas[0]).get("Algorithm"), _encryption_method(keys[0])
    if cipher not in CIPHERS:
        raise ResponseRefused("weak_encryption", "The assertion is not encrypted with AES-GCM.")
    content = _value(datas[0])
    if len(content) < NONCE + CHECK:
        raise ResponseRefused("malformed", "The encrypted assertion is too short.")
    return EncryptedAssertion(content[:NONCE], content[NONCE:], CIPHERS[cipher], _value(keys[0]), _wrapping(method))


def decrypt_assertion(sealed: EncryptedAssertion, keys: Sequence[rsa.RSAPrivateKey]) -> Element:
    """Decrypt the assertion. Raises ResponseRefused with one message for all errors."""
    found = [each for key in keys if (each := _decrypted(sealed, key)) is not None]
    try:
        assertion = parse_xml(found[0])
    except (IndexError, MalformedXml):
        raise ResponseRefused("not_decrypted", FAILED) from None
    if assertion.tag != tag(ASSERTION, "Assertion"):
        raise ResponseRefused("not_decrypted", FAILED)
    return assertion


def _decrypted(sealed: EncryptedAssertion, key: rsa.RSAPrivateKey) -> bytes | None:
    """Return the decrypted data, or None if decryption fails.

    If `key` cannot decrypt the AES key, the data are decrypted with a random AES key, which fails too. Both failures
    then take equally long, so the time does not show which step failed.
    """
    unwrapped = another = os.urandom(sealed.length)
    with suppress(ValueError, UnsupportedAlgorithm):
        unwrapped = key.decrypt(sealed.wrapped, sealed.wrapping)
    cipher = AESGCM(unwrapped if len(unwrapped) == sealed.length else another)
    with suppress(InvalidTag):
        return cipher.decrypt(sealed.nonce, sealed.data, None)
    return None


def _encryption_method(part: Element) -> Element:
    methods = part.findall(tag(ENCRYPTION, "EncryptionMethod"))
    if len(methods) != 1:
        raise ResponseRefused(
            "malformed", "EncryptedData and EncryptedKey must each have exactly one EncryptionMethod."
        )
    return methods[0]


def _value(part: Element) -> bytes:
    """Return the bytes in the element's CipherValue. A CipherReference is not followed."""
    values = part.findall(f"{tag(ENCRYPTION, 'CipherData')}/{tag(ENCRYPTION, 'CipherValue')}")
    try:
        (value,) = values
        return base64.b64decode("".join((value.text or "").split()), validate=True)
    except (ValueError, binascii.Error):
        raise ResponseRefused("malformed", "The encrypted assertion has no CipherValue in base64.") from None


def _wrapping(method: Element) -> padding.OAEP:
    """Return the padding with which the AES key was encrypted. Raises ResponseRefused if it is not RSA-OAEP.

    If `method` does not name a digest or a mask, the default of XML Encryption 5.5.2 applies: SHA-1.
    """
    algorithm = method.get("Algorithm")
    digest = _one_of(DIGESTS, method, tag(SIGNATURE, "DigestMethod"), f"{SIGNATURE}sha1")
    mask = _one_of(MASKS, method, tag(ENCRYPTION_11, "MGF"), f"{ENCRYPTION_11}mgf1sha1")
    if algorithm == OAEP_WITH_SHA1:
        mask = hashes.SHA1()  # noqa: S303  (collisions do not matter in OAEP)
    if algorithm not in {OAEP, OAEP_WITH_SHA1} or method.find(tag(ENCRYPTION, "OAEPparams")) is not None:
        raise ResponseRefused("weak_encryption", "The key of the assertion is not encrypted with RSA-OAEP.")
    return padding.OAEP(padding.MGF1(mask), digest, None)


def _one_of(known: dict[str, hashes.HashAlgorithm], method: Element, name: str, unsaid: str) -> hashes.HashAlgorithm:
    said = method.find(name)
    found = known.get(unsaid if said is None else said.get("Algorithm") or "")
    if found is None:
        raise ResponseRefused(
            "weak_encryption", "The key of the assertion is encrypted with an unknown digest or mask."
        )
    return found
