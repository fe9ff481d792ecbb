"""/api/directory-addresses: addresses of the directory; /api/me/directory: the directory of the caller."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar
from uuid import UUID

from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.models import Team
from capabilities import Capability
from capabilities.rest import Own
from directory import registry
from directory.models import AddressExists, DirectoryAddress
from directory.policy_files import PolicyFile, policy_files
from directory.views import address_or_404
from gateways.models import Gateway, GatewayQuerySet
from ui.operations import ListQuery, Query, RequestBody, operation
from ui.rest import CreatedBy, Id, Problem, Reference, Resource, UtcDateTimeField

# People may list the gateways that they may use. An API key also needs GATEWAYS_READ, as for the catalogue.
READ = Own(Capability.GATEWAYS_READ)


class DirectoryAddressSerializer(serializers.Serializer[DirectoryAddress]):
    """An address of the directory."""

    id = Id()
    team = Reference(
        allow_null=True,
        help_text="The address lists the gateways open to this team. If null, it lists the gateways open to everyone.",
    )
    url = serializers.CharField(
        help_text="Address to enter in clients. Clients add `/v0.1/servers` to it. Anybody who has the address can "
        "read the list."
    )
    enabled = serializers.BooleanField(help_text="Whether the address is enabled; a disabled address answers 404.")
    read_at = UtcDateTimeField(
        allow_null=True,
        help_text="Time of the last read; may be up to 1 minute too early. Null if there was no read since the address "
        "was created or regenerated.",
    )
    read_by = serializers.CharField(help_text="Client (`User-Agent`) of the last read; may be empty.")
    regenerated_at = UtcDateTimeField(allow_null=True, help_text="Time of the last regeneration; null if none.")
    created_by = CreatedBy()
    created_at = UtcDateTimeField(help_text="When it was created.")


class DirectoryAddressQuery(ListQuery):
    """Filters of the list of addresses."""

    q = serializers.CharField(
        required=False,
        help_text="Text contained in the team's name. To find the address for all people, use `Everyone`.",
    )
    enabled = serializers.BooleanField(
        required=False, help_text="`true` for only enabled addresses, `false` for only disabled ones."
    )


class NewDirectoryAddress(RequestBody):
    """An address to create; there is at most one for each team, and one for everyone."""

    team_id = serializers.UUIDField(
        required=False, allow_null=True, help_text="The team. If null or missing, the address is for everyone."
    )


class PolicyFileSerializer(serializers.Serializer[PolicyFile]):
    """A file that is generated for one address of the directory, to install on an organisation's computers."""

    slug = serializers.CharField(help_text="Identifies the file among the files of the address; never changes.")
    client = serializers.CharField(help_text="Client that reads the file.")
    name = serializers.CharField(help_text="File name.")
    place = serializers.CharField(help_text="Where to install the file.")
    effect = serializers.CharField(help_text="What the client does with the file.")
    media_type = serializers.CharField(help_text="Media type of the text.")
    text = serializers.CharField(trim_whitespace=False, help_text="Content of the file.")


class PolicyFilesSerializer(serializers.Serializer[Any]):
    """All policy files of an address."""

    files = PolicyFileSerializer(many=True, help_text="The files.")


class DirectoryAddressResource(Resource):
    """Addresses at which clients list gateways without signing in."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        AddressExists: Problem(HTTPStatus.CONFLICT, "already_exists"),
    }
    serializer_class = DirectoryAddressSerializer
    versioned = True

    @operation(needs=Capability.GATEWAYS_READ, query=DirectoryAddressQuery, orderings=("created_at", "read_at"))
    def list(self, request: Request) -> Response:
        """List addresses of the directory."""
        rows = DirectoryAddress.objects.matching(self.query_data.get("q", ""))
        if "enabled" in self.query_data:
            rows = rows.filter(enabled=self.query_data["enabled"])
        return self.page(rows.order_by("created_at", "pk"), lambda rows: rows.select_related("team", "created_by"))

    @operation(needs=Capability.GATEWAYS_READ)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get an address of the directory."""
        return self.answer(address_or_404(pk))

    @operation(needs=Capability.GATEWAYS_MANAGE, body=NewDirectoryAddress, makes=True)
    def create(self, request: Request) -> Response:
        """Create an address of the directory."""
        pk = self.body().get("team_id")
        team = Team.objects.filter(pk=pk).first() if pk else None
        if pk and team is None:
            raise ValidationError({"team_id": ["There is no team with this id."]})
        return self.answer(DirectoryAddress.objects.add(team=team, by=self.me), HTTPStatus.CREATED)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.GATEWAYS_MANAGE, if_match=True)
    def disable(self, request: Request, pk: UUID) -> Response:
        """Disable an address of the directory."""
        address = address_or_404(pk)
        return self.changed(address, address.disable)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.GATEWAYS_MANAGE, if_match=True)
    def enable(self, request: Request, pk: UUID) -> Response:
        """Enable an address of the directory."""
        address = address_or_404(pk)
        return self.changed(address, address.enable)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.GATEWAYS_MANAGE, if_match=True, makes=True)
    def regenerate(self, request: Request, pk: UUID) -> Response:
        """Replace an address of the directory; the old one answers 404 from the next request on."""
        address = address_or_404(pk)
        return self.changed(address, address.regenerate)

    @action(detail=True, methods=["get"])
    @operation(needs=Capability.GATEWAYS_READ, answer=PolicyFilesSerializer)
    def files(self, request: Request, pk: UUID) -> Response:
        """Get the policy files of an address of the directory."""
        return Response(PolicyFilesSerializer({"files": policy_files(address_or_404(pk))}).data)


class RegistryQuery(Query):
    """The parameters of the MCP registry API."""

    cursor = serializers.CharField(required=False, help_text="`metadata.nextCursor` of the page before.")
    limit = serializers.CharField(
        required=False, help_text="Maximum number of servers on a page, up to 100; 30 if missing."
    )
    search = serializers.CharField(required=False, help_text="Text contained in the name or title.")
    updated_since = serializers.CharField(required=False, help_text="Only servers that changed at this time or later.")
    version = serializers.CharField(required=False, help_text="`latest` or a version.")
    include_deleted = serializers.CharField(
        required=False, help_text="Has no effect, because archived gateways are never listed."
    )


class RegistryListSerializer(serializers.Serializer[Any]):
    """A `ServerList` of the MCP registry API v0.1, in which each server is a gateway."""

    servers = serializers.ListField(child=serializers.DictField(), help_text="Each a `ServerResponse`.")
    metadata = serializers.DictField(help_text="`count` of this page, and `nextCursor` if there are more.")


class RegistryServerSerializer(serializers.Serializer[Any]):
    """A `ServerResponse` of the MCP registry API v0.1, in which the server is a gateway."""

    server = serializers.DictField(help_text="Name, title, description, version and remotes.")
    _meta = serializers.DictField(help_text="Status and times.")


class OwnDirectory(Resource):
    """The gateways that you may use, as an MCP registry (API v0.1) with the base URL `/api/me/directory`."""

    @operation(needs=READ, query=RegistryQuery, answer=RegistryListSerializer)
    def servers(self, request: Request) -> Response:
        """List the gateways that you may use, as servers of an MCP registry."""
        try:
            return Response(registry.server_list(self._gateways(), request.query_params))
        except registry.BadQuery as bad:
            raise ValidationError({bad.field: [str(bad)]}) from None

    @operation(needs=READ, query=RegistryQuery, answer=RegistryListSerializer)
    def versions(self, request: Request, name: str) -> Response:
        """List the versions of a gateway that you may use."""
        return _found(registry.versions_of(self._gateways(), name))

    @operation(needs=READ, query=RegistryQuery, answer=RegistryServerSerializer)
    def version(self, request: Request, name: str, version: str) -> Response:
        """Get a version of a gateway that you may use."""
        return _found(registry.server_version(self._gateways(), name, version))

    def _gateways(self) -> GatewayQuerySet:
        return Gateway.objects.usable_by(self.me)


def _found(body: dict[str, Any] | None) -> Response:
    if body is None:
        raise NotFound
    return Response(body)
