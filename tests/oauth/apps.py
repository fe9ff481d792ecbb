"""A headed app, and a person who connects the app in a browser without scripts."""

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from django.test import Client

from accounts.models import User
from gateways.models import Gateway
from tests.oauth.pkce import challenge_of, new_verifier

CALLBACK = "http://127.0.0.1:33418/callback"


@dataclass
class App:
    """A registered client with a PKCE verifier."""

    client_id: str
    verifier: str = field(default_factory=new_verifier)
    redirect_uri: str = CALLBACK

    def question(self, gateway: Gateway | None, **more: Any) -> str:
        asked = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": self.redirect_uri,
            "state": "xyz",
            "code_challenge": challenge_of(self.verifier),
            "code_challenge_method": "S256",
        }
        if gateway:
            asked["resource"] = gateway.url
        kept = {name: value for name, value in (asked | more).items() if value is not None}
        return f"/oauth/authorize?{urlencode(kept)}"

    def exchange_form(self, code: str) -> dict[str, str]:
        """Return the form that exchanges this code for tokens."""
        return {
            "grant_type": "authorization_code",
            "code": code,
            "client_id": self.client_id,
            "redirect_uri": self.redirect_uri,
            "code_verifier": self.verifier,
        }

    def exchange(self, code: str, **more: Any) -> Any:
        return Client().post("/oauth/token", self.exchange_form(code) | more)

    def refresh(self, refresh_token: str, **more: Any) -> Any:
        body = {"grant_type": "refresh_token", "refresh_token": refresh_token, "client_id": self.client_id}
        return Client().post("/oauth/token", body | more)


def register(**said: Any) -> Any:
    body = {
        "client_name": "Claude Desktop",
        "redirect_uris": [CALLBACK],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": "none",
    } | said
    return Client().post("/oauth/register", json.dumps(body), content_type="application/json")


def browser(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def decide(client: Client, question: str, decision: str = "allow") -> dict[str, str]:
    """Go through the flow as a person does; return the parameters of the redirect to the app."""
    begun = client.get(question)
    assert begun.status_code == 302, begun.content
    gateway_page = begun["Location"]
    context = client.get(gateway_page).context
    chosen = context["chosen"] or context["offered"][0][0]
    consent = client.post(gateway_page, {"gateway": chosen.slug})["Location"]
    page = client.get(consent)
    assert b"Allow" in page.content
    sent = client.post(consent, {"decision": decision})
    assert sent.status_code == 200
    url = sent["Refresh"].removeprefix("0; url=")
    answer = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    return answer | {"to": url.partition("?")[0]}


def connect(app: App, user: User, gateway: Gateway) -> dict[str, Any]:
    """Go through the whole flow; return the token response."""
    answer = decide(browser(user), app.question(gateway))
    response = app.exchange(answer["code"])
    assert response.status_code == 200, response.content
    tokens: dict[str, Any] = response.json()
    return tokens
