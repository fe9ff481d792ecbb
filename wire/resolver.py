"""DNS look-ups in separate threads, so that one silent name server does not block all look-ups.

The event loop's own look-ups share a few threads, and a cancelled wait leaves its thread occupied.
"""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

AT_ONCE = 32

type AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]


class Resolver:
    """Resolves names in its own threads, with one look-up per name at a time."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="name look-up")
        self._asking: dict[tuple[str, int], asyncio.Future[list[AddressInfo]]] = {}

    async def find(self, host: str, port: int) -> list[AddressInfo]:
        """Return the addresses of `host`. Raises OSError when it has none."""
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
            done.exception()  # Mark the error as retrieved: all waiters may be gone.


def _look_up(host: str, port: int) -> list[AddressInfo]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # type: ignore[return-value]
    except UnicodeError:  # Not a valid name.
        raise socket.gaierror(socket.EAI_NONAME, f"{host} is no name") from None


def is_address(host: str) -> bool:
    """Return whether `host` is an IP address, not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
