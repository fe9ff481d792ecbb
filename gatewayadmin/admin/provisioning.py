"""Admin page of the keys of directories."""

from __future__ import annotations

from django.contrib.admin import register
from django.db.models import Q

from capabilities import Capability
from gatewayadmin.admin.actions import FINAL, CapabilityAction, any_of
from gatewayadmin.admin.base import CapabilityAdmin
from gatewayadmin.staff import site
from scim.models import ProvisioningKey

MANAGE = any_of(Capability.PROVISIONING_MANAGE)


@register(ProvisioningKey, site=site)
class ProvisioningKeyPages(CapabilityAdmin):
    seen_by = (Capability.PROVISIONING_MANAGE,)
    acts = (
        CapabilityAction(
            "end_previous",
            "End the old secret of selected",
            lambda row, by: row.end_previous(by=by),
            MANAGE,
            Q(previous_digest__isnull=False, revoked_at=None),
            "Requests with the old secret get 401; the new one goes on.",
        ),
        CapabilityAction(
            "revoke",
            "Revoke selected",
            lambda row, by: row.revoke(by=by),
            MANAGE,
            Q(revoked_at=None),
            f"The directory that uses it gets 401. {FINAL}",
        ),
    )

    list_display = ("name", "prefix", "role", "status", "last_used_at", "revoked_at")
    list_filter = ("created_at",)
    list_select_related = ("role",)
    search_fields = ("name", "prefix__startswith")
    fields = (
        "name",
        "prefix",
        "role",
        "capabilities",
        "status",
        "last_used_at",
        "previous_prefix",
        "previous_ends_at",
        "previous_last_used_at",
        "rolled_at",
        "revoked_at",
        "created_by",
        "created_at",
    )
    readonly_fields = fields
