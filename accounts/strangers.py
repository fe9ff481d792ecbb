"""Process sign-in pages for people who are not signed in one at a time per process.

Threads share the interpreter evenly, so twenty concurrent attempts would leave one twentieth to a signed-in person's
page. A request that waits for something else, such as a password hash or a mail server, releases its turn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from django.http import HttpRequest, HttpResponse
from django.utils.cache import add_never_cache_headers

from ui import databases

PATH = "/accounts/"
AT_ONCE = 1
LONGEST_WAIT_S = 10.0

_turns = threading.Semaphore(AT_ONCE)
_has_turn: ContextVar[bool] = ContextVar("_has_turn", default=False)


def in_turn(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Make strangers' requests to PATH wait for each other; 429 after LONGEST_WAIT_S.

    Place this middleware after authentication, and before slow middleware.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        if not request.path.startswith(PATH) or request.user.is_authenticated:
            return get_response(request)
        if not _turns.acquire(blocking=False):
            databases.give_back()
            if not _turns.acquire(timeout=LONGEST_WAIT_S):
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
    """Release this thread's turn and its database connection while the block waits for something else.

    A transaction keeps its connection.
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
    """Return 429 as plain text: rendering a page would take time that is scarce."""
    text = "Many people are signing in just now. Wait a few seconds, then try again.\n"
    response = HttpResponse(text, "text/plain; charset=utf-8", 429, headers={"Retry-After": "5"})
    add_never_cache_headers(response)
    return response
