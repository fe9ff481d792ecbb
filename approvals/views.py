"""The Approvals pages: held calls that wait, decided calls, and permissions to repeat an approved call for a while."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import User
from approvals.arguments import shown_to
from approvals.forms import DecisionForm, HoldFilter, WaitForm
from approvals.models import SEES_ALL, Allowance, AllowanceQuerySet, Hold, HoldRefused, HoldState
from auditlog.models import Call
from auditlog.remedies import who_can
from capabilities import NOBODY, Capability, own_resource
from connections.models import ConnectionAlreadyRevoked
from rules.models import Rule
from ui.pages import AppRequest, leave, posted, refuse, show
from ui.tables import Column, Table
from ui.viewset import confirmed, form_page, list_page

OWN = "calls of one's own agents, and those on which the person may decide"

_CALL = (
    Column("tool", "Call", sorts=("tool",)),
    Column("agent", "Agent", 12, on_phone=True, value="connection.host.name"),
    Column("person", "Person", 13, priority=5, value="user.email"),
    Column("gateway", "Gateway", 9, priority=4, value="connection.gateway.name"),
    Column("rule", "Rule", 12, priority=3, on_phone=True, value="rule_name"),
    Column("at", "Asked", 7, kind="moment", sorts=("asked_at",), most_first=True, priority=2, value="asked_at"),
)
WAITING = Table(
    "holds",
    "Held calls that wait",
    (
        *_CALL,
        Column("ends", "Ends", 7, kind="moment", sorts=("ends_at",), on_phone=True, value="ends_at"),
        Column("acts", "Actions", 7, kind="acts", said=False),
    ),
    order="ends",
)
DECIDED = Table(
    "decided-holds",
    "Decided calls",
    (
        *_CALL,
        Column("state", "State", 10, on_phone=True, value=lambda hold: HoldState(hold.current_state).label),
        Column("by", "Decided by", 12, priority=3, value="decided_by.email"),
        Column("decided", "Decided", 7, kind="moment", is_extra=True, value="decided_at"),
        Column("sentence", "Sentence", 14, is_extra=True),
        Column("run", "Call that ran", 12, is_extra=True, value="run_call"),
    ),
    order="-at",
)
ALLOWED = Table(
    "allowances",
    "Allowed for a while",
    (
        Column("tool", "Call", sorts=("tool",)),
        Column("agent", "Agent", 12, on_phone=True, value="connection.host.name"),
        Column("same", "With the same", 12, priority=3, value="names"),
        Column("calls", "Calls", 5, kind="number", priority=4),
        Column("by", "Given by", 12, priority=5, value="given_by.email"),
        Column("ends", "Ends", 7, kind="moment", sorts=("ends_at",), on_phone=True, value="ends_at"),
        Column("acts", "Actions", 7, kind="acts", said=False),
    ),
    order="ends",
)


def hold_or_404(viewer: User, pk: UUID) -> Hold:
    """Return a hold that `viewer` may see. Raises Http404."""
    return get_object_or_404(Hold.objects.visible_to(viewer).with_details(viewer), pk=pk)


def allowance_or_404(viewer: User, pk: UUID) -> Allowance:
    """Return a temporary permission that `viewer` may see. Raises Http404."""
    return get_object_or_404(Allowance.objects.visible_to(viewer).with_details(), pk=pk)


@require_GET
@own_resource(OWN)
def waiting(request: AppRequest) -> HttpResponse:
    """List the held calls that wait for a decision."""
    return _list(request, WAITING, is_waiting=True)


@require_GET
@own_resource(OWN)
def decided(request: AppRequest) -> HttpResponse:
    """List the held calls that no longer wait, because they were decided or withdrawn, or because they expired."""
    return _list(request, DECIDED, is_waiting=False)


def _list(request: AppRequest, table: Table, *, is_waiting: bool) -> HttpResponse:
    return list_page(
        request,
        "approvals/waiting.html" if is_waiting else "approvals/decided.html",
        Hold.objects.visible_to(request.user),
        table=table,
        filters=HoldFilter(request.GET, viewer=request.user, is_waiting=is_waiting),
        detail=lambda rows: rows.with_details(request.user),
        rail_entry="approvals:waiting",
    )


@require_GET
@own_resource(OWN)
def allowed(request: AppRequest) -> HttpResponse:
    """List the temporary permissions that are in force."""
    return list_page(
        request,
        "approvals/allowed.html",
        Allowance.objects.visible_to(request.user).live(),
        table=ALLOWED,
        detail=AllowanceQuerySet.with_details,
        rail_entry="approvals:waiting",
    )


@require_GET
@own_resource(OWN, others=SEES_ALL)
def detail(request: AppRequest, pk: UUID) -> HttpResponse:
    """Show a held call: its arguments, who asks, why it is held, and the decision."""
    hold = hold_or_404(request.user, pk)
    return show(request, "approvals/hold.html", _context(request.user, hold))


def _context(viewer: User, hold: Hold, form: DecisionForm | None = None) -> dict[str, Any]:
    earlier = hold.earlier_run
    may_see_rule = viewer.has_perm(Capability.RULES_READ)
    return {
        "hold": hold,
        "state": hold.current_state,
        "arguments": shown_to(viewer, hold, hold.last_approved),
        "may_decide": Hold.objects.to_decide(viewer).filter(pk=hold.pk).exists(),
        "is_own": viewer.pk == hold.user_id,
        "may_change_wait": may_change_wait(viewer, hold),
        "form": form or DecisionForm(hold=hold),
        "rule": Rule.objects.filter(pk=hold.rule_id).first() if may_see_rule else None,
        "who": who_can(Capability.APPROVALS_DECIDE, viewer),
        "earlier": earlier,
        "earlier_row": _row(earlier.run_call) if earlier else None,
        "run": _row(hold.run_call),
        "rail_entry": "approvals:waiting",
    }


def _row(uid: UUID | None) -> Call | None:
    """Return the call with this id from the log; None if `uid` is None, or if the log does not have the call."""
    return Call.objects.filter(uid=uid).first() if uid else None


@require_POST
@own_resource(OWN, others=Capability.APPROVALS_DECIDE)
def decide(request: AppRequest, pk: UUID) -> HttpResponse:
    """Approve or deny a held call."""
    hold = get_object_or_404(Hold.objects.concerning(request.user).with_details(request.user), pk=pk)
    form = DecisionForm(request.POST, hold=hold)
    if not form.is_valid():
        return refuse(request, "approvals/hold.html", _context(request.user, hold, form))
    try:
        done = _decide(hold, form.cleaned_data, request.user)
    except HoldRefused as error:
        form.add_error(None, str(error))
        hold = hold_or_404(request.user, pk)
        return refuse(request, "approvals/hold.html", _context(request.user, hold, form))
    return leave(request, reverse("approvals:hold", args=[pk]), done)


def _decide(hold: Hold, chosen: dict[str, Any], by: User) -> str:
    if chosen["act"] == "deny":
        hold.deny(by=by, sentence=chosen["sentence"])
        return "Denied"
    hold.approve(by=by, sentence=chosen["sentence"], allow=chosen["allow"], names=chosen["names"])
    return "Approved"


@require_http_methods(["GET", "POST"])
@own_resource("calls of one's own agents", others=NOBODY)
def withdraw(request: AppRequest, pk: UUID) -> HttpResponse:
    """Withdraw a held call of one's own agent."""
    hold = get_object_or_404(Hold.objects.filter(user=request.user).with_details(request.user), pk=pk)
    return confirmed(
        request,
        lambda: hold.withdraw(by=request.user),
        "Withdrawn",
        back=reverse("approvals:hold", args=[pk]),
        faults=HoldRefused,
        title="Withdraw request",
        text=f"Withdraw the request of {hold.connection.host.name} to call {hold.tool}? The call does not run.",
        kind="primary",
    )


@require_http_methods(["GET", "POST"])
@own_resource("own connections", others=Capability.CONNECTIONS_TOGGLE)
def wait(request: AppRequest, pk: UUID) -> HttpResponse:
    """Change a connection's `hold_wait`, the time for which requests of held calls stay open.

    `pk` is the id of a hold of the connection.
    """
    hold = get_object_or_404(Hold.objects.with_details(request.user), pk=pk)
    if not may_change_wait(request.user, hold):
        raise Http404
    connection, back = hold.connection, reverse("approvals:hold", args=[pk])
    form = WaitForm(posted(request), initial={"seconds": connection.hold_wait})

    def save() -> HttpResponse:
        connection.set_hold_wait(form.cleaned_data["seconds"], by=request.user)
        return leave(request, back, "Changed")

    heading = f"How long held calls of {connection.host.name} wait"
    errors = {ConnectionAlreadyRevoked: None}
    return form_page(request, "ui/dialog.html", form, save, errors, heading=heading, back=back)


def may_change_wait(viewer: User, hold: Hold) -> bool:
    """True if the hold's connection is live, and `viewer` owns it or has CONNECTIONS_TOGGLE."""
    is_open = viewer.pk == hold.user_id or viewer.has_perm(Capability.CONNECTIONS_TOGGLE)
    return is_open and hold.connection.is_live


@require_http_methods(["GET", "POST"])
@own_resource(OWN, others=Capability.APPROVALS_DECIDE)
def end_allowance(request: AppRequest, pk: UUID) -> HttpResponse:
    """End a temporary permission."""
    row = allowance_or_404(request.user, pk)
    if not row.may_be_ended_by(request.user):
        raise Http404
    return confirmed(
        request,
        lambda: row.end(by=request.user),
        "Ended",
        back=reverse("approvals:allowed"),
        faults=HoldRefused,
        title="End permission",
        text=f"End the permission of {row.connection.host.name} to call {row.tool} without asking? The next call is "
        "held again.",
    )
