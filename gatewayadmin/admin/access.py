"""Admin pages of connections, their tokens without the secrets, and OAuth bindings."""

from __future__ import annotations

from typing import Any

from django.contrib.admin import RelatedOnlyFieldListFilter, SimpleListFilter, display, register
from django.db.models import Prefetch, Q
from django.urls import reverse

from auditlog.reasons import in_short
from capabilities import Capability
from capabilities.catalogue import SEES_CONNECTIONS
from connections.models import Connection
from connections.rows import STATUSES, ConnectionFilter, ConnectionRow
from gatewayadmin.admin.actions import FINAL, CapabilityAction, any_of, switches
from gatewayadmin.admin.base import CapabilityAdmin
from gatewayadmin.staff import site
from oauth.models import AuthorizeRequest, Binding
from tokens.models import Token, TokenKind
from ui.states import state_label

LIVE = Q(revoked_at=None)
ENDING = (Capability.API_TOKENS_MANAGE, Capability.MCP_CONNECTIONS_REVOKE)


class StatusFilter(SimpleListFilter):
    """Filter connections by status."""

    title = "status"
    parameter_name = "status"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        return [(status, status) for status in STATUSES]

    def queryset(self, request: Any, queryset: Any) -> Any:
        return ConnectionFilter({"status": [self.value()]}).narrow(queryset) if self.value() else queryset


@register(Connection, site=site)
class ConnectionPages(CapabilityAdmin):
    seen_by = SEES_CONNECTIONS
    acts = (
        *switches(Capability.CONNECTIONS_TOGGLE, live=LIVE),
        CapabilityAction(
            "revoke",
            "Revoke selected",
            lambda connection, by: connection.revoke(by=by),
            any_of(Capability.MCP_CONNECTIONS_REVOKE),
            LIVE,
            f"Its tokens end with it; the app or agent has to connect anew. {FINAL}",
        ),
    )

    list_display = ("host", "user", "gateway", "status", "connected_at", "last_used_at", "revoked_at")
    list_filter = (StatusFilter, "revoke_reason", "connected_at", ("gateway", RelatedOnlyFieldListFilter))
    list_select_related = ("host", "user", "gateway")
    search_fields = ("host__name", "user__email", "gateway__name")
    fields = (
        "host",
        "gateway",
        "user",
        "status",
        "enabled",
        "connected_at",
        "last_token_at",
        "last_used_at",
        "disabled_at",
        "disabled_by",
        "revoked_at",
        "revoked_by",
        "revoke_reason",
        "own_identities",
    )
    readonly_fields = fields

    @display(description="own identities it carries")
    def own_identities(self, obj: Connection) -> str:
        """List the identities the connection carries and their servers."""
        rows = obj.identities.select_related("assignment__server", "assignment__gateway", "identity__server")
        return ", ".join(f"{row.identity.label} to {row.assignment.server}" for row in rows)

    def view_on_site(self, obj: Connection) -> str:
        return reverse("connections:for_host", args=[obj.host_id])

    def get_queryset(self, request: Any) -> Any:
        return Connection.objects.with_reach().select_related("host", "user", "gateway").order_by("-connected_at")

    def get_changelist_instance(self, request: Any) -> Any:
        changelist = super().get_changelist_instance(request)
        changelist.result_list = changelist.result_list.prefetch_related("tokens")
        return changelist

    def status(self, obj: Connection) -> str:
        """The state its row has on the product's own pages, and what blocks it."""
        row = ConnectionRow(obj, obj.user)
        return f"{row.status_text}: {row.blocked}" if row.blocked else row.status_text


@register(Token, site=site)
class TokenPages(CapabilityAdmin):
    """Shows only the prefix: the text is not stored, and the digest is not shown."""

    seen_by = (Capability.MCP_CONNECTIONS_READ, Capability.API_TOKENS_MANAGE)
    changed_by = (Capability.API_TOKENS_MANAGE,)
    acts = (
        CapabilityAction(
            "revoke",
            "Revoke selected",
            lambda token, by: token.revoke(by=by),
            any_of(*ENDING),
            LIVE,
            f"Whoever uses it gets 401. {FINAL}",
        ),
        CapabilityAction(
            "ask_for_new",
            "Ask for new secrets of selected",
            lambda token, by: token.ask_for_new(by=by),
            any_of(*ENDING),
            LIVE & Q(kind=TokenKind.ACCESS, asked_at=None),
            "The old secret stops working at once; its owner alone collects the new one, after signing in.",
        ),
    )

    list_display = ("name", "prefix", "kind", "connection", "status", "expires_at", "last_used_at", "revoked_at")
    list_filter = ("kind", "revoke_reason", "expires_at", "created_at")
    list_select_related = ("connection__host", "connection__user", "connection__gateway")
    search_fields = ("name", "prefix__startswith", "connection__host__name", "connection__user__email")
    fields = (
        "name",
        "prefix",
        "kind",
        "connection",
        "reaches",
        "status",
        "expires_at",
        "allowed_ips",
        "calls_per_minute",
        "last_used_at",
        "last_used_ip",
        "previous_prefix",
        "previous_ends_at",
        "previous_last_used_at",
        "asked_at",
        "asked_by",
        "rotated_at",
        "revoked_at",
        "revoked_by",
        "revoke_reason",
        "created_by",
        "created_at",
    )
    readonly_fields = fields[1:]

    def get_queryset(self, request: Any) -> Any:
        """Annotate whether each user can reach the gateway, which the status depends on."""
        connections = Connection.objects.with_reach().select_related("host", "gateway", "user")
        return super().get_queryset(request).prefetch_related(Prefetch("connection", connections))

    def status(self, obj: Token) -> str:
        """The state its row has on the product's own pages, and what blocks it."""
        return f"blocked: {in_short(obj.blocked_reason)}" if obj.blocked_reason else state_label(obj.status, "token")

    def reaches(self, obj: Token) -> str:
        """List the servers the token is limited to."""
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

    list_display = ("connection", "what", "generation", "superseded_at", "created_at")
    list_filter = ("created_at",)
    list_select_related = ("connection__host", "connection__user", "connection__gateway")
    search_fields = ("connection__host__name", "connection__user__email")
    fields = ("connection", "what", "generation", "superseded_at", "created_at")
    readonly_fields = fields
    ordering = ("-created_at",)

    def what(self, obj: Binding) -> str:
        """Return the kind of credential, not the credential itself."""
        if obj.grant_id:
            return "authorization code"
        return "access token" if obj.access_token_id else "refresh token"


@register(AuthorizeRequest, site=site)
class AuthorizeRequestPages(CapabilityAdmin):
    seen_by = (Capability.MCP_CONNECTIONS_READ,)

    list_display = ("app_name", "kind", "user", "gateway", "created_at", "expires_at", "completed_at")
    list_filter = ("kind", "created_at")
    list_select_related = ("host", "application", "user", "gateway")
    search_fields = ("host__name", "user__email")
    fields = ("app_name", "kind", "user", "gateway", "error", "created_at", "expires_at", "completed_at")
    readonly_fields = fields
