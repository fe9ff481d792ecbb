"""What the proxy keeps between requests. Messages are other people's data: not shown."""

from __future__ import annotations

from django.contrib.admin import register

from capabilities import Capability
from gatewayadmin.admin.base import CapabilityAdmin
from gatewayadmin.staff import site
from proxy.models import RateCounter, Session, StreamEvent


@register(Session, site=site)
class SessionPages(CapabilityAdmin):
    seen_by = (Capability.MCP_CONNECTIONS_READ,)

    list_display = ("connection", "protocol_version", "created_at", "last_seen_at", "ended_at")
    list_filter = ("last_seen_at",)
    list_select_related = ("connection__host", "connection__user", "connection__gateway")
    search_fields = ("connection__host__name", "connection__user__email")
    fields = ("connection", "protocol_version", "client_info", "log_level", "created_at", "last_seen_at", "ended_at")
    ordering = ("-last_seen_at",)


@register(StreamEvent, site=site)
class StreamEventPages(CapabilityAdmin):
    seen_by = (Capability.MCP_CONNECTIONS_READ,)

    list_display = ("id", "session", "stream_id", "created_at")
    list_filter = ("created_at",)
    list_select_related = ("session",)
    search_fields = ("=stream_id",)
    fields = ("session", "stream_id", "created_at")
    ordering = ("-id",)


@register(RateCounter, site=site)
class RateCounterPages(CapabilityAdmin):
    seen_by = (Capability.WORKSPACE_MANAGE,)

    list_display = ("subject_type", "subject_id", "window", "most", "calls")
    list_filter = ("window",)
    search_fields = ("=subject_id",)
    fields = ("subject_type", "subject_id", "window", "most", "calls")
    ordering = ("-window",)
