"""Names to addresses, so that one silent name server cannot hold up the look-ups of every other name.

The loop's own look-ups share a handful of threads, and a wait that is given up leaves its thread occupied.
"""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

AT_ONCE = 32

type AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]


class Resolver:
    """Looks names up in threads of its own, at most once at a time for each."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="name look-up")
        self._asking: dict[tuple[str, int], asyncio.Future[list[AddressInfo]]] = {}

    async def find(self, host: str, port: int) -> list[AddressInfo]:
        """The addresses of `host`. Raises OSError when it has none."""
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
            done.exception()  # Nobody may be waiting any more; that is no error of its own.


def _look_up(host: str, port: int) -> list[AddressInfo]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # type: ignore[return-value]
    except UnicodeError:  # No name can be spelled like this.
        raise socket.gaierror(socket.EAI_NONAME, f"{host} is no name") from None


def is_address(host: str) -> bool:
    """Whether this is an IP address and no name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
