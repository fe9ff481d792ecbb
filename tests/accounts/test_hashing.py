"""Passwords are hashed a few at a time, and never while a database connection is held."""

import os
import re
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from django.contrib.auth.hashers import Argon2PasswordHasher
from django.core import mail
from django.db import connections
from django.test import Client

from accounts import queues
from accounts.models import User
from accounts.password_links import password_link
from accounts.queues import HashingBusy, Queue, for_a_stranger
from tests import make
from tests.conftest import SignIn
from tests.rest import Rest, problem

NEW = "another horse battery staple"

type Door = Callable[[User, SignIn], Any]


def sign_in_with(email: str, password: str) -> Any:
    return Client().post("/accounts/login/", {"login": email, "password": password})


def by_link(path: str) -> Any:
    client = Client()
    form = client.get(path, follow=True).redirect_chain[-1][0]
    return client.post(form, {"display_name": "Bo", "password1": NEW, "password2": NEW})


def by_reset(person: User, sign_in: SignIn) -> Any:
    Client().post("/accounts/password/reset/", {"email": person.email})
    found = re.search(r"https?://[^/]+(/accounts/password/reset/key/\S+)", str(mail.outbox[-1].body))
    assert found
    return by_link(found[1])


def by_invitation(person: User, sign_in: SignIn) -> Any:
    invited = User.objects.create_user("invited@example.com", None, role=person.role)
    return by_link("/" + password_link(invited).split("/", 3)[3])


def change(person: User, sign_in: SignIn) -> Any:
    form = {"oldpassword": make.PASSWORD, "password1": NEW, "password2": NEW}
    return sign_in(person).post("/accounts/password/change/", form)


DOORS: dict[str, tuple[Door, int]] = {
    "sign-in": (lambda person, _: sign_in_with(person.email, make.PASSWORD), 1),
    "wrong password": (lambda person, _: sign_in_with(person.email, "wrong"), 1),
    "unknown account": (lambda person, _: sign_in_with("nobody@example.com", "wrong"), 1),
    "confirming on the page": (
        lambda person, sign_in: sign_in(person).post("/accounts/reauthenticate/", {"password": make.PASSWORD}),
        1,
    ),
    "confirming by REST": (
        lambda person, _: Rest.of(person, confirmed=False).post("/me/confirm", {"password": make.PASSWORD}),
        1,
    ),
    "changing it": (change, 2),
    "a reset": (by_reset, 1),
    "an invitation": (by_invitation, 1),
}


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that gets an entry per hash: True if the waiting thread held a database connection."""
    seen: list[bool] = []
    wrapper = connections["default"]

    def noting(work: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any) -> Any:
            seen.append(wrapper.connection is not None)
            return work(*args)

        return noted

    for name in ("encode", "verify"):
        monkeypatch.setattr(Argon2PasswordHasher, name, noting(getattr(Argon2PasswordHasher, name)))
    return seen


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_waiting_for_a_hash_holds_no_connection(held: list[bool], sign_in: SignIn, subtests: pytest.Subtests) -> None:
    for door, (go, hashes) in DOORS.items():
        with subtests.test(door):
            person = make.user()
            held.clear()

            response = go(person, sign_in)

            assert response.status_code in (200, 204, 302)
            assert held == [False] * hashes


@pytest.mark.full
@pytest.mark.django_db
def test_every_refused_sign_in_costs_one_hash(held: list[bool]) -> None:
    """A faster refusal would reveal that an account does not exist."""
    person, gone = make.user(), make.user(is_active=False)
    invited = User.objects.create_user("invited@example.com", None, role=person.role)

    costs = []
    for email in (person.email, gone.email, invited.email, "nobody@example.com"):
        held.clear()
        assert sign_in_with(email, "wrong").status_code == 200
        costs.append(len(held))

    assert costs == [1, 1, 1, 1]


@pytest.mark.django_db
def test_beyond_the_queue_pages_and_rest_say_when_to_come_back(
    monkeypatch: pytest.MonkeyPatch, sign_in: SignIn
) -> None:
    person = make.user()
    here, rest = sign_in(person), Rest.of(person, confirmed=False)
    monkeypatch.setattr(queues, "_queue", Queue(at_once=0, waiting=0, of_strangers=0, seconds=0))

    page = Client().post(
        "/accounts/login/", {"login": person.email, "password": make.PASSWORD, "next": "/hosts/?status=pending"}
    )
    own = here.post("/accounts/reauthenticate/", {"password": make.PASSWORD})
    told = rest.post("/me/confirm", {"password": make.PASSWORD})

    assert (page.status_code, page["Retry-After"], own.status_code) == (429, "5", 429)
    assert "Many people are signing in at the moment. Wait a few seconds, then try again." in page.content.decode()
    assert 'href="/accounts/login/?next=%2Fhosts%2F%3Fstatus%3Dpending"' in page.content.decode()
    assert (problem(told), told["Retry-After"]) == ((429, "throttled"), "5")


def test_no_more_work_at_once_than_there_are_turns() -> None:
    queue = Queue(at_once=2, waiting=20, of_strangers=20, seconds=60)
    lock, both = threading.Lock(), threading.Barrier(2)
    at_work, most = 0, 0

    def work(_: int) -> None:
        nonlocal at_work, most
        with queue.turn():
            with lock:
                at_work += 1
                most = max(most, at_work)
            both.wait(60)  # Blocks unless two threads hash at the same time.
            with lock:
                at_work -= 1

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(work, range(20)))

    assert most == 2


def test_strangers_leave_places_for_who_is_known() -> None:
    queue = Queue(at_once=1, waiting=2, of_strangers=0, seconds=60)

    with ExitStack() as first:
        with for_a_stranger():
            first.enter_context(queue.turn())
            with pytest.raises(HashingBusy), queue.turn():
                pass
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(lambda: queue.turn().__enter__())
            first.close()
            waits.result(60)


def test_a_caller_that_waited_too_long_gives_its_slot_back() -> None:
    queue = Queue(at_once=1, waiting=1, of_strangers=1, seconds=0.01)

    with queue.turn():
        for _ in range(3):
            with pytest.raises(HashingBusy), queue.turn():
                pass
    with queue.turn():
        pass


if sys.platform == "linux":  # On other systems, threads have no priority of their own.

    @pytest.mark.parametrize(("before", "after"), [(19, 19), (0, queues.LOWER_PRIORITY)])
    def test_a_hash_never_asks_for_a_higher_priority_than_the_service_has(before: int, after: int) -> None:
        seen: list[int] = []

        def hash_in_a_service_of_lower_priority() -> None:
            own = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, own, max(before, os.getpriority(os.PRIO_PROCESS, own)))
            seen.append(queues.apart(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))

        thread = threading.Thread(target=hash_in_a_service_of_lower_priority)  # Inherits its creator's priority.
        thread.start()
        thread.join()

        assert seen == [max(after, os.getpriority(os.PRIO_PROCESS, 0))]
