"""The pages of sinks: the list, and pages to show, set up, test, pause and remove a sink."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django import forms
from django.db.models.functions import Lower
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import User
from accounts.sign_in import ask_again, ask_first
from auditlog.own_calls import PATIENCE
from auditlog.versions import ChangedMeanwhile
from capabilities import Capability, CapabilityRequired, requires
from sinks.api import SENDING
from sinks.models import KIND_CHOICES, Sink, SinkError
from sinks.receivers import KINDS, Webhook
from sinks.sending import send_test_line
from ui.pages import (
    AppRequest,
    Undo,
    answer,
    clash_context,
    confirm,
    is_for,
    leave,
    moment_of,
    posted,
    refuse,
    seen_version,
    show,
)
from ui.tables import Column, Table
from ui.viewset import confirmed, list_page

# The columns of the list of sinks.

SINKS = Table(
    "sinks",
    "Log sinks",
    (
        Column("name", "Name", sorts=(Lower("name"),)),
        Column("place", "Where", 16, priority=2),
        Column("sends", "Gets", 11, priority=3),
        Column("status", "Status", 12, on_phone=True),
        Column(
            "delivered",
            "Last delivered",
            7,
            priority=3,
            sorts=("last_delivered_at",),
            most_first=True,
            value="last_delivered_at",
        ),
        Column("acts", "Actions", 6, kind="acts", said=False),
    ),
    order="name",
)


class SinkForm(forms.Form):
    """The settings of a sink of one kind. `sink` is the sink that `viewer` edits, or None for a new sink."""

    name = forms.CharField(max_length=80)
    address = forms.CharField(max_length=500, widget=forms.TextInput(attrs={"inputmode": "url"}))
    secret = forms.CharField(
        max_length=500, required=False, widget=forms.PasswordInput(attrs={"autocomplete": "new-password"})
    )
    sends_calls = forms.BooleanField(label="Calls", required=False, initial=True)
    sends_payloads = forms.BooleanField(
        label="Payloads with the calls", required=False, help_text="Sent only if the workspace records payloads."
    )
    sends_events = forms.BooleanField(label="Admin events", required=False, initial=True)
    from_beginning = forms.BooleanField(
        label="Send the existing log first",
        required=False,
        help_text="If not selected, only new rows are sent.",
    )

    def __init__(self, data: Any, *, kind: str, sink: Sink | None = None, viewer: User | None = None) -> None:
        place = sink.place_for(viewer) if sink and viewer else ""
        super().__init__(data, initial=sink.editable() | {"address": place} if sink else None)
        about = KINDS[kind]
        address, secret = self.fields["address"], self.fields["secret"]
        address.help_text, secret.label, secret.help_text = about.address_help, about.key_label, about.key_help
        address.widget.attrs["placeholder"] = about.example
        if sink:
            secret.help_text = "Leave empty to keep the saved secret."
        if not about.example:
            del self.fields["address"]
        if not about.key_label:
            del self.fields["secret"]
        if sink:
            del self.fields["from_beginning"]

    @property
    def what(self) -> list[forms.BoundField]:
        """The fields that select the rows and payloads to send."""
        names = ("sends_calls", "sends_payloads", "sends_events", "from_beginning")
        return [self[name] for name in names if name in self.fields]

    def refuse(self, error: SinkError) -> None:
        """Show the error next to its field."""
        self.add_error(error.field or None, str(error))


def kind_of(name: str) -> str:
    """Return `name` if a kind of sink has this name, otherwise "webhook"."""
    return name if name in KINDS else Webhook.name


PAUSE_TEXT = "Nothing is sent until the sink is enabled again. Then sending continues where it stopped."


def page_url(sink: Sink) -> str:
    return reverse("sinks:sink", args=[sink.pk])


@require_GET
@requires(Capability.SINKS_READ)
def listing(request: AppRequest) -> HttpResponse:
    late = request.GET.get("late") == "1"
    rows = Sink.objects.late() if late else Sink.objects.all()
    return list_page(request, "sinks/list.html", rows, table=SINKS, late=late, narrowed=late)


@require_http_methods(["GET", "POST"])
@requires(Capability.SINKS_MANAGE)
@requires(Capability.LOGS_READ)
@requires(Capability.AUDIT_READ)
@ask_first
def add(request: AppRequest) -> HttpResponse:
    kind = kind_of(request.GET.get("kind", ""))
    form = SinkForm(posted(request), kind=kind)
    missing = KINDS[kind].missing()
    context = {"form": form, "heading": "Add a log sink", "kind": kind, "kinds": KIND_CHOICES, "missing": missing}
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
@requires(Capability.SINKS_READ)
@requires(Capability.LOGS_READ)
@requires(Capability.AUDIT_READ)
@requires(Capability.SINKS_MANAGE, to_change=True)
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
    return f"This sink would send data that you may not see yourself. You need “{lacking.capability.label}”."


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
    """Retry a failed delivery now, without waiting for the planned time of the retry."""
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
            more="If retention deletes rows while the sink is paused, these rows are never sent.",
            kind="primary",
            icon="pause",
            target=f"#sink-{sink.pk}",
            back=reverse("sinks:list"),
        )
    undo = Undo.if_changed(sink.disable(by=request.user), reverse("sinks:enable", args=[sink.pk]))
    return _switched(request, sink, "Log sink paused", undo if request.user.has_perms(SENDING) else None)


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
    return confirmed(
        request,
        lambda: sink.remove(by=request.user),
        "Log sink removed",
        back=page_url(sink) if request.user.has_perms(SENDING) else reverse("sinks:list"),
        to=reverse("sinks:list"),
        title="Remove log sink",
        text=f'Remove "{sink.name}"? This cannot be undone.',
        more="Nothing more is sent to this sink. Delivered rows stay at the receiver.",
        icon="revoke",
    )
