"""The MCP conformance suite against the authorization server."""

import re

import httpx
import pytest

from tests.clients.apps import Desktop
from tests.clients.fixtures import MODULES
from tests.clients.person import Person
from tests.workspace import Serve, free_port

pytestmark = pytest.mark.full


def test_conformance_authorization_passes(live: Serve, desktop: Desktop, owner: Person) -> None:
    port = free_port()
    redirect = f"http://127.0.0.1:{port}/callback"
    said = {"client_name": "Conformance", "redirect_uris": [redirect], "token_endpoint_auth_method": "none"}
    client_id = httpx.post(f"{live.url}/oauth/register", json=said).json()["client_id"]
    asked = ["--url", live.url, "--client-id", client_id, "--resource", f"{live.url}/mcp/quickstart", "-p", str(port)]

    with desktop.app([str(MODULES / ".bin" / "conformance"), "authorization", *asked]) as suite:
        owner.allow(suite.wait_for(rf"{re.escape(live.url)}/oauth/authorize\S+"))
        report = suite.ended()

    assert re.search(r"Total: [1-9]\d* passed, 0 failed", report), report
    for scenario in ("authorization-server-metadata-endpoint", "authorization-code-grant"):
        assert re.search(rf"✓ {scenario}: [1-9]\d* passed, 0 failed", report), report
