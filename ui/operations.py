"""The decorator that declares a REST operation, and the handling of the header Idempotency-Key."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, cast

from django.db import connection, transaction
from django.utils.crypto import salted_hmac
from rest_framework import serializers
from rest_framework.exceptions import APIException, ValidationError
from rest_framework.renderers import JSONRenderer
from rest_framework.response import Response

from ui import databases
from ui.models import KeptAnswer
from ui.sealing import cipher

if TYPE_CHECKING:
    from drf_spectacular.utils import PolymorphicProxySerializer
    from rest_framework.request import Request

    from capabilities.rest import Rule
    from ui.rest import Resource


class RequestBody(serializers.Serializer[Any]):
    """The accepted fields of a body: an unknown key is refused, not ignored.

    `defaults` has values for required fields of a parent class; these fields become optional.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}

    def get_fields(self) -> dict[str, Any]:
        fields = super().get_fields()
        for name, value in self.defaults.items():
            fields[name].required, fields[name].default = False, value
        return fields

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping) and (extra := sorted(set(data) - set(self.fields))):
            raise ValidationError({key: ["Cannot be set."] for key in extra})
        return super().to_internal_value(data)


class Query(serializers.Serializer[Any]):
    """The query parameters an operation accepts; any other parameter is refused."""


class ListQuery(Query):
    """The query parameters of every list with page numbers."""

    page = serializers.IntegerField(min_value=1, required=False, help_text="Number of the page, from 1.")
    page_size = serializers.IntegerField(min_value=1, required=False, help_text="Rows on a page, 200 at most.")
    ordering = serializers.CharField(required=False, help_text="Field to sort by; a leading `-` means descending.")


class File(NamedTuple):
    """An answer that is a file of one of these media types."""

    media_types: tuple[str, ...]


type Answer = type[serializers.BaseSerializer[Any]] | PolymorphicProxySerializer | File | Literal[HTTPStatus.NO_CONTENT]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """The properties of a REST operation, as declared by `@operation` on a method of a resource."""

    needs: Rule  # The capabilities (see capabilities.rest).
    query: type[Query]  # The query parameters.
    orderings: frozenset[str]  # The values allowed in `?ordering=`; `Resource.ordering` refuses others.
    body: type[RequestBody] | None  # The class that `Resource.body()` uses.
    answer: Answer | None  # None if the answer is the resource's serializer.
    reauth: bool  # The person must have re-authenticated recently (see accounts.sign_in).
    api_keys: bool  # API keys are accepted.
    access_tokens: bool  # API access tokens are accepted.
    conflicts: bool  # 409 is possible for reasons that are not in the resource's `problems`.
    if_match: bool  # The method checks `If-Match` (`Resource.unchanged`, `Resource.seen`), so 412 is possible.
    # The method creates an object or a secret. A request may have an Idempotency-Key, and the method may return
    # Afterwards.
    makes: bool

    @property
    def has_page_numbers(self) -> bool:
        """True if the operation lists rows by page number; logs are listed by cursor."""
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
    """Declare a method of a resource as an API operation. Requests for undeclared methods are refused.

    The parameters are the fields of Operation. `needs`, `query`, `reauth`, `api_keys` and `access_tokens` are enforced
    before the method runs. `answer`, `conflicts` and `if_match` are only for the OpenAPI description.
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
    """Return the operation that the method `action` of a resource declares; None if there is none.

    `view` is the resource or its class.
    """
    return getattr(getattr(view, action or "", None), DECLARED, None)


# Requests with an Idempotency-Key. A request repeated within an hour gets the same answer and creates nothing again.
#
# The header and its errors follow draft-ietf-httpapi-idempotency-key-header-07. The created object and the answer
# are committed in one transaction, so that neither exists without the other, even after a crash. The gateway contacts
# other machines after this commit, and meanwhile holds only the lock of the key.

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
FORM = re.compile(r"[\x21-\x7e]{1,255}")
KEPT_HEADERS = ("ETag", "Cache-Control")


class InProgress(APIException):
    """The first request with this Idempotency-Key is not answered yet."""

    status_code = HTTPStatus.CONFLICT
    default_detail = "The first request with this Idempotency-Key is still in progress. Try again in a moment."
    default_code = "idempotency_in_progress"
    wait = 1  # Retry-After in seconds.


class KeyReused(APIException):
    """The Idempotency-Key was used for another request."""

    status_code = HTTPStatus.UNPROCESSABLE_ENTITY
    default_detail = "This Idempotency-Key was used for another request. Use a new key for each object that you create."
    default_code = "idempotency_key_reused"


class AnswerLost(APIException):
    """The encryption key of the stored answer is missing."""

    status_code = HTTPStatus.CONFLICT
    default_detail = "The answer to the first request can no longer be read. Look up what that request created."
    default_code = "idempotency_answer_lost"


class Afterwards(Response):
    """The answer of an operation that contacts another machine, such as a mail server, after its commit."""

    def __init__(self, made: Callable[[], Response], done: Callable[[], Response]) -> None:
        super().__init__()
        # `made` returns the answer that is stored with the commit. `done` contacts the machine and returns the final
        # answer. If the process ends before `done` returns, repeated requests get the stored answer.
        self.made, self.done = made, done


def stored_answer(request: Request, make: Callable[[], Response]) -> Response:
    """Return the answer of `make`. If the request repeats an earlier request, return the stored answer instead.

    A repeated request has the same credential, idempotency key, method, URL and body. Errors are not stored. Raises
    InProgress, KeyReused, AnswerLost, or ValidationError for an invalid key.
    """
    given = request.headers.get(HEADER)
    if given is None:
        made = make()
        return made.done() if isinstance(made, Afterwards) else made
    if not FORM.fullmatch(given):
        raise ValidationError({HEADER: ["Must be 1 to 255 visible ASCII characters, for example a UUID."]})
    key, asked = _digest(_credential(request), given), _request_digest(request)
    with ExitStack() as stack:
        with transaction.atomic():
            _alone(key)
            KeptAnswer.objects.expired().filter(pk=key).delete()
            if kept := KeptAnswer.objects.filter(pk=key).first():
                return _again(kept, asked)
            made = make()
            answer = made.made() if isinstance(made, Afterwards) else made
            KeptAnswer.objects.create(pk=key, request=asked, sealed=_sealed(answer))
            if isinstance(made, Afterwards):
                stack.enter_context(_alone_for_longer(key))
        return _done(key, made) if isinstance(made, Afterwards) else answer


def _done(key: str, made: Afterwards) -> Response:
    answer = made.done()
    KeptAnswer.objects.filter(pk=key).update(sealed=_sealed(answer))
    return answer


def _credential(request: Request) -> str:
    """Return the credential that idempotency keys belong to: an API key, a token, or a web session."""
    return getattr(request.auth, "credential", None) or f"session {request.session.session_key}"


def _request_digest(request: Request) -> str:
    """Return a keyed digest of the request. A plain digest would let short secrets in the body be guessed."""
    body = json.dumps(request.data, sort_keys=True)
    parts = "\0".join((str(request.method), request.get_full_path(), body))
    return salted_hmac("ui.idempotency", parts, algorithm="sha256").hexdigest()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _alone(key: str) -> None:
    """Lock the idempotency key for all processes until the transaction ends. Raises InProgress if it is locked."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [_lock(key)])
        if not cursor.fetchone()[0]:
            raise InProgress
        # Test the later lock: lock and unlock it in one statement, which runs in one session even through a pooler.
        cursor.execute(
            "SELECT CASE WHEN pg_try_advisory_lock(%s) THEN pg_advisory_unlock(%s) ELSE false END",
            [_later_lock(key)] * 2,
        )
        if not cursor.fetchone()[0]:
            raise InProgress


@contextmanager
def _alone_for_longer(key: str) -> Iterator[None]:
    """Lock the idempotency key until the `with` block or this process ends, even after the transaction has ended."""
    with databases.connect_direct() as own:
        own.execute("SELECT pg_advisory_lock(%s)", [_later_lock(key)])
        try:
            yield
        finally:  # Unlock here: the database releases the locks of a closed connection slightly later.
            own.execute("SELECT pg_advisory_unlock(%s)", [_later_lock(key)])


def _lock(key: str) -> int:
    return int(key[:16], 16) - 2**63


def _later_lock(key: str) -> int:
    """Return the id of the lock that `_alone_for_longer` takes."""
    # This id differs from `_lock(key)`, because the transaction of `_alone` still has that lock.
    return int(key[16:32], 16) - 2**63


def _sealed(answer: Response) -> bytes:
    told = {
        "status": answer.status_code,
        "headers": {name: answer[name] for name in KEPT_HEADERS if name in answer},
        "body": JSONRenderer().render(answer.data).decode(),
    }
    return cipher().seal(json.dumps(told))


def _again(kept: KeptAnswer, asked: str) -> Response:
    if kept.request != asked:
        raise KeyReused
    try:
        told = json.loads(cipher().open(bytes(kept.sealed)))
    except ValueError:
        raise AnswerLost from None
    headers = {**told["headers"], REPLAYED: "true"}
    return Response(json.loads(told["body"]), status=told["status"], headers=headers)
