"""The pages of sinks: the list, the state of one, and setting up, testing, pausing and removing them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.reauthentication import ask_again, ask_first
from auditlog.own_calls import PATIENCE
from auditlog.versions import ChangedMeanwhile
from capabilities import Capability, CapabilityRequired, requires
from sinks.api import SENDING
from sinks.forms import SinkForm, kind_of
from sinks.lists import SINKS
from sinks.models import Sink, SinkError, SinkKind
from sinks.receivers import missing_extra
from sinks.trial import send_test_line
from ui.pages import (
    AppRequest,
    Undo,
    answer,
    clash_context,
    confirm,
    is_for,
    leave,
    moment_of,
    page_of,
    posted,
    refuse,
    seen_version,
    show,
)
from ui.tables import show_list

PAUSE_TEXT = "Nothing more is sent to it until it is enabled again. It goes on then where it was."


def page_url(sink: Sink) -> str:
    return reverse("sinks:sink", args=[sink.pk])


@require_GET
@requires(Capability.SINKS_MANAGE)
def listing(request: AppRequest) -> HttpResponse:
    table = SINKS.seen(request)
    context = {"page": page_of(request, table.ordered(Sink.objects.all())), "table": table}
    return show_list(request, "sinks/list.html#results", context)


@require_http_methods(["GET", "POST"])
@requires(Capability.SINKS_MANAGE)
@requires(Capability.LOGS_READ)
@requires(Capability.AUDIT_READ)
@ask_first
def add(request: AppRequest) -> HttpResponse:
    kind = kind_of(request.GET.get("kind", ""))
    form = SinkForm(posted(request), kind=kind)
    missing = missing_extra(kind)
    context = {"form": form, "heading": "Add a log sink", "kind": kind, "kinds": SinkKind.choices, "missing": missing}
    if request.method == "GET":
        return show(request, "sinks/form.html", context)
    if form.is_valid():
        try:
            sink = Sink.objects.add(kind=kind, **form.cleaned_data, by=request.user)
        except SinkError as error:
            form.refuse(error)
        except CapabilityRequired as lacking:
            form.add_error(None, _lacking(lacking))
        else:
            return leave(request, page_url(sink), f"{sink.name} added")
    return refuse(request, "sinks/form.html", context)


@require_http_methods(["GET", "POST"])
@requires(Capability.SINKS_MANAGE)
@requires(Capability.LOGS_READ)
@requires(Capability.AUDIT_READ)
@ask_again
def edit(request: AppRequest, pk: UUID) -> HttpResponse:
    sink = get_object_or_404(Sink, pk=pk)
    form = SinkForm(posted(request), kind=sink.kind, sink=sink, viewer=request.user)
    context = _context(sink, form)
    if request.method == "GET":
        latest = timezone.now() + PATIENCE
        until = min(moment_of(request.GET, "until") or latest, latest)
        context |= {"until": until.isoformat(), "asks": not sink.is_settled and timezone.now() < until}
        return show(request, "sinks/form.html#state" if is_for(request, "state-card") else "sinks/form.html", context)
    if form.is_valid():
        try:
            sink.edit(**form.cleaned_data, by=request.user, seen=seen_version(request))
        except ChangedMeanwhile as clash:
            context |= clash_context(clash)
        except SinkError as error:
            form.refuse(error)
        except CapabilityRequired as lacking:
            form.add_error(None, _lacking(lacking))
        else:
            return leave(request, page_url(sink), "Log sink saved")
    return refuse(request, "sinks/form.html", context)


def _context(sink: Sink, form: SinkForm) -> dict[str, Any]:
    return {"form": form, "heading": sink.name, "sink": sink, "version": sink.version, "kind": sink.kind}


def _lacking(lacking: CapabilityRequired) -> str:
    return f"It would send what you may not see yourself. It takes “{lacking.capability.label}”."


@require_POST
@requires(Capability.SINKS_MANAGE)
def test(request: AppRequest, pk: UUID) -> HttpResponse:
    """Deliver a test line, and show the outcome."""
    sink = get_object_or_404(Sink, pk=pk)
    outcome = send_test_line(sink, by=request.user)
    context = _context(sink, SinkForm(None, kind=sink.kind, sink=sink, viewer=request.user)) | {"outcome": outcome}
    return show(request, "sinks/form.html", context)


@require_POST
@requires(Capability.SINKS_MANAGE)
def send_now(request: AppRequest, pk: UUID) -> HttpResponse:
    """Retry now, without waiting for the next retry."""
    sink = get_object_or_404(Sink, pk=pk)
    toast = "Sending now" if sink.send_now(by=request.user) else "No retry was waiting"
    return leave(request, page_url(sink) if request.user.has_perms(SENDING) else reverse("sinks:list"), toast)


@require_http_methods(["GET", "POST"])
@requires(Capability.SINKS_MANAGE)
@ask_again
def disable(request: AppRequest, pk: UUID) -> HttpResponse:
    sink = get_object_or_404(Sink, pk=pk)
    if request.method == "GET":
        return confirm(
            request,
            title="Pause log sink",
            text=f'Pause "{sink.name}"? {PAUSE_TEXT}',
            more="What retention takes away meanwhile is lost to it.",
            kind="primary",
            icon="pause",
            target=f"#sink-{sink.pk}",
            back=reverse("sinks:list"),
        )
    undo = Undo.if_changed(sink.disable(by=request.user), reverse("sinks:enable", args=[sink.pk]))
    return _switched(request, sink, "Log sink paused", undo)


@require_POST
@requires(Capability.SINKS_MANAGE)
@requires(Capability.LOGS_READ)
@requires(Capability.AUDIT_READ)
def enable(request: AppRequest, pk: UUID) -> HttpResponse:
    sink = get_object_or_404(Sink, pk=pk)
    undo = Undo.if_changed(sink.enable(by=request.user), reverse("sinks:disable", args=[sink.pk]))
    return _switched(request, sink, "Log sink enabled", undo)


def _switched(request: AppRequest, sink: Sink, toast: str, undo: Undo | None) -> HttpResponse:
    sink.refresh_from_db()
    return answer(request, "sinks/list.html#row", {"sink": sink}, to=reverse("sinks:list"), toast=toast, undo=undo)


@require_http_methods(["GET", "POST"])
@requires(Capability.SINKS_MANAGE)
@ask_again
def remove(request: AppRequest, pk: UUID) -> HttpResponse:
    sink = get_object_or_404(Sink, pk=pk)
    if request.method == "GET":
        return confirm(
            request,
            title="Remove log sink",
            text=f'Remove "{sink.name}"? This cannot be undone.',
            more="Nothing more is sent to it, and how far it was is forgotten. What it has got stays there.",
            icon="revoke",
            back=page_url(sink) if request.user.has_perms(SENDING) else reverse("sinks:list"),
        )
    sink.remove(by=request.user)
    return leave(request, reverse("sinks:list"), "Log sink removed")
