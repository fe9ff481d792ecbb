"""/api/gateways/{slug}/features and /tools: a gateway's features; /api/tools: the tools of all gateways."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar
from uuid import UUID

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.models import User
from capabilities import Capability
from capabilities.rest import must_hold
from gateways.api import WITHIN_REACH, GatewayReference
from gateways.catalogue import BY_USE, SORTS, SPAN, Catalogue, CatalogueEntry, Place, servers_seen_by
from gateways.feature_refresh import Refreshed, refresh
from gateways.forms import CatalogueFilter
from gateways.models import (
    LONGEST_TEXT,
    SAID_EFFECTS,
    Assignment,
    Effect,
    Feature,
    FeatureKind,
    FeatureQuerySet,
    FeatureState,
    NothingToAccept,
    check_visible,
)
from gateways.views import gateway_or_404
from servers.api import ServerReference
from servers.discovery import Discovered
from ui.operations import ListQuery, RequestBody, operation
from ui.rest import Id, Problem, Resource, SubjectField, UtcDateTimeField, matching


class ToolSerializer(serializers.Serializer[Feature]):
    """A tool with its approved definition, or with its current definition while no definition is approved."""

    id = Id()
    name = serializers.CharField(help_text="Name at its server.")
    exposed_name = serializers.CharField(help_text="Name for clients: alias of the server, `__`, name at its server.")
    title = serializers.CharField(help_text="Title given by its server.")
    description = serializers.CharField(help_text="Description given by its server.")
    server = ServerReference(source="assignment.server")
    alias = serializers.CharField(
        source="assignment.alias", help_text="Prefix of the server's tool names; empty if none."
    )
    enabled = serializers.BooleanField(help_text="Whether it is enabled.")
    effect = serializers.ChoiceField(
        Effect.choices, help_text="Effect that an administrator states, or else the effect that the server claims."
    )
    said_effect = serializers.ChoiceField(
        SAID_EFFECTS,
        help_text="Effect that an administrator states. If empty, the tool has the effect that its server claims.",
    )
    said_title = serializers.CharField(
        help_text="Title that an administrator states for clients. If empty, clients get the server's title."
    )
    said_description = serializers.CharField(
        help_text="Description that an administrator states for clients. If empty, clients get the server's "
        "description."
    )
    tool_policy = serializers.CharField(
        source="assignment.tool_policy", help_text="`allow_all`, `selected` or `block_all`."
    )
    input_schema = serializers.JSONField(help_text="JSON Schema of its arguments.")
    annotations = serializers.JSONField(help_text="Hints given by its server, such as `readOnlyHint`.")
    first_seen_at = UtcDateTimeField(help_text="When it was first seen.")
    last_seen_at = UtcDateTimeField(help_text="When it was last seen.")
    changed_at = UtcDateTimeField(allow_null=True, help_text="When its definition last changed; null if never.")
    missing_since = UtcDateTimeField(
        allow_null=True, help_text="When its server stopped listing it; null if it is listed."
    )


class FeatureSerializer(ToolSerializer):
    """A tool, prompt, resource or template, with its approved definition and its server's current definition."""

    kind = serializers.ChoiceField(FeatureKind.choices, help_text="Tool, prompt, resource or template.")
    state = serializers.ChoiceField(
        FeatureState.choices, help_text="Review state, which decides whether clients see the feature."
    )
    approved = serializers.CharField(help_text="The JSON text of the approved definition; empty if none is approved.")
    offered = serializers.CharField(
        allow_null=True, help_text="The server's current definition as JSON text; null if this definition is approved."
    )
    hidden_characters = serializers.ListField(
        child=serializers.CharField(),
        help_text="Invisible and bidirectional characters in `offered`, or in `approved` if `offered` is null.",
    )


class RefreshedSerializer(serializers.Serializer[Any]):
    """The result of a refresh for one server."""

    alias = serializers.CharField(allow_blank=True, help_text="Prefix of the server's tool names.")
    server = ServerReference()
    ok = serializers.BooleanField(help_text="Whether the server answered.")
    tools = serializers.IntegerField(
        allow_null=True, help_text="Number of its tools; null if the server did not answer."
    )
    detail = serializers.CharField(help_text="Result in words.")


class RefreshSerializer(serializers.Serializer[Any]):
    """The result of a refresh of a gateway's tools."""

    tools_count = serializers.IntegerField(help_text="Number of tools of the gateway.")
    servers = RefreshedSerializer(many=True, help_text="Result of each server.")


def _assignments(view: Resource) -> QuerySet[Any]:
    """Return the assignments of the gateway in the URL."""
    return Assignment.objects.live().filter(gateway=gateway_or_404(view.me, view.kwargs["slug"]).pk)


class ToolQuery(ListQuery):
    """Filters of the list of tools."""

    q = serializers.CharField(required=False, help_text="Text contained in the exposed name, title or description.")
    enabled = serializers.BooleanField(required=False, help_text="true: only enabled rows; false: only disabled rows.")
    server = SubjectField("server", _assignments, "alias", "server__slug", "server__name", ids=("pk", "server"))


class FeatureQuery(ToolQuery):
    """Filters of the list of features."""

    kind = serializers.ChoiceField(FeatureKind.choices, required=False, help_text="Only this kind.")
    state = serializers.ChoiceField(FeatureState.choices, required=False, help_text="Only features in this state.")


class ToolChanges(RequestBody):
    """Changes of a feature: whether it is enabled and, for a tool, the effect, title and description."""

    enabled = serializers.BooleanField()
    said_effect = serializers.ChoiceField(
        SAID_EFFECTS,
        required=False,
        help_text="Effect that you state for a tool. If empty, the tool has the effect that its server claims.",
    )
    said_title = serializers.CharField(
        required=False,
        allow_blank=True,
        max_length=200,
        validators=[check_visible],
        help_text="Title of a tool for clients. If empty, clients get the server's title.",
    )
    said_description = serializers.CharField(
        required=False,
        allow_blank=True,
        max_length=LONGEST_TEXT,
        validators=[check_visible],
        help_text="Description of a tool for clients. If empty, clients get the server's description.",
    )


class ToolResource(Resource):
    """The tools of one gateway."""

    serializer_class = ToolSerializer
    versioned = True

    @operation(needs=WITHIN_REACH, query=ToolQuery, orderings=("exposed_name", "first_seen_at", "last_seen_at"))
    def list(self, request: Request, slug: str) -> Response:
        """List the tools of a gateway."""
        tools = self._tools(slug)
        tools = matching(tools, self.query_data, enabled="enabled", server="assignment__in")
        tools = tools.matching(self.query_data.get("q", ""))
        return self.page(tools, lambda tools: tools.select_related("assignment__server"))

    @operation(needs=WITHIN_REACH)
    def retrieve(self, request: Request, slug: str, pk: UUID) -> Response:
        """Get a tool of a gateway."""
        return self.answer(get_object_or_404(self._tools(slug), pk=pk))

    @operation(needs=Capability.GATEWAYS_MANAGE, body=ToolChanges, if_match=True)
    def partial_update(self, request: Request, slug: str, pk: UUID) -> Response:
        """Enable or disable a tool, or set its effect, title or description."""
        tool = get_object_or_404(self._tools(slug), pk=pk)
        return self.changed(tool, partial(_change, tool, self.body()))

    @operation(needs=Capability.GATEWAYS_MANAGE, answer=RefreshSerializer, if_match=True)
    def refresh(self, request: Request, slug: str) -> Response:
        """Refresh the tools of a gateway.

        Asks every enabled server now. The tools of a server that does not answer stay as they are.
        """
        gateway = gateway_or_404(self.me, slug)
        with self.unchanged(gateway):
            pass  # Release the lock before the servers are asked, which takes seconds.
        servers = [serialize_refresh(row) for row in refresh(gateway, by=self.me)]
        return Response({"tools_count": gateway_or_404(self.me, slug).tool_count, "servers": servers})

    def _tools(self, slug: str) -> FeatureQuerySet:
        return features_of(self.me, slug).tools()


class FeatureResource(Resource):
    """Tools, prompts, resources and templates of the servers of one gateway."""

    serializer_class = FeatureSerializer
    versioned = True
    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        NothingToAccept: Problem(HTTPStatus.CONFLICT, "nothing_to_accept")
    }

    @operation(needs=WITHIN_REACH, query=FeatureQuery, orderings=("exposed_name", "first_seen_at", "last_seen_at"))
    def list(self, request: Request, slug: str) -> Response:
        """List the tools, prompts and resources of a gateway."""
        features = features_of(self.me, slug)
        columns = {"kind": "kind", "state": "state", "enabled": "enabled", "server": "assignment__in"}
        features = matching(features, self.query_data, **columns)
        features = features.matching(self.query_data.get("q", ""))
        return self.page(features, lambda features: features.select_related("assignment__server"))

    @operation(needs=WITHIN_REACH)
    def retrieve(self, request: Request, slug: str, pk: UUID) -> Response:
        """Get a feature of a gateway."""
        return self.answer(self._find(slug, pk))

    @operation(needs=Capability.GATEWAYS_MANAGE, body=ToolChanges, if_match=True)
    def partial_update(self, request: Request, slug: str, pk: UUID) -> Response:
        """Enable or disable a feature, or change the effect, title or description of a tool."""
        feature = self._find(slug, pk)
        return self.changed(feature, partial(_change, feature, self.body()))

    @operation(needs=Capability.GATEWAYS_MANAGE, if_match=True)
    def accept(self, request: Request, slug: str, pk: UUID) -> Response:
        """Accept the current definition of a feature.

        Clients get the definition that the server offers now. A quarantine of the feature ends.
        """
        feature = self._find(slug, pk)
        return self.changed(feature, feature.accept)

    @operation(needs=Capability.GATEWAYS_MANAGE, if_match=True)
    def quarantine(self, request: Request, slug: str, pk: UUID) -> Response:
        """Quarantine a feature.

        Clients do not see it and its calls are refused, until somebody accepts it.
        """
        feature = self._find(slug, pk)
        return self.changed(feature, feature.quarantine)

    def _find(self, slug: str, pk: UUID) -> Feature:
        return get_object_or_404(features_of(self.me, slug), pk=pk)


def _change(feature: Feature, body: Mapping[str, Any], *, by: User) -> None:
    """Enable or disable the feature, and set its effect, title and description, as `body` says.

    A value that is missing in `body` stays unchanged.

    Raises ValidationError if `body` states an effect, title or description for a feature that is not a tool.
    """
    stated = [name for name in ("said_effect", "said_title", "said_description") if body.get(name)]
    if stated and feature.kind != FeatureKind.TOOL:
        raise serializers.ValidationError({name: ["Only tools can have this field."] for name in stated})
    if "enabled" in body:
        (feature.enable if body["enabled"] else feature.disable)(by=by)
    if "said_effect" in body:
        feature.say_effect(body["said_effect"], by=by)
    if "said_title" in body or "said_description" in body:
        title, description = (
            body.get(f"said_{name}", getattr(feature, f"said_{name}")) for name in ("title", "description")
        )
        feature.say_texts(title=title, description=description, by=by)


def features_of(viewer: User, slug: str) -> FeatureQuerySet:
    """Return the features of a gateway's servers. Raises Http404 if `viewer` may not see the gateway."""
    gateway = gateway_or_404(viewer, slug)
    features = Feature.objects.filter(assignment__gateway=gateway.pk, assignment__removed_at=None)
    return features.select_related("assignment__server").order_by("exposed_name", "pk")


def serialize_refresh(row: Refreshed) -> dict[str, object]:
    """Return the outcome of a refresh for one server."""
    discovered = row.outcome if isinstance(row.outcome, Discovered) else None
    return {
        "alias": row.assignment.alias,
        "server": ServerReference(row.assignment.server).data,
        "ok": discovered is not None,
        "tools": len(discovered.tools) if discovered else None,
        "detail": str(discovered) if discovered else row.failure,
    }


# /api/tools: the tools of all servers on the gateways the caller may see, each tool once.


class PlaceSerializer(serializers.Serializer[Place]):
    """A tool on one gateway; `id` is the id of the tool on this gateway."""

    id = Id(source="pk")
    gateway = GatewayReference()
    exposed_name = serializers.CharField(help_text="Name for clients: alias of the server, `__`, name of the tool.")
    state = serializers.ChoiceField(
        FeatureState.choices, help_text="Review state, which decides whether clients see the feature."
    )
    offered = serializers.BooleanField(source="is_offered", help_text="Whether clients can call it on this gateway.")


class CatalogueToolSerializer(serializers.Serializer[CatalogueEntry]):
    """A tool of a server, with the gateways that have it."""

    id = Id(
        source="feature.pk",
        help_text="Id of the tool on one of its gateways. Of the gateways where the tool matches the filters, this "
        "is the one where the tool was seen first.",
    )
    name = serializers.CharField(source="feature.name", help_text="Name at its server.")
    title = serializers.CharField(source="feature.title", allow_blank=True, help_text="Title given by its server.")
    server = ServerReference()
    effect = serializers.ChoiceField(
        Effect.choices,
        source="feature.effect",
        help_text="Effect that an administrator states, or else the effect that the server claims.",
    )
    places = PlaceSerializer(many=True, help_text="Gateways that have it.")
    calls = serializers.SerializerMethodField(
        help_text="Calls of the tool in the last `counted_seconds`. Calls on gateways where the tool does not "
        "match the filters are left out. Null if you may not read the log."
    )
    last_used_at = UtcDateTimeField(
        allow_null=True,
        help_text="When it was last called in the counted period; null if it was not called, or if calls are not "
        "counted.",
    )
    counted_seconds = serializers.SerializerMethodField(
        help_text="Length of the counted period in seconds (30 days); null if calls are not counted."
    )

    def get_calls(self, entry: CatalogueEntry) -> int | None:
        return entry.calls if self.context["catalogue"].tells_use else None

    def get_counted_seconds(self, entry: CatalogueEntry) -> int | None:
        return int(SPAN.length.total_seconds()) if self.context["catalogue"].tells_use else None


class CatalogueToolDetailSerializer(CatalogueToolSerializer):
    """A tool of a server in detail. The definition is from the gateway where the tool was first seen."""

    description = serializers.CharField(
        source="feature.description", allow_blank=True, help_text="Description given by its server."
    )
    input_schema = serializers.JSONField(source="feature.input_schema", help_text="JSON Schema of its arguments.")
    annotations = serializers.JSONField(
        source="feature.annotations", help_text="Hints given by its server, such as `readOnlyHint`."
    )
    first_seen_at = UtcDateTimeField(source="feature.first_seen_at", help_text="When it was first seen.")


class CatalogueQuery(ListQuery):
    """Filters of the catalogue."""

    q = serializers.CharField(required=False, help_text="Text contained in the exposed name, title or description.")
    effect = serializers.ListField(
        child=serializers.ChoiceField(Effect.choices),
        required=False,
        help_text="Only tools with this `effect`; repeat for several.",
    )
    show = serializers.ChoiceField(
        CatalogueFilter.SHOWS,
        required=False,
        help_text="`new`: tools added in the last 7 days to a server that was assigned earlier; `changed`: tools with "
        "a definition that waits for a decision; `unused`: tools without a call in the last 30 days.",
    )
    server = SubjectField("server", lambda view: servers_seen_by(view.me), "slug", "name")


class CatalogueResource(Resource):
    """The tools of all servers on the gateways you may see."""

    serializer_class = CatalogueToolSerializer

    @operation(needs=WITHIN_REACH, query=CatalogueQuery, orderings=tuple(SORTS))
    def list(self, request: Request) -> Response:
        """List the tools of all servers.

        Sorting by `calls` or `last`, and showing `unused` tools, also requires `logs:read`.
        """
        values = {name: self.query_data.get(name) for name in ("q", "effect", "show")}
        if values["show"] == "unused" or self.ordering.removeprefix("-") in BY_USE:
            must_hold(self.me, Capability.LOGS_READ)
        values = {name: value for name, value in values.items() if value}
        values["server_ids"] = self.query_data.get("server")
        self.catalogue = Catalogue(self.me, values, self.ordering)
        page: Any = self.paginate_queryset(self.catalogue)  # type: ignore[arg-type]  # A sequence is enough.
        return self.get_paginated_response(self.serialize(page, many=True))

    @operation(needs=WITHIN_REACH, answer=CatalogueToolDetailSerializer)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get a tool of a server.

        A tool has a different id on each gateway. Use the id from any gateway that you may see.
        """
        feature = get_object_or_404(Feature.objects.tools_seen_by(self.me).select_related("assignment"), pk=pk)
        self.catalogue = Catalogue(self.me, {})
        entry = self.catalogue.find(feature)
        return self.tagged(CatalogueToolDetailSerializer(entry, context=self.get_serializer_context()).data)

    def get_serializer_context(self) -> dict[str, Any]:
        return {**super().get_serializer_context(), "catalogue": getattr(self, "catalogue", None)}
