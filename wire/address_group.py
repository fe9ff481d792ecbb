"""Group client IP addresses for rate limits. Needs no Django."""

from ipaddress import IPv6Network, ip_address


def address_group(ip: str) -> str | None:
    """Return the IPv4 address itself, or the /64 network of an IPv6 address; None if `ip` is not an address."""
    try:
        address = ip_address(ip)
    except ValueError:
        return None
    return ip if address.version == 4 else str(IPv6Network((int(address) >> 64 << 64, 64)))
