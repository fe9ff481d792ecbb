"""Random requests to the OAuth endpoints get a 4xx error, never a 500."""

import base64
import json
import random
from typing import Any

import pytest
from django.test import Client

from accounts.models import Attempt, User
from gateways.models import Gateway
from tests.oauth.apps import App, browser, connect, register

pytestmark = pytest.mark.django_db

DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
UNKNOWN = [
    DEVICE,
    "urn:ietf:params:oauth:grant-type:jwt-bearer",
    "urn:ietf:params:oauth:grant-type:token-exchange",
    "password",
    "client_credentials",
    "implicit",
    "Authorization_Code",
    "x" * 3000,
    "",
]
VALUES = [
    "", " ", "x", "\x00", "%00", "%", "é\u202e", "\ud7ff", "\U0001f600", "x" * 4000, "1e999", "null", "[]", "{}",
    "a=b&c",
    "https://[", "http://a:99999/", "//", "..", "' OR 1=1", "\r\nX: y", DEVICE, "code", "S256", "none", "S256 plain",
]  # fmt: skip
NAMES = [
    "grant_type", "client_id", "client_secret", "code", "code_verifier", "redirect_uri", "refresh_token", "resource",
    "scope", "device_code", "username", "password", "assertion", "client_assertion", "client_assertion_type", "token",
    "token_type_hint", "response_type", "response_mode", "state", "code_challenge", "code_challenge_method", "prompt",
    "nonce", "claims", "request", "request_uri", "max_age", "approval_prompt", "subject_token", "audience",
]  # fmt: skip
HEADERS = ["", "Basic", "Basic Og==", "Basic !!", "Bearer x", "Digest x", "Basic " + "A" * 3000, "\u00e9"]
TYPES = [
    "application/x-www-form-urlencoded", "application/json", "multipart/form-data; boundary=x", "text/plain", "x", "",
    "application/x-www-form-urlencoded; charset=utf-16", "application/x-www-form-urlencoded; charset=nonsense",
    "multipart/form-data",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lift the rate limits, because the test sends many requests."""
    monkeypatch.setattr(type(Attempt.objects), "note", lambda *_, **__: 1)


def is_refused(response: Any) -> bool:
    told = response.json()
    return 400 <= response.status_code < 500 and isinstance(told["error"], str)


def test_a_grant_there_is_none_of_is_unsupported(app: App) -> None:
    for grant in UNKNOWN:
        for more in ({"client_id": app.client_id, "device_code": "x"}, {"client_id": "nobody", "scope": "mcp"}, {}):
            response = Client().post("/oauth/token", {"grant_type": grant, "username": "a", "password": "b"} | more)

            expected = {"unsupported_grant_type"} if grant else {"unsupported_grant_type", "invalid_request"}
            assert (response.status_code, response["Cache-Control"]) == (400, "no-store"), (grant, more)
            assert response.json()["error"] in expected, (grant, more)


def form(chance: random.Random, good: dict[str, str]) -> list[tuple[str, str]]:
    """Return a valid form with a few fields changed, doubled, left out or added."""
    pairs = list(good.items())
    for _ in range(chance.randint(1, 4)):
        name, value = chance.choice(NAMES), chance.choice(VALUES)
        match chance.randrange(3):
            case 0:
                pairs = [pair for pair in pairs if pair[0] != name]
            case 1:
                pairs = [(key, value if key == name else was) for key, was in pairs]
            case _:
                pairs.append((name, value))
    return pairs


def encoded(pairs: list[tuple[str, str]], chance: random.Random) -> bytes:
    """Return the body, sometimes with bytes that are not text."""
    body = b"&".join(f"{name}=".encode() + value.encode("utf-8", "surrogatepass") for name, value in pairs)
    return body + chance.choice([b"", b"", b"", b"\xff\xfe", b"&%ff=%fe", b"&=", b"&" * 50, b";"])


@pytest.mark.full
def test_no_token_or_revocation_request_is_an_error_of_ours(app: App) -> None:
    chance = random.Random(0)
    known = {"client_id": app.client_id, "grant_type": "refresh_token", "refresh_token": "x", "token": "x"}
    code = {
        "client_id": app.client_id,
        "grant_type": "authorization_code",
        "code": "x",
        "code_verifier": "x" * 43,
        "redirect_uri": app.redirect_uri,
    }
    for _ in range(200):
        body = encoded(form(chance, chance.choice([known, code, {}])), chance)
        kind, said = chance.choice([TYPES[0], TYPES[0], *TYPES]), chance.choice(HEADERS)
        headers = {"Authorization": said} if said else {}
        for path in ("/oauth/token", "/token"):
            response = Client().generic("POST", path, body, content_type=kind, headers=headers)
            assert is_refused(response), (path, kind, said, body)
        gone = Client().generic("POST", "/oauth/revoke", body, content_type=kind, headers=headers)
        assert gone.status_code == 200 or is_refused(gone), (kind, said, body)


@pytest.mark.full
def test_a_query_or_a_method_that_is_none_is_refused_everywhere(app: App, member: User, gateway: Gateway) -> None:
    """A malformed query gets 400; otherwise a link could fill the error log with 500s."""
    for query in ("%", "a=%zz", "a=%0", "%00=a"):
        for somebody in (Client(), browser(member)):
            for path in ("/oauth/authorize", "/authorize"):
                assert somebody.get(f"{path}?client_id={app.client_id}&{query}").status_code == 400
        for path in ("/oauth/token", "/token", "/oauth/revoke"):
            assert is_refused(Client().post(f"{path}?{query}", {"grant_type": "refresh_token", "token": "x"}))
    for method in ("GET", "PUT", "PATCH", "DELETE", "HEAD", "TRACE"):
        for path in ("/oauth/token", "/oauth/revoke", "/oauth/register"):
            assert Client().generic(method, path).status_code == 405


@pytest.mark.full
@pytest.mark.parametrize("seed", [0, 1])
def test_no_authorize_request_is_an_error_of_ours(app: App, member: User, gateway: Gateway, seed: int) -> None:
    chance = random.Random(seed)
    if seed % 2:
        connect(app, member, gateway)  # For a connected app, errors redirect to the app.
    signed_in, stranger = browser(member), Client()
    good = {
        "response_type": "code",
        "client_id": app.client_id,
        "redirect_uri": app.redirect_uri,
        "state": "x",
        "code_challenge": "x" * 43,
        "code_challenge_method": "S256",
        "resource": gateway.url,
    }
    for _ in range(100):
        query = encoded(form(chance, good), chance)
        for somebody in (signed_in, stranger):
            response = somebody.generic("GET", "/oauth/authorize", QUERY_STRING=query.decode("latin-1"))
            assert response.status_code in {302, 400}, query


@pytest.mark.full
def test_no_registration_is_an_error_of_ours() -> None:
    chance = random.Random(0)
    odd: list[Any] = [None, True, 0, -1, 1e308, "", "x", "\x00", "\ud800", "x" * 3000]
    odd += [[], [[]], [None], {}, {"a": {}}, [{}]]
    names = ["redirect_uris", "client_name", "grant_types", "response_types", "token_endpoint_auth_method", "scope",
             "client_uri", "logo_uri", "contacts", "jwks", "jwks_uri", "software_id", "software_version"]  # fmt: skip
    for _ in range(200):
        said: dict[str, Any] = {"redirect_uris": ["http://127.0.0.1/cb"], "client_name": "Fuzz"}
        for _ in range(chance.randint(1, 3)):
            said[chance.choice(names)] = chance.choice(odd)
        response = register(**said)
        assert response.status_code == 201 or is_refused(response), said
    for body in (b"", b"[]", b"\xff", b"{", b"[" * 5000, b'{"redirect_uris": NaN}', json.dumps("x").encode()):
        assert is_refused(Client().post("/oauth/register", body, content_type="application/json"))


@pytest.mark.full
def test_no_request_about_a_registration_is_an_error_of_ours(app: App) -> None:
    basic = "Basic " + base64.b64encode(f"{app.client_id}:x".encode()).decode()
    for method in ("GET", "DELETE", "PUT", "POST"):
        for client_id in (app.client_id, "nobody", "%00", "x" * 3000, "%ff"):
            for said in ("Bearer x", "Bearer", "Bearer \u00e9", basic, "x" * 3000):
                response = Client().generic(method, f"/oauth/register/{client_id}", headers={"Authorization": said})
                assert 400 <= response.status_code < 500, (method, client_id, said)
