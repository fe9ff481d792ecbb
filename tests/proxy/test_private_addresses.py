"""A public server is never called in a private network, not even in a range that is allowed for private servers.

The owner of a name can change its address at any time (DNS rebinding). Here `localhost` is such a name: its server was
registered as public, but the name now resolves to an allowed private range.
"""

import asyncio
import socket
from ipaddress import ip_network
from typing import Any

import pytest
from django.test import Client
from pytest_django import Settings

from accounts.models import User
from auditlog.models import Call, Event
from capabilities import Capability
from gatewayadmin.serving.housekeeping import CHORES
from gateways.models import Gateway, IdentityScheme
from servers import discovery
from servers.models import AuthType, Server
from servers.oauth_client.discovery import AuthorizationServerMetadata, needs_of
from servers.oauth_client.models import ClientRegistration, SignIn
from servers.oauth_client.registration import NotRegistered, registration_for
from tests import make, upstreams
from tests.asgi_server import Upstream
from tests.conftest import Run
from tests.eventually import eventually
from tests.issuers import Issuer, consent, destination
from tests.oauth.apps import browser
from tests.proxy.conftest import Proxy, sql
from tests.rest import Rest
from wire.errors import AddressInside
from wire.guard import AddressRefused, Guard, LeadsInside
from wire.http import Transport

NEXT = "/settings/identities"
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


@pytest.fixture(autouse=True)
def _loopback(settings: Settings) -> None:
    settings.PRIVATE_UPSTREAMS = [*LOOPBACK]


@pytest.fixture
def ana(transactional_db: None) -> User:
    return make.user(*Capability, email="ana@example.com")


@pytest.fixture
def docs(run: Run) -> Upstream:
    return run(upstreams.docs())


def named(upstream: Upstream) -> str:
    """Return the server's URL with the host name `localhost` instead of the IP address."""
    return upstream.url.replace("127.0.0.1", "localhost")


# --- The rule ---------------------------------------------------------------------------------------------------------


def test_a_guard_for_public_servers_says_when_a_range_is_open_for_others() -> None:
    guard = Guard((ip_network("10.0.0.0/8"),))

    guard.check("10.0.0.5", encrypted=False)
    guard.outside().check("93.184.216.34")
    for encrypted in (True, False):
        with pytest.raises(LeadsInside):
            guard.outside().check("10.0.0.5", encrypted=encrypted)
    with pytest.raises(AddressRefused) as refused:
        guard.outside().check("192.168.1.1")
    assert not isinstance(refused.value, LeadsInside), "nobody may be there"


@pytest.mark.parametrize(
    ("addresses", "inside"),
    [(["10.0.0.5", "10.0.0.6"], True), (["10.0.0.5", "93.184.216.34"], False)],
    ids=["all inside", "one outside"],
)
def test_a_name_leads_inside_when_all_of_its_addresses_are_there(
    addresses: list[str], *, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in addresses]
    real = socket.getaddrinfo

    def look_up(host: str, *places: Any, **options: Any) -> Any:
        named = host == "mcp.example.com" and not options.get("flags")
        return found if named else real(host, *places, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    assert Guard((ip_network("10.0.0.0/8"),)).check_now("https://mcp.example.com/mcp") == inside


# --- The data plane ---------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_a_call_to_a_public_server_whose_name_leads_inside_is_refused_and_nothing_is_sent(
    proxy: Proxy, docs: Upstream, ana: User
) -> None:
    server = make.server(slug="docs", url=named(docs), private=True)
    agent = proxy.agent(make.connection(make.agent(by=ana), make.gateway(server, slug="work"), ana))
    assert "result" in agent.call("docs__search", query="x").json(), "one that is registered as private is called"
    seen = len(docs.seen)

    Server.objects.update(private=False)
    error = agent.call("docs__search", query="x").json()["error"]

    assert error["data"]["reason"] == "address_blocked"
    row = Call.objects.latest("id")
    assert row.outcome == "upstream_error"
    assert len(docs.seen) == seen, "over a connection that was kept of before"


def test_a_connection_of_a_private_server_serves_no_public_one(docs: Upstream) -> None:
    async def ask() -> None:
        async with Transport(Guard(LOOPBACK), limit=100_000) as transport:
            with await transport.send("GET", "docs", docs.url, {}, private=True) as response:
                await response.read()
            assert transport.idle == 1
            with pytest.raises(AddressInside):
                await transport.send("GET", "docs", docs.url, {}, private=False)

    asyncio.run(ask())


# --- Pages, the REST API and chores -----------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_test_of_the_connection_is_refused_too_and_says_what_to_do(docs: Upstream) -> None:
    server = make.server(slug="docs", url=named(docs), private=False)

    with pytest.raises(discovery.DiscoveryFailed) as refused:
        discovery.discover_features(server, None)
    assert refused.value.reason == "address_blocked"
    assert docs.seen == []

    server.private = True
    assert discovery.discover_features(server, None).tools


# --- Signing in -------------------------------------------------------------------------------------------------------


@pytest.fixture
def github(run: Run, issuer: Issuer, transactional_db: None) -> Server:
    upstream = run(issuer.app())
    server = make.server(slug="github", name="GitHub", url=upstream.url, auth_type=AuthType.OAUTH, private=True)
    make.assignment(make.gateway(slug="work"), server, identity_scheme=IdentityScheme.PER_USER)
    return server


def begin(client: Client) -> Any:
    return client.post("/servers/github/authenticate/", {"next": NEXT})


def test_a_public_server_is_not_asked_inside_what_it_wants(github: Server, issuer: Issuer) -> None:
    assert needs_of(github).metadata

    github.private = False
    asked = len(issuer.asked)

    assert "may not be called" in needs_of(github).problem
    assert len(issuer.asked) == asked


@pytest.mark.full
@pytest.mark.parametrize("name", ["registration", "token", "revocation", "renewal"])
def test_no_endpoint_that_a_public_server_led_to_is_called_inside(
    name: str, github: Server, issuer: Issuer, proxy: Proxy, ana: User, caplog: pytest.LogCaptureFixture
) -> None:
    origin = github.url.removesuffix("/mcp")
    client = browser(ana)
    if name == "registration":
        metadata = AuthorizationServerMetadata(
            origin, f"{origin}/authorize", f"{origin}/token", f"{origin}/register", private=False
        )
        with pytest.raises(NotRegistered, match="may not be called"):
            registration_for(github, metadata, "", by=ana)
        assert not ClientRegistration.objects.exists()
        return
    back = consent(destination(begin(client)))
    if name == "token":
        sign_in = SignIn.objects.get()
        SignIn.objects.update(endpoints=sign_in.endpoints | {"private": False})
        assert "may not be called" in client.get(back).content.decode()
        assert issuer.forms == []
        return
    agent = proxy.agent(make.connection(make.agent(by=ana), Gateway.objects.get(), ana))
    assert client.get(back).status_code == 302
    sql("UPDATE upstream_oauth_grant SET private = false")
    asked = len(issuer.asked)
    if name == "renewal":
        sql("UPDATE servers_identity SET expires_at = now() - interval '1 s', renew_at = now()")
        assert "cannot be renewed at the moment" in agent.call("github__whoami").json()["error"]["message"]
        assert issuer.refreshes == 0
    else:
        client.post(f"/identities/{github.identities.get().pk}/revoke/")
        assert eventually(lambda: "an ended grant could not be revoked at its issuer" in caplog.messages)
        assert "/revoke" not in issuer.asked[asked:]


# --- Who says that a server is private --------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.django_db
def test_a_server_is_private_when_its_name_led_inside_as_it_was_registered(ana: User, docs: Upstream) -> None:
    rest = Rest.of(ana)

    inside = rest.post("/servers", {"name": "Inside", "url": named(docs)}).json()
    outside = rest.post("/servers", {"name": "Outside", "url": "https://93.184.216.34/mcp"}).json()

    assert (inside["private"], outside["private"]) == (True, False)
    moved = rest.patch("/servers/outside", {"url": docs.url})
    assert moved.json()["private"], "its new address was looked at"
    assert rest.patch("/servers/outside", {"url": "https://93.184.216.34/mcp"}).json()["private"] is False


@pytest.mark.full
@pytest.mark.django_db
def test_a_server_that_was_moved_inside_is_called_there_when_an_administrator_says_so(
    ana: User, docs: Upstream
) -> None:
    server = make.server(slug="docs", name="Docs", url=named(docs), private=False)

    renamed = Rest.of(ana).patch("/servers/docs", {"name": "Documents"})
    assert renamed.json()["private"] is False, "nobody spoke of it"
    assert Rest.of(ana).patch("/servers/docs", {"private": True}).json()["private"]

    server.refresh_from_db()
    assert Event.objects.filter(action="server.updated").latest("pk").changes == {"private": [False, True]}
    assert discovery.discover_features(server, None).tools


@pytest.mark.django_db
def test_older_servers_work_until_their_address_is_determined(docs: Upstream) -> None:
    inside = make.server(slug="inside", url=named(docs))
    outside = make.server(slug="outside", url="https://93.184.216.34/mcp")
    nowhere = make.server(slug="nowhere", url="https://nowhere.invalid/mcp")
    assert discovery.discover_features(inside, None).tools

    CHORES["server_addresses"](inside.created_at)

    found = dict(Server.objects.values_list("slug", "private"))
    assert (found["inside"], found["outside"], found["nowhere"]) == (True, False, None)
    assert [outside.private, nowhere.private] == [None, None]
