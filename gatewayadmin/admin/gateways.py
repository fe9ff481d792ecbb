"""Admin pages of gateways, assignments and features."""

from __future__ import annotations

from typing import Any

from django.contrib.admin import RelatedOnlyFieldListFilter, register
from django.db.models import Q
from django.urls import reverse

from capabilities import Capability
from capabilities.catalogue import SEES_GATEWAYS
from connections.models import Connection
from gatewayadmin.admin.actions import FINAL, CapabilityAction, all_of, any_of, switches
from gatewayadmin.admin.base import CapabilityAdmin
from gatewayadmin.staff import site
from gateways.models import Assignment, Feature, FeatureState, Gateway

LIVE = Q(archived_at=None)
PLACED = Q(removed_at=None)


@register(Gateway, site=site)
class GatewayPages(CapabilityAdmin):
    """Names and reach have rules that the product's own page asks; it is one click away."""

    seen_by = SEES_GATEWAYS
    acts = (
        *switches(Capability.GATEWAYS_TOGGLE, live=LIVE),
        CapabilityAction(
            "archive",
            "Archive selected",
            lambda gateway, by: Connection.objects.archive_gateway(gateway, by=by),
            all_of(Capability.GATEWAYS_MANAGE, Capability.MCP_CONNECTIONS_REVOKE),
            LIVE,
            f"It leaves the lists for good and its connections are revoked. {FINAL}",
        ),
    )

    list_display = ("name", "slug", "state", "reach", "created_at", "archived_at")
    list_filter = ("enabled", "reach", "created_at")
    search_fields = ("name", "slug", "description")
    fields = (
        "name",
        "slug",
        "description",
        "enabled",
        "reach",
        "teams",
        "shared_identities",
        "calls_per_minute",
        "new_definitions",
        "changed_definitions",
        "archived_at",
        "created_by",
        "created_at",
        "updated_at",
    )

    def view_on_site(self, obj: Gateway) -> str:
        return reverse("gateways:detail", args=[obj.slug])


@register(Assignment, site=site)
class AssignmentPages(CapabilityAdmin):
    seen_by = SEES_GATEWAYS
    acts = (
        *switches(Capability.GATEWAYS_TOGGLE, live=PLACED),
        CapabilityAction(
            "remove",
            "Remove selected",
            lambda assignment, by: assignment.remove(by=by),
            any_of(Capability.GATEWAYS_MANAGE),
            PLACED,
            "The server leaves the gateway; connections stay.",
        ),
    )

    list_display = ("server", "gateway", "alias", "identity_scheme", "tool_policy", "status", "removed_at")
    list_filter = ("enabled", "identity_scheme", "tool_policy", ("gateway", RelatedOnlyFieldListFilter))
    list_select_related = ("server", "gateway")
    search_fields = ("alias", "server__name", "gateway__name")
    fields = (
        "gateway",
        "server",
        "alias",
        "enabled",
        "identity_scheme",
        "shared_identity",
        "tool_policy",
        "removed_at",
        "created_at",
        "updated_at",
    )

    def get_queryset(self, request: Any) -> Any:
        return super().get_queryset(request).select_related("server", "gateway")

    def status(self, obj: Assignment) -> str:
        """Removed, enabled or disabled; blocked while its server or gateway is switched off."""
        own = self.state(obj)
        above = {"server": obj.server.enabled, "gateway": obj.gateway.enabled}
        off = next((name for name, enabled in above.items() if not enabled), "")
        return f"blocked: {off} disabled" if own == "enabled" and off else own


@register(Feature, site=site)
class FeaturePages(CapabilityAdmin):
    """Features of every kind; the difference is read on the product's own page, one click away."""

    seen_by = SEES_GATEWAYS
    acts = (
        *switches(Capability.GATEWAYS_MANAGE, live=Q(assignment__removed_at=None)),
        CapabilityAction(
            "accept",
            "Accept selected",
            lambda feature, by: feature.accept(by=by),
            any_of(Capability.GATEWAYS_MANAGE),
            Q(assignment__removed_at=None) & (Q(offered__isnull=False) | Q(state=FeatureState.QUARANTINED)),
            "Clients are shown what the server offers now.",
        ),
        CapabilityAction(
            "quarantine",
            "Quarantine selected",
            lambda feature, by: feature.quarantine(by=by),
            any_of(Capability.GATEWAYS_MANAGE),
            Q(assignment__removed_at=None) & ~Q(state=FeatureState.QUARANTINED),
            "It is shown to nobody, and its calls are refused, until somebody accepts it.",
        ),
    )

    list_display = (
        "exposed_name",
        "kind",
        "state",
        "assignment",
        "status",
        "first_seen_at",
        "changed_at",
        "missing_since",
    )
    list_filter = ("kind", "state", "enabled", ("assignment__gateway", RelatedOnlyFieldListFilter), "changed_at")
    list_select_related = ("assignment__server", "assignment__gateway")
    search_fields = ("exposed_name", "title")
    fields = (
        "kind",
        "exposed_name",
        "name",
        "title",
        "description",
        "state",
        "enabled",
        "assignment",
        "annotations",
        "effect",
        "approved",
        "offered",
        "first_seen_at",
        "last_seen_at",
        "changed_at",
        "missing_since",
    )

    def status(self, obj: Feature) -> str:
        """Enabled, disabled, or what keeps it from being called."""
        if obj.assignment.removed_at:
            return "removed"
        return (f"blocked: {obj.blocked}" if obj.blocked else "enabled") if obj.enabled else "disabled"

    def view_on_site(self, obj: Feature) -> str:
        return reverse("gateways:feature", args=[obj.pk])
