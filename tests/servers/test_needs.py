"""The authentication a server requires is discovered from all documents in which servers and issuers state it."""

from typing import Any

import pytest
from pytest_django import Settings

from servers.models import AuthType
from servers.oauth_client.discovery import discover_sign_in
from tests import upstreams
from tests.conftest import Run
from tests.issuers import PRM, Issuer

pytestmark = pytest.mark.usefixtures("loopback_is_allowed")

INSERTED = "/.well-known/oauth-authorization-server"


@pytest.mark.full
@pytest.mark.parametrize(
    "issuer",
    [
        Issuer(),
        Issuer(challenge=False),
        Issuer(challenge=False, prm_paths=(PRM,)),
        Issuer(prm_paths=("/elsewhere/prm",)),
        Issuer(challenge=False, prm_paths=()),
    ],
    ids=["as it says", "for its path", "at the root", "elsewhere", "none: it is its own issuer"],
)
def test_the_issuer_is_found_wherever_the_server_says_it(issuer: Issuer, run: Run) -> None:
    upstream = run(issuer.app())

    needs = discover_sign_in(upstream.url)

    assert (needs.auth_type, needs.problem) == (AuthType.OAUTH, "")
    assert needs.issuer == upstream.url.removesuffix("/mcp")
    assert needs.registrations == ("dynamic", "manual")


@pytest.mark.full
@pytest.mark.parametrize(
    "path", [f"{INSERTED}/realm", "/.well-known/openid-configuration/realm", "/realm/.well-known/openid-configuration"]
)
def test_an_issuer_with_a_path_describes_itself_at_one_of_three_places(path: str, run: Run) -> None:
    issuer = Issuer(metadata_paths=(path,))
    upstream = run(issuer.app())
    name = upstream.url.replace("/mcp", "/realm")
    issuer.prm = {"authorization_servers": [name]}
    issuer.metadata = {"issuer": name}

    assert discover_sign_in(upstream.url).issuer == name


@pytest.mark.full
@pytest.mark.parametrize(
    ("prm", "metadata", "problem"),
    [
        ({"resource": "https://evil.example.com/mcp"}, {}, "are for another URL"),
        ({}, {"issuer": "https://evil.example.com"}, "metadata of another issuer"),
        ({"authorization_servers": ["ftp://issuer"]}, {}, "not an https:// URL"),
        ({}, {"code_challenge_methods_supported": ["plain"]}, "PKCE with S256"),
        ({}, {"token_endpoint": "javascript:alert(1)"}, "no usable token endpoint"),
        ({"authorization_servers": ["http://10.0.0.1"]}, {}, "may not be called"),
        ({"authorization_servers": ["http://169.254.169.254"]}, {}, "may not be called"),
    ],
)
def test_inconsistent_metadata_are_not_trusted(
    prm: dict[str, Any], metadata: dict[str, Any], problem: str, run: Run
) -> None:
    needs = discover_sign_in(run(Issuer(prm=prm, metadata=metadata).app()).url)

    assert needs.metadata is None
    assert problem in needs.problem


def test_a_server_that_wants_a_key_and_names_no_issuer_needs_a_key(run: Run) -> None:
    assert discover_sign_in(run(upstreams.github()).url).auth_type == AuthType.BEARER


def test_an_open_server_needs_nothing(run: Run) -> None:
    assert discover_sign_in(run(upstreams.docs()).url).auth_type == AuthType.NONE


def test_a_metadata_address_that_may_not_be_called_is_not_called(settings: Settings, run: Run) -> None:
    settings.PRIVATE_UPSTREAMS = []

    assert "may not be called" in discover_sign_in(run(Issuer().app()).url).problem
