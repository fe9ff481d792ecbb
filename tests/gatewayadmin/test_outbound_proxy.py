"""All outbound HTTP requests of Django use the proxy. Their addresses are checked, and their errors are clear."""

import json
from base64 import b64encode
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import requests
from django.urls import reverse
from pytest_django import Settings

from capabilities import Capability
from gatewayadmin.config import outbound as configured
from gatewayadmin.config.environment import Refused
from oauth import client_documents
from oauth.client_documents import UnreadableDocument as NoDocument
from proxy import tracing
from servers import well_known
from servers.discovery import DiscoveryFailed, probe
from servers.models import Health, Server
from servers.oauth_client.discovery import Http
from servers.upstream_guard import guard_for_strangers, upstream_guard
from sinks import archive
from sinks.models import Sink
from sinks.sending import send_test_line
from sso.errors import ProviderDown
from sso.models import Provider
from sso.oidc import fetch_provider_json
from tests import make, upstreams
from tests.asgi_server import App, Receive, Scope, Send, answer, read
from tests.authority import certificate
from tests.eventually import PATIENCE
from tests.forward_proxy import SECRET, USER_AND_SECRET, ForwardProxy, forward_proxy, internet
from tests.house.doors import browser, session_of
from tests.sinks.receiver import SECRET as SIGNING_SECRET
from wire import forward_proxy as ways_out
from wire.forward_proxy import OutboundProxy
from wire.guard import tls
from wire.outbound import NoAnswer

pytestmark = pytest.mark.django_db(transaction=True)

PUBLIC = "93.184.215.14"


def everything() -> App:
    """Return a server that speaks MCP at /mcp, and other protocols elsewhere."""
    docs = upstreams.under_any_name(upstreams.docs(stateless=True))

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] == "/mcp":
            await docs(scope, receive, send)
            return
        await read(receive)
        issuer = f"https://{PUBLIC}"
        said = {
            "issuer": issuer,
            "authorization_endpoint": f"{issuer}/authorize",
            "token_endpoint": f"{issuer}/token",
            "jwks_uri": f"{issuer}/keys",
            "client_id": f"{issuer}/client.json",
            "servers": [],
        }
        await answer(send, 200, json.dumps(said).encode())

    return serve


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A TLS server at a public address, reached through the proxy."""
    context = certificate(tmp_path / "end.pem", PUBLIC)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "end.pem"))
    tls.cache_clear()
    ways_out._logged_at.clear()
    with upstreams.running(everything()) as upstream, internet(upstream.port, context) as port:
        yield port
    tls.cache_clear()


def use(settings: Settings, proxy: ForwardProxy, **more: Any) -> None:
    settings.PRIVATE_UPSTREAMS = []
    authorization = f"Basic {b64encode(USER_AND_SECRET.encode()).decode()}"
    settings.OUTBOUND_PROXY = OutboundProxy("127.0.0.1", proxy.port, authorization=authorization, **more)


@pytest.fixture
def proxy(far: int, settings: Settings) -> Iterator[ForwardProxy]:
    with forward_proxy(far, credentials=USER_AND_SECRET) as running:
        use(settings, running)
        yield running


def server() -> Server:
    return make.server(url=f"https://{PUBLIC}/mcp")


def sink(kind: str) -> Sink:
    address = f"tls://{PUBLIC}:6514" if kind == "syslog" else f"https://{PUBLIC}/logs"
    secret = {"syslog": "", "s3": "id:key"}.get(kind, SIGNING_SECRET)
    return Sink.objects.add(name=kind, kind=kind, address=address, secret=secret, by=None)


def provider() -> Provider:
    return Provider(issuer=f"https://{PUBLIC}", private=False)


def ask_for(what: str, settings: Settings) -> Any:  # noqa: PLR0911  (a table)
    """Let Django make the outbound request `what`; return the result or the failure's message."""
    match what:
        case "server":
            return probe(server(), by=make.user())
        case "issuer":
            return Http(private=False, entered=()).get(f"https://{PUBLIC}/").document
        case "provider":
            return fetch_provider_json(provider(), f"https://{PUBLIC}/.well-known/openid-configuration")
        case "document":
            return client_documents.fetch_client_document(f"https://{PUBLIC}/client.json")
        case "registry":
            settings.SERVER_REGISTRY = f"https://{PUBLIC}"
            return well_known.search_registry("docs")
        case "archive":
            settings.ARCHIVE, settings.ARCHIVE_KEYS = f"https://{PUBLIC}/logs", "id:key"
            with archive.open_archive() as store:
                return store.put("it", b"data")
        case _:
            return send_test_line(sink(what), by=None).detail


ALL = ("server", "issuer", "provider", "document", "registry", "archive", "webhook", "s3", "syslog")


def test_whatever_django_asks_for_goes_through_the_proxy(
    proxy: ForwardProxy, settings: Settings, subtests: pytest.Subtests
) -> None:
    for what in ALL:
        with subtests.test(what):
            proxy.asked.clear()
            said = ask_for(what, settings)

            assert "proxy" not in str(said)
            assert {target.rsplit(":", 1)[0] for target in proxy.asked} == {PUBLIC}


def test_a_proxy_that_wants_another_password_is_named_wherever_an_administrator_looks_and_the_password_nowhere(
    far: int, settings: Settings, caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
) -> None:
    for what in ALL:
        with subtests.test(what), forward_proxy(far, credentials="somebody:else") as proxy:
            use(settings, proxy)
            ways_out._logged_at.clear()
            caplog.clear()
            try:
                said = str(ask_for(what, settings))
            except (NoAnswer, ProviderDown, NoDocument, well_known.NoRegistry, DiscoveryFailed, OSError) as error:
                said = str(error)

            words = "requires a valid user and password (407)"
            if what == "document":  # An anonymous person may read this error.
                assert said == "The app's metadata document cannot be reached."
            else:
                assert words in said
            assert any(words in str(getattr(record, "error", "")) for record in caplog.records)
            for text in (said, caplog.text):
                assert SECRET not in text
                assert b64encode(USER_AND_SECRET.encode()).decode() not in text


def test_the_health_of_a_server_and_the_state_of_a_sink_say_that_it_is_the_proxy(far: int, settings: Settings) -> None:
    with forward_proxy(far, says=b"HTTP/1.1 403 No\r\n\r\n") as proxy:
        use(settings, proxy)
        one = server()
        with pytest.raises(DiscoveryFailed, match="the outbound proxy"):
            probe(one, by=make.user())
        outcome = send_test_line(sink("webhook"), by=None)

    one.refresh_from_db()
    words = f"cannot be reached: the outbound proxy 127.0.0.1:{proxy.port} refuses to connect to {PUBLIC} (403)"
    assert one.health == Health.DOWN
    assert words in one.health_error
    assert words in outcome.detail


def test_a_stranger_cannot_have_the_proxy_look_a_name_up(
    far: int, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with forward_proxy(far) as proxy:
        use(settings, proxy, resolved=ways_out.places(["example.invalid"]))
        with pytest.raises(NoDocument):
            client_documents.fetch_client_document("https://app.example.invalid/client.json")
        assert proxy.asked == []
        assert upstream_guard().way_by_name("app.example.invalid")
        assert guard_for_strangers().way_by_name("app.example.invalid") is None


def test_a_host_reached_through_a_proxy_in_an_allowed_network_is_not_private(
    proxy: ForwardProxy, settings: Settings
) -> None:
    settings.PRIVATE_UPSTREAMS = [ip_network("127.0.0.0/8")]

    assert not upstream_guard().is_inside(Http(private=True, entered=()).get(f"https://{PUBLIC}/").address)


def test_spans_fail_without_a_word_of_what_the_proxy_says() -> None:
    with (
        forward_proxy(1, says=b"HTTP/1.1 407 Basic echo-of-secrecy\r\n\r\n") as proxy,
        tracing._session(f"http://{USER_AND_SECRET}@127.0.0.1:{proxy.port}") as session,
        pytest.raises(requests.exceptions.ConnectionError) as caught,
    ):
        session.post("https://collector.example.com:4318/v1/traces", timeout=PATIENCE)

    assert str(caught.value) == "the outbound proxy answered 407"
    assert proxy.asked == ["collector.example.com:4318"]


@pytest.mark.full
def test_the_workspace_page_says_where_the_proxy_is_and_not_its_password(proxy: ForwardProxy) -> None:
    ana = make.user(*Capability, email="ana@example.com")
    page = browser(session_of(ana)).get(reverse("accounts:workspace")).content.decode()

    assert f"127.0.0.1:{proxy.port}" in page
    assert SECRET not in page


def test_the_proxy_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(configured.PROXY, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")
    assert configured.outbound_proxy_settings() is None

    secret = f"Basic {b64encode(b'me:p@ss:').decode()}"
    for value, place, encrypted, authorization in (
        ("http://proxy.example.com:3128", "proxy.example.com:3128", False, ""),
        ("http://proxy.example.com/", "proxy.example.com:80", False, ""),
        ("https://me:p%40ss%3A@proxy.example.com", "proxy.example.com:443", True, secret),
        ("http://[::1]:3128", "[::1]:3128", False, ""),
    ):
        monkeypatch.setenv(configured.PROXY, value)
        proxy = configured.outbound_proxy_settings()

        assert proxy is not None
        assert (proxy.place, proxy.encrypted, proxy.authorization) == (place, encrypted, authorization)


def test_a_url_that_is_none_is_refused_without_a_word_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (
        "proxy.of-secrecy:3128",
        "socks5://of-secrecy",
        "http://",
        "http://p:99999999",
        "http://p:0",
        "http://me:of-secrecy@p/path",
        "http://me:of-secrecy@p?x=1",
        "http://me:of-secrecy@p#x",
        "http://me%0d%0aX:of-secrecy@p",
        "http://me:of secrecy@p",
        "http://m%C3%A9%ZZ:of-secrecy@[::1",
    ):
        monkeypatch.setenv(configured.PROXY, value)

        with pytest.raises(Refused, match=configured.PROXY) as caught:
            configured.outbound_proxy_settings()
        assert "secrecy" not in str(caught.value), value
