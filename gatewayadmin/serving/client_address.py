"""The client's address behind trusted proxies."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from gatewayadmin.config.environment import Network

type Address = IPv4Address | IPv6Address


def client_address(peer: str, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """Return the right-most hop that is not a trusted proxy. IPv4-mapped addresses are returned as IPv4.

    `forwarded` are the values of all X-Forwarded-For headers in order. They are used only if the peer is trusted, and
    only back to the first untrusted hop: everything to its left may be forged.
    """
    address = _read(peer)
    if address is None:
        return peer
    if not forwarded:
        return _shown(address)
    hops = [hop for value in forwarded for hop in value.split(",")]
    while hops and any(address in network for network in trusted):
        hop = _read(hops.pop())
        if hop is None:
            break
        address = hop
    return _shown(address)


# Headers that proxies add about the client, besides X-Forwarded-*.
_FORWARDING = frozenset(
    {
        "cf-connecting-ip",
        "cf-ray",
        "client-ip",
        "fastly-client-ip",
        "forwarded",
        "true-client-ip",
        "via",
        "x-azure-clientip",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-envoy-external-address",
        "x-original-forwarded-for",
        "x-original-host",
        "x-real-ip",
    }
)


def is_local(peer: str, headers: Iterable[str], trusted: Sequence[Network]) -> bool:
    """Return whether the request is from a program on this machine, over loopback and without a proxy.

    `peer` is the address of the connection, `headers` the lower-case header names. A proxy on this machine is detected
    by forwarding headers, or because it is `trusted`.
    """
    address = _read(peer)
    if address is None or not address.is_loopback or any(address in network for network in trusted):
        return False
    return not any(name in _FORWARDING or name.startswith("x-forwarded") for name in headers)


_shown = lru_cache(4096)(str)


@lru_cache(4096)
def _read(hop: str) -> Address | None:
    try:
        address = ip_address(_without_port(hop.strip()))
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
