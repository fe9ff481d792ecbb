"""Failures of issuers: the person's page, the agent's error, and the log.

These failures were reported for clients of real servers. The real issuers in other tests do not fail in these ways, so
these tests use a scripted issuer.
"""

import html
import json
import re
from ipaddress import ip_network
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.test import Client
from pytest_django import Settings

from accounts.models import User
from auditlog.models import Call, Event
from gateways.models import Gateway, IdentityScheme
from servers.models import AuthType, Identity
from servers.oauth_client.models import ClientRegistration, Grant, SignIn
from tests import make, upstreams
from tests.asgi_server import App, read
from tests.asgi_server import answer as send_answer
from tests.conftest import Run
from tests.issuers import PRM, Issuer, consent, destination, query
from tests.oauth.apps import browser
from tests.proxy.conftest import Agent, Proxy, in_words, sql
from ui.sealing import cipher

pytestmark = pytest.mark.usefixtures("loopback_is_allowed")

NEXT = "/settings/identities"
HTML = "text/html"
JSON = "application/json"
OPENID = "/.well-known/openid-configuration"
METADATA = "/.well-known/oauth-authorization-server"


@pytest.fixture
def ann(transactional_db: None) -> User:
    return make.user(email="ann@example.com")


def begin(app: App, run: Run, person: User, name: str = "GitHub") -> tuple[Client, Any]:
    """Return a browser that starts a sign-in at this server, and the page it gets."""
    server = make.server(slug=name.lower(), name=name, url=run(app).url, auth_type=AuthType.OAUTH)
    make.assignment(make.gateway(), server, identity_scheme=IdentityScheme.PER_USER)
    client = browser(person)
    return client, again(client, name)


def again(client: Client, name: str = "GitHub") -> Any:
    return client.post(f"/servers/{name.lower()}/authenticate/", {"next": NEXT})


def signed_in(issuer: Issuer, proxy: Proxy, run: Run, person: User) -> Agent:
    """Return an agent of a person who has signed in at this issuer."""
    client, page = begin(issuer.app(), run, person)
    return finished(client, page, proxy, person)


def finished(client: Client, page: Any, proxy: Proxy, person: User) -> Agent:
    """Return an agent of a person who finishes the sign-in."""
    agent = proxy.agent(make.connection(make.agent(by=person), Gateway.objects.get(), person))
    assert client.get(consent(destination(page))).status_code == 302
    return agent


def end_tokens() -> None:
    sql("UPDATE servers_identity SET expires_at = now() - interval '1 s', renew_at = now()")
    sql("UPDATE upstream_oauth_grant SET retry_at = NULL")


def words(page: Any) -> str:
    """Return the text of a page."""
    found = re.search(r"<main.*?</main>", page.content.decode(), re.DOTALL)
    assert found
    return html.unescape(re.sub(r"\s*<[^>]+>\s*", " ", found[0]))


def failed(status: int, error: str, words: str = "") -> tuple[int, str, str]:
    """Return a refusal as issuers send it."""
    return status, JSON, json.dumps({"error": error, "error_description": words or error})


# --- Discovery of the issuer, and registration -----------------------------------------------------------------------


@pytest.mark.full
def test_metadata_are_found_at_fallback_addresses(run: Run, ann: User, subtests: pytest.Subtests) -> None:
    for number, (name, where, answer) in enumerate(
        (
            ("a shield", f"{PRM}/mcp", (403, HTML, "Blocked")),
            ("502", f"{PRM}/mcp", (502, HTML, "Bad gateway")),
            ("a redirect", f"{PRM}/mcp", (302, HTML, "http://10.0.0.5/")),
            ("a page", f"{PRM}/mcp", (200, HTML, "<html>Our app</html>")),
            ("no object", f"{PRM}/mcp", (200, JSON, "[]")),
            ("a shield before the issuer", METADATA, (403, HTML, "Blocked")),
        )
    ):
        with subtests.test(name):
            issuer = Issuer(challenge=False, prm_paths=(f"{PRM}/mcp", PRM), answers={where: answer})
            issuer.metadata_paths, issuer.metadata = (METADATA, OPENID), {"scopes_supported": []}
            _, page = begin(issuer.app(), run, ann, f"Server-{number}")
            assert "code_challenge" in query(destination(page))


REFUSED = "refused to register this gateway"
SEES_AT_BEGIN = {
    "the server is out of order": (Issuer(answers={f"{PRM}/mcp": (500, HTML, "")}), "answered 500. Try again later."),
    "the issuer is out of order": (Issuer(answers={METADATA: (503, HTML, "")}), "answered 503. Try again later."),
    "it describes another issuer": (
        Issuer(metadata={"issuer": "https://evil.example.com"}),
        "metadata of another issuer",
    ),
    "it is for another server": (Issuer(prm={"resource": "https://front.example.com/mcp"}), "are for another URL"),
    "it knows no proof of possession": (Issuer(metadata={"code_challenge_methods_supported": ["plain"]}), "PKCE"),
    "it takes no clients": (Issuer(metadata={"registration_endpoint": None}), "/upstream-oauth/callback/"),
    "it takes only clients it knows": (
        Issuer(answers={"/register": failed(403, "access_denied", "Unknown client name")}),
        f"{REFUSED} (403: Unknown client name). An administrator can register it there, with the redirect address",
    ),
    "it registers with a page": (Issuer(answers={"/register": (201, HTML, "Welcome")}), f"{REFUSED} (201: no reason)"),
    "it promises a secret and gives none": (
        Issuer(
            answers={"/register": (201, JSON, '{"client_id":"a","token_endpoint_auth_method":"client_secret_post"}')}
        ),
        "with an authentication method that the gateway cannot use (client_secret_post)",
    ),
    "it wants what no client here can": (
        Issuer(answers={"/register": (201, JSON, '{"client_id":"a","token_endpoint_auth_method":"private_key_jwt"}')}),
        "with an authentication method that the gateway cannot use (private_key_jwt)",
    ),
}


@pytest.mark.full
def test_one_who_cannot_begin_is_told_why_and_nothing_is_kept(
    run: Run, ann: User, caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
) -> None:
    for number, (name, (issuer, told)) in enumerate(SEES_AT_BEGIN.items()):
        with subtests.test(name):
            caplog.clear()
            _, page = begin(issuer.app(), run, ann, f"Server-{number}")
            assert page.status_code == 400
            assert told in words(page)
            logged = [str(vars(each).get("error")) for each in caplog.records if each.name.endswith(".views")]
            assert [told in error for error in logged] == [True]
    assert not SignIn.objects.exists()
    assert not ClientRegistration.objects.exists()


@pytest.mark.full
def test_a_server_that_wants_a_key_leads_nobody_to_an_issuer(run: Run, ann: User) -> None:
    _, page = begin(upstreams.github(), run, ann)

    assert "GitHub names no issuer to sign in at." in words(page)


@pytest.mark.full
def test_sign_ins_ask_for_the_scopes_that_the_server_names_and_for_lasting_access_where_it_is_offered(
    run: Run, ann: User
) -> None:
    for number, (app, scope) in enumerate(
        (
            (greeting(Issuer(scopes=("read",)).app(), 200), "read"),  # It greets everybody.
            (greeting(Issuer(scopes=("read",)).app(), 400), "read"),  # It knows the newer protocol only.
            (Issuer(metadata={"scopes_supported": ["offline_access"]}).app(), None),
            (Issuer(scopes=("read",), metadata={"scopes_supported": ["offline_access"]}).app(), "read offline_access"),
            (Issuer(scopes=("read",), metadata={"scopes_supported": ["read"]}).app(), "read"),
        )
    ):
        _, page = begin(app, run, ann, f"Server-{number}")
        assert query(destination(page)).get("scope") == scope, number


def greeting(app: App, status: int) -> App:
    """Return `app`, changed so that it answers `initialize` with `status` and does not require a token for it."""

    async def door(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/mcp":
            await app(scope, receive, send)
            return
        body = await read(receive)
        if b'"initialize"' in body:
            hello = {"jsonrpc": "2.0", "id": 1, "result": {"protocolVersion": "2025-11-25", "capabilities": {}}}
            headers = [(b"content-type", b"application/json"), (b"mcp-session-id", b"abc")]
            await send_answer(send, status, json.dumps(hello).encode(), headers=headers)
            return

        async def again() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        await app(scope, again, send)

    return door


# --- The redirect back -----------------------------------------------------------------------------------------------


def test_a_refusal_of_scopes_is_told_in_the_words_of_the_issuer(run: Run, ann: User) -> None:
    client, page = begin(Issuer().app(), run, ann)
    asked = query(destination(page))
    refusal = {"error": "invalid_scope", "error_description": "Unknown scope", "state": asked["state"]}

    back = client.get(urlsplit(asked["redirect_uri"]).path, refusal)

    assert "The issuer of GitHub answered with an error: Unknown scope." in words(back)


TOKEN = {"access_token": "access-of-the-form", "token_type": "bearer"}
SEES_AT_THE_END = {
    "an error that looks like success": ((200, JSON, '{"error":"bad_verification_code"}'), "bad_verification_code"),
    "an error in a form": ((200, "application/x-www-form-urlencoded", "error=bad_code"), "bad_code"),
    "a code that is not taken": (failed(400, "invalid_grant", "Code expired"), "Code expired"),
    "out of order": ((503, HTML, "<html>Try again</html>"), "issued no token: HTTP 503"),
    "too many requests": ((429, JSON, '{"error":"slow_down"}'), "issued no token: HTTP 429"),
    "a page": ((200, HTML, "<html>Welcome</html>"), "issued no token: HTTP 200 without a token"),
    "a token that fits no header": ((200, JSON, '{"access_token":"a\\nb"}'), "issued no token"),
    "a client that is forgotten": (failed(401, "invalid_client"), "invalid_client"),
}


@pytest.mark.full
def test_one_who_gets_no_token_is_told_why_and_has_no_identity(run: Run, ann: User, subtests: pytest.Subtests) -> None:
    issuer = Issuer()
    client, page = begin(issuer.app(), run, ann)
    for case, (answer, told) in SEES_AT_THE_END.items():
        with subtests.test(case):
            issuer.answers["/token"] = answer
            back = client.get(consent(destination(page)))
            assert back.status_code == 400
            assert told in words(back)
            assert not Identity.objects.exists()
            assert not SignIn.objects.exists()
            ended = ClientRegistration.objects.get().ended_at is not None
            assert ended == (case == "a client that is forgotten")
            page = again(client)


@pytest.mark.full
def test_tokens_are_read_in_the_forms_they_come_in(run: Run, ann: User, subtests: pytest.Subtests) -> None:
    form = "application/x-www-form-urlencoded"
    issuer = Issuer()
    begin(issuer.app(), run, ann)
    for case, kind, body, life in (
        ("a form", form, "access_token=access-of-the-form&token_type=bearer", None),
        ("seconds as text", JSON, json.dumps(TOKEN | {"token_type": "BEARER", "expires_in": "3600"}), 3600),
        ("ended at once", JSON, json.dumps(TOKEN | {"expires_in": 0}), 0),
        ("junk", JSON, json.dumps(TOKEN | {"expires_in": "soon"}), None),
        ("a user's token beside a bot's", JSON, json.dumps({"ok": True, "authed_user": TOKEN}), None),
    ):
        with subtests.test(case):
            issuer.answers["/token"] = (200, kind, body)
            person = make.user()
            client = browser(person)
            assert client.get(consent(destination(again(client)))).status_code == 302
            identity = Identity.objects.get(owner=person)
            assert cipher().open(bytes(identity.secret_ciphertext or b"")) == "access-of-the-form"
            lasts = identity.expires_at and round((identity.expires_at - identity.created_at).total_seconds(), -1)
            assert lasts == life


# --- Renewal ---------------------------------------------------------------------------------------------------------

UNAVAILABLE = in_words(
    'The credential for server "GitHub" cannot be renewed at the moment; try again soon.', "/settings/identities"
)
AGENT_GETS = {
    "no, in the right words": (failed(400, "invalid_grant"), "identity_sign_in", "refused"),
    "no, though it says 200": (failed(200, "invalid_grant"), "identity_sign_in", "refused"),
    "a client that is forgotten": (failed(401, "invalid_client"), "identity_sign_in", "client"),
    "a client that may not": (failed(400, "unauthorized_client"), "identity_sign_in", "client"),
    "no, in the wrong words": (failed(400, "invalid_request"), UNAVAILABLE, ""),
    "out of order": ((503, HTML, "<html>Try again</html>"), UNAVAILABLE, ""),
    "too many requests": (failed(429, "invalid_grant"), UNAVAILABLE, ""),
    "a page": ((200, HTML, "<html>Our app</html>"), UNAVAILABLE, ""),
    "a token that fits no header": ((200, JSON, '{"access_token":"a\\nb"}'), UNAVAILABLE, ""),
}


@pytest.mark.full
def test_an_agent_is_told_what_became_of_a_renewal_and_the_log_says_it(
    proxy: Proxy, run: Run, ann: User, subtests: pytest.Subtests
) -> None:
    issuer = Issuer()
    begin(issuer.app(), run, ann)
    for case, (answer, told, reason) in AGENT_GETS.items():
        with subtests.test(case):
            issuer.answers.clear()
            person = make.user()
            client = browser(person)
            agent = finished(client, again(client), proxy, person)
            end_tokens()
            issuer.answers["/token"] = answer
            _tells(agent, person, told, reason)


def _tells(agent: Agent, person: User, told: str, reason: str) -> None:
    response = agent.call("github__whoami")

    assert response.status_code == 200
    error = response.json()["error"]
    identity = Identity.objects.get(owner=person)
    row = Call.objects.latest("id")
    events = Event.objects.filter(action="identity.sign_in_needed", target_id=str(identity.pk))
    if reason:
        assert error["data"]["reason"] == told
        assert error["data"]["url"].split("#")[0].endswith(f"/settings/identities?connection={row.connection_id}")
        assert (identity.status, identity.sign_in_reason) == ("sign_in_needed", reason)
        changes = events.get().changes
        assert (changes["reason"], changes["owner"]) == ([None, reason], person.email)
        assert (row.outcome, row.deny_reason) == ("denied", told)
        assert identity.sign_in_words in html.unescape(browser(person).get(NEXT).content.decode())
    else:
        assert error["message"] == told
        assert identity.status == "active"
        assert not events.exists()
        assert row.outcome == "upstream_error"
        assert Grant.objects.get(identity=identity).refresh_ciphertext is not None
    assert (row.user_email, row.identity_id) == (person.email, identity.pk)
    assert "access-" not in response.text + str(row.__dict__)


@pytest.mark.full
def test_a_no_in_the_wrong_words_counts_after_it_has_come_three_times_without_an_outage_between(
    proxy: Proxy, run: Run, ann: User
) -> None:
    issuer = Issuer()
    agent = signed_in(issuer, proxy, run, ann)
    end_tokens()
    refusal, outage = failed(400, "invalid_request"), (503, HTML, "<html>Try again</html>")

    for first in (outage, outage, outage, refusal, refusal), (refusal, refusal, outage, refusal, refusal):
        for issuer.answers["/token"] in first:
            assert agent.call("github__whoami").json()["error"]["message"] == UNAVAILABLE
            sql("UPDATE upstream_oauth_grant SET retry_at = NULL")
        del issuer.answers["/token"]
        assert "result" in agent.call("github__whoami").json()
        end_tokens()
    issuer.answers["/token"] = refusal
    for _ in range(2):
        assert agent.call("github__whoami").json()["error"]["message"] == UNAVAILABLE
        sql("UPDATE upstream_oauth_grant SET retry_at = NULL")

    assert agent.call("github__whoami").json()["error"]["data"]["reason"] == "identity_sign_in"
    asked = issuer.asked.count("/token")
    assert agent.call("github__whoami").json()["error"]["data"]["reason"] == "identity_sign_in"
    assert issuer.asked.count("/token") == asked, "a dead grant was tried again"


# --- Addresses in the private network, or of other hosts --------------------------------------------------------------

INSIDE = (
    "http://169.254.169.254",
    "http://10.0.0.5",
    "http://127.0.0.2",
    "http://2130706434",
    "http://[::ffff:10.0.0.5]",
    "http://[::1]",
)
NOT_CALLED = "may not be called"


@pytest.fixture
def _one_address(loopback_is_allowed: None, settings: Settings) -> None:
    """Allow 127.0.0.1 as the only private address."""
    settings.PRIVATE_UPSTREAMS = [ip_network("127.0.0.1/32")]


def challenging(url: str) -> App:
    """Return a server whose challenge names this metadata URL."""

    async def door(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            said = f'Bearer resource_metadata="{url}"'
            await send_answer(send, 401, b"{}", headers=[(b"www-authenticate", said.encode())])
        else:
            await upstreams.garbage()(scope, receive, send)

    return door


@pytest.mark.full
@pytest.mark.usefixtures("_one_address")
def test_nothing_is_fetched_from_inside_before_a_sign_in(run: Run, ann: User, subtests: pytest.Subtests) -> None:
    first = INSIDE[0]
    apps = {f"metadata of the server at {inside}": challenging(f"{inside}/prm") for inside in INSIDE} | {
        "metadata of the issuer": Issuer(prm={"authorization_servers": [first]}).app(),
        "registration": Issuer(metadata={"registration_endpoint": f"{first}/register"}).app(),
    }
    for number, (name, app) in enumerate(apps.items()):
        with subtests.test(name):
            _, page = begin(app, run, ann, f"Server-{number}")
            assert page.status_code == 400
            assert NOT_CALLED in words(page)


@pytest.mark.usefixtures("_one_address")
def test_no_code_and_no_token_is_sent_inside(proxy: Proxy, run: Run, ann: User) -> None:
    issuer = Issuer()
    client, page = begin(issuer.app(), run, ann)
    agent = finished(client, page, proxy, ann)

    for inside in (INSIDE[0], INSIDE[-1]):
        issuer.metadata = {"token_endpoint": f"{inside}/token"}
        assert NOT_CALLED in words(client.get(consent(destination(again(client))))), inside
        sql("UPDATE upstream_oauth_grant SET token_endpoint = %s", f"{inside}/token")
        end_tokens()
        assert agent.call("github__whoami").json()["error"]["message"] == UNAVAILABLE, inside
    assert issuer.refreshes == 0


@pytest.mark.full
def test_no_redirect_is_followed_to_another_place(proxy: Proxy, run: Run, ann: User) -> None:
    trap, issuer = run(upstreams.docs()), Issuer()
    agent = signed_in(issuer, proxy, run, ann)
    end_tokens()
    issuer.answers["/token"] = (307, JSON, trap.url)
    assert agent.call("github__whoami").json()["error"]["message"] == UNAVAILABLE

    for number, path in enumerate((METADATA, "/register", "/token")):
        issuer = Issuer(answers={path: (307, JSON, f"{trap.url}/elsewhere")})
        client, page = begin(issuer.app(), run, ann, f"Server-{number}")
        if path == "/token":
            page = client.get(consent(destination(page)))
        assert page.status_code == 400, path

    issuer.answers.clear()
    sql("UPDATE servers_identity SET expires_at = NULL, renew_at = NULL")
    moved = run(upstreams.redirecting(trap.url))
    sql("UPDATE servers_server SET url = %s WHERE slug = 'github'", moved.url)
    assert "error" in agent.call("github__whoami").json()
    assert moved.seen
    assert trap.seen == []
