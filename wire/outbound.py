"""HTTP for everything except MCP, over guarded sockets, with limits for the time and size of every answer.

The client follows no redirect, keeps no cookies and no credentials, and ignores proxies from the environment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import httpcore
import httpx
import orjson

from wire.background import Deadline
from wire.forward_proxy import ProxyFailed, connect_failure_text
from wire.guard import AddressRefused, Guard, GuardedTransport, UrlRefused
from wire.http import BodyBroken, BodyReader, BodyTooLarge
from wire.versions import NAME


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A decompressed answer.

    `address` is the IP address of the server, never that of the outbound proxy. If the proxy resolved the host name,
    the IP address is unknown, and `address` is the host name.
    """

    url: str
    status: int
    headers: httpx.Headers
    body: bytes
    address: str

    @property
    def document(self) -> dict[str, Any] | None:
        """The JSON object in the body, or None."""
        try:
            document = orjson.loads(self.body)
        except ValueError:
            return None
        return document if isinstance(document, dict) else None

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    @property
    def media_type(self) -> str:
        return str(self.headers.get("content-type", "")).partition(";")[0].strip().lower()


class NoAnswer(Exception):
    """There was no usable answer. The message has no subject and no full stop, as in "did not answer in time"."""


class MayNotBeCalled(NoAnswer):
    """The guard refuses the URL, or every address of its host."""


class TooSlow(NoAnswer):
    """The answer did not arrive in time."""


class AnswerTooLarge(NoAnswer):
    """The answer's body is larger than the limit; `answer` is the answer without this body."""

    def __init__(self, most_bytes: int, answer: HttpAnswer) -> None:
        super().__init__(f"answered with more than {most_bytes >> 10} KiB")
        self.answer = answer


@contextmanager
def raising_no_answer() -> Iterator[None]:
    """Raise NoAnswer instead of the errors of guarded sockets and httpx."""
    try:
        yield
    except (AddressRefused, UrlRefused) as refusal:
        raise MayNotBeCalled(f"may not be called: {str(refusal).removesuffix('.')}") from None
    except ProxyFailed as failure:
        raise NoAnswer(f"cannot be reached: {failure}") from None
    except (httpx.TimeoutException, httpcore.TimeoutException):
        raise TooSlow("did not answer in time") from None
    except (httpx.RemoteProtocolError, httpcore.RemoteProtocolError):
        raise NoAnswer("does not answer in HTTP") from None
    except (httpx.HTTPError, httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
        said = connect_failure_text(error)
        raise NoAnswer(said if said.startswith("cannot") else f"cannot be reached: it {said}") from None
    except (httpx.InvalidURL, ValueError):
        raise NoAnswer("cannot be reached: its address is not a URL") from None


class OutboundClient:
    """An HTTP client that accepts at most `most_bytes` per answer.

    Each request may take `seconds`. If there is a `deadline`, it replaces `seconds` and limits all requests together.
    """

    def __init__(self, guard: Guard, most_bytes: int, seconds: float = 0.0, deadline: Deadline | None = None) -> None:
        self._guard, self._most, self._seconds = guard, most_bytes, None if deadline else seconds
        self._deadline = deadline or Deadline()
        self._http = httpx.Client(
            transport=GuardedTransport(guard, self._deadline),
            trust_env=False,
            timeout=None,  # noqa: S113  (the deadline limits every wait)
            headers={"User-Agent": NAME, "Accept": "*/*", "Accept-Encoding": "identity"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def ask(
        self,
        verb: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        reads_streams: bool = True,  # If False, an event stream counts as empty, because it may never end.
        needs_body: bool = True,  # If False, a body that cannot be read counts as empty.
        **more: Any,
    ) -> HttpAnswer:
        """Send a request and return its answer; `more` are parameters of httpx. Raises NoAnswer."""
        if self._seconds is not None:
            self._deadline.set(self._seconds)
        try:
            with raising_no_answer():
                self._guard.check_url(url)
                with self._http.stream(verb, url, headers=headers, content=body, **more) as response:
                    address = response.extensions["network_stream"].get_extra_info("server_addr")[0]
                    answer = HttpAnswer(url, response.status_code, response.headers, b"", address)
                    if answer.media_type == "text/event-stream" and not reads_streams:
                        return answer
                    return self._read(response, answer, needs_body=needs_body)
        finally:
            self._http.cookies.clear()

    def _read(self, response: httpx.Response, answer: HttpAnswer, *, needs_body: bool) -> HttpAnswer:
        """Return the answer with its body. Raises NoAnswer."""
        try:
            with raising_no_answer():
                return replace(answer, body=self._body(response, answer))
        except NoAnswer:
            if needs_body:
                raise
            return answer

    def _body(self, response: httpx.Response, answer: HttpAnswer) -> bytes:
        parts: list[bytes] = []
        try:
            # Decompress here, because httpx decompresses without a limit.
            reader = BodyReader(self._most, response.headers.get("content-encoding", "").encode())
            for chunk in response.iter_raw():
                self._deadline.check()  # One read from the socket may contain thousands of chunks.
                parts += reader.feed(chunk)
        except BodyTooLarge:
            raise AnswerTooLarge(self._most, answer) from None
        except BodyBroken as error:
            raise NoAnswer(f"answered with {error}") from None
        return b"".join(parts)
