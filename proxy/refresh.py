"""Refresh access tokens for the calls of this process: in the background before they expire, otherwise on demand."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from proxy.access.decision import AssignedServer
from proxy.access.features import Refusal
from proxy.store.pg import DatabaseUnavailable, StatePool
from proxy.store.refresh import STATEMENTS, NotRenewed, Renewal, Statement, renewal
from wire.background import Background
from wire.cipher import Cipher
from wire.errors import AccessRefused, UpstreamError
from wire.http import Transport
from wire.oauth_client import SECONDS, TokenRequest, read_challenge, union

logger = logging.getLogger(__name__)

STORE_ATTEMPTS = 5  # The issuer gives a token only once, so storing it is retried.
STORE_PAUSE = 0.5


class IdentityUnavailable(UpstreamError):
    """The issuer of an identity cannot be asked just now for a fresh token."""

    reason = "identity_unavailable"
    sentence = 'The identity for server "{server}" cannot be renewed just now; try again soon.'


class MoreRights(Refusal):
    """The server wants scopes that were not granted."""


class Refresher:
    """Renews identities from sign-ins. Concurrent calls with the same identity share one renewal."""

    def __init__(self, state: StatePool, entered: Transport, named: Transport, cipher: Cipher) -> None:
        self._state = state
        self._transports = {True: entered, False: named}  # Whether an administrator entered the issuer's URL.
        self._cipher = cipher
        self._under_way: dict[tuple[str, str], asyncio.Task[str]] = {}
        self._background = Background(NotRenewed, DatabaseUnavailable)

    async def stop(self) -> None:
        """Wait for running renewals: an unstored token would be lost, and an unrevoked one would stay valid."""
        await self._background.stop(patience=SECONDS)

    async def fresh(self, assigned: AssignedServer) -> AssignedServer:
        """Return the server with an unexpired token; waits only if the present one has expired.

        Raises Refusal or IdentityUnavailable.
        """
        if assigned.sign_in is None or (seconds_left := assigned.sign_in[1]) is None:
            return assigned
        if seconds_left > 0:
            self._begin(assigned)
            return assigned
        return await self.renewed(assigned)

    async def renewed(self, assigned: AssignedServer) -> AssignedServer:
        """Return the server with a newly renewed token. Raises Refusal or IdentityUnavailable."""
        try:
            ciphertext = await asyncio.shield(self._begin(assigned))
        except NotRenewed as error:
            if error.reason == "identity_unavailable":
                raise IdentityUnavailable(assigned.server_name, str(error)) from None
            raise Refusal(error.reason, assigned) from None
        except DatabaseUnavailable as error:
            raise IdentityUnavailable(assigned.server_name, str(error)) from None
        return assigned._replace(ciphertext=ciphertext, sign_in=(False, None))

    async def after(self, refusal: AccessRefused, assigned: AssignedServer) -> AssignedServer | None:
        """Return the server with a renewed token after it refused the present one, or None if that cannot help.

        Raises Refusal when a person has to sign in again.
        """
        if assigned.sign_in is None:
            return None
        if refusal.status == 401:
            return await self.renewed(assigned)
        challenge = read_challenge([refusal.challenge])
        if challenge.error == "insufficient_scope":
            await self._want(assigned, challenge.scope)
            raise MoreRights("identity_scope", assigned)
        return None

    async def give_up(self, assigned: AssignedServer) -> Refusal:
        """Note that the server refuses a newly renewed token, and return the error for the caller."""
        parameters = {
            "identity": assigned.identity_id,
            "ciphertext": assigned.ciphertext,
            "lease": None,
            "reason": "token",
            "detail": "HTTP 401",
        }
        await self._run(Statement(STATEMENTS["refused"], parameters))
        return Refusal("identity_sign_in", assigned)

    async def _want(self, assigned: AssignedServer, scope: str) -> None:
        statement = Statement(STATEMENTS["more_scope"], {"identity": assigned.identity_id, "scope": union(scope)})
        try:
            await self._run(statement)
        except DatabaseUnavailable as error:
            logger.warning("wanted rights not noted", extra={"error": str(error)})

    def _begin(self, assigned: AssignedServer) -> asyncio.Task[str]:
        assert assigned.identity_id is not None
        key = assigned.identity_id, assigned.ciphertext or ""
        task = self._under_way.get(key)
        if task is None:
            task = self._background.spawn("renewal", self._drive(renewal(*key, self._cipher)))
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        return task

    def _ended(self, key: tuple[str, str], task: asyncio.Task[str]) -> None:
        del self._under_way[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("an identity was not renewed", extra={"identity": key[0], "error": str(error)})
            if isinstance(error, NotRenewed) and error.revocations:
                self._background.spawn("revocation", self._tell(error.revocations))

    async def _tell(self, requests: Sequence[TokenRequest]) -> None:
        for request in requests:
            await self._post(request)

    async def _drive(self, steps: Renewal) -> str:
        answer: Any = None
        try:
            while True:
                step = steps.send(answer)
                if isinstance(step, Statement):
                    answer = await self._run(step)
                elif isinstance(step, TokenRequest):
                    answer = await self._post(step)
                else:
                    await asyncio.sleep(step)
                    answer = None
        except StopIteration as end:
            return str(end.value)

    async def _run(self, statement: Statement) -> list[tuple[Any, ...]]:
        left = STORE_ATTEMPTS if statement.sql == STATEMENTS["store"] else 1
        while True:
            try:
                return await self._state.fetch(statement.sql, statement.parameters)
            except DatabaseUnavailable:
                left -= 1
                if not left:
                    raise
            await asyncio.sleep(STORE_PAUSE)

    async def _post(self, request: TokenRequest) -> tuple[int, bytes] | None:
        try:
            async with asyncio.timeout(SECONDS):
                with await self._transports[request.entered].send(
                    "POST", "the issuer", *_in_order(request), private=request.private
                ) as response:
                    return response.status, await response.read()
        except (TimeoutError, UpstreamError) as error:
            logger.info("an issuer gave no answer", extra={"error": str(error)})
            return None


def _in_order(request: TokenRequest) -> tuple[str, Mapping[str, str], bytes]:
    return request.url, request.headers, request.body
