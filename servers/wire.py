"""One JSON-RPC exchange with an upstream server over guarded HTTP: within its time and its size."""

from __future__ import annotations

import json
import math
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Any, Never, Self

import httpx

from wire import product
from wire.bodies import Body, BodyTooLarge, has_more_values
from wire.deadline import Deadline
from wire.guard import AddressRefused, Guard, GuardedTransport, UrlRefused
from wire.tool_names import storable

CONNECT_SECONDS = 5.0
FAREWELL_SECONDS = 2.0
EXCHANGES = 4  # So many may take their full time before a conversation is given up.
MAX_ANSWER = 10 * 1024 * 1024  # In bytes, all answers of a conversation together.
MAX_EVENTS = 10_000  # Before the answer to one request.
MAX_VALUES = 500_000  # JSON values in one answer.
MAX_TOLD = 200  # How much of a stranger's text goes into a sentence of ours.
MAX_SENTENCE = 300

type Object = dict[str, Any]

_end_of_event = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_end_of_line = re.compile(rb"\r\n|\n|\r")


class Failed(Exception):
    """The upstream gave no usable answer; the message goes on after "The server".

    It may quote the server, and yet can be stored and shown.
    """

    def __init__(self, told: str) -> None:
        super().__init__(storable(told)[:MAX_SENTENCE])


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: the status, and the JSON-RPC response when there was one."""

    status: int
    message: Object = field(default_factory=dict)
    session: str = ""

    @property
    def result(self) -> Object | None:
        result = self.message.get("result")
        return result if isinstance(result, dict) else None

    @property
    def error(self) -> Object:
        """The JSON-RPC error, empty when there is none."""
        error = self.message.get("error")
        return error if isinstance(error, dict) else {}


class Wire:
    """Speaks to one URL. `seconds` bounds each exchange; a refused address, a silent or endless peer raise Failed."""

    def __init__(self, url: str, headers: Mapping[str, str], *, guard: Guard, seconds: float) -> None:
        self._url = url
        self._seconds = seconds
        self._ends = time.monotonic() + EXCHANGES * seconds
        self._deadline = Deadline()
        self._last_id = 0
        self._body = Body(MAX_ANSWER)
        self._client = httpx.Client(
            transport=GuardedTransport(guard, self._deadline),
            trust_env=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # Each request stands for itself.
            timeout=httpx.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds)),
            headers={
                "User-Agent": product.NAME,
                "Accept": "application/json, text/event-stream",
                "Accept-Encoding": "identity",  # A small answer must not unpack into a large one.
                "Content-Type": "application/json",
                **headers,
            },
        )
        try:
            guard.check_url(url)
        except UrlRefused as refusal:
            raise Failed(f"cannot be called: {refusal}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._client.close()

    def ask(self, method: str, params: Object, headers: Mapping[str, str]) -> Reply:
        """Send a request and wait for its answer, in JSON or on an event stream."""
        self._last_id += 1
        message = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params}
        return self._post(message, headers, self._read)

    def _read(self, response: httpx.Response) -> Object:
        return _answer(response, _chunks(response, self._body, self._deadline), self._last_id)

    def tell(self, method: str, headers: Mapping[str, str]) -> None:
        """Send a notification; what it answers says nothing."""
        self._post({"jsonrpc": "2.0", "method": method}, headers, lambda _: {})

    def end(self, headers: Mapping[str, str]) -> None:
        """End a session; a server may refuse that."""
        self._deadline.set(min(FAREWELL_SECONDS, self._seconds))
        with suppress(httpx.HTTPError, OSError), self._client.stream("DELETE", self._url, headers=headers):
            pass

    def _post(self, message: Object, headers: Mapping[str, str], read: Callable[[httpx.Response], Object]) -> Reply:
        left = self._ends - time.monotonic()
        if left <= 0:
            raise Failed(f"was not done after {EXCHANGES * self._seconds:g} s")
        self._deadline.set(min(self._seconds, left))
        try:
            with self._client.stream("POST", self._url, content=json.dumps(message), headers=headers) as response:
                _refuse_redirect(response)
                session = response.headers.get("mcp-session-id", "")
                return Reply(response.status_code, read(response), session)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise Failed(self._why(error)) from None

    def _why(self, error: Exception) -> str:
        match error:
            case AddressRefused():
                return self._why_refused()
            case httpx.ConnectTimeout():
                return f"did not answer within {min(CONNECT_SECONDS, self._seconds):g} s"
            case httpx.TimeoutException():
                return f"did not answer within {self._seconds:g} s"
            case httpx.ConnectError():
                return _why_not_connected(error)
            case httpx.InvalidURL() | httpx.UnsupportedProtocol():
                return "has a URL that cannot be called"
        return "closed the connection without an answer"

    def _why_refused(self) -> str:
        if self._url.startswith("http://"):
            return "is called without TLS; that is for addresses in GATEWAY_PRIVATE_UPSTREAMS only"
        return "has a private address; GATEWAY_PRIVATE_UPSTREAMS does not allow it"


def _why_not_connected(error: Exception) -> str:
    causes = [str(error), str(error.__cause__)]
    if isinstance(_root(error), ssl.SSLError) or any("SSL" in cause for cause in causes):
        return "has a TLS certificate that this gateway does not trust"
    if any("resolve" in cause or "has no address" in cause for cause in causes):
        return "has a name for which there is no address; check the spelling"
    return "refused the connection"


def _root(error: BaseException) -> BaseException:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return error


def _refuse_redirect(response: httpx.Response) -> None:
    if HTTPStatus.MULTIPLE_CHOICES <= response.status_code < HTTPStatus.BAD_REQUEST:
        to = response.headers.get("location", "")[:MAX_TOLD]
        raise Failed(f"redirects to {to}; redirects are not followed" if to else f"answered {response.status_code}")


def _answer(response: httpx.Response, chunks: Iterator[bytes], request_id: int) -> Object:
    """The JSON-RPC response in the body, empty when there is none."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "text/event-stream":
        return _response_in(b"".join(chunks), None)
    for data in _events(chunks):
        if found := _response_in(data, request_id):
            return found
    return {}


def _chunks(response: httpx.Response, body: Body, deadline: Deadline) -> Iterator[bytes]:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise Failed("packs its answers although it was asked not to")
    for chunk in response.iter_raw():
        # One read of the socket can hold thousands of chunks: the clock is looked at between them too.
        deadline.check()
        try:
            yield from body.feed(chunk)
        except BodyTooLarge:
            raise Failed(f"answered with more than {MAX_ANSWER // 1024 // 1024} MiB") from None


def _events(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The data of each event; the last one counts although its blank line is missing. Raises Failed for a flood."""
    text, count = bytearray(), 0
    for chunk in chunks:
        start, done = max(len(text) - 3, 0), 0  # The blank line may lie across two chunks.
        text += chunk
        for end in [found.span() for found in _end_of_event.finditer(text, start)]:
            count += 1
            if count > MAX_EVENTS:
                raise Failed(f"sent more than {MAX_EVENTS:,} events instead of an answer")
            yield _data(bytes(text[done : end[0]]))
            done = end[1]
        del text[:done]
    yield _data(bytes(text))


def _data(event: bytes) -> bytes:
    fields = (line.partition(b":") for line in _end_of_line.split(event))
    return b"\n".join(value.removeprefix(b" ") for name, _, value in fields if name == b"data")


def _response_in(body: bytes, request_id: int | None) -> Object:
    """The JSON-RPC response `body` holds; on a stream it is told from others by its id."""
    if has_more_values(body, MAX_VALUES):
        raise Failed(f"answered with more than {MAX_VALUES:,} JSON values")
    try:
        message = json.loads(body, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(message, dict) or not ("result" in message or "error" in message):
        return {}
    return message if request_id is None or message.get("id") in (request_id, None) else {}


def _refuse(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    """A number that JSON can say again; one beyond all bounds would become `Infinity`."""
    return number if math.isfinite(number := float(text)) else _refuse(text)
