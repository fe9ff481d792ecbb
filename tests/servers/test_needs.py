"""The gateway finds the authentication that a server requires, wherever the server and its issuer publish it."""

from typing import Any

import pytest
from pytest_django import Settings

from servers.models import AuthType
from servers.oauth_client.discovery import discover_sign_in
from tests import upstreams
from tests.conftest import Run
from tests.issuers import PRM, Issuer

pytestmark = pytest.mark.usefixtures("loopback_is_allowed")

INSERTED, OPENID = "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"


PLACES = {
    "as it says": Issuer(),
    "for its path": Issuer(challenge=False),
    "at the root": Issuer(challenge=False, prm_paths=(PRM,)),
    "elsewhere": Issuer(prm_paths=("/elsewhere/prm",)),
    "none: it is its own issuer": Issuer(challenge=False, prm_paths=()),
}


@pytest.mark.full
def test_the_issuer_is_found_wherever_the_server_says_it(run: Run, subtests: pytest.Subtests) -> None:
    for place, issuer in PLACES.items():
        with subtests.test(place):
            upstream = run(issuer.app())
            needs = discover_sign_in(upstream.url)
            assert (needs.auth_type, needs.problem) == (AuthType.OAUTH, "")
            assert needs.issuer == upstream.url.removesuffix("/mcp")
            assert needs.registrations == ("dynamic", "manual")


@pytest.mark.full
def test_an_issuer_with_a_path_describes_itself_at_one_of_three_places(run: Run, subtests: pytest.Subtests) -> None:
    for path in (f"{INSERTED}/realm", f"{OPENID}/realm", f"/realm{OPENID}"):
        with subtests.test(path):
            issuer = Issuer(metadata_paths=(path,))
            name = run(issuer.app()).url.replace("/mcp", "/realm")
            issuer.prm = {"authorization_servers": [name]}
            issuer.metadata = {"issuer": name}
            assert discover_sign_in(name.replace("/realm", "/mcp")).issuer == name


INCONSISTENT: tuple[tuple[dict[str, Any], dict[str, Any], str], ...] = (
    ({"resource": "https://evil.example.com/mcp"}, {}, "are for another URL"),
    ({"resource": "https://["}, {}, "are for another URL"),
    ({}, {"issuer": "https://evil.example.com"}, "metadata of another issuer"),
    ({"authorization_servers": ["ftp://issuer"]}, {}, "not an https:// URL"),
    ({}, {"code_challenge_methods_supported": ["plain"]}, "PKCE with S256"),
    ({}, {"token_endpoint": "javascript:alert(1)"}, "no usable token endpoint"),
    ({}, {"token_endpoint": f"https://a.example/{'x' * 500}"}, "no usable token endpoint"),
    ({"authorization_servers": ["http://10.0.0.1"]}, {}, "may not be called"),
    ({"authorization_servers": ["http://169.254.169.254"]}, {}, "may not be called"),
)


@pytest.mark.full
def test_inconsistent_metadata_are_not_trusted(run: Run, subtests: pytest.Subtests) -> None:
    for prm, metadata, problem in INCONSISTENT:
        with subtests.test(problem):
            needs = discover_sign_in(run(Issuer(prm=prm, metadata=metadata).app()).url)
            assert needs.metadata is None
            assert problem in needs.problem


def test_a_server_needs_a_key_or_nothing_and_no_forbidden_address_is_called(settings: Settings, run: Run) -> None:
    assert discover_sign_in(run(upstreams.github()).url).auth_type == AuthType.BEARER
    assert discover_sign_in(run(upstreams.docs()).url).auth_type == AuthType.NONE

    settings.PRIVATE_UPSTREAMS = []

    assert "may not be called" in discover_sign_in(run(Issuer().app()).url).problem
