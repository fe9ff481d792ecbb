"""Admin page of the proxy's rate counters."""

from __future__ import annotations

from django.contrib.admin import register

from capabilities import Capability
from gatewayadmin.admin.base import CapabilityAdmin
from gatewayadmin.staff import site
from proxy.models import RateCounter


@register(RateCounter, site=site)
class RateCounterPages(CapabilityAdmin):
    seen_by = (Capability.WORKSPACE_MANAGE,)

    list_display = ("subject_type", "subject_id", "window", "most", "calls")
    list_filter = ("window",)
    search_fields = ("=subject_id",)
    fields = ("subject_type", "subject_id", "window", "most", "calls")
    ordering = ("-window",)
