"""/api/me/gateways and /api/access-requests: the catalogue of a person, requests for access, and the decisions."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar
from uuid import UUID

from django.db.models.functions import Lower
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from capabilities import NOBODY, Capability
from capabilities.rest import Own
from connections.tool_sets import sets_at
from gateways.access_forms import CatalogueAccessFilter, RequestFilter
from gateways.access_views import CatalogueRow, request_or_404, visible_request_or_404, with_access
from gateways.api import GatewayReference
from gateways.models import (
    AccessRequest,
    AccessRequestQuerySet,
    AlreadyDecided,
    AlreadyGiven,
    AlreadyRequested,
    Gateway,
    NotYoursToDecide,
    RequestRefused,
    RequestState,
    TooLong,
    TooManyOpen,
)
from ui.operations import ListQuery, RequestBody, operation
from ui.rest import Id, Problem, Reference, Resource, UtcDateTimeField

# OWN is for operations that change access requests: the person's own, and those on which the person may decide. Other
# access requests give 404.
OWN = Own(Capability.GATEWAYS_MANAGE)
READ = Own(Capability.GATEWAYS_READ)


class CatalogueSerializer(serializers.Serializer[CatalogueRow]):
    """A gateway that you may use, see or ask for."""

    id = Id(source="gateway.pk")
    name = serializers.CharField(source="gateway.name", help_text="Name that pages show.")
    slug = serializers.CharField(source="gateway.slug", help_text="Name in URLs; never changes.")
    description = serializers.CharField(source="gateway.description", help_text="Text for people.")
    enabled = serializers.BooleanField(source="gateway.enabled", help_text="Whether it is enabled.")
    tools_count = serializers.IntegerField(source="gateway.tool_count", help_text="Number of tools it offers.")
    may_use = serializers.BooleanField(source="reaches", help_text="Whether you may use it.")
    ends_at = UtcDateTimeField(
        source="until", allow_null=True, help_text="When your access ends; null if no end is set."
    )
    takes_requests = serializers.BooleanField(
        source="gateway.takes_requests", help_text="Whether people may request access to it."
    )
    request_id = serializers.UUIDField(
        source="gateway.waits", allow_null=True, help_text="Your newest request that awaits a decision; null if none."
    )


class OwnGatewayQuery(ListQuery):
    """Filters of the catalogue."""

    q = serializers.CharField(required=False, help_text="Text contained in name, slug or description.")
    access = serializers.ChoiceField(
        ["yes", "no"], required=False, help_text="`yes`: only gateways that you may use; `no`: only the others."
    )


class OwnGateways(Resource):
    """The gateways that you may use, see or ask for."""

    serializer_class = CatalogueSerializer

    @operation(needs=READ, query=OwnGatewayQuery)
    def list(self, request: Request) -> Response:
        """List the gateways that you may use, see or ask for."""
        narrowing = CatalogueAccessFilter(self.query_data, viewer=self.me)
        rows = narrowing.narrow(Gateway.objects.catalogue_of(self.me)).order_by(Lower("name"), "pk")
        return self.page(rows, lambda rows: with_access(rows, self.me))

    def serialize(self, thing: Any, *, many: bool = False) -> Any:
        return super().serialize([CatalogueRow(each, self.me) for each in thing], many=many)


class AccessRequestSerializer(serializers.Serializer[AccessRequest]):
    """A request for access to a gateway."""

    id = Id()
    gateway = GatewayReference(help_text="The gateway.")
    tool_set = Reference(allow_null=True, help_text="The requested tool set; null if only the gateway is requested.")
    email = serializers.EmailField(source="user.email", help_text="E-mail address of the person who asked.")
    reason = serializers.CharField(help_text="What the person needs the access for.")
    days = serializers.IntegerField(
        help_text="Number of days that were requested. After an approval, the number of days that were approved; they "
        "are counted from the approval."
    )
    state = serializers.ChoiceField(RequestState.choices, help_text="Its state.")
    approvers = serializers.SerializerMethodField(
        help_text="E-mail addresses of the gateway's approvers who can decide. If there are none, only people with "
        "`gateways:manage` can decide."
    )
    decided_by = serializers.EmailField(
        source="decided_by.email",
        default=None,
        allow_null=True,
        help_text="E-mail address of the person who decided or withdrew the request. Null while the request waits, or "
        "if a directory withdrew it.",
    )
    decided_at = UtcDateTimeField(
        allow_null=True, help_text="When the request was decided or withdrawn; null while it waits for a decision."
    )
    answer = serializers.CharField(help_text="Note of the person who decided; may be empty.")
    created_at = UtcDateTimeField(help_text="When it was made.")

    def get_approvers(self, asked: AccessRequest) -> list[str]:
        named = (one for one in asked.gateway.approvers.all() if one.is_active and one.pk != asked.user_id)
        return sorted(one.email for one in named)


class AccessRequestQuery(ListQuery):
    """Filters of requests."""

    q = serializers.CharField(required=False, help_text="Text contained in the person's address or the gateway's name.")
    show = serializers.ChoiceField(
        [name for name, _ in RequestFilter.SHOWS],
        required=False,
        help_text="`decide`: requests that wait for your decision; `open`: all requests that wait for a decision; "
        "`own`: your requests; `decided`: requests that no longer wait.",
    )


class AccessRequestBody(RequestBody):
    """A new access request."""

    gateway_id = serializers.UUIDField(help_text="The gateway.")
    tool_set_id = serializers.UUIDField(
        required=False,
        allow_null=True,
        help_text="The tool set of the gateway that you request. If null, you request only the gateway.",
    )
    reason = serializers.CharField(max_length=500, help_text="What you need the access for.")
    days = serializers.IntegerField(
        required=False,
        min_value=1,
        help_text="Number of days of access, counted from the approval. By default, the gateway's `request_days`.",
    )


class DeclineBody(RequestBody):
    """The decision to decline."""

    answer = serializers.CharField(
        max_length=500, required=False, allow_blank=True, help_text="Note for the person who asked."
    )


class ApproveBody(DeclineBody):
    """The decision to approve."""

    days = serializers.IntegerField(
        required=False,
        min_value=1,
        help_text="Number of days of access, counted from now. By default, the requested number.",
    )


class AccessRequestResource(Resource):
    """Requests for access: your own requests, and the requests on which you may decide."""

    serializer_class = AccessRequestSerializer
    versioned = True
    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        TooLong: Problem(HTTPStatus.BAD_REQUEST, "invalid", "days"),
        AlreadyGiven: Problem(HTTPStatus.CONFLICT, "already_given"),
        AlreadyRequested: Problem(HTTPStatus.CONFLICT, "already_requested"),
        AlreadyDecided: Problem(HTTPStatus.CONFLICT, "already_decided"),
        TooManyOpen: Problem(HTTPStatus.CONFLICT, "too_many_requests"),
        NotYoursToDecide: Problem(HTTPStatus.FORBIDDEN, "not_yours"),
        RequestRefused: Problem(HTTPStatus.CONFLICT, "conflict"),
    }

    @operation(needs=READ, query=AccessRequestQuery, orderings=("created_at",))
    def list(self, request: Request) -> Response:
        """List the requests for access that you may read.

        With `gateways:read` or `gateways:manage`, these are all requests. Otherwise, they are your own requests and the
        requests on which you may decide.
        """
        rows = RequestFilter(self.query_data, viewer=self.me).narrow(AccessRequest.objects.visible_to(self.me))
        return self.page(rows.order_by("-created_at", "pk"), _loaded)

    @operation(needs=READ)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get a request for access."""
        return self.answer(visible_request_or_404(self.me, pk))

    @operation(needs=OWN, body=AccessRequestBody, conflicts=True, makes=True)
    def create(self, request: Request) -> Response:
        """Request access to a gateway."""
        body = self.body()
        gateway = Gateway.objects.catalogue_of(self.me).filter(takes_requests=True, pk=body["gateway_id"]).first()
        if gateway is None:
            raise ValidationError({"gateway_id": ["You cannot request access to a gateway with this id."]})
        tool_set = None
        if pk := body.get("tool_set_id"):
            tool_set = sets_at(gateway).filter(pk=pk).first()
            if tool_set is None:
                raise ValidationError({"tool_set_id": ["This gateway has no tool set with this id."]})
        days = body.get("days") or gateway.request_days
        made = AccessRequest.objects.ask(gateway, tool_set=tool_set, reason=body["reason"], days=days, by=self.me)
        return self.answer(made, HTTPStatus.CREATED)

    @action(detail=True, methods=["post"])
    @operation(needs=OWN, body=ApproveBody, conflicts=True, if_match=True)
    def approve(self, request: Request, pk: UUID) -> Response:
        """Approve another person's request for access."""
        asked = request_or_404(self.me, pk)
        return self.changed(asked, asked.approve, **self.body())

    @action(detail=True, methods=["post"])
    @operation(needs=OWN, body=DeclineBody, conflicts=True, if_match=True)
    def decline(self, request: Request, pk: UUID) -> Response:
        """Decline another person's request for access."""
        asked = request_or_404(self.me, pk)
        return self.changed(asked, asked.decline, **self.body())

    @action(detail=True, methods=["post"])
    @operation(needs=OWN, if_match=True)
    def end(self, request: Request, pk: UUID) -> Response:
        """End the access that an approved request gave."""
        asked = request_or_404(self.me, pk)
        return self.changed(asked, asked.end_access)

    @action(detail=True, methods=["post"])
    @operation(needs=Own(NOBODY, by_key=Capability.GATEWAYS_MANAGE), conflicts=True, if_match=True)
    def withdraw(self, request: Request, pk: UUID) -> Response:
        """Withdraw your own request for access."""
        asked = request_or_404(self.me, pk)
        return self.changed(asked, asked.withdraw)


def _loaded(rows: AccessRequestQuerySet) -> AccessRequestQuerySet:
    return rows.with_details().prefetch_related("gateway__approvers")
