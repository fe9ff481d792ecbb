"""What all REST endpoints share: problem bodies, paging, times, and the base of their views (requirements 6.1)."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, NamedTuple

from django.core.exceptions import PermissionDenied
from django.http import Http404
from rest_framework import serializers, status
from rest_framework.exceptions import APIException, NotFound, ValidationError
from rest_framework.pagination import PageNumberPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.settings import api_settings
from rest_framework.views import exception_handler
from rest_framework.viewsets import GenericViewSet

from capabilities import Capability, CapabilityRequired


def stamp(moment: datetime | None) -> str | None:
    """A time as the API says it: `2026-06-18T12:00:00.000Z`."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Moment(serializers.DateTimeField):
    """A time in UTC with milliseconds and `Z`."""

    def to_representation(self, value: Any) -> Any:
        return stamp(value)


class Problem(NamedTuple):
    """How a refusal of a verb is told: its status, its code, and the field it is about, if any."""

    status: int
    code: str
    field: str = ""


class Conflict(APIException):
    """The thing is not in a state that allows this."""

    status_code = status.HTTP_409_CONFLICT


class Paging(PageNumberPagination):
    """`?page=1&page_size=50`, at most 200 a page; a page that is not there is 404."""

    page_size = 50
    page_size_query_param = "page_size"
    max_page_size = 200


class Resource(GenericViewSet[Any]):
    """The base of every resource: one capability per action, plain words for every refusal.

    `capabilities` maps an action to the capability it takes (None: any signed-in user, whose rows
    `get_queryset` limits). `problems` says how each refusal of a verb is told. `filters` are the query
    parameters its list knows; any other is refused with 400.
    """

    capabilities: ClassVar[Mapping[str, Capability | None]] = {}
    problems: ClassVar[Mapping[type[Exception], Problem]] = {}
    filters: ClassVar[frozenset[str]] = frozenset()
    orderings: ClassVar[frozenset[str]] = frozenset()
    pagination_class = Paging

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        known = self.filters | {"page", "page_size", "ordering"} if self.action == "list" else frozenset()
        unknown = sorted(set(request.query_params) - known)
        if unknown:
            raise ValidationError({name: ["Unknown parameter."] for name in unknown})

    def handle_exception(self, exc: Exception) -> Response:
        for kind, problem in self.problems.items():
            if isinstance(exc, kind):
                return super().handle_exception(_told(exc, problem))
        return super().handle_exception(exc)

    def page(self, rows: Any) -> Response:
        """One page of `rows` in the order asked for."""
        serializer = self.get_serializer(self.paginate_queryset(self._ordered(rows)), many=True)
        return self.get_paginated_response(serializer.data)

    def _ordered(self, rows: Any) -> Any:
        wanted = self.request.query_params.get("ordering")
        if wanted is None:
            return rows
        if wanted.removeprefix("-") not in self.orderings:
            raise ValidationError({"ordering": [f"Must be one of {', '.join(sorted(self.orderings))}."]})
        return rows.order_by(wanted, "pk")


def _told(exc: Exception, problem: Problem) -> APIException:
    if problem.field:
        return ValidationError({problem.field: [str(exc)]})
    told = Conflict(str(exc), code=problem.code)
    told.status_code = problem.status
    return told


def unknown_keys(data: Mapping[str, Any], allowed: frozenset[str]) -> None:
    """Raise ValidationError for every key of a body that is not `allowed`."""
    extra = sorted(set(data) - allowed)
    if extra:
        raise ValidationError({key: ["Cannot be set."] for key in extra})


def problem(exc: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler: every refusal has `detail` and `code`, and `errors` for bad input."""
    if isinstance(exc, CapabilityRequired):
        body = {"detail": str(exc), "code": "capability_required", "capability": exc.capability.slug}
        return Response(body, status=status.HTTP_403_FORBIDDEN)
    if isinstance(exc, Http404):
        exc = NotFound()
    elif isinstance(exc, PermissionDenied):
        return Response({"detail": str(exc) or "Forbidden.", "code": "forbidden"}, status=status.HTTP_403_FORBIDDEN)
    response = exception_handler(exc, context)
    if response is None or not isinstance(exc, APIException):
        return response
    if isinstance(exc, ValidationError):
        response.data = {"detail": "Invalid input.", "code": "invalid", "errors": _by_field(response.data)}
    else:
        codes = exc.get_codes()
        response.data = {"detail": str(exc.detail), "code": codes if isinstance(codes, str) else "invalid"}
    return response


def _by_field(errors: Any) -> dict[str, Any]:
    if isinstance(errors, Mapping):
        return dict(errors)
    return {api_settings.NON_FIELD_ERRORS_KEY: errors}


def secret_answer(body: Mapping[str, Any], status: int = 200) -> Response:
    """An answer that holds a secret: no cache keeps it (requirements 8.3)."""
    return Response(body, status=status, headers={"Cache-Control": "no-store"})
