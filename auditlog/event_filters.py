"""The filters of the admin events."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django import forms
from django.db.models import Q, QuerySet
from django.utils import timezone

from auditlog.actions import Action
from auditlog.event_context import Via
from auditlog.models import Event
from auditlog.search.criteria import uuid_of
from auditlog.search.filters import RANGES, EventFacet, first_of

DEFAULT_RANGE = "30d"
TEXTS = {"actor": "Actor", "target": "Target", "correlation": "Correlation id"}


class EventFilter(forms.Form):
    """The query string of the page as a form; unknown values are ignored."""

    range = forms.ChoiceField(required=False, choices=[(key, label) for key, (label, _) in RANGES.items()])
    action = forms.MultipleChoiceField(required=False, choices=[(action.value, action.value) for action in Action])
    via = forms.MultipleChoiceField(required=False, choices=Via.choices)
    actor = forms.CharField(required=False, max_length=254)
    target = forms.CharField(required=False, max_length=200)
    correlation = forms.CharField(required=False, max_length=40)

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        self.is_valid()
        self.values: dict[str, Any] = {name: self.cleaned_data.get(name) or "" for name in self.fields}
        self.values["range"] = self.values["range"] or DEFAULT_RANGE

    @property
    def asked(self) -> dict[str, Any]:
        """Return the values that differ from the defaults."""
        return {
            name: value for name, value in self.values.items() if value and (name, value) != ("range", DEFAULT_RANGE)
        }

    @property
    def query(self) -> str:
        """Return the query string of these filters."""
        return urlencode(self.asked, doseq=True)

    @property
    def span(self) -> str:
        """Return the time range in words."""
        return RANGES[self.values["range"]][0]

    def narrow(self) -> QuerySet[Event]:
        """Return the events that match."""
        events = Event.objects.filter(self._subjects())
        length = RANGES[self.values["range"]][1]
        # All changes of one request are found, whatever the time range.
        if length and not self.values["correlation"]:
            events = events.filter(created_at__gte=timezone.now() - length)
        for name in ("action", "via"):
            if self.values[name]:
                events = events.filter(**{f"{name}__in": self.values[name]})
        return events

    def _subjects(self) -> Q:
        condition = Q()
        if text := self.values["actor"]:
            condition &= Q(actor_id=text) if uuid_of(text) else Q(actor_email__icontains=text)
        if text := self.values["target"]:
            named = Q(target_label__icontains=text) | Q(target_type__iexact=text)
            condition &= Q(target_id=text) if uuid_of(text) else named
        if text := self.values["correlation"]:
            condition &= Q(correlation_id=text) if uuid_of(text) else Q(pk=None)
        return condition

    def facets(self) -> list[EventFacet]:
        """Return the filters that open on demand, with their current values."""
        cleaned = self.values
        vias = [str(Via(value).label) for value in cleaned["via"]]
        ranges = [(key, label) for key, (label, _) in RANGES.items()]
        return [
            EventFacet("range", "Time range", cleaned["range"], self.span, ranges),
            EventFacet(
                "action",
                "Action",
                cleaned["action"],
                first_of(cleaned["action"]),
                [(action, action) for action in sorted(Action)],
            ),
            EventFacet("via", "Via", cleaned["via"], first_of(vias), Via.choices),
            *(EventFacet(name, label, cleaned[name], cleaned[name][:24], []) for name, label in TEXTS.items()),
        ]
