"""/scim/v2/: the endpoint where directories provision people and teams (RFC 7644).

This module imports the optional SCIM package, so it is imported only if an active provisioning key exists.
"""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from scim2_models import (
    ForbiddenException,
    InvalidValueException,
    PayloadTooLargeException,
    SCIMException,
    UnauthorizedException,
)
from scim2_server.handler import ScimHandler
from scim2_server.requests import ScimRequest
from scim2_server.responses import SCIM_MEDIA_TYPE, ScimResponse
from scim2_server.service import ScimService

from accounts.models import Attempt
from accounts.models.attempts import MINUTE, seconds_left
from auditlog.actions import Action
from auditlog.models import Event
from scim.models import ProvisioningKey
from scim.schemas import provider
from scim.storage import Service, Storage

logger = logging.getLogger(__name__)

ROOT = "/scim/v2"
MOST_BYTES = 1024 * 1024
A_MINUTE = 1500  # Requests per minute and key.
LOOKING = {"GET", "HEAD"}


class TooManyRequests(SCIMException):
    """The key has exceeded its rate limit."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    _default_detail = f"More than {A_MINUTE} requests in this minute."


def answer(request: HttpRequest) -> HttpResponse:
    """Return the response to a directory's request; errors have the format of RFC 7644 section 3.12."""
    try:
        key = _key_of(request)
        if key is None:
            raise UnauthorizedException(detail="The provisioning key is missing, unknown or revoked.")
    except Exception as error:
        if not isinstance(error, SCIMException):
            logger.exception("a provisioning key could not be looked up")
        return _http(ScimService(provider()).error_response(error))
    service = Service(storage := Storage(key, writes=request.method not in LOOKING))
    try:
        if Attempt.objects.note(f"scim {key.pk}") > A_MINUTE:
            raise TooManyRequests
        return _http(ScimHandler(service, storage).handle(_read(request)))
    except SCIMException as refusal:
        if isinstance(refusal, ForbiddenException):
            _note_refusal(request, key)
        return _http(service.error_response(refusal))
    except Exception as error:  # Directories get all errors in SCIM's format.
        logger.exception("a SCIM request failed")
        return _http(service.error_response(error))


def _key_of(request: HttpRequest) -> ProvisioningKey | None:
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    key = ProvisioningKey.objects.find(secret.strip()) if scheme.lower() == "bearer" else None
    if key is not None:
        key.note_use_of(secret.strip())
    return key


def _read(request: HttpRequest) -> ScimRequest:
    body = request.read(MOST_BYTES + 1)
    if len(body) > MOST_BYTES:
        raise PayloadTooLargeException(detail=f"The body is larger than {MOST_BYTES >> 20} MiB.")
    query = dict(parse_qsl(request.META.get("QUERY_STRING", ""), keep_blank_values=True))
    if b"\\u0000" in body or b"\x00" in body or any("\x00" in text for text in (request.path, *query.values())):
        raise InvalidValueException(detail="Text must not contain NUL.")
    return ScimRequest(
        method=str(request.method),
        base_url=f"{settings.PUBLIC_URL}{ROOT}",
        path=request.path.removeprefix(ROOT).removesuffix(".scim"),
        query=query,
        headers=dict(request.headers),
        body=body,
    )


def _http(response: ScimResponse) -> HttpResponse:
    content = b"" if response.body is None else json.dumps(_told(response.body)).encode()
    headers = {"Content-Type": SCIM_MEDIA_TYPE, "Cache-Control": "no-store"} | response.headers
    if response.status == HTTPStatus.TOO_MANY_REQUESTS:
        headers["Retry-After"] = str(seconds_left(MINUTE))
    return HttpResponse(content, status=response.status, headers=headers)


def _told(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body. If it is an error of Pydantic, remove the link to Pydantic's documentation from its text."""
    if isinstance(detail := body.get("detail"), str) and body.get("status"):
        body["detail"] = detail.partition("\n    For further")[0]
    return body


def _note_refusal(request: HttpRequest, key: ProvisioningKey) -> None:
    changes = {"method": request.method, "path": request.path[:200]}
    Event.objects.record(Action.ATTEMPT_REFUSED, key, by=key.actor, changes=changes)
