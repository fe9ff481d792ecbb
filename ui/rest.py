"""What all REST endpoints share: problem bodies, paging, times, and the base of their views."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast
from urllib.parse import urlencode
from uuid import UUID

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import Http404
from rest_framework import exceptions, serializers
from rest_framework.exceptions import APIException, ErrorDetail, ValidationError
from rest_framework.pagination import PageNumberPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.settings import api_settings
from rest_framework.views import exception_handler, set_rollback
from rest_framework.viewsets import GenericViewSet

from ui.errors import TryLater
from ui.versions import ChangedMeanwhile, HasVersion, Precondition

if TYPE_CHECKING:
    from django.forms import BaseForm

    from accounts.models import User
    from capabilities.rest import Own, Rule


# An entity tag that is strong: RFC 9110 section 8.8.3.
STRONG_TAG = re.compile(r'(?<!W/)"([\x21\x23-\x7e\x80-\xff]*)"')


def stamp(moment: datetime | None) -> str | None:
    """A time as the API says it: `2026-06-18T12:00:00.000Z`."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Moment(serializers.DateTimeField):
    """A time in UTC with milliseconds and `Z`."""

    def to_representation(self, value: Any) -> Any:
        return stamp(value)


class Reference(serializers.Serializer[Any]):
    """Another object, by id and name."""

    id = serializers.UUIDField()
    name = serializers.CharField()


class Problem(NamedTuple):
    """How a refusal of a verb is told: its status, its code, and the field it is about, if any."""

    status: int
    code: str
    field: str = ""


class Told(APIException):
    """A refusal with a status and a code of its own."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail, code)
        self.status_code = status


class Body(serializers.Serializer[Any]):
    """What may be sent, and nothing else: a key it does not name is refused, not ignored."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping) and (extra := sorted(set(data) - set(self.fields))):
            raise ValidationError({key: ["Cannot be set."] for key in extra})
        return super().to_internal_value(data)


class Query(serializers.Serializer[Any]):
    """The query parameters an action knows; any other is refused."""


class ListQuery(Query):
    """The query parameters every list of pages knows."""

    page = serializers.IntegerField(min_value=1, required=False)
    page_size = serializers.IntegerField(min_value=1, required=False)
    ordering = serializers.CharField(required=False)


class Paging(PageNumberPagination):
    """`?page=1&page_size=50`, at most 200 a page; a page that is not there is 404."""

    page_size = 50
    page_size_query_param = "page_size"
    max_page_size = 200

    def get_next_link(self) -> str | None:
        return self._link(self.page.next_page_number()) if self.page and self.page.has_next() else None

    def get_previous_link(self) -> str | None:
        return self._link(self.page.previous_page_number()) if self.page and self.page.has_previous() else None

    def _link(self, number: int) -> str:
        request: Any = self.request
        return link(request, page=str(number))


def link(request: Request, **changed: str) -> str:
    """The address of this same list with other parameters, built from the public URL."""
    parameters = {name: request.query_params.getlist(name) for name in request.query_params} | changed
    return f"{settings.PUBLIC_URL}{request.path}?{urlencode(parameters, doseq=True)}"


def checked(form: BaseForm, **called: str) -> dict[str, Any]:
    """What the form of a page lets through, so that page and API cannot differ; `called` are other names of its fields.

    Raises ValidationError.
    """
    if form.is_valid():
        return form.cleaned_data
    raise ValidationError(
        {called.get(name, name): [str(error) for error in told] for name, told in form.errors.items()}
    )


def already_exists(detail: str) -> Told:
    """409: this name is in use."""
    return Told(HTTPStatus.CONFLICT, "already_exists", detail)


def named(text: str, relation: str, name: str) -> Q:
    """The rows `text` means: by the id of `relation` when it is one, else by its `name`."""
    try:
        return Q(**{relation: UUID(text)})
    except ValueError:
        return Q(**{f"{relation}__{name}": text})


class Resource(GenericViewSet[Any]):
    """The base of every resource: one rule per action, plain words for every refusal.

    `capabilities` maps an action to its rule (see capabilities.rest); `grave_actions` want the password typed again
    (see accounts.reauthentication). `problems` says how each refusal of a verb is told. `queries` are the query
    parameters an action knows, all of them in `chosen`; `bodies` are what it takes.

    The rest is for the description of the API (`rest.openapi`): `answers` that are not told by the view's own
    serializer, actions whose answer is `empty` or one of `files` by media type, and those that `conflicts` beyond what
    `problems` says.
    """

    capabilities: ClassVar[Mapping[str, Rule]] = {}
    session_actions: ClassVar[frozenset[str]] = frozenset()
    bearer_actions: ClassVar[frozenset[str]] = frozenset()
    grave_actions: ClassVar[frozenset[str]] = frozenset()
    problems: ClassVar[Mapping[type[Exception], Problem]] = {}
    queries: ClassVar[Mapping[str, type[Query]]] = {}
    bodies: ClassVar[Mapping[str, type[Body]]] = {}
    orderings: ClassVar[frozenset[str]] = frozenset()
    answers: ClassVar[Mapping[str, Any]] = {}
    empty: ClassVar[frozenset[str]] = frozenset({"destroy"})
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    conflicts: ClassVar[frozenset[str]] = frozenset()
    by_cursor: ClassVar[bool] = False
    lookup_value_converter = "uuid"
    pagination_class = Paging
    metadata_class = None
    chosen: dict[str, Any]

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        self.chosen = _chosen(request, self.query_of(self.action or "")())

    @classmethod
    def query_of(cls, action: str) -> type[Query]:
        """The query parameters of an action."""
        return cls.queries.get(action, ListQuery if action == "list" else Query)

    @property
    def me(self) -> User:
        """The person who asks; permissions have been checked."""
        return cast("User", self.request.user)

    def must_own(self, owner: UUID | None) -> None:
        """Raise CapabilityRequired for another person's thing unless the action's rule, an `Own`, allows it."""
        rule = cast("Own", self.capabilities[self.action or ""])
        rule.check(self.me, owner)

    def handle_exception(self, exc: Exception) -> Response:
        for kind, problem in self.problems.items():
            if isinstance(exc, kind):
                return super().handle_exception(_told(exc, problem))
        return super().handle_exception(exc)

    def body(self) -> dict[str, Any]:
        """The body of this request as the action's one of `bodies` lets it through. Raises ValidationError."""
        kind, partial = self.bodies[self.action or ""], self.request.method == "PATCH"
        body = kind(data=self.request.data, partial=partial, context=self.get_serializer_context())
        body.is_valid(raise_exception=True)
        told: dict[str, Any] = body.validated_data
        return told

    @property
    def seen(self) -> Precondition | None:
        """The versions of the thing that If-Match allows to change (RFC 9110 section 13.1.1); None: any."""
        field = self.request.headers.get("If-Match", "").strip()
        # Weak tags never match: the comparison is strong.
        return None if field in ("", "*") else Precondition(frozenset(STRONG_TAG.findall(field)))

    @contextmanager
    def unchanged(self, thing: Any) -> Iterator[None]:
        """While this lasts nobody changes `thing`. Raises ChangedMeanwhile when it is not what the request allows."""
        with transaction.atomic():
            thing.lock().must_be(self.seen)
            yield

    def page(self, rows: QuerySet[Any], detail: Callable[[Any], QuerySet[Any]] = lambda rows: rows) -> Response:
        """One page of `rows` in the order asked for, each with what `detail` adds to a queryset.

        Which rows make the page is asked first: joins and counts are for those alone.
        """
        keys = list(self.paginate_queryset(self._ordered(rows).values_list("pk", flat=True)) or ())
        found = detail(rows.model._default_manager.filter(pk__in=keys)).in_bulk(keys)
        return self.get_paginated_response(self.told([found[key] for key in keys if key in found], many=True))

    def told(self, thing: Any, *, many: bool = False) -> Any:
        """`thing` as this resource tells it."""
        return self.get_serializer(thing, many=many).data

    def answer(self, thing: Any, status: int = HTTPStatus.OK) -> Response:
        """An answer that holds `thing`, with the version of what can be edited of it as its ETag."""
        headers = {"ETag": f'"{thing.version}"'} if isinstance(thing, HasVersion) else None
        return Response(self.told(thing), status=status, headers=headers)

    def _ordered(self, rows: Any) -> Any:
        wanted = self.chosen.get("ordering")
        if wanted is None:
            return rows
        if wanted.removeprefix("-") not in self.orderings:
            raise ValidationError({"ordering": [f"Must be one of {', '.join(sorted(self.orderings))}."]})
        return rows.order_by(wanted, "pk")


def _chosen(request: Request, query: Query) -> dict[str, Any]:
    """The query parameters as `query` reads them; empty ones count as not given."""
    given = request.query_params
    unknown = sorted(set(given) - set(query.fields))
    if unknown:
        raise ValidationError({name: ["Unknown parameter."] for name in unknown})
    data = {
        name: given.getlist(name) if isinstance(field, serializers.ListField) else given[name]
        for name, field in query.fields.items()
        if given.get(name)
    }
    filled = type(query)(data=data)
    filled.is_valid(raise_exception=True)
    chosen: dict[str, Any] = filled.validated_data
    return chosen


def _told(exc: Exception, problem: Problem) -> APIException:
    if problem.field:
        return ValidationError({problem.field: [str(exc)]})
    return Told(problem.status, problem.code, str(exc))


def problem(exc: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler: every refusal has `detail` and `code`, and `errors` for bad input."""
    if isinstance(exc, PermissionDenied):
        return _denied(exc)
    if isinstance(exc, ChangedMeanwhile):
        return _changed(exc)
    if isinstance(exc, Http404):
        exc = exceptions.NotFound()
    if isinstance(exc, TryLater):
        exc = _throttled(exc)
    response = exception_handler(exc, context)
    if response is None or not isinstance(exc, APIException):
        return response
    if isinstance(exc, ValidationError):
        response.data = {"detail": "Invalid input.", "code": "invalid", "errors": _by_field(response.data)}
    else:
        codes = exc.get_codes()
        response.data = {"detail": str(exc.detail), "code": codes if isinstance(codes, str) else "invalid"}
    return response


def _throttled(refusal: TryLater) -> exceptions.Throttled:
    throttled = exceptions.Throttled(wait=refusal.seconds)
    throttled.detail = ErrorDetail(str(refusal), "throttled")
    return throttled


def _changed(clash: ChangedMeanwhile) -> Response:
    """412, with what became of the thing after the version that was sent."""
    set_rollback()
    changed = [
        {"field": one.field, "value": one.now, "by": one.by or None, "at": stamp(one.at)} for one in clash.changes
    ]
    body = {"detail": str(clash), "code": "changed_meanwhile", "changed": changed}
    return Response(body, status=HTTPStatus.PRECONDITION_FAILED, headers={"ETag": f'"{clash.version}"'})


def _denied(denied: PermissionDenied) -> Response:
    """403, naming the missing capability when the exception carries one."""
    capability = getattr(denied, "capability", None)
    body = {"detail": str(denied) or "Forbidden.", "code": "capability_required" if capability else "forbidden"}
    response = Response(body | ({"capability": capability.slug} if capability else {}), status=HTTPStatus.FORBIDDEN)
    response.missing = capability  # type: ignore[attr-defined]  # Recorded by gatewayadmin.middleware.
    return response


def _by_field(errors: Any) -> dict[str, Any]:
    if isinstance(errors, Mapping):
        return dict(errors)
    return {api_settings.NON_FIELD_ERRORS_KEY: errors}


def secret_answer(body: Mapping[str, Any], status: int = HTTPStatus.OK) -> Response:
    """An answer that holds a secret: no cache keeps it."""
    return Response(body, status=status, headers={"Cache-Control": "no-store"})
