"""Refresh access tokens for the calls of this process: in the background before a token expires, or on demand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from proxy.access.decision import AssignedServer, SignInState
from proxy.access.features import Refusal
from proxy.store.pg import DatabaseUnavailable, StatePool
from proxy.store.usage import load_statements
from wire.background import Background
from wire.cipher import Cipher, Undecryptable
from wire.errors import AccessRefused, UpstreamError
from wire.http import Transport
from wire.jsonrpc import storable
from wire.oauth_client import (
    CLIENT_GONE,
    SECONDS,
    RegisteredClient,
    TokenRefused,
    TokenRequest,
    Tokens,
    TokenUnavailable,
    read_challenge,
    read_tokens,
    revocations,
    token_request,
    union,
)

logger = logging.getLogger(__name__)

STORE_ATTEMPTS = 5  # Storing a token is retried, because the issuer sends each token only once.
STORE_PAUSE = 0.5


class IdentityUnavailable(UpstreamError):
    """No renewed token is available at the moment, for example because the issuer does not answer."""

    reason = "identity_unavailable"
    sentence = 'The credential for server "{server}" cannot be renewed at the moment; try again soon.'


class MoreRights(Refusal):
    """The server wants scopes that were not granted."""


class Refresher:
    """Renews identities obtained by sign-in. Concurrent calls with the same identity share one renewal."""

    def __init__(self, state: StatePool, entered: Transport, named: Transport, cipher: Cipher) -> None:
        self._state = state
        self._transports = {True: entered, False: named}  # Key: whether an administrator entered the issuer's URL.
        self._cipher = cipher
        self._under_way: dict[tuple[str, str], asyncio.Task[str]] = {}
        self._background = Background(NotRenewed, DatabaseUnavailable)

    async def stop(self) -> None:
        """Wait for running renewals.

        Otherwise a new token that is not stored yet would be lost, and a token that must be revoked would stay valid.
        """
        await self._background.stop(patience=SECONDS)

    async def fresh(self, assigned: AssignedServer) -> AssignedServer:
        """Return the server with an unexpired token; wait for a renewal only if the present token has expired.

        Raises Refusal or IdentityUnavailable.
        """
        if assigned.sign_in is None or (seconds_left := assigned.sign_in.seconds_left) is None:
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
        return assigned._replace(ciphertext=ciphertext, sign_in=SignInState(False, None))

    async def after(self, refusal: AccessRefused, assigned: AssignedServer) -> AssignedServer | None:
        """Renew the token that this server refused, and return the server with the new token.

        Return None if a new token cannot help. Raises IdentityUnavailable. Raises Refusal if a person has to sign in
        again.
        """
        if assigned.sign_in is None:
            return None
        if refusal.status == 401:
            return await self.renewed(assigned)
        challenge = read_challenge([refusal.challenge])
        if challenge.error == "insufficient_scope":
            await self._note("more_scope", {"identity": assigned.identity_id, "scope": union(challenge.scope)})
            raise MoreRights("identity_scope", assigned)
        return None

    async def give_up(self, assigned: AssignedServer) -> Refusal:
        """Record that the server refuses a newly renewed token, and return the error for the caller."""
        parameters = {
            "identity": assigned.identity_id,
            "ciphertext": assigned.ciphertext,
            "lease": None,
            "reason": "token",
            "detail": "HTTP 401",
        }
        await self._note("refused", parameters)
        return Refusal("identity_sign_in", assigned)

    async def _note(self, name: str, parameters: dict[str, Any]) -> None:
        """Store a refusal by a server. If it cannot be stored, the call still gets the same answer."""
        try:
            await self._run(Statement(STATEMENTS[name], parameters))
        except DatabaseUnavailable as error:
            logger.warning("a server's refusal could not be stored", extra={"error": str(error)})

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
            logger.warning("a credential could not be renewed", extra={"identity": key[0], "error": str(error)})
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
            logger.info("an issuer did not answer", extra={"error": str(error)})
            return None


def _in_order(request: TokenRequest) -> tuple[str, Mapping[str, str], bytes]:
    return request.url, request.headers, request.body


# The steps that renew the access token of an identity, once for all processes. They do no I/O themselves.
#
# `renewal` is a generator whose driver does the work. When it yields a Statement of refresh.sql, the driver sends back
# the rows. When it yields a TokenRequest, the driver sends back the status and body of the answer, or None if there was
# no answer. When it yields a number, the driver waits for this many seconds. The driver may be asynchronous, as in the
# proxy, or synchronous, as in the pages.

STATEMENTS = load_statements(Path(__file__).with_name("refresh.sql"))

LONGEST_WAIT = 25.0  # Seconds to wait for another process that is renewing the token.
LOOK_SECONDS = (0.05, 0.5)  # First and longest poll interval while waiting for another process.
ATTEMPTS = 2  # Requests in one renewal, if the issuer does not answer.
PAUSE_SECONDS = 0.5
UNCLEAR_REFUSALS = 3  # After so many consecutive refusals without a final error code, the refusal counts as final.


class Statement(NamedTuple):
    """A statement of refresh.sql, and its parameters."""

    sql: str
    parameters: dict[str, Any]


type Step = Statement | TokenRequest | float
type Renewal = Generator[Step, Any, str]


class NotRenewed(Exception):
    """The token was not renewed. With the reason `identity_unavailable`, this may be temporary."""

    def __init__(self, reason: str, detail: str = "", revocations: Sequence[TokenRequest] = ()) -> None:
        super().__init__(detail or reason)
        self.reason = reason
        # To be sent to the issuer. They revoke new tokens that were not stored: the identity was revoked meanwhile.
        self.revocations = revocations


class RenewalData(NamedTuple):
    """The data for a renewal. Only the process that holds the identity's lease gets this data."""

    endpoint: str
    refresh: str
    resource: str
    scope: str
    client_id: str
    client_secret: str | None
    auth_method: str
    other_auth_method: str
    registration: str
    revocation_endpoint: str
    private: bool
    entered: list[str]  # The URLs that an administrator entered for the identity's server.


def renewal(identity: str, ciphertext: str, cipher: Cipher) -> Renewal:
    """Yield the steps of renewing the token in `ciphertext`, and return the ciphertext of the new token.

    The new token may be from another process. Raises NotRenewed.
    """
    waited, pause = 0.0, LOOK_SECONDS[0]
    while True:
        lease = str(uuid4())
        parameters = {"identity": identity, "ciphertext": ciphertext, "lease": lease}
        rows = yield Statement(STATEMENTS["take"], parameters)
        if rows:
            return (yield from _renew(RenewalData._make(rows[0]), parameters, cipher))
        now = _now((yield Statement(STATEMENTS["look"], {"identity": identity})))
        if now.refusal:
            raise NotRenewed(now.refusal)
        if now.ciphertext is not None and now.ciphertext != ciphertext:
            return now.ciphertext
        if not now.has_refresh:
            yield from _refused({**parameters, "lease": None}, "expired", "")
            raise NotRenewed("identity_sign_in")
        if not now.is_leased or waited >= LONGEST_WAIT:
            raise NotRenewed("identity_unavailable")
        yield pause
        waited, pause = waited + pause, min(pause * 1.5, LOOK_SECONDS[1])


class Now(NamedTuple):
    """The current state of an identity whose lease this process does not have."""

    ciphertext: str | None
    refusal: str  # The reason why the identity may not be used; empty if it may be used.
    has_refresh: bool
    is_leased: bool


def _now(rows: list[tuple[Any, ...]]) -> Now:
    if not rows:
        raise NotRenewed("identity_missing")
    return Now._make(rows[0])


def _renew(held: RenewalData, parameters: dict[str, Any], cipher: Cipher) -> Renewal:
    try:
        tokens, taken = yield from _ask_in_either_way(held, cipher)
    except (TokenRefused, Undecryptable) as refusal:
        return (yield from _after_refusal(refusal, parameters))
    except TokenUnavailable as fault:
        yield Statement(STATEMENTS["wait"], parameters | {"is_refusal": False})
        raise NotRenewed("identity_unavailable", str(fault)) from None
    access = cipher.seal(tokens.access)
    stored = yield Statement(STATEMENTS["store"], parameters | _columns(tokens, access, cipher))
    if taken != held.auth_method:
        way = {"registration": held.registration, "refused": held.auth_method}
        yield Statement(STATEMENTS["other_auth_method"], way)
    now = _now((yield Statement(STATEMENTS["look"], {"identity": parameters["identity"]})))
    if now.refusal:  # The identity was disabled or revoked meanwhile; if disabled, the new tokens were stored.
        raise NotRenewed(now.refusal, "", () if stored else _revocations(held, tokens, cipher))
    if now.ciphertext is None:
        raise NotRenewed("identity_unavailable")
    return now.ciphertext  # If the person has signed in again meanwhile, this is the token of that sign-in.


def _after_refusal(refusal: TokenRefused | Undecryptable, parameters: dict[str, Any]) -> Renewal:
    """Store that the person has to sign in again, and raise NotRenewed with the reason `identity_sign_in`.

    Do not store this if the refusal counts as temporary, or if another process is renewing the token: NotRenewed then
    has the reason `identity_unavailable`. If another process has already replaced the token, return the new ciphertext.
    """
    if isinstance(refusal, TokenRefused) and not refusal.final:
        yield from _count_refusal(parameters, refusal)
    client_gone = isinstance(refusal, TokenRefused) and refusal.error in CLIENT_GONE
    yield from _refused(parameters, "client" if client_gone else "refused", str(refusal))
    now = _now((yield Statement(STATEMENTS["look"], {"identity": parameters["identity"]})))
    if now.ciphertext not in (None, parameters["ciphertext"]) and not now.refusal:
        return str(now.ciphertext)
    is_renewed_elsewhere = now.is_leased and not now.refusal
    raise NotRenewed("identity_unavailable" if is_renewed_elsewhere else "identity_sign_in", str(refusal)) from None


def _revocations(held: RenewalData, tokens: Tokens, cipher: Cipher) -> list[TokenRequest]:
    client = RegisteredClient(held.client_id, _secret(held, cipher), held.auth_method)
    told = {"refresh": tokens.refresh, "access": tokens.access}
    return revocations(held.revocation_endpoint, client, **told, private=held.private, entered=held.entered)


def _secret(held: RenewalData, cipher: Cipher) -> str:
    return cipher.open(held.client_secret.encode()) if held.client_secret else ""


def _columns(tokens: Tokens, access: bytes, cipher: Cipher) -> dict[str, Any]:
    return {
        "access": access,
        "refresh": cipher.seal(tokens.refresh) if tokens.refresh else None,
        "key": cipher.key_id,
        "expires_in": tokens.expires_in,
        "renew_in": tokens.renew_in,
        "scope": tokens.scope,
    }


def _request(held: RenewalData, cipher: Cipher) -> TokenRequest:
    form = {
        "grant_type": "refresh_token",
        "refresh_token": cipher.open(held.refresh.encode()),
        "resource": held.resource,
        # Without the parameter `resource`, the issuer may need the scope again.
        "scope": "" if held.resource else held.scope,
    }
    client = RegisteredClient(held.client_id, _secret(held, cipher), held.auth_method)
    return token_request(held.endpoint, client, form, private=held.private, entered=held.entered)


def _ask_in_either_way(held: RenewalData, cipher: Cipher) -> Generator[Step, Any, tuple[Tokens, str]]:
    """Return the tokens and the accepted auth method; if the issuer refuses one method, try the other method once."""
    try:
        return (yield from _ask(_request(held, cipher))), held.auth_method
    except TokenRefused as refusal:
        if refusal.error != "invalid_client" or not held.other_auth_method:
            raise
    other = held.other_auth_method
    return (yield from _ask(_request(held._replace(auth_method=other), cipher))), other


def _ask(request: TokenRequest) -> Generator[Step, Any, Tokens]:
    fault = "no answer"
    for attempt in range(ATTEMPTS):
        if attempt:
            yield PAUSE_SECONDS
        answer = yield request
        if answer is None:
            continue
        try:
            return read_tokens(*answer)
        except TokenUnavailable as error:
            fault = str(error)
    raise TokenUnavailable(fault)


def _count_refusal(parameters: dict[str, Any], refusal: TokenRefused) -> Generator[Step, Any, None]:
    """Count a refusal that may be temporary. Raise NotRenewed if there were too few refusals to count as final.

    After UNCLEAR_REFUSALS consecutive refusals, return without an error. The caller then treats the refusal as final.
    """
    rows = yield Statement(STATEMENTS["wait"], parameters | {"is_refusal": True})
    if not rows or rows[0][0] < UNCLEAR_REFUSALS:
        raise NotRenewed("identity_unavailable", str(refusal)) from None
    parameters["lease"] = None  # The statement `wait` has just released the lease.


def _refused(parameters: dict[str, Any], reason: str, detail: str) -> Generator[Step, Any, None]:
    yield Statement(STATEMENTS["refused"], parameters | {"reason": reason, "detail": storable(detail)[:300]})
