"""The open files of this process: sockets, mostly. A process that has all it may open can accept nobody.

The system gives a new socket the lowest free number. So streams on numbers below a limit leave those above to calls,
and nothing has to be counted.
"""

import logging
import os
import resource
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

MOST = 1 << 20  # Systems without a limit refuse to set none.
FOR_STREAMS = 0.8  # Of the numbers there are, those that standing streams may have,
FOR_CONNECTIONS = 0.9  # and any connection of a client. The rest is for the database, servers and files.
RETRY_AFTER = (b"retry-after", b"10")
LOG_SECONDS = 10.0

# The extension of a request's scope that says that its connection must not become a standing stream.
NO_STREAM = "gateway.no_stream"

refusals = Counter[str]()  # By what was refused; proxy.metrics writes them.
_logged_at = -LOG_SECONDS


def raise_limit() -> None:
    """Raise the soft limit of this process, and of those it starts, to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS has another limit beside, and refuses more than that.
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit() -> int:
    """Return how many files this process may open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST if soft == resource.RLIM_INFINITY else soft


def used() -> int:
    """Return how many files are open. Linux before 6.2 does not say: then how many at least."""
    with suppress(OSError):
        if size := Path("/proc/self/fd").stat().st_size:
            return size
    try:
        lowest_free = os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return limit()
    os.close(lowest_free)
    return lowest_free


def refused(what: str) -> None:
    """Count a refused `stream` or `connection`, and log it, not too often."""
    global _logged_at  # noqa: PLW0603
    refusals[what] += 1
    if time.monotonic() - _logged_at >= LOG_SECONDS:
        _logged_at = time.monotonic()
        logger.error("too many open files: a %s was refused", what, extra={"open": used(), "limit": limit()})
