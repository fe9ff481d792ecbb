"""The MCP registry API, version v0.1, read-only: gateways listed as remote servers.

https://github.com/modelcontextprotocol/registry, docs/reference/api.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable
from functools import wraps
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.db.models import F, Value
from django.db.models.functions import Concat
from django.http import HttpRequest, HttpResponse, JsonResponse, QueryDict
from django.urls import reverse

from directory.models import DirectoryAddress
from gateways.models import Gateway, GatewayQuerySet
from oauth.limits import allows, limit_exceeded
from ui.forms import holds
from ui.pages import moment_of, text_of
from ui.rest import stamp

SCHEMA = "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json"
OFFICIAL = "io.modelcontextprotocol.registry/official"
# Every entry has only this version, because the address of a gateway never changes.
VERSION = "1.0.0"
LATEST = "latest"
USUAL_LIMIT, MOST_LIMIT = 30, 100
LONGEST_DESCRIPTION = 100
# Required by the documentation of GitHub Copilot and VS Code.
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
}


class BadQuery(Exception):
    """A query parameter is invalid; `field` is its name."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(sentence)
        self.field = field


def namespace() -> str:
    """Return the host of the public URL in reverse-DNS order, such as `com.example.gateway`."""
    host = urlsplit(settings.PUBLIC_URL).hostname or ""
    try:
        ip_address(host)
    except ValueError:
        return ".".join(reversed(host.split(".")))
    return re.sub(r"[^0-9a-z.]", "-", host)


def name_of(gateway: Gateway) -> str:
    """Return the name of a gateway in the registry."""
    return f"{namespace()}/{gateway.slug}"


def entry(gateway: Gateway) -> dict[str, Any]:
    """Return a gateway as a ServerResponse of the registry API."""
    return {
        "server": {
            "$schema": SCHEMA,
            "name": name_of(gateway),
            "title": gateway.name,
            "description": _description(gateway),
            "version": VERSION,
            "websiteUrl": settings.PUBLIC_URL + reverse("gateways:access_to", args=[gateway.slug]),
            # No headers: clients would ask people for the values of headers, instead of using OAuth.
            "remotes": [{"type": "streamable-http", "url": gateway.url}],
        },
        "_meta": {
            OFFICIAL: {
                "status": "active",
                "publishedAt": stamp(gateway.created_at),
                "updatedAt": stamp(gateway.updated_at),
                "isLatest": True,
            }
        },
    }


def _description(gateway: Gateway) -> str:
    text = " ".join(gateway.description.split()) or f"MCP gateway at {urlsplit(settings.PUBLIC_URL).hostname}"
    return text if len(text) <= LONGEST_DESCRIPTION else f"{text[: LONGEST_DESCRIPTION - 1].rstrip()}…"


def server_list(gateways: GatewayQuerySet, query: QueryDict) -> dict[str, Any]:
    """Return a page of gateways as a ServerList, in the order of their slugs. Raises BadQuery."""
    # The cursor contains the search too: VS Code does not send the search again for further pages.
    after, search = _position(text_of(query, "cursor"))
    search = text_of(query, "search").strip() or search
    limit = _limit(query.get("limit", ""))
    if search:
        full_name = Concat(Value(f"{namespace()}/"), F("slug"))
        gateways = gateways.annotate(full_name=full_name).filter(holds("full_name", search) | holds("name", search))
    if query.get("updated_since"):
        since = moment_of(query, "updated_since")
        if since is None:
            raise BadQuery("updated_since", "Must be a time such as 2026-06-18T12:00:00Z.")
        gateways = gateways.filter(updated_at__gte=since)
    if query.get("version", LATEST) not in (LATEST, VERSION, ""):
        gateways = gateways.none()
    found = list(gateways.filter(slug__gt=after).order_by("slug")[: limit + 1])
    page = found[:limit]
    metadata: dict[str, Any] = {"count": len(page)}
    if len(found) > limit:
        metadata["nextCursor"] = _cursor(page[-1].slug, search)
    return {"servers": [entry(gateway) for gateway in page], "metadata": metadata}


def versions_of(gateways: GatewayQuerySet, name: str) -> dict[str, Any] | None:
    """Return a ServerList with the only version of the gateway with this registry name; None if there is none."""
    found = server_version(gateways, name, VERSION)
    return None if found is None else {"servers": [found], "metadata": {"count": 1}}


def server_version(gateways: GatewayQuerySet, name: str, version: str) -> dict[str, Any] | None:
    """Return this version of the gateway `name` as a ServerResponse; None if there is no such gateway or version."""
    space, _, slug = name.partition("/")
    if space != namespace() or version not in (LATEST, VERSION):
        return None
    gateway = gateways.filter(slug=slug.replace("\0", "")).first()
    return None if gateway is None else entry(gateway)


def _limit(text: str) -> int:
    if not text:
        return USUAL_LIMIT
    if not (text.isascii() and text.isdecimal() and int(text[:9]) > 0):
        raise BadQuery("limit", "Must be a whole number of at least 1.")
    return min(int(text[:9]), MOST_LIMIT)


def _cursor(slug: str, search: str) -> str:
    """Return a cursor without characters that need quoting in a URL, because VS Code does not quote cursors."""
    return base64.urlsafe_b64encode(json.dumps([slug, search]).encode()).decode().rstrip("=")


def _position(cursor: str) -> tuple[str, str]:
    """Return the two parts of a cursor: the last slug of the page before, and the search text.

    If `cursor` is empty, both parts are empty. Raises BadQuery.
    """
    if not cursor:
        return "", ""
    try:
        slug, search = json.loads(base64.b64decode(f"{cursor}==", altchars=b"-_"))
        f"{slug}{search}".encode()  # JSON may escape half a surrogate pair, which the database refuses.
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise BadQuery("cursor", "Must be a `nextCursor` of this list.") from None
    if not isinstance(slug, str) or not isinstance(search, str) or "\0" in slug + search:
        raise BadQuery("cursor", "Must be a `nextCursor` of this list.")
    return slug, search


# The public endpoint, below an address of the directory.

type Answer = Callable[..., dict[str, Any] | None]


def public(answer: Answer) -> Callable[..., HttpResponse]:
    """Return a view of a directory address, without sign-in.

    The view calls `answer(gateways, request, ...)` with the gateways that the address lists, and returns the result as
    JSON. If the result is None, the view returns 404.
    """

    @login_not_required
    @wraps(answer)
    def view(request: HttpRequest, token: str, **names: str) -> HttpResponse:
        response = _answered(request, token, answer, names)
        for header, value in (CORS | {"Cache-Control": "no-store"}).items():
            response[header] = value
        return response

    return view


def _answered(request: HttpRequest, token: str, answer: Answer, names: dict[str, str]) -> HttpResponse:
    if request.method == "OPTIONS":
        return HttpResponse(status=HTTPStatus.NO_CONTENT, headers={"Access-Control-Max-Age": "600"})
    if request.method not in ("GET", "HEAD"):
        refused = _error(HTTPStatus.METHOD_NOT_ALLOWED, "This directory is read-only")
        refused["Allow"] = "GET, HEAD, OPTIONS"
        return refused
    if not allows(request, "directory"):
        return limit_exceeded("Too many requests from your IP address.")
    address = DirectoryAddress.objects.find(token.replace("\0", ""))
    if address is None:
        return _error(HTTPStatus.NOT_FOUND, "There is no directory at this address")
    address.note_read(request.headers.get("User-Agent", ""))
    try:
        body = answer(address.gateways(), request, **names)
    except BadQuery as bad:
        return _error(HTTPStatus.BAD_REQUEST, f"{bad.field}: {bad}")
    return _error(HTTPStatus.NOT_FOUND, "Server not found") if body is None else JsonResponse(body)


def _error(status: HTTPStatus, sentence: str) -> HttpResponse:
    return JsonResponse({"error": sentence}, status=status)


@public
def servers(gateways: GatewayQuerySet, request: HttpRequest) -> dict[str, Any] | None:
    """List the gateways of a directory address."""
    return server_list(gateways, request.GET)


@public
def versions(gateways: GatewayQuerySet, request: HttpRequest, name: str) -> dict[str, Any] | None:
    """List the only version of a gateway; None if there is no such gateway."""
    return versions_of(gateways, name)


@public
def version(gateways: GatewayQuerySet, request: HttpRequest, name: str, version: str) -> dict[str, Any] | None:
    """Get a version of a gateway; None if the gateway or the version does not exist."""
    return server_version(gateways, name, version)
