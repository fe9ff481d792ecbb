"""/api/logs and /api/admin-events: what happened, read only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from django.db.models import Q, QuerySet
from django.http import Http404, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from auditlog.actions import Action
from auditlog.event_context import Via
from auditlog.export import CALL_COLUMNS, TYPES, UNTOLD, Export, download
from auditlog.models import Call, Event, Outcome
from auditlog.reasons import reason_of
from auditlog.search.criteria import Criterion, Search, indexed, one_of, uuid_of
from auditlog.search.keyset import BadCursor, Cursor, Page, page
from capabilities import Capability
from ui.operations import File, Query, operation
from ui.rest import Moment, Paging, Resource, link


def _among(id_column: str, name_column: str) -> Callable[[str], Q]:
    """Rows by id, or by the name things had at the time."""

    def rows(text: str) -> Q:
        pk = uuid_of(text)
        return Q(**{id_column: pk} if pk else {name_column: text})

    return rows


def _subject(name: str, name_column: str) -> Callable[[str], Criterion]:
    """Calls of a thing by its id, which has an index, or by the name it had then."""

    def means(text: str) -> Criterion:
        pk = uuid_of(text)
        return indexed([Q(**{f"{name}_id": pk})]) if pk else Criterion((), Q(**{name_column: text}))

    return means


# What each parameter of a query means; the rest are columns of the same name.
CALLS: dict[str, Callable[[Any], Criterion]] = {
    "outcome": lambda outcomes: one_of("outcome", outcomes),
    "host": _subject("host", "host_name"),
    "gateway": _subject("gateway", "gateway_name"),
    "server": _subject("server", "server_name"),
    "user": _subject("user", "user_email"),
    "token": lambda text: Criterion((), _among("token_id", "token_prefix")(text)),
    "connection": lambda pk: indexed([Q(connection_id=pk)]),
    "correlation_id": lambda pk: indexed([Q(correlation_id=pk)]),
    "method": lambda method: one_of("method", [method]),
    "tool": lambda name: indexed([Q(feature_type="tool", feature_name=name)]),
    "ip": lambda address: Criterion((), Q(client_ip=address)),
    "q": lambda words: Criterion((), Q(feature_name__icontains=words) | Q(user_email__icontains=words)),
}
EVENTS: dict[str, Callable[[Any], Q]] = {
    "from": lambda at: Q(created_at__gte=at),
    "to": lambda at: Q(created_at__lt=at),
    "actor": _among("actor_id", "actor_email"),
    "q": lambda words: Q(target_label__icontains=words) | Q(actor_email__icontains=words),
}


class CallSerializer(serializers.ModelSerializer[Call]):
    """One MCP message and what became of it, without its payload."""

    id = serializers.UUIDField(source="uid")
    created_at = Moment()

    class Meta:
        model = Call
        exclude = ("uid", *UNTOLD)


class CallDetail(CallSerializer):
    """One MCP message with the reason in words, and its payload where that was recorded, for `logs:payloads`."""

    reason = serializers.SerializerMethodField()

    class Meta:
        model = Call
        exclude = ("uid", "recorded_at")

    def to_representation(self, instance: Call) -> dict[str, Any]:
        told = super().to_representation(instance)
        if not self.context["request"].user.has_perm(Capability.LOGS_PAYLOADS):
            told |= {"request_payload": None, "response_payload": None}
        return told

    def get_reason(self, call: Call) -> str | None:
        found = reason_of(call.outcome, call.deny_reason)
        return found.sentence if found else None


class Span(Query):
    """A stretch of time."""

    def get_fields(self) -> dict[str, Any]:
        fields = super().get_fields()
        return {
            **fields,
            "from": serializers.DateTimeField(required=False),
            "to": serializers.DateTimeField(required=False),
        }


class CallFilters(Span):
    """How the log is narrowed."""

    method = serializers.CharField(required=False, max_length=64)
    outcome = serializers.ListField(child=serializers.ChoiceField(Outcome.choices), required=False)
    deny_reason = serializers.CharField(required=False, max_length=40)
    http_status = serializers.IntegerField(required=False, min_value=100, max_value=599)
    host = serializers.CharField(required=False)
    gateway = serializers.CharField(required=False)
    server = serializers.CharField(required=False)
    connection = serializers.UUIDField(required=False)
    user = serializers.CharField(required=False)
    token = serializers.CharField(required=False)
    tool = serializers.CharField(required=False)
    ip = serializers.IPAddressField(required=False)
    correlation_id = serializers.UUIDField(required=False)
    q = serializers.CharField(required=False)


class Place(Query):
    """Where in the log a page begins."""

    cursor = serializers.CharField(required=False)
    page_size = serializers.IntegerField(min_value=1, required=False)

    def validate_cursor(self, text: str) -> Cursor:
        try:
            return Cursor.read(text)
        except BadCursor as bad:
            raise ValidationError(str(bad)) from None


class CallQuery(CallFilters, Place):
    """A page of the log."""


class ExportQuery(CallFilters):
    """The log as a file."""

    format = serializers.ChoiceField([(kind, kind) for kind in TYPES], default="csv")


class EventQuery(Span, Place):
    """A page of the admin events."""

    action = serializers.CharField(required=False)
    actor = serializers.CharField(required=False)
    via = serializers.ChoiceField(Via.choices, required=False)
    target_type = serializers.CharField(required=False)
    target_id = serializers.CharField(required=False)
    correlation_id = serializers.UUIDField(required=False)
    q = serializers.CharField(required=False)


PLACING = ("cursor", "page_size", "format")


def searched(chosen: Mapping[str, Any]) -> Search:
    """The calls that match a query."""
    narrowing = {name: value for name, value in chosen.items() if name not in (*PLACING, "from", "to")}
    meanings = [CALLS[n](v) if n in CALLS else Criterion((), Q(**{n: v})) for n, v in narrowing.items()]
    return Search(meanings, chosen.get("from"), chosen.get("to"))


def narrowed(chosen: Mapping[str, Any]) -> QuerySet[Event]:
    """The events that match a query."""
    rows = Event.objects.all()
    for name, value in chosen.items():
        if name not in PLACING:
            rows = rows.filter(EVENTS[name](value) if name in EVENTS else Q(**{name: value}))
    return rows


class Log(Resource):
    """What the two logs share: pages by cursor, since rows arrive while one reads."""

    @property
    def place(self) -> tuple[Cursor | None, int]:
        """Where the page that was asked for begins, and how many rows it holds."""
        return self.chosen.get("cursor"), min(self.chosen.get("page_size", Paging.page_size), Paging.max_page_size)

    def listed(self, found: Page[Any]) -> Response:
        """The page that was asked for."""
        links = {"next": self._link(found.older), "previous": self._link(found.newer)}
        return Response({**links, "results": self.serialize(found.rows, many=True)})

    def _link(self, cursor: Cursor | None) -> str | None:
        return link(self.request, cursor=str(cursor)) if cursor else None


class CallResource(Log):
    """The calls through the gateways."""

    def get_serializer_class(self) -> type[CallSerializer]:
        return CallDetail if self.action == "retrieve" else CallSerializer

    @operation(needs=Capability.LOGS_READ, query=CallQuery)
    def list(self, request: Request) -> Response:
        return self.listed(searched(self.chosen).page(*self.place).page)

    @operation(needs=Capability.LOGS_READ)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        try:
            return self.answer(Call.objects.find(pk))
        except (Call.DoesNotExist, ValueError, OverflowError) as missing:
            raise Http404 from missing

    @action(detail=False)
    @operation(
        needs=Capability.LOGS_READ,
        query=ExportQuery,
        answer=File(tuple(kind.partition(";")[0] for kind in TYPES.values())),
    )
    def export(self, request: Request) -> StreamingHttpResponse:
        kind = self.chosen["format"]
        asked = {name: [None, request.query_params.getlist(name)] for name in request.query_params}
        pieces = Export(searched(self.chosen), kind, CALL_COLUMNS)
        Event.objects.record(Action.LOGS_EXPORTED, self.me, by=self.me, changes=asked)
        return download(request._request, "logs", kind, pieces)  # noqa: SLF001  (the download answers in Django's way)


class EventSerializer(serializers.ModelSerializer[Event]):
    """One administrator's act."""

    id = serializers.UUIDField(source="uid")
    created_at = Moment()

    class Meta:
        model = Event
        exclude = ("uid",)


class EventResource(Log):
    """What administrators, people and the system changed."""

    serializer_class = EventSerializer

    @operation(needs=Capability.AUDIT_READ, query=EventQuery)
    def list(self, request: Request) -> Response:
        return self.listed(page([narrowed(self.chosen)], *self.place))

    @operation(needs=Capability.AUDIT_READ)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        return self.answer(get_object_or_404(Event, uid=pk))
