"""A server's metadata cannot choose which host names the outbound proxy resolves.

From metadata, the proxy gets only host names that an administrator entered or that the operator listed exactly. Here
all host names resolve to a private address, and the proxy connects all of them to one server.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pytest_django import Settings

from accounts.models import User
from capabilities import Capability
from gateways.models import Gateway, IdentityScheme
from proxy.refresh import NotRenewed
from servers.models import AuthType, Server
from servers.oauth_client.discovery import needs_of
from servers.oauth_client.models import ClientRegistration, Grant
from servers.oauth_client.registration import (
    NotRegistered,
    redirect_uri,
    refresh_identity,
    registration_for,
)
from sso.errors import ProviderDown
from sso.models import Provider
from sso.oidc import read_provider_keys, read_provider_metadata
from tests import make, upstreams
from tests.asgi_server import App, Receive, Scope, Send, answer, headers_of, read
from tests.authority import certificate
from tests.eventually import eventually
from tests.forward_proxy import ForwardProxy, forward_proxy, internet
from tests.issuers import destination, query
from tests.oauth.apps import browser
from tests.proxy.conftest import Start, sql
from tests.wire.test_forward_proxy import leads
from wire import forward_proxy as ways_out
from wire.forward_proxy import OutboundProxy, places
from wire.guard import tls

OURS, INSIDE, LISTED = "mcp.example.test", "inside.example.test", "id.listed.test"
NEXT = "/settings/identities"
ENDPOINTS = ("authorization", "token", "registration", "revocation", "userinfo")

pytestmark = pytest.mark.django_db(transaction=True)


@dataclass
class Elsewhere:
    """The server at OURS, and each host that its metadata names. `at` has the host names of issuer and endpoints."""

    at: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def app(self) -> App:
        docs = upstreams.under_any_name(upstreams.docs(stateless=True))

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await docs(scope, receive, send)
                return
            host, path = headers_of(scope)["host"], scope["path"]
            self.asked.append(f"{host}{path}")
            if path == "/mcp":
                if headers_of(scope).get("authorization", "").startswith("Bearer access"):
                    await docs(scope, receive, send)
                else:
                    await answer(send, 401, b"{}", headers=[(b"www-authenticate", b"Bearer")])
                return
            await read(receive)
            said = self.said(host, path)
            kind = [(b"content-type", b"application/json")]
            await answer(send, 404 if said is None else 200, json.dumps(said).encode(), headers=kind)

        return serve

    def said(self, host: str, path: str) -> dict[str, Any] | None:  # noqa: PLR0911  (a table)
        issuer = f"https://{self.at.get('issuer', OURS)}"
        match path.removesuffix("/mcp"):
            case "/.well-known/oauth-protected-resource":
                return {"resource": f"https://{OURS}/mcp", "authorization_servers": [issuer]}
            case "/.well-known/oauth-authorization-server" | "/.well-known/openid-configuration":
                home = f"https://{host}"
                places = {f"{name}_endpoint": f"https://{self.at.get(name, host)}/{name}" for name in ENDPOINTS}
                keys = f"https://{self.at.get('keys', host)}/keys"
                return {"issuer": home, "jwks_uri": keys, "code_challenge_methods_supported": ["S256"], **places}
            case "/registration":
                return {"client_id": "us", "token_endpoint_auth_method": "none"}
            case "/token":
                return {"access_token": "access", "token_type": "bearer", "expires_in": 3600, "refresh_token": "again"}
            case "/userinfo":
                return {"sub": "1", "email": "ann@example.com"}
            case "/revocation":
                return {}
        return None


@pytest.fixture
def elsewhere() -> Elsewhere:
    return Elsewhere()


@pytest.fixture
def way(
    elsewhere: Elsewhere, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ForwardProxy]:
    """The outbound proxy; the operator lets it resolve the domain `example.test` and the host LISTED."""
    for name in (OURS, INSIDE, LISTED):
        leads(monkeypatch, name, "10.0.0.5")
    context = certificate(tmp_path / "end.pem", OURS, INSIDE, LISTED)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "end.pem"))
    tls.cache_clear()
    ways_out._logged_at.clear()
    with (
        upstreams.running(elsewhere.app()) as upstream,
        internet(upstream.port, context) as port,
        forward_proxy(port) as proxy,
    ):
        settings.PRIVATE_UPSTREAMS = []
        settings.OUTBOUND_PROXY = OutboundProxy("127.0.0.1", proxy.port, resolved=places(["example.test", LISTED]))
        yield proxy
    tls.cache_clear()


@pytest.fixture
def ana(transactional_db: None) -> User:
    return make.user(*Capability, email="ana@example.com")


@pytest.fixture
def server(way: ForwardProxy) -> Server:
    made = make.server(slug="far", name="Far", url=f"https://{OURS}/mcp", auth_type=AuthType.OAUTH, private=False)
    make.assignment(make.gateway(slug="work"), made, identity_scheme=IdentityScheme.PER_USER)
    return made


def sign_in(ana: User) -> Any:
    """Return the response to a person who returns from the issuer."""
    client = browser(ana)
    there = query(destination(client.post("/servers/far/authenticate/", {"next": NEXT})))
    back = there["redirect_uri"].partition("://")[2]
    return client.get(back[back.index("/") :], {"state": there["state"], "code": "a-code"})


def test_an_issuer_below_a_listed_domain_is_looked_up_and_checked(
    server: Server, elsewhere: Elsewhere, way: ForwardProxy
) -> None:
    elsewhere.at = {"issuer": INSIDE}

    needs = needs_of(server)

    assert needs.metadata is None
    assert f"https://{INSIDE}/" in needs.problem
    assert "may not be called" in needs.problem
    assert set(way.asked) == {f"{OURS}:443"}


@pytest.mark.full
@pytest.mark.parametrize("issuer", [OURS, LISTED])
def test_an_issuer_at_the_host_of_its_server_or_at_one_that_is_listed_itself_is_told_by_name(
    issuer: str, server: Server, elsewhere: Elsewhere, way: ForwardProxy, ana: User
) -> None:
    elsewhere.at = {"issuer": issuer}

    assert sign_in(ana).status_code == 302

    grant = Grant.objects.get()
    assert grant.token_endpoint == f"https://{issuer}/token"
    refresh_identity(grant.identity)
    grant.identity.revoke(by=ana)
    assert eventually(lambda: f"{issuer}/revocation" in elsewhere.asked)
    assert set(way.asked) == {f"{OURS}:443", f"{issuer}:443"}


@pytest.mark.full
@pytest.mark.parametrize("name", ["registration", "token", "userinfo"])
def test_no_endpoint_that_an_issuer_names_at_another_host_is_told_by_name(
    name: str, server: Server, elsewhere: Elsewhere, way: ForwardProxy, ana: User
) -> None:
    elsewhere.at = {name: INSIDE}

    if name == "registration":
        with pytest.raises(NotRegistered, match="may not be called"):
            registration_for(server, needs_of(server).metadata, "", by=ana)  # type: ignore[arg-type]
    elif name == "token":
        assert "may not be called" in sign_in(ana).content.decode()
    else:
        assert sign_in(ana).status_code == 302, "who it is, is not needed"

    assert set(way.asked) == {f"{OURS}:443"}


@pytest.mark.full
def test_endpoints_that_an_administrator_entered_are_told_by_name(
    server: Server, elsewhere: Elsewhere, way: ForwardProxy, ana: User
) -> None:
    for name in ("authorization", "token", "revocation"):
        setattr(server, f"{name}_endpoint", f"https://{INSIDE}/{name}")
    server.save()
    metadata = needs_of(server).metadata
    assert metadata is not None
    ClientRegistration.objects.create(
        issuer=metadata.issuer,
        server=server,
        kind="manual",
        client_id="us",
        auth_method="none",
        token_endpoint=server.token_endpoint,
        revocation_endpoint=server.revocation_endpoint,
        redirect_uri=redirect_uri(metadata.issuer, *server.endpoints[1:]),
    )

    assert sign_in(ana).status_code == 302
    refresh_identity(Grant.objects.get().identity)

    assert elsewhere.asked.count(f"{INSIDE}/token") == 2
    assert f"{INSIDE}:443" in way.asked


@pytest.mark.full
@pytest.mark.parametrize(("host", "renewed"), [(OURS, True), (INSIDE, False)])
def test_a_token_is_renewed_for_a_call_at_a_name_that_was_entered_and_at_no_other(
    host: str,
    renewed: bool,
    server: Server,
    elsewhere: Elsewhere,
    way: ForwardProxy,
    ana: User,
    start: Start,
    settings: Settings,
) -> None:
    proxy = start(outbound_proxy=settings.OUTBOUND_PROXY, private_upstreams=())
    agent = proxy.agent(make.connection(make.agent(by=ana), Gateway.objects.get(), ana))
    assert sign_in(ana).status_code == 302
    sql("UPDATE upstream_oauth_grant SET token_endpoint = %s", f"https://{host}/token")
    sql("UPDATE servers_identity SET expires_at = now() - interval '1 s', renew_at = now()")
    before = len(elsewhere.asked)

    answered = agent.call("far__add", {"a": 1, "b": 2}).json()

    assert ("result" in answered) is renewed, answered
    assert (f"{OURS}/token" in elsewhere.asked[before:]) is renewed
    assert f"{INSIDE}:443" not in way.asked
    if not renewed:
        with pytest.raises(NotRenewed):
            refresh_identity(Grant.objects.get().identity)
        assert f"{INSIDE}:443" not in way.asked


def test_hosts_named_by_an_identity_provider_are_resolved_and_checked(elsewhere: Elsewhere, way: ForwardProxy) -> None:
    provider, elsewhere.at = Provider(issuer=f"https://{OURS}", private=False), {"keys": INSIDE}

    with pytest.raises(ProviderDown, match="/keys may not be called"):
        read_provider_keys(provider, read_provider_metadata(provider))

    assert set(way.asked) == {f"{OURS}:443"}
