"""The person for whom a tool is called.

Tools call REST operations and check capabilities as this person. They cannot write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit
from uuid import UUID

from django.core.handlers.asgi import ASGIRequest
from django.db import connection, transaction
from rest_framework.authentication import BaseAuthentication
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request

from accounts.models import User
from capabilities import Capability, CapabilityRequired, Held
from capabilities.rest import must_hold
from gatewayadmin.serving.builtin import ToolFailed
from ui.rest import Resource
from wire.jsonrpc import Object

NOBODY = "The person you act for is not active, or does not exist. You may see nothing."
ROWS = 50


class _AsPerson(BaseAuthentication):
    """Authenticates a request as the person that `Caller.rest` has set.

    No credential is checked, because this process makes the request itself.
    """

    def authenticate(self, request: Request) -> tuple[User, str]:
        return request._request.user, "gateway-admin"  # type: ignore[return-value]  # noqa: SLF001  (set by Caller.rest)


@contextmanager
def read_only() -> Iterator[None]:
    """Run the block in a transaction in which PostgreSQL refuses to write."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION READ ONLY")
        yield


@dataclass(frozen=True, slots=True)
class Caller:
    """The person for whom an agent calls a tool, with their present capabilities."""

    person: User

    @classmethod
    def of(cls, pk: str) -> Caller:
        """Return a Caller for the active person with this id. Raises ToolFailed if there is no such person."""
        try:
            person = User.objects.filter(pk=UUID(pk), is_active=True).select_related("role").first()
        except ValueError:
            person = None
        if person is None:
            raise ToolFailed(NOBODY)
        return cls(person)

    def must_hold(self, needed: Held) -> None:
        """Raise ToolFailed unless the person has the capabilities that `needed` requires.

        The error names one of the missing capabilities.
        """
        try:
            must_hold(self.person, needed)
        except CapabilityRequired as missing:
            raise ToolFailed(self._lacking(str(missing), missing.capability.slug)) from None

    def rest(
        self, view: type[Resource], action: str, query: Object | None = None, body: Object | None = None, **route: Any
    ) -> Object:
        """Return the answer of a REST operation, which is called by POST if there is a `body`, otherwise by GET.

        Raises ToolFailed if the operation refuses.
        """
        method, content = ("GET", b"") if body is None else ("POST", json.dumps(body).encode())
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        scope: Object = {"type": "http", "method": method, "path": "/api/", "headers": headers}
        scope["query_string"] = urlencode(query or {}, doseq=True).encode()
        request = ASGIRequest(scope, BytesIO(content))
        request.user = self.person
        answer = view.as_view({method.lower(): action}, authentication_classes=[_AsPerson])(request, **route)
        data: Object = json.loads(JSONRenderer().render(answer.data))
        if answer.status_code >= 400:
            raise ToolFailed(self._problem(data))
        return data

    def _problem(self, data: Mapping[str, Any]) -> str:
        if slug := data.get("capability"):
            return self._lacking(data["detail"], slug)
        if data.get("code") == "not_found":
            return "There is no object with this id."
        return "\n".join(_sentences(data.get("errors"))) or str(data["detail"])

    def _lacking(self, detail: str, slug: str) -> str:
        label = ", ".join(one.label for one in Capability.named([slug]))
        return (
            f"{detail} {self.person.email}, for whom you act, lacks “{label}”. An administrator can give it to a role."
        )


def _sentences(errors: Any, name: str = "") -> Iterator[str]:
    """Yield each error of an answer as a sentence that begins with the name of the field."""
    match errors:
        case Mapping():
            for field, below in errors.items():
                yield from _sentences(below, str(field))
        case list():
            for each in errors:
                yield from _sentences(each, name)
        case str():
            yield f"{name}: {errors}"


def next_of(answer: Mapping[str, Any], parameter: str) -> str | None:
    """Return the value of the query parameter `parameter` in the link to the next page; None on the last page."""
    return parse_qs(urlsplit(answer["next"]).query)[parameter][0] if answer.get("next") else None
