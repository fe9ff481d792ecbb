"""HTTP client of the OAuth doctor: sends requests as an MCP client would, and reports responses without secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_network
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

from accounts.queues import released_while_waiting
from wire import versions
from wire.background import Deadline
from wire.guard import Guard
from wire.hosts import origin_of
from wire.outbound import HttpAnswer, NoAnswer, OutboundClient, TooSlow

# The doctor's report: the result of each step, without secrets.


class StepState(StrEnum):
    OK = "ok"
    FAILED = "failed"
    NOT_REACHED = "not reached"


class StepFailed(Exception):
    """The reason a step failed, and advice on what to change."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.reason, self.advice = reason, advice


@dataclass(frozen=True, slots=True)
class CheckStep:
    """One step of the check: request, response, and finding."""

    title: str
    state: StepState
    asked: str = ""
    answered: str = ""
    reason: str = ""
    advice: str = ""


def passed(steps: Sequence[CheckStep]) -> bool:
    return all(step.state == StepState.OK for step in steps)


SECONDS = 10.0
LARGEST = 5 * 1024 * 1024
AS_CLIENTS = {"User-Agent": f"{versions.NAME}-doctor", "Accept-Encoding": "gzip, deflate"}
REPORTED_HEADERS = ("www-authenticate", "location", "content-type", "server", "via")
HIDDEN = re.compile(r"\bgw[a-z]_\w+|(?<=\?)[^\s\"]+")  # Tokens, and query strings, which may contain a code.
# The public URL may lead to a private IP address, and may be without TLS. Cloud metadata services are still refused.
ANYWHERE = Guard((ip_network("0.0.0.0/0"), ip_network("::/0")))


def document_of(answer: HttpAnswer) -> dict[str, Any]:
    """Return the JSON object in the body, or in its last server-sent event. Raises StepFailed if there is none."""
    lines = [line.removeprefix("data:") for line in answer.text.splitlines() if line.startswith("data:")]
    try:
        value = json.loads(lines[-1] if lines else answer.text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        content_type = answer.headers.get("content-type", "no content type")
        raise StepFailed(
            f"{answer.status} with {content_type} where JSON was expected.",
            f"A proxy in front of the gateway answers {answer.url} itself. Let it forward this URL to the gateway, and "
            "return the gateway's answer.",
        )
    return value


class HttpProbe:
    """HTTP client of the doctor. Each step may take `seconds` in total, even if data arrives slowly.

    `asked` and `answered` describe the last exchange without secrets.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.asked = self.answered = ""
        self._seconds, self._deadline = seconds, Deadline()
        self._client = OutboundClient(ANYWHERE, LARGEST, deadline=self._deadline)

    def close(self) -> None:
        self._client.close()

    def begin(self) -> None:
        """Start the timer of the next step, and clear the report of the last request."""
        self._deadline.set(self._seconds)
        self.note("")

    def note(self, asked: str, answered: str = "") -> None:
        self.asked, self.answered = HIDDEN.sub("…", asked), HIDDEN.sub("…", answered)

    def ask(
        self, verb: str, url: str, *, telling: str = "", headers: Mapping[str, str] | None = None, **body: Any
    ) -> HttpAnswer:
        """Send a request. Raises StepFailed when there is no response.

        The report shows `telling` as the content of the request.
        """
        self.note(f"{verb} {url}" + (f"\n{telling}" if telling else ""))
        try:
            with released_while_waiting():
                answer = self._client.ask(verb, url, {**AS_CLIENTS, **(headers or {})}, **body)
        except TooSlow:
            raise StepFailed(f"No answer within {self._seconds:g} s.", _unreachable(url)) from None
        except NoAnswer as error:
            raise StepFailed(f"No answer: this address {error}.", _unreachable(url)) from None
        self.note(self.asked, _response_text(answer.status, answer.headers))
        return answer


def _response_text(status: int, headers: Mapping[str, str]) -> str:
    known = [f"{name.title().replace('Www', 'WWW')}: {headers[name]}" for name in REPORTED_HEADERS if name in headers]
    return "\n".join([str(status), *known])


def _unreachable(url: str) -> str:
    base = url.partition("/mcp/")[0]
    return (
        f"Does {base} lead to this installation, and do clients trust its certificate? If only this machine cannot "
        "reach that address, run `manage.py doctor --url` on a machine in the clients' network."
    )


# Diagnoses of common faults of reverse proxies in front of the gateway.

WRONG_HOST = "does not answer for that host name"
UNAVAILABLE = {502, 503, 504}


def belongs(url: str, base: str, source: str) -> str:
    """Return `url` if it has the same origin as `base`, the URL that clients use. Otherwise, raise StepFailed.

    Also raise StepFailed if `base` has a path. The error names `source`, the place where `url` was found.
    """
    if _place(url) == _place(base) and not urlsplit(base).path:
        return url
    raise StepFailed(f"{source} leads to {url}, but clients use {base}.", _public_url_advice(url, base))


def _place(url: str) -> tuple[str, str, int] | None:
    try:
        return origin_of(url)
    except ValueError:
        return None


def _public_url_advice(url: str, base: str) -> str:
    if urlsplit(base).path:
        return (
            "A path prefix is not possible: clients look for /.well-known/ at the root. Give the gateway a host name "
            "of its own, and set GATEWAY_PUBLIC_URL to it."
        )
    if _place(settings.PUBLIC_URL) == _place(base):
        return (
            f"GATEWAY_PUBLIC_URL is correct ({base}). Therefore a proxy in front of the gateway rewrites this answer, "
            "or returns an old answer from a cache. Look in the proxy's configuration for a cache, and for rewriting "
            "of bodies and headers (sub_filter, proxy_redirect)."
        )
    scheme = "TLS ends at the proxy: " if urlsplit(url).scheme != urlsplit(base).scheme else ""
    return f"{scheme}set GATEWAY_PUBLIC_URL={base} and restart, or give clients the address {settings.PUBLIC_URL}."


def unexpected(answer: HttpAnswer, expected: int) -> StepFailed:
    """Return a StepFailed that explains why the answer does not have the status `expected`."""
    path = urlsplit(answer.url).path
    if 300 <= answer.status < 400:
        return _redirected(answer)
    if answer.status in (400, 421) and (WRONG_HOST in answer.text or not answer.text):
        return StepFailed(
            f"{answer.status}: the gateway received another Host header than {urlsplit(settings.PUBLIC_URL).netloc}.",
            "Let the proxy pass the Host header on unchanged (nginx: proxy_set_header Host $host), or set "
            "GATEWAY_PUBLIC_URL to the address clients use.",
        )
    if answer.status == 404:
        return StepFailed(
            f"404: {path} does not arrive at the gateway.",
            "Let the proxy forward /mcp/, /oauth/, /.well-known/oauth-* and the pages at the root of the host name, "
            "with their paths unchanged. Certificate tools often answer /.well-known/ themselves.",
        )
    if answer.status in UNAVAILABLE:
        return StepFailed(
            f"{answer.status}: the proxy in front could not reach the gateway, or timed out.",
            "Check that the gateway runs and that the proxy forwards to its port. Then read the proxy's error log.",
        )
    if answer.status == 429:
        return StepFailed("429: too many requests from this address.", "Wait a minute, then run the doctor again.")
    return StepFailed(
        f"{answer.status} instead of {expected}{said(answer)}",
        "If this answer is not the gateway's, a proxy in front refuses the request: exempt /mcp/, /oauth/ and "
        "/.well-known/oauth-* from the proxy's sign-in and filters.",
    )


def _redirected(answer: HttpAnswer) -> StepFailed:
    to = answer.headers.get("location", "")
    if to.startswith("https:") and answer.url.startswith("http:"):
        return StepFailed(
            f"{answer.status}: a redirect to https ({to}).",
            f"Clients do not follow this redirect. Set GATEWAY_PUBLIC_URL=https://{urlsplit(to).netloc} and restart.",
        )
    return StepFailed(
        f"{answer.status}: a redirect to {to or 'no address'}.",
        "Clients do not follow redirects from this URL. Let the proxy forward requests for the URL unchanged.",
    )


def said(answer: HttpAnswer) -> str:
    """Return the end of a sentence: a colon and the error if the answer names one, otherwise a full stop."""
    try:
        document = document_of(answer)
    except StepFailed:
        return "."
    error = document.get("error")
    if isinstance(error, dict):
        data = error.get("data")
        reason = data.get("reason") if isinstance(data, dict) else None
        return f": {error.get('message')}" + (f" ({reason})" if reason else "")
    return f": {error}: {document.get('error_description', '')}" if error else "."
