"""Requests to resource and authorization servers: guarded, limited in size and time, without redirects or cookies.

A request that waits for its answer does not hold a database connection of the pages' pool.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx
import orjson

from accounts.strangers import released_while_waiting
from servers.upstream_guard import upstream_guard
from wire.deadline import Deadline
from wire.forward_proxy import ProxyFailed, is_at_host_of
from wire.guard import AddressRefused, GuardedTransport, UrlRefused
from wire.http1 import BodyReader, BodyTooLarge
from wire.oauth_client import MOST_BYTES, SECONDS, TokenRequest
from wire.product import NAME

logger = logging.getLogger(__name__)

REVOCATION_SECONDS = 5.0

_tellers = ThreadPoolExecutor(2, thread_name_prefix="revocation")


class NoAnswer(Exception):
    """There was no readable answer; the message continues the URL and says why."""


class OAuthResponse(NamedTuple):
    """An HTTP response: status, WWW-Authenticate headers, body, and MCP session id."""

    status: int
    challenges: tuple[str, ...]
    body: bytes
    session: str = ""
    inside: bool = False  # Whether it came from an address in GATEWAY_PRIVATE_UPSTREAMS.

    @property
    def document(self) -> dict[str, Any] | None:
        """The JSON object in the body, or None."""
        try:
            document = orjson.loads(self.body)
        except ValueError:
            return None
        return document if isinstance(document, dict) else None


class Http:
    """HTTP client for one task, which may take `seconds` in total.

    Without `private`, addresses in GATEWAY_PRIVATE_UPSTREAMS are not called, because what a public server names must be
    public. `entered` are URLs entered by an administrator; the addresses of all other hosts are resolved and checked
    here, even if the outbound proxy resolves names.
    """

    def __init__(self, seconds: float = SECONDS, *, private: bool, entered: Iterable[str]) -> None:
        self._deadline = Deadline()
        self._deadline.set(seconds)
        self._guard = upstream_guard()
        self._entered = tuple(entered)
        self.private = private

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> OAuthResponse:
        """Raises NoAnswer."""
        return self._send("GET", url, {"Accept": "application/json", **(headers or {})})

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> OAuthResponse:
        """Raises NoAnswer."""
        return self._send("POST", url, headers, body)

    def delete(self, url: str, headers: Mapping[str, str]) -> OAuthResponse:
        """Raises NoAnswer."""
        return self._send("DELETE", url, headers)

    def _send(self, verb: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> OAuthResponse:
        own = {"User-Agent": NAME, "Accept-Encoding": "identity", **headers}
        guard = self._guard if self.private else self._guard.outside()
        try:
            guard.check_url(url)
            if not is_at_host_of(url, self._entered):
                guard = guard.for_hosts_of_others()
            transport = GuardedTransport(guard, self._deadline)
            with (
                released_while_waiting(),
                httpx.Client(transport=transport, trust_env=False, timeout=SECONDS) as client,
                client.stream(verb, url, headers=own, content=body) as response,
            ):
                challenges = tuple(response.headers.get_list("www-authenticate"))
                session = response.headers.get("mcp-session-id", "")
                address = response.extensions["network_stream"].get_extra_info("server_addr")[0]
                inside = self._guard.is_inside(address)
                return OAuthResponse(response.status_code, challenges, self._body(response), session, inside)
        except (AddressRefused, UrlRefused) as refusal:
            raise NoAnswer(f"may not be called: {refusal}") from None
        except ProxyFailed as failure:
            raise NoAnswer(f"cannot be reached: {failure}") from None
        except httpx.TimeoutException:
            raise NoAnswer("did not answer in time") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError):
            raise NoAnswer("cannot be reached") from None

    def _body(self, response: httpx.Response) -> bytes:
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            return b""  # An event stream may never end.
        body = BodyReader(MOST_BYTES)
        parts: list[bytes] = []
        try:
            for chunk in response.iter_raw():
                self._deadline.check()
                parts += body.feed(chunk)
        except BodyTooLarge:
            raise NoAnswer(f"answered with more than {MOST_BYTES >> 10} KiB") from None
        return b"".join(parts)


def for_request(request: TokenRequest, seconds: float = SECONDS) -> Http:
    """Return the client for one request to an authorization server."""
    return Http(seconds, private=request.private, entered=[request.url] if request.entered else ())


def send_soon(requests: Sequence[TokenRequest]) -> None:
    """Send the requests in the background, one after the other. Failures are logged."""
    _tellers.submit(_send_all, requests)


def _send_all(requests: Sequence[TokenRequest]) -> None:
    for request in requests:
        try:
            for_request(request, REVOCATION_SECONDS).post(request.url, request.headers, request.body)
        except NoAnswer as error:
            logger.warning("an issuer was not told of an ended grant", extra={"error": str(error)})
