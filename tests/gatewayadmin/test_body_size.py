"""How much a client may send outside /mcp."""

import asyncio
from collections.abc import Iterable
from typing import cast

import pytest
from django.core.asgi import get_asgi_application
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gatewayadmin.serving.outer_middleware import LARGEST_ANONYMOUS_BODY, LARGEST_BODY, OuterMiddleware


async def greedy(scope: Scope, receive: Receive, send: Send) -> None:
    await Request(scope, receive).body()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


TOKEN = (b"authorization", b"Bearer x")
SESSION = (b"cookie", b"theme=dark; gateway_session=x")


def status_of(
    pieces: Iterable[bytes],
    headers: list[tuple[bytes, bytes]] | None = None,
    *,
    app: ASGIApp = greedy,
    named: tuple[bytes, bytes] | None = TOKEN,
) -> tuple[int, int]:
    """The status of a POST with this body by somebody `named`, and how many pieces were never asked for."""
    left = [*pieces]
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "headers": [(b"host", b"x"), *([named] if named else []), *(headers or [])],
    }
    edge = OuterMiddleware(app, hosts=["x"], scheme="http", trusted=[], unchecked=[], session_cookie="gateway_session")
    asyncio.run(edge(scope, receive, send))
    return sent[0]["status"], len(left)


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
