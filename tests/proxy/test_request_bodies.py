"""Request bodies are read only for known tokens: the headers decide first."""

import asyncio
import json
from typing import Any

import pytest

from auditlog.models import Call
from proxy.app import runtime
from proxy.request import UNAUTHENTICATED_BODY
from tests import make
from tests.proxy.conftest import config
from tokens.models import Issued
from wire import token_text

pytestmark = pytest.mark.full

PING = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"x": "y" * UNAUTHENTICATED_BODY}}).encode()
SHORT = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode()


@pytest.fixture
def issued(transactional_db: None) -> Issued:
    Call.partitions.make_ahead()
    user = make.user()
    gateway = make.gateway(slug="work")
    return make.token(make.connection(make.agent(by=user), gateway, user))


async def asked(secret: str | None, *pieces: bytes, **headers: str) -> tuple[int, int]:
    """Return the status of a POST whose body arrives in these pieces, and the number of pieces never read."""
    left = [*pieces]
    sent: list[Any] = []

    async def receive() -> Any:
        if not left:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Any) -> None:
        sent.append(message)

    named = {"authorization": f"Bearer {secret}"} if secret else {}
    pairs = [(n.replace("_", "-").encode(), v.encode()) for n, v in {**named, **headers}.items()]
    pairs.append((b"content-type", b"application/json"))
    scope = {"type": "http", "method": "POST", "path": "/mcp/work", "headers": pairs, "client": ("127.0.0.1", 1)}
    async with runtime(config()) as endpoint:
        await asyncio.wait_for(endpoint(scope, receive, send), 20)
    return sent[0]["status"], len(left)


async def test_a_body_is_read_for_a_token_that_may_call_unless_it_is_announced_as_too_large(issued: Issued) -> None:
    pieces = [PING[n : n + 1000] for n in range(0, len(PING), 1000)]
    assert await asked(issued.secret, *pieces, content_length=str(len(PING))) == (200, 0)
    assert await asked(issued.secret, *pieces) == (200, 0)
    assert await asked(issued.secret, SHORT) == (200, 0)
    assert await asked(issued.secret, PING, b"", content_length=str(5 << 20)) == (413, 2)


@pytest.fixture
def revoked(issued: Issued) -> Issued:
    issued.token.revoke(by=issued.token.connection.user)
    return issued


async def test_nothing_of_a_body_is_read_without_a_token_and_little_with_one_that_may_not_call(revoked: Issued) -> None:
    assert await asked(None, b"{}", b"x") == (401, 2)
    assert await asked("gwa_nonsense", b"{}", b"x") == (401, 2)
    pieces = [PING[n : n + 1000] for n in range(0, len(PING), 1000)]
    read = UNAUTHENTICATED_BODY // 1000 + 1
    for secret in (revoked.secret, token_text.mint(token_text.ACCESS)):
        assert await asked(secret, *pieces, content_length=str(len(PING))) == (401, len(pieces))
        assert await asked(secret, *pieces) == (401, len(pieces) - read)
        assert await asked(secret, SHORT) == (401, 0)


async def test_two_host_headers_are_a_bad_request(issued: Issued) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [(b"host", b"localhost"), (b"host", b"localhost"), (b"authorization", f"Bearer {issued.secret}".encode())]
    scope = {"type": "http", "method": "POST", "path": "/mcp/work", "headers": pairs, "client": ("127.0.0.1", 1)}
    async with runtime(config(hosts=frozenset({"localhost"}))) as endpoint:
        await endpoint(scope, None, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 400
