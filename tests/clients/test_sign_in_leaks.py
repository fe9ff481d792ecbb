"""After successful, refused and broken sign-ins, no secret is stored or shown in plain text."""

import json
from collections.abc import Iterator
from secrets import token_urlsafe
from urllib.parse import urlsplit

import httpx
import pytest
from mcp.shared.auth import OAuthClientInformationFull

from tests import curl, secrecy, upstreams
from tests.clients.person import FORM_TOKEN, Person
from tests.eventually import eventually
from tests.issuers import Issuer, consent, query
from tests.make import unique
from tests.workspace import Serve

pytestmark = pytest.mark.full

ROWS = """
import json
from accounts.models import User, WorkspaceSettings
from tests import make

WorkspaceSettings.load()
WorkspaceSettings.objects.update(record_payloads=True)
owner = User.objects.get(email="ana@example.com")
server = make.server(slug={name!r}[-16:], name={name!r}, url={url!r}, auth_type="oauth")
gateway = make.gateway(slug={name!r})
make.assignment(gateway, server, alias="forge", identity_scheme="per_user")
connection = make.connection(make.agent(by=owner), gateway, owner)
told = {{"slug": server.slug, "connection": str(connection.pk), "token": make.token(connection).secret}}
print(json.dumps(told))
"""
BROKEN = "ALTER TABLE upstream_oauth_grant {} CONSTRAINT nothing_fits"
EXPIRED = "UPDATE servers_identity SET expires_at = now() - interval '1 s', renew_at = now() WHERE issuer = %s"


class Life:
    """The sign-ins of one person at one server. The server's issuer records every secret that it issues."""

    def __init__(self, live: Serve, owner: Person, issuer: Issuer, url: str) -> None:
        self.live, self.http, self.issuer = live, owner.http, issuer
        self.name, self.origin = unique("forge"), url.removesuffix("/mcp")
        told = live.manage("shell", "--verbosity", "0", "-c", ROWS.format(name=self.name, url=url))
        self.told = json.loads(told.splitlines()[-1])
        self.noted: set[str] = {self.told["token"]}

    def note(self, secret: str) -> None:
        """Add a secret. This test searches rows and the log for it; the fixture `live` also searches the pages."""
        self.noted.add(secrecy.note(secret))

    def begin(self, path: str = "") -> str:
        """Start a sign-in, and return the URL at the issuer; note the URL's `state` as a secret."""
        path = path or f"/servers/{self.told['slug']}/authenticate/"
        page = self.http.get("/settings/profile")
        form = {"connection": self.told["connection"], "csrfmiddlewaretoken": secret_of_form(page)}
        begun = self.http.post(path, data=form)
        asked = begun.headers["Refresh"].removeprefix("0; url=")
        self.note(query(asked)["state"])
        return asked

    def back(self, path: str, status: int) -> None:
        if code := query(path).get("code"):
            self.note(code)
        assert self.http.get(path, follow_redirects=False).status_code == status

    def revoke(self, pk: object) -> None:
        headers = {"X-CSRFToken": secret_of_form(self.http.get("/settings/profile"))}
        assert self.http.post(f"/api/identities/{pk}/revoke", headers=headers).status_code == 200

    def call(self) -> curl.Answer:
        return curl.call_tool(f"{self.live.url}/mcp/{self.name}", self.told["token"], "forge__whoami")

    def expire(self) -> None:
        self.live.rows(EXPIRED, self.origin)

    def note_all(self) -> None:
        """Add all secrets that the issuer issued or received."""
        for given in (*self.issuer.access, *self.issuer.refresh, *self.issuer.revoked):
            self.note(given)
        for client in self.issuer.clients.values():
            if client.client_secret:
                self.note(client.client_secret)
        for form in self.issuer.forms:  # The PKCE verifier, sent with the authorization code.
            if "code_verifier" in form:
                self.note(form["code_verifier"])

    def enter_client(self, redirect_uri: str) -> None:
        """Enter a client registered by hand; the page refuses another issuer, and never shows the secret."""
        secret = f"entered-{token_urlsafe(24)}"
        self.note(secret)
        known = {"client_id": "entered", "client_secret": secret, "redirect_uris": [redirect_uri]}
        known |= {"token_endpoint_auth_method": "client_secret_post"}
        self.issuer.clients["entered"] = OAuthClientInformationFull.model_validate(known)
        form = {"csrfmiddlewaretoken": secret_of_form(self.http.get("/settings/profile"))}
        form |= {"client_id": "entered", "secret": secret, "issuer": self.origin}
        path = f"/servers/{self.told['slug']}/client/"
        refused = self.http.post(path, data=form | {"issuer": "https://evil.example.com"}, follow_redirects=False)
        assert refused.status_code == 422
        assert self.http.post(path, data=form, follow_redirects=False).status_code == 302
        assert secret not in self.http.get(path).text + refused.text


def secret_of_form(page: httpx.Response) -> str:
    found = FORM_TOKEN.search(page.text)
    assert found
    return found[1]


@pytest.fixture
def life(live: Serve, owner: Person) -> Iterator[Life]:
    issuer = Issuer()
    with upstreams.running(issuer.app()) as upstream:
        yield Life(live, owner, issuer, upstream.url)
    live.rows("UPDATE accounts_workspacesettings SET record_payloads = false")


def test_nothing_holds_in_clear_what_sign_ins_were_made_of(life: Life) -> None:
    issuer, live = life.issuer, life.live
    # Refused sign-ins: denied, another issuer's answer, an invalid state, no token, an error that quotes the request.
    asked = query(life.begin())
    life.back(f"{urlsplit(asked['redirect_uri']).path}?error=access_denied&state={asked['state']}", 400)
    life.back(f"{consent(life.begin())}&iss=https://evil.example.com", 400)
    life.back(consent(life.begin()).replace("state=", "state=x"), 400)
    issuer.answers["/token"] = (503, "text/html", "<html>Try again</html>")
    life.back(consent(life.begin()), 400)
    back = consent(life.begin())
    quoted = json.dumps({"error": "invalid_grant", "error_description": f"Unknown code {query(back)['code']}"})
    issuer.answers["/token"] = (400, "application/json", quoted)
    life.back(back, 400)
    issuer.answers.clear()
    # A broken sign-in: the tokens cannot be stored, and the database's error quotes the row.
    live.rows(f"{BROKEN.format('ADD')} CHECK (false) NOT VALID")
    try:
        life.back(consent(life.begin()), 500)
    finally:
        live.rows(BROKEN.format("DROP"))
    # A successful sign-in: called with payloads recorded, renewed, refused, signed in again, revoked.
    life.back(consent(life.begin()), 302)
    assert "Bearer access-" in life.call().text
    life.expire()
    assert "Bearer access-" in life.call().text
    life.note_all()
    issuer.refusal = "invalid_grant"
    life.expire()
    assert life.call().json["error"]["data"]["reason"] == "identity_sign_in"
    issuer.refusal = ""
    life.enter_client(asked["redirect_uri"])
    (row,) = live.rows("SELECT id FROM servers_identity WHERE issuer = %s", life.origin)
    life.back(consent(life.begin(f"/identities/{row['id']}/authenticate/")), 302)
    life.note_all()
    assert "Bearer access-" in life.call().text
    life.revoke(row["id"])
    eventually(lambda: len(issuer.revoked) >= 2)
    life.note_all()

    places = {"log": live.log(), **dict(secrecy.tables(live))}
    assert len(life.noted) > 15
    assert {place: found for place, text in places.items() if (found := secrecy.clear(text, life.noted))} == {}
