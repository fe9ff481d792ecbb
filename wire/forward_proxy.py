"""The way out through a forward proxy: what goes through it, and how a tunnel through it is asked for (CONNECT).

Only TLS goes through: what has none may be called inside allowed networks alone, and those are reached without a proxy.
Needs no Django.
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

from wire import hosts, product

logger = logging.getLogger(__name__)

LARGEST_HEAD = 16 * 1024  # Of an answer to CONNECT.
LOG_EVERY_S = 10.0
END = b"\r\n\r\n"

type Network = IPv4Network | IPv6Network
type Place = str | Network

_status = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d)[ \r]").match
_name = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?").fullmatch
_logged_at: dict[str, float] = {}


class ProxyFailed(OSError):
    """No tunnel through the outbound proxy; the message says why, and goes on after "cannot be reached:"."""


@dataclass(frozen=True, slots=True)
class Places:
    """Hosts by name, with all that is `below` them, and networks."""

    names: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    below: bool = True

    def has_name(self, host: str) -> bool:
        """Whether this host is one of the names or below one."""
        name = spelled(host)
        if not name or not self.below:
            return name in self.names
        return any(name == each or name.endswith(f".{each}") for each in self.names)

    def has(self, host: str, address: str) -> bool:
        """Whether this host, at this address, is in here."""
        at = _address(address)
        return self.has_name(host) or (at is not None and any(at in network for network in self.networks))


NO_PLACES = Places()


@dataclass(frozen=True, slots=True)
class OutboundProxy:
    """An HTTP proxy that opens tunnels. `direct` is reached without it.

    It gets the address that was checked here, and the name only of hosts that it `resolves`, because whoever runs this
    gateway said so: where such a name leads is its own to judge.
    """

    host: str
    port: int
    encrypted: bool = False  # Whether it is spoken to over TLS itself.
    authorization: str = field(default="", repr=False)  # The value of Proxy-Authorization; empty for none.
    url: str = field(default="", repr=False)  # All of that, as other clients take it.
    direct: Places = NO_PLACES
    resolved: Places = NO_PLACES

    @property
    def place(self) -> str:
        """Where it is, without a secret."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def resolves(self, host: str) -> bool:
        """Whether it is given the name of this host instead of an address."""
        return self.resolved.has_name(host) and not self.direct.has_name(host)

    def for_hosts_of_others(self) -> OutboundProxy:
        """The same for hosts that others than an administrator name: it is given no name below a listed one."""
        return replace(self, resolved=replace(self.resolved, below=False))

    def request(self, target: str, port: int) -> bytes:
        """What asks for a tunnel to an address, or to a name that it resolves."""
        place = f"[{target}]:{port}" if ":" in target else f"{spelled(target) or target}:{port}"
        secret = f"Proxy-Authorization: {self.authorization}\r\n" if self.authorization else ""
        return f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\nUser-Agent: {product.NAME}\r\n{secret}\r\n".encode(
            "ascii"
        )

    def judge(self, answered: bytes, target: str) -> None:
        """Return when what came, a head or less at the end of the connection, says that the tunnel is open.

        Raises ProxyFailed, with nothing of the answer but its status: it may repeat what we sent.
        """
        found = _status(answered)
        if not answered:
            raise self.failure("closed the connection without an answer")
        if found is None or END not in answered:
            raise self.failure("does not answer as an HTTP proxy does")
        match int(found[1]):
            case status if 200 <= status < 300 and answered.endswith(END):
                return  # Nothing comes before the TLS that we begin.
            case 407:
                words = "wants a user and a password that it knows (407); check GATEWAY_OUTBOUND_PROXY"
            case 401 | 403 | 405:
                words = f"refuses to connect to {target} ({int(found[1])}); its rules decide that{self._hint(target)}"
            case status if status >= 500:
                words = f"could not connect to {target} ({status})"
            case status:
                words = f"answered {status} when it was asked for {target}"
        raise self.failure(words)

    def _hint(self, target: str) -> str:
        if _address(target) is None:
            return ""
        return ". Of the domains in GATEWAY_PROXY_RESOLVES it is told the name instead"

    def failure(self, words: str) -> ProxyFailed:
        """What says that no tunnel could be had; the log of the process has it too, now and then."""
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
        """Raises ProxyFailed for whatever goes wrong on the way to the proxy itself."""
        try:
            yield
        except ProxyFailed:
            raise
        except (TimeoutError, httpcore.TimeoutException):
            raise self.failure("did not answer in time") from None
        except (OSError, httpcore.NetworkError) as error:
            raise self.failure(in_words(error)) from None


def in_words(error: Exception) -> str:
    """Why nothing could be said to the other side, by the first cause that says something; it goes on after "it"."""
    cause: BaseException | None = error
    while cause is not None:
        match cause:
            case socket.gaierror():
                return "has a name for which there is no address"
            case ssl.SSLCertVerificationError():
                return f"has a TLS certificate that this gateway does not trust: {cause.verify_message}"
            case ssl.SSLError():
                return "did not agree on TLS; check whether it speaks it"
            case ConnectionRefusedError():
                return "refused the connection: nothing listens there"
        cause = cause.__cause__ or cause.__context__
    return "cannot be reached, or closed the connection"


def spelled(host: str) -> str:
    """Return a name as it is sent and compared; empty for what is no name, such as an address."""
    name = hosts.canonical(host)
    return name if len(name) <= 253 and _name(name) else ""


def is_at_host_of(url: str, others: Iterable[str]) -> bool:
    """Whether this URL has the host of one of the others; empty ones have none."""
    host = _host(url)
    return bool(host) and any(host == _host(each) for each in others)


def _host(url: str) -> str:
    return spelled(urlsplit(url).hostname or "")


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text.partition("%")[0])
    except ValueError:
        return None


def place(text: str) -> Place:
    """A name, which stands for all below it too, or a network. Raises ValueError for what is neither."""
    try:
        return ip_network(text.strip("[]"))
    except ValueError:
        name = spelled(text.removeprefix("."))
        if not name:
            raise
        return name


def places(found: Sequence[Place]) -> Places:
    """Names and networks, told apart."""
    names = tuple(each for each in found if isinstance(each, str))
    return Places(names, tuple(each for each in found if not isinstance(each, str)))
