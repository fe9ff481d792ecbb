"""Tokens signed by an identity provider: ID tokens (OpenID Connect Core 3.1.3.7) and logout tokens.

For logout tokens see OpenID Connect Back-Channel Logout 2.4 and 2.6.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from jwcrypto.common import JWException, base64url_decode
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS

# Public-key signatures only: a token signed with our own secret, or unsigned, proves nothing.
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
PUBLIC = {"RSA", "EC", "OKP"}
CLOCKS_DIFFER_S = 60
LONGEST_TOKEN = 64 * 1024
LOGOUT_LIVES_S = 10 * 60
LOGOUT = "http://schemas.openid.net/event/backchannel-logout"


_compact = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+").fullmatch


class TokenInvalid(Exception):
    """The token is invalid; the message says why."""


class UnknownKey(TokenInvalid):
    """The token is signed with a key that the provider does not publish. Perhaps the provider has changed its keys."""


def id_token(
    token: str, keys: Sequence[Mapping[str, Any]], *, issuer: str, client_id: str, nonce: str
) -> dict[str, Any]:
    """Return the claims of an ID token. Raises TokenInvalid.

    The token must be for this client, and for the request with this nonce.
    """
    claims = _claims(token, keys, issuer=issuer, client_id=client_id)
    if claims.get("nonce") != nonce:
        raise TokenInvalid("The token belongs to another sign-in (nonce).")
    if not _is_later(claims.get("exp")):
        raise TokenInvalid("The token has expired or has no expiry (exp), or the clocks differ by more than a minute.")
    if not _text(claims.get("sub")):
        raise TokenInvalid("The token has no subject (sub).")
    return claims


def logout_token(token: str, keys: Sequence[Mapping[str, Any]], *, issuer: str, client_id: str) -> dict[str, Any]:
    """Return the claims of a logout token for this client. Raises TokenInvalid."""
    claims = _claims(token, keys, issuer=issuer, client_id=client_id)
    events = claims.get("events")
    if not isinstance(events, dict) or LOGOUT not in events or "nonce" in claims:
        raise TokenInvalid("This is not a logout token.")
    issued = claims.get("iat")
    if not isinstance(issued, int | float) or time.time() - issued > LOGOUT_LIVES_S:
        raise TokenInvalid("The token is too old.")
    if "exp" in claims and not _is_later(claims["exp"]):
        raise TokenInvalid("The token has expired, or the clocks differ by more than a minute.")
    if not (_text(claims.get("sub")) or _text(claims.get("sid"))):
        raise TokenInvalid("The token has neither a subject nor a session.")
    if not _text(claims.get("jti")):
        raise TokenInvalid("The token has no id (jti).")
    return claims


def _claims(token: str, keys: Sequence[Mapping[str, Any]], *, issuer: str, client_id: str) -> dict[str, Any]:
    """Verify the parts that ID tokens and logout tokens have in common, and return the claims."""
    claims = _verified(token, keys)
    if claims.get("iss") != issuer:
        raise TokenInvalid("The token comes from another issuer.")
    audience = claims.get("aud")
    if client_id not in (audience if isinstance(audience, list) else [audience]):
        raise TokenInvalid("The token is for another client.")
    if claims.get("azp", client_id) != client_id:
        raise TokenInvalid("The token was issued to another client.")
    issued = claims.get("iat")
    if not isinstance(issued, int | float) or issued > time.time() + CLOCKS_DIFFER_S:
        raise TokenInvalid("The token has no time of issue (iat), or the time is over a minute in the future.")
    return claims


def header_of(token: str) -> dict[str, Any]:
    """Return the header of a signed token in compact form (RFC 7515 section 7.1), unverified. Raises TokenInvalid."""
    if len(token) > LONGEST_TOKEN:
        raise TokenInvalid("The token is too long.")
    try:
        header = orjson.loads(base64url_decode(token.partition(".")[0])) if _compact(token) else None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise TokenInvalid("This is not a signed token.")
    if header.get("alg") not in ALGORITHMS:
        raise TokenInvalid("The token has no public-key signature of a supported kind.")
    return header


def _verified(token: str, keys: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    header = header_of(token)
    signed = JWS()
    signed.allowed_algs = ALGORITHMS
    try:
        signed.deserialize(token)
    except (JWException, ValueError, TypeError):
        raise TokenInvalid("This is not a signed token.") from None
    candidates = [key for key in keys if _may_sign(key, header.get("kid"))]
    if not candidates:
        raise UnknownKey(UnknownKey.__doc__)
    for key in candidates:
        try:
            signed.verify(JWK(**key))
            claims = orjson.loads(signed.payload)
        except (JWException, ValueError, TypeError):
            continue
        if isinstance(claims, dict):
            return claims
    raise TokenInvalid("The signature was not made with a key of the provider.")


def _may_sign(key: Mapping[str, Any], kid: object) -> bool:
    return key.get("kty") in PUBLIC and key.get("use", "sig") == "sig" and kid in (None, key.get("kid"))


def _is_later(moment: object) -> bool:
    return isinstance(moment, int | float) and moment > time.time() - CLOCKS_DIFFER_S


def _text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 255 and value.isprintable()
