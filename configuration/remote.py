"""Plan, apply and export at another installation, over REST."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import httpx

TIMEOUT_S = 600.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class RemoteRefused(Exception):
    """The request was not sent, got no answer, or was refused; the message says why."""


class Remote:
    """An installation of Gateway Admin, called over REST with an API key."""

    def __init__(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
            raise RemoteRefused(f"{url} does not begin with https://, so others could read the API key in transit.")
        if not key:
            raise RemoteRefused("There is no API key. Set GATEWAY_API_KEY or GATEWAY_API_KEY_FILE, or use --key-file.")
        self._url, self._headers = url.rstrip("/"), {"Authorization": f"Bearer {key}"}

    def export(self) -> str:
        return self._ask("GET", "export", None).text

    def plan(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the plan as JSON. Raises RemoteRefused."""
        return dict(self._ask("POST", "plan", body).json())

    def apply(self, body: dict[str, Any]) -> dict[str, Any]:
        """Apply the files, and return the plan as JSON. Raises RemoteRefused."""
        return dict(self._ask("POST", "apply", body).json())

    def _ask(self, method: str, what: str, body: dict[str, Any] | None) -> httpx.Response:
        try:
            answer = httpx.request(
                method, f"{self._url}/api/config/{what}", json=body, headers=self._headers, timeout=TIMEOUT_S
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RemoteRefused(f"{self._url} does not answer: {error}") from error
        if answer.status_code != HTTPStatus.OK:
            raise RemoteRefused(_reason(answer))
        return answer


def _reason(answer: httpx.Response) -> str:
    """Return why the request was refused: the mistakes that the answer lists, or else the answer's `detail`."""
    try:
        told: dict[str, Any] = answer.json()
        mistakes = told.get("errors", {}).get("files") or []
        return "\n".join(map(str, mistakes)) or str(told["detail"])
    except (ValueError, KeyError, AttributeError):
        return f"The answer (HTTP {answer.status_code}) does not come from Gateway Admin. Check the URL."
