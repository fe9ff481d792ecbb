"""HTTP client of the doctor: sends requests as a client would, and reports responses without secrets."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

import httpx

from accounts.strangers import released_while_waiting
from gatewayadmin.doctor.report import StepFailed
from wire import product
from wire.deadline import Deadline
from wire.guard import Guard, GuardedTransport
from wire.http1 import BodyBroken, BodyReader, BodyTooLarge

SECONDS = 10.0
LARGEST = 5 * 1024 * 1024
REPORTED_HEADERS = ("www-authenticate", "location", "content-type", "server", "via")
HIDDEN = re.compile(r"\bgw[a-z]_\w+|(?<=\?)[^\s\"]+")  # Tokens; and queries, which are long and may hold a code.
# Our own public address may be private and without TLS. Cloud metadata services are still refused.
ANYWHERE = Guard((ip_network("0.0.0.0/0"), ip_network("::/0")))


@dataclass(frozen=True, slots=True)
class ProbeResponse:
    """A response."""

    url: str
    status: int
    headers: httpx.Headers
    text: str

    @property
    def document(self) -> dict[str, Any]:
        """The JSON object in the body or in its last event. Raises StepFailed if there is none."""
        lines = [line.removeprefix("data:") for line in self.text.splitlines() if line.startswith("data:")]
        try:
            value = json.loads(lines[-1] if lines else self.text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            content_type = self.headers.get("content-type", "no content type")
            raise StepFailed(
                f"{self.status} with {content_type} where JSON was expected.",
                f"Something in front answers {self.url} itself. Let it pass this address on, and its answer back.",
            )
        return value


class HttpProbe:
    """HTTP client without cookies, redirects or a proxy from the environment.

    Each step has `seconds` in total, however slow its peer is. `asked` and `answered` describe the last exchange
    without secrets.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.asked = self.answered = ""
        self._seconds, self._deadline = seconds, Deadline()
        self._http = httpx.Client(
            transport=GuardedTransport(ANYWHERE, self._deadline),
            timeout=seconds,
            trust_env=False,
            headers={"User-Agent": f"{product.NAME}-doctor", "Accept": "*/*", "Accept-Encoding": "gzip, deflate"},
        )

    def close(self) -> None:
        self._http.close()

    def begin(self) -> None:
        """Start the timer of the next step, with no request noted yet."""
        self._deadline.set(self._seconds)
        self.note("")

    def note(self, asked: str, answered: str = "") -> None:
        self.asked, self.answered = HIDDEN.sub("…", asked), HIDDEN.sub("…", answered)

    def ask(self, method: str, url: str, *, telling: str = "", **options: Any) -> ProbeResponse:
        """Send a request; the report quotes `telling` of it. Raises StepFailed when there is no response."""
        self.note(f"{method} {url}" + (f"\n{telling}" if telling else ""))
        if not url.startswith(("https://", "http://")):
            raise StepFailed("No answer: an address begins with https:// or http://.", _unreachable(url))
        try:
            with released_while_waiting(), self._http.stream(method, url, **options) as response:
                answer = ProbeResponse(url, response.status_code, response.headers, _text(response, self._deadline))
        except httpx.TimeoutException:
            raise StepFailed(f"No answer within {self._seconds:g} s.", _unreachable(url)) from None
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as error:
            raise StepFailed(f"No answer: {error}", _unreachable(url)) from None
        finally:
            self._http.cookies.clear()
        self.note(self.asked, _response_text(answer.status, answer.headers))
        return answer


def _text(response: httpx.Response, deadline: Deadline) -> str:
    advice = "Look at what stands in front of the gateway."
    parts: list[bytes] = []
    try:
        # Decompressed here: httpx would decompress without a size limit.
        body = BodyReader(LARGEST, response.headers.get("content-encoding", "").encode())
        for chunk in response.iter_raw():
            deadline.check()
            parts += body.feed(chunk)
    except BodyTooLarge:
        raise StepFailed("The answer is larger than 5 MiB.", advice) from None
    except BodyBroken as error:
        raise StepFailed(f"The answer has {error}.", advice) from None
    return b"".join(parts).decode(errors="replace")


def _response_text(status: int, headers: Mapping[str, str]) -> str:
    known = [f"{name.title().replace('Www', 'WWW')}: {headers[name]}" for name in REPORTED_HEADERS if name in headers]
    return "\n".join([str(status), *known])


def _unreachable(url: str) -> str:
    base = url.partition("/mcp/")[0]
    return (
        f"Does {base} lead to this installation, with a certificate that clients trust? If only this machine cannot "
        "reach it, run `manage.py doctor --url` where clients are."
    )
