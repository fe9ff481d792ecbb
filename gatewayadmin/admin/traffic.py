"""Admin pages of agents, gateways, servers, connections and tokens, without their secrets."""

from __future__ import annotations

from typing import Any, ClassVar

from allauth.core.exceptions import ReauthenticationRequired
from django.contrib.admin import RelatedOnlyFieldListFilter, SimpleListFilter, display, register
from django.db.models import Model, Prefetch, Q
from django.forms import BooleanField
from django.http import HttpRequest
from django.urls import reverse

from access.models import Review
from access.models.rules import SEES
from accounts.sign_in import must_ask_again
from approvals.models import Allowance, Hold
from auditlog.outcomes import in_short
from capabilities import Capability
from connections.models import Connection, HostAtGateway
from connections.rows import STATUSES, ConnectionFilter, ConnectionRow
from directory.models import DirectoryAddress
from gatewayadmin.admin.base import (
    FINAL,
    CapabilityAction,
    CapabilityAdmin,
    VersionedForm,
    all_of,
    any_of,
    site,
    switches,
    words,
)
from gateways.models import (
    AccessRequest,
    Assignment,
    Feature,
    FeatureState,
    Gateway,
    GatewayGrant,
    ToolGrant,
    ToolSet,
)
from hosts.models import Host
from oauth.models import AuthorizeRequest, Binding, Registration
from proxy.models import RateCounter
from rules.models import Rule, RuleMode
from servers.forms import ServerForm, SignInSettings
from servers.models import SIGN_IN_SETTINGS, Identity, Server, WouldEndSignIns
from servers.oauth_client.models import ClientRegistration, SignIn
from tokens.models import Token, TokenKind

NOT_ARCHIVED = Q(archived_at=None)
NOT_REVOKED = Q(revoked_at=None)
PLACED = Q(removed_at=None)
OF_LIVE = Q(host__archived_at=None)
ARCHIVED = f"Archiving removes an object from all lists and revokes its connections. {FINAL}"


@register(Host, site=site)
class HostPages(CapabilityAdmin):
    seen_by = (Capability.HOSTS_READ,)
    changed_by = added_by = (Capability.API_TOKENS_MANAGE,)
    editable = ("name", "description", "allow_enrolment")
    page = ("hosts:detail", "pk")
    acts = (
        *switches(any_of(Capability.HOSTS_TOGGLE), NOT_ARCHIVED),
        CapabilityAction(
            "approve",
            any_of(Capability.HOSTS_TOGGLE),
            NOT_ARCHIVED & Q(needs_approval=True, approved_at=None),
            asks=False,
        ),
        CapabilityAction(
            "archive",
            all_of(Capability.HOSTS_TOGGLE, Capability.MCP_CONNECTIONS_REVOKE),
            NOT_ARCHIVED,
            ARCHIVED,
            does=lambda host, by: Connection.objects.archive_host(host, by=by),
        ),
    )
    list_display = words("name kind status created_by created_at last_seen_at")
    list_filter = words("kind enabled needs_approval created_at")
    list_select_related = ("created_by",)
    search_fields = words("name description allow_enrolment")
    fields = words(
        "name description allow_enrolment kind status needs_approval approved_at approved_by first_seen_at"
        " last_seen_at archived_at created_by created_at updated_at"
    )

    def get_fields(self, request: Any, obj: Host | None = None) -> Any:
        return self.fields if obj else ("name", "description")

    def is_open(self, obj: Host) -> bool:
        return obj.is_agent and super().is_open(obj)

    def edit(self, row: Host, values: dict[str, Any], by: Any) -> None:
        if "allow_enrolment" in values:
            row.set_enrolment(values.pop("allow_enrolment"), by=by)
        if values:
            row.rename(**({"name": row.name, "description": row.description} | values), by=by)

    def add(self, values: dict[str, Any], by: Any) -> Host:
        return Host.objects.add_agent(**values, by=by)


@register(Registration, site=site)
class RegistrationPages(CapabilityAdmin):
    seen_by = (Capability.HOSTS_READ,)
    list_display = words("client_name host software_id created_at last_used_at")
    list_filter = ("created_at",)
    list_select_related = ("host",)
    search_fields = ("client_name", "software_id", "host__name")
    fields = words("client_name client_uri host software_id software_version created_at last_used_at")


@register(Gateway, site=site)
class GatewayPages(CapabilityAdmin):
    """Read-only, except for the actions. People edit gateways on the product's page, which validates the fields."""

    seen_by = (Capability.GATEWAYS_READ,)
    page = ("gateways:detail", "slug")
    acts = (
        *switches(any_of(Capability.GATEWAYS_TOGGLE), NOT_ARCHIVED),
        CapabilityAction(
            "archive",
            all_of(Capability.GATEWAYS_MANAGE, Capability.MCP_CONNECTIONS_REVOKE),
            NOT_ARCHIVED,
            ARCHIVED,
            does=lambda gateway, by: Connection.objects.archive_gateway(gateway, by=by),
        ),
    )
    list_display = words("name slug status reach created_at archived_at")
    list_filter = ("enabled", "reach", "created_at")
    search_fields = ("name", "slug", "description")
    fields = words(
        "name slug description enabled reach teams hosts_allowed tools_given shared_identities calls_per_minute"
        " takes_requests request_days most_request_days approvers"
        " new_definitions changed_definitions archived_at created_by created_at updated_at"
    )


@register(DirectoryAddress, site=site)
class DirectoryAddressPages(CapabilityAdmin):
    """Read-only, except for the actions: addresses are created on the page *Settings, Client directory*."""

    seen_by = (Capability.GATEWAYS_READ,)
    page = ("directory:address", "pk")
    acts = (
        *switches(any_of(Capability.GATEWAYS_MANAGE), Q()),
        CapabilityAction(
            "regenerate", any_of(Capability.GATEWAYS_MANAGE), Q(), f"The old address answers 404. {FINAL}"
        ),
    )
    list_display = words("__str__ url status read_at read_by created_by created_at")
    list_filter = ("enabled", "read_at")
    list_select_related = ("team", "created_by")
    search_fields = ("team__name",)
    fields = words("team url enabled read_at read_by regenerated_at created_by created_at")


@register(HostAtGateway, site=site)
class HostAtGatewayPages(CapabilityAdmin):
    """Apps and agents that are listed or blocked on a gateway; they are added on the gateway's page."""

    seen_by = (Capability.GATEWAYS_READ,)
    acts = (
        CapabilityAction("block", any_of(Capability.GATEWAYS_MANAGE), Q(allowed=True) & OF_LIVE),
        CapabilityAction("allow", any_of(Capability.GATEWAYS_MANAGE), Q(allowed=False) & OF_LIVE, asks=False),
        CapabilityAction(
            "reset",
            any_of(Capability.GATEWAYS_MANAGE),
            OF_LIVE,
            "The app or agent is then neither listed nor blocked: the gateway's general setting applies.",
        ),
    )
    list_display = words("host gateway allowed tool_set set_by set_at")
    list_filter = ("allowed", ("gateway", RelatedOnlyFieldListFilter))
    list_select_related = ("host", "gateway", "tool_set__gateway", "set_by")
    search_fields = ("host__name", "gateway__name")
    fields = words("gateway host allowed tool_set set_by set_at")


@register(ToolSet, site=site)
class ToolSetPages(CapabilityAdmin):
    """Read-only pages, on which a set can only be archived. People edit sets on the gateway's page."""

    seen_by = (Capability.GATEWAYS_READ,)
    acts = (CapabilityAction("archive", any_of(Capability.GATEWAYS_MANAGE), NOT_ARCHIVED, FINAL),)
    list_display = words("name gateway patterns effects created_at archived_at")
    list_filter = (("gateway", RelatedOnlyFieldListFilter), "created_at")
    list_select_related = ("gateway",)
    search_fields = ("name", "gateway__name")
    fields = words("gateway name patterns likes effects members created_by created_at archived_at")


@register(Rule, site=site)
class RulePages(CapabilityAdmin):
    """Read-only, except for the actions: rules are edited on their own page, which checks them against schemas."""

    seen_by = (Capability.RULES_READ,)
    acts = (
        *switches(any_of(Capability.RULES_MANAGE), Q()),
        CapabilityAction(
            "turn_on",
            any_of(Capability.RULES_MANAGE),
            Q(mode=RuleMode.WATCH),
            "Starting with the next call, the rule acts on calls instead of only labelling them.",
            does=lambda rule, by: rule.set_mode(RuleMode.ON, by=by),
        ),
        CapabilityAction(
            "watch",
            any_of(Capability.RULES_MANAGE),
            Q(mode=RuleMode.ON),
            "Starting with the next call, the rule only labels calls.",
            does=lambda rule, by: rule.set_mode(RuleMode.WATCH, by=by),
        ),
        CapabilityAction("remove", any_of(Capability.RULES_MANAGE), Q(), FINAL),
    )
    list_display = words("name gateway effect mode status position updated_at")
    list_filter = (("gateway", RelatedOnlyFieldListFilter), "effect", "mode", "enabled")
    list_select_related = ("gateway",)
    search_fields = ("name", "gateway__name")
    fields = words(
        "gateway name servers tools tool_effect when effect text approvers approver_team somebody_else hold_minutes"
        " mode enabled status note position revision created_by created_at updated_at"
    )


@register(Hold, site=site)
class HoldPages(CapabilityAdmin):
    """Read-only: approvers decide each held call on its own page."""

    seen_by = (Capability.APPROVALS_DECIDE,)
    page = ("approvals:hold", "pk")
    list_display = words("tool connection rule_name state asked_at ends_at decided_by decided_at")
    list_filter = ("state", "asked_at")
    list_select_related = ("connection__host", "connection__gateway", "connection__user", "decided_by")
    search_fields = ("tool", "rule_name", "user__email")
    fields = words(
        "connection user server tool rule_id rule_version rule_name approvers team somebody_else asked_at fallback_at"
        " ends_at state decided_by decided_at sentence used_at asking_call run_call client"
    )


@register(Allowance, site=site)
class AllowancePages(CapabilityAdmin):
    seen_by = (Capability.APPROVALS_DECIDE,)
    acts = (
        CapabilityAction(
            "end",
            any_of(Capability.APPROVALS_DECIDE),
            Q(ended_at=None),
            "The connection's next call of the tool is held again.",
        ),
    )
    list_display = words("tool connection calls given_by given_at ends_at ended_at")
    list_filter = ("given_at",)
    list_select_related = ("connection__host", "connection__gateway", "connection__user", "given_by")
    search_fields = ("tool", "connection__host__name")
    fields = words(
        "hold connection server tool names rule_id rule_version calls given_by given_at ends_at ended_by ended_at"
    )


@register(ToolGrant, site=site)
class ToolGrantPages(CapabilityAdmin):
    seen_by = (Capability.GATEWAYS_READ,)
    acts = (
        CapabilityAction(
            "end",
            any_of(Capability.GATEWAYS_MANAGE),
            Q(ended_at=None),
            "Tools of an ended grant are refused from the next request on, unless another grant gives them, or their"
            " gateway allows all tools.",
        ),
    )
    list_display = words("tool_set gateway subject given_by given_at ends_at ended_at")
    list_filter = (("gateway", RelatedOnlyFieldListFilter), "everyone", "given_at")
    list_select_related = ("tool_set__gateway", "gateway", "team", "user", "given_by")
    search_fields = ("tool_set__name", "gateway__name", "team__name", "user__email")
    fields = words("gateway tool_set everyone team team_name user given_by given_at ends_at request ended_by ended_at")


@register(GatewayGrant, site=site)
class GatewayGrantPages(CapabilityAdmin):
    seen_by = (Capability.GATEWAYS_READ,)
    acts = (
        CapabilityAction(
            "end",
            any_of(Capability.GATEWAYS_MANAGE),
            Q(ended_at=None),
            "From the next call on, the person needs another source of access, such as a team.",
        ),
    )
    list_display = words("gateway user given_by given_at ends_at ended_at")
    list_filter = (("gateway", RelatedOnlyFieldListFilter), "given_at")
    list_select_related = ("gateway", "user", "given_by")
    search_fields = ("gateway__name", "user__email")
    fields = words("gateway user given_by given_at ends_at request ended_by ended_at")


@register(AccessRequest, site=site)
class AccessRequestPages(CapabilityAdmin):
    """Read-only: each request is decided on its own page, which names the people who may decide."""

    seen_by = (Capability.GATEWAYS_MANAGE,)
    page = ("gateways:access_request", "pk")
    list_display = words("user gateway tool_set days state created_at decided_by decided_at")
    list_filter = ("state", ("gateway", RelatedOnlyFieldListFilter), "created_at")
    list_select_related = ("gateway", "tool_set__gateway", "user", "decided_by")
    search_fields = ("user__email", "gateway__name")
    fields = words("user gateway tool_set reason days state created_at decided_by decided_at answer")


@register(Review, site=site)
class ReviewPages(CapabilityAdmin):
    """Read-only: reviews are started and answered on their pages."""

    page = ("access:review", "pk")
    list_display = words("name scope due_on unanswered started_by started_at closed_at")
    list_filter = ("scope", "unanswered", "started_at")
    list_select_related = ("started_by",)
    search_fields = ("name", "started_by__email")
    fields = words(
        "name scope subjects subject_names reviewers fallback due_on unanswered self_review started_by started_at "
        "reminded_at closed_by closed_at checksum"
    )

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return all_of(*SEES)(request.user)


@register(Assignment, site=site)
class AssignmentPages(CapabilityAdmin):
    seen_by = (Capability.GATEWAYS_READ,)
    acts = (
        *switches(any_of(Capability.GATEWAYS_TOGGLE), PLACED),
        CapabilityAction(
            "remove",
            any_of(Capability.GATEWAYS_MANAGE),
            PLACED,
            "The server is removed from the gateway. Connections are not changed.",
        ),
    )
    list_display = words("server gateway alias identity_scheme tool_policy status removed_at")
    list_filter = ("enabled", "identity_scheme", "tool_policy", ("gateway", RelatedOnlyFieldListFilter))
    list_select_related = ("server", "gateway")
    search_fields = ("alias", "server__name", "gateway__name")
    fields = words(
        "gateway server alias enabled identity_scheme shared_identity tool_policy removed_at created_at updated_at"
    )

    def get_queryset(self, request: Any) -> Any:
        return super().get_queryset(request).select_related("server", "gateway")

    def status(self, obj: Assignment) -> str:
        """Return the assignment's own state, or *blocked* if only its server or its gateway is disabled."""
        own = super().status(obj)
        above = {"server": obj.server.enabled, "gateway": obj.gateway.enabled}
        off = next((name for name, enabled in above.items() if not enabled), "")
        return f"blocked: {off} disabled" if own == "enabled" and off else own


@register(Feature, site=site)
class FeaturePages(CapabilityAdmin):
    """Features of every kind. To compare two versions of a definition, open the feature's page outside this admin."""

    seen_by = (Capability.GATEWAYS_READ,)
    page = ("gateways:feature", "pk")
    acts = (
        *switches(any_of(Capability.GATEWAYS_MANAGE), Q(assignment__removed_at=None)),
        CapabilityAction(
            "accept",
            any_of(Capability.GATEWAYS_MANAGE),
            Q(assignment__removed_at=None) & (Q(offered__isnull=False) | Q(state=FeatureState.QUARANTINED)),
            "Clients then see the definition that the server offers now.",
        ),
        CapabilityAction(
            "quarantine",
            any_of(Capability.GATEWAYS_MANAGE),
            Q(assignment__removed_at=None) & ~Q(state=FeatureState.QUARANTINED),
            "Quarantine hides a feature from clients, and refuses its calls, until somebody accepts the feature.",
        ),
    )
    list_display = words("exposed_name kind state assignment status first_seen_at changed_at missing_since")
    list_filter = ("kind", "state", "enabled", ("assignment__gateway", RelatedOnlyFieldListFilter), "changed_at")
    list_select_related = ("assignment__server", "assignment__gateway")
    search_fields = ("exposed_name", "title")
    fields = words(
        "kind exposed_name name title description state enabled assignment annotations effect said_effect said_title"
        " said_description approved offered first_seen_at last_seen_at changed_at missing_since"
    )

    def status(self, obj: Feature) -> str:
        if obj.assignment.removed_at:
            return "removed"
        return (f"blocked: {obj.blocked}" if obj.blocked else "enabled") if obj.enabled else "disabled"


class ServerSettings(SignInSettings, VersionedForm):
    """Sign-in settings of a server. Changes that end sign-ins must be confirmed."""

    end_sign_ins = BooleanField(
        label="End sign-ins",
        required=False,
        help_text="First save with this box unticked. Tick it only if an error says that your change ends sign-ins.",
    )

    class Meta:
        help_texts: ClassVar = {name: ServerForm.base_fields[name].help_text for name in (*SIGN_IN_SETTINGS, "private")}

    @property
    def server_url(self) -> str:
        return str(self.instance.url)

    def clean(self) -> dict[str, Any]:
        values = super().clean()
        ends = self.instance.sign_ins_ended_by({name: values[name] for name in SIGN_IN_SETTINGS if name in values})
        if (count := ends.count()) and not values.get("end_sign_ins"):
            self.add_error("end_sign_ins", str(WouldEndSignIns(count)))
        return values


@register(Server, site=site)
class ServerPages(CapabilityAdmin):
    """Admin pages of servers. People can change sign-in settings here.

    They cannot change the URL here, because these pages do not validate URLs.
    """

    form = ServerSettings
    seen_by = (Capability.SERVERS_READ,)
    changed_by = (Capability.SERVERS_MANAGE,)
    editable = (*SIGN_IN_SETTINGS, "private", "end_sign_ins")
    page = ("servers:detail", "slug")
    acts = (
        *switches(any_of(Capability.SERVERS_TOGGLE), NOT_ARCHIVED),
        CapabilityAction(
            "archive",
            any_of(Capability.SERVERS_MANAGE),
            NOT_ARCHIVED,
            f"Archiving removes a server from all lists and all gateways. {FINAL}",
            does=lambda server, by: Assignment.objects.archive_server(server, by=by),
        ),
    )
    list_display = words("name slug url auth_type status health health_checked_at")
    list_filter = ("enabled", "health", "auth_type", "protocol_era")
    search_fields = ("name", "slug", "url")
    fields = (
        *words("name slug url auth_type header_name enabled timeout_seconds total_seconds max_concurrent lists_live"),
        *("key_help", "key_url", *editable),
        *words("health health_checked_at health_error protocol_era protocol_probed_at protocol_evidence"),
        *words("archived_at created_by created_at updated_at"),
    )

    def is_open(self, obj: Server) -> bool:
        return super().is_open(obj) and not obj.is_built_in

    def get_fields(self, request: HttpRequest, obj: Server | None = None) -> Any:
        """Hide the confirmation field from users who cannot change the server."""
        agreed = self.has_change_permission(request, obj)
        return [name for name in self.fields if agreed or name != "end_sign_ins"]

    def save_model(self, request: HttpRequest, obj: Model, form: Any, change: bool) -> None:
        before = Server.objects.get(pk=obj.pk)
        if before.needs_password_for(form.cleaned_data) and must_ask_again(request):
            raise ReauthenticationRequired
        super().save_model(request, obj, form, change)

    def edit(self, row: Server, values: dict[str, Any], by: Any) -> None:
        row.edit(by=by, **values)


def _checked(identity: Identity, by: Any) -> Identity:
    """Return the identity. Raises CapabilityRequired if the person `by` may not change it.

    A shared identity and a person's own identity require different capabilities.
    """
    identity.must_be_open_to(by)
    return identity


@register(Identity, site=site)
class IdentityPages(CapabilityAdmin):
    seen_by = (Capability.IDENTITIES_READ,)
    changed_by = (Capability.IDENTITIES_MANAGE,)
    editable = ("label",)
    acts = (
        CapabilityAction(
            "disable", any_of(*seen_by), NOT_REVOKED, does=lambda row, by: _checked(row, by).disable(by=by)
        ),
        CapabilityAction(
            "enable", any_of(*seen_by), NOT_REVOKED, does=lambda row, by: _checked(row, by).enable(by=by), asks=False
        ),
        CapabilityAction(
            "confirm",
            any_of(*seen_by),
            NOT_REVOKED,
            "After you confirm a credential, calls send its secret to the server's current address.",
        ),
        CapabilityAction(
            "revoke",
            any_of(*seen_by),
            NOT_REVOKED,
            f"Revoking deletes the secret. {FINAL}",
            does=lambda row, by: _checked(row, by).revoke(by=by),
        ),
    )
    list_display = words("label server owner kind status last_used_at revoked_at")
    list_filter = ("enabled", "kind", ("server", RelatedOnlyFieldListFilter))
    list_select_related = ("server", "owner")
    search_fields = ("label", "server__name", "owner__email")
    fields = words(
        "label server owner kind status enabled disabled_by unconfirmed_since account issuer expires_at renew_at"
        " sign_in_needed_since sign_in_reason last_used_at last_error revoked_at revoked_by created_at updated_at"
    )

    def edit(self, row: Identity, values: dict[str, Any], by: Any) -> None:
        if "label" in values:
            _checked(row, by).rename(values["label"], by=by)


@register(ClientRegistration, site=site)
class ClientRegistrationPages(CapabilityAdmin):
    seen_by = (Capability.SERVERS_MANAGE,)
    acts = (
        CapabilityAction(
            "end",
            any_of(Capability.SERVERS_MANAGE),
            Q(ended_at=None),
            "New sign-ins do not use an ended registration. If no other registration fits, the next sign-in tries to"
            " create one. Existing sign-ins are still renewed with the old registration.",
        ),
    )
    list_display = words("issuer client_id kind server created_at ended_at")
    list_filter = ("kind",)
    list_select_related = ("server",)
    search_fields = ("issuer", "client_id", "server__name")
    fields = words(
        "issuer client_id kind server token_endpoint revocation_endpoint redirect_uri auth_method scope created_at"
        " ended_at"
    )


@register(SignIn, site=site)
class SignInPages(CapabilityAdmin):
    """Sign-ins in progress; each expires within ten minutes."""

    seen_by = (Capability.IDENTITIES_READ,)
    list_display = words("user server identity created_at expires_at")
    list_filter = (("server", RelatedOnlyFieldListFilter),)
    list_select_related = ("user", "server", "identity")
    search_fields = ("user__email", "server__name")
    fields = words("user server identity shared registration scope created_at expires_at")


class StatusFilter(SimpleListFilter):
    """Filter connections by status."""

    title = parameter_name = "status"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        return [(status, status) for status in STATUSES]

    def queryset(self, request: Any, queryset: Any) -> Any:
        return ConnectionFilter({"status": [self.value()]}).narrow(queryset) if self.value() else queryset


@register(Connection, site=site)
class ConnectionPages(CapabilityAdmin):
    seen_by = (Capability.MCP_CONNECTIONS_READ,)
    acts = (
        *switches(any_of(Capability.CONNECTIONS_TOGGLE), NOT_REVOKED),
        CapabilityAction(
            "revoke",
            any_of(Capability.MCP_CONNECTIONS_REVOKE),
            NOT_REVOKED,
            f"When a connection is revoked, its tokens end. The app or agent must connect again. {FINAL}",
        ),
    )
    list_display = words("host user gateway status connected_at last_used_at revoked_at")
    list_filter = (StatusFilter, "revoke_reason", "connected_at", ("gateway", RelatedOnlyFieldListFilter))
    list_select_related = ("host", "user", "gateway")
    search_fields = ("host__name", "user__email", "gateway__name")
    fields = words(
        "host gateway user status enabled connected_at last_token_at last_used_at disabled_at disabled_by revoked_at"
        " revoked_by revoke_reason own_identities"
    )

    @display(description="its credentials")
    def own_identities(self, obj: Connection) -> str:
        rows = obj.identities.select_related("assignment__server", "assignment__gateway", "identity__server")
        return ", ".join(f"{row.identity.label} to {row.assignment.server}" for row in rows)

    def view_on_site(self, obj: Connection) -> str:
        return f"{reverse('connections:mcp')}?type=all"

    def get_queryset(self, request: Any) -> Any:
        return Connection.objects.with_reach().select_related("host", "user", "gateway").order_by("-connected_at")

    def get_changelist_instance(self, request: Any) -> Any:
        changelist = super().get_changelist_instance(request)
        changelist.result_list = changelist.result_list.prefetch_related("tokens")
        return changelist

    def status(self, obj: Connection) -> str:
        row = ConnectionRow(obj, obj.user)
        return f"{row.status_text}: {row.blocked}" if row.blocked else row.status_text


@register(Token, site=site)
class TokenPages(CapabilityAdmin):
    seen_by = (Capability.MCP_CONNECTIONS_READ, Capability.API_TOKENS_READ)
    changed_by = (Capability.API_TOKENS_MANAGE,)
    editable = ("name",)
    acts = (
        CapabilityAction(
            "revoke",
            any_of(Capability.API_TOKENS_MANAGE, Capability.MCP_CONNECTIONS_REVOKE),
            NOT_REVOKED,
            f"Requests with a revoked token get 401. {FINAL}",
        ),
        CapabilityAction(
            "ask_for_new",
            any_of(Capability.API_TOKENS_MANAGE, Capability.MCP_CONNECTIONS_REVOKE),
            NOT_REVOKED & Q(kind=TokenKind.ACCESS, asked_at=None),
            "The old secret stops working at once. Only the owner can collect the new one, after signing in.",
            label="Ask for new secrets of selected",
        ),
    )
    list_display = words("name prefix kind connection status expires_at last_used_at revoked_at")
    list_filter = ("kind", "revoke_reason", "expires_at", "created_at")
    list_select_related = ()  # `get_queryset` prefetches the connections.
    search_fields = ("name", "prefix__startswith", "connection__host__name", "connection__user__email")
    fields = words(
        "name prefix kind connection reaches status expires_at allowed_ips calls_per_minute last_used_at last_used_ip"
        " previous_prefix previous_ends_at previous_last_used_at asked_at asked_by rotated_at revoked_at revoked_by"
        " revoke_reason created_by created_at"
    )

    def get_queryset(self, request: Any) -> Any:
        """Prefetch the connections.

        `status` needs their annotations: whether the person, and the app or agent, may use the gateway.
        """
        connections = Connection.objects.with_reach().select_related("host", "gateway", "user")
        return super().get_queryset(request).prefetch_related(Prefetch("connection", connections))

    def status(self, obj: Token) -> str:
        return f"blocked: {in_short(obj.blocked_reason)}" if obj.blocked_reason else super().status(obj)

    def reaches(self, obj: Token) -> str:
        """Return the names of the servers that the token may use."""
        if obj.scope_all:
            return "every server of its gateway"
        return ", ".join(str(scope.assignment.server) for scope in obj.scopes.select_related("assignment__server"))

    def is_open(self, obj: Token) -> bool:
        return obj.status == "active" and obj.kind == "access"

    def edit(self, row: Token, values: dict[str, Any], by: Any) -> None:
        if "name" in values:
            row.edit(name=values["name"], by=by)


@register(Binding, site=site)
class BindingPages(CapabilityAdmin):
    seen_by = (Capability.MCP_CONNECTIONS_READ,)
    list_display = fields = words("connection what generation superseded_at created_at")
    list_filter = ("created_at",)
    list_select_related = ("connection__host", "connection__user", "connection__gateway")
    search_fields = ("connection__host__name", "connection__user__email")
    ordering = ("-created_at",)

    def what(self, obj: Binding) -> str:
        """Return the kind of credential, not the credential itself."""
        if obj.grant_id:
            return "authorization code"
        return "access token" if obj.access_token_id else "refresh token"


@register(AuthorizeRequest, site=site)
class AuthorizeRequestPages(CapabilityAdmin):
    seen_by = (Capability.MCP_CONNECTIONS_READ,)
    list_display = words("app_name kind user gateway created_at expires_at completed_at")
    list_filter = ("kind", "created_at")
    list_select_related = ("host", "application", "user", "gateway")
    search_fields = ("host__name", "user__email")
    fields = words("app_name kind user gateway error created_at expires_at completed_at")


@register(RateCounter, site=site)
class RateCounterPages(CapabilityAdmin):
    seen_by = (Capability.WORKSPACE_READ,)
    list_display = fields = words("subject_type subject_id window most calls")
    list_filter = ("window",)
    search_fields = ("=subject_id",)
    ordering = ("-window",)
