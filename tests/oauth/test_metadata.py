"""Clients discover the gateway by metadata documents that agree with each other."""

from typing import Any

import pytest
from django.test import Client

from tests import make

pytestmark = pytest.mark.django_db

SERVER = "/.well-known/oauth-authorization-server"
ALLOWED = "http://localhost:6274"


def test_the_issuer_is_the_public_url_in_every_document() -> None:
    gateway = make.gateway()
    server = Client().get(SERVER).json()
    resource = Client().get(f"/.well-known/oauth-protected-resource/mcp/{gateway.slug}").json()

    assert server["issuer"] == "http://localhost:8000"
    assert resource["authorization_servers"] == [server["issuer"]]
    assert resource["resource"] == gateway.url
    assert resource["scopes_supported"] == server["scopes_supported"] == ["mcp"]


def test_documents_name_the_public_address_behind_a_proxy(settings: Any) -> None:
    """The documents name the https public URL, although the proxied request has another host and scheme."""
    settings.PUBLIC_URL = "https://gateway.example.com"
    gateway = make.gateway()

    resource = Client().get(f"/.well-known/oauth-protected-resource/mcp/{gateway.slug}").json()

    assert resource["resource"] == f"https://gateway.example.com/mcp/{gateway.slug}"
    assert resource["authorization_servers"] == ["https://gateway.example.com"]


def test_only_what_is_served_is_promised() -> None:
    server = Client().get(SERVER).json()

    assert server["code_challenge_methods_supported"] == ["S256"]
    assert server["response_types_supported"] == ["code"]
    assert server["grant_types_supported"] == ["authorization_code", "refresh_token"]
    assert "none" in server["token_endpoint_auth_methods_supported"]
    assert server["authorization_response_iss_parameter_supported"] is True
    assert server["client_id_metadata_document_supported"] is True
    for name in ("token", "registration", "revocation"):
        path = server[f"{name}_endpoint"].removeprefix("http://localhost:8000")
        assert Client().post(path).status_code in {400, 401}


@pytest.mark.parametrize("path", ["/mcp/unknown", "", "/mcp", "/mcp/a/b", "/other"])
def test_there_is_no_document_for_what_is_no_gateway(path: str) -> None:
    """Metadata of the whole origin would make tokens valid for every gateway."""
    assert Client().get(f"/.well-known/oauth-protected-resource{path}").status_code == 404


def test_the_server_document_is_not_reflected_under_other_paths() -> None:
    assert Client().get(f"{SERVER}/zzz").status_code == 404


@pytest.mark.parametrize("path", [SERVER, "/oauth/token", "/oauth/register", "/oauth/revoke"])
def test_a_preflight_needs_no_authentication(settings: Any, path: str) -> None:
    settings.ALLOWED_ORIGINS = [ALLOWED]

    response = Client().options(path, headers={"Origin": ALLOWED, "Access-Control-Request-Method": "POST"})

    assert response.status_code == 204
    assert response["Access-Control-Allow-Origin"] == ALLOWED
    assert "POST" in response["Access-Control-Allow-Methods"]
    assert "Access-Control-Allow-Credentials" not in response


def test_errors_can_be_read_by_allowed_origins_and_by_no_other(settings: Any) -> None:
    settings.ALLOWED_ORIGINS = [ALLOWED]

    mine = Client().post("/oauth/token", {"grant_type": "password"}, headers={"Origin": ALLOWED})
    other = Client().post("/oauth/token", {"grant_type": "password"}, headers={"Origin": "http://evil.example"})

    assert mine["Access-Control-Allow-Origin"] == ALLOWED
    assert "Access-Control-Allow-Origin" not in other


@pytest.mark.parametrize("path", ["/token", "/register"])
def test_older_clients_find_the_endpoints_at_the_root(path: str) -> None:
    assert Client().post(path).status_code in {400, 401}


@pytest.mark.parametrize("grant_type", ["password", "client_credentials", "implicit", ""])
def test_other_grants_are_refused_as_json(grant_type: str) -> None:
    response = Client().post("/oauth/token", {"grant_type": grant_type, "client_id": "x"})

    assert response.status_code in {400, 401}
    assert response["Content-Type"] == "application/json"
    assert response["Cache-Control"] == "no-store"
    assert response.json()["error"]


def test_introspection_and_the_toolkits_own_pages_are_not_there() -> None:
    for path in ("/oauth/introspect", "/oauth/applications/", "/oauth/device", "/o/token/"):
        assert Client().post(path).status_code in {302, 404}
