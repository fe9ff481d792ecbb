"""Apps register themselves: real clients' requests are accepted, and risky requests are refused."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import time_machine
from django.test import Client
from oauth2_provider.models import AccessToken, Application

from accounts.models import Attempt
from oauth.client_metadata import BadRedirect, check_redirect_uri, origins
from oauth.models import Registration

pytestmark = pytest.mark.django_db

BOTH = ["authorization_code", "refresh_token"]
REAL: dict[str, dict[str, Any]] = {
    "Claude Code": {"redirect_uris": ["http://localhost:54321/callback"], "token_endpoint_auth_method": "none"},
    "Claude": {
        "redirect_uris": ["https://claude.ai/api/mcp/auth_callback"],
        "scope": "claudeai",
        "token_endpoint_auth_method": "client_secret_post",
    },
    "ChatGPT": {"redirect_uris": ["https://chatgpt.com/connector/oauth/abc"]},
    "Cursor": {
        "redirect_uris": [
            "cursor://anysphere.cursor-mcp/oauth/callback",
            "https://www.cursor.com/agents/mcp/oauth/callback",
            "http://localhost:8787/callback",
        ],
        "token_endpoint_auth_method": "none",
    },
    "Visual Studio Code": {
        "redirect_uris": [
            "https://vscode.dev/redirect",
            "https://insiders.vscode.dev/redirect",
            "http://127.0.0.1/",
            "http://127.0.0.1:33418/",
        ],
        "grant_types": [*BOTH, "urn:ietf:params:oauth:grant-type:device_code"],
        "token_endpoint_auth_method": "none",
        "application_type": "native",
    },
    "MCP CLI Proxy": {
        "redirect_uris": ["http://localhost:13802/oauth/callback"],
        "client_uri": "https://github.com/modelcontextprotocol/mcp-cli",
        "software_id": "2e6dc280-f3c3-4e01-99a7-8181dbd1d23d",
        "software_version": "0.15.1",
        "token_endpoint_auth_method": "none",
    },
    "MCP Inspector": {
        "redirect_uris": ["http://localhost:6274/oauth/callback", "http://localhost:6274/oauth/callback/debug"],
        "token_endpoint_auth_method": "none",
    },
}


def register(body: Any) -> Any:
    text = body if isinstance(body, str | bytes) else json.dumps(body)
    return Client().post("/oauth/register", text, content_type="application/json")


def test_bodies_of_real_clients_are_accepted(subtests: pytest.Subtests) -> None:
    for name, body in REAL.items():
        with subtests.test(name):
            response = register({"client_name": name, "grant_types": BOTH, "response_types": ["code"]} | body)

            said = response.json()
            assert response.status_code == 201
            assert said["client_name"] == name
            assert said["redirect_uris"] == body["redirect_uris"]
            assert said["grant_types"] == BOTH
            assert (said["response_types"], said["scope"]) == (["code"], "mcp")
            assert said["token_endpoint_auth_method"] == body.get("token_endpoint_auth_method", "client_secret_basic")
            assert said["registration_client_uri"] == f"http://localhost:8000/oauth/register/{said['client_id']}"
            assert ("client_secret" in said) == (said["token_endpoint_auth_method"] != "none")
            assert response["Cache-Control"] == "no-store"
            stored = Application.objects.get(client_id=said["client_id"])
            assert said.get("client_secret", "-") not in stored.client_secret
            assert said["registration_access_token"] not in str(AccessToken.objects.values())


def test_a_registration_remembers_what_the_app_said_of_itself() -> None:
    register({"client_name": "  A\n\tname\x00 ", **REAL["MCP CLI Proxy"]})

    remembered = Registration.objects.get()
    assert remembered.client_name == "A name"
    assert remembered.software_version == "0.15.1"
    assert remembered.registration_ip == "127.0.0.1"
    assert remembered.host is None


DANGEROUS = (
    "http://evil.example/cb",
    "http://127.0.0.1.evil.example/cb",
    "http://127.0.0.1@evil.example/cb",
    "https://user:pass@good.example/cb",
    "https://good.example/cb#fragment",
    "https://good.example/cb#",
    "javascript:alert(1)",
    "data:text/html,x",
    "file:///etc/passwd",
    "myapp://cb",
    "https:///cb",
    "/relative",
    "",
    "https://good.example/c b",
    "https://good.example:port/cb",
    "http://0.0.0.0/cb",
    "http://2130706433/cb",
    "https://x/" + "a" * 2000,
)


def test_a_dangerous_redirect_address_is_refused(subtests: pytest.Subtests) -> None:
    for uri in DANGEROUS:
        with subtests.test(uri[:50]):
            response = register({"client_name": "X", "redirect_uris": [uri]})

            assert response.status_code == 400
            assert response.json()["error"] == "invalid_redirect_uri"
    for safe in ("http://[::1]:8080/cb", "http://localhost/", "https://a.example/", "vscode://x/y"):
        check_redirect_uri(safe)
    with pytest.raises(BadRedirect, match=r"http://evil\.example/cb"):
        check_redirect_uri(DANGEROUS[0])
    assert not Application.objects.exists()


def test_a_broken_registration_is_answered_in_plain_words(subtests: pytest.Subtests) -> None:
    bodies: list[Any] = [
        *("", "no json", "[]", "null", "{" + " " * 70_000 + "}"),
        {},
        {"redirect_uris": "http://localhost/"},
        {"redirect_uris": []},
        {"redirect_uris": [1]},
        {"redirect_uris": ["http://localhost/"] * 21},
        {"redirect_uris": ["http://localhost/"], "grant_types": ["client_credentials"]},
        {"redirect_uris": ["http://localhost/"], "grant_types": "authorization_code"},
        {"redirect_uris": ["http://localhost/"], "token_endpoint_auth_method": "private_key_jwt"},
    ]
    for body in bodies:
        with subtests.test(str(body)[:50]):
            response = register(body)

            assert response.status_code == 400
            assert response.json()["error"] in {"invalid_client_metadata", "invalid_redirect_uri"}
            assert response.json()["error_description"]


def test_a_flood_of_registrations_is_throttled() -> None:
    """Attack: a flood of registrations. An address may register 60 apps per minute."""
    with time_machine.travel(datetime(2026, 3, 2, 12, 0, 15, tzinfo=UTC), tick=False):
        assert register(REAL["Cursor"]).status_code == 201
        Attempt.objects.update(count=59)
        assert register(REAL["Cursor"]).status_code == 201
        refused = register(REAL["Cursor"])

    assert (refused.status_code, refused["Retry-After"]) == (429, "45")


def test_an_app_reads_and_deletes_its_own_registration_and_changes_nothing() -> None:
    """Changed redirect URIs would bypass our checks, so an app must register again to change them (RFC 7592)."""
    said = register({"client_name": "X", **REAL["Claude Code"]}).json()
    path = said["registration_client_uri"].removeprefix("http://localhost:8000")
    proof = {"Authorization": f"Bearer {said['registration_access_token']}"}

    changed = Client().put(path, json.dumps({"redirect_uris": ["http://evil/"]}), "application/json", headers=proof)
    assert Client().get(path, headers=proof).status_code == 200
    assert changed.status_code == 405
    assert Client().delete(path).status_code in {401, 403}
    assert Client().delete(path, headers=proof).status_code == 204
    assert not Application.objects.exists()


def test_a_deleted_client_is_told_with_401() -> None:
    """Claude registers again only after a 401 with the error `invalid_client`."""
    body = {"grant_type": "refresh_token", "refresh_token": "x", "client_id": "gone"}

    response = Client().post("/oauth/token", body)

    assert (response.status_code, response.json()["error"]) == (401, "invalid_client")


def test_ports_of_the_loopback_address_are_no_part_of_an_origin() -> None:
    assert origins(["http://127.0.0.1:1/a", "http://127.0.0.1:2/b", "https://X.example:8443/cb", "cursor://a/b"]) == [
        "cursor://",
        "http://127.0.0.1",
        "https://x.example:8443",
    ]
