"""The admin events: the list, one event, and the export."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple
from uuid import UUID

from django.http import HttpResponse, HttpResponseBadRequest
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.views.decorators.http import require_GET

from auditlog import replica
from auditlog.actions import Action
from auditlog.event_filters import EventFilter
from auditlog.export import TYPES, Export, TooManyExports, file_response, too_many_response
from auditlog.models import Event, masked
from auditlog.search.criteria import count_rows
from auditlog.search.keyset import Cursor, page
from auditlog.sentences import parts
from auditlog.targets import KINDS, TargetUrls, places_of
from capabilities import Capability, requires
from ui.pages import PAGE_SIZE, AppRequest, is_for, show, with_query

ROWS_BESIDE = 25  # Rows beside an open event.
IN_ROW = 3
_ISO_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
# The column of each field in an export.
COLUMNS = {
    "id": "uid",
    "time": "created_at",
    "actor": "actor_email",
    "via": "via",
    "address": "ip",
    "action": "action",
    "target_type": "target_type",
    "target_id": "target_id",
    "target": "target_label",
    "changes": "changes",
    "correlation_id": "correlation_id",
}


class ChangedField(NamedTuple):
    """One changed field. A mere fact has no `before`."""

    field: str
    before: str | None
    after: str


def changes_in_words(changes: Mapping[str, Any]) -> list[ChangedField]:
    """Return the changes of an event, one per field."""
    return [_change(name, value) for name, value in masked(changes).items()]  # Older ones were stored unmasked.


def _change(name: str, value: Any) -> ChangedField:
    field = name.replace("_", " ")
    if not (isinstance(value, list) and len(value) == 2):
        return ChangedField(field, None, _in_words(value))
    before, after = value
    if isinstance(before, list) and isinstance(after, list):
        # Show only the difference between two lists.
        before, after = [item for item in before if item not in after], [item for item in after if item not in before]
    return ChangedField(field, _in_words(before), _in_words(after))


def _in_words(value: Any) -> str:
    match value:
        case None | "" | []:
            return "none"
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(_in_words(item) for item in value)
        case dict():
            return json.dumps(value, ensure_ascii=False)
        case str() if _ISO_MOMENT.fullmatch(value):
            at = datetime.fromisoformat(value).astimezone(UTC)
            return f"{at:%b} {at.day}, {at.year}, {at:%H:%M} UTC"
        case _:
            return str(value)


class SentencePiece(NamedTuple):
    """A part of a sentence, with the link if it is the name of an object."""

    text: str
    of: str
    url: str


@dataclass(frozen=True)
class EventRow:
    """An event as the viewer sees it; `places` are the pages they may open."""

    event: Event
    places: TargetUrls

    @cached_property
    def changes(self) -> list[ChangedField]:
        return changes_in_words(self.event.changes)

    @property
    def first_changes(self) -> list[ChangedField]:
        """Return the changes that fit in a row."""
        return self.changes[:IN_ROW]

    @property
    def more(self) -> int:
        """Return the number of further changes."""
        return max(len(self.changes) - IN_ROW, 0)

    @property
    def target_url(self) -> str:
        """Return the target's page; empty if it has none, is deleted, or is not visible to the viewer."""
        return self.places.of(self.event.target_type, self.event.target_id)

    @property
    def actor_url(self) -> str:
        """Return the actor's page, or an empty string as for `target_url`."""
        return self.places.of("user", str(self.event.actor_id))

    @property
    def kind(self) -> str:
        """Return the kind of the changed object, in words."""
        return KINDS.get(self.event.target_type, self.event.target_type.capitalize())

    @cached_property
    def sentence(self) -> list[SentencePiece]:
        """Return the sentence about the event, with links to target and actor."""
        urls = {"target": self.target_url, "actor": self.actor_url}
        return [SentencePiece(part.text, part.of, urls.get(part.of, "")) for part in parts(self.event)]


@require_GET
@requires(Capability.AUDIT_READ)
@replica.from_replica
def listing(request: AppRequest) -> HttpResponse:
    if is_for(request, "drawer"):
        return render(request, "auditlog/events.html#closed")
    context = _listed(request, EventFilter(request.GET))
    response = show(request, "auditlog/events.html#entries", context)
    if request.htmx:
        # htmx would push every empty field of the form.
        response["HX-Push-Url"] = with_query(request.path, context["query"])
    return response


@require_GET
@requires(Capability.AUDIT_READ)
def detail(request: AppRequest, uid: UUID) -> HttpResponse:
    """Show one event in a drawer beside the list it was opened from."""
    event_filter = EventFilter(request.GET)
    event = get_object_or_404(Event, uid=uid)
    same_request = Event.objects.filter(correlation_id=event.correlation_id).count()
    context = {"opened": EventRow(event, places_of([event], request.user)), "same_request": same_request}
    if is_for(request, "drawer"):
        response = render(request, "auditlog/event_drawer.html", {**context, "query": event_filter.query})
        response["HX-Push-Url"] = with_query(request.path, event_filter.query)
        return response
    return render(request, "auditlog/events.html", {**_listed(request, event_filter, ROWS_BESIDE), **context})


def _listed(request: AppRequest, event_filter: EventFilter, size: int = PAGE_SIZE) -> dict[str, Any]:
    events = event_filter.narrow()
    result = page([events], Cursor.named(request.GET.get("cursor", "")), size)
    places = places_of(result.rows, request.user)
    return {
        "page": result,
        "rows": [EventRow(event, places) for event in result.rows],
        "count": count_rows(events.order_by()),
        "narrowed": bool(event_filter.asked),
        "span": event_filter.span,
        "query": event_filter.query,
        "row_query": event_filter.query,
        "facets": event_filter.facets(),
        "list_url": reverse("auditlog:events"),
        "tab": "events",
    }


@require_GET
@requires(Capability.AUDIT_READ)
def export_events(request: AppRequest) -> HttpResponse:
    """Export the filtered events as a file, and record the export."""
    kind = request.GET.get("format", "")
    if kind not in TYPES:
        return HttpResponseBadRequest("format must be csv or jsonl.", content_type="text/plain")
    event_filter = EventFilter(request.GET)
    changes = {name: [None, value] for name, value in event_filter.asked.items()}
    try:
        pieces = replica.read_from_replica(
            request, lambda: Export(event_filter.narrow(), kind, COLUMNS, by=request.user)
        )
    except TooManyExports as refused:
        return too_many_response(refused)
    Event.objects.record(Action.EVENTS_EXPORTED, request.user, by=request.user, changes=changes)
    return file_response(request, "admin-events", kind, pieces)  # type: ignore[return-value]  # A stream is an answer too.
