"""The key that signs our requests, and its certificate, which is in our metadata."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

BITS = 3072
LIVES = timedelta(days=3650)
ALGORITHM = "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256"


def make() -> tuple[str, str]:
    """Create a private key (PEM) and its certificate (base64 of DER)."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=BITS)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Gateway Admin")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + LIVES)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return pem, base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()


def load(pem: str) -> rsa.RSAPrivateKey:
    """Load a key created by `make`. Raises ValueError or TypeError if it is invalid."""
    key = load_pem_private_key(pem.encode(), None, unsafe_skip_rsa_key_validation=True)  # Created here.
    if not isinstance(key, rsa.RSAPrivateKey):
        raise TypeError("Requests are signed, and answers opened, with RSA keys.")
    return key


def sign_request(pem: str, what: str) -> str:
    """Return the signature (base64) of `what`, with ALGORITHM."""
    key = load(pem)
    return base64.b64encode(key.sign(what.encode(), padding.PKCS1v15(), hashes.SHA256())).decode()
