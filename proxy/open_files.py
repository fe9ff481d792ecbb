"""Limits on the open files of this process, mostly sockets.

A new socket gets the lowest free file number. If this number is above a bound, a new stream is refused. So the numbers
above the bound remain free for calls.
"""

import logging
import os
import resource
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

MOST = 1 << 20  # Used if the hard limit is "unlimited", which cannot be set as soft limit.
FOR_STREAMS = 0.8  # Share of the file numbers that standing streams may use.
# Share of the file numbers that all client connections may use. The rest is for the database, servers and files.
FOR_CONNECTIONS = 0.9
RETRY_AFTER = (b"retry-after", b"10")
LOG_SECONDS = 10.0

# ASGI scope extension, present if a request must not open a standing stream on this connection.
NO_STREAM = "gateway.no_stream"

refusals = Counter[str]()  # By kind (stream, connection); exported by proxy.metrics.
_logged_at = -LOG_SECONDS


def raise_limit() -> None:
    """Raise the soft limit on open files to the hard limit, for this process and its children."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS has a second, lower limit, and refuses to exceed it.
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def open_files_limit() -> int:
    """Return how many files this process may open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST if soft == resource.RLIM_INFINITY else soft


def used() -> int:
    """Return the number of open files; on macOS, and on Linux before 6.2, only a lower bound."""
    with suppress(OSError):
        if size := Path("/proc/self/fd").stat().st_size:
            return size
    try:
        lowest_free = os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return open_files_limit()
    os.close(lowest_free)
    return lowest_free


def count_refused(what: str) -> None:
    """Count a refusal, and log at most one in 10 seconds. `what` is "stream" or "connection"."""
    global _logged_at  # noqa: PLW0603
    refusals[what] += 1
    if time.monotonic() - _logged_at >= LOG_SECONDS:
        _logged_at = time.monotonic()
        logger.error("too many open files: a %s was refused", what, extra={"open": used(), "limit": open_files_limit()})
