"""/api/logs and /api/admin-events: the two logs, read-only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from django.db.models import Q, QuerySet
from django.http import Http404, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from auditlog import replica
from auditlog.actions import Action
from auditlog.event_context import Via
from auditlog.export import TYPES, Export, file_response
from auditlog.groups import BY, SORTS, as_rows, groups
from auditlog.models import Call, Event
from auditlog.own_calls import OwnCall, listed_calls
from auditlog.reasons import reason_of
from auditlog.search.criteria import Search, parameter_criterion
from auditlog.search.fields import EXPORT_COLUMNS, PARAMETERS, UNLISTED, Comparison, LogField, Parameter
from auditlog.search.keyset import BadCursor, Cursor, Page, page
from auditlog.search.query_language import MAX_LENGTH, Condition, Either, SearchSyntaxError, parse
from auditlog.sentences import sentence
from auditlog.today import ask, question_of
from auditlog.trail import Trail, trail_of
from auditlog.trail_views import WhatIfQuery, asked
from capabilities import NOBODY, Capability
from capabilities.rest import Own
from connections import subjects
from connections.subjects import by_person
from ui.operations import File, Query, operation
from ui.rest import Cause, Moment, Paging, Resource, link

# The fields of a call that name a thing.
SUBJECTS = {
    "host": subjects.by_host,
    "gateway": subjects.by_gateway,
    "server": subjects.by_server,
    "user": subjects.by_person,
    "token": subjects.by_token,
    "connection": subjects.by_connection,
}
# What each parameter of the events means; the rest are columns of the same name.
EVENT_CONDITIONS: dict[str, Callable[[Any], Q]] = {
    "from": lambda at: Q(created_at__gte=at),
    "to": lambda at: Q(created_at__lt=at),
    "actor": lambda pks: Q(actor_id__in=pks),
    "q": lambda text: Q(target_label__icontains=text) | Q(actor_email__icontains=text),
}


class CallSerializer(serializers.ModelSerializer[Call]):
    """One MCP message and what became of it, without its payload."""

    id = serializers.UUIDField(source="uid")
    created_at = Moment()

    class Meta:
        model = Call
        exclude = ("uid", *UNLISTED)


class CallDetail(CallSerializer):
    """One MCP message with the reason in words, and its payload where that was recorded, for `logs:payloads`."""

    reason = serializers.SerializerMethodField()

    class Meta:
        model = Call
        exclude = ("uid", "recorded_at")

    def to_representation(self, instance: Call) -> dict[str, Any]:
        data = super().to_representation(instance)
        if not self.context["request"].user.has_perm(Capability.LOGS_PAYLOADS):
            data |= {"request_payload": None, "response_payload": None}
        return data

    def get_reason(self, call: Call) -> str | None:
        reason = reason_of(call.outcome, call.deny_reason)
        return reason.sentence if reason else None


class TimeRangeQuery(Query):
    """A stretch of time."""

    def get_fields(self) -> dict[str, Any]:
        fields = super().get_fields()
        return {
            **fields,
            "from": serializers.DateTimeField(required=False),
            "to": serializers.DateTimeField(required=False),
        }


def _parameter_field(field: LogField, parameter: Parameter) -> serializers.Field[Any, Any, Any, Any]:
    match field.comparison:
        case Comparison.ENUM:
            return serializers.ListField(child=serializers.ChoiceField(field.choices), required=False)
        case Comparison.ID | Comparison.NAME if field.name in SUBJECTS:
            return SUBJECTS[field.name]()
        case Comparison.ID:
            return serializers.UUIDField(required=False)
        case Comparison.ADDRESS:
            return serializers.IPAddressField(required=False)
        case Comparison.NUMBER:
            least, most = parameter.bounds or (None, None)
            return serializers.IntegerField(required=False, min_value=least, max_value=most)
    return serializers.CharField(required=False, max_length=parameter.max_length)


class CallFilters(TimeRangeQuery):
    """The filters of the log: a parameter for each field of auditlog.search.fields that has one."""

    q = serializers.CharField(required=False, max_length=MAX_LENGTH)

    def validate_q(self, text: str) -> list[Condition | Either]:
        try:
            return parse(text)
        except SearchSyntaxError as error:
            raise ValidationError(str(error)) from None

    def get_fields(self) -> dict[str, Any]:
        parameters = {
            name: _parameter_field(field, field.parameter) for name, field in PARAMETERS.items() if field.parameter
        }
        return {**super().get_fields(), **parameters}


class CursorQuery(Query):
    """Where in the log a page begins."""

    cursor = serializers.CharField(required=False)
    page_size = serializers.IntegerField(min_value=1, required=False)

    def validate_cursor(self, text: str) -> Cursor:
        try:
            return Cursor.read(text)
        except BadCursor as bad:
            raise ValidationError(str(bad)) from None


class CallQuery(CallFilters, CursorQuery):
    """A page of the log."""


class ExportQuery(CallFilters):
    """The log as a file."""

    format = serializers.ChoiceField([(kind, kind) for kind in TYPES], default="csv")


class GroupQuery(CallFilters):
    """The calls by what they are of."""

    by = serializers.ChoiceField([(name, one.label) for name, one in BY.items()], default="host")
    sort = serializers.ChoiceField([each for one in SORTS for each in (one, f"-{one}")], default="-calls")


class CallGroupSerializer(serializers.Serializer[Any]):
    """The calls of one host, person, gateway, server, tool or reason."""

    value = serializers.CharField()
    name = serializers.CharField()
    calls = serializers.IntegerField()
    error_rate = serializers.FloatField()
    denied = serializers.IntegerField()
    p50_ms = serializers.FloatField(allow_null=True)
    p95_ms = serializers.FloatField(allow_null=True)
    p99_ms = serializers.FloatField(allow_null=True)

    def get_fields(self) -> dict[str, Any]:
        return {**super().get_fields(), "errors": serializers.IntegerField()}  # A serializer has errors of its own.


class CallGroupsSerializer(serializers.Serializer[Any]):
    """The groups with the most calls, a thousand at most; `more` when there are others.

    `counted_since` is null when all calls that match were counted: the filters are host, gateway, server, user, method,
    outcome, reason, and tools by their name in `q`. With others only the newest 10,000 calls are, from then on.
    """

    more = serializers.BooleanField()
    counted_since = Moment(allow_null=True)
    results = CallGroupSerializer(many=True)


class EventQuery(TimeRangeQuery, CursorQuery):
    """A page of the admin events."""

    action = serializers.ChoiceField([(one.value, one.value) for one in Action], required=False)
    actor = by_person()
    via = serializers.ChoiceField(Via.choices, required=False)
    target_type = serializers.CharField(required=False)
    target_id = serializers.CharField(required=False)
    correlation_id = serializers.UUIDField(required=False)
    q = serializers.CharField(required=False)


class StopSerializer(serializers.Serializer[Any]):
    """What would stop a call, who brought that about, and what ends it.

    `check` and `sentence` are those of the trail. `since` is when it began and `by` who began it, for `audit:read`.
    `act` is what ends it, null where the reader cannot: `who` says then who can. `about` is the thing the act is for.
    """

    reason = serializers.CharField(source="cause.reason")
    check = serializers.CharField(source="name")
    sentence = serializers.CharField(source="text")
    since = Moment(source="cause.since", allow_null=True)
    by = Cause(source="cause.by")
    act = Cause(source="cause.act")
    about = Cause(source="cause.subject")
    who = Cause(source="cause.who")


class LineSerializer(serializers.Serializer[Any]):
    """One check that was come to: passed, stopped, or open where only the server can tell."""

    check = serializers.CharField(source="name")
    result = serializers.ChoiceField([("pass", "pass"), ("stop", "stop"), ("open", "open")])
    text = serializers.CharField()


class TrailSerializer(serializers.Serializer[Trail]):
    """What would be decided now. Nothing was sent to a server, and nothing was logged.

    `works` is null where only the server knows whether there is such a tool. `obstacles` are all that stands in the
    way, in the order of the checks; the first is what the call would be told. `near` are tools of nearly the name.
    """

    works = serializers.BooleanField(allow_null=True)
    reason = Cause(source="answer.verdict.reason")
    checks = LineSerializer(source="lines", many=True)
    obstacles = StopSerializer(source="stops", many=True)
    not_reached = serializers.ListField(child=serializers.CharField())
    near = serializers.ListField(child=serializers.CharField())
    notes = serializers.ListField(child=serializers.CharField())


PLACING = ("cursor", "page_size", "format")


def call_search(query: Mapping[str, Any]) -> Search:
    """The calls that match a query."""
    criteria = [parameter_criterion(PARAMETERS[name], value) for name, value in query.items() if name in PARAMETERS]
    return Search([*criteria, *query.get("q", ())], query.get("from"), query.get("to"))


def matching_events(query: Mapping[str, Any]) -> QuerySet[Event]:
    """The events that match a query."""
    rows = Event.objects.all()
    for name, value in query.items():
        if name not in PLACING:
            rows = rows.filter(EVENT_CONDITIONS[name](value) if name in EVENT_CONDITIONS else Q(**{name: value}))
    return rows


class Log(Resource):
    """What the two logs share: pages by cursor, since rows arrive while one reads."""

    @property
    def place(self) -> tuple[Cursor | None, int]:
        """The cursor and the size of the requested page."""
        return self.query_data.get("cursor"), min(
            self.query_data.get("page_size", Paging.page_size), Paging.max_page_size
        )

    def listed(self, result: Page[Any]) -> Response:
        """The response with one page of rows."""
        links = {"next": self._link(result.older), "previous": self._link(result.newer)}
        return Response({**links, "results": self.serialize(result.rows, many=True)})

    def _link(self, cursor: Cursor | None) -> str | None:
        return link(self.request, cursor=str(cursor)) if cursor else None


class CallResource(Log):
    """The calls through the gateways."""

    def get_serializer_class(self) -> type[CallSerializer]:
        return CallDetail if self.action == "retrieve" else CallSerializer

    @operation(needs=Capability.LOGS_READ, query=CallQuery)
    def list(self, request: Request) -> Response:
        return replica.read(request, lambda: self.listed(call_search(self.query_data).page(*self.place).page))

    @operation(needs=Capability.LOGS_READ)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        try:
            return self.answer(Call.objects.find(pk))
        except Call.DoesNotExist as missing:
            raise Http404 from missing

    @action(detail=True)
    @operation(needs=Capability.LOGS_READ, answer=TrailSerializer)
    def now(self, request: Request, pk: UUID) -> Response:
        try:
            question = question_of(Call.objects.find(pk))
        except Call.DoesNotExist as missing:
            raise Http404 from missing
        if question is None:
            raise NotFound("The app, the person or the gateway of this call is gone.")
        return Response(TrailSerializer(trail_of(ask(question), self.me)).data)

    @action(detail=False, url_path="what-if")
    @operation(needs=Capability.LOGS_READ, query=WhatIfQuery, answer=TrailSerializer)
    def what_if(self, request: Request) -> Response:
        return Response(TrailSerializer(trail_of(ask(asked(self.query_data)), self.me)).data)

    @action(detail=False)
    @operation(needs=Capability.LOGS_READ, query=GroupQuery, answer=CallGroupsSerializer)
    def groups(self, request: Request) -> Response:
        found = replica.read(request, lambda: groups(call_search(self.query_data), BY[self.query_data["by"]]))
        told = {"more": found.more, "counted_since": found.since}
        rows = list(as_rows(found, self.query_data["sort"]))
        return Response(CallGroupsSerializer({**told, "results": rows}).data)

    @action(detail=False)
    @operation(
        needs=Capability.LOGS_READ,
        query=ExportQuery,
        answer=File(tuple(kind.partition(";")[0] for kind in TYPES.values())),
    )
    def export(self, request: Request) -> StreamingHttpResponse:
        kind = self.query_data["format"]
        changes = {name: [None, request.query_params.getlist(name)] for name in request.query_params}
        pieces = replica.read(request, lambda: Export(call_search(self.query_data), kind, EXPORT_COLUMNS, by=self.me))
        Event.objects.record(Action.LOGS_EXPORTED, self.me, by=self.me, changes=changes)
        return file_response(request._request, "logs", kind, pieces)  # noqa: SLF001  (the download answers in Django's way)


class OwnCallSerializer(CallSerializer):
    """One call of one's own with the reason in words, without its payload."""

    reason = serializers.SerializerMethodField()

    def get_reason(self, call: Call) -> str | None:
        return OwnCall(call).cause or None


class OwnCallQuery(TimeRangeQuery, CursorQuery):
    """A page of one's own calls."""

    connection = subjects.by_connection()


class OwnCalls(Log):
    """What was called as oneself."""

    serializer_class = OwnCallSerializer

    @operation(needs=Own(NOBODY, by_key=Capability.LOGS_READ), query=OwnCallQuery)
    def list(self, request: Request) -> Response:
        asked = self.query_data
        names = {"from": "created_at__gte", "to": "created_at__lt", "connection": "connection_id__in"}
        rows = listed_calls(self.me).filter(**{column: asked[name] for name, column in names.items() if name in asked})
        return self.listed(page([rows], *self.place))


class EventSerializer(serializers.ModelSerializer[Event]):
    """One administrator's act; `sentence` tells it in plain English, for people."""

    id = serializers.UUIDField(source="uid")
    created_at = Moment()
    sentence = serializers.SerializerMethodField()

    class Meta:
        model = Event
        exclude = ("uid",)

    def get_sentence(self, event: Event) -> str:
        return sentence(event)


class EventResource(Log):
    """What administrators, people and the system changed."""

    serializer_class = EventSerializer

    @operation(needs=Capability.AUDIT_READ, query=EventQuery)
    def list(self, request: Request) -> Response:
        return replica.read(request, lambda: self.listed(page([matching_events(self.query_data)], *self.place)))

    @operation(needs=Capability.AUDIT_READ)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        return self.answer(get_object_or_404(Event, uid=pk))
