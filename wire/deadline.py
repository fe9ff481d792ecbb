"""A total deadline for httpx: every wait on a socket is limited to the time that is left.

httpx limits each wait separately, so a peer that sends a byte now and then could hold a connection for ever.
"""

from __future__ import annotations

import math
import ssl
import time
from typing import Any

import httpcore
import httpx

PART = 16 * 1024  # Bytes written between two checks of the deadline.


class Deadline:
    """A deadline that can be set again; there is none until it is set."""

    def __init__(self) -> None:
        self._at = math.inf

    def set(self, seconds: float) -> None:
        """Set the deadline to `seconds` from now."""
        self._at = time.monotonic() + seconds

    def left(self, most: float | None) -> float:
        """Return the seconds left, `most` at most. Raises httpcore.ReadTimeout when none are left."""
        left = min(self._at - time.monotonic(), math.inf if most is None else most)
        if left <= 0:
            raise httpcore.ReadTimeout
        return left

    def check(self) -> None:
        """Raise httpx.ReadTimeout when no time is left. Call it while processing data that was read."""
        if time.monotonic() >= self._at:
            raise httpx.ReadTimeout("the time is over")


class TimedStream(httpcore.NetworkStream):
    """A network stream whose reads and writes end at the deadline.

    `leads_to` is the address at the end of a tunnel, which its socket does not know.
    """

    def __init__(
        self, stream: httpcore.NetworkStream, deadline: Deadline, leads_to: tuple[str, int] | None = None
    ) -> None:
        self._stream = stream
        self._deadline = deadline
        self._leads_to = leads_to

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), PART):
            self._stream.write(buffer[start : start + PART], self._deadline.left(timeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, self._deadline.left(timeout))
        return TimedStream(stream, self._deadline, self._leads_to)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        if info == "server_addr" and self._leads_to is not None:
            return self._leads_to
        return self._stream.get_extra_info(info)
