"""Admin pages of users, roles, teams, API keys and workspace settings."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.admin import RelatedOnlyFieldListFilter, register
from django.contrib.auth.hashers import UNUSABLE_PASSWORD_PREFIX
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse

from accounts.models import ApiKey, Role, SavedView, Team, User, WorkspaceSettings
from capabilities import Capability
from connections.models import Connection
from gatewayadmin.admin.actions import FINAL, REFUSALS, CapabilityAction, all_of, any_of
from gatewayadmin.admin.base import CapabilityAdmin
from gatewayadmin.staff import site
from ui.states import state_label

MANAGES = (Capability.PEOPLE_MANAGE,)


@register(User, site=site)
class UserPages(CapabilityAdmin):
    """Role and password are set only on the person's page, which checks the rules about granting."""

    seen_by = MANAGES
    acts = (
        CapabilityAction(
            "deactivate",
            "Deactivate selected",
            lambda user, by: user.deactivate(by=by),
            any_of(*MANAGES),
            Q(is_active=True),
            "Nothing is revoked: reactivated, everything works as before.",
        ),
        CapabilityAction(
            "reactivate",
            "Reactivate selected",
            lambda user, by: user.reactivate(by=by),
            any_of(*MANAGES),
            Q(is_active=False),
            asks=False,
        ),
        CapabilityAction(
            "revoke_invitation",
            "Revoke invitation of selected",
            lambda user, by: user.revoke_invitation(by=by),
            any_of(*MANAGES),
            Q(is_active=True, password__startswith=UNUSABLE_PASSWORD_PREFIX, by_organisation=False),
            "The links of the invitations stop working.",
        ),
        CapabilityAction(
            "sign_out",
            "Sign out selected everywhere",
            lambda user, by: user.end_sessions(by=by),
            any_of(*MANAGES),
            Q(),
            "Connections and tokens go on.",
        ),
        CapabilityAction(
            "make_staff",
            "Make selected staff",
            lambda user, by: user.set_staff(True, by=by),
            any_of(*MANAGES),
            Q(is_staff=False),
            "They may use the Django admin, where their role decides what they see.",
            grave=True,
        ),
        CapabilityAction(
            "end_staff",
            "End staff of selected",
            lambda user, by: user.set_staff(False, by=by),
            any_of(*MANAGES),
            Q(is_staff=True),
            "They may no longer use the Django admin. Their role stays as it is.",
            grave=True,
        ),
        CapabilityAction(
            "make_break_glass",
            "Make selected break-glass owners",
            lambda user, by: user.set_break_glass(True, by=by),
            any_of(*MANAGES),
            Q(break_glass=False),
            "Their password works although the organisation's sign-in is enforced.",
            grave=True,
        ),
        CapabilityAction(
            "end_break_glass",
            "End break-glass of selected",
            lambda user, by: user.set_break_glass(False, by=by),
            any_of(*MANAGES),
            Q(break_glass=True),
            "Where the organisation's sign-in is enforced they sign in there, and sessions begun with a password end.",
            grave=True,
        ),
        CapabilityAction(
            "cut_off",
            "Cut off selected",
            lambda user, by: Connection.objects.cut_off(user, by=by),
            all_of(Capability.PEOPLE_MANAGE, Capability.MCP_CONNECTIONS_REVOKE),
            Q(),
            f"The account is deactivated and every connection that acts as this user is revoked. {FINAL}",
        ),
    )

    list_display = ("email", "display_name", "role", "status", "is_staff", "date_joined")
    list_filter = ("is_active", "is_staff", ("role", RelatedOnlyFieldListFilter), "date_joined")
    list_select_related = ("role",)
    search_fields = ("email", "display_name")
    fields = (
        "email",
        "display_name",
        "role",
        "status",
        "is_staff",
        "is_superuser",
        "by_organisation",
        "break_glass",
        "password_changed_at",
        "last_login",
        "date_joined",
        "invited_at",
        "provisioned_at",
    )
    readonly_fields = fields

    def status(self, obj: User) -> str:
        """The state their row has on the product's own pages."""
        return state_label(obj.status, "user")

    def view_on_site(self, obj: User) -> str:
        return reverse("accounts:person", args=[obj.pk])


@register(Role, site=site)
class RolePages(CapabilityAdmin):
    """Read-only: roles are edited on the product's page, which checks that editors grant only what they hold."""

    seen_by = MANAGES

    list_display = ("name", "locked")
    list_filter = ("locked",)
    search_fields = ("name",)
    fields = ("name", "locked", "held")
    readonly_fields = fields

    def view_on_site(self, obj: Role) -> str:
        return reverse("accounts:role", args=[obj.pk])

    def held(self, obj: Role) -> str:
        """Its capabilities by name."""
        return ", ".join(sorted(capability.label for capability in obj.capabilities))

    held.short_description = "capabilities"  # type: ignore[attr-defined]


@register(SavedView, site=site)
class SavedViewPages(CapabilityAdmin):
    """Read-only: views are changed on the Logs page by their owners."""

    seen_by = (Capability.LOGS_READ,)

    list_display = ("name", "owner", "is_shared", "created_at")
    list_filter = ("is_shared",)
    list_select_related = ("owner",)
    search_fields = ("name", "owner__email")
    fields = ("name", "owner", "query", "is_shared", "created_at")
    readonly_fields = fields

    def get_queryset(self, request: HttpRequest) -> Any:
        viewer: Any = request.user
        return super().get_queryset(request).filter(pk__in=SavedView.objects.seen_by(viewer).values("pk"))


@register(Team, site=site)
class TeamPages(CapabilityAdmin):
    seen_by = changed_by = added_by = MANAGES

    list_display = ("name",)
    search_fields = ("name",)
    fields = ("name", "users")
    autocomplete_fields = ("users",)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_change_permission(request, obj)

    def edit(self, row: Team, values: dict[str, Any], by: Any) -> None:
        row.edit(**({"name": row.name, "users": row.users.all()} | values), by=by)

    def add(self, values: dict[str, Any], by: Any) -> Team:
        return Team.objects.add(name=values["name"], users=values["users"], by=by)

    def delete_model(self, request: Any, obj: Team) -> None:
        obj.remove(by=request.user)

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        try:
            return super().delete_view(request, object_id, extra_context)
        except REFUSALS as refusal:
            self.message_user(request, str(refusal), messages.ERROR)
            return redirect("admin:accounts_team_changelist")


@register(ApiKey, site=site)
class ApiKeyPages(CapabilityAdmin):
    seen_by = MANAGES
    acts = (
        CapabilityAction(
            "revoke",
            "Revoke selected",
            lambda key, by: key.revoke(by=by),
            any_of(*MANAGES),
            Q(revoked_at=None),
            f"Programs that use it get 401. {FINAL}",
        ),
    )

    list_display = ("name", "prefix", "user", "status", "expires_at", "last_used_at", "revoked_at")
    list_filter = ("expires_at", "created_at")
    list_select_related = ("user",)
    search_fields = ("name", "prefix__startswith", "user__email")
    fields = (
        "name",
        "prefix",
        "user",
        "capabilities",
        "status",
        "expires_at",
        "last_used_at",
        "revoked_at",
        "revoked_by",
        "revoke_reason",
        "created_at",
    )
    readonly_fields = fields

    def status(self, obj: ApiKey) -> str:
        """The state its row has on the product's own pages, and what blocks it."""
        return f"blocked: {obj.blocked}" if obj.blocked else obj.status


@register(WorkspaceSettings, site=site)
class WorkspacePages(CapabilityAdmin):
    seen_by = (Capability.WORKSPACE_MANAGE,)
    acts = (
        CapabilityAction(
            "keep_logs",
            "Keep logs of selected",
            lambda row, by: row.keep_logs(by=by),
            any_of(Capability.WORKSPACE_MANAGE),
            Q(shorter_retention_days__isnull=False),
            asks=False,
        ),
    )

    list_display = ("name", "new_app_policy", "log_retention_days", "shorter_retention_days", "shorter_retention_at")
    fields = (
        "name",
        "public_base_url",
        "new_app_policy",
        "allow_non_expiring_tokens",
        "calls_per_minute",
        "token_calls_per_minute",
        "record_payloads",
        "payload_limit_bytes",
        "log_retention_days",
        "shorter_retention_days",
        "shorter_retention_at",
        "oauth_access_token_seconds",
        "oauth_refresh_idle_days",
        "setup_steps",
    )

    def view_on_site(self, obj: WorkspaceSettings) -> str:
        return reverse("accounts:workspace")
