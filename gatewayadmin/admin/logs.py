"""Admin pages of calls and events, with keyset pagination so that no query grows with the table."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib.admin import display, register
from django.contrib.admin.views.main import ChangeList
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html

from accounts.models import User
from auditlog.models import Call, Event
from auditlog.search.criteria import uuid_of
from auditlog.search.fields import PAYLOADS
from auditlog.search.keyset import Cursor, page
from capabilities import Capability
from gatewayadmin.admin.base import CapabilityAdmin
from gatewayadmin.staff import site
from hosts.models import Host

CURSOR = "at"


class LogList(ChangeList):
    """A list that knows its neighbours instead of its length."""

    def get_filters_params(self, params: Any = None) -> dict[str, Any]:
        parameters: dict[str, Any] = super().get_filters_params(params)
        parameters.pop(CURSOR, None)
        return parameters

    def get_results(self, request: HttpRequest) -> None:
        cursor = self.params.pop(CURSOR, None)  # Filters and search begin at the newest row again.
        result = page([self.queryset], Cursor.named(cursor or ""), self.list_per_page)
        self.result_list = result.rows
        self.result_count = len(result.rows)
        self.full_result_count = self.result_count  # Nothing is said of how many there are in all.
        self.show_full_result_count = False
        self.show_admin_actions = self.can_show_all = self.multi_page = False
        self.paginator = None
        self.older = self._place(result.older)
        self.newer = self._place(result.newer)

    def _place(self, cursor: Cursor | None) -> str:
        return self.get_query_string({CURSOR: str(cursor)}) if cursor else ""


class LogPages(CapabilityAdmin):
    """A log is read, never written: no form, no action. `where` narrows the search to what has an index."""

    change_list_template = "admin/log.html"
    list_display_links = None
    sortable_by = ()
    search_fields = ("uid",)  # So that there is a search box; get_search_results says what it does.

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return LogList

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        return (queryset.filter(self.where(term)) if term else queryset), False

    def where(self, term: str) -> Q:
        """The rows that `term` names."""
        raise NotImplementedError

    def change_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        raise Http404

    history_view = change_view


def _ids(rows: QuerySet[Any]) -> list[UUID]:
    return list(rows.values_list("pk", flat=True))


def _link(url: str, text: str) -> str:
    return format_html('<a href="{}">{}</a>', url, text)


@register(Call, site=site)
class CallPages(LogPages):
    seen_by = (Capability.LOGS_READ,)
    search_help_text = "A request id, or the exact e-mail address of a user, or the exact name of a host."

    list_display = (
        "at",
        "method",
        "feature_name",
        "outcome",
        "deny_reason",
        "host_name",
        "user_email",
        "gateway_name",
        "server_name",
        "http_status",
        "duration_ms",
    )
    list_filter = ("outcome",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Call]:
        """Without what calls sent and got, which is not shown here and may be large."""
        rows: QuerySet[Call] = super().get_queryset(request)
        return rows.defer(*PAYLOADS)

    @display(description="time")
    def at(self, obj: Call) -> str:
        """The moment, leading to the page of this call."""
        return _link(reverse("auditlog:call", args=[obj.uid]), f"{obj.created_at:%Y-%m-%d %H:%M:%S.%f}"[:-3])

    def where(self, term: str) -> Q:
        if pk := uuid_of(term):
            return Q(correlation_id=pk)
        # By id, which has an index; names in the log have none.
        if "@" in term:
            return Q(user_id__in=_ids(User.objects.filter(email=term.lower())))
        return Q(host_id__in=_ids(Host.objects.filter(name__iexact=term)))


@register(Event, site=site)
class EventPages(LogPages):
    seen_by = (Capability.AUDIT_READ,)
    search_help_text = "A request id, the id of what was changed, or the exact e-mail address of who did it."

    list_display = ("at", "actor_email", "action", "target_type", "target_label", "via", "ip")
    list_filter = ("via",)

    @display(description="time")
    def at(self, obj: Event) -> str:
        """The moment, leading to the page of this event."""
        return _link(reverse("auditlog:event", args=[obj.uid]), f"{obj.created_at:%Y-%m-%d %H:%M:%S}")

    def where(self, term: str) -> Q:
        if pk := uuid_of(term):
            return Q(correlation_id=pk) | Q(target_id=str(pk))
        return Q(actor_id__in=_ids(User.objects.filter(email=term.lower())))
