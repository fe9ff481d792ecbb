"""The address guard of this installation: its allowed private networks, and its own endpoints."""

from dataclasses import replace

from django.conf import settings

from wire import builtin
from wire.forward_proxy import NO_PLACES
from wire.guard import Guard, OwnEndpoints, UrlRefused


def own_endpoints() -> OwnEndpoints:
    """Where this installation answers: its public address, and the port this process, or one beside it, listens on."""
    listener = builtin.listener()
    origins = (settings.PUBLIC_URL, listener.origin if listener else f"http://localhost:{settings.PORT}")
    return OwnEndpoints.of(*origins, hosts=settings.ALLOWED_HOSTS)


def upstream_guard() -> Guard:
    """The guard for every socket to a server."""
    return Guard(tuple(settings.PRIVATE_UPSTREAMS), own_endpoints(), proxy=settings.OUTBOUND_PROXY)


def guard_for_strangers() -> Guard:
    """The guard for what anybody may have us call: public addresses alone, each looked up and checked here."""
    proxy = settings.OUTBOUND_PROXY
    return Guard(proxy=replace(proxy, resolved=NO_PLACES) if proxy else None)


def leads_inside(url: str) -> bool | None:
    """Whether this URL leads to private addresses now, which are allowed; None when it leads nowhere, or may not."""
    try:
        return upstream_guard().check_now(url)
    except UrlRefused:
        return None
