"""Base of all REST views: error bodies, pagination, times."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from difflib import get_close_matches
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast
from urllib.parse import urlencode
from uuid import UUID

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet
from django.http import Http404
from rest_framework import exceptions, serializers
from rest_framework.exceptions import APIException, ErrorDetail, ValidationError
from rest_framework.pagination import PageNumberPagination
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.settings import api_settings
from rest_framework.throttling import SimpleRateThrottle
from rest_framework.views import exception_handler, set_rollback
from rest_framework.viewsets import GenericViewSet

from ui.errors import TryLater
from ui.operations import Query, operation_of
from ui.pages import PAGE_SIZE, uuid_of
from ui.tables import order_of
from ui.versions import ChangedMeanwhile, Precondition

if TYPE_CHECKING:
    from django.forms import BaseForm

    from accounts.models import User
    from capabilities.rest import Own
    from ui.operations import Operation, RequestBody


# An entity tag, and a strong entity tag: RFC 9110 section 8.8.3.
TAG = re.compile(r'"([\x21\x23-\x7e\x80-\xff]*)"')
STRONG_TAG = re.compile(rf"(?<!W/){TAG.pattern}")
LOOKING = ("GET", "HEAD")
TAG_DIGITS = 16


def stamp(moment: datetime | None) -> str | None:
    """Format a time for the API: `2026-06-18T12:00:00.000Z`. Returns None for None."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Id(serializers.UUIDField):
    """The id of an object."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"help_text": "Unique id; never changes."} | options)


class UtcDateTimeField(serializers.DateTimeField):
    """A time in UTC with milliseconds and `Z`."""

    def to_representation(self, value: Any) -> Any:
        return stamp(value)


class CauseField(serializers.CharField):
    """The cause that blocks an object, in one word; null if nothing blocks it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_null=True, **options)

    def to_representation(self, value: Any) -> Any:
        return super().to_representation(value) if value else None


class CreatedBy(serializers.EmailField):
    """The e-mail address of the creator; null for the system."""

    def __init__(self) -> None:
        told = "E-mail address of the creator; null for the system."
        super().__init__(source="created_by.email", default=None, allow_null=True, help_text=told)


class Reference(serializers.Serializer[Any]):
    """An object, by id and name."""

    id = Id()
    name = serializers.CharField(help_text="Name that pages show.")


class Problem(NamedTuple):
    """The API error for an exception of a model method: status, code, and the field concerned, if any."""

    status: int
    code: str
    field: str = ""


class ApiError(APIException):
    """An error with its own status and code. `wait` is the value of the Retry-After header, in seconds."""

    wait: float | None = None

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail, code)
        self.status_code = status


class Paging(PageNumberPagination):
    """Paging by `?page=1&page_size=50`, with at most 200 rows a page. A page that does not exist gives 404."""

    page_size = PAGE_SIZE
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
    """Return the public URL of this list with changed parameters."""
    parameters = {name: request.query_params.getlist(name) for name in request.query_params} | changed
    return f"{settings.PUBLIC_URL}{request.path}?{urlencode(parameters, doseq=True)}"


def matching(rows: Any, query: Mapping[str, Any], **columns: str) -> Any:
    """Filter `rows` by the parameters in `query`; `columns` maps each parameter to its field lookup."""
    return rows.filter(**{lookup: query[name] for name, lookup in columns.items() if name in query})


def checked(form: BaseForm, **called: str) -> dict[str, Any]:
    """Return the data cleaned by the form of a page, so that page and API agree.

    `called` maps form fields to API names. Raises ValidationError.
    """
    if form.is_valid():
        return form.cleaned_data
    raise ValidationError(
        {called.get(name, name): [str(error) for error in errors] for name, errors in form.errors.items()}
    )


def already_exists(detail: str) -> ApiError:
    """Return a 409 error for a name that is in use."""
    return ApiError(HTTPStatus.CONFLICT, "already_exists", detail)


class RateLimit(SimpleRateThrottle):
    """A rate limit of an operation, reported in response headers (draft-ietf-httpapi-ratelimit-headers-10).

    `scope` is the name of the limit. `rate` is the number of requests in a period, such as `60/h`.
    """

    num_requests: int
    duration: int

    def headers(self) -> dict[str, str]:
        """Return the headers: the limit, the requests left, and the seconds until the oldest request stops counting.

        If the limit does not apply, return no headers.
        """
        if getattr(self, "key", None) is None:
            return {}
        most, window = self.num_requests, self.duration
        oldest = self.history[-1] if self.history else self.now
        left, wait = max(0, most - len(self.history)), max(1, round(oldest + window - self.now))
        return {
            "RateLimit-Policy": f'"{self.scope}";q={most};w={window}',
            "RateLimit": f'"{self.scope}";r={left};t={wait}',
        }


class Resource(GenericViewSet[Any]):
    """The base of every resource: methods are declared with `@operation`, and every refusal has a readable text."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {}  # Answers to exceptions of models' methods.
    taken: ClassVar[str] = ""  # Message for a row that is not unique.
    # True if the objects have a version (ui.versions). The ETag that `answer` sends then begins with this version.
    versioned: ClassVar[bool] = False
    lookup_value_converter = "uuid"
    pagination_class = Paging
    metadata_class = None
    query_data: dict[str, Any]  # The query parameters of this request.
    limits: list[Any]

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        declared = operation_of(self, self.action)
        self.query_data = _validated_query(request, declared.query() if declared else Query(), self)

    @property
    def operation(self) -> Operation:
        """The operation of this request; never None, because permissions have been checked."""
        return cast("Operation", operation_of(self, self.action))

    @property
    def me(self) -> User:
        """The user of the request; never anonymous, because permissions have been checked."""
        return cast("User", self.request.user)

    def must_own(self, owner: UUID | None) -> None:
        """Raise an error of `Own.check` unless the user is `owner` or may act on other people's objects."""
        rule = cast("Own", self.operation.needs)
        rule.check(self.me, owner)

    def handle_exception(self, exc: Exception) -> Response:
        for kind, problem in self.problems.items():
            if isinstance(exc, kind):
                return super().handle_exception(_api_error(exc, problem))
        if isinstance(exc, IntegrityError) and self.taken:
            return super().handle_exception(already_exists(self.taken))
        return super().handle_exception(exc)

    def body(self) -> dict[str, Any]:
        """Return the body of this request, validated by the operation's `body`. Raises ValidationError."""
        kind, partial = cast("type[RequestBody]", self.operation.body), self.request.method == "PATCH"
        body = kind(data=self.request.data, partial=partial, context=self.get_serializer_context())
        body.is_valid(raise_exception=True)
        data: dict[str, Any] = body.validated_data
        return data

    @property
    def seen(self) -> Precondition | None:
        """The versions in If-Match. The current version must be one of these versions (RFC 9110 13.1.1).

        Without If-Match, or with `If-Match: *`, the value is None: the client allows a change of any version.
        """
        field = self.request.headers.get("If-Match", "").strip()
        # Weak tags never match: the comparison is strong. Only If-None-Match uses the part of a tag after the version.
        versions = (tag.partition(".")[0] for tag in STRONG_TAG.findall(field))
        return None if field in ("", "*") else Precondition(frozenset(versions))

    @contextmanager
    def unchanged(self, row: Any) -> Iterator[None]:
        """Lock `row` for the block. Raises ChangedMeanwhile if `If-Match` does not name the current version of `row`.

        Without `If-Match` nothing is locked. Contact other machines only after the block.
        """
        if self.seen is None:
            yield
            return
        with transaction.atomic():
            row.lock().must_be(self.seen)
            yield

    def current(self, row: Any, status: int = HTTPStatus.OK) -> Response:
        """Respond with the current row. Resources whose rows have annotated counts override this."""
        return self.answer(row, status)

    def changed(self, row: Any, verb: Callable[..., object], **fields: Any) -> Response:
        """Call `verb`, a method of `row`, if `If-Match` allows it, and respond with the current row."""
        with self.unchanged(row):
            verb(**fields, by=self.me)
        return self.current(row)

    def removed(self, row: Any, verb: Callable[..., object], *arguments: Any) -> Response:
        """If `If-Match` allows it, call `verb`, a method that removes `row`. Then respond with 204."""
        with self.unchanged(row):
            verb(*arguments, by=self.me)
        return Response(status=HTTPStatus.NO_CONTENT)

    def page(self, rows: QuerySet[Any], detail: Callable[[Any], QuerySet[Any]] = lambda rows: rows) -> Response:
        """Return one page of `rows` in the requested order. `detail` adds joins and counts for the page's rows."""
        # The keys of the page come first, so that joins and counts run only for its rows.
        keys = list(self.paginate_queryset(self._ordered(rows).values_list("pk", flat=True)) or ())
        rows_by_pk = detail(rows.model._default_manager.filter(pk__in=keys)).in_bulk(keys)
        return self.get_paginated_response(
            self.serialize([rows_by_pk[key] for key in keys if key in rows_by_pk], many=True)
        )

    def serialize(self, thing: Any, *, many: bool = False) -> Any:
        """Return the object as serialized by this resource's serializer."""
        return self.get_serializer(thing, many=many).data

    def answer(self, thing: Any, status: int = HTTPStatus.OK) -> Response:
        """Return a response with `thing`. If the resource is versioned, the ETag begins with the version of `thing`."""
        data = self.serialize(thing)
        if self.versioned:
            return self.tagged(data, f"{thing.version}.", status)
        return self.tagged(data) if self.request.method in LOOKING else Response(data, status=status)

    def tagged(self, data: Any, version: str = "", status: int = HTTPStatus.OK) -> Response:
        """Return a response with an ETag: `version`, and a hash of `data`.

        A GET whose If-None-Match has this ETag gets 304 without content (RFC 9110 13.1.2).
        """
        tag = version + hashlib.sha256(JSONRenderer().render(data)).hexdigest()[:TAG_DIGITS]
        headers, known = {"ETag": f'"{tag}"'}, self.request.headers.get("If-None-Match", "")
        if self.request.method in LOOKING and (known.strip() == "*" or tag in TAG.findall(known)):
            return Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(data, status=status, headers=headers)

    def get_throttles(self) -> list[Any]:
        """Return the rate limits of this request, and store them for the headers of the response."""
        self.limits = super().get_throttles()
        return self.limits

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(request, response, *args, **kwargs)
        for limit in getattr(self, "limits", ()):
            for name, value in limit.headers().items():
                response[name] = value
        return response

    @property
    def ordering(self) -> str:
        """The requested sort field, empty by default. Raises ValidationError."""
        ordering = str(self.query_data.get("ordering") or "")
        known = self.operation.orderings
        if ordering and ordering.removeprefix("-") not in known:
            raise ValidationError({"ordering": [f"Must be one of {', '.join(sorted(known))}."]})
        return ordering

    def _ordered(self, rows: Any) -> Any:
        name, most_first = self.ordering.removeprefix("-"), self.ordering.startswith("-")
        return rows.order_by(order_of(rows, name, most_first), "pk") if name else rows


def _validated_query(request: Request, query: Query, view: Resource) -> dict[str, Any]:
    """Validate the query parameters. Empty parameters count as missing."""
    parameters = request.query_params
    unknown = sorted(set(parameters) - set(query.fields))
    if unknown:
        raise ValidationError({name: ["Unknown parameter."] for name in unknown})
    data = {
        name: parameters.getlist(name) if isinstance(field, serializers.ListField) else parameters[name]
        for name, field in query.fields.items()
        if parameters.get(name)
    }
    filled = type(query)(data=data, context={"view": view})
    filled.is_valid(raise_exception=True)
    validated: dict[str, Any] = filled.validated_data
    return validated


def _api_error(exc: Exception, problem: Problem) -> APIException:
    if problem.field:
        return ValidationError({problem.field: [str(exc)]})
    error = ApiError(problem.status, problem.code, str(exc))
    error.wait = getattr(exc, "seconds", None)
    return error


# Message for requests without credential.
NO_CREDENTIAL = (
    "No credential was sent. Send an API key in the header Authorization: Bearer KEY. See Settings, API keys."
)


def problem(exc: Exception, context: dict[str, Any]) -> Response | None:
    """Return the response for an exception: a body with `detail` and `code`, and for invalid input also `errors`.

    Return None for an unexpected exception, which DRF then raises again.
    """
    if isinstance(exc, PermissionDenied):
        return _denied(exc)
    if isinstance(exc, ChangedMeanwhile):
        return _changed(exc)
    if isinstance(exc, Http404):
        exc = exceptions.NotFound()
    if isinstance(exc, TryLater):
        exc = _throttled(exc)
    if isinstance(exc, exceptions.NotAuthenticated):
        exc.detail = ErrorDetail(NO_CREDENTIAL, "not_authenticated")
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
    """Return 412 with the changes made after the version in `If-Match`."""
    set_rollback()
    changed = [
        {"field": change.field, "value": change.now, "by": change.by or None, "at": stamp(change.at)}
        for change in clash.changes
    ]
    body = {"detail": str(clash), "code": "changed_meanwhile", "changed": changed}
    return Response(body, status=HTTPStatus.PRECONDITION_FAILED, headers={"ETag": f'"{clash.version}"'})


def _denied(denied: PermissionDenied) -> Response:
    """Return 403, naming the missing capability if the exception has one."""
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
    """Return a response with a secret, marked `no-store`."""
    return Response(body, status=status, headers={"Cache-Control": "no-store"})


# Filters by an object: its id, slug or name, ignoring case. An unknown object is an error, not an empty list.

MOST_COMPARED = 500  # Names searched for a suggestion.
MOST_NAMED = 3


class SubjectField(serializers.CharField):
    """A filter by the id or name of an object. The validated value is the list of ids of all matching objects.

    The filter finds only `things`, the objects that the caller may see. It compares an id with the columns `ids`. It
    compares other text with the columns `names`, ignoring case.
    """

    def __init__(
        self,
        noun: str,
        things: Callable[[Resource], QuerySet[Any]],
        *names: str,
        ids: tuple[str, ...] = ("pk",),
        listed: Callable[[Resource], QuerySet[Any]] | None = None,
        **options: Any,
    ) -> None:
        keys = ["id", *(name.rpartition("__")[2].replace("_", " ") for name in names)]
        described = f"{noun.capitalize()}, by {', '.join(keys[:-1])}{' or ' if names else ''}{keys[-1]}."
        super().__init__(**{"required": False, "help_text": described, **options})
        self.noun, self.things, self.names, self.ids = noun, things, names, ids
        self.listed = listed or things  # Only these are suggested: the caller sees their names in lists.

    def to_internal_value(self, data: Any) -> Any:
        text = super().to_internal_value(data)
        self.run_validators(text)  # Before the query: the database refuses NUL.
        view = self.context["view"]
        things = self.things(view)
        if pks := list(things.filter(self._called(text)).order_by().values_list("pk", flat=True).distinct()):
            return pks
        raise serializers.ValidationError(f"There is no {self.noun} “{text}”.{self._near(self.listed(view), text)}")

    def _called(self, text: str) -> Q:
        columns = {f"{name}__iexact": text for name in self.names}
        if (pk := uuid_of(text)) is not None:
            columns = dict.fromkeys(self.ids, pk)  # type: ignore[arg-type]  # An id is not compared with names.
        called = Q()
        for column, value in columns.items():
            called |= Q(**{column: value})
        return called if columns else Q(pk=None)

    def _near(self, things: QuerySet[Any], text: str) -> str:
        """Return a sentence that suggests names similar to `text`; empty if no name is similar."""
        rows = things.order_by().values_list(*self.names).distinct()[:MOST_COMPARED] if self.names else ()
        known = {str(name).lower(): str(name) for row in rows for name in row if name}
        word = text.lower()
        close = [name for name in sorted(known) if word in name]
        close += [name for name in get_close_matches(word, known, MOST_NAMED) if name not in close]
        near = [f"“{known[name]}”" for name in close[:MOST_NAMED]]
        return f" Did you mean {' or '.join(near)}?" if near else ""
