"""Queues for work that people can cause without signing in: sign-in pages and argon2id password hashes.

A hash takes 100 MiB and as much processor time as several pages. Therefore, each process makes only one hash at a time
and serves only one sign-in page at a time. This leaves time for other pages.
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
from django.http import HttpRequest, HttpResponse
from django.utils.cache import add_never_cache_headers

from ui import databases
from ui.errors import TryLater

PATH = "/accounts/"
STRANGERS_AT_ONCE = 1
LONGEST_TURN_WAIT_S = 10.0
CONCURRENT_HASHES = 1  # One hash runs eight threads, which fills a small machine.
WAITING = 16
UNKNOWN_WAITING = 8  # Slots of the queue that people without a session may use in an unknown browser.
LONGEST_HASH_WAIT_S = 5.0
LOWER_PRIORITY = 10

_turns = threading.Semaphore(STRANGERS_AT_ONCE)
_has_turn: ContextVar[bool] = ContextVar("_has_turn", default=False)
_for_a_stranger: ContextVar[bool] = ContextVar("_for_a_stranger", default=False)


def in_turn(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Serve requests to PATH one at a time if they come from people who are not signed in.

    A request that has waited for LONGEST_TURN_WAIT_S gets 429. Place this middleware after authentication, and before
    slow middleware.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        if not request.path.startswith(PATH) or request.user.is_authenticated:
            return get_response(request)
        if not _turns.acquire(blocking=False):
            databases.give_back()
            if not _turns.acquire(timeout=LONGEST_TURN_WAIT_S):
                return _too_many()
        before = _has_turn.set(True)
        try:
            return get_response(request)
        finally:
            _has_turn.reset(before)
            _turns.release()

    return middleware


@contextmanager
def released_while_waiting() -> Iterator[None]:
    """Within the block, let other requests use this thread's database connection and its turn (see `in_turn`).

    Use this function around slow work, such as a request to another server. After the block, a thread that had a turn
    waits until it has one again. Inside a transaction, the thread keeps its connection.
    """
    databases.give_back()
    if not _has_turn.get():
        yield
        return
    _turns.release()
    try:
        yield
    finally:
        _turns.acquire()


def _too_many() -> HttpResponse:
    """Return 429 as plain text, because rendering a page would take scarce processor time."""
    text = "Many people are signing in at the moment. Wait a few seconds, then try again.\n"
    response = HttpResponse(text, "text/plain; charset=utf-8", 429, headers={"Retry-After": "5"})
    add_never_cache_headers(response)
    return response


# --- Password hashes --------------------------------------------------------------------------------------------------


class HashingBusy(TryLater):
    """Too many passwords are being checked in this process."""

    def __init__(self) -> None:
        super().__init__("Many people are signing in at the moment. Wait a few seconds, then try again.", 5)


class Queue:
    """A queue that admits at most `at_once` callers at a time. At most `waiting` further callers can wait.

    Strangers (see `for_a_stranger`) have fewer places: at most `at_once + of_strangers` of them can be in the queue,
    admitted or waiting. The other places are kept for other callers.

    `turn` raises HashingBusy if the queue has no room for the caller, or if the caller has waited for `seconds`.
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


_queue = Queue(at_once=CONCURRENT_HASHES, waiting=WAITING, of_strangers=UNKNOWN_WAITING, seconds=LONGEST_HASH_WAIT_S)


@contextmanager
def for_a_stranger() -> Iterator[None]:
    """Within the block, queue password hashes as those of a stranger.

    A stranger tries to sign in with a browser in which the person has not signed in before. Strangers may use only a
    part of the queue for password hashes.
    """
    before = _for_a_stranger.set(True)
    try:
        yield
    finally:
        _for_a_stranger.reset(before)


def apart[R](work: Callable[[], R]) -> R:
    """Run `work` in the queue at low priority, and return its result. Raises HashingBusy.

    Do not hash passwords in a transaction, because a transaction holds the database connection during the wait.
    """
    with released_while_waiting(), _queue.turn(), ThreadPoolExecutor(1, "password", initializer=_step_back) as thread:
        return thread.submit(work).result()


def _step_back() -> None:
    """Lower this thread's priority on Linux; other systems have no priorities per thread."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        # Only root may raise a priority. A sandbox may forbid any change.
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, thread, max(LOWER_PRIORITY, os.getpriority(os.PRIO_PROCESS, thread)))


class QueuedArgon2Hasher(Argon2PasswordHasher):
    """Django's argon2id hasher with Django's parameters, run through the queue."""

    def encode(self, password: str, salt: str) -> str:
        return apart(lambda: super(QueuedArgon2Hasher, self).encode(password, salt))

    def verify(self, password: str, encoded: str) -> bool:
        return apart(lambda: super(QueuedArgon2Hasher, self).verify(password, encoded))
