"""Create the address guards, which decide to which addresses this installation may connect (see wire.guard).

The guard for servers knows the private networks that the settings allow, and the gateway's own endpoints.
"""

from dataclasses import replace

from django.conf import settings

from wire.forward_proxy import NO_PLACES
from wire.guard import Guard, OwnEndpoints, UrlRefused
from wire.guard import listener as local_listener


def own_endpoints() -> OwnEndpoints:
    """Return the addresses of this installation: its public URL, and the port this process listens on."""
    listener = local_listener()
    origins = (settings.PUBLIC_URL, listener.origin if listener else f"http://localhost:{settings.PORT}")
    return OwnEndpoints.of(*origins, hosts=settings.ALLOWED_HOSTS)


def upstream_guard() -> Guard:
    return Guard(
        tuple(settings.PRIVATE_UPSTREAMS), own_endpoints(), proxy=settings.OUTBOUND_PROXY, runner=settings.RUNNER
    )


def guard_for_strangers() -> Guard:
    """Return the guard for URLs that anybody may supply.

    The guard allows only public addresses. It never lets the outbound proxy resolve a host name.
    """
    proxy = settings.OUTBOUND_PROXY
    return Guard(proxy=replace(proxy, resolved=NO_PLACES) if proxy else None)


def leads_inside(url: str) -> bool | None:
    """Return whether `url` resolves to an allowed private address; None if the guard refuses or cannot resolve it."""
    try:
        return upstream_guard().check_now(url)
    except UrlRefused:
        return None
