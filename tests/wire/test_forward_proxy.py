"""The outbound proxy: its requests, exceptions, and error messages."""

import asyncio
import logging
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import upstreams
from tests.authority import certificate
from tests.cases import first
from tests.forward_proxy import SECRET, USER_AND_SECRET, ForwardProxy, forward_proxy, internet
from wire import forward_proxy as ways_out
from wire.background import Deadline
from wire.errors import AddressBlocked, AddressInside, CertificateRefused, NoWayOut, UpstreamError
from wire.forward_proxy import OutboundProxy, ProxyFailed, places
from wire.guard import AddressRefused, Guard, GuardedTransport, UrlRefused, open_stream, tls
from wire.http import Transport

PUBLIC, OTHER = "93.184.215.14", "93.184.215.15"
LOOPBACK = ip_network("127.0.0.0/8")
AUTHORIZATION = f"Basic {b64encode(USER_AND_SECRET.encode()).decode()}"

type Ask = Callable[[Guard, str], bytes]


@pytest.fixture
def end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ssl.SSLContext]:
    """Yield a TLS context with one certificate for the servers and the proxy. The tested code trusts it."""
    context = certificate(tmp_path / "end.pem", PUBLIC, "127.0.0.1", "docs.example.com", "inside.example.com")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "end.pem"))
    tls.cache_clear()
    ways_out._logged_at.clear()
    yield context
    tls.cache_clear()


@pytest.fixture
def server(end: ssl.SSLContext) -> Iterator[int]:
    """Yield the loopback port of a TLS server that answers {}. The proxy connects every host name to this server."""
    with (
        upstreams.running(upstreams.garbage(b"{}", kind="application/json")) as upstream,
        internet(upstream.port, end) as port,
    ):
        yield port


@pytest.fixture
def proxy(server: int) -> Iterator[ForwardProxy]:
    with forward_proxy(server) as running:
        yield running


def through(proxy: ForwardProxy, **more: Any) -> OutboundProxy:
    return OutboundProxy("127.0.0.1", proxy.port, **more)


async def _by_pool(guard: Guard, url: str) -> bytes:
    async with Transport(guard, limit=1000) as transport:
        with await transport.send("GET", "docs", url, {}) as response:
            return await response.read()


def by_pool(guard: Guard, url: str) -> bytes:
    """Send a GET with the HTTP client used for calls, on asyncio's own event loop."""
    return asyncio.run(_by_pool(guard, url))


def by_uvloop(guard: Guard, url: str) -> bytes:
    """Send a GET with the HTTP client used for calls, on uvloop, the workers' event loop."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_by_pool(guard, url))


def by_httpx(guard: Guard, url: str) -> bytes:
    """Send a GET with httpx, as Django does for everything except calls."""
    deadline = Deadline()
    deadline.set(20)
    with httpx.Client(transport=GuardedTransport(guard, deadline), trust_env=False) as client:
        return client.get(url).content


def by_stream(guard: Guard, url: str) -> bytes:
    """Send a GET over a raw stream, which the gateway uses for syslog."""
    parts, deadline = httpx.URL(url), Deadline()
    deadline.set(20)
    stream = open_stream(guard, parts.host, parts.port or 443, deadline, encrypted=parts.scheme == "https")
    try:
        stream.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answered = b""
        while piece := stream.read(1000):
            answered += piece
        return answered.rpartition(b"\r\n\r\n")[2]
    finally:
        stream.close()


WAYS: list[Ask] = [by_pool, by_uvloop, by_httpx, by_stream]
REFUSED = (AddressBlocked, AddressRefused)
ways = pytest.mark.parametrize("ask", first(1, WAYS))


def leads(monkeypatch: pytest.MonkeyPatch, name: str, *addresses: str) -> list[str]:
    """Return a list that gets each look-up of `name`. The look-ups find `addresses` in turn, then the last again."""
    real, asked, left = socket.getaddrinfo, list[str](), list(addresses)

    def resolve(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        if host == name and more.get("flags") != socket.AI_NUMERICHOST:
            asked.append(host)
            host = left.pop(0) if len(left) > 1 else left[0]
        return real(host, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return asked


@ways
def test_the_proxy_is_asked_for_the_address_that_was_checked_and_tls_proves_the_name(
    ask: Ask, server: int, end: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    leads(monkeypatch, "docs.example.com", PUBLIC)
    leads(monkeypatch, "other.example.com", PUBLIC)
    for context in (None, end):
        with forward_proxy(server, context) as proxy:
            guard = Guard(proxy=through(proxy, encrypted=context is not None))

            assert ask(guard, "https://docs.example.com:8443/mcp") == b"{}"
            with pytest.raises(Exception, match=r"not trusted|CERTIFICATE_VERIFY_FAILED"):
                ask(guard, "https://other.example.com/mcp")

        assert proxy.asked == [f"{PUBLIC}:8443", f"{PUBLIC}:443"]
        assert b"example.com" not in b"".join(proxy.heads)


@ways
def test_the_proxy_never_hears_of_a_private_address_or_of_a_name_that_leads_to_one(
    ask: Ask, proxy: ForwardProxy, server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    leads(monkeypatch, "notexample.com", "10.0.0.5")
    guard = Guard(proxy=through(proxy, resolved=places(["example.com"])))
    inside = ("127.0.0.1", "10.0.0.5", "169.254.169.254", "[::1]", "[::ffff:10.0.0.5]", "0x7f.1", "notexample.com")

    for address in inside:
        with pytest.raises(REFUSED):
            ask(guard, f"https://{address}/mcp")
    with pytest.raises((AddressInside, AddressRefused)):  # A public server led to a network that others may use.
        ask(Guard((LOOPBACK,), proxy=through(proxy)).outside(), f"https://127.0.0.1:{server}/mcp")

    assert proxy.asked == []


@ways
def test_a_name_that_leads_inside_later_is_refused_where_it_is_connected_to(
    ask: Ask, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    leads(monkeypatch, "docs.example.com", PUBLIC, PUBLIC, "10.0.0.5")
    guard = Guard(proxy=through(proxy))
    guard.check_now("https://docs.example.com/mcp")

    assert ask(guard, "https://docs.example.com/mcp") == b"{}"
    with pytest.raises(REFUSED):
        ask(guard, "https://docs.example.com/mcp")

    assert proxy.asked == [f"{PUBLIC}:443"]


@ways
def test_listed_and_private_hosts_and_traffic_without_tls_never_use_the_proxy(
    ask: Ask, proxy: ForwardProxy, server: int
) -> None:
    """Check only that the proxy gets no request, because direct connections to public addresses fail in tests."""
    for direct in (["docs.example.com"], ["example.com"], [ip_network("93.184.215.14/32")], []):
        outside = through(proxy, direct=places(direct))
        assert (Guard(proxy=outside).way("docs.example.com", PUBLIC) is None) == bool(direct)
    guard = Guard((LOOPBACK,), proxy=through(proxy, resolved=places(["example.com"])))

    assert ask(guard, f"https://127.0.0.1:{server}/mcp") == b"{}"
    with upstreams.running(upstreams.garbage(b"{}", kind="application/json")) as upstream:
        assert ask(guard, f"http://127.0.0.1:{upstream.port}/") == b"{}"
    with pytest.raises(REFUSED):
        ask(guard, f"http://{PUBLIC}/")
    with pytest.raises(UrlRefused, match="must start with https"):
        Guard(proxy=through(proxy, resolved=places(["example.com"]))).check_now("http://docs.example.com/mcp")

    assert proxy.asked == []


@ways
def test_names_that_the_proxy_resolves_are_told_to_it_and_looked_up_by_nobody_here(
    ask: Ask, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = leads(monkeypatch, "docs.example.com", "10.0.0.5")
    guard = Guard((LOOPBACK,), proxy=through(proxy, resolved=places(["example.com"])))

    assert guard.check_now("https://docs.example.com/mcp") is False
    assert ask(guard, "https://docs.example.com:8443/mcp") == b"{}"

    assert proxy.asked == ["docs.example.com:8443"]
    assert asked == []


def test_a_name_is_told_from_what_only_looks_like_it() -> None:
    names = ("example.com", "EXAMPLE.com.", "a.b.example.com", "b\u00fccher.example.com")
    others = (
        *(
            "notexample.com",
            "example.com.evil.net",
            "a b.example.com",
            "a\r\nHost: x.example.com",
            "10.0.0.5",
            "0x7f.1",
        ),
        *("2130706433", "", f"{'a' * 64}.example.com", f"{'a.' * 200}example.com"),
    )

    assert [name for name in (*names, *others) if places(["example.com"]).has_name(name)] == [*names]


def test_an_entry_that_is_neither_name_nor_network_is_invalid() -> None:
    for text in ("*", "", "10.0.0.5/8", "exa mple.com", "https://example.com", "example.com:443", "1.2.3"):
        with pytest.raises(ValueError, match=r"appear to be|host bits set"):
            ways_out.parse_host_or_network(text)


@ways
def test_user_and_password_are_told_to_the_proxy_and_to_nobody_else(ask: Ask, server: int) -> None:
    with forward_proxy(server, credentials=USER_AND_SECRET) as proxy:
        known = through(proxy, authorization=AUTHORIZATION)
        assert ask(Guard(proxy=known), f"https://{PUBLIC}/mcp") == b"{}"
        assert SECRET not in repr(Guard(proxy=known))
        assert AUTHORIZATION not in repr(known)

        with pytest.raises((NoWayOut, ProxyFailed)) as caught:
            ask(Guard(proxy=through(proxy)), f"https://{PUBLIC}/mcp")
    assert "requires a valid user and password (407); check GATEWAY_OUTBOUND_PROXY" in told(caught.value)


def told(error: BaseException) -> str:
    return error.detail if isinstance(error, UpstreamError) else str(error)


ANSWERS = (
    (
        b"HTTP/1.1 403 Forbidden " + AUTHORIZATION.encode() + b"\r\n\r\n",
        f"refuses to connect to {PUBLIC} (403); its rules",
    ),
    (b"HTTP/1.1 407 " + AUTHORIZATION.encode() + b"\r\nContent-Length: 3\r\n\r\nwho", "(407)"),
    (b"HTTP/1.0 503 No\r\n\r\n", f"could not connect to {PUBLIC} (503)"),
    (b"HTTP/1.1 302 There\r\nLocation: http://10.0.0.5/\r\n\r\n", f"answered 302 to a request for {PUBLIC}"),
    (b"HTTP/1.1 200 OK\r\n", "does not answer as an HTTP proxy does"),
    (b"HTTP/1.1 200 OK\r\n\r\nand more", "answered 200"),
    (b"SSH-2.0-OpenSSH_9.2 " + AUTHORIZATION.encode() + b"\r\n", "does not answer as an HTTP proxy does"),
    (b"x" * 100_000, "does not answer as an HTTP proxy does"),
    (b"", "closed the connection without an answer"),
)


@ways
def test_a_proxys_own_answer_is_reported_without_echoed_secrets(
    ask: Ask, server: int, caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
) -> None:
    for says, words in ANSWERS:
        ways_out._logged_at.clear()
        caplog.clear()
        with subtests.test(repr(says[:30])):
            with (
                forward_proxy(server, says=says) as proxy,
                caplog.at_level(logging.WARNING),
                pytest.raises((NoWayOut, ProxyFailed)) as caught,
            ):
                ask(Guard(proxy=through(proxy, authorization=AUTHORIZATION)), f"https://{PUBLIC}/mcp")

            assert words in told(caught.value)
            (line,) = [record for record in caplog.records if record.name == "wire.forward_proxy"]
            assert line.error == told(caught.value)  # type: ignore[attr-defined]
            for text in (told(caught.value), str(caught.value), caplog.text):
                assert AUTHORIZATION.removeprefix("Basic ") not in text
                assert SECRET not in text


@ways
def test_a_proxy_that_is_away_unknown_or_not_trusted_is_told_from_a_server_that_is(
    ask: Ask, server: int, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    def refused(outside: OutboundProxy) -> str:
        with pytest.raises((NoWayOut, ProxyFailed)) as caught:
            ask(Guard(proxy=outside), f"https://{PUBLIC}/mcp")
        return told(caught.value).removeprefix("the outbound proxy ")

    assert refused(OutboundProxy("127.0.0.1", port)) == (
        f"127.0.0.1:{port} refused the connection: nothing listens there"
    )
    assert refused(OutboundProxy("nowhere.invalid", 3128)) == (
        "nowhere.invalid:3128 has a host name that does not resolve"
    )
    with forward_proxy(server, certificate(tmp_path / "unknown.pem", "127.0.0.1")) as proxy:
        untrusted = refused(through(proxy, encrypted=True))
    assert "has a TLS certificate that this gateway does not trust" in untrusted
    assert proxy.asked == []


@ways
def test_a_proxy_that_says_nothing_is_given_up(ask: Ask, server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wire.http.PROXY_SECONDS", 0.3)
    monkeypatch.setattr(Deadline, "left", lambda self, most: 0.3)
    for encrypted in (False, True):
        with forward_proxy(server, hangs=True) as proxy:
            # If `encrypted`, the client's TLS hello goes to a proxy without TLS, which waits for more bytes.
            silent = OutboundProxy("127.0.0.1", proxy.port, encrypted=encrypted)
            with pytest.raises((NoWayOut, ProxyFailed)) as caught:
                ask(Guard(proxy=silent), f"https://{PUBLIC}/mcp")

        assert told(caught.value) == f"the outbound proxy 127.0.0.1:{proxy.port} did not answer in time"


def test_a_server_behind_the_proxy_is_told_from_the_proxy_when_its_certificate_is_not_trusted(
    proxy: ForwardProxy,
) -> None:
    with pytest.raises(CertificateRefused):
        by_pool(Guard(proxy=through(proxy)), f"https://{OTHER}/mcp")


def test_the_end_of_a_tunnel_counts_as_the_checked_address_and_not_as_the_proxys(
    proxy: ForwardProxy,
) -> None:
    """If the proxy's address counted, a proxy in an allowed network would make every host behind it private."""
    guard = Guard((LOOPBACK,), proxy=through(proxy, resolved=places(["docs.example.com"])))
    for host in (PUBLIC, "docs.example.com"):
        with (
            httpx.Client(transport=GuardedTransport(guard), trust_env=False) as client,
            client.stream("GET", f"https://{host}/") as response,
        ):
            at = response.extensions["network_stream"].get_extra_info("server_addr")
            assert at == (host, 443)
            assert not guard.is_inside(at[0])


def test_a_tunnel_is_kept_for_the_next_call(proxy: ForwardProxy) -> None:
    async def twice() -> int:
        async with Transport(Guard(proxy=through(proxy)), limit=1000) as transport:
            for _ in range(2):
                with await transport.send("GET", "docs", f"https://{PUBLIC}/", {}) as response:
                    assert await response.read() == b"{}"
            return transport.idle

    assert asyncio.run(twice()) == 1
    assert proxy.asked == [f"{PUBLIC}:443"]
