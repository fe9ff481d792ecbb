"""/api/tools: the tools of all servers on the gateways one may see, each tool once."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar
from uuid import UUID

from django.db import IntegrityError
from django.db.models import Q
from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from capabilities import Capability
from capabilities.rest import must_hold
from gateways.api import WITHIN_REACH, GatewayReference
from gateways.assignment_views import counted
from gateways.catalogue import BY_USE, PERIODS, SORTS, Catalogue, CatalogueEntry, is_offered, servers_seen_by
from gateways.forms import AssignmentForm, CatalogueFilter
from gateways.models import (
    AliasRequired,
    Assignment,
    Effect,
    Feature,
    FeatureState,
    Gateway,
    IdentityScheme,
    ToolPolicy,
    WrongIdentity,
)
from gateways.refresh import first_list
from gateways.use_of_gateway import used_tools
from gateways.views import gateway_or_404 as find_gateway
from servers.api import ServerReference
from servers.models import Server
from ui.idempotency import Afterwards
from ui.operations import ListQuery, RequestBody, operation
from ui.rest import Id, Problem, Resource, UtcDateTimeField, already_exists, checked
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


# /api/gateways/{slug}/servers: the servers assigned to a gateway.

ALIAS_TAKEN = "Another server of this gateway has this alias."
CALLED = {"server": "server_id", "shared_identity": "shared_identity_id", "bare": "alias"}


class SharedIdentity(serializers.Serializer[Any]):
    """The shared identity that everyone uses."""

    id = Id()
    name = serializers.CharField(source="label", help_text="Label of the identity.")


class AssignmentSerializer(serializers.Serializer[Assignment]):
    """A server assigned to a gateway."""

    id = Id()
    alias = serializers.CharField(help_text="Prefix of the server's tool names, before `__`; empty if none.")
    server = ServerReference()
    identity_scheme = serializers.CharField(help_text="`none`, `shared` or `per_user`: whose credential calls use.")
    shared_identity = SharedIdentity(allow_null=True, help_text="Shared identity that everyone uses; null if none.")
    tool_policy = serializers.CharField(help_text="`allow_all`, `selected` or `block_all`: which tools may be called.")
    enabled = serializers.BooleanField(help_text="Whether it is enabled at this gateway.")
    server_enabled = serializers.BooleanField(source="server.enabled", help_text="Whether the server is enabled.")
    health = serializers.CharField(source="server.health", help_text="`ok`, `down` or `unknown`, when last contacted.")
    tools_count = serializers.IntegerField(source="tool_count", help_text="Number of its tools.")
    tools_allowed = serializers.IntegerField(source="callable_count", help_text="Number of its callable tools.")
    created_at = UtcDateTimeField(help_text="When it was assigned.")


class AssignmentChanges(RequestBody):
    """How a server stands behind a gateway. An empty alias leaves the names of its tools as they are.

    Only the one server of a gateway may be without one.
    """

    alias = serializers.CharField(max_length=16, allow_blank=True, required=False)
    identity_scheme = serializers.ChoiceField(IdentityScheme.choices, required=False)
    shared_identity_id = serializers.UUIDField(
        allow_null=True, required=False, help_text="Shared identity to use, for `identity_scheme` `shared`."
    )
    tool_policy = serializers.ChoiceField(ToolPolicy.choices, required=False)


class NewAssignment(AssignmentChanges):
    """A server to assign to a gateway; the default alias is its slug."""

    server_id = serializers.UUIDField(help_text="Server to assign.")

    def validate_server_id(self, pk: UUID) -> Server:
        server = Server.objects.live().filter(pk=pk).first()
        if server is None:
            raise ValidationError("There is no such server.")
        return server


class AssignmentResource(Resource):
    """The servers of one gateway, by alias or, without one, by id."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        WrongIdentity: Problem(HTTPStatus.BAD_REQUEST, "invalid", "shared_identity_id")
    }
    serializer_class = AssignmentSerializer
    versioned = True

    @operation(needs=WITHIN_REACH, query=ListQuery, orderings=("alias", "created_at"))
    def list(self, request: Request, slug: str) -> Response:
        """List the servers of a gateway."""
        return self.page(find_gateway(self.me, slug).assignments.live().order_by("alias", "pk"), counted)

    @operation(needs=WITHIN_REACH)
    def retrieve(self, request: Request, slug: str, alias: str) -> Response:
        """Get a server of a gateway."""
        return self.answer(self._find(slug, alias))

    @operation(needs=Capability.GATEWAYS_MANAGE, body=NewAssignment, conflicts=True, makes=True)
    def create(self, request: Request, slug: str) -> Response:
        """Assign a server to a gateway."""
        gateway = find_gateway(self.me, slug)
        body = self.body()
        server = body["server_id"]
        policy = body.pop("tool_policy", ToolPolicy.ALLOW_ALL)
        _must_be_free(gateway, body.get("alias", server.slug))
        scheme = IdentityScheme.PER_USER if server.needs_credential else IdentityScheme.NONE
        data = {"server": server.slug, "identity_scheme": scheme, **_as_form(body)}
        fields = checked(AssignmentForm(data, gateway=gateway, server=server), **CALLED)
        try:
            assignment = Assignment.objects.assign(gateway=gateway, tool_policy=policy, by=self.me, **fields)
        except IntegrityError:
            raise already_exists(ALIAS_TAKEN) from None
        except AliasRequired as refusal:
            raise ValidationError({"alias": [str(refusal)]}) from None

        def listed() -> Response:
            first_list(assignment, by=self.me)
            return self._now(assignment, HTTPStatus.CREATED)

        return Afterwards(lambda: self._now(assignment, HTTPStatus.CREATED), listed)

    @operation(needs=Capability.GATEWAYS_MANAGE, body=AssignmentChanges, conflicts=True, if_match=True)
    def partial_update(self, request: Request, slug: str, alias: str) -> Response:
        """Change a server at a gateway."""
        assignment = self._find(slug, alias)
        changes = self.body()
        if changes.get("alias"):
            _must_be_free(assignment.gateway, changes["alias"], assignment)
        fields = {name: value for name, value in changes.items() if name == "tool_policy"}
        if set(changes) - set(fields):
            current: dict[str, Any] = {
                "gateway": assignment.gateway,
                "server": assignment.server,
                "assignment": assignment,
            }
            start = AssignmentForm(**current).initial
            fields |= checked(AssignmentForm({**start, **_as_form(changes)}, **current), **CALLED)
        try:
            assignment.edit(**fields, by=self.me, seen=self.seen)
        except IntegrityError:
            raise already_exists(ALIAS_TAKEN) from None
        except AliasRequired as refusal:
            raise ValidationError({"alias": [str(refusal)]}) from None
        return self._now(assignment)

    @operation(needs=Capability.GATEWAYS_MANAGE, answer=HTTPStatus.NO_CONTENT, if_match=True)
    def destroy(self, request: Request, slug: str, alias: str) -> Response:
        """Remove a server from a gateway."""
        assignment = self._find(slug, alias)
        with self.unchanged(assignment):
            assignment.remove(by=self.me)
        return Response(status=HTTPStatus.NO_CONTENT)

    @operation(needs=Capability.GATEWAYS_TOGGLE, if_match=True)
    def disable(self, request: Request, slug: str, alias: str) -> Response:
        """Disable a server at a gateway."""
        assignment = self._find(slug, alias)
        with self.unchanged(assignment):
            assignment.disable(by=self.me)
        return self._now(assignment)

    @operation(needs=Capability.GATEWAYS_TOGGLE, if_match=True)
    def enable(self, request: Request, slug: str, alias: str) -> Response:
        """Enable a server at a gateway."""
        assignment = self._find(slug, alias)
        with self.unchanged(assignment):
            assignment.enable(by=self.me)
        return self._now(assignment)

    @operation(needs=frozenset({Capability.GATEWAYS_MANAGE, Capability.LOGS_READ}), if_match=True)
    def narrow(self, request: Request, slug: str, alias: str) -> Response:
        """Disable the tools of a server that were not used lately."""
        assignment = self._find(slug, alias)
        with self.unchanged(assignment):
            assignment.narrow(used_tools(assignment), by=self.me)
        return self._now(assignment)

    @operation(needs=Capability.GATEWAYS_MANAGE, if_match=True)
    def widen(self, request: Request, slug: str, alias: str) -> Response:
        """Enable the tools again that were disabled because they were not used."""
        assignment = self._find(slug, alias)
        with self.unchanged(assignment):
            assignment.widen(by=self.me)
        return self._now(assignment)

    def _find(self, slug: str, alias: str) -> Assignment:
        return get_object_or_404(counted(find_gateway(self.me, slug).assignments.all()), matching_reference(alias))

    def _now(self, assignment: Assignment, status: int = HTTPStatus.OK) -> Response:
        """The assignment as it is now."""
        return self.answer(counted(Assignment.objects.all()).get(pk=assignment.pk), status)


def matching_reference(alias: str) -> Q:
    """Match the alias or id in a URL; ids are longer than any alias. NUL matches nothing."""
    try:
        return Q(pk=UUID(alias))
    except ValueError:
        return Q(pk=None) if "\0" in alias else Q(alias=alias)


def _must_be_free(gateway: Gateway, alias: str, excluded: Assignment | None = None) -> None:
    """Raise 409 if another live server of `gateway` has this alias."""
    others = gateway.assignments.live()
    others = others.exclude(pk=excluded.pk) if excluded else others
    if alias and others.filter(alias=alias).exists():
        raise already_exists(ALIAS_TAKEN)


def _as_form(body: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a request body to the fields of the page's form."""
    data = {name: body[name] for name in ("alias", "identity_scheme") if name in body}
    if "alias" in body:
        data["bare"] = not body["alias"]
    if "shared_identity_id" in body:
        data["shared_identity"] = body["shared_identity_id"]
    return data
