"""Authentication and parsing of REST requests; separate from ui.rest, whose views use them."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import IO, Any, cast

from rest_framework import exceptions
from rest_framework.authentication import SessionAuthentication
from rest_framework.exceptions import APIException
from rest_framework.parsers import JSONParser

MOST_BYTES = 1024 * 1024


class RequestTooLarge(APIException):
    """The body is larger than 1 MiB."""

    status_code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    default_code = "too_large"
    default_detail = "The body is larger than 1 MiB."


class Json(JSONParser):
    """Parses JSON of at most 1 MiB; refuses excessive nesting and lone surrogates."""

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None) -> Any:
        try:
            data = super().parse(cast("IO[bytes]", _Bounded(stream)), media_type, parser_context)
            _must_be_text(data)
        except RecursionError:
            raise exceptions.ParseError("JSON parse error - nested too deeply.") from None
        return data


def _must_be_text(data: Any) -> None:
    """Raise ValidationError for lone surrogates, which can be neither stored nor sent in an answer."""
    match data:
        case str():
            if not data.isascii() and any("\ud800" <= character <= "\udfff" for character in data):
                raise exceptions.ValidationError("Surrogate characters are not allowed.")
        case Mapping():
            for name, value in data.items():
                _must_be_text(name)
                _must_be_text(value)
        case list():
            for value in data:
                _must_be_text(value)


class _Bounded:
    """A stream that raises RequestTooLarge beyond 1 MiB."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._stream.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise RequestTooLarge
        return data


class SessionCookie(SessionAuthentication):
    """A signed-in person's session, with Django's CSRF check."""

    def enforce_csrf(self, request: Any) -> None:
        try:
            # DRF's request would parse the body, and refuse a form because of its content type.
            super().enforce_csrf(request._request)  # noqa: SLF001  (Django's check takes Django's request)
        except exceptions.PermissionDenied as denied:
            raise exceptions.PermissionDenied(str(denied.detail), code="csrf_failed") from None
