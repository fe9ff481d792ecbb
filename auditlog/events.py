"""The admin events: the list with its filters, one event, and the export."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from django import forms
from django.db.models import CharField, F, Q, QuerySet, Value
from django.db.models.functions import Cast
from django.http import HttpResponse, HttpResponseBadRequest
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET

from access.models import Review
from accounts.models import Role, Team, User
from auditlog import replica
from auditlog.actions import Action
from auditlog.export import LogExport
from auditlog.fields import EVENT_EXPORT_COLUMNS
from auditlog.filters import RANGES
from auditlog.models import Event, Via, masked
from auditlog.paging import Cursor, page
from auditlog.search import count_rows
from auditlog.sentences import ASIDE, parts
from capabilities import Capability, requires
from connections.models import Connection, HostAtGateway
from gateways.models import AccessRequest, Assignment, Feature, Gateway, GatewayGrant, ToolGrant, ToolSet
from hosts.models import Host
from scim.models import ProvisioningKey
from servers.models import Identity, Server
from tokens.models import Token
from ui.export import TYPES, TooManyExports, file_response, too_many_response
from ui.pages import PAGE_SIZE, AppRequest, is_for, show, uuid_of, with_query

# Names of kinds of objects in events.
KINDS = {
    "accessrequest": "Access request",
    "apikey": "API key",
    "clientregistration": "OAuth client",
    "directoryaddress": "Directory address",
    "feature": "Definition",
    "gatewaygrant": "Gateway grant",
    "hostatgateway": "App or agent on a gateway",
    "provisioningkey": "Provisioning key",
    "registration": "OAuth client",
    "review": "Access review",
    "savedview": "Saved view",
    "token": "API access token",
    "toolgrant": "Tool grant",
    "toolset": "Tool set",
    "user": "Person",
    "workspacesettings": "Workspace",
}


class TargetKind(NamedTuple):
    """A kind of object that has a page, to which events about the object link."""

    rows: Callable[[User], QuerySet[Any]]  # Returns the rows that have a page.
    page: str  # The URL name.
    argument: str = "pk"  # The field with the argument of the URL.
    # One of these capabilities is enough to open the page. Empty if `rows` returns only rows that the viewer may see.
    needs: tuple[Capability, ...] = ()


def _gateways(viewer: User) -> QuerySet[Any]:
    return Gateway.objects.visible_to(viewer).order_by()


def _features(viewer: User) -> QuerySet[Any]:
    return Feature.objects.seen_by(viewer)


_PEOPLE = (Capability.PEOPLE_READ,)
_PAGES = {
    "accessrequest": TargetKind(AccessRequest.objects.visible_to, "gateways:access_request"),
    "assignment": TargetKind(
        lambda viewer: Assignment.objects.live().filter(gateway__in=_gateways(viewer)),
        "gateways:servers",
        "gateway__slug",
    ),
    "connection": TargetKind(
        lambda viewer: Connection.objects.filter(host__archived_at=None),
        "connections:for_host",
        "host_id",
        (Capability.HOSTS_READ,),
    ),
    "feature": TargetKind(_features, "gateways:feature"),
    "gateway": TargetKind(_gateways, "gateways:detail", "slug"),
    "gatewaygrant": TargetKind(
        lambda viewer: GatewayGrant.objects.filter(gateway__in=_gateways(viewer)), "gateways:detail", "gateway__slug"
    ),
    "hostatgateway": TargetKind(
        lambda viewer: HostAtGateway.objects.filter(gateway__in=_gateways(viewer)),
        "connections:gateway_hosts",
        "gateway__slug",
        (Capability.GATEWAYS_READ,),
    ),
    "host": TargetKind(lambda viewer: Host.objects.live(), "hosts:detail", needs=(Capability.HOSTS_READ,)),
    "identity": TargetKind(
        lambda viewer: Identity.objects.filter(server__archived_at=None),
        "servers:identities",
        "server__slug",
        (Capability.SERVERS_READ,),
    ),
    "provisioningkey": TargetKind(
        lambda viewer: ProvisioningKey.objects.all(), "scim:key", needs=(Capability.PROVISIONING_READ,)
    ),
    "review": TargetKind(Review.objects.visible_to, "access:review"),
    "role": TargetKind(lambda viewer: Role.objects.all(), "accounts:role", needs=_PEOPLE),
    "server": TargetKind(lambda viewer: Server.objects.live(), "servers:detail", "slug", (Capability.SERVERS_READ,)),
    "team": TargetKind(lambda viewer: Team.objects.all(), "gateways:team", needs=_PEOPLE),
    "token": TargetKind(
        lambda viewer: Token.objects.filter(connection__host__archived_at=None),
        "connections:for_host",
        "connection__host_id",
        (Capability.HOSTS_READ,),
    ),
    "toolgrant": TargetKind(
        lambda viewer: ToolGrant.objects.filter(gateway__in=_gateways(viewer)),
        "connections:tool_sets",
        "gateway__slug",
        (Capability.GATEWAYS_READ,),
    ),
    "toolset": TargetKind(
        lambda viewer: ToolSet.objects.filter(gateway__in=_gateways(viewer)),
        "connections:tool_sets",
        "gateway__slug",
        (Capability.GATEWAYS_READ,),
    ),
    "user": TargetKind(lambda viewer: User.objects.all(), "accounts:person", needs=_PEOPLE),
}


class TargetUrls:
    """The page URLs of some objects, by kind and id."""

    def __init__(self, urls: dict[tuple[str, str], str], viewer: User) -> None:
        self._urls, self._viewer = urls, viewer

    def of(self, kind: str, pk: str) -> str:
        """Return the URL of the object's page; empty if it has no page, or if the viewer may not see the object."""
        if kind == "workspacesettings":
            return reverse("accounts:workspace") if self._viewer.has_perm(Capability.WORKSPACE_READ) else ""
        return self._urls.get((kind, pk), "")


def target_urls(events: Iterable[Event], viewer: User) -> TargetUrls:
    """Return the page URLs of these events' targets and actors, with one query."""
    wanted: dict[str, set[UUID]] = defaultdict(set)
    for event in events:
        for kind, pk in ((event.target_type, uuid_of(event.target_id)), ("user", event.actor_id)):
            if pk and kind in _PAGES:
                wanted[kind].add(pk)
    return page_urls(wanted, viewer)


def page_urls(wanted: Mapping[str, set[UUID]], viewer: User) -> TargetUrls:
    """Return the page URLs of the objects in `wanted`, with one query. `wanted` maps kinds to sets of ids."""
    may_open = (kind for kind in sorted(wanted) if _may_open(_PAGES[kind], viewer))
    parts = [_pages_of(kind, wanted[kind], viewer) for kind in may_open]
    if not parts:
        return TargetUrls({}, viewer)
    rows = parts[0].union(*parts[1:], all=True).order_by()
    return TargetUrls({(kind, str(pk)): reverse(_PAGES[kind].page, args=[at]) for kind, pk, at in rows}, viewer)


def _may_open(kind: TargetKind, viewer: User) -> bool:
    return not kind.needs or any(map(viewer.has_perm, kind.needs))


def _pages_of(kind: str, pks: set[UUID], viewer: User) -> QuerySet[Any, Any]:
    page = _PAGES[kind]
    rows: QuerySet[Any, Any] = page.rows(viewer).order_by().filter(pk__in=pks)
    argument = Cast(F(page.argument), CharField())
    found: QuerySet[Any, Any] = rows.annotate(event_kind=Value(kind, CharField()), event_at=argument)
    return found.values_list("event_kind", "pk", "event_at")


# The filters of the admin events.

DEFAULT_RANGE = "30d"
TEXTS = {"actor": "Actor", "target": "Target", "correlation": "Correlation id"}


class EventFacet(NamedTuple):
    """One filter: a list to select from if there are `choices`, otherwise a text field."""

    name: str
    label: str
    value: Any
    summary: str
    choices: Sequence[tuple[str, str]]


def first_of(values: Sequence[str]) -> str:
    """Return the first value, with "+N" if there are N more; empty if there are no values."""
    return "" if not values else values[0] if len(values) == 1 else f"{values[0]} +{len(values) - 1}"


def membership_of(email: str) -> Q:
    """Return a filter for the events in which the person with this address joined or left a team."""
    email = email.strip().lower()
    left, joined = Q(changes__users__0__contains=[email]), Q(changes__users__1__contains=[email])
    return Q(target_type="team") & (left & ~joined | joined & ~left)


def naming(email: str) -> Q:
    """Return a filter for the events whose `changes` name the person with this address.

    The person either owns the target of the event, or joined or left the team that the event is about.
    """
    return Q(changes__owner=email.strip().lower()) | membership_of(email)


def about(pk: str) -> Q:
    """Return the condition for events about the object with this id.

    For a person, this includes events that name their current e-mail address (see `naming`).
    """
    if (uid := uuid_of(pk)) is None:
        return Q(target_id=pk)
    pk = str(uid)  # In the form of the column.
    email = User.objects.filter(pk=pk).values_list("email", flat=True).first()
    return Q(target_id=pk) | naming(email) if email else Q(target_id=pk)


class EventFilter(forms.Form):
    """The filters of the Admin events page, read from its query string. Unknown values are ignored."""

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
        return urlencode(self.asked, doseq=True)

    @property
    def span(self) -> str:
        return RANGES[self.values["range"]][0]

    def narrow(self) -> QuerySet[Event]:
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
            condition &= about(text) if uuid_of(text) else named | naming(text)
        if text := self.values["correlation"]:
            condition &= Q(correlation_id=text) if uuid_of(text) else Q(pk=None)
        return condition

    def facets(self) -> list[EventFacet]:
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
            *(EventFacet(name, label, cleaned[name], cleaned[name], []) for name, label in TEXTS.items()),
        ]


ROWS_BESIDE = 25  # Rows in the list beside an open event.
IN_ROW = 3
_ISO_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


class ChangedField(NamedTuple):
    """One changed field; `before` is None if the event has only one value for the field."""

    field: str
    before: str | None
    after: str


def changes_in_words(changes: Mapping[str, Any]) -> list[ChangedField]:
    """Return the changes in an event, one per field. Additional facts (ASIDE), such as the owner, come last.

    A field is left out if its values before and after the change have the same text.
    """
    told = sorted(masked(changes).items(), key=lambda one: one[0] in ASIDE)  # Older events were stored unmasked.
    changed = [_change(name, value) for name, value in told]
    return [one for one in changed if one.before != one.after]


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
    """A part of the sentence about an event.

    `url` is the page of the target or actor that the part names; empty if there is none that the viewer may open.
    """

    text: str
    of: str
    url: str


@dataclass(frozen=True)
class EventRow:
    """An event as the viewer sees it; `places` has the URLs of the pages that the viewer may open."""

    event: Event
    places: TargetUrls

    @cached_property
    def changes(self) -> list[ChangedField]:
        return changes_in_words(self.event.changes)

    @property
    def first_changes(self) -> list[ChangedField]:
        return self.changes[:IN_ROW]

    @property
    def more(self) -> int:
        return max(len(self.changes) - IN_ROW, 0)

    @property
    def target_url(self) -> str:
        """Return the URL of the target's page; empty if it has no page, or if the viewer may not see the target."""
        return self.places.of(self.event.target_type, self.event.target_id)

    @property
    def actor_url(self) -> str:
        """Return the URL of the actor's page; empty if the actor has no page, or the viewer may not see the actor."""
        return self.places.of("user", str(self.event.actor_id))

    @property
    def kind(self) -> str:
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
        # Without this header, htmx would push a URL that has every empty field of the form.
        response["HX-Push-Url"] = with_query(request.path, context["query"])
    return response


@require_GET
@requires(Capability.AUDIT_READ)
def detail(request: AppRequest, uid: UUID) -> HttpResponse:
    """Show one event in a drawer beside the list it was opened from."""
    event_filter = EventFilter(request.GET)
    event = get_object_or_404(Event, uid=uid)
    same_request = Event.objects.filter(correlation_id=event.correlation_id).count()
    context = {"opened": EventRow(event, target_urls([event], request.user)), "same_request": same_request}
    if is_for(request, "drawer"):
        response = render(request, "auditlog/event_drawer.html", {**context, "query": event_filter.query})
        response["HX-Push-Url"] = with_query(request.path, event_filter.query)
        return response
    return render(request, "auditlog/events.html", {**_listed(request, event_filter, ROWS_BESIDE), **context})


def _listed(request: AppRequest, event_filter: EventFilter, size: int = PAGE_SIZE) -> dict[str, Any]:
    events = event_filter.narrow()
    result = page(events, Cursor.named(request.GET.get("cursor", "")), size)
    places = target_urls(result.rows, request.user)
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
            request, lambda: LogExport(event_filter.narrow(), kind, EVENT_EXPORT_COLUMNS, by=request.user)
        )
    except TooManyExports as refused:
        return too_many_response(refused)
    Event.objects.record(Action.EVENTS_EXPORTED, request.user, by=request.user, changes=changes)
    return file_response(request, "admin-events", kind, pieces)  # type: ignore[return-value]  # A stream is a response.
