"""/api/servers: upstream servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar

from django.db.models.functions import Lower
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.sign_in import confirm_first
from capabilities import Capability, CapabilityRequired
from servers.adding import OWN, SHARED
from servers.bring import (
    MOST_ADDED,
    NEW_GATEWAY,
    AddedEntry,
    ChosenEntry,
    OfferedEntry,
    PlacementForm,
    bring,
    offers_of,
)
from servers.client_files import MOST_BYTES, Unreadable, read_entries
from servers.discovery import DiscoveryFailed, probe
from servers.forms import ServerForm
from servers.models import AnotherPlace, AuthType, Health, ResourceSent, Server, WouldEndSignIns
from servers.views import counted, server_or_404
from ui.forms import named
from ui.operations import ListQuery, RequestBody, operation
from ui.rest import CreatedBy, Id, Problem, Reference, Resource, UtcDateTimeField, already_exists, checked, matching

NAME_TAKEN = "A server with this name or slug already exists."


class ServerReference(Reference):
    """A server, by id, name and slug."""

    slug = serializers.CharField(help_text="Name in URLs. Also the default alias on gateways. It never changes.")


class ServerSerializer(serializers.Serializer[Server]):
    """An upstream server."""

    id = Id()
    name = serializers.CharField(help_text="Name that pages show.")
    slug = serializers.CharField(help_text="Name in URLs. Also the default alias on gateways. It never changes.")
    url = serializers.CharField(help_text="Address of its MCP endpoint.")
    auth_type = serializers.CharField(help_text="`none`, `bearer`, `header` or `oauth`: kind of its credential.")
    header_name = serializers.CharField(help_text="Header of the credential, if `auth_type` is `header`.")
    timeout_seconds = serializers.IntegerField(help_text="Maximum seconds without data during a call.")
    total_seconds = serializers.IntegerField(help_text="Maximum seconds of a call.")
    max_concurrent = serializers.IntegerField(help_text="Maximum concurrent calls.")
    lists_live = serializers.BooleanField(
        help_text="Whether the server's lists of tools, prompts and resources differ by session. If true, the gateway "
        "requests a list from the server whenever a client asks for it."
    )
    key_help = serializers.CharField(help_text="How people get a credential, in the administrator's words.")
    key_url = serializers.CharField(help_text="Page where people get a credential; empty if none.")
    enabled = serializers.BooleanField(help_text="Whether it is enabled.")
    expected_issuer = serializers.CharField(
        help_text="The name that the issuer gives itself, if it differs from the issuer's URL."
    )
    resource_sent = serializers.CharField(
        help_text=(
            "`resource` (RFC 8707) sent to the issuer: `server` (its address), `omit` (none) or `fixed` "
            "(`fixed_resource`)."
        )
    )
    fixed_resource = serializers.CharField(help_text="The `resource` to send, if `resource_sent` is `fixed`.")
    fixed_scopes = serializers.CharField(help_text="Scopes to request instead of those that the server names.")
    authorization_endpoint = serializers.CharField(
        help_text="Address of the sign-in page. Set only if the issuer has no metadata."
    )
    token_endpoint = serializers.CharField(help_text="Set if and only if `authorization_endpoint` is set.")
    revocation_endpoint = serializers.CharField(help_text="May be set if `authorization_endpoint` is set (RFC 7009).")
    assume_pkce = serializers.BooleanField(
        help_text="Whether people can sign in although the issuer does not announce PKCE."
    )
    private = serializers.BooleanField(
        allow_null=True,
        help_text="Whether the server is allowed to have an address in the networks of `GATEWAY_PRIVATE_UPSTREAMS`. "
        "Null if this is not determined yet; such an address is then allowed, too.",
    )
    health = serializers.CharField(help_text="`ok`, `down` or `unknown`, when last contacted.")
    health_error = serializers.CharField(
        help_text="Why the server is down, or why the gateway sent it no request. Otherwise empty."
    )
    health_checked_at = UtcDateTimeField(allow_null=True, help_text="Time of the last contact; null if never.")
    protocol_era = serializers.CharField(help_text="`session`, `modern` (MCP 2026-07-28), `both`, or empty if unknown.")
    protocol_probed_at = UtcDateTimeField(
        allow_null=True, help_text="When `protocol_era` was detected; null if not detected yet."
    )
    protocol_evidence = serializers.CharField(
        help_text="Summary of the server's answers to `server/discover` and `initialize`. `protocol_era` was detected "
        "from these answers."
    )
    gateways_count = serializers.IntegerField(source="gateway_count", help_text="Number of gateways it is assigned to.")
    created_by = CreatedBy()
    created_at = UtcDateTimeField(help_text="When it was registered.")
    updated_at = UtcDateTimeField(help_text="When it was last changed.")


class ProbeSerializer(serializers.Serializer[Any]):
    """The result of contacting a server. `era`, `version` and `took_ms` are present only if `ok` is true."""

    ok = serializers.BooleanField(help_text="Whether the server listed its tools.")
    detail = serializers.CharField(help_text="Result in words.")
    wants_credential = serializers.BooleanField(
        help_text="Whether access was refused, usually because a credential is missing or not accepted."
    )
    tools = serializers.ListField(child=serializers.CharField(allow_null=True), help_text="Names of the tools.")
    era = serializers.CharField(required=False, help_text="`session`, `modern` (MCP 2026-07-28) or `both`.")
    version = serializers.CharField(required=False, allow_null=True, help_text="Newest MCP version the server speaks.")
    took_ms = serializers.FloatField(required=False, help_text="Duration in milliseconds.")


class ServerQuery(ListQuery):
    """Filters of the list of servers."""

    q = serializers.CharField(required=False, help_text="Text contained in the name or URL.")
    enabled = serializers.BooleanField(required=False, help_text="Only enabled servers, or only disabled ones.")
    health = serializers.ChoiceField(Health.choices, required=False, help_text="Result of the last contact.")
    auth_type = serializers.ChoiceField(AuthType.choices, required=False, help_text="Kind of credential.")


class ServerChanges(RequestBody):
    """The changeable fields of a server; its slug never changes."""

    name = serializers.CharField(max_length=80)
    url = serializers.CharField(max_length=500)
    auth_type = serializers.ChoiceField(AuthType.choices)
    header_name = serializers.CharField(max_length=80, allow_blank=True)
    timeout_seconds = serializers.IntegerField(min_value=1, max_value=120)
    total_seconds = serializers.IntegerField(min_value=1, max_value=3600)
    max_concurrent = serializers.IntegerField(min_value=1, max_value=1000)
    lists_live = serializers.BooleanField()
    key_help = serializers.CharField(max_length=300, allow_blank=True)
    key_url = serializers.CharField(max_length=500, allow_blank=True)
    expected_issuer = serializers.CharField(max_length=500, allow_blank=True)
    resource_sent = serializers.ChoiceField(ResourceSent.choices)
    fixed_resource = serializers.CharField(max_length=500, allow_blank=True)
    fixed_scopes = serializers.CharField(max_length=1000, allow_blank=True)
    authorization_endpoint = serializers.CharField(max_length=500, allow_blank=True)
    token_endpoint = serializers.CharField(max_length=500, allow_blank=True)
    revocation_endpoint = serializers.CharField(max_length=500, allow_blank=True)
    assume_pkce = serializers.BooleanField()
    private = serializers.BooleanField()
    end_sign_ins = serializers.BooleanField(
        help_text="Whether new sign-in settings may end sign-ins. If false, settings that would end them are refused."
    )


class NewServer(ServerChanges):
    """A server to register; the default slug is made from its name."""

    slug = serializers.CharField(max_length=16, allow_blank=True, default="")
    private = None  # type: ignore[assignment]  # Derived from its URL.
    end_sign_ins = None  # type: ignore[assignment]  # A new server has no sign-ins.
    defaults: ClassVar[Mapping[str, Any]] = {
        "auth_type": AuthType.NONE,
        "timeout_seconds": 30,
        "total_seconds": 600,
        "max_concurrent": 64,
        "lists_live": False,
        "resource_sent": ResourceSent.SERVER,
        "assume_pkce": False,
        **dict.fromkeys(
            ("header_name", "key_help", "key_url", "expected_issuer", "fixed_resource", "fixed_scopes"), ""
        ),
        **dict.fromkeys(("authorization_endpoint", "token_endpoint", "revocation_endpoint"), ""),
    }


class ClientFile(RequestBody):
    """A client's configuration file, and the names of the entries to add."""

    text = serializers.CharField(trim_whitespace=False, max_length=MOST_BYTES, help_text="JSON with comments, or YAML.")
    make = serializers.ListField(
        child=serializers.CharField(),
        default=list,
        max_length=MOST_ADDED,
        help_text="Names of the entries to add as servers. Without names, nothing is changed.",
    )
    use_credentials = serializers.BooleanField(
        default=False, help_text="Whether to store the credentials that the file contains. They are encrypted."
    )
    shared = serializers.BooleanField(
        default=False, help_text="Whether the credentials are shared by everybody; otherwise they are yours."
    )
    gateway = serializers.CharField(
        default="", allow_blank=True, help_text="Slug of the gateway to assign the servers to."
    )
    new_gateway = serializers.CharField(
        default="",
        allow_blank=True,
        max_length=80,
        help_text="Name of a gateway to create for the servers. If this is set, `gateway` is ignored.",
    )
    tools = serializers.ChoiceField(
        ["all", "read_only", "none"], default="all", help_text="Which tools of the servers are allowed on the gateway."
    )


class ClientEntrySerializer(serializers.Serializer[Any]):
    """An entry of a client's file."""

    name = serializers.CharField(help_text="Name in the file.")
    becomes = serializers.CharField(
        help_text="`server`, `program` (of the runner), `here` (a server has this URL already) or `unusable`."
    )
    url = serializers.CharField(help_text="Address of its MCP endpoint; empty for programs.")
    auth_type = serializers.CharField(help_text="`none`, `bearer` or `header`: kind of its credential in the file.")
    has_credential = serializers.BooleanField(help_text="Whether the file contains the entry's credential.")
    suggested_name = serializers.CharField(
        help_text="Name that the server gets: its name in the file, with a number if that name is taken."
    )
    runner_yaml = serializers.CharField(help_text="Text for `runner.yaml`; empty if the entry is not a program.")
    notes = serializers.ListField(child=serializers.CharField(), help_text="Notes in words.")
    detail = serializers.CharField(
        help_text="If `make` names the entry, the result of adding the entry. Otherwise the reason why the gateway "
        "cannot use the entry; empty if there is none."
    )
    server = ServerReference(
        allow_null=True,
        help_text="The server that was added, or the existing server with this URL. Null for any other entry.",
    )


class ClientEntriesSerializer(serializers.Serializer[Any]):
    """The entries of a client's file."""

    entries = ClientEntrySerializer(many=True, help_text="All entries, in the order of the file.")


class ServerResource(Resource):
    """Upstream MCP servers. Nobody can use one before it is assigned to a gateway."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        AnotherPlace: Problem(HTTPStatus.BAD_REQUEST, "invalid", "url"),
        WouldEndSignIns: Problem(HTTPStatus.CONFLICT, "would_end_sign_ins"),
    }
    taken = NAME_TAKEN
    serializer_class = ServerSerializer
    versioned = True
    lookup_url_kwarg = "slug"
    lookup_value_converter = "slug"

    @operation(needs=Capability.SERVERS_READ, query=ServerQuery, orderings=("name", "created_at", "health_checked_at"))
    def list(self, request: Request) -> Response:
        """List servers."""
        servers = Server.objects.live().order_by(Lower("name"), "pk")
        servers = matching(servers, self.query_data, enabled="enabled", health="health", auth_type="auth_type")
        servers = servers.matching(self.query_data.get("q", ""))
        return self.page(servers, lambda servers: counted(servers.select_related("created_by")))

    @operation(needs=Capability.SERVERS_READ)
    def retrieve(self, request: Request, slug: str) -> Response:
        """Get a server."""
        return self.answer(server_or_404(slug))

    @operation(needs=Capability.SERVERS_MANAGE, body=NewServer, conflicts=True, makes=True)
    def create(self, request: Request) -> Response:
        """Register a server."""
        body = self.body()
        others = Server.objects.live().filter(named(body["name"]))
        if others.exists() or Server.objects.filter(slug=body["slug"]).exists():
            raise already_exists(NAME_TAKEN)
        return self.current(Server.objects.add(**checked(ServerForm(body)), by=self.me), HTTPStatus.CREATED)

    @operation(needs=Capability.SERVERS_MANAGE, body=ServerChanges, conflicts=True, if_match=True)
    def partial_update(self, request: Request, slug: str) -> Response:
        """Change a server."""
        server = server_or_404(slug)
        changes = self.body()
        form = ServerForm(server=server)
        if fixed := sorted(set(changes) - set(form.fields)):
            raise ValidationError({name: ["Cannot be set: this server is part of the gateway."] for name in fixed})
        others = Server.objects.live().exclude(pk=server.pk).filter(named(changes.get("name", "")))
        if others.exists():
            raise already_exists(NAME_TAKEN)
        cleaned = {**changes, **checked(ServerForm({**form.initial, **changes}, server=server))}
        # Other fields may have changed meanwhile; only those that follow from the changes are set.
        fields = {
            name: value for name, value in cleaned.items() if name in changes or value != getattr(server, name, False)
        }
        if server.needs_password_for(fields):
            confirm_first(request)
        server.edit(**fields, by=self.me, seen=self.seen)
        return self.current(server)

    @action(detail=False, methods=["post"])
    @operation(needs=Capability.SERVERS_MANAGE, body=ClientFile, answer=ClientEntriesSerializer)
    def bring(self, request: Request) -> Response:
        """Add servers from a client's file.

        Without `make`, nothing is added, and the answer says what each entry would become. `make` names the entries to
        add. If one of them cannot become a server, the request is refused and nothing is added. If adding one fails
        later, the others are still added.
        """
        body = self.body()
        try:
            offers = offers_of(read_entries(body["text"]))
        except Unreadable as error:
            raise ValidationError({"text": [str(error)]}) from None
        addable = {offer.entry.name: offer for offer in offers if offer.becomes == "server"}
        if unknown := [name for name in body["make"] if name not in addable]:
            raise ValidationError({"make": [f"“{unknown[0]}” is not an entry that becomes a server."]})
        chosen = [addable[name] for name in dict.fromkeys(body["make"])]
        outcomes = self._brought(chosen, body) if chosen else []
        found = {offer.number: outcome for offer, outcome in zip(chosen, outcomes, strict=True)}
        entries = [_entry_data(offer, found.get(offer.number)) for offer in offers]
        return Response(ClientEntriesSerializer({"entries": entries}).data)

    def _brought(self, chosen: Sequence[OfferedEntry], body: dict[str, Any]) -> Sequence[AddedEntry]:
        to = PlacementForm(
            {
                "who": SHARED if body["shared"] else OWN,
                "gateway": NEW_GATEWAY if body["new_gateway"] else body["gateway"],
                "new_gateway": body["new_gateway"],
                "tools": body["tools"],
            },
            user=self.me,
        )
        if (body["gateway"] or body["new_gateway"]) and not self.me.has_perm(Capability.GATEWAYS_MANAGE):
            raise CapabilityRequired(Capability.GATEWAYS_MANAGE)
        checked(to)
        use = body["use_credentials"]
        wishes = [ChosenEntry(offer.entry, offer.name, offer.entry.secret if use else "") for offer in chosen]
        return bring(wishes, to=to, by=self.me)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.SERVERS_TOGGLE, if_match=True)
    def disable(self, request: Request, slug: str) -> Response:
        """Disable a server."""
        server = server_or_404(slug)
        return self.changed(server, server.disable)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.SERVERS_TOGGLE, if_match=True)
    def enable(self, request: Request, slug: str) -> Response:
        """Enable a server."""
        server = server_or_404(slug)
        return self.changed(server, server.enable)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.SERVERS_MANAGE, answer=ProbeSerializer, if_match=True)
    def test(self, request: Request, slug: str) -> Response:
        """Test the connection to a server.

        The status is 200 even if the server does not answer. The result then describes the failure.
        """
        server = server_or_404(slug)
        with self.unchanged(server):
            pass  # Only checks the version: the lock must not be held while the server is tested.
        try:
            discovered = probe(server, by=self.me)
        except DiscoveryFailed as failure:
            wants = failure.wants_credential
            return Response({"ok": False, "detail": f"The server {failure}.", "wants_credential": wants, "tools": []})
        tools = [tool.get("name") for tool in discovered.tools]
        protocol = {"era": discovered.era, "version": discovered.version, "took_ms": discovered.took_ms}
        return Response({"ok": True, "detail": str(discovered), "wants_credential": False, "tools": tools, **protocol})

    def current(self, row: Any, status: int = HTTPStatus.OK) -> Response:
        return self.answer(server_or_404(row.slug), status)


def _entry_data(offer: OfferedEntry, outcome: AddedEntry | None) -> dict[str, Any]:
    entry = offer.entry
    return {
        "name": entry.name,
        "becomes": offer.becomes,
        "url": entry.url,
        "auth_type": entry.auth_type,
        "has_credential": bool(entry.secret),
        "suggested_name": offer.name,
        "runner_yaml": entry.block,
        "notes": entry.notes,
        "detail": outcome.text if outcome else offer.why,
        "server": outcome.server if outcome else offer.here,
    }
