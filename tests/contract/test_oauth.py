"""OAuth of apps: token requests must match the authorization request, and codes and refresh tokens are single-use."""

import base64
import hashlib
import html
import secrets
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest

from tests.cases import full
from tests.contract.agents import Agent, text
from tests.contract.running import Workspace
from tests.contract.servers import Server
from tests.contract.web import Browser, new_client
from tests.contract.world import Place, new_place, unique

pytestmark = pytest.mark.full

CALLBACK, OTHER_CALLBACK = "http://127.0.0.1:33418/callback", "http://127.0.0.1:33418/other"


@dataclass
class App:
    """A client registered through the metadata of a gateway."""

    metadata: dict[str, Any]
    resource: str
    http: httpx.Client
    client_id: str
    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(48))

    @classmethod
    def registered(cls, gateway_url: str) -> "App":
        http = new_client()
        refused = http.post(gateway_url, json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
        where = refused.headers["www-authenticate"].partition('resource_metadata="')[2].partition('"')[0]
        resource = http.get(where).json()
        issuer = resource["authorization_servers"][0]
        metadata = http.get(f"{issuer}/.well-known/oauth-authorization-server").json()
        body = {
            "client_name": unique("App"),
            "redirect_uris": [CALLBACK, OTHER_CALLBACK],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": "none",
        }
        made = http.post(metadata["registration_endpoint"], json=body)
        assert made.status_code == 201, made.text
        return cls(metadata, resource["resource"], http, made.json()["client_id"])

    def code(self, browser: Browser, **changes: str) -> str:
        """Request access, allow it on the pages, and return the code."""
        challenge = base64.urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest()).rstrip(b"=").decode()
        asked = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": CALLBACK,
            "state": "xyz",
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            "resource": self.resource,
        }
        page = browser.http.get(f"{self.metadata['authorization_endpoint']}?{urlencode(asked | changes)}")
        for button in ("Next", "Allow"):
            page = browser.submit(page, button)
        back = html.unescape(page.headers["refresh"].partition("url=")[2])
        answer = {name: values[0] for name, values in parse_qs(urlsplit(back).query).items()}
        assert answer["state"] == "xyz"
        assert answer["iss"] == self.metadata["issuer"]
        return answer["code"]

    def exchange(self, code: str, **changes: str | list[str]) -> httpx.Response:
        body = {
            "grant_type": "authorization_code",
            "code": code,
            "client_id": self.client_id,
            "redirect_uri": CALLBACK,
            "code_verifier": self.verifier,
            "resource": self.resource,
        }
        return self.http.post(self.metadata["token_endpoint"], data=body | changes)

    def refresh(self, refresh_token: str) -> httpx.Response:
        body = {"grant_type": "refresh_token", "refresh_token": refresh_token, "client_id": self.client_id}
        return self.http.post(self.metadata["token_endpoint"], data=body)


@pytest.fixture
def app(place: Place) -> App:
    return App.registered(place.agent.url)


def agent_of(place: Place, granted: httpx.Response) -> Agent:
    assert granted.status_code == 200, granted.text
    return Agent(place.agent.url, granted.json()["access_token"])


def test_app_that_was_allowed_calls_at_its_gateway_and_at_no_other(
    workspace: Workspace, place: Place, app: App, server: Server
) -> None:
    other = new_place(workspace, server)

    agent = agent_of(place, app.exchange(app.code(place.owner)))

    assert text(agent.call("echo", text="x")) == "x"
    refused = agent.at(other.agent.url).call("echo", text="x")
    assert refused.status_code == 401
    assert other.gateway["slug"] in refused.headers["www-authenticate"]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("redirect_uri", OTHER_CALLBACK, "invalid_grant"),
        full(("redirect_uri", "https://evil.example/callback", "invalid_grant")),
        ("code_verifier", "x" * 64, "invalid_grant"),
        full(("code_verifier", "", "invalid_grant")),
        ("resource", "another gateway", "invalid_target"),
        full(("resource", "another gateway too", "invalid_target")),
        ("client_id", "another app", "invalid_grant"),
    ],
)
def test_token_request_has_to_be_of_the_authorization_request(
    workspace: Workspace, place: Place, app: App, server: Server, name: str, value: str, error: str
) -> None:
    given: str | list[str] = value
    if name == "resource":
        other = new_place(workspace, server).agent.url
        given = [app.resource, other] if value.endswith("too") else other
    if name == "client_id":
        given = App.registered(place.agent.url).client_id

    refused = app.exchange(app.code(place.owner), **{name: given})

    assert refused.status_code in {400, 401}, refused.text
    assert "access_token" not in refused.json()
    assert refused.json()["error"] in {error, "invalid_request", "invalid_client"}
    assert app.exchange(app.code(place.owner)).status_code == 200


def test_code_is_good_once_and_used_twice_ends_what_it_gave(place: Place, app: App) -> None:
    code = app.code(place.owner)
    first = app.exchange(code)
    agent = agent_of(place, first)
    assert text(agent.call("echo", text="x")) == "x"

    again = app.exchange(code)

    assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
    assert agent.call("echo", text="x").status_code == 401
    assert app.refresh(first.json()["refresh_token"]).status_code in {400, 401}


def test_refresh_token_used_again_ends_what_it_gave(workspace: Workspace, place: Place, app: App) -> None:
    first = app.exchange(app.code(place.owner)).json()["refresh_token"]
    refreshed = app.refresh(first)
    agent, second = agent_of(place, refreshed), refreshed.json()["refresh_token"]
    assert text(agent.call("echo", text="x")) == "x"
    # Simulate that the minute is over in which several processes of an app may reuse the first token.
    passes = "UPDATE oauth_binding SET superseded_at = superseded_at - interval '1 minute'"
    workspace.sql(
        f"{passes} FROM connections_connection c WHERE c.id = connection_id AND c.gateway_id = %s", place.gateway["id"]
    )

    again = app.refresh(first)

    assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
    assert agent.call("echo", text="x").status_code == 401
    assert app.refresh(second).status_code in {400, 401}


def test_regenerated_key_ends_the_tokens_of_an_app(place: Place, app: App) -> None:
    granted = app.exchange(app.code(place.owner))
    agent = agent_of(place, granted)
    assert text(agent.call("echo", text="x")) == "x"
    rows = place.owner.get("/connections", gateway=place.gateway["slug"], kind="headed")["results"]

    place.owner.post(f"/connections/{rows[0]['id']}/regenerate")

    assert agent.call("echo", text="x").status_code == 401


def test_person_has_to_allow_it(place: Place, app: App) -> None:
    challenge = base64.urlsafe_b64encode(hashlib.sha256(app.verifier.encode()).digest()).rstrip(b"=").decode()
    asked = {
        "response_type": "code",
        "client_id": app.client_id,
        "redirect_uri": "https://evil.example/callback",
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        "resource": app.resource,
    }
    page = place.owner.http.get(f"{app.metadata['authorization_endpoint']}?{urlencode(asked)}")

    assert (page.status_code, page.url.host) == (400, "localhost")
    asked["redirect_uri"] = CALLBACK
    for weaker in ({"code_challenge": ""}, {"code_challenge_method": "plain"}, {"code_challenge_method": ""}):
        refused = place.owner.http.get(f"{app.metadata['authorization_endpoint']}?{urlencode(asked | weaker)}")
        assert refused.status_code == 400, weaker
