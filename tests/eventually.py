"""Wait for facts that another process, thread or backend creates shortly after a response.

Tests wait until the fact is true, not for a fixed time, because a busy machine may be slow. If a test must show that
some code does not wait for an event, the test delays this event by several times `PATIENCE`.
"""

import asyncio
import time
from collections.abc import Callable

PATIENCE = 120.0  # Seconds after which a fact will not become true any more, however busy the machine is.
PROCESS_PATIENCE = 600.0  # The same for a process that creates all tables, starts or ends.


def eventually[T](fact: Callable[[], T], seconds: float = PATIENCE) -> T:
    """Return the first true value of `fact`; fails after `seconds`.

    The longer it waits, the less often it calls `fact`, because some facts need a request or a process.
    """
    began = time.monotonic()
    while not (found := fact()):
        waited = time.monotonic() - began
        assert waited < seconds, f"it never came true: {found!r}"
        time.sleep(max(0.02, min(waited / 8, 0.2)))
    return found


async def until(fact: Callable[[], object], seconds: float = PATIENCE) -> float:
    """Wait like `eventually`, but without blocking the event loop; return the elapsed seconds."""
    began = time.monotonic()
    while not fact():
        assert time.monotonic() - began < seconds, "it never came true"
        await asyncio.sleep(0.005)
    return time.monotonic() - began
