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


def test_there_is_no_document_for_what_is_no_gateway() -> None:
    """A document for the whole origin would make tokens valid for every gateway."""
    for path in ("/mcp/unknown", "", "/mcp", "/mcp/a/b", "/other"):
        assert Client().get(f"/.well-known/oauth-protected-resource{path}").status_code == 404, path
    assert Client().get(f"{SERVER}/zzz").status_code == 404


def test_allowed_origins_and_no_others_need_no_authentication_for_a_preflight_and_read_errors(settings: Any) -> None:
    settings.ALLOWED_ORIGINS = [ALLOWED]

    for path in (SERVER, "/oauth/token", "/oauth/register", "/oauth/revoke"):
        response = Client().options(path, headers={"Origin": ALLOWED, "Access-Control-Request-Method": "POST"})
        assert response.status_code == 204, path
        assert response["Access-Control-Allow-Origin"] == ALLOWED
        assert "POST" in response["Access-Control-Allow-Methods"]
        assert "Access-Control-Allow-Credentials" not in response
    mine, other = (
        Client().post("/oauth/token", {"grant_type": "password"}, headers={"Origin": origin})
        for origin in (ALLOWED, "http://evil.example")
    )
    assert mine["Access-Control-Allow-Origin"] == ALLOWED
    assert "Access-Control-Allow-Origin" not in other


def test_older_clients_find_the_endpoints_at_the_root_and_the_toolkits_own_pages_are_not_there() -> None:
    for path in ("/token", "/register"):
        assert Client().post(path).status_code in {400, 401}
    for path in ("/oauth/introspect", "/oauth/applications/", "/oauth/device", "/o/token/"):
        assert Client().post(path).status_code in {302, 404}
