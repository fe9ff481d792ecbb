"""Fair shares of the pages' database connections: requests wait only for others of the same sender.

A sender is a person, or a session or bearer token whose person is not known yet. Calls at /mcp have separate limits
(docs/reference/limits.md).
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
MOST_REMEMBERED = 10_000  # Sessions and tokens with known people; the least recently used are dropped.
PERSON = "person"  # Scope key of the person, set by gatewayadmin.middleware.note_person.


class SenderBusy(Exception):
    """Too many requests of this sender wait already, or this one has waited for too long."""


class FairShares:
    """Lets `most` requests of each sender into `app` at a time, until their answers begin.

    MOST_WAITING others wait, for at most LONGEST_WAIT_S; the rest get 429. Paths below `free` are not counted; of paths
    that `heavy` matches, each sender has a single request inside.
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
        # Sorted, to prevent deadlocks.
        senders = sorted({self._people.get(credential, credential) for credential in credentials})
        async with AsyncExitStack() as places:
            try:
                for sender in senders:
                    if self._heavy.fullmatch(scope["path"]):
                        await places.enter_async_context(self._place(f"{sender} heavy", 1))
                    await places.enter_async_context(self._place(sender, self._most))
            except SenderBusy:
                await busy(scope, RETRY_S)(scope, receive, send)
                return

            async def begin(message: Message) -> None:
                # The work is done; a slow reader must not delay other requests of the sender.
                await places.aclose()
                if message["type"] == "http.response.start":
                    self._remember(credentials, scope.get(PERSON))
                await send(message)

            await self._app(scope, receive, begin)

    def _remember(self, credentials: list[str], person: object) -> None:
        """Assign these credentials to `person`, if any, for later requests."""
        if person is None:
            return
        for credential in credentials:
            self._people.pop(credential, None)
            self._people[credential] = f"person {person}"
        while len(self._people) > MOST_REMEMBERED:
            del self._people[next(iter(self._people))]

    def _credentials(self, headers: Headers) -> Iterator[str]:
        """Yield the session and the token. Both count, or a made-up one would add a separate share."""
        if session := parse_cookie("; ".join(headers.getlist("cookie"))).get(self._session_cookie):
            yield f"session {_digest(session)}"
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            yield f"token {_digest(token.strip())}"

    @asynccontextmanager
    async def _place(self, sender: str, most: int) -> AsyncIterator[None]:
        """Hold one of the `most` slots of this sender. Raises SenderBusy."""
        share = self._shares.setdefault(sender, _Share(most))
        if share.requests >= most + MOST_WAITING:
            raise SenderBusy
        share.requests += 1
        try:
            try:
                async with asyncio.timeout(LONGEST_WAIT_S):
                    await share.places.acquire()
            except TimeoutError:
                raise SenderBusy from None
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
    """Running and waiting requests of one sender, and the semaphore of running ones."""

    def __init__(self, most: int) -> None:
        self.places = asyncio.Semaphore(most)
        self.requests = 0
