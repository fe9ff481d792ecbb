"""How much a client may send outside /mcp."""

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
from gatewayadmin.middleware import LARGEST_ANONYMOUS_BODY, LARGEST_BODY, OuterMiddleware
from tests import make
from tests.conftest import SignIn
from wire import token_text


async def greedy(scope: Scope, receive: Receive, send: Send) -> None:
    await Request(scope, receive).body()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


TOKEN = (b"authorization", b"Bearer x")
SESSION = (b"cookie", b"theme=dark; gateway_session=x")


def status_of(
    pieces: Iterable[bytes], headers: list[tuple[bytes, bytes]] | None = None, **more: Any
) -> tuple[int, int]:
    """The status of a POST with this body by somebody `named`, and how many pieces were never asked for."""
    sent, left = answer_to(pieces, headers, **more)
    return sent[0]["status"], left


def answer_to(
    pieces: Iterable[bytes],
    headers: list[tuple[bytes, bytes]] | None = None,
    *,
    app: ASGIApp = greedy,
    named: tuple[bytes, bytes] | None = TOKEN,
    known: bool = True,
    path: str = "/",
    host: bytes = b"x",
) -> tuple[list[Message], int]:
    """The messages of the answer to it, and the same number."""
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

    async def is_known(_: Headers) -> bool:
        return known

    edge = OuterMiddleware(
        app, hosts=["x"], scheme="http", trusted=[], unchecked=[], session_cookie="gateway_session", is_known=is_known
    )
    asyncio.run(edge(scope, receive, send))
    return sent, len(left)


def test_a_body_of_three_mebibytes_is_taken() -> None:
    length = [(b"content-length", str(LARGEST_BODY).encode())]
    assert status_of([b"x" * LARGEST_BODY], length) == (200, 0)


def test_a_body_announced_as_larger_is_refused_unread() -> None:
    length = [(b"content-length", str(LARGEST_BODY + 1).encode())]
    assert status_of([b"x"], length) == (413, 1)


def test_a_body_that_grows_too_large_is_refused_where_it_does() -> None:
    assert status_of([b"x" * (1024 * 1024)] * 6) == (413, 2)


def test_django_stops_reading_a_body_that_grows_too_large() -> None:
    assert status_of([b"x" * (1024 * 1024)] * 6, app=cast(ASGIApp, get_asgi_application())) == (413, 2)


@pytest.mark.parametrize("named", [TOKEN, SESSION, None])
def test_a_body_of_nobody_may_have_64_kibibytes(named: tuple[bytes, bytes] | None) -> None:
    most = LARGEST_ANONYMOUS_BODY
    assert status_of([b"x" * most], named=named) == (200, 0)
    assert status_of([b"x" * most, b"x", b"x"], named=named) == ((200, 0) if named else (413, 1))
    length = [(b"content-length", str(most + 1).encode())]
    assert status_of([b"x" * (most + 1)], length, named=named) == ((200, 0) if named else (413, 1))


@pytest.mark.parametrize("named", [TOKEN, SESSION])
def test_of_an_invented_key_or_session_no_more_is_read_than_of_nobody(named: tuple[bytes, bytes]) -> None:
    most = LARGEST_ANONYMOUS_BODY
    assert status_of([b"x" * most], named=named, known=False) == (200, 0)
    assert status_of([b"x" * most, b"x", b"x"], named=named, known=False) == (413, 1)


@pytest.mark.parametrize("named", [TOKEN, SESSION])
def test_an_invented_key_with_a_large_body_is_refused_unread(named: tuple[bytes, bytes]) -> None:
    length = [(b"content-length", str(LARGEST_ANONYMOUS_BODY + 1).encode())]
    assert status_of([b"x"], length, named=named, known=False) == (401, 1)


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
def test_who_is_known_is_told_from_the_head(sign_in: SignIn) -> None:
    person = make.user(Capability.SERVERS_MANAGE)
    session = str(sign_in(person).session.session_key)
    key = make.api_key(person, Capability.SERVERS_MANAGE)
    revoked = make.api_key(person, Capability.SERVERS_MANAGE)
    revoked.key.revoke(by=person)
    invented = token_text.mint(token_text.PERSONAL)

    assert middleware._is_known(key.secret, "")
    assert middleware._is_known("", session)
    assert not any(middleware._is_known(*each) for each in ((invented, ""), (revoked.secret, ""), ("", "x" * 32)))


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer gwp_x", "cookie": "gateway_session=x"}, {"authorization": "Basic eDp4"}],
    ids=["nobody", "no key, and a session that is ignored then", "another scheme"],
)
async def test_what_cannot_be_anybody_is_told_without_the_database(headers: dict[str, str]) -> None:
    assert not await middleware.is_known(Headers(headers))


async def test_invented_keys_and_sessions_are_looked_up_two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, most, lock = 0, 0, threading.Lock()
    both = threading.Barrier(middleware.LOOKUPS_AT_ONCE)

    def look_up(secret: str, session: str) -> bool:
        nonlocal busy, most
        with lock:
            busy, most = busy + 1, max(most, busy + 1)
        both.wait(60)  # So that there are two at once, and every further one would be seen.
        with lock:
            busy -= 1
        return False

    monkeypatch.setattr(middleware, "_is_known", look_up)
    keys = [Headers({"authorization": f"Bearer {token_text.mint(token_text.PERSONAL)}"}) for _ in range(20)]
    sessions = [Headers({"cookie": f"{settings.SESSION_COOKIE_NAME}=invented"}) for _ in range(20)]

    assert not any(await asyncio.gather(*map(middleware.is_known, [*keys, *sessions])))
    assert most == middleware.LOOKUPS_AT_ONCE == 2


@pytest.mark.parametrize(
    ("path", "most"),
    [
        ("/oauth/token", 8 * 1024),
        ("/oauth/revoke", 8 * 1024),
        ("/oauth/register", 16 * 1024),
        ("/oauthless", LARGEST_ANONYMOUS_BODY),
        ("/accounts/login/", LARGEST_ANONYMOUS_BODY),
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
