"""/api/tools: the tools of all servers on the gateways one may see, each tool once."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from capabilities import Capability
from capabilities.rest import must_hold
from gateways.api import WITHIN_REACH, GatewayReference
from gateways.catalogue import BY_USE, PERIODS, SORTS, Catalogue, CatalogueEntry, is_offered, servers_seen_by
from gateways.forms import CatalogueFilter
from gateways.models import Effect, Feature, FeatureState
from servers.api import ServerReference
from ui.operations import ListQuery, operation
from ui.rest import Id, Resource, UtcDateTimeField
from ui.subjects import SubjectField


class PlaceSerializer(serializers.Serializer[Feature]):
    """A tool on one gateway; `id` is the id of the feature there."""

    id = Id()
    gateway = GatewayReference(source="assignment.gateway")
    exposed_name = serializers.CharField(help_text="Name for clients: alias of the server, `__`, name of the tool.")
    state = serializers.ChoiceField(FeatureState.choices, help_text="Whether clients see it.")
    offered = serializers.SerializerMethodField(
        help_text="Whether nothing on the gateway keeps everybody from calling it."
    )

    def get_offered(self, place: Feature) -> bool:
        return is_offered(place)


class CatalogueToolSerializer(serializers.Serializer[CatalogueEntry]):
    """A tool of a server, with the gateways that have it."""

    id = Id(source="feature.pk", help_text="The id of the feature on the first gateway that learnt of it.")
    name = serializers.CharField(source="feature.name", help_text="Name at its server.")
    title = serializers.CharField(source="feature.title", allow_blank=True, help_text="Title given by its server.")
    server = ServerReference()
    effect = serializers.ChoiceField(Effect.choices, source="feature.effect", help_text="Effect claimed by its server.")
    places = PlaceSerializer(many=True, help_text="Gateways that have it.")
    calls = serializers.SerializerMethodField(
        help_text="How often it was called in the last `counted_seconds`, on the gateways where it is found; null for "
        "who may not read the log."
    )
    last_used_at = UtcDateTimeField(
        allow_null=True, help_text="When it was last called in that time; null if it was not."
    )
    counted_seconds = serializers.SerializerMethodField(
        help_text="How long back calls are counted, 30 days at most, less in a busy log; null where none are."
    )

    def get_calls(self, entry: CatalogueEntry) -> int | None:
        return entry.calls if self.context["catalogue"].period else None

    def get_counted_seconds(self, entry: CatalogueEntry) -> int | None:
        period = self.context["catalogue"].period
        return int(PERIODS[period.label].total_seconds()) if period else None


class CatalogueToolDetailSerializer(CatalogueToolSerializer):
    """A tool of a server, as clients see it on the first gateway that had it."""

    description = serializers.CharField(
        source="feature.description", allow_blank=True, help_text="Description given by its server."
    )
    input_schema = serializers.JSONField(source="feature.input_schema", help_text="JSON Schema of its arguments.")
    annotations = serializers.JSONField(
        source="feature.annotations", help_text="Hints given by its server, such as `readOnlyHint`."
    )
    first_seen_at = UtcDateTimeField(source="feature.first_seen_at", help_text="When it was first seen.")


class CatalogueQuery(ListQuery):
    """How the catalogue is narrowed."""

    q = serializers.CharField(required=False, help_text="Text contained in the exposed name, title or description.")
    effect = serializers.ListField(
        child=serializers.ChoiceField(Effect.choices),
        required=False,
        help_text="Only tools with this claimed effect; repeat for several.",
    )
    show = serializers.ChoiceField(
        CatalogueFilter.SHOWS,
        required=False,
        help_text="Only tools that are new, changed and waiting for a decision, or unused.",
    )
    server = SubjectField("server", lambda view: servers_seen_by(view.me), "slug", "name")


class CatalogueResource(Resource):
    """The tools of all servers, as far as their gateways are open to you."""

    serializer_class = CatalogueToolSerializer

    @operation(needs=WITHIN_REACH, query=CatalogueQuery, orderings=tuple(SORTS))
    def list(self, request: Request) -> Response:
        """List the tools of all servers.

        To sort by `calls` or `last`, or to show `unused` tools, takes `logs:read` as well.
        """
        values = {name: self.query_data.get(name) for name in ("q", "effect", "show")}
        if values["show"] == "unused" or self.ordering.removeprefix("-") in BY_USE:
            must_hold(self.me, Capability.LOGS_READ)
        values = {name: value for name, value in values.items() if value}
        values["server_ids"] = self.query_data.get("server")
        self.catalogue = Catalogue(self.me, values, self.ordering, expected=self._expected(request))
        page: Any = self.paginate_queryset(self.catalogue)  # type: ignore[arg-type]  # A sequence will do.
        return self.get_paginated_response(self.serialize(page, many=True))

    def _expected(self, request: Request) -> slice:
        """Return the slice of entries on the requested page, so that one query gets them and the total."""
        paging: Any = self.paginator
        size, page = paging.get_page_size(request), request.query_params.get(paging.page_query_param, "")
        start = (int(page) - 1) * size if page.isascii() and page.isdecimal() and 0 < len(page) < 6 else 0
        return slice(max(start, 0), max(start, 0) + size)

    @operation(needs=WITHIN_REACH, answer=CatalogueToolDetailSerializer)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get a tool of a server.

        By the id of any of its features that you may see.
        """
        feature = get_object_or_404(Feature.objects.tools_seen_by(self.me).select_related("assignment"), pk=pk)
        self.catalogue = Catalogue(self.me, {})
        entry = self.catalogue.find(feature)
        return self.tagged(CatalogueToolDetailSerializer(entry, context=self.get_serializer_context()).data)

    def get_serializer_context(self) -> dict[str, Any]:
        return {**super().get_serializer_context(), "catalogue": getattr(self, "catalogue", None)}
