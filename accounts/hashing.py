"""Password hashing: argon2id, one hash at a time per process, never while holding a database connection.

One hash takes 100 MiB and as much CPU time as several pages, and any client can cause one. A request that waits for a
hash therefore releases its database connection first, the hash runs at low priority, and when the short queue is full
the request gets HashingBusy instead of waiting. Every password check and every new password uses this hasher.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from django.contrib.auth.hashers import Argon2PasswordHasher

from accounts.strangers import released_while_waiting
from ui.errors import TryLater

CONCURRENT_HASHES = 1  # One hash has a thread for each of its eight lanes, which fills a small machine.
WAITING = 16
UNKNOWN_WAITING = 8  # Queue slots for clients neither signed in nor in a known browser.
LONGEST_WAIT_S = 5.0
LOWER_PRIORITY = 10

_for_a_stranger: ContextVar[bool] = ContextVar("_for_a_stranger", default=False)


class HashingBusy(TryLater):
    """Too many passwords are being checked in this process."""

    def __init__(self) -> None:
        super().__init__("Many people are signing in just now. Wait a few seconds, then try again.", 5)


class Queue:
    """Admits `at_once` callers and lets a bounded number wait; part of the queue is reserved for known users.

    Waits at most `seconds`. Raises HashingBusy.
    """

    def __init__(self, *, at_once: int, waiting: int, of_strangers: int, seconds: float) -> None:
        self._free = threading.Semaphore(at_once)
        self._places = threading.Semaphore(at_once + waiting)
        self._places_of_strangers = threading.Semaphore(at_once + of_strangers)
        self._seconds = seconds

    @contextmanager
    def turn(self) -> Iterator[None]:
        with _taken(self._places, 0):
            if not _for_a_stranger.get():
                with _taken(self._free, self._seconds):
                    yield
                return
            with _taken(self._places_of_strangers, 0), _taken(self._free, self._seconds):
                yield


@contextmanager
def _taken(places: threading.Semaphore, seconds: float) -> Iterator[None]:
    if not places.acquire(timeout=seconds):
        raise HashingBusy
    try:
        yield
    finally:
        places.release()


_queue = Queue(at_once=CONCURRENT_HASHES, waiting=WAITING, of_strangers=UNKNOWN_WAITING, seconds=LONGEST_WAIT_S)


@contextmanager
def for_a_stranger() -> Iterator[None]:
    """Treat hashes in this block as an unknown client's, which may use only part of the queue."""
    before = _for_a_stranger.set(True)
    try:
        yield
    finally:
        _for_a_stranger.reset(before)


def apart[R](work: Callable[[], R]) -> R:
    """Return the result of `work`, run in turn at low priority, without holding a database connection.

    A transaction keeps its connection, so requests must not hash inside one. Raises HashingBusy.
    """
    with released_while_waiting(), _queue.turn(), ThreadPoolExecutor(1, "password", initializer=_step_back) as thread:
        return thread.submit(work).result()


def _step_back() -> None:
    """Lower this thread's priority. Only Linux has priorities per thread; elsewhere this does nothing.

    The service may run at a lower priority already, and only root may raise it; a sandbox may forbid both.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, thread, max(LOWER_PRIORITY, os.getpriority(os.PRIO_PROCESS, thread)))


class QueuedArgon2Hasher(Argon2PasswordHasher):
    """Django's argon2id with Django's costs, run through the queue."""

    def encode(self, password: str, salt: str) -> str:
        return apart(lambda: super(QueuedArgon2Hasher, self).encode(password, salt))

    def verify(self, password: str, encoded: str) -> bool:
        return apart(lambda: super(QueuedArgon2Hasher, self).verify(password, encoded))
