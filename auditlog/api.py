"""/api/logs and /api/admin-events: what happened, read only (requirements 6.7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar
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
from auditlog.export import CALL_COLUMNS, TYPES, UNTOLD, download, export
from auditlog.keyset import BadCursor, Cursor, page
from auditlog.models import Call, Event, Outcome
from auditlog.origin import Via
from auditlog.reasons import reason_of
from auditlog.search import bare
from capabilities import Capability
from capabilities.rest import Rule
from ui.rest import Moment, Paging, Query, Resource, link


def _among(id_column: str, name_column: str) -> Callable[[str], Q]:
    """Rows by id, or by the name things had at the time."""

    def rows(text: str) -> Q:
        try:
            return Q(**{id_column: UUID(text)})
        except ValueError:
            return Q(**{name_column: text})

    return rows


# What each parameter of a query means; the rest are columns of the same name.
CALLS: dict[str, Callable[[Any], Q]] = {
    "from": lambda at: Q(created_at__gte=at),
    "to": lambda at: Q(created_at__lt=at),
    "outcome": lambda outcomes: Q(outcome__in=outcomes),
    "host": _among("host_id", "host_name"),
    "gateway": _among("gateway_id", "gateway_name"),
    "server": _among("server_id", "server_name"),
    "user": _among("user_id", "user_email"),
    "token": _among("token_id", "token_prefix"),
    "connection": lambda pk: Q(connection_id=pk),
    "tool": lambda name: Q(feature_type="tool", feature_name=name),
    "ip": lambda address: Q(client_ip=address),
    "q": lambda words: Q(feature_name__icontains=words) | Q(user_email__icontains=words),
}
EVENTS: dict[str, Callable[[Any], Q]] = {
    "from": CALLS["from"],
    "to": CALLS["to"],
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


def narrowed[M: Any](
    rows: QuerySet[M], chosen: Mapping[str, Any], means: Mapping[str, Callable[[Any], Q]]
) -> QuerySet[M]:
    """The rows that match a query; `means` translates what is no column."""
    for name, value in chosen.items():
        if name not in ("cursor", "page_size", "format"):
            rows = rows.filter(means[name](value) if name in means else Q(**{name: value}))
    return rows


class Log(Resource):
    """What the two logs share: pages by cursor, since rows arrive while one reads."""

    by_cursor = True

    def listed(self, rows: QuerySet[Any]) -> Response:
        """The page that was asked for."""
        size = min(self.chosen.get("page_size", Paging.page_size), Paging.max_page_size)
        found = page([rows], self.chosen.get("cursor"), size)
        links = {"next": self._link(found.older), "previous": self._link(found.newer)}
        return Response({**links, "results": self.told(found.rows, many=True)})

    def _link(self, cursor: Cursor | None) -> str | None:
        return link(self.request, cursor=str(cursor)) if cursor else None


class CallResource(Log):
    """The calls through the gateways."""

    capabilities: ClassVar[Mapping[str, Rule]] = dict.fromkeys(("list", "retrieve", "export"), Capability.LOGS_READ)
    queries: ClassVar[Mapping[str, type[Query]]] = {"list": CallQuery, "export": ExportQuery}
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "export": tuple(kind.partition(";")[0] for kind in TYPES.values())
    }

    def get_serializer_class(self) -> type[CallSerializer]:
        return CallDetail if self.action == "retrieve" else CallSerializer

    def list(self, request: Request) -> Response:
        return self.listed(narrowed(bare(), self.chosen, CALLS))

    def retrieve(self, request: Request, pk: UUID) -> Response:
        try:
            return self.answer(Call.objects.find(pk))
        except (Call.DoesNotExist, ValueError, OverflowError) as missing:
            raise Http404 from missing

    @action(detail=False)
    def export(self, request: Request) -> StreamingHttpResponse:
        kind = self.chosen["format"]
        asked = {name: [None, request.query_params.getlist(name)] for name in request.query_params}
        Event.objects.record(Action.LOGS_EXPORTED, self.me, by=self.me, changes=asked)
        pieces = export(narrowed(bare(), self.chosen, CALLS), kind, CALL_COLUMNS)
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

    capabilities: ClassVar[Mapping[str, Rule]] = dict.fromkeys(("list", "retrieve"), Capability.AUDIT_READ)
    queries: ClassVar[Mapping[str, type[Query]]] = {"list": EventQuery}
    serializer_class = EventSerializer

    def list(self, request: Request) -> Response:
        return self.listed(narrowed(Event.objects.all(), self.chosen, EVENTS))

    def retrieve(self, request: Request, pk: UUID) -> Response:
        return self.answer(get_object_or_404(Event, uid=pk))
