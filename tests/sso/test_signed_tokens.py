"""ID tokens and logout tokens: required claims, and signatures."""

import time
from typing import Any

import orjson
import pytest
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS

from sso.signed_tokens import LOGOUT, TokenInvalid, UnknownKey, id_token, logout_token

ISSUER, CLIENT, NONCE = "https://id.example.com", "gateway", "nonce-1"
KEY = JWK.generate(kty="EC", crv="P-256", kid="one", use="sig", alg="ES256")
OTHER = JWK.generate(kty="EC", crv="P-256", kid="one", use="sig", alg="ES256")
KEYS = [KEY.export_public(as_dict=True)]
EXPECTED = {"issuer": ISSUER, "client_id": CLIENT}


def signed(claims: dict[str, Any], key: JWK = KEY, **header: Any) -> str:
    token = JWS(orjson.dumps(claims))
    token.allowed_algs = ["ES256", "HS256"]
    token.add_signature(key, None, orjson.dumps({"alg": "ES256", "kid": "one"} | header).decode())
    return str(token.serialize(compact=True))


def of(**changed: Any) -> dict[str, Any]:
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": CLIENT, "sub": "mia", "iat": now, "exp": now + 60, "nonce": NONCE} | changed
    return {name: value for name, value in claims.items() if value is not None}


def test_tokens_signed_for_us_are_accepted() -> None:
    assert id_token(signed(of(aud=["other", CLIENT], azp=CLIENT)), KEYS, **EXPECTED, nonce=NONCE)["sub"] == "mia"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"iss": "https://evil.example.com"}, "another issuer"),
        ({"aud": "other"}, "another client"),
        ({"aud": None}, "another client"),
        ({"azp": "other"}, "another client"),
        ({"nonce": None}, "nonce"),
        ({"exp": 1}, "expired"),
        ({"exp": None}, "expired"),
        ({"iat": 4_102_444_800}, "future"),  # In the year 2100.
        ({"sub": ""}, "sub"),
        ({"sub": 7}, "sub"),
        ({"sub": "mi\u200ba"}, "sub"),
    ],
)
def test_an_id_token_that_says_something_else_is_not(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(TokenInvalid, match=words):
        id_token(signed(of(**changed)), KEYS, **EXPECTED, nonce=NONCE)


def test_a_token_that_somebody_else_or_nobody_or_a_shared_secret_signed_is_not_believed() -> None:
    with pytest.raises(TokenInvalid, match="signature"):
        id_token(signed(of(), OTHER), KEYS, **EXPECTED, nonce=NONCE)
    with pytest.raises(UnknownKey):
        id_token(signed(of(), OTHER, kid="two"), KEYS, **EXPECTED, nonce=NONCE)
    claims = signed(of()).split(".")[1]
    shared = JWK.from_password("the-client-secret-of-this-workspace")
    for token in (f"eyJhbGciOiJub25lIn0.{claims}.", signed(of(), shared, alg="HS256"), "not.a.token", ""):
        with pytest.raises(TokenInvalid):
            id_token(token, [*KEYS, shared.export(as_dict=True)], **EXPECTED, nonce=NONCE)


def ending(**changed: Any) -> dict[str, Any]:
    return of(**{"nonce": None, "jti": "once", "events": {LOGOUT: {}}} | changed)


def test_a_logout_token_names_a_person_or_a_session() -> None:
    assert logout_token(signed(ending()), KEYS, **EXPECTED)["sub"] == "mia"
    assert logout_token(signed(ending(sub=None, sid="s1")), KEYS, **EXPECTED)["sid"] == "s1"


@pytest.mark.parametrize(
    "changed",
    [{"events": {}}, {"nonce": NONCE}, {"sub": None}, {"jti": None}, {"iat": 1}, {"exp": 1}, {"aud": "other"}],
)
def test_an_id_token_or_an_old_token_ends_no_session(changed: dict[str, Any]) -> None:
    with pytest.raises(TokenInvalid):
        logout_token(signed(ending(**changed)), KEYS, **EXPECTED)


def test_a_logout_token_in_another_form_than_the_compact_one_is_refused_and_is_no_error_of_ours() -> None:
    compact = signed(ending())
    head, payload, signature = compact.split(".")
    flat = orjson.dumps({"protected": head, "payload": payload, "signature": signature}).decode()
    several = orjson.dumps(
        {"payload": payload, "signatures": [{"protected": head, "signature": signature}] * 2}
    ).decode()

    for token in (
        flat,
        several,
        "{}",
        f"{compact}\n",
        f" {compact}",
        f"{head}..{signature}",
        f"IFtd.{payload}.{signature}",
    ):
        with pytest.raises(TokenInvalid):
            logout_token(token, KEYS, **EXPECTED)
