"""Admin pages of the sign-in by the organisation."""

from __future__ import annotations

from typing import Any

from allauth.core.exceptions import ReauthenticationRequired
from django.contrib.admin import register
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from accounts.sign_in import must_ask_again
from capabilities import Capability
from gatewayadmin.admin.actions import CapabilityAction, all_of
from gatewayadmin.admin.base import CapabilityAdmin
from gatewayadmin.staff import site
from sso.discovery import test_provider
from sso.models import SETS_UP, Account, Provider

BOTH = all_of(*SETS_UP)


@register(Provider, site=site)
class ProviderPages(CapabilityAdmin):
    """The group rules, the secret and pasted metadata are set on the product's page only."""

    acts = (
        CapabilityAction("test", "Test selected", lambda row, by: test_provider(row, by=by), BOTH, Q(), asks=False),
        CapabilityAction(
            "switch_off",
            "Switch selected off",
            lambda row, by: Provider.edit(by=by, mode="off"),
            all_of(*Capability),
            ~Q(mode="off"),
            "Who has no password here cannot sign in until it is offered again. Sessions that are open stay.",
            grave=True,
        ),
    )

    list_display = ("name", "mode", "protocol", "issuer", "client_id")
    list_filter = ("mode",)
    search_fields = ("name", "issuer")
    fields = (
        "mode",
        "name",
        "issuer",
        "private",
        "client_id",
        "scopes",
        "groups_claim",
        "domains",
        "default_role",
        "links_by_email",
        "signs_out_there",
        "protocol",
        "metadata_url",
        "metadata_read_at",
        "metadata_end_at",
        "sso_url",
        "name_id_format",
        "email_attribute",
        "name_attribute",
        "takes_unsolicited",
        "signs_requests",
        "takes_encrypted",
    )
    shown = ("private", "metadata_read_at", "metadata_end_at", "sso_url")

    def has_module_permission(self, request: HttpRequest) -> bool:
        return BOTH(request.user)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return BOTH(request.user)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return BOTH(request.user)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.shown if all_of(*Capability)(request.user) else self.fields

    def changeform_view(self, request: HttpRequest, *args: Any, **options: Any) -> HttpResponse:
        if request.method == "POST" and must_ask_again(request):
            raise ReauthenticationRequired  # As the product's page and REST ask.
        return super().changeform_view(request, *args, **options)

    def edit(self, row: Provider, values: dict[str, Any], by: Any) -> None:
        Provider.edit(by=by, **values)

    def view_on_site(self, obj: Provider) -> str:
        return reverse("sso:settings")


@register(Account, site=site)
class AccountPages(CapabilityAdmin):
    """Read-only: people link their own account, and unlink it."""

    seen_by = (Capability.PEOPLE_MANAGE,)

    list_display = ("user", "issuer", "subject", "created_at")
    list_filter = ("issuer",)
    list_select_related = ("user",)
    search_fields = ("user__email", "subject")
    fields = ("user", "issuer", "subject", "created_at")
    readonly_fields = fields
