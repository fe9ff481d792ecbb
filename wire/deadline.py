"""An end that no peer can put off: every wait on a socket is cut to what is left until then.

httpx limits each wait by itself, so a peer that sends a byte now and then would be listened to for ever.
"""

from __future__ import annotations

import math
import ssl
import time
from typing import Any

import httpcore
import httpx

PART = 16 * 1024  # So much is written before the clock is looked at again.


class Deadline:
    """A moment that can be set anew; until it is set there is none."""

    def __init__(self) -> None:
        self._at = math.inf

    def set(self, seconds: float) -> None:
        """Let it be `seconds` from now."""
        self._at = time.monotonic() + seconds

    def left(self, most: float | None) -> float:
        """How long one wait may take, `most` at most. Raises httpcore.ReadTimeout when nothing is left."""
        left = min(self._at - time.monotonic(), math.inf if most is None else most)
        if left <= 0:
            raise httpcore.ReadTimeout
        return left

    def check(self) -> None:
        """Raise httpx.ReadTimeout when nothing is left: for whoever works on what one read has brought."""
        if time.monotonic() >= self._at:
            raise httpx.ReadTimeout("the time is over")


class TimedStream(httpcore.NetworkStream):
    """A connection that is listened to until the deadline and not a moment longer.

    `leads_to` is what a tunnel ends at, which its socket does not say.
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
