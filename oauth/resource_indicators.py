"""Resource indicators (RFC 8707): which gateway a client means."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from gateways.models import Gateway


class UnknownResource(Exception):
    """The resource is not the address of a gateway here."""


def canonical(uri: str) -> tuple[str, str, str, str]:
    """What two spellings of one address share: scheme and host in lower case, no final slash."""
    parts = urlsplit(uri)
    return parts.scheme.lower(), parts.netloc.lower(), parts.path.removesuffix("/"), parts.query + parts.fragment


def same_resource(first: str, second: str) -> bool:
    """Whether both name the same resource, apart from one final slash and the case of the host."""
    try:
        return canonical(first) == canonical(second)
    except ValueError:
        return False


def gateway_of(resources: Sequence[str]) -> Gateway | None:
    """The gateway the resource indicators of a request name; None when there are none.

    Raises UnknownResource for anything but exactly one gateway of this installation.
    """
    if not resources:
        return None
    slug = resources[0].rstrip("/").rpartition("/")[2]
    gateway = Gateway.objects.live().filter(slug=slug).first()
    if len(resources) != 1 or gateway is None or not same_resource(resources[0], gateway.url):
        raise UnknownResource(UnknownResource.__doc__)
    return gateway
