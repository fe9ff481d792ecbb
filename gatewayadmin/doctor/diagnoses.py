"""Diagnoses of common faults of reverse proxies in front of the gateway."""

from __future__ import annotations

from urllib.parse import urlsplit

from django.conf import settings

from gatewayadmin.doctor.http_probe import ProbeResponse
from gatewayadmin.doctor.report import StepFailed
from wire.hosts import origin_of

WRONG_HOST = "does not answer for that host name"
UNAVAILABLE = {502, 503, 504}


def belongs(url: str, base: str, source: str) -> str:
    """Return `url` if it is under `base`, the URL clients use; `source` names its field. Raises StepFailed."""
    if _place(url) == _place(base) and not urlsplit(base).path:
        return url
    raise StepFailed(f"{source} leads to {url}, but clients come by {base}.", _public_url_advice(url, base))


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
            f"GATEWAY_PUBLIC_URL is {base} as it should be: something in front rewrites this answer, or keeps an old "
            "one. Look for rewriting of bodies and headers (sub_filter, proxy_redirect), and for a cache."
        )
    scheme = "TLS ends at the proxy: " if urlsplit(url).scheme != urlsplit(base).scheme else ""
    return f"{scheme}set GATEWAY_PUBLIC_URL={base} and restart, or give clients the address {settings.PUBLIC_URL}."


def unexpected(answer: ProbeResponse, expected: int) -> StepFailed:
    """Return the fault that explains an unexpected status."""
    path = urlsplit(answer.url).path
    if 300 <= answer.status < 400:
        return _redirected(answer)
    if answer.status in (400, 421) and (WRONG_HOST in answer.text or not answer.text):
        return StepFailed(
            f"{answer.status}: the request arrives with another Host than {urlsplit(settings.PUBLIC_URL).netloc}.",
            "Let the proxy pass the Host header on unchanged (nginx: proxy_set_header Host $host), or set "
            "GATEWAY_PUBLIC_URL to the address clients use.",
        )
    if answer.status == 404:
        return StepFailed(
            f"404: {path} does not arrive at the gateway.",
            "Pass /mcp/, /oauth/, /.well-known/oauth-* and the pages on with their paths unchanged, at the root of the "
            "host name. Certificate tools often keep /.well-known/ for themselves.",
        )
    if answer.status in UNAVAILABLE:
        return StepFailed(
            f"{answer.status}: what stands in front could not reach the gateway, or gave up.",
            "Is the gateway running, and does the proxy know its port? Then look into the proxy's error log.",
        )
    if answer.status == 429:
        return StepFailed("429: too many requests from this address.", "Wait a minute, then run the doctor again.")
    return StepFailed(
        f"{answer.status} instead of {expected}{said(answer)}",
        "If this is not the gateway's own answer, something in front refuses: exempt /mcp/, /oauth/ and "
        "/.well-known/oauth-* from sign-in and filters of its own.",
    )


def _redirected(answer: ProbeResponse) -> StepFailed:
    to = answer.headers.get("location", "")
    if to.startswith("https:") and answer.url.startswith("http:"):
        return StepFailed(
            f"{answer.status}: sent on to https ({to}).",
            f"Clients do not follow. Set GATEWAY_PUBLIC_URL=https://{urlsplit(to).netloc} and restart.",
        )
    return StepFailed(
        f"{answer.status}: sent on to {to or 'nowhere'}.",
        "A client's request does not survive a redirect. Let the proxy pass this address on as it is.",
    )


def said(answer: ProbeResponse) -> str:
    """The error text of a response of the gateway, else just a full stop."""
    try:
        document = answer.document
    except StepFailed:
        return "."
    error = document.get("error")
    if isinstance(error, dict):
        data = error.get("data")
        reason = data.get("reason") if isinstance(data, dict) else None
        return f": {error.get('message')}" + (f" ({reason})" if reason else "")
    return f": {error}: {document.get('error_description', '')}" if error else "."
