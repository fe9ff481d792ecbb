"""Waiting for facts: for what another process, thread or backend does a moment after the answer.

A test waits for the fact and never for time, and as long as a busy machine may take. What must not be waited for takes
several times `PATIENCE`.
"""

import asyncio
import time
from collections.abc import Callable

PATIENCE = 120.0  # Seconds after which it will not come true any more, whatever else the machine does.


def eventually[T](fact: Callable[[], T], seconds: float = PATIENCE) -> T:
    """What `fact` returns as soon as that is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := fact()):
        assert time.monotonic() < deadline, f"it never came true: {found!r}"
        time.sleep(0.02)
    return found


async def until(fact: Callable[[], object], seconds: float = PATIENCE) -> float:
    """As `eventually`, within an event loop; the seconds that it took."""
    began = time.monotonic()
    while not fact():
        assert time.monotonic() - began < seconds, "it never came true"
        await asyncio.sleep(0.005)
    return time.monotonic() - began
