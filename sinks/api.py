"""/api/sinks: receivers of the logs."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import ClassVar
from uuid import UUID

from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from capabilities import Capability
from sinks.models import KIND_CHOICES, TONES, BadSinkAddress, BadSinkSecret, SendsNothing, Sink, SinkNameTaken
from sinks.sending import SinkTestResult, send_test_line
from ui.operations import ListQuery, RequestBody, operation
from ui.rest import Id, Problem, Resource, UtcDateTimeField

# Sending the logs to a sink requires the capabilities to read them; payloads also require LOGS_PAYLOADS.
SENDING = frozenset({Capability.SINKS_MANAGE, Capability.LOGS_READ, Capability.AUDIT_READ})


class SinkSerializer(serializers.Serializer[Sink]):
    """A receiver of the logs."""

    id = Id()
    name = serializers.CharField(help_text="Name that pages show.")
    kind = serializers.ChoiceField(KIND_CHOICES, help_text="Kind of receiver.")
    address = serializers.CharField(
        source="place",
        help_text="Address, such as `https://logs.example.com/...`. The path is shown as `...`, because it may "
        "contain a token. Empty for standard output.",
    )
    has_secret = serializers.BooleanField(help_text="Whether a signing secret, access key or headers are stored.")
    sends_calls = serializers.BooleanField(help_text="Whether calls are sent.")
    sends_events = serializers.BooleanField(help_text="Whether admin events are sent.")
    sends_payloads = serializers.BooleanField(help_text="Whether recorded payloads are sent; requires `logs:payloads`.")
    enabled = serializers.BooleanField(help_text="Whether the sink is enabled; false means paused.")
    status = serializers.ChoiceField(
        [(state, state) for state in TONES],
        help_text="`current`, `behind` by more than a minute, `failing`, `paused`, or `waiting` if never served.",
    )
    lag_seconds = serializers.SerializerMethodField(
        help_text="Age of the oldest undelivered row; null if all rows are delivered or the sink is paused."
    )
    delivered = serializers.IntegerField(help_text="Number of acknowledged rows, including repeated ones.")
    refused = serializers.IntegerField(
        help_text="Number of rows that the receiver refused for good; each refusal is an admin event."
    )
    last_delivered_at = UtcDateTimeField(
        allow_null=True, help_text="When the receiver last acknowledged rows; null if never."
    )
    last_error = serializers.CharField(
        help_text="Text of the last error; empty if there was none. A success does not clear the text."
    )
    last_error_at = UtcDateTimeField(allow_null=True, help_text="Time of the last error; null if none.")
    retry_at = UtcDateTimeField(allow_null=True, help_text="Time of the next retry; null if none is pending.")
    dropped_before = UtcDateTimeField(
        allow_null=True,
        help_text="Some calls made before this time were never delivered, because retention deleted them first. "
        "Null if there are no such calls.",
    )
    created_at = UtcDateTimeField(help_text="When it was created.")

    def get_lag_seconds(self, sink: Sink) -> float | None:
        return round(sink.lag.total_seconds(), 3) if sink.lag is not None else None


class SinkChanges(RequestBody):
    """The changeable fields of a sink; its kind never changes."""

    name = serializers.CharField(max_length=80)
    address = serializers.CharField(max_length=500, allow_blank=True)
    secret = serializers.CharField(
        max_length=500,
        write_only=True,
        allow_blank=True,
        help_text="Signing secret of a webhook, access key of a bucket, or headers of a collector; it is never shown.",
    )
    sends_calls = serializers.BooleanField()
    sends_events = serializers.BooleanField()
    sends_payloads = serializers.BooleanField()


class NewSink(SinkChanges):
    """A sink to create."""

    kind = serializers.ChoiceField(KIND_CHOICES)
    address = serializers.CharField(max_length=500, allow_blank=True, default="")
    secret = serializers.CharField(
        max_length=500,
        write_only=True,
        allow_blank=True,
        default="",
        help_text="Signing secret of a webhook, access key of a bucket, or headers of a collector; it is never shown.",
    )
    sends_calls = serializers.BooleanField(default=True)
    sends_events = serializers.BooleanField(default=True)
    sends_payloads = serializers.BooleanField(default=False)
    from_beginning = serializers.BooleanField(
        default=False, help_text="Whether to send calls and events that are older than the sink, too."
    )


class SinkQuery(ListQuery):
    """Filters of the list."""

    q = serializers.CharField(required=False, help_text="Text contained in the name.")
    enabled = serializers.BooleanField(required=False, help_text="Only enabled (`true`) or paused (`false`) sinks.")


class DeliverySerializer(serializers.Serializer[SinkTestResult]):
    """The result of a test line."""

    delivered = serializers.BooleanField(help_text="Whether the line was acknowledged.")
    detail = serializers.CharField(help_text="Result in words.")


class SinkResource(Resource):
    """Receivers of the logs: webhooks, buckets, collectors, syslog, stdout.

    To set up a sink, you need the permissions to read calls and admin events, and also payloads if the sink sends them.
    """

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        BadSinkAddress: Problem(HTTPStatus.BAD_REQUEST, "invalid", "address"),
        BadSinkSecret: Problem(HTTPStatus.BAD_REQUEST, "invalid", "secret"),
        SendsNothing: Problem(HTTPStatus.BAD_REQUEST, "invalid", "sends_calls"),
        SinkNameTaken: Problem(HTTPStatus.CONFLICT, "already_exists"),
    }
    serializer_class = SinkSerializer
    versioned = True
    queryset = Sink.objects.all()

    @operation(needs=Capability.SINKS_READ, query=SinkQuery, orderings=("name", "created_at", "last_delivered_at"))
    def list(self, request: Request) -> Response:
        """List sinks."""
        sinks = Sink.objects.filter(name__icontains=self.query_data.get("q", ""))
        if "enabled" in self.query_data:
            sinks = sinks.filter(enabled=self.query_data["enabled"])
        return self.page(sinks)

    @operation(needs=Capability.SINKS_READ)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get a sink."""
        return self._now(pk)

    @operation(needs=SENDING, body=NewSink, reauth=True, makes=True)
    def create(self, request: Request) -> Response:
        """Create a sink."""
        return self._now(Sink.objects.add(**self.body(), by=self.me).pk, HTTPStatus.CREATED)

    @operation(needs=SENDING, body=SinkChanges, reauth=True, if_match=True)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Change a sink."""
        get_object_or_404(Sink, pk=pk).edit(**self.body(), by=self.me, seen=self.seen)
        return self._now(pk)

    @operation(needs=Capability.SINKS_MANAGE, answer=HTTPStatus.NO_CONTENT, reauth=True, if_match=True)
    def destroy(self, request: Request, pk: UUID) -> Response:
        """Delete a sink."""
        get_object_or_404(Sink, pk=pk).remove(by=self.me, seen=self.seen)
        return Response(status=HTTPStatus.NO_CONTENT)

    @action(detail=True, methods=["post"])
    @operation(needs=SENDING, if_match=True)
    def enable(self, request: Request, pk: UUID) -> Response:
        """Resume a sink."""
        sink = get_object_or_404(Sink, pk=pk)
        with self.unchanged(sink):
            sink.enable(by=self.me)
        return self._now(pk)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.SINKS_MANAGE, reauth=True, if_match=True)
    def disable(self, request: Request, pk: UUID) -> Response:
        """Pause a sink."""
        get_object_or_404(Sink, pk=pk).disable(by=self.me, seen=self.seen)
        return self._now(pk)

    @action(detail=True, methods=["post"], url_path="send-now", url_name="send-now")
    @operation(needs=Capability.SINKS_MANAGE, if_match=True)
    def send_now(self, request: Request, pk: UUID) -> Response:
        """Retry a delivery now, without waiting for `retry_at`."""
        get_object_or_404(Sink, pk=pk).send_now(by=self.me, seen=self.seen)
        return self._now(pk)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.SINKS_MANAGE, answer=DeliverySerializer, if_match=True)
    def test(self, request: Request, pk: UUID) -> Response:
        """Send a test line to a sink.

        The status is 200 even if the sink refuses the line. The result then describes the failure.
        """
        sink = get_object_or_404(Sink, pk=pk)
        with self.unchanged(sink):
            pass  # Only checks the version: the lock must not be held while the receiver is called.
        return Response(DeliverySerializer(send_test_line(sink, by=self.me)).data)

    def _now(self, pk: UUID, status: int = HTTPStatus.OK) -> Response:
        """Return the current state of the sink as an answer."""
        return self.answer(get_object_or_404(Sink, pk=pk), status)
