"""Admin pages of calls, events, log sinks, archived partitions and notification channels."""

from __future__ import annotations

from typing import Any

from django.contrib.admin import display, register
from django.contrib.admin.views.main import ChangeList
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html

from accounts.models import User
from attention.models import Channel
from auditlog.fields import PAYLOADS
from auditlog.models import Call, Event
from auditlog.paging import Cursor, page
from capabilities import Capability
from gatewayadmin.admin.base import FINAL, CapabilityAction, CapabilityAdmin, all_of, any_of, site, words
from hosts.models import Host
from sinks.models import ArchivedPartition, Sink
from sinks.sending import send_test_line
from ui.pages import uuid_of

CURSOR = "at"
MANAGE = any_of(Capability.SINKS_MANAGE)
SEND = all_of(Capability.SINKS_MANAGE, Capability.LOGS_READ, Capability.AUDIT_READ)


class LogList(ChangeList):
    """A list with keyset pagination: no query gets slower as the table grows, and rows are not counted."""

    def get_filters_params(self, params: Any = None) -> dict[str, Any]:
        parameters: dict[str, Any] = super().get_filters_params(params)
        parameters.pop(CURSOR, None)
        return parameters

    def get_results(self, request: HttpRequest) -> None:
        # The cursor is removed from the parameters, so that links of filters and the search begin at the newest row.
        cursor = self.params.pop(CURSOR, None)
        result = page(self.queryset, Cursor.named(cursor or ""), self.list_per_page)
        self.result_list = result.rows
        self.result_count = self.full_result_count = len(result.rows)
        self.show_full_result_count = self.show_admin_actions = self.can_show_all = self.multi_page = False
        self.paginator = None
        self.older = self._place(result.older)
        self.newer = self._place(result.newer)

    def _place(self, cursor: Cursor | None) -> str:
        return self.get_query_string({CURSOR: str(cursor)}) if cursor else ""


class LogPages(CapabilityAdmin):
    """Base of the admin pages for calls and events. They have no forms and no actions.

    A subclass implements `where`, which searches indexed columns only.
    """

    change_list_template = "admin/log.html"
    list_display_links = None
    sortable_by = ()
    search_fields = ("uid",)  # Shows the search box; get_search_results decides what is searched.
    page_name: str

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return LogList

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        return (queryset.filter(self.where(term)) if term else queryset), False

    def where(self, term: str) -> Q:
        """Return the condition for rows that match the search term."""
        raise NotImplementedError

    @display(description="time")
    def at(self, obj: Any) -> str:
        """Return the time, as a link to the row's page in the product."""
        url = reverse(self.page_name, args=[obj.uid])
        return format_html('<a href="{}">{}</a>', url, f"{obj.created_at:%Y-%m-%d %H:%M:%S.%f}"[:-3])

    def change_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        raise Http404

    history_view = change_view


@register(Call, site=site)
class CallPages(LogPages):
    seen_by = (Capability.LOGS_READ,)
    page_name = "auditlog:call"
    search_help_text = "A request id, or the exact e-mail address of a person, or the exact name of an app or agent."
    list_display = words(
        "at method feature_name outcome deny_reason host_name user_email gateway_name server_name http_status"
        " duration_ms"
    )
    list_filter = ("outcome",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Call]:
        rows: QuerySet[Call] = super().get_queryset(request)
        return rows.defer(*PAYLOADS)  # Payloads are large, and not shown.

    def where(self, term: str) -> Q:
        if pk := uuid_of(term):
            return Q(correlation_id=pk)
        # Search by id: the log has an index on the ids of people and hosts, but not on their names.
        if "@" in term:
            return Q(user_id__in=list(User.objects.filter(email=term.lower()).values_list("pk", flat=True)))
        return Q(host_id__in=list(Host.objects.filter(name__iexact=term).values_list("pk", flat=True)))


@register(Event, site=site)
class EventPages(LogPages):
    seen_by = (Capability.AUDIT_READ,)
    page_name = "auditlog:event"
    search_help_text = "A request id, the id of the changed object, or the exact e-mail address of the actor."
    list_display = words("at actor_email action target_type target_label via ip")
    list_filter = ("via",)

    def where(self, term: str) -> Q:
        if pk := uuid_of(term):
            return Q(correlation_id=pk) | Q(target_id=str(pk))
        return Q(actor_id__in=list(User.objects.filter(email=term.lower()).values_list("pk", flat=True)))


@register(Sink, site=site)
class SinkPages(CapabilityAdmin):
    seen_by = (Capability.SINKS_READ,)
    acts = (
        CapabilityAction(
            "disable",
            MANAGE,
            Q(enabled=True),
            "Nothing more is sent to the sink until it is enabled again.",
            label="Pause",
            grave=True,
        ),
        CapabilityAction("enable", SEND, Q(enabled=False), asks=False),
        CapabilityAction(
            "send_now", MANAGE, Q(enabled=True, retry_at__isnull=False), label="Send now to selected", asks=False
        ),
        CapabilityAction("test", MANAGE, Q(), tests=lambda row, by: send_test_line(row, by=by), asks=False),
        CapabilityAction("remove", MANAGE, Q(), FINAL, grave=True),
    )
    list_display = words("name kind place status last_delivered_at last_error")
    list_filter = ("enabled", "kind")
    search_fields = ("name",)
    fields = words(
        "name kind place private sends_calls sends_events sends_payloads enabled status delivered refused"
        " last_delivered_at failures retry_at last_error last_error_at waiting_since dropped_before created_by"
        " created_at updated_at"
    )

    @display(description="Address")
    def place(self, obj: Sink) -> str:
        """Return the address of the sink, without the parts that may be a token."""
        return obj.place


@register(ArchivedPartition, site=site)
class ArchivedPartitionPages(CapabilityAdmin):
    seen_by = (Capability.SINKS_READ,)
    list_display = words("name begin end rows archived_at last_error")
    list_filter = ("archived_at",)
    search_fields = ("name",)
    fields = words("name begin end rows archived_at last_error failed_at")


@register(Channel, site=site)
class ChannelPages(CapabilityAdmin):
    """Admin pages of notification channels: those of the workspace, and the viewer's own channels."""

    seen_by = (Capability.WORKSPACE_READ,)
    acts = (
        CapabilityAction(
            "disable",
            any_of(*seen_by),
            Q(enabled=True),
            "Nothing more is sent to the channel until it is enabled again.",
            does=lambda row, by: row.edit(enabled=False, by=by),
            grave=True,
        ),
        CapabilityAction(
            "enable",
            any_of(*seen_by),
            Q(enabled=False),
            does=lambda row, by: row.edit(enabled=True, by=by),
            asks=False,
            grave=True,
        ),
        CapabilityAction("remove", any_of(*seen_by), Q(), FINAL, grave=True),
    )
    list_display = words("kind owner origin status last_sent_at last_error")
    list_filter = ("enabled", "kind")
    list_select_related = ("owner",)
    search_fields = ("origin", "owner__email")
    fields = words(
        "kind owner origin private enabled muted quiet_from quiet_until zone last_sent_at last_error last_error_at"
        " created_at"
    )

    def get_queryset(self, request: Any) -> Any:
        return Channel.objects.open_to(request.user)
