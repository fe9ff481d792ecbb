"""The Grants page: the tool grants on all gateways, each with its recipients and the time of their last call."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any

from django import forms
from django.db.models import Case, DateTimeField, Max, OuterRef, QuerySet, Subquery, When
from django.db.models.functions import Lower
from django.http import HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from capabilities import Capability, requires
from connections.models import Connection
from gateways.models import Gateway, GatewayError, ToolGrant
from ui.forms import IDLE_DAYS, ListFilter, holds, unused_for
from ui.pages import AppRequest
from ui.tables import Column, Table
from ui.viewset import Picked, end_picked, list_page

USED = "Last use of the gateway by a person who has the set. Calls of tools outside the set count, too."
GRANTS = Table(
    "grants",
    "Grants",
    (
        Column("pick", "Pick", 2, kind="pick", needs=Capability.GATEWAYS_MANAGE),
        Column("name", "Tool set", sorts=(Lower("tool_set__name"),), value="tool_set.name"),
        Column("gateway", "Gateway", 9, priority=2, sorts=(Lower("gateway__name"),), value="gateway.name"),
        Column("subject", "Given to", 11, on_phone=True),
        Column("by", "Given by", 11, priority=4, sorts=("given_by__email",), value="given_by.email"),
        Column("created", "Created", 7, priority=3, sorts=("given_at",), most_first=True, value="given_at"),
        Column(
            "used",
            "Last used",
            7,
            priority=2,
            kind="moment",
            sorts=("used_at",),
            most_first=True,
            on_phone=True,
            hint=USED,
            value="used_at",
            needs=Capability.MCP_CONNECTIONS_READ,
        ),
        Column("acts", "Actions", 5, kind="acts", said=False),
    ),
    order="-created",
)


def with_use(grants: QuerySet[ToolGrant]) -> QuerySet[ToolGrant]:
    """Annotate each grant with the time of its recipients' last call on the gateway.

    Any call counts, not only calls of granted tools.
    """

    def last(**whose: Any) -> Subquery:
        calls = Connection.objects.filter(gateway=OuterRef("gateway"), **whose).order_by().values("gateway")
        return Subquery(calls.annotate(at=Max("last_used_at")).values("at"))

    return grants.annotate(
        used_at=Case(
            When(everyone=True, then=last()),
            When(team__isnull=False, then=last(user__teams=OuterRef("team"))),
            default=last(user=OuterRef("user")),
            output_field=DateTimeField(),
        )
    )


class GrantFilter(ListFilter):
    idle = forms.ChoiceField(required=False, label="Unused", choices=[(days, f"{days} days") for days in IDLE_DAYS])
    radios = ("idle",)

    def narrow(self, rows: QuerySet[ToolGrant]) -> QuerySet[ToolGrant]:
        if words := self.values.get("q"):
            columns = ("tool_set__name", "gateway__name", "team__name", "user__email")
            rows = rows.filter(reduce(or_, (holds(column, words) for column in columns)))
        if days := self.values.get("idle"):
            rows = rows.filter(unused_for(int(days), "used_at", "given_at"))
        return rows


def _visible(request: AppRequest) -> QuerySet[ToolGrant]:
    seen = Gateway.objects.visible_to(request.user).order_by().values("pk")
    grants = ToolGrant.objects.live().filter(gateway__in=seen)
    return grants.select_related("tool_set", "gateway", "team", "user", "given_by")


@require_GET
@requires(Capability.GATEWAYS_READ)
def listing(request: AppRequest) -> HttpResponse:
    asked = request.GET.copy()
    if not request.user.has_perm(Capability.MCP_CONNECTIONS_READ):
        asked.pop("idle", None)  # It would reveal when other people last used the gateway.
    filters = GrantFilter(asked)
    rows = with_use(_visible(request))
    return list_page(
        request, "connections/grants.html", rows, table=GRANTS, filters=filters, rail_entry="gateways:list"
    )


@require_POST
@requires(Capability.GATEWAYS_MANAGE)
def end_selected(request: AppRequest) -> HttpResponse:
    """End the selected grants, after a confirmation."""
    return end_picked(
        Picked(request, _visible(request), ("grant", "grants"), back=reverse("connections:grants")),
        ("End", "ended"),
        lambda grant: grant.end(by=request.user),
        GatewayError,
        lambda grants: (
            "The tools of these grants are refused from the next request on. A tool stays usable if another grant "
            "gives the tool, or if its gateway allows all tools."
        ),
    )
