"""Whom a sender is counted as. Needs no Django."""

from ipaddress import IPv6Network, ip_address


def address_group(ip: str) -> str | None:
    """An IPv4 address, or the /64 that one IPv6 host has to itself; None for what is neither."""
    try:
        address = ip_address(ip)
    except ValueError:
        return None
    return ip if address.version == 4 else str(IPv6Network((int(address) >> 64 << 64, 64)))
