"""The Logs page and the page of one call."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_GET

from auditlog import filters
from auditlog.detail import Detail
from auditlog.filters import CallFilter
from auditlog.models import Call
from capabilities import Capability, requires
from ui.pages import AppRequest, show

SEES_SERVERS = (Capability.SERVERS_MANAGE, Capability.SERVERS_TOGGLE, Capability.IDENTITIES_MANAGE)
BESIDE = 25  # Rows beside an open call: enough to see what came before.


@require_GET
@requires(Capability.LOGS_READ)
def calls(request: AppRequest) -> HttpResponse:
    if _is_for_drawer(request):
        return render(request, "auditlog/calls.html#closed")
    context = _listed(request)
    response = show(request, "auditlog/calls.html#entries", context)
    if request.htmx:
        # What htmx would push names every empty field of the form.
        response["HX-Push-Url"] = f"{request.path}?{context['query']}".removesuffix("?")
    return response


@require_GET
@requires(Capability.LOGS_READ)
def call(request: AppRequest, uid: UUID) -> HttpResponse:
    """One call, as a drawer beside the list it was opened from."""
    try:
        found = Call.objects.find(uid)
    except (Call.DoesNotExist, ValueError, OverflowError) as missing:
        raise Http404 from missing
    context = {
        "call": found,
        "detail": Detail(found),
        "same_request": _same_request(found),
        "sees_servers": any(request.user.has_perm(capability) for capability in SEES_SERVERS),
    }
    if _is_for_drawer(request):
        return render(request, "auditlog/drawer.html", {**context, "query": CallFilter(request.GET).query})
    return render(request, "auditlog/calls.html", {**_listed(request, BESIDE), **context})


def _is_for_drawer(request: AppRequest) -> bool:
    return request.htmx.target == "drawer" and not request.htmx.history_restore_request


def _listed(request: AppRequest, size: int = filters.PAGE_SIZE) -> dict[str, Any]:
    chosen = CallFilter(request.GET)
    rows = chosen.narrow()
    return {
        "page": filters.page(rows, before=request.GET.get("before", ""), after=request.GET.get("after", ""), size=size),
        "count": filters.count(rows),
        "narrowed": bool(chosen.asked),
        "span": chosen.span,
        "query": chosen.query,
        "chips": chosen.chips(),
        "facets": chosen.facets(),
        "list_url": reverse("auditlog:calls"),
    }


def _same_request(found: Call) -> int:
    """How many calls carry the same correlation id; all of one request lie close together."""
    around = (found.created_at - timedelta(days=1), found.created_at + timedelta(days=1))
    return Call.objects.filter(correlation_id=found.correlation_id, created_at__range=around).count()
