"""Reserves the port before the server can serve."""

import errno
import os
import socket
from typing import Any

FREE_PORT = " Stop what listens there, or choose another port: PORT=8010 make run, or serve --port 8010."


class PortTaken(Exception):
    """Something else listens there already, or may not be listened to; the message is one line."""


def reserve(host: str, port: int) -> socket.socket:
    """Return a socket bound to this address. Raises PortTaken.

    It does not listen yet: connections before we can serve are refused, so clients try another process. Otherwise they
    would wait for the whole start, or be reset if it fails.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        try:
            return _bound(family, address[:2], beside_ended=False)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return _bound(family, address[:2], beside_ended=True)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        advice = FREE_PORT if error.errno in (errno.EADDRINUSE, errno.EACCES) else ""
        raise PortTaken(f"Cannot listen on {host} port {port}: {reason}.{advice}") from error


def _bound(family: int, address: tuple[Any, ...], *, beside_ended: bool) -> socket.socket:
    """Return a bound socket. `beside_ended` ignores closed connections of a former process (SO_REUSEADDR)."""
    reserved = socket.socket(family, socket.SOCK_STREAM)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, beside_ended)
        if family == socket.AF_INET6 and socket.has_dualstack_ipv6():
            reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        reserved.bind(address)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # Nobody else binds it before it is listened on.
    except OSError:
        reserved.close()
        raise
    return reserved
