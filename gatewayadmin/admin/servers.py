"""Admin pages of servers and identities, without the secrets."""

from __future__ import annotations

from typing import Any, ClassVar

from allauth.core.exceptions import ReauthenticationRequired
from django.contrib.admin import RelatedOnlyFieldListFilter, register
from django.db.models import Model, Q
from django.forms import BooleanField
from django.http import HttpRequest
from django.urls import reverse

from accounts.sign_in import must_ask_again
from capabilities import Capability
from capabilities.catalogue import SEES_SERVERS
from gatewayadmin.admin.actions import FINAL, LOST, CapabilityAction, any_of
from gatewayadmin.admin.actions import switches as switch_acts
from gatewayadmin.admin.base import CapabilityAdmin, VersionedForm
from gatewayadmin.staff import site
from gateways.models import Assignment
from servers.forms import ServerForm, SignInSettings
from servers.models import SIGN_IN_SETTINGS, Identity, Server, WouldEndSignIns
from servers.oauth_client.models import ClientRegistration, SignIn
from ui.states import state_label

LIVE = Q(archived_at=None)
USABLE = Q(revoked_at=None)


class ServerSettings(SignInSettings, VersionedForm):
    """Sign-in settings of a server. Changes that end sign-ins must be confirmed."""

    end_sign_ins = BooleanField(
        label="End sign-ins", required=False, help_text="Only when a change says that it ends some: agree to that."
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
    """The URL is read-only: the product's page, which is linked, validates it. How people sign in may be set here."""

    form = ServerSettings
    seen_by = SEES_SERVERS
    changed_by = (Capability.SERVERS_MANAGE,)
    acts = (
        *switch_acts(Capability.SERVERS_TOGGLE, live=LIVE),
        CapabilityAction(
            "archive",
            "Archive selected",
            lambda server, by: Assignment.objects.archive_server(server, by=by),
            any_of(Capability.SERVERS_MANAGE),
            LIVE,
            f"It leaves the lists for good and every gateway it is on. {FINAL}",
        ),
    )

    list_display = ("name", "slug", "url", "auth_type", "state", "health", "health_checked_at")
    list_filter = ("enabled", "health", "auth_type", "protocol_era")
    search_fields = ("name", "slug", "url")
    fields = (
        "name",
        "slug",
        "url",
        "auth_type",
        "header_name",
        "enabled",
        "timeout_seconds",
        "total_seconds",
        "max_concurrent",
        "lists_live",
        "key_help",
        "key_url",
        *SIGN_IN_SETTINGS,
        "private",
        "end_sign_ins",
        "health",
        "health_checked_at",
        "health_error",
        "protocol_era",
        "protocol_probed_at",
        "protocol_evidence",
        "archived_at",
        "created_by",
        "created_at",
        "updated_at",
    )
    readonly_fields = tuple(name for name in fields if name not in (*SIGN_IN_SETTINGS, "private", "end_sign_ins"))

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

    def view_on_site(self, obj: Server) -> str:
        return reverse("servers:detail", args=[obj.slug])


def _open_to(identity: Identity, by: Any) -> Identity:
    """The identity, if `by` may change it; a shared one takes another capability. Raises CapabilityRequired."""
    identity.must_be_open_to(by)
    return identity


@register(Identity, site=site)
class IdentityPages(CapabilityAdmin):
    seen_by = (Capability.IDENTITIES_MANAGE,)
    changed_by = (Capability.IDENTITIES_MANAGE,)
    acts = (
        CapabilityAction(
            "disable",
            "Disable selected",
            lambda row, by: _open_to(row, by).disable(by=by),
            any_of(Capability.IDENTITIES_MANAGE),
            USABLE,
            LOST,
        ),
        CapabilityAction(
            "enable",
            "Enable selected",
            lambda row, by: _open_to(row, by).enable(by=by),
            any_of(Capability.IDENTITIES_MANAGE),
            USABLE,
            asks=False,
        ),
        CapabilityAction(
            "confirm",
            "Confirm selected",
            lambda row, by: row.confirm(by=by),
            any_of(Capability.IDENTITIES_MANAGE),
            USABLE,
            "Its secret is sent where its server is now.",
        ),
        CapabilityAction(
            "revoke",
            "Revoke selected",
            lambda row, by: _open_to(row, by).revoke(by=by),
            any_of(Capability.IDENTITIES_MANAGE),
            USABLE,
            f"The secret is wiped. {FINAL}",
        ),
    )

    list_display = ("label", "server", "owner", "kind", "status", "last_used_at", "revoked_at")
    list_filter = ("enabled", "kind", ("server", RelatedOnlyFieldListFilter))
    list_select_related = ("server", "owner")
    search_fields = ("label", "server__name", "owner__email")
    fields = (
        "label",
        "server",
        "owner",
        "kind",
        "status",
        "enabled",
        "disabled_by",
        "unconfirmed_since",
        "account",
        "issuer",
        "expires_at",
        "renew_at",
        "sign_in_needed_since",
        "sign_in_reason",
        "last_used_at",
        "last_error",
        "revoked_at",
        "revoked_by",
        "created_at",
        "updated_at",
    )
    readonly_fields = fields[1:]

    def status(self, obj: Identity) -> str:
        """The state its row has on the product's own pages."""
        return state_label(obj.status, "identity")

    def edit(self, row: Identity, values: dict[str, Any], by: Any) -> None:
        if "label" in values:
            _open_to(row, by).rename(values["label"], by=by)


@register(ClientRegistration, site=site)
class ClientRegistrationPages(CapabilityAdmin):
    seen_by = (Capability.SERVERS_MANAGE,)
    acts = (
        CapabilityAction(
            "end",
            "End selected",
            lambda row, by: row.end(by=by),
            any_of(Capability.SERVERS_MANAGE),
            Q(ended_at=None),
            "No new sign-in uses it; the next one makes this gateway known at the issuer anew. What was granted before"
            " is still renewed with it.",
        ),
    )

    list_display = ("issuer", "client_id", "kind", "server", "created_at", "ended_at")
    list_filter = ("kind",)
    list_select_related = ("server",)
    search_fields = ("issuer", "client_id", "server__name")
    fields = (
        "issuer",
        "client_id",
        "kind",
        "server",
        "token_endpoint",
        "revocation_endpoint",
        "redirect_uri",
        "auth_method",
        "scope",
        "created_at",
        "ended_at",
    )


@register(SignIn, site=site)
class SignInPages(CapabilityAdmin):
    """Those under way; each is over in ten minutes, or by the answer of the issuer."""

    seen_by = (Capability.IDENTITIES_MANAGE,)

    list_display = ("user", "server", "identity", "created_at", "expires_at")
    list_filter = (("server", RelatedOnlyFieldListFilter),)
    list_select_related = ("user", "server", "identity")
    search_fields = ("user__email", "server__name")
    fields = ("user", "server", "identity", "shared", "registration", "scope", "created_at", "expires_at")
