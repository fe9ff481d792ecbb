"""The *Incident* page of each kind of subject, its export, and the page that stops the subject."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.db.models import Q
from django.http import HttpResponse
from django.utils import timezone
from django.utils.text import slugify
from django.views.decorators.http import require_GET, require_http_methods

from accounts.models import User
from auditlog import replica
from auditlog.actions import Action
from auditlog.events import EventRow, membership_of, target_urls
from auditlog.models import LONGEST_REASON, Event, giving_reason
from auditlog.sentences import sentence
from capabilities import Capability, requires
from connections.models import Connection
from gatewayadmin.incident.activity import SHOWN, Activity
from gatewayadmin.incident.remaining import Reached, remaining
from gatewayadmin.incident.subjects import Subject
from servers.identity_views import IdentityRow
from ui.pages import AppRequest, Undo, leave, sentences, show, text_of
from ui.viewset import confirmed

EVENTS = 10
MOST_SHOWN = 20  # Largest number of connections, and of credentials; the export has all.

type View = Callable[..., HttpResponse]


def _events(subject: Subject) -> list[Event]:
    if not subject.viewer.has_perm(Capability.AUDIT_READ):
        return []
    is_named = Q(target_type=subject.target_type, target_id=str(subject.row.pk))
    if isinstance(subject.row, User):
        is_named |= membership_of(subject.row.email)
    return list(Event.objects.filter(is_named)[:EVENTS])


def page(kind: type[Subject]) -> View:
    """Return the view of the *Incident* page of this kind; with `?format=json` the view returns a file."""

    @require_GET
    @requires(Capability.LOGS_READ)
    @requires(*kind.sees)
    def incident(request: AppRequest, pk: UUID) -> HttpResponse:
        subject = kind(kind.find(request.user, pk), request.user)
        activity = replica.read_from_replica(request, lambda: Activity.of(subject.calls))
        events = _events(subject)
        if request.GET.get("format") == "json":
            return _export(subject, activity, remaining(subject), events)
        reached = remaining(subject, MOST_SHOWN)
        places = target_urls(events, request.user)
        identities = list(subject.identities[: MOST_SHOWN + 1])
        context = {
            "subject": subject,
            "activity": activity,
            "tools": activity.tools[:SHOWN],
            "more_tools": max(len(activity.tools) - SHOWN, 0),
            "addresses": activity.addresses[:SHOWN],
            "more_addresses": max(len(activity.addresses) - SHOWN, 0),
            "reached": reached[:MOST_SHOWN],
            "more_reached": max((subject.live_count or len(reached)) - MOST_SHOWN, 0),
            "identities": [IdentityRow(one, request.user) for one in identities[:MOST_SHOWN]],
            "are_more_identities": len(identities) > MOST_SHOWN,
            "events": [EventRow(event, places) for event in events],
            "rail_entry": kind.rail,
            "log_url": subject.log_url(),
            "refused_url": subject.refused_url,
            "sees_servers": request.user.has_perm(Capability.SERVERS_READ),
            "longest_reason": LONGEST_REASON,
        }
        return show(request, "incident/page.html", context)

    return incident


def _export(subject: Subject, activity: Activity, reached: list[Reached], events: list[Event]) -> HttpResponse:
    """Return the page as a JSON file, and record that it was exported."""
    named = [None, f"{subject.noun} {subject.name}"[:200]]
    Event.objects.record(Action.LOGS_EXPORTED, subject.viewer, by=subject.viewer, changes={"incident": named})
    told = {
        "subject": {"kind": subject.noun, "id": str(subject.row.pk), "name": subject.name},
        "made_at": timezone.now().isoformat(),
        "since": activity.since.isoformat(),
        "last_call_at": activity.last_at and activity.last_at.isoformat(),
        "complete": activity.reaches_to is None,
        "calls": _counted(activity.calls),
        "refused": _counted(activity.refused),
        "tools": [
            {"name": one.name, **_counted(one), "refused": one.denied, "first_use": one.is_new}
            for one in activity.tools
        ],
        "addresses": [
            {"address": one.ip or None, "client": one.client, **_counted(one), "new": one.is_new}
            for one in activity.addresses
        ],
        "remaining_access": [_access(one) for one in reached],
        "credentials": [
            {"id": str(one.pk), "server": one.server.name, "label": one.label, "status": one.status}
            for one in subject.identities
        ],
        "events": [
            {"at": event.created_at.isoformat(), "action": event.action, "sentence": sentence(event)}
            for event in events
        ],
    }
    name = f"incident-{slugify(subject.name)[:40] or subject.kind}-{timezone.now():%Y-%m-%d-%H%M%S}.json"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return HttpResponse(json.dumps(told, indent=2), content_type="application/json", headers=headers)


def _counted(count: Any) -> dict[str, Any]:
    usual = count.per_day
    return {"calls_24h": count.now, "usual_per_day": None if usual is None else round(usual, 1)}


def _access(one: Reached) -> dict[str, Any]:
    of_connection: dict[str, Any] = {}
    if one.row is not None:
        connection: Connection = one.row.connection
        of_connection = {
            "connection": str(connection.pk),
            "host": connection.host.name,
            "person": connection.user.email,
            "status": one.row.status,
        }
    grants = [{"name": given.name, "ends_at": given.until and given.until.isoformat()} for given in one.grants]
    return of_connection | {"gateway": one.gateway.name, "servers": one.servers, "tools": one.tools, "grants": grants}


def stop(kind: type[Subject]) -> View:
    """Return the view that asks for confirmation and an optional reason, then stops a subject of this kind."""

    def view(request: AppRequest, pk: UUID) -> HttpResponse:
        subject = kind(kind.find(request.user, pk), request.user)
        if not subject.act:
            return leave(request, subject.back, "There is nothing left to stop")

        def act() -> HttpResponse:
            with giving_reason(text_of(request.POST, "reason")):
                done = subject.stop()
            return leave(request, subject.back, done.words, Undo.if_changed(done.may_undo, subject.undo_page))

        return confirmed(
            request,
            act,
            back=subject.back,
            faults=kind.faults,
            title=f"Stop this {subject.noun}",
            text=f"Stop {subject.name}?",
            more=lambda: sentences(subject.effect, subject.refused_lately),
            icon="revoke",
            submit=subject.act,
            asks_why=True,
        )

    for group in kind.stops:
        view = requires(*group)(view)
    return require_http_methods(["GET", "POST"])(view)
