"""Fair shares of the pages' database connections: a sender's requests wait for each other, not before others'.

A sender is a person. A session or bearer token whose person is not known yet is a sender of its own. Agents' calls at
/mcp have limits of their own (docs/reference/limits.md).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

from django.http import parse_cookie
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gatewayadmin.serving.outer_middleware import busy

MOST_WAITING = 32
LONGEST_WAIT_S = 10.0
RETRY_S = 5
MOST_REMEMBERED = 10_000  # Sessions and tokens whose person is known; the longest unused are forgotten.
PERSON = "person"  # In the scope of a request: whose it was. Set by gatewayadmin.middleware.note_person.


class Busy(Exception):
    """Too many requests of this sender wait already, or this one has waited for too long."""


class FairShares:
    """Lets `most` requests of each sender into `app` at a time, until their answers begin.

    Of the others MOST_WAITING wait, for LONGEST_WAIT_S at most; the rest get 429. Paths below `free` are not counted;
    of those that `heavy` matches a single one of each sender is inside.
    """

    def __init__(self, app: ASGIApp, *, most: int, session_cookie: str, free: str, heavy: re.Pattern[str]) -> None:
        self._app = app
        self._most = most
        self._heavy = heavy
        self._session_cookie = session_cookie
        self._free = free
        self._shares: dict[str, _Share] = {}
        self._people: dict[str, str] = {}  # By session or token.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(self._free):
            await self._app(scope, receive, send)
            return
        credentials = list(self._credentials(Headers(scope=scope)))
        # Sorted, so that no two requests wait for each other.
        senders = sorted({self._people.get(credential, credential) for credential in credentials})
        async with AsyncExitStack() as places:
            try:
                for sender in senders:
                    if self._heavy.fullmatch(scope["path"]):
                        await places.enter_async_context(self._place(f"{sender} heavy", 1))
                    await places.enter_async_context(self._place(sender, self._most))
            except Busy:
                await busy(scope, RETRY_S)(scope, receive, send)
                return

            async def begin(message: Message) -> None:
                # Its work is done: however slowly it is read, others of the same sender need not wait for that.
                await places.aclose()
                if message["type"] == "http.response.start":
                    self._remember(credentials, scope.get(PERSON))
                await send(message)

            await self._app(scope, receive, begin)

    def _remember(self, credentials: list[str], person: object) -> None:
        """Count the next requests with these credentials to `person`; an answer to nobody changes nothing."""
        if person is None:
            return
        for credential in credentials:
            self._people.pop(credential, None)
            self._people[credential] = f"person {person}"
        while len(self._people) > MOST_REMEMBERED:
            del self._people[next(iter(self._people))]

    def _credentials(self, headers: Headers) -> Iterator[str]:
        """The session and the token of these headers: both, or an invented one would be a share of its own."""
        if session := parse_cookie("; ".join(headers.getlist("cookie"))).get(self._session_cookie):
            yield f"session {_digest(session)}"
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            yield f"token {_digest(token.strip())}"

    @asynccontextmanager
    async def _place(self, sender: str, most: int) -> AsyncIterator[None]:
        """Hold one of the `most` places of this sender's requests. Raises Busy."""
        share = self._shares.setdefault(sender, _Share(most))
        if share.requests >= most + MOST_WAITING:
            raise Busy
        share.requests += 1
        try:
            try:
                async with asyncio.timeout(LONGEST_WAIT_S):
                    await share.places.acquire()
            except TimeoutError:
                raise Busy from None
            try:
                yield
            finally:
                share.places.release()
        finally:
            share.requests -= 1
            if not share.requests:
                del self._shares[sender]


def _digest(credential: str) -> str:
    """Return a digest to remember instead of the credential itself."""
    return hashlib.blake2b(credential.encode(errors="surrogateescape"), digest_size=16).hexdigest()


class _Share:
    """The requests of one sender that run or wait, and the places of those that run."""

    def __init__(self, most: int) -> None:
        self.places = asyncio.Semaphore(most)
        self.requests = 0
