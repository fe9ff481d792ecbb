"""Admin pages of people, roles, teams, API keys, provisioning keys, and single sign-on."""

from __future__ import annotations

from typing import Any

from allauth.core.exceptions import ReauthenticationRequired
from django.contrib import messages
from django.contrib.admin import RelatedOnlyFieldListFilter, display, register
from django.contrib.auth.hashers import UNUSABLE_PASSWORD_PREFIX
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse

from accounts.models import ApiKey, Role, SavedView, Team, User, WorkspaceSettings
from accounts.sign_in import must_ask_again
from capabilities import Capability
from connections.models import Connection
from gatewayadmin.admin.base import FINAL, REFUSALS, CapabilityAction, CapabilityAdmin, all_of, any_of, site, words
from scim.models import ProvisioningKey
from sso.models import SETS_UP, Account, Provider
from sso.provider_test import test_provider

PEOPLE = any_of(Capability.PEOPLE_MANAGE)
DIRECTORIES = any_of(Capability.PROVISIONING_MANAGE)
EVERYTHING = all_of(*Capability)
INVITED = Q(is_active=True, password__startswith=UNUSABLE_PASSWORD_PREFIX, by_organisation=False)


@register(User, site=site)
class UserPages(CapabilityAdmin):
    """Role and password can be set only on the product's page. There, nobody can grant capabilities that they lack."""

    seen_by = (Capability.PEOPLE_READ,)
    page = ("accounts:person", "pk")
    acts = (
        CapabilityAction(
            "deactivate",
            PEOPLE,
            Q(is_active=True),
            "No token, API key or connection is revoked: after reactivation, all of them work again.",
        ),
        CapabilityAction("reactivate", PEOPLE, Q(is_active=False), asks=False),
        CapabilityAction(
            "revoke_invitation",
            PEOPLE,
            INVITED,
            "The invitation links stop working.",
            label="Revoke invitation of selected",
        ),
        CapabilityAction(
            "sign_out",
            PEOPLE,
            Q(),
            "Connections and tokens are not affected.",
            label="Sign out selected everywhere",
            does=lambda user, by: user.end_sessions(by=by),
        ),
        CapabilityAction(
            "make_staff",
            PEOPLE,
            Q(is_staff=False),
            "They may use the Django admin; their role decides what they see there.",
            label="Make selected staff",
            does=lambda user, by: user.set_staff(True, by=by),
            grave=True,
        ),
        CapabilityAction(
            "end_staff",
            PEOPLE,
            Q(is_staff=True),
            "They may no longer use the Django admin. Their role does not change.",
            label="End staff of selected",
            does=lambda user, by: user.set_staff(False, by=by),
            grave=True,
        ),
        CapabilityAction(
            "make_break_glass",
            PEOPLE,
            Q(break_glass=False),
            "Their password works even if the organisation's sign-in is enforced.",
            label="Make selected break-glass owners",
            does=lambda user, by: user.set_break_glass(True, by=by),
            grave=True,
        ),
        CapabilityAction(
            "end_break_glass",
            PEOPLE,
            Q(break_glass=True),
            (
                "If the organisation's sign-in is enforced, these people must use it, and are signed out of sessions "
                "that began with a password."
            ),
            label="End break-glass of selected",
            does=lambda user, by: user.set_break_glass(False, by=by),
            grave=True,
        ),
        CapabilityAction(
            "cut_off",
            all_of(Capability.PEOPLE_MANAGE, Capability.MCP_CONNECTIONS_REVOKE),
            Q(),
            f"The account is deactivated; its connections, API keys and sign-ins at servers are revoked. {FINAL}",
            does=lambda user, by: Connection.objects.cut_off(user, by=by),
        ),
    )
    list_display = words("email display_name role status is_staff date_joined")
    list_filter = ("is_active", "is_staff", ("role", RelatedOnlyFieldListFilter), "date_joined")
    list_select_related = ("role",)
    search_fields = ("email", "display_name")
    fields = words(
        "email display_name role status is_staff is_superuser by_organisation break_glass password_changed_at"
        " last_login date_joined invited_at provisioned_at"
    )


@register(Role, site=site)
class RolePages(CapabilityAdmin):
    """Read-only: roles are edited on the product's page, where editors can grant only capabilities they have."""

    seen_by = (Capability.PEOPLE_READ,)
    page = ("accounts:role", "pk")
    list_display = ("name", "locked")
    list_filter = ("locked",)
    search_fields = ("name",)
    fields = ("name", "locked", "uses_gateways", "required_sign_in", "held")

    @display(description="capabilities")
    def held(self, obj: Role) -> str:
        return ", ".join(sorted(capability.label for capability in obj.capabilities))


@register(Team, site=site)
class TeamPages(CapabilityAdmin):
    seen_by = (Capability.PEOPLE_READ,)
    changed_by = added_by = (Capability.PEOPLE_MANAGE,)
    list_display = search_fields = ("name",)
    fields = editable = ("name", "users")
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


@register(SavedView, site=site)
class SavedViewPages(CapabilityAdmin):
    """Read-only: views are changed on the Logs page by their owners."""

    seen_by = (Capability.LOGS_READ,)
    list_display = words("name owner is_shared created_at")
    list_filter = ("is_shared",)
    list_select_related = ("owner",)
    search_fields = ("name", "owner__email")
    fields = words("name owner query is_shared created_at")

    def get_queryset(self, request: HttpRequest) -> Any:
        viewer: Any = request.user
        return super().get_queryset(request).filter(pk__in=SavedView.objects.seen_by(viewer).values("pk"))


@register(ApiKey, site=site)
class ApiKeyPages(CapabilityAdmin):
    seen_by = (Capability.PEOPLE_READ,)
    acts = (CapabilityAction("revoke", PEOPLE, Q(revoked_at=None), f"Programs that use the key get 401. {FINAL}"),)
    list_display = words("name prefix user status expires_at last_used_at revoked_at")
    list_filter = ("expires_at", "created_at")
    list_select_related = ("user",)
    search_fields = ("name", "prefix__startswith", "user__email")
    fields = words(
        "name prefix user capabilities status expires_at last_used_at revoked_at revoked_by revoke_reason created_at"
    )

    def status(self, obj: ApiKey) -> str:
        return f"blocked: {obj.blocked}" if obj.blocked else obj.status


@register(ProvisioningKey, site=site)
class ProvisioningKeyPages(CapabilityAdmin):
    seen_by = (Capability.PROVISIONING_READ,)
    acts = (
        CapabilityAction(
            "end_previous",
            DIRECTORIES,
            Q(previous_digest__isnull=False, revoked_at=None),
            "Requests with the old secret get 401; the new one still works.",
            label="End the old secret of selected",
        ),
        CapabilityAction("revoke", DIRECTORIES, Q(revoked_at=None), f"Directories that use the key get 401. {FINAL}"),
    )
    list_display = words("name prefix role status last_used_at revoked_at")
    list_filter = ("created_at",)
    list_select_related = ("role",)
    search_fields = ("name", "prefix__startswith")
    fields = words(
        "name prefix role capabilities status last_used_at previous_prefix previous_ends_at previous_last_used_at"
        " rolled_at revoked_at created_by created_at"
    )


@register(Provider, site=site)
class ProviderPages(CapabilityAdmin):
    """Settings of the identity provider.

    Group rules, the secret and pasted metadata are not here, but on the page `sso:settings`.
    """

    acts = (
        CapabilityAction("test", all_of(*SETS_UP), Q(), tests=lambda row, by: test_provider(row, by=by), asks=False),
        CapabilityAction(
            "switch_off",
            EVERYTHING,
            ~Q(mode="off"),
            "People without a password in this workspace cannot sign in until the organisation's sign-in is enabled "
            "again. Open sessions continue.",
            label="Disable selected",
            does=lambda row, by: Provider.edit(by=by, mode="off"),
            grave=True,
        ),
    )
    list_display = words("name mode protocol issuer client_id")
    list_filter = ("mode",)
    search_fields = ("name", "issuer")
    fields = words(
        "mode name issuer private client_id scopes groups_claim domains default_role links_by_email signs_out_there"
        " protocol metadata_url metadata_read_at metadata_end_at sso_url name_id_format email_attribute name_attribute"
        " takes_unsolicited signs_requests takes_encrypted"
    )

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return all_of(*SETS_UP)(request.user)

    has_change_permission = has_view_permission

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return words("private metadata_read_at metadata_end_at sso_url") if EVERYTHING(request.user) else self.fields

    def changeform_view(self, request: HttpRequest, *args: Any, **options: Any) -> HttpResponse:
        if request.method == "POST" and must_ask_again(request):
            raise ReauthenticationRequired  # As on the product's page and in REST.
        return super().changeform_view(request, *args, **options)

    def edit(self, row: Provider, values: dict[str, Any], by: Any) -> None:
        Provider.edit(by=by, **values)

    def view_on_site(self, obj: Provider) -> str:
        return reverse("sso:settings")


@register(Account, site=site)
class AccountPages(CapabilityAdmin):
    """Read-only: people link and unlink their own account."""

    seen_by = (Capability.PEOPLE_READ,)
    list_display = fields = words("user issuer subject created_at")
    list_filter = ("issuer",)
    list_select_related = ("user",)
    search_fields = ("user__email", "subject")


@register(WorkspaceSettings, site=site)
class WorkspacePages(CapabilityAdmin):
    seen_by = (Capability.WORKSPACE_READ,)
    acts = (
        CapabilityAction(
            "keep_logs",
            any_of(Capability.WORKSPACE_MANAGE),
            Q(shorter_retention_days__isnull=False),
            label="Keep logs of selected",
            asks=False,
        ),
    )
    list_display = words("name new_app_policy log_retention_days shorter_retention_days shorter_retention_at")
    fields = words(
        "name public_base_url new_app_policy allow_non_expiring_tokens calls_per_minute token_calls_per_minute"
        " record_payloads payload_limit_bytes log_retention_days shorter_retention_days shorter_retention_at"
        " oauth_access_token_seconds oauth_refresh_idle_days setup_steps required_sign_in zone"
    )

    def view_on_site(self, obj: WorkspaceSettings) -> str:
        return reverse("accounts:workspace")
