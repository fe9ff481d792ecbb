"""/api/logs, /api/me/calls and /api/admin-events: the log of calls, your own calls, and admin events; read-only."""

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
from auditlog.events import about, naming
from auditlog.export import LogExport
from auditlog.fields import EXPORT_COLUMNS, PARAMETERS, UNLISTED, Comparison, LogField, Parameter
from auditlog.groups import BY, SORTS, as_rows, group_calls
from auditlog.models import Call, Event, Via
from auditlog.outcomes import reason_of
from auditlog.own_calls import OwnCall, listed_calls
from auditlog.paging import BadLogCursor, Cursor, Page, page
from auditlog.query_language import MAX_LENGTH, Condition, Either, SearchSyntaxError, parse_search
from auditlog.search import Search, parameter_criteria
from auditlog.sentences import sentence
from auditlog.what_if import Trail, WhatIfBody, WhatIfQuery, asked, trail_of
from auditlog.why import current_decision, question_of
from capabilities import NOBODY, Capability
from capabilities.rest import Own
from connections import subjects
from connections.subjects import by_person
from ui.export import TYPES, file_response
from ui.operations import File, Query, operation
from ui.rest import CauseField, Id, Paging, Resource, UtcDateTimeField, link

# For each query parameter that names an object of a call, the function that makes its serializer field.
SUBJECTS = {
    "host": subjects.by_host,
    "gateway": subjects.by_gateway,
    "server": subjects.by_server,
    "user": subjects.by_person,
    "token": subjects.by_token,
    "connection": subjects.by_connection,
}
# Help texts of the columns of a call, in answers and as filters.
CALL_HELP = {
    "correlation_id": "Id of the request, as in the header `X-Request-Id` of the answer.",
    "method": "MCP method.",
    "feature_type": "Kind of feature that was used, such as a tool.",
    "feature_name": "Name of the tool, prompt or resource, as clients see it.",
    "outcome": "How the call ended.",
    "deny_reason": "Error code of the refusal; empty if the call was not refused.",
    "http_status": "HTTP status of the answer.",
    "rpc_error_code": "JSON-RPC error code of the answer; null if none.",
    "host_id": "Id of the app or agent.",
    "gateway_id": "Id of the gateway.",
    "connection_id": "Id of the connection.",
    "user_id": "Id of the person.",
    "token_id": "Id of the token.",
    "server_id": "Id of the server.",
    "identity_id": "Id of the credential for the server. The credential was sent only if the server was asked "
    "(see `upstream_ms`).",
    "session_id": "Id of the MCP session: the id of the `initialize` call that opened the session. Null outside a "
    "session.",
    "host_name": "Name of the app or agent at the time.",
    "gateway_name": "Name of the gateway at the time.",
    "server_name": "Name of the server at the time.",
    "user_email": "E-mail address of the person at the time.",
    "identity_label": "Label of the credential at the time.",
    "token_name": "Name of the token at the time.",
    "token_prefix": "First characters of the token's secret.",
    "duration_ms": "Milliseconds from the request to the answer.",
    "authorise_ms": "Milliseconds that the gateway took to decide whether the call is allowed.",
    "upstream_ms": "Milliseconds that the call waited for its turn at the server and for the server's answer; null if "
    "the call ended before this wait.",
    "request_bytes": "Size of the request in bytes.",
    "response_bytes": "Size of the answer in bytes.",
    "client_ip": "Address that the call came from.",
    "user_agent": "Header `User-Agent` of the request.",
    "client_name": "Name that the app gives itself.",
    "client_version": "Version of the app, as the app states it.",
    "protocol_version": "Protocol version of the call.",
    "error_text": "Text of the error without secrets, 300 characters at most; empty if none.",
    "trace_id": "Trace of the call (W3C Trace Context), 32 hexadecimal digits; empty if none.",
    "labels": "Labels that rules gave the call, separated by commas; empty if none.",
    "rule_id": "Id of the rule that refused or held the call. If no rule did, id of the first rule whose condition "
    "could not be evaluated. Null if there is no such rule either.",
    "hold_id": "Id of the hold that stopped the call, or of the hold whose approval let the call run; null if none.",
    "request_payload": "Arguments, if they were recorded and you may see them.",
    "response_payload": "Result, if it was recorded and you may see it.",
    "payload_truncated": "Whether the recorded payload was cut.",
}
EVENT_HELP = {
    "actor_id": "Id of the person who acted; null for the system and for tokens.",
    "actor_email": "The actor: the e-mail address that a person had at the time, the name of a token, or `system`.",
    "via": "Interface that was used, such as a page or the API.",
    "ip": "Address that the request came from.",
    "action": "What was done.",
    "target_type": "Kind of the changed object.",
    "target_id": "Id of the object.",
    "target_label": "Name of the object at the time.",
    "changes": "Values before and after, by field.",
    "correlation_id": "Id of the request, as in the header `X-Request-Id` of the answer.",
}
# Conditions for parameters of the event list. Every other parameter is compared with the column of the same name.
EVENT_CONDITIONS: dict[str, Callable[[Any], Q]] = {
    "from": lambda at: Q(created_at__gte=at),
    "to": lambda at: Q(created_at__lt=at),
    "actor": lambda pks: Q(actor_id__in=pks),
    "target_id": about,
    "q": lambda text: Q(target_label__icontains=text) | Q(actor_email__icontains=text) | naming(text),
}


def explained(columns: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return `extra_kwargs` for a ModelSerializer that give each column its help text from `columns`."""
    return {name: {"help_text": text} for name, text in columns.items()}


class CallSerializer(serializers.ModelSerializer[Call]):
    """An MCP message and its outcome, without its payload."""

    id = Id(source="uid")
    created_at = UtcDateTimeField(help_text="When the call was made.")

    class Meta:
        model = Call
        exclude: tuple[str, ...] = ("uid", *UNLISTED)
        extra_kwargs = explained(CALL_HELP)


class CallDetail(CallSerializer):
    """An MCP message and its outcome in words. Readers with `logs:payloads` also get the payload, if recorded."""

    reason = serializers.SerializerMethodField(
        help_text="Why the call was refused or failed, in words; null if it succeeded."
    )

    class Meta(CallSerializer.Meta):
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
    """Query parameters for a time range."""

    def get_fields(self) -> dict[str, Any]:
        fields = super().get_fields()
        return {
            **fields,
            "from": serializers.DateTimeField(required=False, help_text="Only rows of this time or later."),
            "to": serializers.DateTimeField(required=False, help_text="Only rows before this time."),
        }


# The help of parameters that differ from their column.
PARAMETER_HELP = {
    "tool": "Name of the tool, as clients see it.",
    "label": "One of the labels that rules gave the call, in upper or lower case.",
}


def _parameter_field(field: LogField, parameter: Parameter) -> serializers.Field[Any, Any, Any, Any]:
    means = PARAMETER_HELP.get(field.name) or CALL_HELP[field.column]
    options: dict[str, Any] = {"required": False, "help_text": means}
    match field.comparison:
        case Comparison.ENUM:
            return serializers.ListField(child=serializers.ChoiceField(field.choices), **options)
        case Comparison.ID | Comparison.NAME if field.name in SUBJECTS:
            return SUBJECTS[field.name]()
        case Comparison.ID:
            return serializers.UUIDField(**options)
        case Comparison.ADDRESS:
            return serializers.IPAddressField(**options)
        case Comparison.NUMBER:
            least, most = parameter.bounds or (None, None)
            return serializers.IntegerField(min_value=least, max_value=most, **options)
    return serializers.CharField(max_length=parameter.max_length, **options)


class CallFilters(TimeRangeQuery):
    """Query parameters that filter the log: the time range, `q`, and the parameters declared in auditlog.fields."""

    q = serializers.CharField(
        required=False, max_length=MAX_LENGTH, help_text="A filter expression as on the page Logs, such as `error`."
    )

    def validate_q(self, text: str) -> list[Condition | Either]:
        try:
            return parse_search(text)
        except SearchSyntaxError as error:
            raise ValidationError(str(error)) from None

    def get_fields(self) -> dict[str, Any]:
        parameters = {
            name: _parameter_field(field, field.parameter) for name, field in PARAMETERS.items() if field.parameter
        }
        return {**super().get_fields(), **parameters}


class CursorQuery(Query):
    """Query parameters for the start and size of a page."""

    cursor = serializers.CharField(required=False, help_text="Cursor of the page, taken from `next` or `previous`.")
    page_size = serializers.IntegerField(min_value=1, required=False, help_text="Rows on a page, 200 at most.")

    def validate_cursor(self, text: str) -> Cursor:
        try:
            return Cursor.read(text)
        except BadLogCursor as bad:
            raise ValidationError(str(bad)) from None


class CallQuery(CallFilters, CursorQuery):
    """Query parameters for a page of the log."""


class ExportQuery(CallFilters):
    """Query parameters for an export of the log."""

    format = serializers.ChoiceField(
        [(kind, kind) for kind in TYPES], default="csv", help_text="One JSON object per line, or CSV."
    )


class GroupQuery(CallFilters):
    """Query parameters for groups of calls."""

    by = serializers.ChoiceField(
        [(name, one.label) for name, one in BY.items()], default="host", help_text="What the calls are grouped by."
    )
    sort = serializers.ChoiceField(
        [each for one in SORTS for each in (one, f"-{one}")],
        default="-calls",
        help_text="Field to sort by; a `-` before the field means descending order.",
    )


class CallGroupSerializer(serializers.Serializer[Any]):
    """The calls of one host, person, gateway, server, tool or reason."""

    value = serializers.CharField(
        help_text="Id of the person, gateway, server, app or agent. In groups by tool, the tool's name; in groups by "
        "reason, the error code."
    )
    name = serializers.CharField(
        help_text="Name of the person, gateway, server, app or agent, taken from the newest call. If calls are grouped "
        "by tool or reason, this is the same as `value`."
    )
    calls = serializers.IntegerField(help_text="Number of calls.")
    error_rate = serializers.FloatField(help_text="Share of failed calls, from 0 to 1.")
    denied = serializers.IntegerField(help_text="Number of refused calls.")
    p50_ms = serializers.FloatField(allow_null=True, help_text="Median duration in milliseconds, ±10 %.")
    p95_ms = serializers.FloatField(allow_null=True, help_text="95th percentile in milliseconds, ±10 %.")
    p99_ms = serializers.FloatField(allow_null=True, help_text="99th percentile in milliseconds, ±10 %.")

    def get_fields(self) -> dict[str, Any]:
        return {
            **super().get_fields(),
            "errors": serializers.IntegerField(help_text="Number of failed calls."),
        }  # A class attribute `errors` would clash with `Serializer.errors`.


class CallGroupsSerializer(serializers.Serializer[Any]):
    """The groups with the most calls, a thousand at most.

    `counted_since` is null if all matching calls were counted. Otherwise, only the newest matching calls were counted,
    because a search reads a limited number of rows. This limit usually does not apply if the search has no filters but
    host, gateway, server, user, method, outcome, reason, and tools named in `q`. For these, the gateway keeps counts.
    """

    more = serializers.BooleanField(help_text="Whether there are more groups.")
    counted_since = UtcDateTimeField(
        allow_null=True, help_text="Time of the oldest counted call; null if all were counted."
    )
    results = CallGroupSerializer(many=True, help_text="The groups.")


class EventQuery(TimeRangeQuery, CursorQuery):
    """Query parameters for a page of the admin events."""

    action = serializers.ChoiceField(
        [(one.value, one.value) for one in Action], required=False, help_text="Only events with this action."
    )
    actor = by_person()
    via = serializers.ChoiceField(Via.choices, required=False, help_text="Only actions taken through this interface.")
    target_type = serializers.CharField(required=False, help_text="Only events about this kind of object.")
    target_id = serializers.CharField(
        required=False,
        help_text="Only events about the object with this id. For a person, also events about objects that the "
        "person owns, such as tokens, and about the person joining or leaving a team. These additional events are "
        "found by the e-mail address that the person has now.",
    )
    correlation_id = serializers.UUIDField(required=False, help_text="Only events of the request with this id.")
    q = serializers.CharField(
        required=False,
        help_text="Text contained in the target's name or the actor's e-mail. A person's whole e-mail also finds "
        "events about objects that the person owns, such as tokens, and about the person joining or leaving a team.",
    )


class StopSerializer(serializers.Serializer[Any]):
    """An obstacle: a failed check that stops the call, with who caused the obstacle and who can remove it."""

    reason = serializers.CharField(source="cause.reason", help_text="Error code of the obstacle, as in the log.")
    check = serializers.CharField(source="name", help_text="Name of the check.")
    sentence = serializers.CharField(source="text", help_text="What the check found, as a sentence.")
    since = UtcDateTimeField(
        source="cause.since", allow_null=True, help_text="When the obstacle began; null if unknown."
    )
    by = CauseField(
        source="cause.by",
        help_text="E-mail address of the person who caused the obstacle. Null if the person is unknown, or if you lack "
        "`audit:read`.",
    )
    act = CauseField(
        source="cause.act", help_text="Action with which you can remove the obstacle; null if you have no such action."
    )
    about = CauseField(
        source="cause.subject",
        help_text="Id of the object that `act` changes; null if `act` is null or only opens a page.",
    )
    who = CauseField(
        source="cause.who",
        help_text="If you cannot remove the obstacle: a sentence about the people who can. Otherwise null.",
    )


class LineSerializer(serializers.Serializer[Any]):
    """A check that was made for the call, and its result."""

    check = serializers.CharField(source="name", help_text="Name of the check.")
    result = serializers.ChoiceField(
        [("pass", "pass"), ("stop", "stop"), ("open", "open")],
        help_text="`pass`, `stop`, or `open`. `open` means that only the server knows the result.",
    )
    text = serializers.CharField(help_text="What the check found, in words.")


class TrailSerializer(serializers.Serializer[Trail]):
    """The decision that the gateway would make about the call now.

    The call was not made: nothing was sent to a server, and nothing was logged.
    """

    works = serializers.BooleanField(
        allow_null=True,
        help_text="Whether the call would be allowed; null if only the server knows whether the tool exists.",
    )
    reason = CauseField(
        source="answer.verdict.reason",
        help_text="Why the call would be refused, as an error code; null if it would not.",
    )
    checks = LineSerializer(source="lines", many=True, help_text="The checks that were made.")
    obstacles = StopSerializer(source="stops", many=True, help_text="The failed checks, in order.")
    not_reached = serializers.ListField(
        child=serializers.CharField(), help_text="Names of the checks that were not made because an earlier one failed."
    )
    near = serializers.ListField(
        child=serializers.CharField(), help_text="If the tool is unknown: tools with a similar name that you may see."
    )
    notes = serializers.ListField(
        child=serializers.CharField(), help_text="Remarks on the decision, such as the labels that rules would give."
    )


PLACING = ("cursor", "page_size", "format")


def call_search(query: Mapping[str, Any]) -> Search:
    asked = [parameter_criteria(PARAMETERS[name], value) for name, value in query.items() if name in PARAMETERS]
    return Search([*(one for each in asked for one in each), *query.get("q", ())], query.get("from"), query.get("to"))


def matching_events(query: Mapping[str, Any]) -> QuerySet[Event]:
    rows = Event.objects.all()
    for name, value in query.items():
        if name not in PLACING:
            rows = rows.filter(EVENT_CONDITIONS[name](value) if name in EVENT_CONDITIONS else Q(**{name: value}))
    return rows


class Log(Resource):
    """Base class of the log resources. Pages begin at a cursor, because page numbers would shift when rows arrive."""

    @property
    def place(self) -> tuple[Cursor | None, int]:
        return self.query_data.get("cursor"), min(
            self.query_data.get("page_size", Paging.page_size), Paging.max_page_size
        )

    def listed(self, result: Page[Any]) -> Response:
        links = {"next": self._link(result.older), "previous": self._link(result.newer)}
        return Response({**links, "results": self.serialize(result.rows, many=True)})

    def _link(self, cursor: Cursor | None) -> str | None:
        return link(self.request, cursor=str(cursor)) if cursor else None


class CallResource(Log):
    """Calls through the gateways."""

    def get_serializer_class(self) -> type[CallSerializer]:
        return CallDetail if self.action == "retrieve" else CallSerializer

    @operation(needs=Capability.LOGS_READ, query=CallQuery)
    def list(self, request: Request) -> Response:
        """List calls."""
        return replica.read_from_replica(
            request, lambda: self.listed(call_search(self.query_data).page(*self.place).page)
        )

    @operation(needs=Capability.LOGS_READ)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get a call."""
        try:
            return self.answer(Call.objects.find(pk))
        except Call.DoesNotExist as missing:
            raise Http404 from missing

    @action(detail=True)
    @operation(needs=Capability.LOGS_READ, answer=TrailSerializer)
    def now(self, request: Request, pk: UUID) -> Response:
        """Check whether a call would be allowed now."""
        try:
            question = question_of(Call.objects.find(pk))
        except Call.DoesNotExist as missing:
            raise Http404 from missing
        if question is None:
            raise NotFound("The person, the gateway, or the app or agent of this call is unknown or no longer exists.")
        return Response(TrailSerializer(trail_of(current_decision(question), self.me)).data)

    @action(detail=False, url_path="what-if")
    @operation(needs=Capability.LOGS_READ, query=WhatIfQuery, answer=TrailSerializer)
    def what_if(self, request: Request) -> Response:
        """Check whether a person could call a tool now."""
        return self._checked(self.query_data)

    @what_if.mapping.post
    @operation(needs=Capability.LOGS_READ, body=WhatIfBody, answer=TrailSerializer)
    def what_if_with_arguments(self, request: Request) -> Response:
        """Check whether a person could call a tool with these arguments now."""
        return self._checked(self.body())

    def _checked(self, question: dict[str, Any]) -> Response:
        return Response(TrailSerializer(trail_of(current_decision(asked(question)), self.me)).data)

    @action(detail=False)
    @operation(needs=Capability.LOGS_READ, query=GroupQuery, answer=CallGroupsSerializer)
    def groups(self, request: Request) -> Response:
        """Count calls by group."""
        found = replica.read_from_replica(
            request, lambda: group_calls(call_search(self.query_data), BY[self.query_data["by"]])
        )
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
        """Export calls as a file."""
        kind = self.query_data["format"]
        changes = {name: [None, request.query_params.getlist(name)] for name in request.query_params}
        pieces = replica.read_from_replica(
            request, lambda: LogExport(call_search(self.query_data), kind, EXPORT_COLUMNS, by=self.me)
        )
        Event.objects.record(Action.LOGS_EXPORTED, self.me, by=self.me, changes=changes)
        return file_response(request._request, "logs", kind, pieces)  # noqa: SLF001  (Django's own request is needed)


class OwnCallSerializer(CallSerializer):
    """One of your own calls and its outcome in words, without its payload."""

    reason = serializers.SerializerMethodField(
        help_text="Why the call was refused or failed, in words; null if it succeeded."
    )

    def get_reason(self, call: Call) -> str | None:
        return OwnCall(call).cause or None


class OwnCallQuery(TimeRangeQuery, CursorQuery):
    """Query parameters for a page of one's own calls."""

    connection = subjects.by_connection()
    session = serializers.UUIDField(required=False, help_text=CALL_HELP["session_id"])


class OwnCalls(Log):
    """Calls made on your behalf."""

    serializer_class = OwnCallSerializer

    @operation(needs=Own(NOBODY, by_key=Capability.LOGS_READ), query=OwnCallQuery)
    def list(self, request: Request) -> Response:
        """List your own calls."""
        asked = self.query_data
        names = {"from": "created_at__gte", "to": "created_at__lt", "connection": "connection_id__in"}
        names |= {"session": "session_id"}
        rows = listed_calls(self.me).filter(**{column: asked[name] for name, column in names.items() if name in asked})
        return self.listed(page(rows, *self.place))


class EventSerializer(serializers.ModelSerializer[Event]):
    """An admin event."""

    id = Id(source="uid")
    created_at = UtcDateTimeField(help_text="When it happened.")
    sentence = serializers.SerializerMethodField(help_text="The event in one English sentence.")

    class Meta:
        model = Event
        exclude = ("uid",)
        extra_kwargs = explained(EVENT_HELP)

    def get_sentence(self, event: Event) -> str:
        return sentence(event)


class EventResource(Log):
    """Changes made by people, by tokens and by the system."""

    serializer_class = EventSerializer

    @operation(needs=Capability.AUDIT_READ, query=EventQuery)
    def list(self, request: Request) -> Response:
        """List admin events."""
        return replica.read_from_replica(
            request, lambda: self.listed(page(matching_events(self.query_data), *self.place))
        )

    @operation(needs=Capability.AUDIT_READ)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get an admin event."""
        return self.answer(get_object_or_404(Event, uid=pk))
