"""Admin page of the sinks of the logs."""

from __future__ import annotations

from django.contrib.admin import display, register
from django.db.models import Q

from capabilities import Capability
from gatewayadmin.admin.actions import FINAL, CapabilityAction, all_of, any_of
from gatewayadmin.admin.base import CapabilityAdmin
from gatewayadmin.staff import site
from sinks.models import ArchivedPartition, Sink
from sinks.sending import send_test_line
from ui.states import state_label

MANAGE = any_of(Capability.SINKS_MANAGE)
SEND = all_of(Capability.SINKS_MANAGE, Capability.LOGS_READ, Capability.AUDIT_READ)


@register(Sink, site=site)
class SinkPages(CapabilityAdmin):
    seen_by = (Capability.SINKS_MANAGE,)
    acts = (
        CapabilityAction(
            "disable",
            "Pause selected",
            lambda row, by: row.disable(by=by),
            MANAGE,
            Q(enabled=True),
            "Nothing more is sent to it until it is enabled again.",
            grave=True,
        ),
        CapabilityAction(
            "enable", "Enable selected", lambda row, by: row.enable(by=by), SEND, Q(enabled=False), asks=False
        ),
        CapabilityAction(
            "send_now",
            "Send now to selected",
            lambda row, by: row.send_now(by=by),
            MANAGE,
            Q(enabled=True, retry_at__isnull=False),
            asks=False,
        ),
        CapabilityAction("test", "Test selected", lambda row, by: send_test_line(row, by=by), MANAGE, Q(), asks=False),
        CapabilityAction(
            "remove", "Remove selected", lambda row, by: row.remove(by=by), MANAGE, Q(), FINAL, grave=True
        ),
    )

    list_display = ("name", "kind", "place", "status", "last_delivered_at", "last_error")
    list_filter = ("enabled", "kind")
    search_fields = ("name",)
    fields = (
        "name",
        "kind",
        "place",
        "private",
        "sends_calls",
        "sends_events",
        "sends_payloads",
        "enabled",
        "status",
        "delivered",
        "refused",
        "last_delivered_at",
        "failures",
        "retry_at",
        "last_error",
        "last_error_at",
        "waiting_since",
        "dropped_before",
        "created_by",
        "created_at",
        "updated_at",
    )

    @display(description="Address")
    def place(self, obj: Sink) -> str:
        """Return the address without anything that may be a token."""
        return obj.place

    @display(description="Status")
    def status(self, obj: Sink) -> str:
        """The state it has on the product's own pages."""
        return state_label(obj.status, "sink")


@register(ArchivedPartition, site=site)
class ArchivedPartitionPages(CapabilityAdmin):
    seen_by = (Capability.SINKS_MANAGE,)

    list_display = ("name", "begin", "end", "rows", "archived_at", "last_error")
    list_filter = ("archived_at",)
    search_fields = ("name",)
    fields = ("name", "begin", "end", "rows", "archived_at", "last_error", "failed_at")
