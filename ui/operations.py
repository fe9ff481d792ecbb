"""The decorator that declares a REST operation: capabilities, parameters, body and response."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import wraps
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from rest_framework import serializers
from rest_framework.exceptions import ValidationError

from ui.idempotency import stored_answer

if TYPE_CHECKING:
    from drf_spectacular.utils import PolymorphicProxySerializer
    from rest_framework.request import Request
    from rest_framework.response import Response

    from capabilities.rest import Rule
    from ui.rest import Resource


class RequestBody(serializers.Serializer[Any]):
    """What may be sent, and nothing else: a key it does not name is refused, not ignored."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping) and (extra := sorted(set(data) - set(self.fields))):
            raise ValidationError({key: ["Cannot be set."] for key in extra})
        return super().to_internal_value(data)


class Query(serializers.Serializer[Any]):
    """The query parameters an operation knows; any other is refused."""


class ListQuery(Query):
    """The query parameters every list with page numbers knows."""

    page = serializers.IntegerField(min_value=1, required=False, help_text="Number of the page, from 1.")
    page_size = serializers.IntegerField(min_value=1, required=False, help_text="Rows on a page, 200 at most.")
    ordering = serializers.CharField(required=False, help_text="Field to sort by; with `-` in descending order.")


class File(NamedTuple):
    """An answer that is a file of one of these media types."""

    media_types: tuple[str, ...]


type Answer = type[serializers.BaseSerializer[Any]] | PolymorphicProxySerializer | File | Literal[HTTPStatus.NO_CONTENT]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A declaration by `@operation` on a method of a resource."""

    needs: Rule
    query: type[Query]
    orderings: frozenset[str]
    body: type[RequestBody] | None
    answer: Answer | None
    reauth: bool
    api_keys: bool
    access_tokens: bool
    conflicts: bool
    if_match: bool
    makes: bool

    @property
    def has_page_numbers(self) -> bool:
        """True if it lists by page number; logs list by cursor."""
        return issubclass(self.query, ListQuery)


def operation[Method: Callable[..., Any]](  # noqa: PLR0913  (one keyword for each thing that can be declared)
    *,
    needs: Rule,
    query: type[Query] = Query,
    orderings: Collection[str] = (),
    body: type[RequestBody] | None = None,
    answer: Answer | None = None,
    reauth: bool = False,
    api_keys: bool = True,
    access_tokens: bool = False,
    conflicts: bool = False,
    if_match: bool = False,
    makes: bool = False,
) -> Callable[[Method], Method]:
    """Declare a method of a resource as an API operation. Methods without declaration are always refused.

    Enforced before the method runs: `needs`, the capabilities (see capabilities.rest); `query`, its query parameters,
    and for lists the `orderings` allowed in `?ordering=`; `reauth`, a recent re-authentication of the person (see
    accounts.sign_in); `api_keys`, whether API keys are accepted; `access_tokens`, whether tokens for the proxy
    are. `body` is the class that `Resource.body()` uses. With `makes`, for operations that create an object or a
    secret, a request may have an Idempotency-Key (ui.idempotency), and the method may return Afterwards.

    Only for the description: `answer`, if it is not the resource's serializer; `conflicts`, if it can answer 409 for
    more than the resource's `problems`; and `if_match`, if it checks `If-Match` (`Resource.unchanged` or
    `Resource.seen`) and can answer 412.
    """
    declared = Operation(
        needs=needs,
        query=query,
        orderings=frozenset(orderings),
        body=body,
        answer=answer,
        reauth=reauth,
        api_keys=api_keys,
        access_tokens=access_tokens,
        conflicts=conflicts,
        if_match=if_match,
        makes=makes,
    )

    def declare(method: Method) -> Method:
        answering = cast("Method", _once(method)) if makes else method
        setattr(answering, DECLARED, declared)
        return answering

    return declare


def _once(method: Callable[..., Response]) -> Callable[..., Response]:
    @wraps(method)
    def answering(self: Resource, request: Request, *args: Any, **kwargs: Any) -> Response:
        return stored_answer(request, lambda: method(self, request, *args, **kwargs))

    return answering


DECLARED = "operation"


def operation_of(view: Any, action: str | None) -> Operation | None:
    """Return the declaration of a method of a resource (or its class); None if it is not an operation."""
    return getattr(getattr(view, action or "", None), DECLARED, None)
