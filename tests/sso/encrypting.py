"""Encrypted SAML assertions, as sent by correct and faulty providers; every part can be made wrong."""

import base64
import os
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from lxml import etree

from tests.sso.saml_provider import NS

DIGESTS = {
    "http://www.w3.org/2000/09/xmldsig#sha1": hashes.SHA1(),
    "http://www.w3.org/2001/04/xmlenc#sha256": hashes.SHA256(),
    "http://www.w3.org/2001/04/xmlenc#sha512": hashes.SHA512(),
}
GCM = "http://www.w3.org/2009/xmlenc11#aes{}-gcm"
OAEP_MGF1P, OAEP = "http://www.w3.org/2001/04/xmlenc#rsa-oaep-mgf1p", "http://www.w3.org/2009/xmlenc11#rsa-oaep"
PKCS1 = "http://www.w3.org/2001/04/xmlenc#rsa-1_5"
CBC = "http://www.w3.org/2001/04/xmlenc#aes256-cbc"
XENC, XENC11 = "http://www.w3.org/2001/04/xmlenc#", "http://www.w3.org/2009/xmlenc11#"


@dataclass
class Encrypted:
    """An EncryptedAssertion of `content` for the key of a certificate (base64 of DER)."""

    certificate: str
    content: bytes
    bits: int = 256
    algorithm: str = ""
    wrapping: str = OAEP_MGF1P
    digest: str = ""
    mask: str = ""
    beside: bool = False  # True if the key is beside the encrypted data, not inside.
    said_bits: int = 0

    def element(self) -> Any:
        """Return the encrypted assertion as an element for a response."""
        key, nonce = os.urandom(self.bits // 8), os.urandom(12)
        data = nonce + AESGCM(key).encrypt(nonce, self.content, None)
        wrapped = (
            f'<xenc:EncryptedKey><xenc:EncryptionMethod Algorithm="{self.wrapping}">{self._words()}'
            f"</xenc:EncryptionMethod>{value(self.public_key().encrypt(key, self._padding()))}</xenc:EncryptedKey>"
        )
        info = "" if self.beside else f'<ds:KeyInfo xmlns:ds="{NS["ds"]}">{wrapped}</ds:KeyInfo>'
        return etree.fromstring(
            f'<saml:EncryptedAssertion xmlns:saml="{NS["saml"]}" xmlns:xenc="{XENC}">'
            f'<xenc:EncryptedData Type="{XENC}Element"><xenc:EncryptionMethod Algorithm="{self._cipher()}"/>'
            f"{info}{value(data)}</xenc:EncryptedData>{wrapped if self.beside else ''}</saml:EncryptedAssertion>"
        )

    def public_key(self) -> rsa.RSAPublicKey:
        key = x509.load_der_x509_certificate(base64.b64decode(self.certificate)).public_key()
        assert isinstance(key, rsa.RSAPublicKey)
        return key

    def _cipher(self) -> str:
        return self.algorithm or GCM.format(self.said_bits or self.bits)

    def _words(self) -> str:
        digest = f'<ds:DigestMethod xmlns:ds="{NS["ds"]}" Algorithm="{self.digest}"/>' if self.digest else ""
        mask = f'<x11:MGF xmlns:x11="{XENC11}" Algorithm="{XENC11}{self.mask}"/>' if self.mask else ""
        return digest + mask

    def _padding(self) -> padding.AsymmetricPadding:
        if self.wrapping == PKCS1:
            return padding.PKCS1v15()
        digest = DIGESTS.get(self.digest, hashes.SHA1())
        mask = hashes.SHA256() if self.mask == "mgf1sha256" else hashes.SHA1()
        return padding.OAEP(padding.MGF1(mask), digest, None)


def value(data: bytes) -> str:
    return f"<xenc:CipherData><xenc:CipherValue>{base64.b64encode(data).decode()}</xenc:CipherValue></xenc:CipherData>"
