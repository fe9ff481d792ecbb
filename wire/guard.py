"""Decides which addresses the gateway may connect to (SSRF protection), and checks them at connect time.

A host name is resolved first, and then the exact address that the socket connects to is checked. Needs no Django.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from posixpath import normpath
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import httpcore
import httpx
import psutil

from wire.background import Deadline, TimedStream
from wire.forward_proxy import END, LARGEST_HEAD, OutboundProxy, ProxyFailed
from wire.hosts import canonical_host
from wire.runner import Runner

# Addresses of the built-in servers, which are part of this process. Needs no Django.

BUILT_IN = "builtin:"  # Scheme of these URLs. The rest of the URL is appended to FOLDER to get the path.
FOLDER = "/builtin/"
SECRET_HEADER = "X-Gateway-Builtin-Secret"  # noqa: S105  (a name, no secret)
PERSON_HEADER = "X-Gateway-Builtin-Person"  # Id of the person for whom the proxy calls.


@dataclass(frozen=True, slots=True)
class Listener:
    """The listener of this process: its origin, and the secret for requests to built-in servers, new at each start."""

    origin: str
    secret: str


_listener: Listener | None = None


def listen_at(origin: str, secret: str) -> None:
    """Set the origin and secret of this process's listener. Called once, when the process starts to serve."""
    global _listener  # noqa: PLW0603  (a process has one listener)
    _listener = Listener(origin, secret) if origin and secret else None


def listener() -> Listener | None:
    """Return the listener of this process, or None if it does not serve."""
    return _listener


type Address = IPv4Address | IPv6Address
type Network = IPv4Network | IPv6Network

# Addresses of cloud metadata services, which hand out credentials. They are refused even inside an allowed range.
METADATA = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254",  # AWS, Google Cloud, Azure and most others
        "169.254.170.2",  # AWS ECS
        "169.254.170.23",  # AWS EKS
        "100.100.100.200",  # Alibaba Cloud
        "168.63.129.16",  # Azure
        "192.0.0.192",  # Oracle Cloud
        "fd00:ec2::254",  # AWS
        "fd00:ec2::23",  # AWS EKS
        "fd20:ce::254",  # Google Cloud
    )
)

# Networks that `is_global` counts as public although they are internal or unused.
NOT_PUBLIC: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "192.88.99.0/24",  # 6to4 relays
        "::/96",  # IPv4-compatible
        "100::/64",  # discard
        "2001::/23",  # protocol assignments, Teredo among them
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "64:ff9b:1::/48",  # NAT64 of the local network
        "fec0::/10",  # site-local
    )
)

NAT64 = ip_network("64:ff9b::/96")
LOCAL_NAT64 = ip_network("64:ff9b:1::/48")
COMPATIBLE = ip_network("::/96")
TRANSLATED = ip_network("::ffff:0:0:0/96")


class AddressRefused(OSError):
    """The gateway may not call the server's address."""


class LeadsInside(AddressRefused):
    """The server's host name leads to a private address, but the server is not registered as private."""


class LeadsBack(AddressRefused):
    """The server's address is this gateway's own."""


class UrlRefused(ValueError):
    """The gateway may not call this URL; the message says why."""


@dataclass(frozen=True, slots=True)
class OwnEndpoints:
    """Addresses of this gateway itself. A server at one of these addresses would cause a loop."""

    # Each host name of this gateway, with each port of the public URL and of the listener.
    places: frozenset[tuple[str, int]] = frozenset()
    # Ports at which the gateway listens on this machine.
    ports: frozenset[int] = frozenset()

    @classmethod
    def of(cls, public_url: str, listener: str, *, hosts: Iterable[str]) -> OwnEndpoints:
        """Build OwnEndpoints from the public URL, the listener's origin ("" for none) and the gateway's host names."""
        ports = {_port(parts) for parts in map(urlsplit, filter(None, (public_url, listener)))}
        names = {*(host.strip("[]").lower() for host in hosts), urlsplit(public_url).hostname or ""}
        listening = frozenset({_port(urlsplit(listener))} if listener else ())
        return cls(frozenset((name, port) for name in names for port in ports), listening)

    def has(self, url: str) -> bool:
        """Return whether this is a URL of this gateway itself, in any spelling."""
        parts = urlsplit(url)
        host, port = canonical_host(parts.hostname or "").strip("[]"), _port(parts)
        if port in self.ports and (host == "localhost" or (_is_literal(host) and self._is_here(_literal(host)))):
            return True
        return (host, port) in self.places and _is_gateway(parts.path)

    def has_address(self, address: str, port: int) -> bool:
        """Return whether a socket to this literal address and port would reach this gateway."""
        return port in self.ports and self._is_here(address)

    @staticmethod
    def _is_here(address: str) -> bool:
        target = _plain(ip_address(address))
        return target.is_loopback or target.is_unspecified or str(target) in _addresses_of_this_machine()


@cache
def _addresses_of_this_machine() -> frozenset[str]:
    every = (each for interface in psutil.net_if_addrs().values() for each in interface)
    return frozenset(each.address for each in every if each.family in (socket.AF_INET, socket.AF_INET6))


NOWHERE = OwnEndpoints()


def _is_gateway(path: str) -> bool:
    """Return whether a reverse proxy, which decodes and normalises paths, may read this one as `/mcp` or below it."""
    tidy = normpath(unquote(path)).lstrip("/")
    return tidy == "mcp" or tidy.startswith("mcp/")


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _literal(host: str) -> str:
    return str(socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)[0][4][0])


@dataclass(frozen=True, slots=True)
class Guard:
    """Decides which addresses may be called."""

    allowed: tuple[Network, ...] = ()  # The ranges of GATEWAY_PRIVATE_UPSTREAMS.
    own: OwnEndpoints = NOWHERE  # The addresses of this gateway.
    # Ranges that are allowed for other guards only; used for the error message.
    closed: tuple[Network, ...] = ()
    proxy: OutboundProxy | None = None
    # The runner's endpoint URLs are allowed at any address. Other URLs at the runner's address are checked as usual.
    runner: Runner | None = None

    def admits(self, address: str, *, encrypted: bool = True) -> bool:
        """Return whether this IP address may be called. Without TLS only the allowed ranges may be called."""
        try:
            target = _plain(ip_address(address))
        except ValueError:
            return False
        wrapped = _wrapped(target)
        if target in METADATA or not METADATA.isdisjoint(wrapped):
            return False
        if any(target in network for network in self.allowed):
            return True
        return encrypted and all(map(_is_public, (target, *wrapped)))

    def is_inside(self, address: str) -> bool:
        """Return whether this IP address is in one of the allowed ranges; False for a host name."""
        try:
            target = _plain(ip_address(address))
        except ValueError:
            return False  # `address` is a host name, which the proxy resolves.
        return any(target in network for network in self.allowed)

    def way(self, host: str, address: str) -> OutboundProxy | None:
        """Return the proxy for calls to this host name and IP address, or None if such calls are made directly.

        Calls to addresses in the allowed ranges are always made directly.
        """
        proxy = self.proxy
        return None if proxy is None or self.is_inside(address) or proxy.direct.has(host, address) else proxy

    def way_by_name(self, host: str) -> OutboundProxy | None:
        """Return the proxy if the proxy resolves this host name, otherwise None.

        If the proxy resolves the name, the gateway checks no address. So call this only for connections with
        TLS, in which a certificate proves that the machine belongs to the name.
        """
        return self.proxy if self.proxy is not None and self.proxy.resolves(host) else None

    def outside(self) -> Guard:
        """Return a guard that admits no private address, for public servers and the URLs they send."""
        # The owner of a public name can point the name anywhere at any time (DNS rebinding), so ranges that are allowed
        # for private servers must not apply to public names.
        return replace(self, allowed=(), closed=self.allowed)

    def for_hosts_of_others(self) -> Guard:
        """Return a copy of this guard for host names that a server or an issuer sends.

        With the copy, the outbound proxy resolves the names in GATEWAY_PROXY_RESOLVES, but not their subdomains.
        """
        # A third party could name an internal host below a listed domain, and the proxy would resolve it unchecked.
        return replace(self, proxy=self.proxy and self.proxy.for_hosts_of_others())

    def program_at(self, url: str) -> str | None:
        """Return the name of the runner's program that has the endpoint `url`; None if no program has it."""
        return self.runner.program_at(url) if self.runner else None

    def check(self, address: str, port: int = 0, *, encrypted: bool = True) -> None:
        """Raise AddressRefused unless the guard admits the address.

        Raises LeadsBack for an address of this gateway. Raises LeadsInside for an address that is allowed only for
        private servers.
        """
        if self.own.has_address(address, port):
            raise LeadsBack(LeadsBack.__doc__)
        if not self.admits(address, encrypted=encrypted):
            if replace(self, allowed=self.closed).is_inside(address):
                raise LeadsInside(LeadsInside.__doc__)
            raise AddressRefused(AddressRefused.__doc__)

    def check_url(self, url: str) -> None:
        """Check a URL without a DNS look-up. Raises UrlRefused.

        The resolved address of a name is checked each time a socket is opened.
        """
        parts = _parts(url)
        host = parts.hostname or ""
        if self.own.has(url):
            raise UrlRefused(LEADS_BACK)
        if self.program_at(url):
            return
        if _is_literal(host):
            if not self.admits(host, encrypted=parts.scheme == "https"):
                raise UrlRefused(f"The address {host} {_why_not(parts.scheme)}.{self._what_to_set(host)}")
        elif parts.scheme == "http" and not self.allowed:
            raise UrlRefused(WITHOUT_TLS)

    def check_now(self, url: str) -> bool:
        """Check a URL and the addresses of its host. Return whether the server is private.

        A program of the runner is private. Any other server is private if all its addresses are in the allowed ranges.
        If the outbound proxy resolves the host, the server is not private, and its addresses are not checked.

        Raises UrlRefused if `check_url` does. Also raises UrlRefused if the host has no address, if none of its
        addresses may be called, or if one of its addresses is the gateway's own.
        """
        self.check_url(url)
        if self.program_at(url):
            return True
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme == "https" and self.way_by_name(host):
            return False
        try:
            addresses = _addresses(host, parts.port or 443)
        except httpcore.ConnectError:
            raise UrlRefused(f"{host} cannot be found. {self._why_not_found()}") from None
        if any(self.own.has_address(address, _port(parts)) for address in addresses):
            raise UrlRefused(LEADS_BACK)
        if not any(self.admits(address, encrypted=parts.scheme == "https") for address in addresses):
            raise UrlRefused(f"{host} leads to an address that {_why_not(parts.scheme)}.")
        return all(map(self.is_inside, addresses))

    def _what_to_set(self, address: str) -> str:
        """Return how the operator can allow this private address; empty if the address cannot be allowed.

        Call this only if the URL itself contains the address. The address of a host name must not be
        disclosed.
        """
        network = ip_network(_plain(ip_address(_literal(address))))
        if _is_public(network.network_address) or not replace(self, allowed=(network,)).admits(str(network[0])):
            return ""
        return f" {TO_ALLOW.format(network=network)}"

    def _why_not_found(self) -> str:
        said = "Check the spelling."
        return said if self.proxy is None else f"{said} If only the proxy knows the name, see GATEWAY_PROXY_RESOLVES."


TO_ALLOW = (
    "To allow this address, the operator of the gateway adds the address to the setting, as in "
    "GATEWAY_PRIVATE_UPSTREAMS={network}, and restarts the gateway: see /help/reference/settings/."
)
WITHOUT_TLS = (
    "The URL must start with https://. A URL with http:// is allowed only if its address is in a network of "
    "GATEWAY_PRIVATE_UPSTREAMS: see /help/reference/settings/."
)
LEADS_BACK = "This is an address of this gateway itself, so calls to it would loop."


def _why_not(scheme: str) -> str:
    if scheme == "http":
        return "is not inside GATEWAY_PRIVATE_UPSTREAMS, the only networks that may be called without TLS"
    return "is private or reserved; GATEWAY_PRIVATE_UPSTREAMS does not allow it"


def _plain(address: Address) -> Address:
    """Return the IPv4 address embedded in an IPv6 address, or the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address.scope_id:
        address = IPv6Address(int(address))
    inner = address.ipv4_mapped or address.sixtofour
    if inner is None and address in NAT64:
        inner = IPv4Address(int(address) & 0xFFFFFFFF)
    return inner or address


def _wrapped(address: Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses that a router or tunnel may extract from an IPv6 address.

    The embedded address that `_plain` returns is not included.
    """
    if isinstance(address, IPv4Address):
        return ()
    number = int(address)
    last = IPv4Address(number & 0xFFFFFFFF)
    # ISATAP (RFC 5214) under any prefix, IPv4-compatible (RFC 4291) and IPv4-translated addresses (RFC 7915).
    if (number >> 32) & 0xFDFFFFFF == 0x5EFE or address in COMPATIBLE or address in TRANSLATED:
        return (last,)
    if address in LOCAL_NAT64:  # NAT64 of the local network (RFC 8215), in the forms of RFC 6052.
        return (last, IPv4Address((number >> 48 & 0xFFFF0000) | (number >> 40 & 0xFFFF)))
    return address.teredo or ()  # RFC 4380.


def _is_public(address: Address) -> bool:
    if address.is_multicast or address.is_reserved or not address.is_global:
        return False
    return not any(address in network for network in NOT_PUBLIC)


def _parts(url: str) -> Any:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UrlRefused("This is not a URL. A URL looks like https://mcp.example.com/mcp.") from None
    if parts.scheme not in ("https", "http"):
        raise UrlRefused(WITHOUT_TLS)
    if not parts.hostname:
        raise UrlRefused("The URL has no host.")
    if port == 0:
        raise UrlRefused("The URL's port must be at least 1.")
    if parts.username is not None or parts.password is not None:
        raise UrlRefused("Leave credentials out of the URL; add them under Identities.")
    return parts


def _is_literal(host: str) -> bool:
    """Return whether a resolver would read this host as an address, in any notation (0x7f.1, 2130706433)."""
    try:
        socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        return False
    return True


class _GuardedBackend(httpcore.NetworkBackend):
    """Resolves a host name, and connects to its first address that the guard admits and that answers."""

    def __init__(self, guard: Guard, deadline: Deadline, *, encrypted: bool, is_greeted: bool = False) -> None:
        self._guard = guard
        self._deadline = deadline
        self._encrypted = encrypted
        self._head_read = 1 if is_greeted else LARGEST_HEAD  # 1 byte per read, to leave a greeting unread.
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        if self._encrypted and (proxy := self._guard.way_by_name(host)):
            return self._through(proxy, host, port, timeout)
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in _addresses(host, port):
            try:
                self._guard.check(address, port, encrypted=self._encrypted)
                if proxy := self._guard.way(host, address):
                    return self._through(proxy, address, port, timeout)
                left = self._deadline.left(timeout)
                stream = self._backend.connect_tcp(address, port, left, local_address, socket_options)
                return TimedStream(stream, self._deadline)
            except (AddressRefused, ProxyFailed) as refusal:
                failure = refusal
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    def _through(self, proxy: OutboundProxy, target: str, port: int, timeout: float | None) -> httpcore.NetworkStream:
        """Open a tunnel through the proxy to `target`. Raises ProxyFailed.

        `target` is either an address that was checked, or a name that the proxy resolves.
        """
        own = Deadline()
        own.set(self._deadline.left(timeout))
        with proxy.told():
            straight = self._backend.connect_tcp(proxy.host, proxy.port, own.left(None))
            stream: httpcore.NetworkStream = straight
            try:
                if proxy.encrypted:
                    stream = straight.start_tls(tls(), proxy.host, own.left(None))
                asked = TimedStream(stream, own)
                asked.write(proxy.request(target, port))
                head = b""
                while END not in head and len(head) < LARGEST_HEAD and (piece := asked.read(self._head_read)):
                    head += piece
                proxy.judge(head, target)
            except BaseException:
                stream.close()
                raise
        return TimedStream(stream, self._deadline, leads_to=(target, port))


def open_stream(guard: Guard, host: str, port: int, deadline: Deadline, *, encrypted: bool) -> httpcore.NetworkStream:
    """Connect to `host` if `guard` admits it, over TLS if `encrypted`. Use this for protocols other than HTTP.

    Raises AddressRefused and the errors of httpcore.
    """
    stream = _GuardedBackend(guard, deadline, encrypted=encrypted).connect_tcp(host, port, deadline.left(None))
    if not encrypted:
        return stream
    try:
        return stream.start_tls(tls(), host, deadline.left(None))
    except BaseException:
        stream.close()
        raise


def open_for_tls(guard: Guard, host: str, port: int, deadline: Deadline) -> httpcore.NetworkStream:
    """Connect without TLS, for a protocol that starts TLS itself (STARTTLS). The server's greeting is left unread."""
    backend = _GuardedBackend(guard, deadline, encrypted=True, is_greeted=True)
    return backend.connect_tcp(host, port, deadline.left(None))


def _addresses(host: str, port: int) -> Sequence[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise httpcore.ConnectError(f"{host} cannot be resolved") from error
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class GuardedTransport(httpx.BaseTransport):
    """A transport that checks addresses, for `httpx.Client(transport=GuardedTransport(guard), trust_env=False)`.

    `trust_env=False` makes httpx ignore proxies from the environment. httpx follows no redirects by default. A request
    to a refused address raises AddressRefused. After `deadline` every wait times out.
    """

    def __init__(self, guard: Guard, deadline: Deadline | None = None) -> None:
        ends = deadline or Deadline()
        self._by_scheme = {scheme: _transport(guard, ends, encrypted=scheme == "https") for scheme in ("https", "http")}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._by_scheme[request.url.scheme].handle_request(request)

    def close(self) -> None:
        for transport in self._by_scheme.values():
            transport.close()


@cache  # Loading the authorities is slow.
def tls() -> ssl.SSLContext:
    """Return the TLS context for servers and issuers. It trusts the authorities of the system or of `SSL_CERT_FILE`."""
    places = ssl.get_default_verify_paths()
    folder = Path(places.capath) if places.capath else None
    # Small images have no authorities: use those bundled with httpx.
    if places.cafile is None and (folder is None or not any(folder.iterdir())):
        return httpx.create_ssl_context(trust_env=False)
    return ssl.create_default_context()


def _transport(guard: Guard, deadline: Deadline, *, encrypted: bool) -> httpx.HTTPTransport:
    transport = httpx.HTTPTransport(verify=tls(), trust_env=False)
    # httpx has no parameter for the network backend; its transport is a thin wrapper of this pool.
    transport._pool = httpcore.ConnectionPool(  # noqa: SLF001  (see above)
        ssl_context=tls() if encrypted else None,
        network_backend=_GuardedBackend(guard, deadline, encrypted=encrypted),
    )
    return transport
