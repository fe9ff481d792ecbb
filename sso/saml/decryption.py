"""Decrypt assertions (XML Encryption 1.1): AES-GCM with a key wrapped by RSA-OAEP.

Anybody who has our metadata can encrypt for us, so encryption proves nothing: the content is checked as if it had been
sent in the clear. Unauthenticated ciphers (CBC) and RSA with PKCS #1 v1.5 are refused, because they allow oracle
attacks on captured answers. For the same reason all failures look the same and take the same work.
"""

import base64
import binascii
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sso.saml.parsing import ASSERTION, SIGNATURE, Element, MalformedXml, parse_xml, tag
from sso.saml.refusals import ResponseRefused

ENCRYPTION = "http://www.w3.org/2001/04/xmlenc#"
ENCRYPTION_11 = "http://www.w3.org/2009/xmlenc11#"
# Key lengths in bytes.
CIPHERS = {f"{ENCRYPTION_11}aes{bits}-gcm": bits // 8 for bits in (128, 192, 256)}
OAEP_WITH_SHA1 = f"{ENCRYPTION}rsa-oaep-mgf1p"  # SHA-1 in the mask, where collisions do not matter.
OAEP = f"{ENCRYPTION_11}rsa-oaep"
DIGESTS: dict[str, hashes.HashAlgorithm] = {
    f"{SIGNATURE}sha1": hashes.SHA1(),  # noqa: S303  as above
    f"{ENCRYPTION}sha256": hashes.SHA256(),
    f"{ENCRYPTION}sha384": hashes.SHA384(),
    f"{ENCRYPTION}sha512": hashes.SHA512(),
}
MASKS: dict[str, hashes.HashAlgorithm] = {
    f"{ENCRYPTION_11}mgf1sha1": hashes.SHA1(),  # noqa: S303  as above
    f"{ENCRYPTION_11}mgf1sha256": hashes.SHA256(),
    f"{ENCRYPTION_11}mgf1sha384": hashes.SHA384(),
    f"{ENCRYPTION_11}mgf1sha512": hashes.SHA512(),
}
NONCE, CHECK = 12, 16  # Bytes of the nonce before, and the tag after, the ciphertext of AES-GCM.
FAILED = "None of our keys opens the assertion, or what is in it is none. Have the provider read our metadata again."


class EncryptedAssertion(NamedTuple):
    """An encrypted assertion; `length` is that of the key in `wrapped`."""

    nonce: bytes
    data: bytes
    length: int
    wrapped: bytes
    wrapping: padding.OAEP


def parse_encrypted(encrypted: Element) -> EncryptedAssertion:
    """Parse an EncryptedAssertion. Raises ResponseRefused for errors that are visible without decrypting."""
    datas, keys = (list(encrypted.iter(tag(ENCRYPTION, name))) for name in ("EncryptedData", "EncryptedKey"))
    if len(datas) != 1 or len(keys) != 1 or datas[0].getparent() is not encrypted:
        raise ResponseRefused("malformed", "An encrypted assertion takes one EncryptedData and one EncryptedKey.")
    cipher, method = _method(datas[0]).get("Algorithm"), _method(keys[0])
    if cipher not in CIPHERS:
        raise ResponseRefused("weak_encryption", "The assertion is not encrypted with AES-GCM.")
    content = _value(datas[0])
    if len(content) < NONCE + CHECK:
        raise ResponseRefused("malformed", "The encrypted assertion is too short to be one.")
    return EncryptedAssertion(content[:NONCE], content[NONCE:], CIPHERS[cipher], _value(keys[0]), _wrapping(method))


def decrypt_assertion(sealed: EncryptedAssertion, keys: Sequence[rsa.RSAPrivateKey]) -> Element:
    """Decrypt the assertion. Raises ResponseRefused with the same message for every error."""
    found = [each for key in keys if (each := _decrypted(sealed, key)) is not None]
    try:
        assertion = parse_xml(found[0])
    except (IndexError, MalformedXml):
        raise ResponseRefused("not_decrypted", FAILED) from None
    if assertion.tag != tag(ASSERTION, "Assertion"):
        raise ResponseRefused("not_decrypted", FAILED)
    return assertion


def _decrypted(sealed: EncryptedAssertion, key: rsa.RSAPrivateKey) -> bytes | None:
    """Decrypt with this key. If unwrapping fails, a random key is used, so that it takes as long."""
    unwrapped = another = os.urandom(sealed.length)
    with suppress(ValueError, UnsupportedAlgorithm):
        unwrapped = key.decrypt(sealed.wrapped, sealed.wrapping)
    cipher = AESGCM(unwrapped if len(unwrapped) == sealed.length else another)
    with suppress(InvalidTag):
        return cipher.decrypt(sealed.nonce, sealed.data, None)
    return None


def _method(part: Element) -> Element:
    methods = part.findall(tag(ENCRYPTION, "EncryptionMethod"))
    if len(methods) != 1:
        raise ResponseRefused("malformed", "It does not say what it is encrypted with (EncryptionMethod).")
    return methods[0]


def _value(part: Element) -> bytes:
    """Return the bytes of the element; references to other elements are not followed."""
    values = part.findall(f"{tag(ENCRYPTION, 'CipherData')}/{tag(ENCRYPTION, 'CipherValue')}")
    try:
        (value,) = values
        return base64.b64decode("".join((value.text or "").split()), validate=True)
    except (ValueError, binascii.Error):
        raise ResponseRefused("malformed", "What is encrypted does not stand in it, in base64 (CipherValue).") from None


def _wrapping(method: Element) -> padding.OAEP:
    """Return the padding of the wrapped key; the defaults are those of XML Encryption (5.5.2)."""
    algorithm = method.get("Algorithm")
    digest = _one_of(DIGESTS, method, tag(SIGNATURE, "DigestMethod"), f"{SIGNATURE}sha1")
    mask = _one_of(MASKS, method, tag(ENCRYPTION_11, "MGF"), f"{ENCRYPTION_11}mgf1sha1")
    if algorithm == OAEP_WITH_SHA1:
        mask = hashes.SHA1()  # noqa: S303  as above
    if algorithm not in {OAEP, OAEP_WITH_SHA1} or method.find(tag(ENCRYPTION, "OAEPparams")) is not None:
        raise ResponseRefused("weak_encryption", "The key of the assertion is not encrypted with RSA-OAEP.")
    return padding.OAEP(padding.MGF1(mask), digest, None)


def _one_of(known: dict[str, hashes.HashAlgorithm], method: Element, name: str, unsaid: str) -> hashes.HashAlgorithm:
    said = method.find(name)
    found = known.get(unsaid if said is None else said.get("Algorithm") or "")
    if found is None:
        raise ResponseRefused("weak_encryption", "The key of the assertion is encrypted with an unknown digest.")
    return found
