"""Resource indicators (RFC 8707): find the gateway a client requests."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from gateways.models import Gateway
from wire import hosts


class UnknownResource(Exception):
    """The resource is not the address of a gateway here."""


def same_resource(first: str, second: str) -> bool:
    """Return whether both URLs name the same resource, ignoring the host's spelling and one final slash.

    URLs with a user name or control characters match no gateway.
    """
    try:
        if "@" in urlsplit(first).netloc or not first.isprintable():
            return False
        return hosts.origin_of(first) == hosts.origin_of(second) and _path(first) == _path(second)
    except ValueError:
        return False


def _path(uri: str) -> tuple[str, str, str]:
    parts = urlsplit(uri.replace("\\", "/"))
    return parts.path.removesuffix("/"), parts.query, parts.fragment


def gateway_of(resources: Sequence[str]) -> Gateway | None:
    """Return the gateway that the resource indicators name, or None if there are none.

    Raises UnknownResource unless they name exactly one gateway of this installation.
    """
    if not resources:
        return None
    slug = resources[0].rstrip("/").rpartition("/")[2]
    gateway = Gateway.objects.live().filter(slug=slug).first()
    if len(resources) != 1 or gateway is None or not same_resource(resources[0], gateway.url):
        raise UnknownResource(UnknownResource.__doc__)
    return gateway
