"""The client's address behind trusted proxies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib import import_module
from ipaddress import IPv4Address, IPv6Address, ip_address

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.http import parse_cookie
from starlette.datastructures import Headers

from gatewayadmin.config.environment import Network
from scim.models import ProvisioningKey
from tokens import api_keys, authentication
from ui import databases
from wire import token_text

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


# Checks the credential in the headers of a request, before a large body is read.

# Requests with made-up keys queue up here with their headers only. A thread for each would be expensive: a database
# connection and memory that the process does not return.
LOOKUPS_AT_ONCE = 2
_lookups = ThreadPoolExecutor(LOOKUPS_AT_ONCE, thread_name_prefix="known-sender")


async def is_known(headers: Headers) -> bool:
    """Return whether the API key, token or session in these headers is currently valid.

    At most LOOKUPS_AT_ONCE look-ups run at a time in this process; others wait.
    """
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":  # A bearer token takes precedence over a session.
        secret = secret.strip()
        return token_text.well_formed(secret) and await _look_up(secret, "")
    session = parse_cookie("; ".join(headers.getlist("cookie"))).get(settings.SESSION_COOKIE_NAME, "")
    return session != "" and await _look_up("", session)


async def _look_up(secret: str, session: str) -> bool:
    return await asyncio.get_running_loop().run_in_executor(_lookups, _is_known, secret, session)


def _is_known(secret: str, session: str) -> bool:
    try:
        if secret:
            found = (
                api_keys.find_api_key(secret)
                or authentication.find_token(secret)
                or ProvisioningKey.objects.find(secret)
            )
            return found is not None
        return SESSION_KEY in import_module(settings.SESSION_ENGINE).SessionStore(session)
    finally:
        databases.give_back()  # Return the connection: the thread is reused.
