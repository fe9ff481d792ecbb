"""The page Access report: who may use which gateways and tools, since when and through what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from typing import Any
from uuid import UUID

from django import forms
from django.core.paginator import Paginator
from django.http import HttpResponse, HttpResponseBadRequest
from django.shortcuts import get_object_or_404
from django.utils import timezone
from django.views.decorators.http import require_GET

from access.models import recorded_since
from access.report import MOST_SORTED, AccessReport, Asked
from accounts.models import Team, User
from capabilities import Capability, requires
from gateways.models import Feature, Gateway
from hosts.models import Host
from servers.models import Server
from tokens.rows import SEES as SEES_TOKENS
from ui.export import list_export
from ui.forms import IDLE_DAYS, ListFilter
from ui.pages import PAGE_SIZE, AppRequest, uuid_param
from ui.tables import Column, Table, show_list

SEES_USE = Capability.MCP_CONNECTIONS_READ
NEEDS_USE = ("agent", "unused")  # Filters that reveal who connected which app, and when.
USED = "The last call of this person on the gateway, with any tool."


def _table(key: str, what: Column) -> Table:
    return Table(
        key,
        "Access",
        (
            Column("name", "Person", sorts=("name",), value="person.email"),
            Column("display", "Name", 9, is_extra=True, value="person.display_name"),
            Column("gateway", "Gateway", 10, on_phone=True, value="gateway.name"),
            Column("through", "Through", 13, priority=2, on_phone=True),
            what,
            Column("sets", "Tool sets", 10, is_extra=True),
            Column("agents", "Agents", 9, priority=5, needs=SEES_USE),
            Column(
                "connections",
                "Connections",
                7,
                kind="number",
                is_extra=True,
                needs=SEES_USE,
                value=lambda line: len(line.connections),
            ),
            Column(
                "tokens",
                "Tokens",
                4.5,
                kind="number",
                priority=4,
                needs=SEES_TOKENS,
                value=lambda line: len(line.tokens),
            ),
            Column(
                "identities",
                "Credentials",
                6,
                kind="number",
                priority=4,
                needs=Capability.IDENTITIES_READ,
                value=lambda line: len(line.identities),
            ),
            Column("since", "Since", 7, priority=3, sorts=("since",), most_first=True),
            Column("until", "Until", 7, is_extra=True),
            Column(
                "used",
                "Last used",
                6.5,
                priority=2,
                kind="moment",
                sorts=("used",),
                most_first=True,
                on_phone=True,
                hint=USED,
                needs=SEES_USE,
                value="last_used_at",
            ),
        ),
        order="name",
        row_id="key",
    )


ACCESS = _table("access-report", Column("tools", "Tools", 6.5, on_phone=True))
TOOLS = _table(
    "access-report-tools", Column("tools", "Tool", 11, on_phone=True, value=lambda line: line.feature.exposed_name)
)


class ReportFilter(ListFilter):
    """The filters of the report. The filters in NEEDS_USE are ignored if `sees_use` is False."""

    radios = ("team", "server", "unused")

    tool = forms.CharField(required=False)
    agent = forms.CharField(required=False)
    on = forms.DateField(required=False)
    team = forms.ChoiceField(required=False)
    server = forms.ChoiceField(required=False)
    unused = forms.ChoiceField(required=False, label="Unused", choices=[(days, f"{days} days") for days in IDLE_DAYS])

    def __init__(self, data: Mapping[str, Any], *, sees_use: bool) -> None:
        super().__init__(data)
        teams = Team.objects.order_by("name").values_list("pk", "name")
        servers = Server.objects.live().order_by("name").values_list("pk", "name")
        self.fields["team"].choices = [(str(pk), name) for pk, name in teams]  # type: ignore[attr-defined]
        self.fields["server"].choices = [(str(pk), name) for pk, name in servers]  # type: ignore[attr-defined]
        for name in () if sees_use else NEEDS_USE:
            del self.fields[name]

    def asked(self, side: Side) -> Asked:
        values = self.values
        agent = values.get("agent", "")
        # On a past day, agents that are archived now may have had connections.
        hosts = Host.objects.all() if values.get("on") else Host.objects.live()
        return Asked(
            q=values.get("q", ""),
            people=[side.person.pk] if side.person else (),
            gateways=[side.gateway.pk] if side.gateway else (),
            feature=side.feature,
            teams=[UUID(values["team"])] if values.get("team") else (),
            servers=[UUID(values["server"])] if values.get("server") else (),
            hosts=[*hosts.matching(agent).values_list("pk", flat=True)] if agent else None,
            tool=values.get("tool", ""),
            unused=int(values.get("unused") or 0),
            on=values.get("on"),
        )


@dataclass(frozen=True)
class Side:
    """The person, gateway or tool from whose page the report was opened. The report is limited to this object.

    All fields are None if the report was opened from another page.
    """

    person: User | None = None
    gateway: Gateway | None = None
    feature: Feature | None = None

    @classmethod
    def of(cls, request: AppRequest) -> Side:
        """Return the Side with the person, gateway or tool that the query names. Raises Http404."""
        rows: dict[str, Any] = {
            "person": User.objects.all(),
            "gateway": Gateway.objects.live(),
            "feature": Feature.objects.select_related("assignment__server"),
        }
        asked = {name: uuid_param(request.GET, name) for name in rows}
        return cls(**{name: get_object_or_404(rows[name], pk=pk) for name, pk in asked.items() if pk})

    @property
    def fields(self) -> dict[str, UUID]:
        """The hidden fields by which the filter form passes on the person, gateway or tool."""
        return {name: row.pk for name, row in vars(self).items() if row}


@dataclass(frozen=True)
class PastDay:
    """The day that a report shows."""

    on: date | None  # None for the present, and if the entered day is invalid.
    wrong: str = ""  # The error message about an invalid day.

    @classmethod
    def of(cls, filters: ReportFilter) -> PastDay:
        on = filters.values.get("on")
        is_wrong = "on" in filters.errors or (on is not None and on > timezone.now().date())
        return cls(None if is_wrong else on, "Enter a past day, such as 2026-06-01." if is_wrong else "")

    @property
    def today(self) -> date:
        return timezone.now().date()

    @cached_property
    def first(self) -> date | None:
        """The day on which the first person was created; None if there are no people. Nobody had access earlier."""
        at = User.objects.order_by("date_joined").values_list("date_joined", flat=True).first()
        return at and at.date()

    @cached_property
    def since(self) -> datetime | None:
        return recorded_since()

    @property
    def is_past(self) -> bool:
        return self.on is not None and self.on < self.today

    @property
    def is_from_events(self) -> bool:
        return bool(self.on and self.since and self.on < self.since.date())


@require_GET
@requires(Capability.GATEWAYS_READ)
@requires(Capability.PEOPLE_READ)
def report(request: AppRequest) -> HttpResponse:
    side, filters = Side.of(request), ReportFilter(request.GET, sees_use=request.user.has_perm(SEES_USE))
    asked, day = filters.asked(side), PastDay.of(filters)
    table = (TOOLS if asked.tool or asked.feature else ACCESS).seen(request)
    lines: Any = AccessReport(asked, table.sort.replace("name", "person"))
    if day.wrong and "format" in request.GET:
        return HttpResponseBadRequest(day.wrong, content_type="text/plain")
    if file := list_export(request, table, lines):
        return file
    context = {
        "day": day,
        "page": Paginator([] if day.wrong else lines, PAGE_SIZE).get_page(request.GET.get("page")),
        "table": table,
        "side": side,
        "filter_form": filters,
        "filters": filters.values,
        "narrowed": filters.is_narrow or bool(side.fields),
        "unsorted": MOST_SORTED
        if not (day.wrong or table.sort.removeprefix("-") == "name" or lines.is_sortable)
        else 0,
    }
    return show_list(request, "access/report.html", context)
