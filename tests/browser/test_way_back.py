"""The redirect back into an app, in a real browser under our content security policy, for each kind of URI."""

import re
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.fixtures import Trouble
from tests.clients.person import answer_in
from tests.oauth.pkce import challenge_of, new_verifier
from tests.workspace import Serve, free_port

pytestmark = pytest.mark.full

APP = "Way back"
ARRIVED = '<link rel="icon" href="data:,"><h1>Arrived</h1>'


def question(live: Serve, redirect_uri: str) -> str:
    """Return the authorization URL of an app with this redirect URI."""
    said = {"client_name": APP, "redirect_uris": [redirect_uri], "token_endpoint_auth_method": "none"}
    client_id = httpx.post(f"{live.url}/oauth/register", json=said).json()["client_id"]
    asked = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": redirect_uri,
        "state": "a state & more",
        "code_challenge": challenge_of(new_verifier()),
        "code_challenge_method": "S256",
        "resource": f"{live.url}/mcp/quickstart",
    }
    return str(httpx.URL(f"{live.url}/oauth/authorize", params=asked))


def decide(page: Page, asked: str, decision: str) -> None:
    page.goto(asked)
    page.get_by_role("button", name="Next").click()
    page.get_by_role("button", name=decision, exact=True).click()


@pytest.mark.parametrize("decision", ["Allow", "Deny"])
@pytest.mark.parametrize("address", ["https://app.example.com/cb?kept=1", "http://localhost:{port}/callback"])
def test_the_browser_is_led_back(live: Serve, page: Page, trouble: Trouble, address: str, decision: str) -> None:
    trouble.expected = {"Transition was aborted"}  # Chromium logs this when a page is left during its transition.
    redirect_uri = address.format(port=free_port())
    landing = redirect_uri.partition("?")[0]
    arrived: list[str] = []

    def land(route: Route) -> None:
        arrived.append(route.request.url)
        route.fulfill(body=ARRIVED, content_type="text/html")

    page.route(f"{landing}**", land)

    decide(page, question(live, redirect_uri), decision)

    expect(page.get_by_role("heading", name="Arrived")).to_be_visible()
    answer = answer_in(arrived[0])
    assert answer["iss"] == live.url
    assert answer["state"] == "a state & more"
    assert answer.get("kept", "1") == "1"
    assert ("code" in answer, answer.get("error")) == (
        (True, None) if decision == "Allow" else (False, "access_denied")
    )


@pytest.mark.parametrize("scheme", ["cursor", "vscode", "vscode-insiders"])
def test_an_app_with_a_scheme_of_its_own_is_called(live: Serve, page: Page, trouble: Trouble, scheme: str) -> None:
    """The browser cannot open the app, because none is installed here. The page keeps a link to the app."""
    trouble.expected = {"does not have a registered handler"}
    decide(page, question(live, f"{scheme}://anysphere.cursor-mcp/oauth/callback"), "Allow")

    link = page.get_by_role("link", name=f"Back to {APP}")
    expect(link).to_have_attribute("href", re.compile(rf"^{scheme}://anysphere\.cursor-mcp/oauth/callback\?"))
    answer = answer_in(link.get_attribute("href") or "")
    assert {"code", "state", "iss"} <= set(answer)
    assert urlsplit(page.url).path.endswith("/allow/")
