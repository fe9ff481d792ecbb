"""Requests to /accounts/ by people who are not signed in are served one at a time.

Other requests do not wait for them: requests by people who are signed in, and requests to other addresses.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.test import Client

from accounts import queues
from accounts.mail import EmailBackend
from accounts.queues import in_turn
from tests import make
from tests.conftest import SignIn
from tests.eventually import PATIENCE

SIGN_IN = "/accounts/login/"


def request(path: str = SIGN_IN, *, signed_in: bool = False) -> HttpRequest:
    made = HttpRequest()
    made.path = path
    made.user = SimpleNamespace(is_authenticated=signed_in)  # type: ignore[assignment]
    return made


class View:
    """A view that counts concurrent requests, and answers none of them before `go` is set."""

    def __init__(self) -> None:
        self.inside = self.most = 0
        self.lock = threading.Lock()
        self.entered, self.go = threading.Semaphore(0), threading.Event()

    def __call__(self, _: HttpRequest) -> HttpResponse:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.entered.release()
        assert self.go.wait(20)
        with self.lock:
            self.inside -= 1
        return HttpResponse()


@contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20, initializer=connections.close_all) as pool:
        yield pool


@pytest.mark.full
def test_twenty_strangers_are_served_one_at_a_time() -> None:
    view = View()
    served = in_turn(view)
    with threads() as pool:
        answers = [pool.submit(served, request()) for _ in range(20)]
        assert view.entered.acquire(timeout=PATIENCE)
        assert not view.entered.acquire(timeout=0.2)
        view.go.set()
        assert {answer.result(20).status_code for answer in answers} == {200}
    assert view.most == queues.STRANGERS_AT_ONCE


@pytest.mark.parametrize(("path", "signed_in"), [("/hosts/", False), ("/api/servers", False), (SIGN_IN, True)])
def test_signed_in_people_and_other_pages_wait_for_no_stranger(path: str, signed_in: bool) -> None:
    view = View()
    served = in_turn(view)
    with threads() as pool:
        stranger = pool.submit(served, request())
        assert view.entered.acquire(timeout=PATIENCE)
        other = pool.submit(served, request(path, signed_in=signed_in))
        assert view.entered.acquire(timeout=PATIENCE)
        view.go.set()
        assert (stranger.result(20).status_code, other.result(20).status_code) == (200, 200)


def test_a_stranger_who_waits_too_long_is_refused_and_takes_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "LONGEST_TURN_WAIT_S", 0.01)
    view = View()
    served = in_turn(view)
    with threads() as pool:
        first = pool.submit(served, request())
        assert view.entered.acquire(timeout=PATIENCE)
        late = pool.submit(served, request()).result(20)
        view.go.set()
        assert first.result(20).status_code == 200
    assert (late.status_code, late["Retry-After"]) == (429, "5")
    assert served(request()).status_code == 200


def by_hash(waits: Any) -> None:
    queues.apart(waits)


def by_mail(waits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django.core.mail.backends.smtp.EmailBackend.send_messages", lambda *_: waits())
    EmailBackend(alias="default", host="localhost").send_messages([])


@pytest.mark.parametrize("what", ["hash", "mail"])
def test_waiting_for_a_hash_or_the_mail_server_lets_the_next_stranger_proceed(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, go = threading.Event(), threading.Event()

    def waits() -> None:
        waiting.set()
        assert go.wait(20)

    def slow(_: HttpRequest) -> HttpResponse:
        by_hash(waits) if what == "hash" else by_mail(waits, monkeypatch)
        return HttpResponse()

    with threads() as pool:
        first = pool.submit(in_turn(slow), request())
        assert waiting.wait(20)
        assert pool.submit(in_turn(lambda _: HttpResponse()), request()).result(20).status_code == 200
        go.set()
        assert first.result(20).status_code == 200


@pytest.mark.full
@pytest.mark.django_db
def test_the_pages_for_signing_in_take_turns_and_those_of_who_is_signed_in_do_not(
    sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "LONGEST_TURN_WAIT_S", 0.01)
    browser = sign_in(make.user())
    with queues._turns:
        assert browser.get("/accounts/password/change/").status_code == 200
        assert Client().get(SIGN_IN).status_code == 429
    assert Client().get(SIGN_IN).status_code == 200
