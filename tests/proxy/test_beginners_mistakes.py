"""Beginners' mistakes: each error message says what to do.

Refused starts (a port in use, missing keys, an unknown setting) are in tests/running/test_refusals.py; interrupted
set-ups in tests/running/test_setup.py, concurrent starts in tests/running/test_start.py, and missing mail servers in
tests/accounts/test_mail.py.
"""

import re
from typing import Any

import httpx
import pytest
from django.test import Client

from accounts.models import User
from servers.models import AuthType, Server
from tests import make, upstreams
from tests.conftest import Run, SignIn
from tests.proxy.conftest import Proxy
from tests.proxy.test_endpoint import LIST, World, world_of
from tests.rest import Rest
from tests.workspace import free_port
from wire import token_text

HTMX = {"HX-Request": "true"}


@pytest.fixture
def world(proxy: Proxy, run: Run) -> World:
    return world_of(proxy, run)


def text(response: Any) -> str:
    return re.sub(r"\s+", " ", str(response.content.decode()))


# --- At the gateway: errors for the calling program -----------------------------------------------------------------


def asked(world: World, authorization: str | None, **more: str) -> httpx.Response:
    headers = more | ({} if authorization is None else {"Authorization": authorization})
    return httpx.post(world.agent.url, json=LIST, headers=headers, trust_env=False)


def advice(answer: httpx.Response) -> str:
    return answer.headers["www-authenticate"].partition('error_description="')[2].removesuffix('"')


def test_a_credential_that_lets_nobody_in_says_what_to_do_with_it(world: World) -> None:
    token = world.agent.secret
    for authorization, words in {
        f"Bearer Bearer {token}": "has the word Bearer twice",
        f'Bearer "{token}"': "in quotes or brackets. Remove them",
        f"Bearer <{token}>": "in quotes or brackets. Remove them",
        "Bearer <your-api-access-token>": "in quotes or brackets. Remove them",
        "Bearer $TOKEN": "the name of a variable, not its value",
        str(token): "Write the word Bearer and a space before the token.",
        f"Bearer {(token or '')[:30]}": "not a complete token of this gateway. Copy it again",
        f"Bearer {token_text.mint(token_text.PERSONAL)}": "an API key for the REST API. Use an API access token",
        f"Bearer {token_text.mint(token_text.ACCESS)}": "unknown, expired or revoked. Create a new one",
        "Bearer eyJhbGciOiJub25lIn0.e30.": "not a complete token of this gateway",
    }.items():
        answer = asked(world, authorization)
        assert (answer.status_code, words in advice(answer)) == (401, True), (authorization, advice(answer))
    assert asked(world, f"Bearer   {token}").status_code == 200


@pytest.mark.full
def test_a_wrong_path_says_what_a_gateway_url_looks_like(world: World) -> None:
    base = world.agent.url
    headers = {"Authorization": f"Bearer {world.agent.secret}"}
    for url in (base.removesuffix("/work"), f"{base}/sse", f"{base}/mcp", f"{base.removesuffix('/work')}//"):
        answer = httpx.post(url, json=LIST, headers=headers, trust_env=False)
        assert answer.status_code == 404, url
        assert "A gateway URL ends in /mcp/ and the slug of the gateway" in answer.json()["error"]["message"]
    assert httpx.post(f"{base}/", json=LIST, headers=headers, trust_env=False).status_code == 200


def test_a_program_at_a_page_is_told_what_a_gateway_url_looks_like() -> None:
    client = Client(enforce_csrf_checks=True)
    posted = [client.post(path, LIST, content_type="application/json") for path in ("/mcp", "/", "/gateways/work/")]

    for answer in (*posted, client.get("/sse", headers={"Accept": "text/event-stream"})):
        assert answer.status_code == 404
        assert "A gateway URL ends in /mcp/ and the slug of the gateway" in answer.json()["error"]["message"]
    assert "This page does not exist" in client.get("/mcp", headers={"Accept": "text/html"}).content.decode()


def test_a_gateway_opened_in_a_browser_says_what_it_is_for(world: World) -> None:
    page = httpx.get(world.agent.url, headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}, trust_env=False)

    assert page.headers["content-type"] == "text/plain; charset=utf-8"
    assert "It is for apps and agents, not for browsers." in page.text
    assert "https://gateway.example.com/connect/help/" in page.text


@pytest.mark.full
def test_a_request_of_a_wrong_form_says_which_form_is_right(world: World) -> None:
    token = {"Content-Type": "application/json", "Authorization": f"Bearer {world.agent.secret}"}
    for body, headers, status, words in (
        (b"hello", {}, 400, "not JSON"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "The Content-Type must be application/json"),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"}', {"Accept": "text/html"}, 406, "The Accept header must allow"),
        (b'{"id":1,"method":"ping"}', {}, 400, "must be a JSON-RPC 2.0 message"),
        (b"[]", {}, 400, "atch"),
    ):
        answer = httpx.post(world.agent.url, content=body, headers=token | headers, trust_env=False)
        assert (answer.status_code, words in answer.json()["error"]["message"]) == (status, True), answer.text


# --- At the REST API -------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_wrong_credential_at_the_api_says_which_one_it_takes(ana: User) -> None:
    token = make.token(make.connection(make.agent(by=ana), make.gateway(), ana)).secret
    for client, words in (
        (Rest.bearing(token), "API access tokens are for gateways and not accepted here. Use an API key (Settings, "),
        (Rest.bearing(f"Bearer {token}"), "Write the word Bearer once, then the API key."),
        (Rest.bearing(token_text.mint("gwp")), "unknown, expired or revoked"),
        (Rest.of(), "Send an API key in the header Authorization: Bearer KEY."),
    ):
        answer = client.get("/hosts")
        assert (answer.status_code in (401, 403), words in text(answer)) == (True, True), text(answer)


# --- Adding a server -------------------------------------------------------------------------------------------------


SERVER = {"name": "Docs", "auth_type": AuthType.NONE.value, "timeout_seconds": 5}


@pytest.mark.full
@pytest.mark.django_db
def test_a_url_that_cannot_be_one_says_what_it_should_be_on_page_and_api(
    ana: User, sign_in: SignIn, settings: Any, subtests: pytest.Subtests
) -> None:
    settings.PRIVATE_UPSTREAMS = []
    client, api = sign_in(ana), Rest.of(ana)
    for url, words in {
        "npx -y @modelcontextprotocol/server-github": "This is a command that starts a server on one computer (stdio)",
        '{"command": "npx", "args": []}': "This is a command that starts a server on one computer (stdio)",
        "docs server": "This is not a URL. A URL looks like https://mcp.example.com/mcp.",
        "mcp.example.com/mcp": "The URL must start with https://.",
        "https://": "The URL has no host.",
        "https://ann:secret@mcp.example.com/": "Leave credentials out of the URL; add them under Identities.",
        "https://no-such-name.invalid/mcp": "cannot be found. Check the spelling.",
        "https://10.0.0.5/mcp": "as in GATEWAY_PRIVATE_UPSTREAMS=10.0.0.5/32, and restarts the gateway",
        "http://8.8.8.8/mcp": "",
    }.items():
        with subtests.test(url):
            page = client.post("/servers/add/", SERVER | {"url": url})
            told = api.post("/servers", {"name": "Docs", "url": url, "auth_type": "none"})
            assert words in text(page).replace("&#x27;", "'")
            assert words in str(told.json())
            assert (page.status_code, told.status_code) == (422, 400)
    assert not Server.objects.filter(name="Docs").exists()


@pytest.mark.django_db
@pytest.mark.usefixtures("loopback_is_allowed")
def test_a_url_without_an_mcp_server_gets_advice(ana: User, sign_in: SignIn, run: Run) -> None:
    client = sign_in(ana)
    docs = run(upstreams.docs())
    for url, words in {
        f"http://127.0.0.1:{free_port()}/mcp": "refused the connection: nothing listens at the port; check the port",
        docs.url.replace("http://", "https://"): "does not speak TLS at this port",
        run(upstreams.garbage()).url: "answered, but not in MCP; check that the URL is that of its MCP endpoint",
        run(upstreams.garbage(b"", status=404)).url: "there is no MCP endpoint at this URL; it often ends in /mcp",
        run(upstreams.garbage(b"", status=400)).url: "answered 400; check that the URL is that of its MCP endpoint",
        run(upstreams.redirecting("https://example.com/login")).url: "redirects to https://example.com/login",
        run(upstreams.github()).url: "answered 401: it wants a credential. Choose its auth type.",
    }.items():
        page = text(client.post("/servers/add/", SERVER | {"url": url, "test": "1"}))
        assert words in page, (words, page[page.find("test-result") :][:400])
        assert "rrno" not in page


@pytest.mark.full
@pytest.mark.django_db
@pytest.mark.usefixtures("loopback_is_allowed")
def test_the_result_of_a_test_is_kept_when_the_server_is_added(ana: User, sign_in: SignIn, run: Run) -> None:
    client, values = sign_in(ana), SERVER | {"url": run(upstreams.docs()).url}

    client.post("/servers/add/", values | {"test": "1"})
    client.post("/servers/add/", values | {"url": f"  {values['url']}\n"})
    client.post("/servers/add/", values | {"name": "Untested", "url": run(upstreams.docs()).url})

    assert [server.health for server in Server.objects.order_by("name")] == ["ok", "unknown"]


# --- In the browser --------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_form_of_an_ended_session_leads_to_sign_in_and_of_another_says_to_reload(
    ana: User, sign_in: SignIn, settings: Any
) -> None:
    client = sign_in(ana)
    client.logout()

    assert client.post("/hosts/add/", {"name": "x"})["Location"] == "/accounts/login/?next=/hosts/add/&not_done=1"
    gone = client.post("/hosts/add/", {"name": "x"}, headers=HTMX | {"HX-Current-URL": "http://testserver/hosts/"})
    assert gone["HX-Redirect"] == "/accounts/login/?next=%2Fhosts%2F&not_done=1"

    stranger = Client(enforce_csrf_checks=True)
    stranger.force_login(ana)
    page = stranger.post("/hosts/add/", {"name": "x"})
    assert page.status_code == 403
    assert "This page was open for too long. Reload it" in text(page)

    settings.CSRF_COOKIE_SECURE, settings.PUBLIC_URL = True, "https://gateway.example.com"
    page = stranger.post("/hosts/add/", {"name": "x"}, headers={"Origin": "http://testserver"})
    assert "This page works only over https. Open https://gateway.example.com" in text(page)


@pytest.mark.full
@pytest.mark.django_db
def test_the_second_of_two_tabs_is_shown_what_the_first_one_saved(ana: User, sign_in: SignIn) -> None:
    host, client = make.agent(by=ana, name="Bot"), sign_in(ana)
    path = f"/hosts/{host.pk}/rename/"
    opened = re.search(r'name="version" value="([^"]+)"', text(client.get(path)))
    assert opened is not None
    client.post(path, {"name": "Mine", "description": "", "version": opened[1]})

    second = client.post(path, {"name": "Theirs", "description": "", "version": opened[1]})

    assert second.status_code == 422
    assert "Mine" in text(second)
