"""Size limits of request bodies outside /mcp."""

import asyncio
import json
import threading
from collections.abc import Iterable
from typing import Any, cast

import pytest
from django.conf import settings
from django.core.asgi import get_asgi_application
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from capabilities import Capability
from gatewayadmin import middleware
from gatewayadmin.middleware import LARGEST_ANONYMOUS_BODY, LARGEST_BODY, OuterMiddleware, SenderBusy
from sso.saml import responses
from tests import make
from tests.conftest import SignIn
from tests.eventually import until
from wire import fair_queue, token_text


async def greedy(scope: Scope, receive: Receive, send: Send) -> None:
    await Request(scope, receive).body()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


TOKEN = (b"authorization", b"Bearer x")
SESSION = (b"cookie", b"theme=dark; gateway_session=x")


def status_of(
    pieces: Iterable[bytes], headers: list[tuple[bytes, bytes]] | None = None, **more: Any
) -> tuple[int, int]:
    """Return the status of a POST with this body, and how many pieces were never read."""
    sent, left = answer_to(pieces, headers, **more)
    return sent[0]["status"], left


def answer_to(
    pieces: Iterable[bytes],
    headers: list[tuple[bytes, bytes]] | None = None,
    *,
    app: ASGIApp = greedy,
    named: tuple[bytes, bytes] | None = TOKEN,
    known: bool | None = True,
    path: str = "/",
    host: bytes = b"x",
) -> tuple[list[Message], int]:
    """Return the messages of the answer, and the number of unread pieces.

    `known` tells if the session or token exists; None means that the sender has too many waiting requests.
    """
    left = [*pieces]
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", host), *([named] if named else []), *(headers or [])],
    }

    async def is_known(_headers: Headers, _sender: str) -> bool:
        if known is None:
            raise SenderBusy
        return known

    edge = OuterMiddleware(
        app, hosts=["x"], scheme="http", trusted=[], unchecked=[], session_cookie="gateway_session", is_known=is_known
    )
    asyncio.run(edge(scope, receive, send))
    return sent, len(left)


def test_a_body_has_three_mebibytes_at_most_and_is_refused_unread_or_where_it_grows_too_large() -> None:
    def length(size: int) -> list[tuple[bytes, bytes]]:
        return [(b"content-length", b"%d" % size)]

    assert status_of([b"x" * LARGEST_BODY], length(LARGEST_BODY)) == (200, 0)
    assert status_of([b"x"], length(LARGEST_BODY + 1)) == (413, 1)
    assert status_of([b"x" * (1024 * 1024)] * 6) == (413, 2)
    told = [answer_to([b"x"], length(LARGEST_BODY + 1), path=path)[0][1]["body"] for path in ("/", "/api/hosts")]
    assert told[0] == b"The request is larger than 3072 KiB.\n"
    assert json.loads(told[1]) == {"detail": told[0].decode().strip(), "code": "too_large"}


def test_django_stops_reading_a_body_that_grows_too_large() -> None:
    assert status_of([b"x" * (1024 * 1024)] * 6, app=cast(ASGIApp, get_asgi_application())) == (413, 2)


@pytest.mark.parametrize("named", [TOKEN, SESSION, None])
def test_a_body_of_nobody_may_have_64_kibibytes(named: tuple[bytes, bytes] | None) -> None:
    most = LARGEST_ANONYMOUS_BODY
    assert status_of([b"x" * most], named=named) == (200, 0)
    assert status_of([b"x" * most, b"x", b"x"], named=named) == ((200, 0) if named else (413, 1))
    length = [(b"content-length", str(most + 1).encode())]
    assert status_of([b"x" * (most + 1)], length, named=named) == ((200, 0) if named else (413, 1))


def test_a_saml_response_with_hundreds_of_groups_is_read() -> None:
    most = responses.LONGEST * 5 // 4  # The encoding of a form makes it longer.
    (start, *_), left = answer_to([b"x" * most], named=None, path="/accounts/organisation/saml/acs/")

    assert (start["status"], left) == (200, 0)


@pytest.mark.parametrize("named", [TOKEN, SESSION])
def test_an_invented_key_or_session_allows_no_larger_body_than_anonymous(named: tuple[bytes, bytes]) -> None:
    most = LARGEST_ANONYMOUS_BODY
    assert status_of([b"x" * most], named=named, known=False) == (200, 0)
    assert status_of([b"x" * most, b"x", b"x"], named=named, known=False) == (413, 1)
    announced = [(b"content-length", b"%d" % (most + 1))]
    assert status_of([b"x"], announced, named=named, known=False) == (401, 1), "refused unread"


def test_too_many_look_ups_of_a_sender_get_a_retry_time() -> None:
    most = LARGEST_ANONYMOUS_BODY
    announced = answer_to([b"x"], [(b"content-length", str(most + 1).encode())], known=None)
    grown = answer_to([b"x" * most, b"x", b"x"], known=None)

    for (sent, left), unread in ((announced, 1), (grown, 1)):
        told = dict(sent[0]["headers"])
        assert (sent[0]["status"], left) == (429, unread)
        assert (told[b"retry-after"], told[b"connection"]) == (b"5", b"close")


def test_directories_are_refused_in_the_only_form_they_read() -> None:
    length = [(b"content-length", str(LARGEST_ANONYMOUS_BODY + 1).encode())]
    refusals = [
        answer_to([b"x"], [(b"content-length", str(LARGEST_BODY + 1).encode())], path="/scim/v2/Users"),
        answer_to([b"x"], length, known=False, path="/scim/v2/Users"),
        answer_to([b"x"], host=b"elsewhere", path="/scim/v2/Users"),
    ]
    for (sent, _), status in zip(refusals, (413, 401, 400), strict=True):
        told = json.loads(sent[1]["body"])
        assert sent[0]["status"] == status
        assert dict(sent[0]["headers"])[b"content-type"] == b"application/scim+json"
        assert (told["schemas"], told["status"]) == (["urn:ietf:params:scim:api:messages:2.0:Error"], str(status))
        assert told["detail"]


@pytest.mark.django_db
def test_known_senders_are_recognised_by_their_headers(sign_in: SignIn) -> None:
    person = make.user(Capability.SERVERS_MANAGE)
    session = str(sign_in(person).session.session_key)
    key = make.api_key(person, Capability.SERVERS_MANAGE)
    revoked = make.api_key(person, Capability.SERVERS_MANAGE)
    revoked.key.revoke(by=person)
    invented = token_text.mint(token_text.PERSONAL)

    assert middleware._is_known(key.secret, "")
    assert middleware._is_known("", session)
    assert not any(middleware._is_known(*each) for each in ((invented, ""), (revoked.secret, ""), ("", "x" * 32)))


async def test_impossible_credentials_are_refused_without_the_database() -> None:
    for headers in (
        {},
        {"authorization": "Bearer gwp_x", "cookie": "gateway_session=x"},  # No key, and the session is ignored then.
        {"authorization": "Basic eDp4"},
    ):
        assert not await middleware.is_known(Headers(headers), "192.0.2.1")


class LookedUp:
    """Session look-ups that block until `may_end`; counts the running look-ups and their maximum."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.most, self.may_end = 0, 0, threading.Event()
        self._lock = threading.Lock()
        monkeypatch.setattr(middleware, "_is_known", self._look_up)

    def _look_up(self, secret: str, session: str) -> bool:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.may_end.wait(60)
        with self._lock:
            self.now -= 1
        return False

    def ask(self, sender: str) -> asyncio.Task[bool]:
        """Start to look up an unknown session for this sender."""
        headers = Headers({"cookie": f"{settings.SESSION_COOKIE_NAME}=invented"})
        return asyncio.create_task(middleware.is_known(headers, sender))


async def test_one_look_up_per_sender_and_two_in_total_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = LookedUp(monkeypatch)
    crowd = [looked_up.ask("192.0.2.1") for _ in range(20)]
    await until(lambda: looked_up.now)
    others = [looked_up.ask(f"192.0.2.{number}") for number in range(2, 10)]
    await until(lambda: looked_up.now == 2)
    looked_up.may_end.set()

    assert not any(await asyncio.gather(*others, *crowd))
    assert looked_up.most == middleware.LOOKUPS_AT_ONCE == 2


async def test_a_look_up_whose_request_is_gone_keeps_its_place_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = LookedUp(monkeypatch)
    gone = [looked_up.ask(sender) for sender in ("192.0.2.1", "192.0.2.2")]
    await until(lambda: looked_up.now == 2)
    for each in gone:
        each.cancel()
    await asyncio.wait(gone)
    next_one = looked_up.ask("192.0.2.3")
    await until(lambda: middleware._lookups.waiting)
    looked_up.may_end.set()

    assert not await next_one
    assert looked_up.most == 2
    await until(lambda: not middleware._lookups.under_way and not middleware._lookups.waiting)


async def test_a_look_up_that_waited_too_long_is_refused_and_others_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(middleware, "LONGEST_WAIT_S", 0.0)
    looked_up = LookedUp(monkeypatch)
    first = looked_up.ask("192.0.2.1")

    with pytest.raises(SenderBusy):
        await looked_up.ask("192.0.2.1")
    other = looked_up.ask("192.0.2.2")
    await until(lambda: looked_up.now == 2)
    looked_up.may_end.set()
    assert not any(await asyncio.gather(first, other))


async def test_no_more_look_ups_of_one_sender_wait_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_queue, "MOST_WAITING_OF_ONE", 2)
    looked_up = LookedUp(monkeypatch)
    crowd = [looked_up.ask("192.0.2.1") for _ in range(3)]
    await until(lambda: middleware._lookups.waiting == 2)

    with pytest.raises(SenderBusy):
        await looked_up.ask("192.0.2.1")
    looked_up.may_end.set()
    assert not any(await asyncio.gather(*crowd))


@pytest.mark.parametrize(
    ("path", "most"),
    [
        ("/oauth/token", 8 * 1024),
        ("/oauth/register", 16 * 1024),
        ("/oauthless", LARGEST_ANONYMOUS_BODY),
    ],
)
def test_programs_that_are_nobody_yet_may_send_what_forms_and_registrations_need(path: str, most: int) -> None:
    def told(size: int, **options: Any) -> int:
        return status_of([b"x" * size], [(b"content-length", b"%d" % size)], path=path, **options)[0]

    assert told(most, named=None) == 200
    assert told(most + 1, named=None) == 413
    assert status_of([b"x" * most, b"x"], named=None, path=path)[0] == 413, "in chunks too"
    assert told(most + 1, known=True) == 200
    assert told(most + 1, known=False) == 401
