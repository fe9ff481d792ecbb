"""A repeated request with the same Idempotency-Key gets the same answer and creates nothing twice."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from ipaddress import ip_network
from typing import Any
from uuid import uuid4

import anyio.to_thread
import httpx
import pytest
import time_machine
from django.conf import settings
from django.core.mail.backends.base import BaseEmailBackend
from django.db import connection, connections
from django.utils import timezone
from pytest_django import Settings

from accounts.models import User
from capabilities import Capability
from gatewayadmin.serving import housekeeping
from gateways.models import Gateway
from hosts.models import Host
from tests import make, upstreams
from tests.api.test_matrix import DOORS, Door, for_a_moment
from tests.api.world import World, build
from tests.conftest import Run
from tests.house.doors import browser, session_of
from tests.make import unique
from tests.rest import Rest, errors, problem
from tokens.models import Token
from ui.models import KEPT, KeptAnswer
from wire.cipher import Cipher

pytestmark = pytest.mark.django_db

POSTS = [door for door in DOORS if door.method == "post"]
MAKING = {door.name: door for door in POSTS if door.operation.makes}
# These change existing objects; a repeated request reports the earlier change or changes nothing.
OTHER_POSTS = {
    "accessrequest": "approve decline end withdraw",
    "accessreview": "answer-lines close reassign remind",
    "allowance": "end",
    "apikey": "revoke",
    "assignment": "disable enable narrow widen",
    "call": "what-if",
    "channel": "test",
    "config": "apply plan",
    "connection": "disable enable revoke stop",
    "directoryaddress": "disable enable",
    "feature": "accept quarantine",
    "gateway": "archive disable enable",
    "hold": "approve deny withdraw",
    "host": "approve archive disable enable stop",
    "identity": "confirm disable enable revoke",
    "me": "ask-for confirm",
    "organisation": "test",
    "provisioning-key": "end-previous revoke",
    "rule": "disable enable move",
    "server": "archive bring disable enable stop test",
    "sign": "in",
    "sink": "disable enable send-now test",
    "token": "ask-for-new end-previous revoke stop",
    "tool": "refresh",
    "user": "cut-off deactivate decline-request reactivate revoke-invitation sign-out stop",
    "workspace": "keep-logs test-mail",
}
CHANGING = {f"{noun}-{verb}" for noun, verbs in OTHER_POSTS.items() for verb in verbs.split()}


@pytest.fixture
def boss() -> User:
    return make.user(*Capability)


@pytest.fixture
def rest(boss: User) -> Rest:
    return Rest.bearing(make.api_key(boss, *Capability).secret)


def post(rest: Rest, path: str, body: Any, key: str) -> Any:
    return rest.send("post", path, body, {"Idempotency-Key": key})


def test_every_post_that_makes_something_takes_a_key() -> None:
    assert {door.name for door in POSTS} - CHANGING == set(MAKING)
    for door in POSTS:
        headers = {one["name"] for one in door.described.get("parameters", ()) if one["in"] == "header"}
        assert ("Idempotency-Key" in headers) == (door.name in MAKING), door.name
        assert ("422" in door.described["responses"]) == (door.name in MAKING), door.name


def again(door: Door, world: World) -> tuple[Any, Any, Any]:
    """Return the answers to a request, to its repetition, and to another request with the same key."""
    key = {"Idempotency-Key": str(uuid4())}
    if door.name == "token-collect":
        Token.objects.get(pk=door.kwargs(world)["pk"]).ask_for_new(by=world.boss)
    for person in (world.boss, world.owner):
        rest = Rest(browser(session_of(person)))
        first = door.ask(world, rest, **key)
        if first.status_code < 300:
            other = rest.send("post", door.path(world), {"other": 1}, key)
            return first, door.ask(world, rest, **key), other
    raise AssertionError(f"nobody may {door.name}")


@pytest.mark.full
def test_each_gives_the_same_answer_again() -> None:
    world = build()
    for door in MAKING.values():
        with for_a_moment():
            first, second, other = again(door, world)
            assert second["Idempotency-Replayed"] == "true", door.name
            assert "Idempotency-Replayed" not in first
            assert (second.status_code, second.content) == (first.status_code, first.content), door.name
            for header in ("ETag", "Cache-Control"):
                assert second.get(header) == first.get(header), door.name
            assert problem(other) == (422, "idempotency_key_reused"), door.name


def test_another_request_with_the_same_key_is_refused(rest: Rest) -> None:
    assert set(errors(post(rest, "/hosts", {}, "k"))) == {"name"}  # A refusal is not kept.
    assert post(rest, "/hosts", {"name": "one"}, "k").status_code == 201

    assert problem(post(rest, "/hosts", {"name": "two"}, "k")) == (422, "idempotency_key_reused")
    assert problem(post(rest, "/teams", {"name": "one"}, "k")) == (422, "idempotency_key_reused")
    assert [host.name for host in Host.objects.all()] == ["one"]


@pytest.mark.full
def test_a_key_belongs_to_its_credential(rest: Rest, boss: User) -> None:
    others = [Rest.bearing(make.api_key(boss, *Capability).secret), Rest.of(boss), Rest.of(boss)]

    made = [post(one, "/teams", {"name": unique("t")}, "k") for one in (rest, *others)]

    assert [answer.status_code for answer in made] == [201] * 4
    assert len({answer.json()["id"] for answer in made}) == 4


def test_a_key_that_is_none_is_refused(rest: Rest) -> None:
    for key in ("", "a b", "x" * 256, "schlüssel"):
        assert set(errors(post(rest, "/hosts", {"name": "one"}, key))) == {"Idempotency-Key"}, key
    assert not Host.objects.exists()


def test_the_secret_is_told_again_and_kept_sealed(rest: Rest, boss: User) -> None:
    body = {"host_id": str(make.agent(by=boss).pk), "gateway_id": str(make.gateway().pk), "name": "t"}

    first, second = (post(rest, "/tokens", body, "k") for _ in range(2))

    assert first.json()["token"] == second.json()["token"]
    assert Token.objects.count() == 1
    sealed = bytes(KeptAnswer.objects.get().sealed)
    assert first.json()["token"].encode() not in sealed
    assert first.json()["token"] in Cipher(settings.ENCRYPTION_KEYS).open(sealed)


@pytest.mark.full
def test_an_answer_is_kept_for_an_hour_and_swept_then(rest: Rest) -> None:
    first = post(rest, "/teams", {"name": "one"}, "k")
    KeptAnswer.objects.update(created_at=timezone.now() - KEPT + timedelta(minutes=1))
    assert post(rest, "/teams", {"name": "one"}, "k").json() == first.json()
    assert housekeeping.CHORES["kept_answers"](timezone.now()) == 0

    KeptAnswer.objects.update(created_at=timezone.now() - KEPT)

    assert problem(post(rest, "/teams", {"name": "one"}, "k")) == (409, "already_exists")
    assert housekeeping.CHORES["kept_answers"](timezone.now()) == 1


def test_an_answer_is_kept_for_an_hour_of_the_databases_clock(rest: Rest) -> None:
    first = post(rest, "/teams", {"name": "one"}, "k")

    with time_machine.travel(timezone.now() + 2 * KEPT):
        assert post(rest, "/teams", {"name": "one"}, "k").json() == first.json()


@pytest.mark.full
def test_an_answer_whose_encryption_key_is_gone_is_not_made_again(rest: Rest) -> None:
    assert post(rest, "/teams", {"name": "one"}, "k").status_code == 201
    KeptAnswer.objects.update(sealed=b"sealed with another key")

    assert problem(post(rest, "/teams", {"name": "one"}, "k")) == (409, "idempotency_answer_lost")


@pytest.mark.full
def test_one_of_many_concurrent_requests_wins_over_two_workers(owner: httpx.Client) -> None:
    name, headers = unique("bot"), {"Idempotency-Key": str(uuid4())}

    def send(_: int) -> httpx.Response:
        return owner.post("/api/hosts", json={"name": name}, headers=headers)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(send, range(6)))

    made = [answer for answer in answers if answer.status_code == 201]
    waiting = [answer for answer in answers if answer.status_code != 201]
    assert len({answer.json()["id"] for answer in made}) == 1
    assert all(answer.json()["code"] == "idempotency_in_progress" for answer in waiting)
    assert all(answer.headers["retry-after"] == "1" for answer in waiting)
    assert send(0).headers["idempotency-replayed"] == "true"


# --- Operations that contact another server ---------------------------------------------------------------------------


class Crashing(BaseEmailBackend):
    """A mail backend that raises SystemError, as if the process crashed while it sends mail."""

    def send_messages(self, messages: Any) -> int:
        raise SystemError


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_a_server_that_takes_its_time_for_its_first_list_holds_up_nobody(
    rest: Rest, boss: User, run: Run, settings: Settings
) -> None:
    settings.PRIVATE_UPSTREAMS = [ip_network("127.0.0.0/8")]
    docs = upstreams.docs()
    seen: list[object] = []
    gateway = make.gateway(slug="work")
    body: dict[str, str] = {}

    def meanwhile() -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '1s'")
            seen.append(problem(post(rest, "/gateways/work/servers", body, "k")))
            Gateway.objects.get(pk=gateway.pk).disable(by=boss)
            seen.append(gateway.assignments.count())
        finally:
            connections.close_all()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not seen:
            await anyio.to_thread.run_sync(meanwhile)
        await docs(scope, receive, send)

    body["server_id"] = str(make.server(slug="docs", url=run(slow).url).pk)

    first = post(rest, "/gateways/work/servers", body, "k")

    assert seen == [(409, "idempotency_in_progress"), 1]
    again = post(rest, "/gateways/work/servers", body, "k")
    assert (first.status_code, again.content, again["ETag"]) == (201, first.content, first["ETag"])
    assert again["Idempotency-Replayed"] == "true"
    assert first.json()["tools_count"] > 0


@pytest.mark.django_db(transaction=True)
def test_one_who_was_invited_when_the_process_ended_is_told_of_again(boss: User, settings: Settings) -> None:
    rest = Rest(browser(session_of(boss)))
    settings.MAILERS = {"default": {"BACKEND": f"{__name__}.Crashing"}}
    body = {"email": "new@example.com", "role_id": str(make.role().pk)}

    with pytest.raises(SystemError):
        post(rest, "/users", body, "k")
    again = post(rest, "/users", body, "k")

    assert again["Idempotency-Replayed"] == "true"
    assert again.json()["id"] == str(User.objects.get(email="new@example.com").pk)
    assert again.json()["invitation"]["mailed"] is False
