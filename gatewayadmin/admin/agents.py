"""Admin pages of hosts and OAuth registrations."""

from __future__ import annotations

from typing import Any

from django.contrib.admin import register
from django.db.models import Q
from django.urls import reverse

from capabilities import Capability
from capabilities.catalogue import SEES_HOSTS
from connections.models import Connection
from gatewayadmin.admin.actions import FINAL, CapabilityAction, all_of, any_of, switches
from gatewayadmin.admin.base import CapabilityAdmin
from gatewayadmin.staff import site
from hosts.models import Host
from oauth.models import Registration
from ui.states import state_label

LIVE = Q(archived_at=None)


@register(Host, site=site)
class HostPages(CapabilityAdmin):
    seen_by = SEES_HOSTS
    changed_by = added_by = (Capability.API_TOKENS_MANAGE,)
    acts = (
        *switches(Capability.HOSTS_TOGGLE, live=LIVE),
        CapabilityAction(
            "approve",
            "Approve selected",
            lambda host, by: host.approve(by=by),
            any_of(Capability.HOSTS_TOGGLE),
            LIVE & Q(needs_approval=True, approved_at=None),
            asks=False,
        ),
        CapabilityAction(
            "archive",
            "Archive selected",
            lambda host, by: Connection.objects.archive_host(host, by=by),
            all_of(Capability.HOSTS_TOGGLE, Capability.MCP_CONNECTIONS_REVOKE),
            LIVE,
            f"It leaves the lists for good and its connections are revoked. {FINAL}",
        ),
    )

    list_display = ("name", "kind", "status", "created_by", "created_at", "last_seen_at")
    list_filter = ("kind", "enabled", "needs_approval", "created_at")
    list_select_related = ("created_by",)
    search_fields = ("name", "description", "allow_enrolment")
    fields = (
        "name",
        "description",
        "allow_enrolment",
        "kind",
        "status",
        "needs_approval",
        "approved_at",
        "approved_by",
        "first_seen_at",
        "last_seen_at",
        "archived_at",
        "created_by",
        "created_at",
        "updated_at",
    )
    readonly_fields = fields[3:]

    def status(self, obj: Host) -> str:
        """The state its row has on the product's own pages."""
        return "archived" if obj.archived_at else state_label(obj.status, "host")

    def get_fields(self, request: Any, obj: Host | None = None) -> Any:
        return self.fields if obj else ("name", "description")

    def is_open(self, obj: Host) -> bool:
        return obj.is_agent and super().is_open(obj)

    def view_on_site(self, obj: Host) -> str:
        return reverse("hosts:detail", args=[obj.pk])

    def edit(self, row: Host, values: dict[str, Any], by: Any) -> None:
        if "allow_enrolment" in values:
            row.set_enrolment(values.pop("allow_enrolment"), by=by)
        if values:
            row.rename(**({"name": row.name, "description": row.description} | values), by=by)

    def add(self, values: dict[str, Any], by: Any) -> Host:
        return Host.objects.add_agent(**values, by=by)


@register(Registration, site=site)
class RegistrationPages(CapabilityAdmin):
    seen_by = SEES_HOSTS

    list_display = ("client_name", "host", "software_id", "created_at", "last_used_at")
    list_filter = ("created_at",)
    list_select_related = ("host",)
    search_fields = ("client_name", "software_id", "host__name")
    fields = (
        "client_name",
        "client_uri",
        "host",
        "software_id",
        "software_version",
        "created_at",
        "last_used_at",
    )
