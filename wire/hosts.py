"""Canonical host names, origins of URLs, groups of client addresses for rate limits, and name resolution."""

import asyncio
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv6Network, ip_address
from urllib.parse import unquote, urlsplit

import idna

# Canonical hosts and origins, as browsers read them. Use these functions for every comparison.

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_PORTS = {"http": 80, "https": 443}
_numbers = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)(?:\.(?:0x[0-9a-f]*|[0-9]+)){0,3}\.?").fullmatch
_authority = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]/@%\\\s]+)(?::[0-9]{1,5})?", re.IGNORECASE).fullmatch


def canonical_host(host: str) -> str:
    """Return a host name (without port) in its canonical spelling: in lower case and ASCII, without final dot.

    Percent-encoding is decoded. An IPv4 address is written as four decimal numbers, an IPv6 address in brackets. An
    invalid name is not converted to ASCII.
    """
    name = unquote(host).strip("[]").lower()
    try:
        address = ip_address(name)
    except ValueError:
        if _numbers(name):
            with suppress(OSError):
                return socket.inet_ntoa(socket.inet_aton(name.removesuffix(".")))
    else:
        return f"[{address}]" if address.version == 6 else str(address)
    if not name.isascii():
        with suppress(idna.IDNAError):
            name = idna.encode(name, uts46=True).decode()
    return name.removesuffix(".")


def origin_of(url: str) -> tuple[str, str, int]:
    """Return scheme, canonical host and port of a URL. Raises ValueError."""
    parts = urlsplit(url.strip().replace("\\", "/"))  # Browsers read a backslash in an http URL as a slash.
    return parts.scheme, canonical_host(parts.hostname or ""), parts.port or _PORTS.get(parts.scheme, 443)


def of_header(value: str) -> str:
    """Return the canonical host of a Host header; empty if the header is invalid."""
    match = _authority(value)
    return canonical_host(match[1]) if match else ""


# Group client IP addresses for rate limits. Needs no Django.


def address_group(ip: str) -> str | None:
    """Return the IPv4 address itself, or the /64 network of an IPv6 address; None if `ip` is not an address."""
    try:
        address = ip_address(ip)
    except ValueError:
        return None
    return ip if address.version == 4 else str(IPv6Network((int(address) >> 64 << 64, 64)))


# DNS look-ups in separate threads, so that one silent name server does not block all look-ups.
#
# The event loop's own look-ups share a few threads, and a cancelled look-up keeps its thread busy.

AT_ONCE = 32

type AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]


class Resolver:
    """Resolves names in its own threads, with one look-up per name at a time."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="name look-up")
        self._asking: dict[tuple[str, int], asyncio.Future[list[AddressInfo]]] = {}

    async def find(self, host: str, port: int) -> list[AddressInfo]:
        """Return the addresses of `host`. Raises OSError when the host has no address."""
        if is_address(host):
            return _look_up(host, port)
        place = host, port
        asking = self._asking.get(place)
        if asking is None:
            asking = asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host, port)
            self._asking[place] = asking
            asking.add_done_callback(lambda done: self._forget(place, done))
        return await asyncio.shield(asking)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _forget(self, place: tuple[str, int], done: "asyncio.Future[list[AddressInfo]]") -> None:
        self._asking.pop(place, None)
        if not done.cancelled():
            done.exception()  # Mark the error as retrieved, because all waiters may be gone.


def _look_up(host: str, port: int) -> list[AddressInfo]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # type: ignore[return-value]
    except UnicodeError:  # Not a valid name.
        raise socket.gaierror(socket.EAI_NONAME, f"{host} is not a host name") from None


def is_address(host: str) -> bool:
    """Return whether `host` is an IP address, not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
