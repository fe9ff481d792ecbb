"""If one sender sends too many requests at once, the excess ones wait, without delaying other senders' requests."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings
from django.test import AsyncClient
from starlette.types import Receive, Scope, Send

from accounts.models import User
from capabilities import Capability
from gatewayadmin import middleware
from gatewayadmin.middleware import FairShares
from tests import make


class Pages:
    """An application whose answers start and end on a test's command."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.may_begin, self.may_end = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.inside.append(scope["path"])
        if person := scope["path"].split("/")[1] if scope["path"].startswith("/of-") else "":
            scope[middleware.PERSON] = person
        await self.may_begin.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await self.may_end.wait()
        await send({"type": "http.response.body", "body": b""})


class Browser:
    """A client of `served`. Each request has the given headers, such as a cookie or token."""

    def __init__(self, served: FairShares) -> None:
        self._served = served
        self.answered: dict[str, tuple[int, dict[str, str]]] = {}

    async def ask(self, path: str, **headers: str) -> None:
        await self.ask_with(path, [(name.encode(), value.encode()) for name, value in headers.items()])

    async def ask_with(self, path: str, pairs: list[tuple[bytes, bytes]]) -> None:
        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                told = {name.decode(): value.decode() for name, value in message["headers"]}
                self.answered[path] = message["status"], told

        where, _, query = path.partition("?")
        scope = {"type": "http", "method": "GET", "path": where, "query_string": query.encode(), "headers": pairs}
        await self._served(scope, _nothing, send)


async def _nothing() -> Any:
    raise AssertionError("nobody reads the body here")


async def settled() -> None:
    """Let all tasks run until each of them waits."""
    for _ in range(20):
        await asyncio.sleep(0)


ANN, BEN = {"cookie": "other=1; gateway_session=ann"}, {"cookie": "gateway_session=ben"}


def serving(test: Callable[[Pages, FairShares, Browser], Awaitable[None]]) -> None:
    async def run() -> None:
        pages = Pages()
        served = FairShares(
            pages, most=2, session_cookie="gateway_session", free="/static/", heavy=re.compile("/logs/.*")
        )
        async with asyncio.timeout(60):
            await test(pages, served, Browser(served))

    asyncio.run(run())


def test_the_ninth_request_of_one_person_waits_for_their_own_and_another_persons_passes() -> None:
    async def test(pages: Pages, served: FairShares, browser: Browser) -> None:
        async with asyncio.TaskGroup() as asking:
            for number in range(9):
                asking.create_task(browser.ask(f"/ann/{number}", **ANN))
            await settled()
            assert pages.inside == ["/ann/0", "/ann/1"]
            asking.create_task(browser.ask("/ben/0", **BEN))
            asking.create_task(browser.ask("/static/app.css", **ANN))
            asking.create_task(browser.ask("/stranger"))
            await settled()
            assert pages.inside[2:] == ["/ben/0", "/static/app.css", "/stranger"]
            pages.may_begin.set()  # The answers start but do not end yet.
            await settled()
            assert pages.inside[5:] == [f"/ann/{number}" for number in range(2, 9)]
            pages.may_end.set()
        assert {status for status, _ in browser.answered.values()} == {200}
        assert not served._shares

    serving(test)


def test_searches_and_exports_wait_for_each_other_and_other_pages_of_the_same_person_pass() -> None:
    async def test(pages: Pages, served: FairShares, browser: Browser) -> None:
        async with asyncio.TaskGroup() as asking:
            many = "a&" * settings.DATA_UPLOAD_MAX_NUMBER_FIELDS
            for heavy in ("/logs/0", "/logs/1", "/people/?q=a&format=csv", "/people/?form%61t=csv", f"/hosts/?{many}"):
                asking.create_task(browser.ask(heavy, **ANN))
            asking.create_task(browser.ask("/logs/of-ben", **BEN))
            await settled()
            asking.create_task(browser.ask("/hosts/?q=a%26format=b", **ANN))
            await settled()
            assert pages.inside == ["/logs/0", "/logs/of-ben", "/hosts/"]
            pages.may_begin.set()
            pages.may_end.set()
        assert {status for status, _ in browser.answered.values()} == {200}
        assert not served._shares

    serving(test)


def test_the_last_of_several_cookie_headers_counts_as_it_does_for_the_pages() -> None:
    async def test(pages: Pages, served: FairShares, browser: Browser) -> None:
        async with asyncio.TaskGroup() as asking:
            for number in range(3):
                invented = [(b"cookie", f"gateway_session={number}".encode()), (b"cookie", b"gateway_session=ann")]
                asking.create_task(browser.ask_with(f"/{number}", invented))
            await settled()
            assert pages.inside == ["/0", "/1"]
            pages.may_begin.set()
            pages.may_end.set()

    serving(test)


def test_a_request_that_cannot_wait_gets_a_retry_time() -> None:
    for path, more in (
        ("/logs/", ANN),
        ("/api/logs", {"authorization": "Bearer gwk_1"}),
        ("/scim/v2/Users", ANN),
    ):

        async def test(
            pages: Pages, served: FairShares, browser: Browser, path: str = path, more: dict[str, str] = more
        ) -> None:
            async with asyncio.TaskGroup() as asking:
                for number in range(2 + middleware.MOST_WAITING):
                    asking.create_task(browser.ask(f"/{number}", **more))
                await settled()
                await browser.ask(path, **more)
                assert browser.answered[path][0] == 429
                assert browser.answered[path][1]["retry-after"] == "5"
                pages.may_begin.set()
                pages.may_end.set()
            assert len(browser.answered) == 3 + middleware.MOST_WAITING
            assert not served._shares

        serving(test)


def test_a_request_that_waited_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "LONGEST_WAIT_S", 0.0)

    async def test(pages: Pages, served: FairShares, browser: Browser) -> None:
        async with asyncio.TaskGroup() as asking:
            for number in range(2):
                asking.create_task(browser.ask(f"/{number}", **ANN))
            await settled()
            await browser.ask("/third", **ANN)
            assert browser.answered["/third"][0] == 429
            pages.may_begin.set()
            pages.may_end.set()
        assert not served._shares

    serving(test)


def test_all_sessions_and_tokens_of_a_person_are_one_share_once_they_are_known() -> None:
    credentials = [*({"cookie": f"gateway_session={number}"} for number in range(3)), {"authorization": "Bearer a"}]

    async def test(pages: Pages, served: FairShares, browser: Browser) -> None:
        pages.may_begin.set()
        pages.may_end.set()
        for number, credential in enumerate(credentials):
            await browser.ask(f"/of-ann/first/{number}", **credential)
        pages.may_begin.clear()
        pages.inside.clear()
        async with asyncio.TaskGroup() as asking:
            for number, credential in enumerate(credentials):
                asking.create_task(browser.ask(f"/of-ann/{number}", **credential))
            asking.create_task(browser.ask("/of-ben/0", **BEN))
            await settled()
            assert pages.inside == ["/of-ann/0", "/of-ann/1", "/of-ben/0"]
            pages.may_begin.set()
        assert {status for status, _ in browser.answered.values()} == {200}
        assert not served._shares

    serving(test)


def test_the_longest_unused_credentials_are_forgotten_and_no_answer_to_nobody_resets_a_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(middleware, "MOST_REMEMBERED", 2)

    async def test(pages: Pages, served: FairShares, browser: Browser) -> None:
        pages.may_begin.set()
        pages.may_end.set()
        for number in range(3):
            await browser.ask(f"/of-ann/{number}", cookie=f"gateway_session={number}")
        assert [*served._people.values()] == ["person of-ann"] * 2
        await browser.ask("/signed-out", cookie="gateway_session=2")
        assert [*served._people.values()] == ["person of-ann"] * 2

    serving(test)


def test_pages_and_rest_say_whose_request_it_was(viv: User) -> None:
    client = AsyncClient()

    def person_of(path: str, **headers: str) -> object:
        return async_to_sync(client.get)(path, headers=headers).asgi_request.scope.get(middleware.PERSON)

    assert person_of("/accounts/login/") is None
    assert person_of("/api/me", authorization=f"Bearer {make.api_key(viv, Capability.LOGS_READ).secret}") == viv.pk
    client.force_login(viv)
    assert person_of("/settings/api-tokens") == viv.pk
    assert person_of("/api/me", authorization="Bearer unknown") is None


def test_an_invented_token_is_no_share_beside_that_of_the_session() -> None:
    async def test(pages: Pages, served: FairShares, browser: Browser) -> None:
        async with asyncio.TaskGroup() as asking:
            for number in range(4):
                asking.create_task(browser.ask(f"/{number}", **ANN, authorization=f"Bearer {number}"))
            await settled()
            assert len(pages.inside) == 2
            pages.may_begin.set()
            pages.may_end.set()

    serving(test)
