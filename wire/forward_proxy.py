"""Outbound HTTP proxy: which addresses are reached through it, and the CONNECT request for a tunnel.

Only TLS is tunnelled: plain HTTP is allowed only in networks that are reached without a proxy. Needs no Django.
"""

from __future__ import annotations

import logging
import re
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

import httpcore

from wire import hosts, versions

logger = logging.getLogger(__name__)

LARGEST_HEAD = 16 * 1024  # Bytes of an answer to CONNECT.
LOG_EVERY_S = 10.0
END = b"\r\n\r\n"

type Network = IPv4Network | IPv6Network
type Place = str | Network

_status = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d)[ \r]").match
_name = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?").fullmatch
_logged_at: dict[str, float] = {}


class ProxyFailed(OSError):
    """The outbound proxy opened no tunnel. The message says why, and is shown after "cannot be reached:"."""


@dataclass(frozen=True, slots=True)
class HostSet:
    """A set of host names and networks. If `below` is True, the set includes all subdomains of the names."""

    names: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    below: bool = True

    def has_name(self, host: str) -> bool:
        """Return whether `host` is one of the names or, if `below` is set, a subdomain of one of them."""
        name = spelled(host)
        if not name or not self.below:
            return name in self.names
        return any(name == each or name.endswith(f".{each}") for each in self.names)

    def has(self, host: str, address: str) -> bool:
        """Return whether the host name or its address is in the set."""
        at = _address(address)
        return self.has_name(host) or (at is not None and any(at in network for network in self.networks))


NO_PLACES = HostSet()


@dataclass(frozen=True, slots=True)
class OutboundProxy:
    """An HTTP proxy that opens tunnels to IP addresses.

    For host names in `resolved`, the proxy gets the name instead of the IP address, and resolves the name.
    """

    host: str
    port: int
    encrypted: bool = False  # Whether the connection to the proxy itself uses TLS.
    authorization: str = field(default="", repr=False)  # The value of Proxy-Authorization; empty for none.
    url: str = field(default="", repr=False)  # The complete URL, for other HTTP clients.
    direct: HostSet = NO_PLACES  # Hosts reached without the proxy.
    # Hosts for which the proxy gets the name instead of the address; then the proxy is responsible for the address.
    # The operator has listed them.
    resolved: HostSet = NO_PLACES

    @property
    def place(self) -> str:
        """Host and port of the proxy, without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def resolves(self, host: str) -> bool:
        """Return whether the proxy resolves this host name. If so, the proxy gets the name, not the IP address."""
        return self.resolved.has_name(host) and not self.direct.has_name(host)

    def for_hosts_of_others(self) -> OutboundProxy:
        """Return a copy of this proxy's settings for host names that no administrator entered.

        In the copy, `resolved` has the same names, but does not include their subdomains.
        """
        return replace(self, resolved=replace(self.resolved, below=False))

    def request(self, target: str, port: int) -> bytes:
        """Return the CONNECT request for an address, or for a name that the proxy resolves."""
        place = f"[{target}]:{port}" if ":" in target else f"{spelled(target) or target}:{port}"
        secret = f"Proxy-Authorization: {self.authorization}\r\n" if self.authorization else ""
        return f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\nUser-Agent: {versions.NAME}\r\n{secret}\r\n".encode(
            "ascii"
        )

    def judge(self, answered: bytes, target: str) -> None:
        """Raise ProxyFailed unless this answer to CONNECT opens the tunnel."""
        # Errors contain only the status: the rest of the answer may echo our credentials.
        found = _status(answered)
        if not answered:
            raise self.failure("closed the connection without an answer")
        if found is None or END not in answered:
            raise self.failure("does not answer as an HTTP proxy does")
        match int(found[1]):
            case status if 200 <= status < 300 and answered.endswith(END):
                return  # Nothing may follow the head: a server sends nothing before our TLS handshake.
            case 407:
                words = "requires a valid user and password (407); check GATEWAY_OUTBOUND_PROXY"
            case 401 | 403 | 405:
                words = (
                    f"refuses to connect to {target} ({int(found[1])}); its rules do not allow that{self._hint(target)}"
                )
            case status if status >= 500:
                words = f"could not connect to {target} ({status})"
            case status:
                words = f"answered {status} to a request for {target}"
        raise self.failure(words)

    def _hint(self, target: str) -> str:
        if _address(target) is None:
            return ""
        return ". For domains in GATEWAY_PROXY_RESOLVES the proxy gets the name instead of the address"

    def failure(self, words: str) -> ProxyFailed:
        """Return ProxyFailed with this text. Log the text, but at most once in LOG_EVERY_S seconds."""
        said = f"the outbound proxy {self.place} {words}"
        now = time.monotonic()
        if now - _logged_at.get(said, -LOG_EVERY_S) >= LOG_EVERY_S:
            if len(_logged_at) >= 100:
                _logged_at.clear()
            _logged_at[said] = now
            logger.warning("no connection through the outbound proxy", extra={"error": said})
        return ProxyFailed(said)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Turn errors of the connection to the proxy itself into ProxyFailed."""
        try:
            yield
        except ProxyFailed:
            raise
        except (TimeoutError, httpcore.TimeoutException):
            raise self.failure("did not answer in time") from None
        except (OSError, httpcore.NetworkError) as error:
            raise self.failure(connect_failure_text(error)) from None


def connect_failure_text(error: Exception) -> str:
    """Return why a connection failed, from the first known exception among `error` and its causes.

    The text continues a sentence that begins with "it".
    """
    cause: BaseException | None = error
    while cause is not None:
        match cause:
            case socket.gaierror():
                return "has a host name that does not resolve"
            case ssl.SSLCertVerificationError():
                return f"has a TLS certificate that this gateway does not trust: {cause.verify_message}"
            case ssl.SSLError():
                return "could not set up TLS; check that it speaks TLS"
            case ConnectionRefusedError():
                return "refused the connection: nothing listens there"
        cause = cause.__cause__ or cause.__context__
    return "cannot be reached, or closed the connection"


def spelled(host: str) -> str:
    """Return the canonical host name; empty if `host` is not a host name but, for example, an IP address."""
    name = hosts.canonical_host(host)
    return name if len(name) <= 253 and _name(name) else ""


def is_at_host_of(url: str, others: Iterable[str]) -> bool:
    """Return whether `url` has the host name of one of the URLs in `others`. Empty URLs never match."""
    host = _host(url)
    return bool(host) and any(host == _host(each) for each in others)


def _host(url: str) -> str:
    return spelled(urlsplit(url).hostname or "")


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text.partition("%")[0])
    except ValueError:
        return None


def parse_host_or_network(text: str) -> Place:
    """Parse a host name or a network. Raises ValueError if `text` is neither."""
    try:
        return ip_network(text.strip("[]"))
    except ValueError:
        name = spelled(text.removeprefix("."))
        if not name:
            raise
        return name


def places(found: Sequence[Place]) -> HostSet:
    """Return the HostSet of a list of host names and networks."""
    names = tuple(each for each in found if isinstance(each, str))
    return HostSet(names, tuple(each for each in found if not isinstance(each, str)))
